//! What the routes share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::api::{CheckpointStatus, Error, ErrorKind, KeyInfo, QueueStatus, Status};
use crate::audit::Audit;
use crate::config::Writer;
use crate::crypto;
use crate::engine::Engine;
use crate::store::Place;
use crate::token::Health;

use super::audit;
use super::keys::Needless;
use super::metrics::Metrics;
use super::policy::Policies;
use super::reply::Failures;

/// A client's `POST /v1/reload` on its way to the supervisor.
pub(super) type ReloadRequest = oneshot::Sender<Result<(), Error>>;

/// The running server.
pub(super) struct App {
    pub(super) engine: Arc<Engine>,
    /// What is counted.
    pub(super) metrics: Arc<Metrics>,
    pub(super) audit: Audit,
    /// Refusals that have no record yet.
    pub(super) denials: audit::Denials,
    /// Where it is.
    pub(super) audit_dir: PathBuf,
    /// Where its checkpoints are anchored in S3: no client's objects.
    pub(super) anchors: Vec<Place>,
    /// The key that signs, if one is configured: token and label.
    pub(super) audit_key: Option<(String, String)>,
    /// What its checkpoints have come to.
    pub(super) checkpoints: Mutex<CheckpointStatus>,
    /// Who may do what.
    pub(super) policy: Policies,
    /// Other hosts that wrap under keys of ours.
    pub(super) writers: RwLock<Vec<Writer>>,
    /// Keys that were found to be needless a moment ago.
    pub(super) needless: Needless,
    /// One permit a request in progress.
    pub(super) permits: Arc<Semaphore>,
    pub(super) max_requests: usize,
    /// Requests that asked for one.
    pub(super) begun: AtomicU64,
    pub(super) failures: Failures,
    pub(super) confinement: String,
    /// Whether that is all of it.
    pub(super) confined: bool,
    pub(super) supervisor_pid: u32,
    pub(super) memory_budget: u64,
    pub(super) started: Instant,
    pub(super) stopping: AtomicBool,
    pub(super) reloads: mpsc::Sender<ReloadRequest>,
}

impl App {
    /// Whether SIGTERM was received.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The number of requests so far, if none is in progress.
    pub(super) fn at_rest(&self) -> Option<u64> {
        let all = self.permits.available_permits() >= self.max_requests;
        all.then(|| self.begun.load(Ordering::Relaxed))
    }

    /// One word for all of it: the worst of what an upload needs.
    pub(super) fn health(&self) -> &'static str {
        if self.is_stopping() {
            return "stopping";
        }
        if self.audit.check().is_err() {
            return "audit-failed";
        }
        let tokens = self.engine.keyring.healths();
        if self.engine.keyring.exhaustion().is_some() {
            // Somebody has to act, as with a wrong setting.
            return "misconfigured";
        }
        let ready = self.engine.keyring.is_open();
        if ready && !self.engine.keyring.is_proven() {
            return "suspect";
        }
        if ready && tokens.iter().all(|health| *health == Health::Ready) {
            return "ready";
        }
        if ready {
            return "degraded";
        }
        for word in ["locked", "misconfigured", "recovering", "down", "starting"] {
            if tokens.iter().any(|health| health.as_str() == word) {
                return word;
            }
        }
        // Every token is well, and no active key is usable; one may be on its
        // way through the gate.
        let keys = self.engine.keyring.keys();
        let pending = |key: &KeyInfo| key.usage == "active" && !key.ready && key.problem.is_none();
        match keys.iter().any(pending) {
            true => "recovering",
            false => "misconfigured",
        }
    }

    /// Whether a new upload would be taken.
    pub(super) fn check_ready(&self) -> Result<(), Error> {
        // Nothing is stored that cannot be recorded.
        self.audit.check()?;
        let kind = match self.health() {
            "ready" | "degraded" => return Ok(()),
            "stopping" => ErrorKind::ShuttingDown,
            "locked" => ErrorKind::TokenLocked,
            "misconfigured" => ErrorKind::Misconfigured,
            _ => ErrorKind::TokenAway,
        };
        if let Some(error) = self.engine.keyring.exhaustion()
            && kind == ErrorKind::Misconfigured
        {
            return Err(error);
        }
        if let Some(trouble) = self.engine.keyring.recipient_trouble() {
            return Err(trouble);
        }
        let tokens = self.engine.keyring.token_status();
        let problem = tokens.iter().find(|t| t.health != "ready").map(|t| {
            (
                format!(
                    "token {:?} is {}: {}",
                    t.name,
                    t.health,
                    t.detail.as_deref().unwrap_or("no detail")
                ),
                t.hint.clone(),
            )
        });
        let key_problem = || {
            let keys = self.engine.keyring.keys();
            let key = keys.iter().find(|k| k.usage == "active");
            let detail = match key {
                None => "no wrapping key is active".to_owned(),
                Some(key) if key.ready => {
                    "no wrap and unwrap has succeeded in the last 30 s".to_owned()
                }
                Some(key) => format!(
                    "wrapping key {:?} is not ready: {}",
                    key.name,
                    key.problem.as_deref().unwrap_or("its gate has not passed")
                ),
            };
            (detail, None)
        };
        let (detail, hint) = problem.unwrap_or_else(key_problem);
        let error = Error::new(kind, detail);
        Err(match hint {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }

    pub(super) fn status(&self) -> Status {
        Status {
            health: self.health().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            supervisor_pid: self.supervisor_pid,
            server_pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            requests: self
                .max_requests
                .saturating_sub(self.permits.available_permits()),
            memory_in_use: self.engine.pool.in_use(),
            memory_budget: self.memory_budget,
            endpoint: self.engine.store.endpoint(),
            confinement: self.confinement.clone(),
            cryptography: crypto::NAME.to_owned(),
            audit: {
                let checkpoints = self.checkpoints.lock().unwrap_or_else(|e| e.into_inner());
                audit::status(&self.audit, checkpoints.clone())
            },
            grants: self.policy.current().len(),
            queue: QueueStatus::default(),
            tokens: self.engine.keyring.token_status(),
            keys: self.engine.keyring.keys(),
        }
    }
}
