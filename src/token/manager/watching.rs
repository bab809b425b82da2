//! Whether a token with a worker works: probes, calls that nobody waits for any
//! longer, and the health that follows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::token::error::TokenError;
use crate::token::health::{Facts, Health, Verdict};
use crate::token::state::State;

use super::{Command, Manager, TICK};

/// How often an idle token is probed. A proof lasts 30 s, so one probe may
/// fail.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// The same for a token that is suspect.
const SUSPECT_PROBE: Duration = Duration::from_secs(1);

impl Manager {
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        let Some(link) = self.link.clone() else {
            let State {
                health,
                detail,
                hint,
                ..
            } = self.state.borrow().clone();
            self.publish(Verdict {
                health,
                detail,
                hint,
            });
            return;
        };
        if !self.greeted() {
            return;
        }
        // Its caller may have left, and then nobody else notices.
        if link.oldest() >= Some(2 * self.inner.call_timeout + TICK) {
            self.inner.report_stuck(&link);
            return;
        }
        // A task still at work means that keys are being opened.
        let busy = self.task.as_ref().is_some_and(|task| !task.is_finished());
        if !busy && self.retry.due(now) {
            self.open_keys();
        }
        let health = self.state.borrow().health;
        let every = match health {
            Health::Suspect => SUSPECT_PROBE,
            _ => PROBE_EVERY,
        };
        let quiet = self.inner.idle_for() >= every || health == Health::Suspect;
        if health.serves() && quiet && now.duration_since(self.last_probe) >= every {
            self.probe();
        }
        self.assess();
    }

    pub(super) fn probe(&mut self) {
        if self.probing {
            return;
        }
        self.probing = true;
        self.last_probe = Instant::now();
        let (inner, generation) = (Arc::clone(&self.inner), self.generation);
        tokio::spawn(async move {
            let outcome = inner.probe().await;
            inner.doubted.store(false, Ordering::Relaxed);
            inner.tell(Command::Probed(generation, outcome));
        });
    }

    pub(super) fn probed(&mut self, outcome: Result<(), TokenError>) {
        self.probing = false;
        self.probe_failure = outcome.err().map(|error| error.to_string());
        if let Some(why) = &self.probe_failure {
            // Without verify_wraps, this is what an operator has to go by.
            let seconds = self.inner.last_proof().map(|at| at.elapsed().as_secs());
            tracing::error!(
                token = self.inner.name,
                last_proof_seconds_ago = seconds,
                "the probe failed, objects written since the last proof should be read again: {why}"
            );
        }
        self.assess();
    }

    /// Tells the health of a token with a worker, if it has changed.
    pub(super) fn assess(&mut self) {
        if !self.greeted() {
            return;
        }
        let State { keys, info, .. } = self.state.borrow().clone();
        let sessions = info.map_or((0, 0), |info| (info.sessions, info.sessions_wanted));
        let proof = self.inner.last_proof().map(|at| at.elapsed());
        let facts = Facts {
            keys: &keys,
            sessions,
            proof,
            probe: self.probe_failure.as_deref(),
        };
        let verdict = facts.assess();
        // Keys that are still on their way through the gate change nothing
        // about what was said before.
        let pending = keys
            .iter()
            .all(|key| key.opened.is_none() && key.problem.is_none());
        if keys.is_empty() || !pending {
            self.away_since = match verdict.health.serves() {
                true => None,
                false => self.away_since.or_else(|| Some(Instant::now())),
            };
            self.publish(verdict);
        }
    }
}
