//! Whether a token with a worker works: probes, calls that nobody waits for any
//! longer, and the health that follows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::token::error::TokenError;
use crate::token::health::{Facts, Health, Verdict};
use crate::token::state::{Slot, State};

use super::{Command, FRESH, Manager, TICK};

/// How often one of a token's keys is probed, in turn, whatever the traffic:
/// a put shows that something was encrypted, and a get that something opens,
/// but only a wrap that is opened shows that what is stored now will be read.
/// A proof lasts 30 s, so one probe may fail.
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
        if link.oldest() >= Some(2 * self.inner.call_timeout.get() + TICK) {
            self.inner.report_stuck(&link);
            return;
        }
        // A task still at work means that keys are being opened.
        let busy = self.task.as_ref().is_some_and(|task| !task.is_finished());
        if !busy && self.retry.due(now) {
            if self.lost_sight(now) {
                self.lost("no key that was there is to be found: another worker looks");
                return;
            }
            self.open_keys();
        }
        let health = self.state.borrow().health;
        let every = match health {
            Health::Suspect => SUSPECT_PROBE,
            _ => PROBE_EVERY,
        };
        if health.serves() && now.duration_since(self.last_probe) >= every {
            self.probe(None);
        }
        self.assess();
    }

    /// Whether another worker may see what this one does not. A module that
    /// was loaded while its token was away for a moment may take that for good
    /// (SoftHSM does), and calls keys missing that are there.
    fn lost_sight(&mut self, now: Instant) -> bool {
        let keys = Arc::clone(&self.state.borrow().keys);
        let missed = |key: &Slot| !key.temporary() && self.known.contains(&key.spec);
        // Nobody is disturbed by it.
        let idle = keys.iter().all(|key| key.opened.is_none());
        let (due, pause) = self.fresh;
        if !idle || now < due || !keys.iter().any(missed) {
            return false;
        }
        self.fresh = (now + pause, (pause * 2).min(FRESH.1));
        true
    }

    /// Probes a key: this one, one whose last probe failed, or the next.
    pub(super) fn probe(&mut self, name: Option<String>) {
        if self.probing {
            return;
        }
        self.probing = true;
        self.last_probe = Instant::now();
        let name = name
            .or_else(|| self.probe_failures.keys().next().cloned())
            .or_else(|| self.next_key());
        let (inner, generation) = (Arc::clone(&self.inner), self.generation);
        tokio::spawn(async move {
            let outcome = inner.probe(name.as_deref()).await;
            inner.doubted.store(false, Ordering::Relaxed);
            inner.tell(Command::Probed(generation, name, outcome));
        });
    }

    /// The open keys in turn.
    fn next_key(&mut self) -> Option<String> {
        let state = self.state.borrow();
        let open: Vec<_> = state
            .keys
            .iter()
            .filter(|key| key.opened.is_some())
            .collect();
        self.probe_turn = self.probe_turn.wrapping_add(1);
        let key = open.get(self.probe_turn.checked_rem(open.len())?)?;
        Some(key.spec.name.clone())
    }

    pub(super) fn probed(&mut self, key: Option<String>, outcome: Result<(), TokenError>) {
        self.probing = false;
        let key = key.unwrap_or_default();
        match outcome {
            Ok(()) => {
                self.probe_failures.remove(&key);
            }
            Err(error) => {
                tracing::warn!(token = self.inner.name, key, "the probe failed: {error}");
                // One that was refused on the way is told as that: the others
                // are no less well for it.
                let keys = &self.state.borrow().keys;
                let serves = |slot: &Slot| slot.spec.name == key && slot.opened.is_some();
                if key.is_empty() || keys.iter().any(serves) {
                    self.probe_failures.insert(key, error.to_string());
                }
            }
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
            probe: self.probe_failures.values().next().map(String::as_str),
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
