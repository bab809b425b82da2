//! `POST /v1/verify`.

use std::sync::Arc;

use http::Response;

use crate::api::{Error, VerifyLine, VerifyRequest};
use crate::audit::Kind;
use crate::verify;

use super::lines;
use super::peer::Peer;
use super::reply::Body;
use super::request::malformed;
use super::routes::permit;
use super::state::App;

/// Begins the work; the answer tells of it line by line.
pub(super) async fn answer(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
    request: VerifyRequest,
) -> Result<Response<Body>, Error> {
    if request.check != "recipient" {
        return Err(malformed(format!(
            "check is {:?}; this release knows \"recipient\"",
            request.check
        )));
    }
    if request.bucket.is_empty() {
        return Err(malformed("bucket is missing"));
    }
    if request.sample.is_some_and(|s| !(s > 0.0 && s <= 1.0)) {
        return Err(malformed("sample must be above 0, and at most 1"));
    }
    let name = request.recipient.clone().unwrap_or_default();
    // A name that is none is told before anything is recorded or begun.
    app.engine.keyring.names_of(&name)?;
    let permit = permit(app)?;
    let mut op = app.audit.op(Kind::Admin, peer.actor(), request_id);
    let event = op.event();
    event.operation = Some(crate::api::Operation::Admin);
    event.bucket = Some(request.bucket.clone());
    event.key = Some(request.prefix.clone());
    event.detail = Some(format!("verify that recipient {name} opens what is stored"));
    op.begin().await?;
    let (app, request_id) = (Arc::clone(app), request_id.to_owned());
    Ok(lines::answer(move |out| async move {
        let _permit = permit;
        let done = verify::recipient(&app.engine, &request, &out).await;
        if let Ok(sum) = &done {
            op.event().detail = Some(format!(
                "verified that recipient {name} opens what is stored: {} of {} looked at, {} bad",
                sum.checked, sum.listed, sum.bad
            ));
        }
        let last = match op.finish(done).await {
            Ok(sum) => VerifyLine::Summary(sum),
            Err(error) => VerifyLine::Problem(error.problem(&request_id)),
        };
        // A client that left wants none.
        let _ = out.send(last).await;
    }))
}
