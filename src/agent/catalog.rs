//! `GET /v1/catalog`: what this host's catalogue knows, line by line, for
//! other hosts and for safe keeping.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{EXPORT_FORMAT, Error, ErrorKind, ExportEnd, ExportHead};
use crate::audit::Kind;
use crate::catalog::{Catalog, CatalogError};

use super::lines;
use super::peer::Peer;
use super::reply::{self, Body};
use super::routes::permit;
use super::state::App;

/// Entries read at a time.
const PAGE: u32 = 1000;

pub(super) async fn answer(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
) -> Result<Response<Body>, Error> {
    let permit = permit(app)?;
    let mut op = app.audit.op(Kind::Admin, peer.actor(), request_id);
    op.event().operation = Some(crate::api::Operation::Admin);
    op.event().detail = Some("export the catalogue".to_owned());
    op.begin().await?;
    // Before the entries: what becomes an object meanwhile is one of them.
    let head = head(app).await?;
    let (app, request_id) = (Arc::clone(app), request_id.to_owned());
    Ok(lines::answer(move |out| async move {
        let _permit = permit;
        let exported = async {
            let mut entries = 0;
            let mut after = 0;
            let _ = out.send(head).await;
            loop {
                let page = app.engine.catalog.entries(after, PAGE);
                let page = page.await.map_err(unread)?;
                let Some(last) = page.last() else { break };
                after = last.id;
                for entry in &page {
                    if out.send(json!(entry)).await.is_err() {
                        return Err(Error::new(ErrorKind::Incomplete, "the client left"));
                    }
                    entries += 1;
                }
            }
            Ok(json!(ExportEnd { entries }))
        };
        let exported = exported.await;
        let last = match op.finish(exported).await {
            Ok(end) => end,
            // No last line: the export is not whole, and everybody sees it.
            Err(error) => json!({ "problem": error.problem(&request_id) }),
        };
        let _ = out.send(last).await;
    }))
}

/// `POST /v1/catalog/accept`: the catalogue is taken for good although the
/// evidence knows another.
pub(super) async fn accept(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
) -> Result<Response<Body>, Error> {
    let doubt = super::audit::doubt(app).await?;
    let mut op = app.audit.op(Kind::Admin, peer.actor(), request_id);
    op.event().operation = Some(crate::api::Operation::Admin);
    op.event().detail = Some(format!(
        "accept the catalogue as it is, of which was known: {}",
        doubt.as_deref().unwrap_or("nothing against it")
    ));
    op.begin().await?;
    let accepted = super::audit::accept(app).await;
    op.finish(accepted).await?;
    reply::json(StatusCode::OK, &json!({ "accepted": doubt }))
}

async fn head(app: &App) -> Result<Value, Error> {
    let engine = &app.engine;
    let keys = engine.keyring.keys();
    let mut active: Vec<String> = keys
        .iter()
        .filter(|key| key.usage == "active" || engine.uses.of(&key.name) > 0)
        .map(|key| key.name.clone())
        .collect();
    active.extend(keys.into_iter().filter_map(|key| key.handed_over_to));
    active.sort();
    active.dedup();
    let waits = engine.catalog.dependents().await.map_err(unread)?;
    Ok(json!(ExportHead {
        format: EXPORT_FORMAT.to_owned(),
        host: app.audit.standing().origin,
        time: Timestamp::now().to_string(),
        schema: Catalog::schema_version() as u64,
        active,
        dependents: waits
            .into_iter()
            .map(|w| {
                let words = format!("{} {} for {}", w.kind, w.id, w.place);
                (w.wrapping_key, words)
            })
            .collect(),
    }))
}

fn unread(error: CatalogError) -> Error {
    Error::new(ErrorKind::StateFailed, "the catalogue cannot be read").log(error)
}
