//! What all requests by one grant together may take: so many at once and in
//! a time, and so many bytes a second.

use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, MonotonicClock};
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, sleep};

use crate::api::{Error, ErrorKind};
use crate::config::Rate;
use crate::store::Pool;

use crate::agent::source::{STARVING_PATIENCE, STARVING_RATE};

use std::num::NonZeroU32;

type Limiter = RateLimiter<NotKeyed, InMemoryState, MonotonicClock>;

/// Bytes let through in one step, in KiB: a large frame must not wait until
/// all of it may pass while smaller ones of others slip by.
const STEP: u32 = 256;

/// The rates of one grant. A burst of one unit of time passes at once.
#[derive(Debug)]
pub(in crate::agent) struct Limits {
    requests: Option<Limiter>,
    /// In KiB.
    bytes: Option<(Limiter, NonZeroU32)>,
}

impl Limits {
    pub(super) fn new(rate: Rate) -> Arc<Self> {
        let limiter = |quota| RateLimiter::direct_with_clock(quota, MonotonicClock);
        let requests = rate.requests.and_then(|requests| {
            let quota = Quota::with_period(requests.per / requests.count.get())?;
            Some(limiter(quota.allow_burst(requests.count)))
        });
        let bytes = rate.bytes.map(|rate| {
            let kib = rate.kib();
            (limiter(Quota::per_second(kib)), kib)
        });
        Arc::new(Self { requests, bytes })
    }

    /// Counts one request, or tells how long to wait.
    pub(super) fn admit(&self) -> Result<(), Duration> {
        let Some(limiter) = &self.requests else {
            return Ok(());
        };
        limiter
            .check()
            .map_err(|not_until| not_until.wait_time_from(MonotonicClock.now()))
    }

    /// Whether requests are still let in; counts none.
    fn meters_bytes(&self) -> bool {
        self.bytes.is_some()
    }

    async fn pass(&self, kib: u32) {
        let Some((limiter, burst)) = &self.bytes else {
            return;
        };
        let mut left = kib;
        while let Some(step) = NonZeroU32::new(left.min(STEP).min(burst.get())) {
            match limiter.check_n(step) {
                Ok(Ok(())) => left -= step.get(),
                Ok(Err(not_until)) => {
                    sleep(not_until.wait_time_from(MonotonicClock.now())).await;
                }
                // A step is never more than the burst.
                Err(_) => return,
            }
        }
    }
}

/// Counts one request's bytes, and slows them down to its grant's rate.
pub(in crate::agent) struct Meter {
    limits: Option<Arc<Limits>>,
    pool: Pool,
    counter: Counter,
    /// Bytes that passed and do not make a whole KiB yet.
    odd: u64,
    moved: u64,
    waited: Duration,
}

impl Meter {
    pub(in crate::agent) fn new(limits: Option<Arc<Limits>>, pool: Pool, counter: Counter) -> Self {
        Self {
            limits: limits.filter(|limits| limits.meters_bytes()),
            pool,
            counter,
            odd: 0,
            moved: 0,
            waited: Duration::ZERO,
        }
    }

    /// Waits until so many bytes more may pass.
    ///
    /// # Errors
    /// Others wait for the memory that this request holds, and its share of
    /// the rate is below what such a request must move.
    pub(in crate::agent) async fn pass(&mut self, bytes: usize) -> Result<(), Error> {
        self.counter.inc_by(bytes as u64);
        let Some(limits) = &self.limits else {
            return Ok(());
        };
        self.moved += bytes as u64;
        self.odd += bytes as u64;
        let kib = u32::try_from(self.odd >> 10).unwrap_or(u32::MAX);
        self.odd -= u64::from(kib) << 10;
        let began = Instant::now();
        limits.pass(kib).await;
        self.waited += began.elapsed();
        let least = self.waited.as_secs().saturating_mul(STARVING_RATE);
        if self.waited > STARVING_PATIENCE && self.moved < least && self.pool.waiting() > 0 {
            return Err(Error::new(
                ErrorKind::Busy,
                "too many requests share the byte rate of their grant, while others wait for the memory they hold",
            )
            .hint("send fewer at once"));
        }
        Ok(())
    }
}
