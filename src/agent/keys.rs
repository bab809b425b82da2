//! The routes of single wrapping keys: what depends on one, whether it may be
//! retired; and reminders of those whose time has come.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use http::{Response, StatusCode};

use crate::api::{Error, ErrorKind, KeyDetail, KeyInfo, RetireLine, RetireReport, RetireRequest};
use crate::audit::{Event, Kind};
use crate::catalog::CatalogError;
use crate::retire::{self, Around};

use super::lines;
use super::peer::Peer;
use super::reply::{self, Body};
use super::routes::permit;
use super::state::App;

/// How long a key that was found to be needless may take to be disabled: what
/// began since then nobody has looked at.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How often a reminder is repeated.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) async fn show(app: &App, name: &str) -> Result<Response<Body>, Error> {
    let engine = &app.engine;
    let mut keys = engine.keyring.keys().into_iter();
    let Some(info) = keys.find(|key| key.name == name) else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no wrapping key is configured as {name:?}"),
        )
        .hint("`strongroom key list` shows the configured keys"));
    };
    let custody = engine.catalog.custody_of(name).await.map_err(unread)?;
    let waits = engine.catalog.dependents().await.map_err(unread)?;
    let detail = KeyDetail {
        info,
        objects: custody.objects,
        stored_bytes: custody.stored_bytes,
        dependents: waits.iter().filter(|w| w.wrapping_key == name).count() as u64,
        uploads: engine.uses.of(name),
    };
    reply::json(StatusCode::OK, &detail)
}

pub(super) async fn retire(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
    request: RetireRequest,
) -> Result<Response<Body>, Error> {
    app.audit.check()?;
    if request.done {
        return retired(app, peer, &request.key).await;
    }
    let known = app.engine.keyring.keys();
    if !known.iter().any(|key| key.name == request.key) {
        // Of another status than a line could have.
        return show(app, &request.key).await;
    }
    let permit = permit(app)?;
    let around = Around {
        buckets: app.policy.current().buckets(),
        writers: app
            .writers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone(),
    };
    let (app, actor, id) = (Arc::clone(app), peer.actor(), request_id.to_owned());
    Ok(lines::answer(move |out| async move {
        let _permit = permit;
        let found = retire::check(&app.engine, &request, &around, &out).await;
        let last = match found {
            Err(error) => RetireLine::Problem(error.problem(&id)),
            Ok(report) => {
                let mut event = Event::new(Kind::Key);
                event.peer = Some(actor);
                event.wrapping_key = Some(report.key.clone());
                event.state = Some(
                    match report.may_retire {
                        true => "needless",
                        false => "retirement-refused",
                    }
                    .to_owned(),
                );
                event.detail = Some(words(&report));
                match app.audit.write(event).await {
                    Err(error) => RetireLine::Problem(error.problem(&id)),
                    Ok(_) => {
                        app.remember_needless(&report);
                        RetireLine::Report(report)
                    }
                }
            }
        };
        let _ = out.send(last).await;
    }))
}

/// Puts a retirement on record: of a key that was found to be needless a
/// moment ago, and that is disabled now.
async fn retired(app: &Arc<App>, peer: &Peer, name: &str) -> Result<Response<Body>, Error> {
    let mut keys = app.engine.keyring.keys().into_iter();
    let disabled = keys.any(|key| key.name == name && key.usage == "disabled");
    if !disabled || !app.was_needless(name) {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("key {name:?} is not disabled, or was not found to be needless just now"),
        )
        .hint("`strongroom key retire` does both"));
    }
    let mut event = Event::new(Kind::Key);
    event.peer = Some(peer.actor());
    event.wrapping_key = Some(name.to_owned());
    event.state = Some("retired".to_owned());
    event.detail = Some("disabled; the token still holds it".to_owned());
    app.audit.write(event).await?;
    let report = RetireReport {
        key: name.to_owned(),
        may_retire: true,
        ..RetireReport::default()
    };
    Ok(lines::answer(move |out| async move {
        let _ = out.send(RetireLine::Report(report)).await;
    }))
}

fn words(report: &RetireReport) -> String {
    let opened: u64 = report.opened_by.values().sum();
    let scope = format!(
        "{} versions in {} buckets, {} entries of the catalogue, {} other writers; another key was seen to open {opened}, {} need it not",
        report.versions,
        report.buckets.len(),
        report.catalogue,
        report.writers.len(),
        report.independent,
    );
    match report.reasons.first() {
        None => scope,
        Some(first) => format!(
            "{} reasons, the first: {} {}: {}; {scope}",
            report.total_reasons, first.kind, first.subject, first.why
        ),
    }
}

fn unread(error: CatalogError) -> Error {
    Error::new(ErrorKind::StateFailed, "the catalogue cannot be read").log(error)
}

/// The keys found to be needless, and when.
#[derive(Default)]
pub(super) struct Needless(std::sync::Mutex<HashMap<String, Instant>>);

impl App {
    fn remember_needless(&self, report: &RetireReport) {
        let mut known = self
            .needless
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.remove(&report.key);
        if report.may_retire {
            known.insert(report.key.clone(), Instant::now());
        }
    }

    fn was_needless(&self, name: &str) -> bool {
        let mut known = self
            .needless
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known
            .remove(name)
            .is_some_and(|at| at.elapsed() < REMEMBERED)
    }
}

/// What the log was last told of each key's warnings.
#[derive(Default)]
pub(super) struct Reminders(HashMap<(String, String), Instant>);

impl Reminders {
    /// Logs each warning once a day.
    pub(super) fn look(&mut self, keys: &[KeyInfo]) {
        for key in keys {
            for warning in &key.warnings {
                // Its numbers change from day to day.
                let kind = warning.split(|c: char| c.is_ascii_digit()).next();
                let id = (key.name.clone(), kind.unwrap_or_default().to_owned());
                if self.0.get(&id).is_none_or(|at| at.elapsed() >= DAY) {
                    tracing::warn!(key = key.name, "{warning}");
                    self.0.insert(id, Instant::now());
                }
            }
        }
    }
}
