//! How often each wrapping key wraps (SECURITY.md 19).
//!
//! AES-GCM with random IVs is sound for 2^32 invocations under one key (NIST
//! SP 800-38D, 8.3), whoever makes them, wherever the key is held. So every
//! C_Encrypt under a wrapping key is counted, before it is made and whether
//! or not it succeeds, in blocks that are durable before they are used.
//!
//! The arithmetic. Before a request goes to a worker, the most that it may
//! cost is taken: [`WRAP_COST`] for a data key or a canary, [`PROOF_COST`] for
//! the opening of a key (one known-good wrap at the gate) or a probe (one
//! round trip). A wrap's reply says how many calls it took, usually one, and
//! the rest is given back. A request that fails, passes its deadline or is
//! dropped keeps what it took, and so do openings and probes. The limit never
//! refuses an opening: a key that wraps no more must still open to unwrap.
//! A crash skips the rest of a block, and repeats nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::task::{JoinHandle, spawn_blocking};

use super::error::TokenError;
use super::protocol::{PROOF_COST, WRAP_COST};

/// Wraps reserved at a time (SECURITY.md 19): at 3,000 puts a second a commit
/// every 22 s, and what a crash skips is 1/32,768 of the default limit.
const BLOCK: u64 = 65_536;
/// The next block is reserved when this many wraps are left: nearly a second
/// at 10,000 a second, and a commit takes milliseconds.
const AHEAD: u64 = 8_192;
/// How long a reservation that failed is not tried again ahead of need: a
/// full disk need not be asked for every wrap.
const PAUSE: Duration = Duration::from_secs(1);

/// Where counts are kept. Calls may block; they are made on a blocking thread.
pub trait WrapLedger: Send + Sync {
    /// What has been reserved for the key with this configured name.
    ///
    /// # Errors
    /// The ledger cannot be read; the text says why.
    fn load(&self, key: &str) -> Result<Reserved, String>;

    /// Reserves further wraps, durably; the answer includes them.
    ///
    /// # Errors
    /// The ledger cannot be written; the text says why.
    fn reserve(&self, key: &str, wraps: u64) -> Result<Reserved, String>;
}

/// What a ledger says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Wraps reserved since the count began.
    pub total: u64,
    /// Whether the count goes back to the key's first use.
    pub complete: bool,
}

/// How far a key's wraps have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrapCount {
    /// Wraps made on this host, at most: some may have been skipped.
    pub used: u64,
    /// Wraps that this host may make.
    pub limit: u64,
    /// Whether the count goes back to the key's first use.
    pub complete: bool,
    due: bool,
}

impl WrapCount {
    /// A count as a ledger has it.
    #[must_use]
    pub fn new(used: u64, limit: u64, complete: bool) -> Self {
        Self {
            used,
            limit,
            complete,
            due: used >= limit - limit / 32,
        }
    }

    /// From 90 % on the operator is warned.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.used >= self.limit - self.limit / 10
    }

    /// Whether a successor takes over. The last 1/32 (2,048 wraps of the
    /// least limit) is left to requests that chose the key before.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.due
    }

    /// Nothing more is wrapped.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.used + u64::from(WRAP_COST) > self.limit
    }
}

/// What a charge is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A data key, or a canary: not beyond the limit.
    DataKey,
    /// A gate or a probe: beyond it, if need be.
    Proof,
}

impl Purpose {
    fn cost(self) -> u64 {
        u64::from(match self {
            Self::DataKey => WRAP_COST,
            Self::Proof => PROOF_COST,
        })
    }
}

/// The counts of all keys, shared by all tokens: a key on two of them is one
/// key.
pub struct WrapCounts {
    ledger: Arc<dyn WrapLedger>,
    counters: RwLock<HashMap<String, Arc<Counter>>>,
}

impl WrapCounts {
    /// Counts kept in `ledger`.
    #[must_use]
    pub fn new(ledger: Arc<dyn WrapLedger>) -> Self {
        Self {
            ledger,
            counters: RwLock::default(),
        }
    }

    /// Sets a key's limit, and looks up its count if it is not known yet.
    /// Blocks for that.
    pub fn configure(&self, key: &str, limit: u64) {
        let counter = self.counter(key);
        counter.configure(limit);
    }

    /// How far a key's wraps have come, if anything is known of them.
    #[must_use]
    pub fn count(&self, key: &str) -> Option<WrapCount> {
        let counters = self.counters.read().unwrap_or_else(PoisonError::into_inner);
        counters.get(key).map(|counter| counter.count())
    }

    /// Whether nothing more is wrapped under a key.
    pub(super) fn is_exhausted(&self, key: &str) -> bool {
        self.count(key).is_some_and(|count| count.is_exhausted())
    }

    /// Takes what one request to a worker may cost. Waits for the ledger only
    /// where no block is at hand: at the start, or after it failed.
    pub(super) async fn charge(&self, key: &str, purpose: Purpose) -> Result<Charge, TokenError> {
        let counter = self.counter(key);
        loop {
            let seen = counter.reserved.load(Ordering::Acquire);
            match counter.take(purpose) {
                Taken::Left(left) => {
                    if left < AHEAD {
                        counter.reserve_ahead();
                    }
                    let taken = purpose.cost();
                    return Ok(Charge { counter, taken });
                }
                Taken::NoneReserved => counter.reserve(seen).await?,
                Taken::Exhausted => return Err(counter.exhausted()),
            }
        }
    }

    fn counter(&self, key: &str) -> Arc<Counter> {
        let known = self
            .counters
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned();
        known.unwrap_or_else(|| {
            let mut counters = self
                .counters
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let counter = counters
                .entry(key.to_owned())
                .or_insert_with(|| Arc::new(Counter::new(key, Arc::clone(&self.ledger))));
            Arc::clone(counter)
        })
    }
}

/// What a request took. Dropped, it stays taken.
pub(super) struct Charge {
    counter: Arc<Counter>,
    taken: u64,
}

impl Charge {
    /// The request needed this many wraps; the rest is given back.
    pub(super) fn spent(self, wraps: u32) {
        let rest = self.taken.saturating_sub(u64::from(wraps.max(1)));
        self.counter.used.fetch_sub(rest, Ordering::AcqRel);
    }
}

/// One key's count. `used` never passes `reserved`, which is durable.
struct Counter {
    key: String,
    ledger: Arc<dyn WrapLedger>,
    used: AtomicU64,
    reserved: AtomicU64,
    limit: AtomicU64,
    complete: AtomicBool,
    due: AtomicBool,
    warned: AtomicBool,
    /// Who reserves.
    turn: Arc<Turn<()>>,
    /// Who takes over what the ledger said.
    takeover: Mutex<()>,
    /// When a reservation failed last.
    failed: Mutex<Option<Instant>>,
}

enum Taken {
    /// This much of the reserved is left.
    Left(u64),
    NoneReserved,
    Exhausted,
}

impl Counter {
    fn new(key: &str, ledger: Arc<dyn WrapLedger>) -> Self {
        Self {
            key: key.to_owned(),
            ledger,
            used: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            limit: AtomicU64::new(crate::config::WrapLimit::default().wraps()),
            complete: AtomicBool::new(true),
            due: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            turn: Arc::default(),
            takeover: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    fn configure(&self, limit: u64) {
        if self.limit.swap(limit, Ordering::AcqRel) != limit {
            self.due.store(false, Ordering::Release);
            self.warned.store(false, Ordering::Release);
        }
        let takeover = lock(&self.takeover);
        if self.reserved.load(Ordering::Acquire) == 0 {
            match self.ledger.load(&self.key) {
                Ok(known) => {
                    self.complete.store(known.complete, Ordering::Release);
                    // Whoever reserved it before may have used all of it.
                    self.used.fetch_max(known.total, Ordering::AcqRel);
                    self.reserved.fetch_max(known.total, Ordering::AcqRel);
                }
                Err(why) => {
                    tracing::error!(key = self.key, "cannot read its count of wraps: {why}")
                }
            }
        }
        drop(takeover);
        self.watch(self.used.load(Ordering::Acquire));
    }

    fn count(&self) -> WrapCount {
        let count = WrapCount::new(
            self.used.load(Ordering::Acquire),
            self.limit.load(Ordering::Acquire),
            self.complete.load(Ordering::Acquire),
        );
        // What is given back does not undo a hand-over.
        let due = count.due || self.due.load(Ordering::Acquire);
        WrapCount { due, ..count }
    }

    fn left(&self) -> u64 {
        let reserved = self.reserved.load(Ordering::Acquire);
        reserved.saturating_sub(self.used.load(Ordering::Acquire))
    }

    fn take(&self, purpose: Purpose) -> Taken {
        let most = purpose.cost();
        let limit = match purpose {
            Purpose::DataKey => self.limit.load(Ordering::Acquire),
            Purpose::Proof => u64::MAX,
        };
        let taken = self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                let after = used + most;
                let reserved = self.reserved.load(Ordering::Acquire);
                (after <= reserved && after <= limit).then_some(after)
            });
        match taken {
            Ok(before) => {
                self.watch(before + most);
                Taken::Left(self.left())
            }
            Err(used) if used + most > limit => Taken::Exhausted,
            Err(_) => Taken::NoneReserved,
        }
    }

    /// Notes what the count has passed.
    fn watch(&self, used: u64) {
        let limit = self.limit.load(Ordering::Acquire);
        let count = WrapCount::new(used, limit, true);
        if count.is_due() {
            self.due.store(true, Ordering::Release);
        }
        if count.is_low() && !self.warned.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                key = self.key,
                wraps_used = used,
                wrap_limit = limit,
                hint = "rotate: docs/operations.md tells how",
                "the wrapping key has used 90 % of its wrap_limit"
            );
        }
    }

    /// Reserves the next block, unless somebody did since `seen`.
    async fn reserve(self: &Arc<Self>, seen: u64) -> Result<(), TokenError> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if self.reserved.load(Ordering::Acquire) != seen {
            return Ok(());
        }
        self.start(turn)
            .await
            .map_err(|error| error.to_string())
            .and_then(|outcome| outcome)
            .map_err(|why| TokenError::Uncounted {
                detail: format!("key {}: its wraps cannot be counted: {why}", self.key),
            })
    }

    /// The same in the background, for those who come later.
    fn reserve_ahead(self: &Arc<Self>) {
        if lock(&self.failed).is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        // Whoever has the turn reserves; and may just have done so.
        if let Ok(turn) = Arc::clone(&self.turn).try_lock_owned()
            && self.left() < AHEAD
        {
            drop(self.start(turn));
        }
    }

    /// A task of its own: a caller that gives up does not stop it half way.
    fn start(self: &Arc<Self>, turn: OwnedMutexGuard<()>) -> JoinHandle<Result<(), String>> {
        let this = Arc::clone(self);
        spawn_blocking(move || {
            let _turn = turn;
            let outcome = this.ledger.reserve(&this.key, BLOCK);
            let failed = outcome.as_ref().err().map(|why| {
                tracing::error!(key = this.key, "cannot reserve wraps: {why}");
                Instant::now()
            });
            *lock(&this.failed) = failed;
            outcome.map(|told| this.granted(told))
        })
    }

    fn granted(&self, told: Reserved) {
        let _takeover = lock(&self.takeover);
        let before = self.reserved.load(Ordering::Acquire);
        // What was reserved in between is another's: `doctor` counts here
        // too, and before the first block all of it is a former process's.
        let others = told.total.saturating_sub(before + BLOCK);
        self.used.fetch_add(others, Ordering::AcqRel);
        self.complete.store(told.complete, Ordering::Release);
        self.reserved.store(told.total, Ordering::Release);
    }

    fn exhausted(&self) -> TokenError {
        TokenError::Exhausted {
            detail: format!(
                "key {} has reached its wrap_limit of {}",
                self.key,
                self.limit.load(Ordering::Acquire)
            ),
        }
    }
}

/// No holder of these locks panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
