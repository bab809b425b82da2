//! When keys that did not pass gate and canary are tried again.

use std::time::{Duration, Instant};

use super::state::Slot;

/// Keys that failed for a temporary reason: soon, because requests wait, and
/// a new key on a cluster needs but seconds. Pauses double from the first to
/// the last.
const TEMPORARY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));
/// Keys that somebody must mend: seldom; a reload looks at once.
const LASTING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// The plan for one token's keys.
pub(super) struct Retry {
    temporary: Duration,
    lasting: Duration,
    at: Option<Instant>,
}

impl Retry {
    /// Nothing is planned.
    pub(super) const fn new() -> Self {
        Self {
            temporary: TEMPORARY.0,
            lasting: LASTING.0,
            at: None,
        }
    }

    /// Starts anew: something has changed.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Plans the next attempt, after one that left these keys.
    pub(super) fn plan(&mut self, keys: &[Slot], now: Instant) {
        let closed = || keys.iter().filter(|key| key.opened.is_none());
        let (pause, last) = if closed().any(Slot::temporary) {
            (&mut self.temporary, TEMPORARY.1)
        } else if closed().next().is_some() {
            (&mut self.lasting, LASTING.1)
        } else {
            return self.reset();
        };
        self.at = Some(now + *pause);
        *pause = (*pause * 2).min(last);
    }

    /// Whether it is time; asked once per attempt.
    pub(super) fn due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::TokenError;
    use super::super::protocol::{KeySpec, OpenedKey};
    use super::*;

    fn slot(opened: bool, problem: Option<TokenError>) -> Slot {
        let spec = KeySpec {
            name: "k".into(),
            label: "k".into(),
            imported: false,
        };
        Slot {
            spec,
            opened: opened.then(OpenedKey::default),
            problem,
        }
    }

    #[test]
    fn a_temporary_fault_is_retried_soon_and_a_lasting_one_seldom() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let away = [slot(false, Some(TokenError::away("a")))];
        let mut retry = Retry::new();
        for pause in [250, 500, 1000, 2000, 3000, 3000] {
            retry.plan(&away, now);
            assert!(!retry.due(now + ms(pause - 1)), "{pause}");
            assert!(retry.due(now + ms(pause)), "{pause}");
            assert!(!retry.due(now + ms(pause)), "once");
        }
        let wrong = TokenError::Misconfigured {
            detail: String::new(),
            hint: String::new(),
        };
        retry.plan(&[slot(true, None), slot(false, Some(wrong))], now);
        assert!(!retry.due(now + ms(4999)) && retry.due(now + ms(5000)));
        retry.plan(&[slot(true, None)], now);
        assert!(!retry.due(now + ms(100_000)));
        retry.plan(&away, now);
        assert!(retry.due(now + ms(250)), "anew");
    }
}
