//! `POST /v1/verify`.

use std::sync::Arc;

use http::Response;

use crate::api::{Error, Operation, Verification, VerifyLine, VerifyRequest, VerifySummary};
use crate::audit::{Event, Kind, Op};
use crate::verify::{self, Level, Scope};

use super::audit::doubt;
use super::lines;
use super::peer::Peer;
use super::policy::{Ask, Denied, Policy, Rights};
use super::reply::Body;
use super::request::malformed;
use super::routes::permit;
use super::state::App;

/// What a request needs: whoever administers may do all of it; others may
/// verify where they are granted what the level does.
pub(super) fn rights(
    policy: &Policy,
    peer: &Peer,
    request: &VerifyRequest,
) -> Result<Option<Rights>, Denied> {
    let subject = &peer.subject;
    let admin = policy.decide(subject, &Ask::admin());
    let Some(level) = Level::parse(&request.check).filter(|_| admin.is_err()) else {
        return admin.map(|_| None);
    };
    let ask = |operation| Ask::at(operation, &request.bucket, &request.prefix);
    let listed = policy.decide(subject, &ask(Operation::List))?;
    Ok(Some(match level {
        Level::List => listed,
        Level::Head => policy.decide(subject, &ask(Operation::Head))?,
        Level::Read => policy.decide(subject, &ask(Operation::Get))?,
    }))
}

/// Begins the work; the answer tells of it line by line.
pub(super) async fn answer(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
    rights: Option<Rights>,
    request: VerifyRequest,
) -> Result<Response<Body>, Error> {
    if request.bucket.is_empty() {
        return Err(malformed("bucket is missing"));
    }
    if request.sample.is_some_and(|s| !(s > 0.0 && s <= 1.0)) {
        return Err(malformed("sample must be above 0, and at most 1"));
    }
    match (request.check.as_str(), Level::parse(&request.check)) {
        ("recipient", _) => recipient(app, peer, request_id, request).await,
        (_, Some(Level::List)) if request.sample.is_some_and(|share| share < 1.0) => Err(
            malformed("sample is for head and read: the listing is compared as a whole"),
        ),
        (_, Some(level)) => levels(app, peer, request_id, rights, level, request).await,
        (check, None) => Err(malformed(format!(
            "check is {check:?}; it is one of \"list\", \"head\", \"read\" and \"recipient\""
        ))),
    }
}

async fn levels(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
    rights: Option<Rights>,
    level: Level,
    request: VerifyRequest,
) -> Result<Response<Body>, Error> {
    let permit = permit(app)?;
    let mut op = app.audit.op(Kind::Verify, peer.actor(), request_id);
    let event = op.event();
    event.operation = Some(match (&rights, level) {
        (None, _) => Operation::Admin,
        (_, Level::List) => Operation::List,
        (_, Level::Head) => Operation::Head,
        (_, Level::Read) => Operation::Get,
    });
    place(event, &request);
    event.detail = Some(format!("level {}", request.check));
    op.begin().await?;
    let (app, request_id) = (Arc::clone(app), request_id.to_owned());
    Ok(lines::answer(move |out| async move {
        let _permit = permit;
        let done = async {
            let scope = Scope {
                rings: rights.and_then(|rights| rights.rings),
                own: app.anchors.clone(),
                doubt: doubt(&app).await?,
            };
            verify::levels(&app.engine, level, &request, scope, &out).await
        };
        let done = done.await.map(|sum| VerifySummary {
            record: Some(request_id.clone()),
            ..sum
        });
        finish(op, done, &request, &request_id, &out).await;
    }))
}

async fn recipient(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
    request: VerifyRequest,
) -> Result<Response<Body>, Error> {
    let name = request.recipient.clone().unwrap_or_default();
    // A name that is none is told before anything is recorded or begun.
    app.engine.keyring.names_of(&name)?;
    let permit = permit(app)?;
    let mut op = app.audit.op(Kind::Admin, peer.actor(), request_id);
    let event = op.event();
    event.operation = Some(Operation::Admin);
    place(event, &request);
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

fn place(event: &mut Event, request: &VerifyRequest) {
    event.bucket = Some(request.bucket.clone());
    event.key = Some(request.prefix.clone());
}

/// Puts the result on record before anybody hears it.
async fn finish(
    mut op: Op,
    done: Result<VerifySummary, Error>,
    request: &VerifyRequest,
    request_id: &str,
    out: &tokio::sync::mpsc::Sender<VerifyLine>,
) {
    let event = op.event();
    let kind = match &done {
        Ok(sum) => {
            event.verified = Some(Box::new(Verification {
                level: sum.check.clone(),
                sample: request.sample.filter(|share| *share < 1.0).map(percent),
                allow_extra: request.allow_extra,
                current_only: request.current_only,
                began: sum.began.clone().unwrap_or_default(),
                listed: sum.listed,
                checked: sum.checked,
                good: sum.good,
                bad: sum.bad,
                extra: sum.extra,
                unchecked: sum.unchecked,
                findings: sum.findings.clone(),
                digest: sum.digest.clone().unwrap_or_default(),
            }));
            // It did what was asked: what it found is no failure of its own.
            Ok(())
        }
        Err(error) => Err(error.kind),
    };
    let recorded = op.end(kind).await;
    let last = match done.and_then(|sum| recorded.map(|()| sum)) {
        Ok(sum) => VerifyLine::Summary(sum),
        Err(error) => VerifyLine::Problem(error.problem(request_id)),
    };
    // A client that left wants none.
    let _ = out.send(last).await;
}

/// A share as people write it.
fn percent(share: f64) -> String {
    format!("{}%", share * 100.0)
}
