//! Multipart uploads that nobody goes on with: found in the journal, aborted
//! at the store, however often the agent starts before the store is back.
//!
//! One whose id was never heard is looked for at exactly its key, among those
//! begun at about the time of its intent: uploads of other hosts stay.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::now_ms;
use super::resume::{KEPT, remove_claims};
use crate::api::Error;
use crate::catalog::Orphan;
use crate::engine::Engine;
use crate::fault::store_error;
use crate::store::{Place, StoreError};

/// Orphans taken from the journal at a time: one page in memory.
const PAGE: u32 = 64;
/// How long after a failure it is tried again, at first and at most: a store
/// that is away is away for seconds or for an hour.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often uploads are looked at that nobody resumed: they are kept for
/// days.
const IDLE: Duration = Duration::from_secs(600);
/// By how much the store's clock may differ from ours, in milliseconds. Both
/// keep time by NTP; beyond 15 minutes the store refuses every request.
const SKEW: u64 = 60_000;
/// How long after its intent an upload may have begun, in milliseconds: five
/// attempts with a minute's patience each, and their back-off.
const BEGINNING: u64 = 600_000;

/// Aborts what was given up, for as long as the server lives.
pub async fn sweep(engine: Arc<Engine>) {
    let mut wait = BACKOFF.0;
    loop {
        let pause = match pass(&engine).await {
            Ok(true) => {
                wait = BACKOFF.0;
                IDLE
            }
            done => {
                if let Err(error) = done {
                    tracing::warn!(detail = error.detail, "the upload journal cannot be swept");
                }
                let pause = wait;
                wait = (wait * 2).min(BACKOFF.1);
                pause
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = engine.orphaned.notified() => {}
        }
    }
}

/// One pass over all orphans; false if some are left.
async fn pass(engine: &Engine) -> Result<bool, Error> {
    let kept = u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX);
    let catalog = &engine.catalog;
    catalog
        .expire_uploads(now_ms().saturating_sub(kept))
        .await?;
    let (mut after, mut all) = (0, true);
    loop {
        let orphans = catalog.orphans(after, PAGE).await?;
        let Some(last) = orphans.last() else {
            return Ok(all);
        };
        after = last.row;
        for orphan in orphans {
            let place = Place::new(&orphan.bucket, &orphan.key);
            match abort(engine, &orphan, &place).await {
                Ok(true) => catalog.forget_upload(orphan.row).await?,
                Ok(false) => all = false,
                // With its bucket it is gone.
                Err(StoreError::NoSuchBucket { .. }) => catalog.forget_upload(orphan.row).await?,
                Err(error) => {
                    tracing::warn!(%place, %error, "an upload that was given up is not aborted yet");
                    all = false;
                }
            }
        }
    }
}

/// Whether the store has it no more.
async fn abort(engine: &Engine, orphan: &Orphan, place: &Place) -> Result<bool, StoreError> {
    if let Some(id) = &orphan.upload_id {
        engine.store.abort_upload(place, id).await?;
        // A part that was under way may have brought it back.
        if let Ok(Some(_)) = engine.store.list_parts(place, id).await {
            return Ok(false);
        }
        tracing::info!(%place, upload = id, "an upload that was given up is aborted");
        remove_claims(engine, place, id, orphan.resumes).await;
        return Ok(true);
    }
    let listed = engine.store.list_uploads(&place.bucket, &place.key).await?;
    // What began before the listing is in the journal by now, or about to be.
    let open = match engine.catalog.open_uploads(&place.bucket, &place.key).await {
        Ok(open) if !open.beginning => open,
        Ok(_) => return Ok(false),
        Err(error) => {
            tracing::warn!(%error, "the upload journal cannot be read");
            return Ok(false);
        }
    };
    for upload in listed {
        let ours = upload.key == place.key
            && !open.ids.contains(&upload.upload_id)
            && upload
                .initiated
                .as_deref()
                .and_then(unix_ms)
                .is_some_and(|at| {
                    at + SKEW >= orphan.intent && at <= orphan.intent + BEGINNING + SKEW
                });
        if ours {
            engine.store.abort_upload(place, &upload.upload_id).await?;
            tracing::info!(%place, upload = upload.upload_id, "an upload without an owner is aborted");
        }
    }
    Ok(true)
}

fn unix_ms(instant: &str) -> Option<u64> {
    let at: Timestamp = instant.parse().ok()?;
    u64::try_from(at.as_millisecond()).ok()
}

/// [`store_error`] of an abort that a client asked for.
pub(super) async fn abort_now(engine: &Engine, place: &Place, id: &str) -> Result<(), Error> {
    let aborted = engine.store.abort_upload(place, id).await;
    aborted.map_err(|e| store_error(&e))
}
