//! One part's memory, wiped and given back to the pool when it is dropped.
//!
//! Buffers are anonymous mappings of their own rather than heap blocks. The
//! kernel hands out their pages only when they are touched, a returned buffer
//! leaves nothing behind in an allocator's arenas, so that resident memory
//! stays inside the budget whatever sizes come and go, and a core dump does
//! not contain them.

use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use tokio::sync::OwnedSemaphorePermit;

use crate::wipe::wipe;

use super::pool::Shared;

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
    pub(super) fn new(
        mapping: Mapping,
        capacity: usize,
        shared: Arc<Shared>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            mapping: Some(mapping),
            capacity,
            len: 0,
            touched: 0,
            ciphertext: 0,
            shared,
            _permit: permit,
        }
    }

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
            wipe(&mut mapping.bytes_mut()[self.ciphertext..self.touched]);
            self.shared.put_back(mapping);
        }
    }
}

/// A private anonymous mapping, zeroed by the kernel.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    pub(super) size: usize,
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
    pub(super) fn new(size: usize) -> std::io::Result<Self> {
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
