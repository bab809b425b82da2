//! What a run costs: wall time, processor time, memory, requests.

use std::fmt;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::support::process::Process;

/// The unit of /proc/PID/stat's times a second (proc(5): USER_HZ, which Linux
/// keeps at 100 for programs whatever the kernel's own is).
const TICKS: u64 = 100;

/// One run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// From the start of the command to its end.
    pub wall: Duration,
    /// User and system time of every process on the client's side.
    pub cpu: Duration,
    /// Resident memory in bytes: the most that the command's largest process
    /// had, and the most that each of those had which serve it.
    pub peak: u64,
    /// Requests to the store.
    pub requests: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>7.3} s wall, {:>7.3} s cpu, {:>5} MiB, {} requests",
            self.wall.as_secs_f64(),
            self.cpu.as_secs_f64(),
            self.peak >> 20,
            self.requests
        )
    }
}

/// Runs a command to its end, with the processes that serve it beside.
pub fn run(command: &mut Command, served_by: &[Process]) -> Sample {
    for process in served_by {
        // Peak memory from here on (proc(5), clear_refs).
        let _ = std::fs::write(format!("/proc/{}/clear_refs", process.pid), "5");
    }
    let served = || -> Duration { served_by.iter().map(|p| cpu_of(p.pid)).sum() };
    let before = served();
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut words);
    let (status, cpu, largest) = wait(child.id());
    let wall = begun.elapsed();
    assert!(status.success(), "{command:?}: {status}\n{words}");
    Sample {
        wall,
        cpu: served().saturating_sub(before) + cpu,
        peak: largest + served_by.iter().map(Process::peak_memory).sum::<u64>(),
        requests: 0,
    }
}

/// Processor time of a running process, in hundredths of a second.
pub fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name stands in brackets, and may hold anything.
    let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|n| n.parse::<u64>().ok());
    // utime and stime, the 14th and 15th; the first two are cut off.
    let ticks = ticks(11).unwrap_or(0) + ticks(12).unwrap_or(0);
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Waits for a child; says what it and its descendants used, and the memory of
/// the largest of them.
fn wait(pid: u32) -> (ExitStatus, Duration, u64) {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value of it.
    #[allow(unsafe_code, reason = "no crate here has wait4")]
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let child = libc::pid_t::try_from(pid).unwrap();
    // SAFETY: both pointers are to live locals of the right type; the child is
    // ours and nobody else waits for it.
    #[allow(unsafe_code, reason = "no crate here has wait4")]
    let waited = unsafe { libc::wait4(child, &raw mut status, 0, &raw mut usage) };
    assert_eq!(waited, child, "{}", std::io::Error::last_os_error());
    let time = |t: libc::timeval| {
        let (seconds, micros) = (t.tv_sec.try_into(), t.tv_usec.try_into());
        Duration::from_secs(seconds.unwrap_or(0)) + Duration::from_micros(micros.unwrap_or(0))
    };
    let kib = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    (
        ExitStatus::from_raw(status),
        time(usage.ru_utime) + time(usage.ru_stime),
        kib << 10,
    )
}

/// The middle one, and the least and the greatest.
pub fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.last()) {
        (Some(&least), Some(&most)) => (values[values.len() / 2], least, most),
        _ => (f64::NAN, f64::NAN, f64::NAN),
    }
}
