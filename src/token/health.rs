//! A token's health: one small state machine that status, ready, the service
//! manager and the logs all tell from.

use std::time::Duration;

use super::error::TokenError;
use super::state::Slot;

/// How long a token is believed to work after a wrap and an unwrap last did:
/// an idle one is probed every 10 s, so that one probe may fail.
pub const PROOF_LASTS: Duration = Duration::from_secs(30);

/// A token's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No worker has said hello yet.
    Starting,
    /// A wrap and an unwrap succeeded within the last 30 s, every configured
    /// key is open, and there are as many sessions as configured.
    Ready,
    /// It serves, but not with all keys or all sessions.
    Degraded,
    /// It has a worker, but the last probe failed, or nothing has proved for
    /// 30 s that it works. Calls are still tried.
    Suspect,
    /// The worker was lost; another is coming, and calls wait for it.
    Recovering,
    /// For 30 s no worker could be brought to serve. It is tried on.
    Down,
    /// Somebody has to correct something.
    Misconfigured,
    /// The PIN was refused, and is not tried again before it changes.
    Locked,
}

impl Health {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Ready,
        Self::Degraded,
        Self::Suspect,
        Self::Recovering,
        Self::Down,
        Self::Misconfigured,
        Self::Locked,
    ];

    /// Its name in status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Suspect => "suspect",
            Self::Recovering => "recovering",
            Self::Down => "down",
            Self::Misconfigured => "misconfigured",
            Self::Locked => "locked",
        }
    }

    /// Whether calls are made now, rather than waiting or refused.
    #[must_use]
    pub const fn serves(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded | Self::Suspect)
    }
}

/// A health with its reasons: what failed and why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) health: Health,
    pub(super) detail: Option<String>,
    pub(super) hint: Option<String>,
}

impl Verdict {
    pub(super) fn new(health: Health, detail: impl Into<String>) -> Self {
        Self {
            health,
            detail: Some(detail.into()),
            hint: None,
        }
    }

    pub(super) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    pub(super) fn ready() -> Self {
        Self {
            health: Health::Ready,
            detail: None,
            hint: None,
        }
    }

    /// What an error says of the whole token.
    pub(super) fn of(error: &TokenError) -> Self {
        let health = match error {
            TokenError::Locked { .. } => Health::Locked,
            TokenError::Misconfigured { .. } => Health::Misconfigured,
            _ => Health::Recovering,
        };
        Self::new(health, error.to_string()).hint(error.hint().map(str::to_owned))
    }
}

/// What is known of a token whose worker has said hello.
pub(super) struct Facts<'a> {
    pub(super) keys: &'a [Slot],
    /// Sessions open, and configured.
    pub(super) sessions: (usize, usize),
    /// How long ago both a wrap and an unwrap had last succeeded.
    pub(super) proof: Option<Duration>,
    /// Why the last probe failed, if it did.
    pub(super) probe: Option<&'a str>,
}

impl Facts<'_> {
    /// The health of a token with a worker. The worst that is true counts.
    pub(super) fn assess(&self) -> Verdict {
        if self.keys.is_empty() {
            // Nothing to prove it with, and nothing to prove.
            return match self.probe {
                None => Verdict::ready(),
                Some(why) => Verdict::new(Health::Suspect, why),
            };
        }
        let problem = |key: &Slot| key.problem.clone();
        if self.keys.iter().all(|key| key.opened.is_none()) {
            let lasting = self.keys.iter().filter(|key| !key.temporary());
            let worst = lasting.chain(self.keys).find_map(problem);
            return match worst {
                Some(error) => Verdict::of(&error),
                None => Verdict::new(Health::Recovering, "its keys are being opened"),
            };
        }
        if let Some(why) = self.probe {
            return Verdict::new(Health::Suspect, format!("the last probe failed: {why}"));
        }
        if self.proof.is_none_or(|age| age >= PROOF_LASTS) {
            let detail = "no wrap and unwrap has succeeded in the last 30 s";
            return Verdict::new(Health::Suspect, detail);
        }
        if let Some(error) = self.keys.iter().find_map(problem) {
            return Verdict::new(Health::Degraded, error.to_string())
                .hint(error.hint().map(str::to_owned));
        }
        if let Some(key) = self.keys.iter().find(|key| key.opened.is_none()) {
            let detail = format!("key {}: not open yet", key.spec.name);
            return Verdict::new(Health::Degraded, detail);
        }
        let (open, wanted) = self.sessions;
        if open < wanted {
            return Verdict::new(
                Health::Degraded,
                format!("the token gave {open} of {wanted} sessions"),
            )
            .hint(Some("lower sessions, or give the token more".to_owned()));
        }
        Verdict::ready()
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{KeySpec, OpenedKey};
    use super::*;

    fn key(name: &str, opened: bool, problem: Option<TokenError>) -> Slot {
        Slot {
            spec: KeySpec {
                name: name.into(),
                label: name.into(),
                imported: false,
            },
            opened: opened.then(OpenedKey::default),
            problem,
        }
    }

    fn assess(keys: &[Slot], proof: u64, probe: Option<&str>, sessions: usize) -> Health {
        let facts = Facts {
            keys,
            sessions: (sessions, 16),
            proof: Some(Duration::from_secs(proof)),
            probe,
        };
        facts.assess().health
    }

    #[test]
    fn the_worst_that_is_true_counts() {
        let good = || key("a", true, None);
        let wrong = || {
            let error = TokenError::Misconfigured {
                detail: "no such key".into(),
                hint: "make it".into(),
            };
            key("b", false, Some(error))
        };
        let away = || key("c", false, Some(TokenError::away("soon")));
        assert_eq!(assess(&[], 99, None, 16), Health::Ready);
        assert_eq!(assess(&[], 0, Some("no"), 16), Health::Suspect);
        assert_eq!(assess(&[good()], 5, None, 16), Health::Ready);
        assert_eq!(assess(&[good()], 30, None, 16), Health::Suspect);
        assert_eq!(assess(&[good()], 5, Some("no"), 16), Health::Suspect);
        assert_eq!(assess(&[good()], 5, None, 15), Health::Degraded);
        assert_eq!(assess(&[good(), wrong()], 5, None, 16), Health::Degraded);
        assert_eq!(assess(&[good(), wrong()], 31, None, 16), Health::Suspect);
        assert_eq!(assess(&[wrong()], 5, None, 16), Health::Misconfigured);
        assert_eq!(
            assess(&[away(), wrong()], 5, None, 16),
            Health::Misconfigured
        );
        assert_eq!(assess(&[away()], 5, None, 16), Health::Recovering);
        assert_eq!(
            assess(&[key("d", false, None)], 5, None, 16),
            Health::Recovering
        );
    }
}
