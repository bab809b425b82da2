//! This program's own code in memory: no secret, and mostly needed once.

use std::ffi::c_void;
use std::fs;
use std::ptr::with_exposed_provenance_mut;

use rustix::mm::Advice;

/// Where the kernel mapped the program's code.
#[derive(Debug)]
pub struct Code {
    /// Addresses and lengths.
    ranges: Vec<(usize, usize)>,
}

impl Code {
    /// Of this process. Without `/proc` nothing is found, and nothing done.
    #[must_use]
    pub fn of_this_process() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let program = fs::read_link("/proc/self/exe").unwrap_or_default();
        let program = program.to_string_lossy();
        let ranges = maps.lines().filter_map(|line| range(line, &program));
        Self {
            ranges: ranges.collect(),
        }
    }

    /// Leaves it to the kernel to take its pages back when memory is scarce,
    /// as it does with every program's; mlockall(2) had locked them all.
    #[allow(unsafe_code, reason = "rustix takes pointers")]
    pub fn unlock(&self) {
        for &(start, len) in &self.ranges {
            // SAFETY: changes no byte; addresses that are not mapped are an
            // error and no more.
            let done = unsafe { rustix::mm::munlock(address(start), len) };
            if let Err(error) = done {
                tracing::debug!(%error, "code stays locked");
            }
        }
    }

    /// Gives its pages back: a start touches most of them, and what comes
    /// after it few. Those are mapped again at the next call, out of the page
    /// cache.
    #[allow(unsafe_code, reason = "rustix takes pointers")]
    pub fn let_go(&self) {
        for &(start, len) in &self.ranges {
            // SAFETY: the range is a private mapping of the program's file
            // that never could be written (`r-x`; our relocations lie
            // elsewhere), and that nobody unmaps. Its pages come back with
            // the same bytes: the kernel refuses to write to a file that runs.
            let done = unsafe { rustix::mm::madvise(address(start), len, Advice::LinuxDontNeed) };
            if let Err(error) = done {
                tracing::debug!(%error, "code stays in memory");
            }
        }
    }
}

fn address(start: usize) -> *mut c_void {
    with_exposed_provenance_mut(start)
}

/// The range of one line of proc_pid_maps(5), if it is the program's code.
fn range(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    // Behind permissions, offset, device and inode comes the path, which may
    // hold spaces.
    (fields.next()? == "r-xp" && line.ends_with(&format!(" {program}")))
        .then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_found() {
        let program = "/usr/bin/strong room";
        let code = "55d0c0a00000-55d0c1900000 r-xp 00507000 fe:00 131 \
             /usr/bin/strong room";
        assert_eq!(range(code, program), Some((0x55d0_c0a0_0000, 0xf0_0000)));
        for other in [
            "55d0c0000000-55d0c0a00000 r--p 00000000 fe:00 131 /usr/bin/strong room",
            "55d0c2000000-55d0c2100000 rw-p 01500000 fe:00 131 /usr/bin/strong room",
            "7f0000000000-7f0000100000 r-xp 00000000 fe:00 132 /usr/lib/libsofthsm2.so",
            "7f0000000000-7f0000100000 r-xp 00000000 00:00 0 ",
            "7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0 [vdso]",
            "",
        ] {
            assert_eq!(range(other, program), None, "{other}");
        }
    }

    #[test]
    fn code_that_was_let_go_still_runs() {
        let code = Code::of_this_process();
        let size: usize = code.ranges.iter().map(|(_, len)| len).sum();
        assert!(size > 1 << 20, "{code:?}");
        code.unlock();
        code.let_go();
        // By code that lies there.
        let again = Code::of_this_process();
        assert_eq!(again.ranges, code.ranges);
    }
}
