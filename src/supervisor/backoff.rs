//! How long to wait before starting a process again.

use std::time::Duration;

/// A process that lived this long was well: its next death starts the series
/// anew. Longer than any delay below, shorter than an operator's patience.
const WELL: Duration = Duration::from_secs(30);

/// Delays that double from `first` to `last`, each shortened by up to a half
/// at random so that many agents do not come back to one HSM in step.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) const fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            next: first,
        }
    }

    /// The delay after a process that lived for `life`.
    pub(super) fn after(&mut self, life: Duration) -> Duration {
        if life >= WELL {
            self.reset();
        }
        let full = self.next;
        self.next = (full * 2).min(self.last);
        // Without randomness there is no jitter: no reason not to start.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        full / 2 + (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    pub(super) const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_limit_and_start_anew_after_a_long_life() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(50), ms(5000));
        for full in [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let delay = backoff.after(Duration::ZERO);
            assert!(
                (ms(full / 2)..=ms(full)).contains(&delay),
                "{delay:?} for {full}"
            );
        }
        assert!(backoff.after(WELL) <= ms(50));
    }
}
