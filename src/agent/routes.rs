//! One request, from the wire to a response that always exists.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::Instrument as _;

use crate::api::{Error, ErrorKind, GenerateKey, KeyInfo};
use crate::config::WrapLimit;

use super::audit::{self, Asked};
use super::objects::{self, Granted};
use super::peer::Peer;
use super::reply::{self, Body};
use super::request::{Query, Target, malformed};
use super::state::App;

/// Longest JSON body we read, in bytes.
const MAX_JSON: usize = 64 << 10;
/// How long it may take to arrive.
const JSON_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Answers one request. Errors have become problems when this returns.
pub(super) async fn answer(
    app: Arc<App>,
    peer: Peer,
    request: Request<Incoming>,
) -> Response<Body> {
    let request_id = reply::request_id();
    let span = tracing::info_span!(
        "request",
        id = request_id,
        method = %request.method(),
        path = request.uri().path(),
        uid = peer.uid,
        pid = peer.pid,
    );
    let asked = Asked::of(&request);
    let response = async {
        match route(&app, peer, request, &request_id).await {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(
                    kind = error.kind.slug(),
                    status = error.kind.status(),
                    detail = error.detail,
                    log = error.log,
                    gid = peer.gid,
                    "request failed"
                );
                if error.kind == ErrorKind::Forbidden {
                    audit::denied(&app.audit, peer.actor(), &request_id, asked, &error).await;
                }
                // A HEAD's answer has no body: its client asks for the reason.
                // Others' refusals would only push out what somebody waits for.
                if peer.authorise("be told").is_ok() {
                    app.failures.record(error.problem(&request_id));
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
    peer: Peer,
    request: Request<Incoming>,
    request_id: &str,
) -> Result<Response<Body>, Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = Query::parse(parts.uri.query())?;
    if let Some(target) = Target::parse(&path) {
        let operation = operation(&parts.method, &query);
        peer.authorise(operation)?;
        let permit = permit(app)?;
        let target = target?;
        let granted = Granted {
            app: app.clone(),
            permit,
            request_id: request_id.to_owned(),
            peer,
        };
        return match (operation, target.key.is_some()) {
            ("put", _) => objects::put(granted, target, query, &parts.headers, body).await,
            ("get", true) => objects::get(granted, target, query, &parts.headers, false).await,
            ("head", true) => objects::get(granted, target, query, &parts.headers, true).await,
            ("inspect", true) => objects::inspect(granted, target, query).await,
            ("delete", _) => objects::delete(granted, target, query).await,
            ("get", false) => objects::list(granted, target.bucket, query).await,
            _ => Err(not_allowed(&parts.method, &path)),
        };
    }
    if let Some(id) = path.strip_prefix("/v1/requests/") {
        peer.authorise("get")?;
        return match app.failures.find(id) {
            Some(problem) => reply::json(StatusCode::OK, &problem),
            None => Err(Error::new(
                ErrorKind::NotFound,
                "no such request failed lately",
            )),
        };
    }
    match (&parts.method, path.as_str()) {
        (&Method::GET | &Method::HEAD, "/v1/health") => {
            Ok(Response::new(reply::full(Bytes::from_static(b"alive\n"))))
        }
        (&Method::GET | &Method::HEAD, "/v1/ready") => {
            app.check_ready()
                .map_err(|error| match peer.authorise("read the status") {
                    Ok(()) => error,
                    // Anybody who may connect hears whether, not why.
                    Err(_) => Error::new(error.kind, "not ready"),
                })?;
            Ok(Response::new(reply::full(Bytes::from_static(b"ready\n"))))
        }
        (&Method::GET, "/v1/status") => {
            peer.authorise("read the status")?;
            reply::json(StatusCode::OK, &app.status())
        }
        (&Method::GET, "/v1/keys") => {
            peer.authorise("list keys")?;
            reply::json(StatusCode::OK, &app.engine.keyring.keys())
        }
        (&Method::POST, "/v1/keys") => {
            peer.authorise("administer")?;
            generate_key(app, peer, body).await
        }
        (&Method::POST, "/v1/reload") => {
            peer.authorise("administer")?;
            reload(app).await
        }
        (_, "/v1/health" | "/v1/ready" | "/v1/status" | "/v1/keys" | "/v1/reload") => {
            Err(not_allowed(&parts.method, &path))
        }
        (
            _,
            "/v1/rewrap" | "/v1/metrics" | "/v1/catalog" | "/v1/verify" | "/v1/uploads"
            | "/v1/grants/test",
        ) => Err(Error::new(
            ErrorKind::NotImplemented,
            format!("{path} is not in this release"),
        )),
        _ => Err(Error::new(ErrorKind::NotFound, format!("no route {path}"))),
    }
}

/// The operation a grant would have to name.
fn operation(method: &Method, query: &Query) -> &'static str {
    match *method {
        Method::GET if query.has("inspect") => "inspect",
        Method::GET => "get",
        Method::HEAD => "head",
        Method::PUT => "put",
        Method::DELETE => "delete",
        _ => "do that",
    }
}

fn not_allowed(method: &Method, path: &str) -> Error {
    Error::new(ErrorKind::MethodNotAllowed, format!("{method} {path}"))
}

fn permit(app: &App) -> Result<OwnedSemaphorePermit, Error> {
    if app.is_stopping() {
        return Err(Error::new(
            ErrorKind::ShuttingDown,
            "no new requests are taken",
        ));
    }
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

async fn generate_key(app: &App, peer: Peer, body: Incoming) -> Result<Response<Body>, Error> {
    let body = http_body_util::Limited::new(body, MAX_JSON).collect();
    let bytes = tokio::time::timeout(JSON_PATIENCE, body)
        .await
        .map_err(|_| Error::new(ErrorKind::TooSlow, "the body did not arrive in time"))?
        .map_err(|e| malformed("the body cannot be read, or is too long").log(e))?
        .to_bytes();
    let wanted: GenerateKey = serde_json::from_slice(&bytes)
        .map_err(|e| malformed(format!("the body is not the JSON of a new key: {e}")))?;
    let token = app.engine.keyring.token(&wanted.token).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("no token {:?} is configured", wanted.token),
        )
    })?;
    app.audit.check()?;
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
