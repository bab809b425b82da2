//! What became of operations whose begin has no end: the process that began
//! them is gone, and the store is asked (SECURITY rule 28).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use crate::api::Operation;
use crate::audit::{Begun, Event, Kind, Unended};
use crate::store::{Head, METADATA_MESSAGE_ID, Place, Store, StoreError};

use super::super::state::App;

/// Places asked for at once: a start has better things to do, too.
const AT_ONCE: usize = 4;
/// How long after a failure the store is asked again.
const RETRY: Duration = Duration::from_secs(5);

/// Resolves every begin that former processes left, in the background.
pub(in crate::agent) async fn resolve(app: Arc<App>, unended: Unended) {
    // The log may take long to open; its writer may end before it does.
    let Ok(begun) = unended.await else { return };
    futures_util::stream::iter(begun)
        .for_each_concurrent(AT_ONCE, |begun| {
            let app = app.clone();
            async move {
                let resolved = resolved(&app.engine.store, begun).await;
                let state = resolved.state.clone();
                tracing::info!(
                    op = resolved.op,
                    bucket = resolved.bucket,
                    key = resolved.key,
                    state,
                    "an operation that was cut short is resolved"
                );
                app.audit.send(resolved);
            }
        })
        .await;
}

async fn resolved(store: &Store, begun: Begun) -> Event {
    let begin = begun.event;
    let state = match (begin.event, &begin.bucket, &begin.key) {
        (Kind::Put | Kind::Delete, Some(bucket), Some(key)) => {
            let place = Place::new(bucket, key);
            // What a put made is the place's newest version.
            let version = begin.version_id.as_deref();
            let version = version.filter(|_| begin.event == Kind::Delete);
            let found = ask(store, &place, version).await;
            match begin.event {
                Kind::Put => put(found.as_ref(), begin.message_id.as_deref()),
                _ if found.is_some() => "present",
                _ => "deleted",
            }
        }
        // Whether and how far it was done, nobody can tell any more.
        _ => "unknown",
    };
    Event {
        event: Kind::Resolved,
        operation: operation(begin.event),
        op: begin.op,
        peer: begin.peer,
        bucket: begin.bucket,
        key: begin.key,
        version_id: begin.version_id,
        message_id: begin.message_id,
        wrapping_key: begin.wrapping_key,
        state: Some(state.to_owned()),
        detail: Some("the agent stopped before its end".to_owned()),
        ..Event::default()
    }
}

fn put(found: Option<&Head>, message_id: Option<&str>) -> &'static str {
    let Some(head) = found else { return "absent" };
    let ours = head
        .metadata
        .iter()
        .any(|(name, value)| name == METADATA_MESSAGE_ID && Some(value.as_str()) == message_id);
    match ours {
        true => "stored",
        // It was never stored, or was replaced since.
        false => "another",
    }
}

/// What the store has there, however long it is away.
async fn ask(store: &Store, place: &Place, version: Option<&str>) -> Option<Head> {
    loop {
        match store.head(place, version).await {
            Ok(head) => return Some(head),
            Err(
                StoreError::NoSuchKey { .. }
                | StoreError::NoSuchVersion { .. }
                | StoreError::NoSuchBucket { .. },
            ) => return None,
            Err(error) => {
                tracing::warn!(%place, %error, "cannot ask yet what became of an operation");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn operation(kind: Kind) -> Option<Operation> {
    Operation::ALL
        .into_iter()
        .find(|operation| Kind::from(*operation) == kind)
}
