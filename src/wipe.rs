//! Freed memory holds nothing: the allocator of every process of ours
//! overwrites a block before it gives it back.
//!
//! Types that know that they hold a secret overwrite it themselves. What
//! passes through libraries (hyper's read buffers, serialised requests,
//! copies made while something grows) is overwritten here, whoever held it.
//! C code has an allocator of its own: a PKCS#11 module's memory is its own
//! affair.

use std::alloc::{GlobalAlloc, Layout, System};

use zeroize::optimization_barrier;

/// Overwrites `bytes` with zeros, at the speed of memory; the compiler cannot
/// leave it out. (`Zeroize` of a slice writes byte by byte.)
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    optimization_barrier(bytes);
}

/// The system's allocator, with every block overwritten when it is freed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wiping;

// SAFETY: everything is passed on to the system's allocator as it came; a
// block is written to once more while it is still the caller's. `realloc` is
// the trait's own: a new block, a copy, and the old one freed through
// `dealloc`. (The system's could move a block and leave the old one as it is.)
#[allow(unsafe_code, reason = "an allocator is an unsafe trait")]
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` has `layout.size()` bytes and is nobody's any more.
        // Written through the raw pointer: parts of it may be uninitialised.
        unsafe { block.write_bytes(0, layout.size()) };
        // The pointer escapes here, so that the bytes behind it must be zero.
        optimization_barrier(&block);
        // SAFETY: the caller's promise about `block` and `layout` is passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Gives the pages of freed blocks back to the system, which the allocator
/// would keep: a load leaves megabytes of them between blocks that live on.
/// Takes milliseconds, and the allocator's locks one by one: for a process
/// that has nothing else to do. Of memory that is locked the kernel takes
/// nothing back in this way (madvise(2)).
#[allow(unsafe_code, reason = "the allocator is the C library's")]
pub fn give_back() {
    // SAFETY: takes no pointer, touches no block in use, and may be called
    // from any thread at any time (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    /// What the block holds, through the kernel: it is not ours any more.
    fn look(at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut bytes, at as u64).unwrap();
        bytes
    }

    #[test]
    #[allow(unsafe_code, reason = "calls of an allocator")]
    fn a_block_is_empty_when_it_is_freed_and_when_it_moved() {
        const LEN: usize = 3000;
        let layout = Layout::from_size_align(LEN, 8).unwrap();
        // SAFETY: each block is used within its size, and freed once with the
        // layout that it was made or grown with.
        let (first, second) = unsafe {
            let first = Wiping.alloc(layout);
            first.write_bytes(0x5a, LEN);
            let second = Wiping.realloc(first, layout, 2 * LEN);
            assert_eq!(second.add(LEN - 1).read(), 0x5a);
            let second_at = second as usize;
            Wiping.dealloc(second, Layout::from_size_align(2 * LEN, 8).unwrap());
            (first as usize, second_at)
        };
        for (at, len) in [(first, LEN), (second, 2 * LEN)] {
            // The allocator keeps its own books in a free block's beginning.
            let left = look(at, len)[32..].iter().filter(|b| **b == 0x5a).count();
            assert_eq!(left, 0, "bytes left behind");
        }
    }

    #[test]
    fn wiped_is_zero() {
        let mut bytes = [7; 100];
        wipe(&mut bytes[10..]);
        assert_eq!(bytes[..10], [7; 10]);
        assert_eq!(bytes[10..], [0; 90]);
    }
}
