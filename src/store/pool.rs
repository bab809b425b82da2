//! Memory as a budget: every part buffer is reserved here, in turn, before
//! anything is read into it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::buffer::{Buffer, Mapping};

/// Granularity of reservations in bytes: a page, so that a buffer's memory is
/// what was reserved for it, and 2^32 of them are more than any budget.
const UNIT: usize = 4096;
/// Free buffers kept while nothing at all is reserved, in bytes: enough for a
/// run of small objects to find theirs again, little enough not to be seen in
/// an idle agent's size.
const IDLE_KEEP: usize = 1 << 20;

/// The budget. Clones share it.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    budget: usize,
    units: Arc<Semaphore>,
    /// Requests in [`Pool::reserve`].
    waiting: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of all buffers that are out.
    in_use: usize,
    /// Returned mappings, for buffers of the same size.
    free: Vec<Mapping>,
    free_bytes: usize,
}

/// No memory came free in time, or the budget can never hold that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for {wanted} bytes within a budget of {budget}")]
pub struct Starved {
    /// Bytes asked for.
    pub wanted: usize,
    /// Bytes in all.
    pub budget: usize,
}

/// Counts one waiting request, however its wait ends.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// A pool of `budget` bytes.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        let units = (budget / UNIT).min(Semaphore::MAX_PERMITS);
        Self {
            shared: Arc::new(Shared {
                budget,
                units: Arc::new(Semaphore::new(units)),
                waiting: AtomicUsize::new(0),
                state: Mutex::default(),
            }),
        }
    }

    /// Waits, first come first served, for `len` bytes.
    ///
    /// # Errors
    /// [`Starved`] after `timeout`, or at once if the budget is smaller.
    pub async fn reserve(&self, len: usize, timeout: Duration) -> Result<Buffer, Starved> {
        let starved = self.starved(len);
        let units = self.units(len).ok_or(starved)?;
        let wait = self.shared.units.clone().acquire_many_owned(units);
        let waiting = Waiting::new(&self.shared.waiting);
        let permit = tokio::time::timeout(timeout, wait)
            .await
            .map_err(|_| starved)?
            // Nobody closes the semaphore.
            .map_err(|_| starved)?;
        drop(waiting);
        self.take(len, permit).ok_or(starved)
    }

    /// `len` bytes if they are free now and nobody waits.
    #[must_use]
    pub fn try_reserve(&self, len: usize) -> Option<Buffer> {
        let units = self.units(len)?;
        let permit = self
            .shared
            .units
            .clone()
            .try_acquire_many_owned(units)
            .ok()?;
        self.take(len, permit)
    }

    /// Requests that wait for memory at this moment.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Bytes of all buffers that are out.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.shared.lock().in_use as u64
    }

    /// Bytes in all.
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.shared.budget as u64
    }

    fn starved(&self, wanted: usize) -> Starved {
        Starved {
            wanted,
            budget: self.shared.budget,
        }
    }

    /// `None` if the whole budget is less.
    fn units(&self, len: usize) -> Option<u32> {
        let units = len.div_ceil(UNIT).max(1);
        if units > self.shared.budget / UNIT {
            return None;
        }
        u32::try_from(units).ok()
    }

    /// `None` if the system refuses the mapping.
    fn take(&self, len: usize, permit: OwnedSemaphorePermit) -> Option<Buffer> {
        let size = len.div_ceil(UNIT).max(1) * UNIT;
        let mut unmapped = Vec::new();
        let mut state = self.shared.lock();
        state.in_use += size;
        let reused = match state.free.iter().rposition(|m| m.size == size) {
            Some(i) => {
                state.free_bytes -= size;
                Some(state.free.swap_remove(i))
            }
            None => {
                // What lies idle may not push resident memory past the budget.
                while state.in_use + state.free_bytes > self.shared.budget
                    && let Some(idle) = state.free.pop()
                {
                    state.free_bytes -= idle.size;
                    unmapped.push(idle);
                }
                None
            }
        };
        drop(state);
        drop(unmapped);
        let mapping = match reused {
            Some(mapping) => mapping,
            None => match Mapping::new(size) {
                Ok(mapping) => mapping,
                Err(error) => {
                    tracing::error!(%error, size, "the system refuses memory within the budget");
                    self.shared.lock().in_use -= size;
                    return None;
                }
            },
        };
        Some(Buffer::new(mapping, len, self.shared.clone(), permit))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; the numbers are valid in any case.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put_back(&self, mapping: Mapping) {
        let mut surplus = Vec::new();
        let mut state = self.lock();
        state.in_use -= mapping.size;
        state.free_bytes += mapping.size;
        state.free.push(mapping);
        let keep = if state.in_use == 0 {
            IDLE_KEEP
        } else {
            self.budget - state.in_use.min(self.budget)
        };
        while state.free_bytes > keep
            && let Some(idle) = state.free.pop()
        {
            state.free_bytes -= idle.size;
            surplus.push(idle);
        }
        drop(state);
        // Unmapping is a system call: after the lock.
        drop(surplus);
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
