//! How old a wrapping key is, and how long it is still to be used: its
//! cryptoperiod (NIST SP 800-57 part 1, 5.3), from the day on which this host
//! first used it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::api::KeyInfo;
use crate::catalog::Catalog;
use crate::config::Key;

use super::Keyring;

const DAY: u64 = 24 * 60 * 60;
/// The longest notice that is given, in seconds: a month's time to arrange a
/// ceremony. Of a short period it is a tenth.
const NOTICE: u64 = 30 * DAY;

/// A key's age against its cryptoperiod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    age: u64,
    period: u64,
}

impl Period {
    /// Of a key first used at this Unix millisecond.
    #[must_use]
    pub fn new(first_use_ms: u64, period: Duration) -> Self {
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        Self {
            age: now.saturating_sub(first_use_ms) / 1000,
            period: period.as_secs(),
        }
    }

    /// Seconds until it is over; negative since it is.
    #[must_use]
    pub fn left(self) -> i64 {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        signed(self.period) - signed(self.age)
    }

    /// What there is to be done about it, if anything.
    #[must_use]
    pub fn warning(self) -> Option<String> {
        let notice = NOTICE.min(self.period / 10);
        let left = self.left();
        if left < 0 {
            let over = span(left.unsigned_abs());
            return Some(format!("its cryptoperiod ended {over} ago: rotate"));
        }
        let left = left.unsigned_abs();
        (left <= notice).then(|| format!("its cryptoperiod ends in {}: rotate", span(left)))
    }
}

fn span(seconds: u64) -> String {
    match (seconds / DAY, seconds / 3600, seconds / 60) {
        (days, ..) if days >= 2 => format!("{days} days"),
        (_, hours, _) if hours >= 2 => format!("{hours} hours"),
        (.., minutes) if minutes >= 2 => format!("{minutes} minutes"),
        _ => format!("{seconds} seconds"),
    }
}

/// When each key was first used on this host. That never changes.
pub(super) struct Births {
    catalog: Catalog,
    known: Mutex<HashMap<String, u64>>,
}

impl Births {
    pub(super) fn new(catalog: Catalog) -> Self {
        Self {
            catalog,
            known: Mutex::default(),
        }
    }

    /// Unix milliseconds. Reads the catalogue, once it is known never again.
    fn of(&self, key: &str) -> Option<u64> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(birth) = known.get(key) {
            return Some(*birth);
        }
        let birth = self.catalog.first_use(key).ok().flatten()?;
        known.insert(key.to_owned(), birth);
        Some(birth)
    }
}

impl Keyring {
    /// What status tells of a key's age, and of what is left of its count.
    pub(super) fn tell_age(&self, key: &Key, info: &mut KeyInfo) {
        if key.is_active()
            && let Some(count) = self.counts.count(&key.name)
            && count.is_low()
            && key.successor.is_none()
        {
            info.warnings
                .push("nine tenths of its wraps are used: rotate".to_owned());
        }
        let Some(birth) = self.births.of(&key.name) else {
            return;
        };
        let at = i64::try_from(birth).unwrap_or(i64::MAX);
        info.first_used = Timestamp::from_millisecond(at)
            .ok()
            .map(|at| at.to_string());
        let age = Period::new(birth, Duration::ZERO).age;
        info.age_days = Some(age / DAY);
        let Some(period) = key.cryptoperiod else {
            return;
        };
        let period = Period::new(birth, period.duration());
        info.cryptoperiod_left_seconds = Some(period.left());
        // What no longer wraps may open for as long as anything needs it.
        if key.is_active() {
            info.warnings.extend(period.warning());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn notice_is_given_a_month_or_a_tenth_ahead() {
        let warning = |age_days: u64, period_days: u64| {
            Period {
                age: age_days * DAY,
                period: period_days * DAY,
            }
            .warning()
        };
        assert_eq!(warning(334, 365), None);
        assert!(warning(335, 365).unwrap().contains("ends in 30 days"));
        assert_eq!(warning(80, 90), None);
        assert!(warning(81, 90).unwrap().contains("ends in 9 days"));
        assert!(warning(370, 365).unwrap().contains("ended 5 days ago"));
    }
}
