//! What the agent puts on record besides operations, and what it does for the
//! log: `watch` sees tokens and keys change, `checkpoints` signs and anchors,
//! `lineage` holds
//! the catalogue against them, `denials` keeps refusals from filling it, `resolve` finds out what became of operations that a crash cut short.

mod anchor;
mod checkpoints;
mod denials;
mod lineage;
mod resolve;
mod watch;

pub(super) use checkpoints::{Checkpoints, TokenSigner};
pub(super) use denials::Denials;
pub(super) use lineage::{accept, doubt};
pub(super) use resolve::resolve;
pub(super) use watch::Watch;

use http::{Method, Request};

use crate::api::{AuditStatus, CheckpointStatus, Error, GenerateKey, Operation};
use crate::audit::{Actor, Audit, Event, Hash, Kind};
use crate::config::Config;

use super::request::{Query, Target};
use super::state::App;
use super::uploads::UPLOADS;

/// What a request asked for, as far as its first line tells.
pub(super) struct Asked {
    operation: Operation,
    bucket: Option<String>,
    key: Option<String>,
}

impl Asked {
    /// The operation that a grant has to name.
    pub(super) fn operation(&self) -> Operation {
        self.operation
    }

    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let path = request.uri().path();
        let target = match path.strip_prefix(UPLOADS).filter(|rest| rest.contains('/')) {
            Some(place) => Target::parse(&format!("/v1/objects/{place}")),
            None => Target::parse(path),
        };
        let target = target.and_then(Result::ok);
        let inspects = Query::parse(request.uri().query()).is_ok_and(|q| q.has("inspect"));
        let object = target.as_ref().is_some_and(|t| t.key.is_some());
        let operation = match *request.method() {
            Method::POST if request.uri().path() == "/v1/rewrap" => Operation::Rewrap,
            _ if request.uri().path().starts_with(UPLOADS) => Operation::Put,
            _ if target.is_none() => Operation::Admin,
            Method::PUT => Operation::Put,
            Method::HEAD => Operation::Head,
            Method::DELETE => Operation::Delete,
            _ if inspects => Operation::Inspect,
            _ if object => Operation::Get,
            _ => Operation::List,
        };
        let (bucket, key) = match (operation, Query::parse(request.uri().query())) {
            (Operation::Rewrap, Ok(query)) => (query.value("bucket"), query.value("prefix")),
            _ => target.map_or((None, None), |t| (Some(t.bucket), t.key)),
        };
        Self {
            operation,
            bucket,
            key,
        }
    }
}

/// Records a refusal, or counts it; durable on return, unless the log cannot
/// be written: then it is owed. The refusal stands either way.
pub(super) async fn denied(app: &App, actor: Actor, request_id: &str, asked: Asked, error: &Error) {
    let mut event = Event::new(Kind::Denied).detail(&error.detail);
    event.op = Some(request_id.to_owned());
    let uid = actor.uid;
    event.peer = Some(actor);
    event.operation = Some(asked.operation);
    event.bucket = asked.bucket;
    event.key = asked.key;
    event.set_result(Err(error.kind));
    if let Some(event) = app.denials.admit(uid, event) {
        let _ = app.audit.write(event).await;
    }
}

/// Records that a wrapping key was made.
pub(super) async fn generated(
    app: &App,
    actor: Actor,
    made: &GenerateKey,
    check_value: Option<String>,
) -> Result<(), Error> {
    let mut event = Event::new(Kind::Key);
    event.peer = Some(actor);
    event.token = Some(made.token.clone());
    let name = made.name.as_ref().unwrap_or(&made.label);
    event.wrapping_key = Some(name.clone());
    event.check_value = check_value;
    event.state = Some("generated".to_owned());
    app.audit.write(event).await.map(|_| ())
}

/// Records a step of a key's import; the check value is the one that was
/// computed where the key was sealed, and proved here.
pub(super) async fn imported(
    app: &App,
    actor: Actor,
    token: &str,
    label: &str,
    state: &str,
    check_value: Option<String>,
) -> Result<(), Error> {
    let mut event = Event::new(Kind::Key);
    event.peer = Some(actor);
    event.token = Some(token.to_owned());
    event.wrapping_key = Some(label.to_owned());
    event.check_value = check_value;
    event.state = Some(state.to_owned());
    app.audit.write(event).await.map(|_| ())
}

/// The record of a configuration, or of a start under it.
pub(super) fn configured(kind: Kind, text: &str) -> Event {
    let mut event = Event::new(kind);
    event.config_sha256 = Some(Hash::plain(text.as_bytes()).to_hex());
    event
}

/// How the log is kept, by a configuration.
pub(super) fn settings(config: &Config) -> crate::audit::Settings {
    crate::audit::Settings {
        dir: config.audit_dir(),
        rotate: config.audit.rotate.bytes(),
        also: config.audit.also,
    }
}

/// What status tells of the log.
pub(super) fn status(audit: &Audit, checkpoints: CheckpointStatus) -> AuditStatus {
    let standing = audit.standing();
    let state = match &standing.trouble {
        Some(_) => "failed",
        None if standing.origin.is_empty() => "opening",
        None => "recording",
    };
    AuditStatus {
        state: state.to_owned(),
        since: standing.trouble.as_ref().map(|t| t.since.clone()),
        detail: standing.trouble.map(|t| t.why),
        origin: standing.origin,
        records: standing.tree.size,
        checkpoints,
    }
}
