//! Deadlines while a worker starts, when no caller waits for an answer: each
//! call into the module gets `call_timeout`, and one that does not return
//! ends the process, which is the only cure of a stuck C call.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::token::protocol::{Failure, FailureKind, HELLO, Reply};

use super::{exit, send};

/// A running start; ends when dropped.
pub(super) struct Watch {
    shared: Arc<(Mutex<Step>, Condvar)>,
}

struct Step {
    what: &'static str,
    since: Instant,
    over: bool,
}

impl Watch {
    /// Begins to watch; `link` is told before the process ends.
    pub(super) fn start(limit: Duration, link: OwnedFd) -> io::Result<Self> {
        let step = Step {
            what: "loading",
            since: Instant::now(),
            over: false,
        };
        let shared = Arc::new((Mutex::new(step), Condvar::new()));
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || {
                let Some(what) = overdue(&watched, limit) else {
                    return;
                };
                let detail = format!("the module did not return from {what} within {limit:?}");
                tracing::error!("{detail}");
                let failure = Failure::new(FailureKind::Lost, detail);
                // The server may be gone; the exit code still says it.
                let _ = send(&link, HELLO, &Reply::Failed(failure));
                exit::now(exit::LOST);
            })?;
        Ok(Self { shared })
    }

    /// The next call begins, and with it its time.
    pub(super) fn step(&self, what: &'static str) {
        let mut step = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        step.what = what;
        step.since = Instant::now();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut step = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        step.over = true;
        self.shared.1.notify_all();
    }
}

/// Waits until a step has taken too long, and says which; `None` at the end.
fn overdue((step, changed): &(Mutex<Step>, Condvar), limit: Duration) -> Option<&'static str> {
    let mut step = step.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if step.over {
            return None;
        }
        let left = limit.saturating_sub(step.since.elapsed());
        if left.is_zero() {
            return Some(step.what);
        }
        step = changed
            .wait_timeout(step, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_the_whole_time_and_the_last_one_is_named() {
        let limit = Duration::from_millis(150);
        let step = Step {
            what: "first",
            since: Instant::now(),
            over: false,
        };
        let shared = Arc::new((Mutex::new(step), Condvar::new()));
        let watch = Watch {
            shared: Arc::clone(&shared),
        };
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| overdue(&shared, limit));
            std::thread::sleep(Duration::from_millis(100));
            watch.step("second");
            assert_eq!(waiting.join().ok().flatten(), Some("second"));
        });
        assert!(begun.elapsed() >= Duration::from_millis(250));
        drop(watch);
        assert_eq!(overdue(&shared, limit), None);
    }
}
