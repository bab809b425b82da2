//! The object routes: HTTP to operations and back.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header as std_header};
use hyper::body::{Body as _, Frame};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::Instrument as _;

use crate::api::{Error, ErrorKind, Standing, header};
use crate::audit::{Kind, Op};
use crate::get::{self, Facts, GetRequest, PlaintextBody, Wanted};
use crate::objects::{self, ListRequest};
use crate::put::{self, PutRequest, Source, SourceFile};

use super::archive;
use super::conversation::RequestBody;
use super::deliver::TargetFile;
use super::descriptor::Descriptor;
use super::metrics::Timer;
use super::peer::Peer;
use super::policy::{Meter, Rights};
use super::reply::{self, Body};
use super::request::{self, Query, Target};
use super::source::HttpSource;
use super::state::App;

/// One granted request: what a handler needs besides its input.
pub(super) struct Granted {
    pub(super) app: Arc<App>,
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) request_id: String,
    /// Who asked.
    pub(super) peer: Arc<Peer>,
    /// What was granted: only the policy makes one.
    pub(super) rights: Rights,
    /// Counts it, once its answer is complete.
    pub(super) timer: Arc<Timer>,
}

impl Granted {
    /// What counts this request's bytes and slows them down.
    pub(super) fn meter(&self, counter: &Counter) -> Meter {
        let limits = self.rights.limits.clone();
        Meter::new(limits, self.app.engine.pool.clone(), counter.clone())
    }

    /// The records of this request.
    pub(super) fn op(&self, kind: Kind, bucket: &str, key: Option<&str>) -> Op {
        let actor = self.peer.actor();
        let mut op = self.app.audit.op(kind, actor, &self.request_id);
        op.event().bucket = Some(bucket.to_owned());
        op.event().key = key.map(str::to_owned);
        op
    }
}

/// Where a put's plaintext is.
enum From {
    Body(HttpSource),
    File(SourceFile),
}

pub(super) async fn put(
    granted: Granted,
    target: Target,
    query: Query,
    headers: &HeaderMap,
    body: RequestBody,
    descriptor: Option<Descriptor>,
) -> Result<Response<Body>, Error> {
    query.allow(&[])?;
    let request = PutRequest {
        place: target.place()?,
        attributes: request::attributes(headers)?,
        context: request::context(headers)?,
        ring: request::text(headers, header::KEY)?,
        rings: granted.rights.rings.clone(),
        no_overwrite: granted.rights.no_overwrite,
        // Absent for chunked bodies.
        length: request::length(headers)?,
    };
    let meter = granted.meter(&granted.app.metrics.bytes_in);
    let passed = descriptor.is_some();
    let pool = granted.app.engine.pool.clone();
    // Dropped with this handler, which hyper drops when the client goes.
    let (present, client) = oneshot::channel();
    let mut source = match descriptor {
        None => From::Body(HttpSource::new(
            body,
            pool,
            client,
            granted.rights.max_size,
            meter,
        )),
        Some(descriptor) => {
            // Two sources would be one too many.
            if !body.is_end_stream() {
                return Err(request::malformed("a descriptor and a body"));
            }
            From::File(descriptor.source(client, meter).await?)
        }
    };
    let place = &request.place;
    let mut op = granted.op(Kind::Put, &place.bucket, Some(&place.key));
    if let Err(error) = granted.app.check_ready() {
        return op.finish(Err(error)).await;
    }
    let Granted {
        app,
        permit,
        request_id,
        ..
    } = granted;
    let engine = app.engine.clone();
    let (answer, outcome) = oneshot::channel();
    // A task of its own: when the client goes, the upload must still be
    // aborted, and the permit kept until it is.
    let upload = async move {
        let _permit = permit;
        let source = match &mut source {
            From::Body(body) => Source::Stream(body),
            From::File(file) => Source::File(file),
        };
        let outcome = put::put(&engine, request, source, &mut op).await;
        // Also of a client that has left; durable before one hears of it.
        let kind = outcome.as_ref().map(|_| ()).map_err(|error| error.kind);
        let recorded = op.end(kind).await;
        let outcome = outcome.and_then(|receipt| match recorded {
            Ok(()) => Ok(receipt),
            Err(error) => {
                let detail = format!("the object is in S3, but {}", error.detail);
                Err(Error::new(error.kind, detail)
                    .hint("its record is written as soon as it can be"))
            }
        });
        if let Err(Err(error)) = answer.send(outcome) {
            tracing::warn!(
                request_id,
                kind = error.kind.slug(),
                detail = error.detail,
                log = error.log,
                "put failed, and its client is gone"
            );
        }
    };
    tokio::spawn(upload.instrument(tracing::Span::current()));
    let receipt = outcome
        .await
        .map_err(|_| Error::new(ErrorKind::Internal, "the upload ended abnormally"))??;
    drop(present);
    tracing::info!(
        bucket = receipt.bucket,
        key = receipt.key,
        bytes = receipt.plaintext_size,
        message_id = receipt.message_id,
        wrapping_key = receipt.wrapping_key,
        descriptor = passed,
        "stored"
    );
    reply::json(StatusCode::CREATED, &receipt)
}

pub(super) async fn get(
    granted: Granted,
    target: Target,
    query: Query,
    headers: &HeaderMap,
    descriptor: Option<Descriptor>,
) -> Result<Response<Body>, Error> {
    let wanted = request::range(headers)?;
    let file = match descriptor {
        Some(descriptor) => Some(descriptor.target().await?),
        None => None,
    };
    read(granted, target, query, headers, wanted, file).await
}

pub(super) async fn head(
    granted: Granted,
    target: Target,
    query: Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    read(granted, target, query, headers, Wanted::Facts, None).await
}

async fn read(
    granted: Granted,
    target: Target,
    query: Query,
    headers: &HeaderMap,
    wanted: Wanted,
    file: Option<TargetFile>,
) -> Result<Response<Body>, Error> {
    query.allow(&["version_id"])?;
    let head = wanted == Wanted::Facts;
    let request = GetRequest {
        place: target.place()?,
        version_id: query.value("version_id"),
        wanted,
        allow_unbound: request::flag(headers, header::ALLOW_UNBOUND)?,
        allow_uncommitted: request::flag(headers, header::ALLOW_UNCOMMITTED)?,
        bound_to: request::bound_to(headers)?,
        rings: granted.rights.rings.clone(),
    };
    let kind = if head { Kind::Head } else { Kind::Get };
    let place = &request.place;
    let mut op = granted.op(kind, &place.bucket, Some(&place.key));
    op.event().version_id.clone_from(&request.version_id);
    op.check()?;
    let asked = request.home(&granted.app.engine.settings);
    let (facts, mut body) = match get::get(&granted.app.engine, request).await {
        Ok(opened) => opened,
        Err(error) => return op.finish(Err(error)).await,
    };
    tell(&mut op, &granted.app, &facts, wanted);
    op.begin().await?;
    let vouched = match request::flag(headers, header::ASK_WRITERS)? {
        true => archive::vouched(&granted.app, &asked, &facts).await,
        false => None,
    };
    let op = match head {
        true => {
            op.finish(Ok(())).await?;
            None
        }
        // An alteration in the first part is then a 422, not a broken body.
        false => match body.prime().await {
            Ok(()) => Some(op),
            Err(error) => return op.finish(Err(error)).await,
        },
    };
    let partial = matches!(wanted, Wanted::Span(..) | Wanted::Suffix(..));
    let delivered = file.is_some();
    let mut response = Response::new(match (op, file) {
        (None, _) => reply::full(Bytes::new()),
        (Some(op), None) => stream(granted, body, op, &facts),
        (Some(mut op), Some(file)) => {
            let mut meter = granted.meter(&granted.app.metrics.bytes_out);
            let released = op.event().released.insert(0);
            let total = facts.span.end - facts.span.start;
            let written = file.take(&mut body, total, &mut meter, released).await;
            op.finish(written).await?;
            reply::full(Bytes::new())
        }
    });
    if partial {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let Facts {
            span,
            plaintext_len,
            ..
        } = &facts;
        let value = format!("bytes {}-{}/{plaintext_len}", span.start, span.end - 1);
        reply::set(&mut response, std_header::CONTENT_RANGE, &value);
    }
    describe(&mut response, &facts, head);
    if delivered {
        let length = (facts.span.end - facts.span.start).to_string();
        reply::set(&mut response, header::DESCRIPTOR, &length);
        reply::set(&mut response, std_header::CONTENT_LENGTH, "0");
    }
    if let Some(writer) = vouched {
        reply::set(&mut response, header::STANDING, Standing::Writer.as_str());
        reply::set(&mut response, header::WRITER, &writer);
    }
    Ok(response)
}

/// What is known of an opened object, for the records.
fn tell(op: &mut Op, app: &App, facts: &Facts, wanted: Wanted) {
    let event = op.event();
    event.message_id = Some(facts.message_id.clone());
    event.wrapping_key = Some(facts.wrapping_key.clone());
    event.check_value = app.engine.keyring.check_value(&facts.wrapping_key);
    event.version_id.clone_from(&facts.version_id);
    event.plaintext_size = Some(facts.plaintext_len);
    event.foreign = facts.foreign;
    event.s3_request_id.clone_from(&facts.request_id);
    if matches!(wanted, Wanted::Span(..) | Wanted::Suffix(..)) {
        event.span = Some([facts.span.start, facts.span.end - 1]);
    }
}

fn describe(response: &mut Response<Body>, facts: &Facts, head: bool) {
    let length = if head {
        facts.plaintext_len
    } else {
        facts.span.end - facts.span.start
    };
    reply::set(response, std_header::CONTENT_LENGTH, &length.to_string());
    reply::set(response, std_header::ACCEPT_RANGES, "bytes");
    let content_type = facts
        .content_type
        .as_deref()
        .unwrap_or("application/octet-stream");
    reply::set(response, std_header::CONTENT_TYPE, content_type);
    reply::set(response, header::MESSAGE_ID, &facts.message_id);
    reply::set(response, header::WRAPPING_KEY, &facts.wrapping_key);
    if let Some(version) = &facts.version_id {
        reply::set(response, header::VERSION_ID, version);
    }
    reply::set(response, header::STANDING, facts.standing.as_str());
    for (name, value) in [
        (header::STORAGE_CLASS, &facts.storage_class),
        (header::RESTORE, &facts.restore),
    ] {
        if let Some(value) = value {
            reply::set(response, name, value);
        }
    }
    if facts.foreign {
        reply::set(response, header::FOREIGN_WRITE, "true");
    }
}

/// The plaintext as a response body. An error breaks the connection before
/// `Content-Length` is reached; why is kept for `GET /v1/requests/{id}`.
///
/// The operation's end is recorded when the body is dropped: nobody asks for
/// what comes after the last byte. The records come first in the state, so
/// that the request's permit outlives them.
fn stream(granted: Granted, body: PlaintextBody, mut op: Op, facts: &Facts) -> Body {
    let total = facts.span.end - facts.span.start;
    op.event().released = Some(0);
    if total == 0 {
        op.settle(Ok(()));
    }
    granted.timer.streams();
    if total == 0 {
        granted.timer.finish(Ok(()));
    }
    let meter = granted.meter(&granted.app.metrics.bytes_out);
    let state = (op, body, meter, granted);
    reply::stream(futures_util::stream::unfold(
        state,
        move |(mut op, mut body, mut meter, granted)| async move {
            let next = match body.next().await? {
                Ok(bytes) => meter.pass(bytes.len()).await.map(|()| bytes),
                error => error,
            };
            match &next {
                Ok(bytes) => {
                    let released = op.event().released.get_or_insert(0);
                    *released += bytes.len() as u64;
                    if *released == total {
                        op.settle(Ok(()));
                        granted.timer.finish(Ok(()));
                    }
                }
                Err(error) => {
                    op.settle(Err(error.kind));
                    granted.timer.finish(Err(error));
                }
            }
            if let Err(error) = &next {
                tracing::error!(
                    request_id = granted.request_id,
                    kind = error.kind.slug(),
                    detail = error.detail,
                    log = error.log,
                    "a read was broken off"
                );
                let problem = error.problem(&granted.request_id);
                granted.app.failures.record(granted.peer.uid(), problem);
            }
            Some((next.map(Frame::data), (op, body, meter, granted)))
        },
    ))
}

pub(super) async fn delete(
    granted: Granted,
    target: Target,
    query: Query,
) -> Result<Response<Body>, Error> {
    query.allow(&["version_id"])?;
    let place = target.place()?;
    let version = query.value("version_id");
    let mut op = granted.op(Kind::Delete, &place.bucket, Some(&place.key));
    op.event().version_id.clone_from(&version);
    let Granted { app, permit, .. } = granted;
    // A task of its own: a client that leaves in between must not keep the
    // catalogue from recording what S3 has done.
    let work = async move {
        let _permit = permit;
        op.begin().await?;
        let outcome = objects::delete(&app.engine, &place, version.as_deref(), op.event()).await;
        op.finish(outcome).await?;
        tracing::info!(bucket = place.bucket, key = place.key, "deleted");
        Ok::<(), Error>(())
    };
    tokio::spawn(work.instrument(tracing::Span::current()))
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "the deletion ended abnormally").log(e))??;
    let mut response = Response::new(reply::full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

pub(super) async fn list(
    granted: Granted,
    bucket: String,
    query: Query,
) -> Result<Response<Body>, Error> {
    query.allow(&["prefix", "delimiter", "continuation"])?;
    let request = ListRequest {
        bucket,
        prefix: query.value("prefix"),
        delimiter: query.value("delimiter"),
        continuation: query.value("continuation"),
    };
    let prefix = request.prefix.as_deref();
    let mut op = granted.op(Kind::List, &request.bucket, prefix);
    op.begin().await?;
    let outcome = objects::list(&granted.app.engine, &request, op.event()).await;
    reply::json(StatusCode::OK, &op.finish(outcome).await?)
}

pub(super) async fn inspect(
    granted: Granted,
    target: Target,
    query: Query,
) -> Result<Response<Body>, Error> {
    query.allow(&["inspect", "version_id"])?;
    let place = target.place()?;
    let version = query.value("version_id");
    let mut op = granted.op(Kind::Inspect, &place.bucket, Some(&place.key));
    op.event().version_id.clone_from(&version);
    op.begin().await?;
    let app = &granted.app;
    let readers = app.policy.current().readers(&place);
    let event = op.event();
    let outcome = objects::inspect(&app.engine, &place, version.as_deref(), &readers, event).await;
    reply::json(StatusCode::OK, &op.finish(outcome).await?)
}
