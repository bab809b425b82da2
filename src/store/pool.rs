//! Memory as a budget: every part buffer is reserved here, in turn, before
//! anything is read into it.
//!
//! Buffers are anonymous mappings of their own rather than heap blocks. The
//! kernel hands out their pages only when they are touched, a returned buffer
//! leaves nothing behind in an allocator's arenas, so that resident memory
//! stays inside the budget whatever sizes come and go, and a core dump does
//! not contain them.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroize as _;

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
struct Shared {
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
        Some(Buffer {
            mapping: Some(mapping),
            capacity: len,
            len: 0,
            touched: 0,
            ciphertext: 0,
            shared: self.shared.clone(),
            _permit: permit,
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; the numbers are valid in any case.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, mapping: Mapping) {
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

/// Reserved memory: grows up to its capacity, never moves, is wiped and given
/// back when dropped.
#[derive(Debug)]
pub struct Buffer {
    /// `None` only while dropping.
    mapping: Option<Mapping>,
    capacity: usize,
    len: usize,
    /// Bytes from the front that were ever handed out for writing.
    touched: usize,
    /// Bytes from the front that are known to be ciphertext.
    ciphertext: usize,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Buffer {
    /// Bytes in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes reserved.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes reserved and not in use.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.capacity - self.len
    }

    /// The bytes in use.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.mapping
            .as_ref()
            .map_or(&[], |m| &m.bytes()[..self.len])
    }

    /// The bytes in use, to be written; they count as plaintext from now on.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.ciphertext = 0;
        let len = self.len;
        self.mapping
            .as_mut()
            .map_or(&mut [], |m| &mut m.bytes_mut()[..len])
    }

    /// Sets the number of bytes in use. New ones read as whatever the buffer
    /// held there before: zeros, or ciphertext of an earlier use.
    ///
    /// # Panics
    /// If `len` exceeds the capacity: the caller broke its own reservation.
    pub fn resize(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer grown past its reservation");
        self.len = len;
        self.touched = self.touched.max(len);
    }

    /// Drops the bytes behind `len` from use.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends `bytes`.
    ///
    /// # Panics
    /// If they do not fit: the caller broke its own reservation.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let start = self.len;
        self.resize(start + bytes.len());
        // Not through `as_mut_slice`: what is before stays as it was.
        if let Some(mapping) = &mut self.mapping {
            mapping.bytes_mut()[start..start + bytes.len()].copy_from_slice(bytes);
        }
        self.ciphertext = self.ciphertext.min(start);
    }

    /// Declares all bytes in use to be ciphertext, so that they need no wipe.
    pub fn mark_ciphertext(&mut self) {
        self.ciphertext = self.len;
    }

    /// The bytes as a shared, read-only value. The reservation ends when its
    /// last clone is dropped.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(mut mapping) = self.mapping.take() {
            mapping.bytes_mut()[self.ciphertext..self.touched].zeroize();
            self.shared.put_back(mapping);
        }
    }
}

/// A private anonymous mapping, zeroed by the kernel.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping is memory that only this value points to; nothing in it
// depends on a thread.
#[allow(unsafe_code, reason = "a mapping is a raw pointer to the compiler")]
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` only gives out `&[u8]`; writing takes `&mut Mapping`.
#[allow(unsafe_code, reason = "a mapping is a raw pointer to the compiler")]
unsafe impl Sync for Mapping {}

#[allow(unsafe_code, reason = "mmap, madvise and munmap have no safe form")]
impl Mapping {
    fn new(size: usize) -> std::io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice
        // touches no memory that anybody else uses.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        // SAFETY: exactly the mapping just made; the advice changes no bytes.
        // A kernel that does not know it only makes a larger core dump.
        let _ = unsafe { rustix::mm::madvise(start, size, Advice::LinuxDontDump) };
        NonNull::new(start.cast())
            .map(|start| Self { start, size })
            .ok_or_else(|| std::io::Error::other("a mapping at address zero"))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `size` bytes from `start` are mapped, initialised (by the
        // kernel, with zeros) and ours until `drop`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes other references.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

#[allow(unsafe_code, reason = "munmap has no safe form")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing points into it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
