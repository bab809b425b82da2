//! Store and forward over HTTP: `PUT` with `Strongroom-Queue: true`, and the
//! tickets.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header as std_header};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use crate::api::{Error, ErrorKind, Operation, QueueStatus, Ticket, header};
use crate::audit::{Actor, Audit, Kind, Op};
use crate::catalog::Queued;
use crate::put::PutRequest;
use crate::put::queue::{self, Outcome, Records};

use super::conversation::RequestBody;
use super::objects::Granted;
use super::peer::Peer;
use super::policy::Ask;
use super::reply::{self, Body};
use super::request::{self, Query, Target};
use super::source::HttpSource;
use super::state::App;

/// The tickets' routes begin so.
pub(super) const QUEUE: &str = "/v1/queue/";
/// Tickets in an answer; those behind them come into sight as these go.
const MOST_LISTED: u32 = 1000;

/// A put that may be queued.
pub(super) async fn put(
    granted: Granted,
    target: Target,
    headers: &HeaderMap,
    body: RequestBody,
) -> Result<Response<Body>, Error> {
    let request = PutRequest {
        place: target.place()?,
        attributes: request::attributes(headers)?,
        context: request::context(headers)?,
        ring: request::text(headers, header::KEY)?,
        rings: granted.rights.rings.clone(),
        no_overwrite: granted.rights.no_overwrite,
        length: request::length(headers)?,
    };
    let meter = granted.meter(&granted.app.metrics.bytes_in);
    let mut op = granted.op(
        Kind::Upload,
        &request.place.bucket,
        Some(&request.place.key),
    );
    op.event().state = Some("queued".to_owned());
    if let Err(error) = granted.app.check_ready() {
        return op.finish(Err(error)).await;
    }
    let Granted {
        app,
        permit,
        request_id,
        peer,
        rights,
        ..
    } = granted;
    let whose = (peer.uid(), peer.subject.gid);
    let engine = app.engine.clone();
    // Dropped with this handler, which hyper drops when the client goes.
    let (present, client) = oneshot::channel();
    let mut source = HttpSource::new(body, engine.pool.clone(), client, rights.max_size, meter);
    let (answer, outcome) = oneshot::channel();
    let work = async move {
        let _permit = permit;
        let done = queue::enqueue(&engine, request, whose, &mut source, &mut op).await;
        let done = op.finish(done).await;
        if let Err(Err(error)) = answer.send(done) {
            tracing::warn!(
                request_id,
                kind = error.kind.slug(),
                detail = error.detail,
                log = error.log,
                "put failed, and its client is gone"
            );
        }
    };
    tokio::spawn(work.instrument(tracing::Span::current()));
    let outcome = outcome
        .await
        .map_err(|_| Error::new(ErrorKind::Internal, "the put ended abnormally"))??;
    drop(present);
    let ticket = match outcome {
        Outcome::Stored(receipt) => return reply::json(StatusCode::CREATED, &*receipt),
        Outcome::Queued(ticket) => ticket,
    };
    let catalog = &app.engine.catalog;
    let Some(queued) = catalog.queued(&ticket).await? else {
        // Stored in this very moment: a receipt is the better answer.
        return Err(Error::new(
            ErrorKind::Conflict,
            "the object left the queue while its ticket was written: it is stored, or its ticket was dropped",
        )
        .hint("`strongroom inspect` tells"));
    };
    let mut response = reply::json(StatusCode::ACCEPTED, &told(&queued))?;
    let at = format!("{QUEUE}{ticket}");
    reply::set(&mut response, std_header::LOCATION, &at);
    Ok(response)
}

/// A request under [`QUEUE`], or for all tickets without a name.
pub(super) async fn answer(
    app: &Arc<App>,
    peer: &Arc<Peer>,
    request_id: &str,
    method: &Method,
    rest: &str,
    query: &Query,
) -> Result<Response<Body>, Error> {
    query.allow(&[])?;
    let policy = app.policy.current();
    let admin = policy.decide(&peer.subject, &Ask::admin());
    if !policy.knows(&peer.subject) {
        admin.map_err(Error::from)?;
        return Err(Error::new(ErrorKind::Forbidden, "nothing is granted"));
    }
    let of = admin.is_err().then(|| peer.uid());
    let catalog = &app.engine.catalog;
    if rest.is_empty() && *method == Method::GET {
        let page = catalog.queued_page(of, 0, MOST_LISTED).await?;
        let page: Vec<Ticket> = page.iter().map(told).collect();
        return reply::json(StatusCode::OK, &page);
    }
    let (ticket, retry) = match rest.strip_suffix("/retry") {
        Some(ticket) => (ticket, true),
        None => (rest, false),
    };
    let queued = catalog.queued(ticket).await?;
    let queued = queued.filter(|queued| of.is_none_or(|uid| uid == queued.uid));
    let queued = queued.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "there is no such ticket of yours: it was stored, or dropped",
        )
    })?;
    // What is done with it is a put's doing.
    let granted = || {
        let ask = Ask::at(Operation::Put, &queued.bucket, &queued.key);
        match of {
            Some(_) => policy
                .decide(&peer.subject, &ask)
                .map(drop)
                .map_err(Error::from),
            None => Ok(()),
        }
    };
    match (method, retry) {
        (&Method::GET, false) => reply::json(StatusCode::OK, &told(&queued)),
        (&Method::POST, true) => {
            granted()?;
            record(app, peer, request_id, &queued, "retried").await?;
            catalog.retry_queued(ticket).await?;
            app.engine.queued.notify_one();
            let now = catalog.queued(ticket).await?.unwrap_or(queued);
            reply::json(StatusCode::OK, &told(&now))
        }
        (&Method::DELETE, false) => {
            granted()?;
            record(app, peer, request_id, &queued, "dropped").await?;
            queue::discard(&app.engine, ticket, queued.size).await?;
            let mut response = Response::new(reply::full(Bytes::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
        _ => Err(Error::new(
            ErrorKind::MethodNotAllowed,
            format!("{method} {QUEUE}{rest}"),
        )),
    }
}

/// The records of the tickets' sending.
pub(super) fn records(audit: Audit) -> Records {
    Arc::new(move |queued| {
        let actor = Actor {
            uid: queued.uid,
            gid: queued.gid,
            pid: None,
            comm: None,
        };
        let mut op = audit.op(Kind::Put, actor, &queued.ticket);
        describe(&mut op, queued);
        op.event().plaintext_size = Some(queued.plaintext_size);
        op.event().stored_size = Some(queued.size);
        op
    })
}

async fn record(
    app: &App,
    peer: &Peer,
    request_id: &str,
    queued: &Queued,
    state: &str,
) -> Result<(), Error> {
    let mut op = app.audit.op(Kind::Upload, peer.actor(), request_id);
    describe(&mut op, queued);
    op.event().state = Some(state.to_owned());
    op.finish(Ok(())).await
}

fn describe(op: &mut Op, queued: &Queued) {
    let event = op.event();
    event.bucket = Some(queued.bucket.clone());
    event.key = Some(queued.key.clone());
    event.message_id = Some(queued.message_id.clone());
    event.wrapping_key = Some(queued.wrapping_key.clone());
}

/// What `status` tells.
pub(super) async fn status(app: &App) -> Result<QueueStatus, Error> {
    let backlog = app.engine.catalog.backlog().await?;
    Ok(QueueStatus {
        tickets: backlog.tickets,
        parked: backlog.parked,
        bytes: backlog.bytes,
        oldest: backlog.oldest,
    })
}

fn told(queued: &Queued) -> Ticket {
    let (reason, detail) = queued.parked.clone().unzip();
    let state = if reason.is_some() {
        "parked"
    } else {
        "waiting"
    };
    Ticket {
        ticket: queued.ticket.clone(),
        state: state.to_owned(),
        bucket: queued.bucket.clone(),
        key: queued.key.clone(),
        uid: queued.uid,
        plaintext_size: queued.plaintext_size,
        stored_size: queued.size,
        message_id: queued.message_id.clone(),
        wrapping_key: queued.wrapping_key.clone(),
        since: queued.since,
        attempts: queued.attempts,
        reason,
        detail,
    }
}
