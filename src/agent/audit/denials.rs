//! How many refusals of one user go on record: whoever may connect could fill
//! the disk with them otherwise. What is left out is counted.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use governor::clock::MonotonicClock;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::audit::Event;

/// Refusals of one user a second that have records of their own, in the long
/// run: of about 600 bytes each, 500 MB a day.
const RATE: NonZeroU32 = NonZeroU32::new(10).unwrap();
/// And at once: a program that tries all it knows is seen in full.
const BURST: NonZeroU32 = NonZeroU32::new(1000).unwrap();
/// How long a refusal that was counted may wait for one that is recorded.
const PATIENCE: Duration = Duration::from_secs(60);
/// Users who are told apart; all others count as one.
const MAX_USERS: usize = 1024;
/// Stands for them: the uid that no process can have (chown(2)).
const OTHERS: u32 = u32::MAX;

/// The refusals that have no record yet.
#[derive(Default)]
pub(in crate::agent) struct Denials(Mutex<BTreeMap<u32, User>>);

struct User {
    limiter: RateLimiter<NotKeyed, InMemoryState, MonotonicClock>,
    held: Option<Held>,
}

/// The last refusal that was not recorded.
struct Held {
    event: Event,
    /// Those before it.
    before: u64,
    /// When the first of them came.
    since: Instant,
}

impl Held {
    fn release(self) -> Event {
        let mut event = self.event;
        event.unrecorded = (self.before > 0).then_some(self.before);
        event
    }
}

impl User {
    fn new() -> Self {
        let quota = Quota::per_second(RATE).allow_burst(BURST);
        Self {
            limiter: RateLimiter::direct_with_clock(quota, MonotonicClock),
            held: None,
        }
    }
}

impl Denials {
    /// Gives the record back if it is to be written now.
    pub(super) fn admit(&self, uid: u32, mut event: Event) -> Option<Event> {
        let mut users = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let known = users.contains_key(&uid) || users.len() < MAX_USERS;
        let user = users
            .entry(if known { uid } else { OTHERS })
            .or_insert_with(User::new);
        let held = user.held.take();
        if user.limiter.check().is_ok() {
            event.unrecorded = held.map(|held| held.before + 1);
            return Some(event);
        }
        user.held = Some(Held {
            event,
            before: held.as_ref().map_or(0, |held| held.before + 1),
            since: held.map_or_else(Instant::now, |held| held.since),
        });
        None
    }

    /// What was held back for long enough; all of it at the end.
    pub(in crate::agent) fn due(&self, end: bool) -> Vec<Event> {
        let mut users = self.0.lock().unwrap_or_else(|e| e.into_inner());
        users
            .values_mut()
            .filter_map(|user| {
                let held = user.held.as_ref()?;
                let due = end || held.since.elapsed() >= PATIENCE;
                due.then(|| user.held.take()).flatten().map(Held::release)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Kind;

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_written_out() {
        let denials = Denials::default();
        let (mut written, mut told) = (0_u64, 0_u64);
        for _ in 0..5000 {
            if let Some(event) = denials.admit(7, Event::new(Kind::Denied)) {
                written += 1;
                told += event.unrecorded.unwrap_or(0);
            }
        }
        assert!((1000..1100).contains(&written), "{written}");
        assert!(denials.admit(8, Event::new(Kind::Denied)).is_some());
        assert!(denials.due(false).is_empty());
        let rest = denials.due(true);
        assert_eq!(rest.len(), 1);
        for event in rest {
            written += 1;
            told += event.unrecorded.unwrap_or(0);
        }
        assert_eq!(written + told, 5000);
        assert!(denials.due(true).is_empty());
        // However many users there are, memory is bounded, and none is lost.
        for uid in 100..2000 {
            assert!(denials.admit(uid, Event::new(Kind::Denied)).is_some());
        }
        let users = denials.0.lock().map(|users| users.len());
        assert!(users.is_ok_and(|users| users == MAX_USERS + 1));
    }
}
