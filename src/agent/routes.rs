//! One request, from the wire to a response that always exists.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::Instrument as _;

use crate::admin;
use crate::api::{Error, ErrorKind, GenerateKey, KeyInfo, Operation, header};
use crate::config::WrapLimit;

use super::archive;
use super::audit::{self, Asked};
use super::catalog;
use super::conversation::RequestBody;
use super::descriptor::{Descriptor, Passed};
use super::evidence;
use super::grants;
use super::import;
use super::keys;
use super::metrics::{self, Timer};
use super::objects::{self, Granted};
use super::peer::Peer;
use super::policy::{Ask, Denied};
use super::queue::{self, QUEUE};
use super::rebuild;
use super::reply::{self, Body};
use super::request::{self, Query, Target, malformed};
use super::rewrap;
use super::state::App;
use super::uploads::{self, UPLOADS};
use super::verify;

/// Longest JSON body we read, in bytes.
const MAX_JSON: usize = 64 << 10;
/// How long it may take to arrive.
const JSON_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Answers one request. Errors have become problems when this returns.
pub(super) async fn answer(
    app: Arc<App>,
    peer: Arc<Peer>,
    request: Request<RequestBody>,
    passed: Passed,
) -> Response<Body> {
    let request_id = reply::request_id();
    let span = tracing::info_span!(
        "request",
        id = request_id,
        method = %request.method(),
        path = request.uri().path(),
        uid = peer.uid(),
        pid = peer.pid,
        comm = peer.comm(),
    );
    let asked = Asked::of(&request);
    let timer = Timer::start(&app.metrics, label(request.uri().path(), &asked));
    let response = async {
        match route(&app, &peer, request, passed, &request_id, &timer).await {
            Ok(response) => {
                timer.answered(Ok(()));
                response
            }
            Err(error) => {
                timer.answered(Err(&error));
                tracing::warn!(
                    kind = error.kind.slug(),
                    status = error.kind.status(),
                    detail = error.detail,
                    log = error.log,
                    gid = peer.subject.gid,
                    "request failed"
                );
                if error.kind == ErrorKind::Forbidden {
                    audit::denied(&app, peer.actor(), &request_id, asked, &error).await;
                }
                // A HEAD's answer has no body: its client asks for the reason.
                // Others' refusals would only push out what somebody waits for.
                if app.policy.current().knows(&peer.subject) {
                    app.failures.record(peer.uid(), error.problem(&request_id));
                }
                reply::problem(&error, &request_id)
            }
        }
    }
    .instrument(span)
    .await;
    reply::mark(response, &request_id)
}

async fn route(
    app: &Arc<App>,
    peer: &Arc<Peer>,
    request: Request<RequestBody>,
    passed: Passed,
    request_id: &str,
    timer: &Arc<Timer>,
) -> Result<Response<Body>, Error> {
    let (parts, body) = request.into_parts();
    let descriptor = Descriptor::of(passed, &parts.headers)?;
    let path = parts.uri.path().to_owned();
    let query = Query::parse(parts.uri.query())?;
    // Of now, not of when the connection was made (SECURITY rule 25).
    let policy = app.policy.current();
    let subject = &peer.subject;
    let refused = |denied: Denied| {
        app.metrics.denied(denied.operation);
        Error::from(denied)
    };
    if let Some(target) = Target::parse(&path) {
        let operation = operation(&parts.method, &query, &target)
            .ok_or_else(|| not_allowed(&parts.method, &path))?;
        let target = match target {
            Ok(target) => target,
            Err(error) => {
                policy.somewhere(subject, operation).map_err(refused)?;
                return Err(error);
            }
        };
        // Before anything is looked up for it.
        let ask = request::ask(operation, &target, &query, &parts.headers)?;
        let rights = policy.decide(subject, &ask).map_err(refused)?;
        let granted = Granted {
            app: app.clone(),
            permit: permit(app)?,
            request_id: request_id.to_owned(),
            peer: peer.clone(),
            rights,
            timer: Arc::clone(timer),
        };
        let plain = granted.rights.operation == Operation::Put
            && !request::flag(&parts.headers, header::QUEUE)?;
        if plain {
            return objects::put(granted, target, query, &parts.headers, body, descriptor).await;
        }
        if granted.rights.operation == Operation::Get && parts.method == Method::GET {
            return objects::get(granted, target, query, &parts.headers, descriptor).await;
        }
        Descriptor::none(descriptor)?;
        return match granted.rights.operation {
            Operation::Put => {
                query.allow(&[])?;
                queue::put(granted, target, &parts.headers, body).await
            }
            Operation::Get => archive::ask_for(granted, target, query).await,
            Operation::Head => objects::head(granted, target, query, &parts.headers).await,
            Operation::Inspect => objects::inspect(granted, target, query).await,
            Operation::Delete => objects::delete(granted, target, query).await,
            Operation::List if query.has("versions") => {
                archive::versions(granted, target.bucket, query).await
            }
            Operation::List => objects::list(granted, target.bucket, query).await,
            _ => Err(not_allowed(&parts.method, &path)),
        };
    }
    Descriptor::none(descriptor)?;
    if path == "/v1/queue" || path.starts_with(QUEUE) {
        let rest = path.strip_prefix(QUEUE).unwrap_or_default();
        return queue::answer(app, peer, request_id, &parts.method, rest, &query).await;
    }
    if let Some(rest) = path.strip_prefix(UPLOADS) {
        let asked = uploads::Asked {
            app,
            peer,
            request_id,
            timer,
            method: &parts.method,
            rest,
            query,
            headers: &parts.headers,
        };
        return asked.answer(body).await;
    }
    let admin = || policy.decide(subject, &Ask::admin());
    if let Some(id) = path.strip_prefix("/v1/requests/") {
        if !policy.knows(subject) {
            admin().map_err(refused)?;
        }
        // Others' failures name others' objects.
        let of = admin().is_err().then(|| peer.uid());
        return match app.failures.find(id, of) {
            Some(problem) => reply::json(StatusCode::OK, &problem),
            None => Err(Error::new(
                ErrorKind::NotFound,
                "no such request failed lately",
            )),
        };
    }
    if let Some(name) = path.strip_prefix("/v1/keys/")
        && parts.method == Method::GET
    {
        admin().map_err(refused)?;
        return keys::show(app, name).await;
    }
    match (&parts.method, path.as_str()) {
        (&Method::GET | &Method::HEAD, "/v1/health") => {
            Ok(Response::new(reply::full(Bytes::from_static(b"alive\n"))))
        }
        (&Method::GET | &Method::HEAD, "/v1/ready") => {
            app.check_ready()
                .map_err(|error| match policy.knows(subject) {
                    true => error,
                    // Anybody who may connect hears whether, not why.
                    false => Error::new(error.kind, "not ready"),
                })?;
            Ok(Response::new(reply::full(Bytes::from_static(b"ready\n"))))
        }
        (&Method::GET, "/v1/metrics") => {
            admin().map_err(refused)?;
            metrics::answer(app, &parts.headers)
        }
        (&Method::GET, "/v1/status") => {
            admin().map_err(refused)?;
            let mut status = app.status();
            status.queue = queue::status(app).await?;
            reply::json(StatusCode::OK, &status)
        }
        (&Method::GET, "/v1/keys") => {
            admin().map_err(refused)?;
            reply::json(StatusCode::OK, &app.engine.keyring.keys())
        }
        (&Method::POST, "/v1/keys") => {
            admin().map_err(refused)?;
            generate_key(app, peer, body).await
        }
        (&Method::POST, "/v1/keys/retire") => {
            admin().map_err(refused)?;
            let wanted = read_json(body, "a key's retirement").await?;
            keys::retire(app, peer, request_id, wanted).await
        }
        (&Method::POST, "/v1/verify") => {
            if admin().is_err() {
                policy
                    .somewhere(subject, Operation::List)
                    .map_err(refused)?;
            }
            let wanted = read_json(body, "what to verify").await?;
            let rights = verify::rights(&policy, peer, &wanted).map_err(refused)?;
            verify::answer(app, peer, request_id, rights, wanted).await
        }
        (&Method::GET, "/v1/catalog") => {
            admin().map_err(refused)?;
            catalog::answer(app, peer, request_id).await
        }
        (&Method::POST, "/v1/catalog/rebuild") => {
            admin().map_err(refused)?;
            let wanted = read_json(body, "what to rebuild from").await?;
            rebuild::answer(app, peer, request_id, wanted).await
        }
        (&Method::POST, "/v1/catalog/backup") => {
            admin().map_err(refused)?;
            rebuild::backup(app, peer, request_id, &query, &parts.headers).await
        }
        (&Method::POST, "/v1/catalog/accept") => {
            admin().map_err(refused)?;
            catalog::accept(app, peer, request_id).await
        }
        (&Method::POST, "/v1/keys/import") => {
            admin().map_err(refused)?;
            let wanted = read_json(body, "a step of a key's import").await?;
            import::answer(app, peer, wanted).await
        }
        (&Method::POST, "/v1/reload") => {
            admin().map_err(refused)?;
            reload(app).await
        }
        (&Method::GET, "/v1/evidence") => {
            admin().map_err(refused)?;
            evidence::answer(app, &policy, &query).await
        }
        (&Method::GET, "/v1/grants") => {
            admin().map_err(refused)?;
            reply::json(StatusCode::OK, &policy.list())
        }
        (&Method::GET, "/v1/grants/test") => {
            admin().map_err(refused)?;
            grants::test(&policy, &query)
        }
        (&Method::POST, "/v1/rewrap") => {
            let options = match rewrap::options(&query) {
                Ok(options) => options,
                Err(error) => {
                    policy
                        .somewhere(subject, Operation::Rewrap)
                        .map_err(refused)?;
                    return Err(error);
                }
            };
            let ask = Ask::at(Operation::Rewrap, &options.bucket, &options.prefix);
            let granted = Granted {
                rights: policy.decide(subject, &ask).map_err(refused)?,
                app: app.clone(),
                permit: permit(app)?,
                request_id: request_id.to_owned(),
                peer: peer.clone(),
                timer: Arc::clone(timer),
            };
            rewrap::answer(granted, options, &parts.headers, body).await
        }
        (
            _,
            "/v1/health"
            | "/v1/ready"
            | "/v1/status"
            | "/v1/keys"
            | "/v1/keys/import"
            | "/v1/keys/retire"
            | "/v1/reload"
            | "/v1/evidence"
            | "/v1/grants"
            | "/v1/grants/test"
            | "/v1/metrics"
            | "/v1/verify"
            | "/v1/catalog"
            | "/v1/catalog/accept"
            | "/v1/catalog/backup"
            | "/v1/catalog/rebuild"
            | "/v1/rewrap",
        ) => Err(not_allowed(&parts.method, &path)),
        (&Method::GET, "/v1/uploads") => uploads::list(app, peer).await,
        (_, "/v1/uploads") => Err(not_allowed(&parts.method, &path)),
        _ => Err(Error::new(ErrorKind::NotFound, format!("no route {path}"))),
    }
}

/// The operation that a grant has to name; none of an object's if the method
/// does not exist here.
pub(super) fn operation(
    method: &Method,
    query: &Query,
    target: &Result<Target, Error>,
) -> Option<Operation> {
    let whole_bucket = target.as_ref().is_ok_and(|target| target.key.is_none());
    Some(match *method {
        Method::GET if query.has("inspect") => Operation::Inspect,
        Method::GET if whole_bucket => Operation::List,
        Method::GET => Operation::Get,
        // What is asked for is to be read.
        Method::POST if query.has("restore") && !whole_bucket => Operation::Get,
        Method::HEAD => Operation::Head,
        Method::PUT => Operation::Put,
        Method::DELETE => Operation::Delete,
        _ => return None,
    })
}

/// What a request is counted as: a grant's word, or `health` for what is asked
/// every few seconds.
fn label(path: &str, asked: &Asked) -> &'static str {
    match path {
        "/v1/health" | "/v1/ready" => "health",
        "/v1/metrics" => "metrics",
        "/v1/rewrap" => Operation::Rewrap.as_str(),
        _ => asked.operation().as_str(),
    }
}

fn not_allowed(method: &Method, path: &str) -> Error {
    Error::new(ErrorKind::MethodNotAllowed, format!("{method} {path}"))
}

pub(super) fn permit(app: &App) -> Result<OwnedSemaphorePermit, Error> {
    if app.is_stopping() {
        return Err(Error::new(
            ErrorKind::ShuttingDown,
            "no new requests are taken",
        ));
    }
    app.begun.fetch_add(1, Ordering::Relaxed);
    app.permits.clone().try_acquire_owned().map_err(|_| {
        Error::new(
            ErrorKind::Busy,
            format!(
                "{} requests are in progress, which is max_requests",
                app.max_requests
            ),
        )
    })
}

/// A request's body, which is the JSON of `what`.
async fn read_json<T: DeserializeOwned>(body: RequestBody, what: &str) -> Result<T, Error> {
    let body = http_body_util::Limited::new(body, MAX_JSON).collect();
    let bytes = tokio::time::timeout(JSON_PATIENCE, body)
        .await
        .map_err(|_| Error::new(ErrorKind::TooSlow, "the body did not arrive in time"))?
        .map_err(|e| malformed("the body cannot be read, or is too long").log(e))?
        .to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|e| malformed(format!("the body is not the JSON of {what}: {e}")))
}

async fn generate_key(app: &App, peer: &Peer, body: RequestBody) -> Result<Response<Body>, Error> {
    let wanted: GenerateKey = read_json(body, "a new key").await?;
    let token = app.engine.keyring.token(&wanted.token).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("no token {:?} is configured", wanted.token),
        )
    })?;
    app.audit.check()?;
    if wanted.audit {
        let signer = token.generate_signer(&wanted.label).await?;
        audit::generated(app, peer.actor(), &wanted, None).await?;
        let info = admin::audit_key_info(&wanted.token, &wanted.label, signer)?;
        return reply::json(StatusCode::CREATED, &info);
    }
    let key = token
        .generate_key(&wanted.label)
        .await
        .map_err(Error::from)?;
    let check_value = key.check_value.map(|v| data_encoding::HEXLOWER.encode(&v));
    audit::generated(app, peer.actor(), &wanted, check_value.clone()).await?;
    let info = KeyInfo {
        name: wanted.label.clone(),
        tokens: vec![wanted.token.clone()],
        token: wanted.token,
        label: wanted.label,
        attributes: key.attributes,
        check_value,
        ready: true,
        wrap_limit: WrapLimit::default().wraps(),
        wraps_complete: true,
        ..KeyInfo::default()
    };
    reply::json(StatusCode::CREATED, &info)
}

async fn reload(app: &App) -> Result<Response<Body>, Error> {
    let gone = || Error::new(ErrorKind::ShuttingDown, "the supervisor does not answer");
    let (answer, done) = oneshot::channel();
    app.reloads.send(answer).await.map_err(|_| gone())?;
    done.await.map_err(|_| gone())??;
    reply::json(StatusCode::OK, &serde_json::json!({ "reloaded": true }))
}
