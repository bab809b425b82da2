//! What a run costs: wall time, processor time, memory, requests.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process_group};

use super::support::process::Process;

/// How often a command's processes are looked at for their peak memory, which
/// only grows: what they had less than this before their end may be missed. A
/// look costs some 50 µs.
const LOOK: Duration = Duration::from_millis(20);

/// No command takes longer; one that does is killed, with all it started.
const LIMIT: Duration = Duration::from_secs(300);

/// One run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// From the start of the command to its end.
    pub wall: Duration,
    /// User and system time of every process on the client's side.
    pub cpu: Duration,
    /// The same of the store.
    pub store_cpu: Duration,
    /// The sum of the peak resident memory of each of those processes, bytes.
    pub peak: u64,
    /// Requests to the store.
    pub requests: u64,
    /// Bytes of plaintext.
    pub bytes: u64,
}

impl Sample {
    /// GiB of plaintext.
    pub fn gib(&self) -> f64 {
        self.bytes as f64 / (1_u64 << 30) as f64
    }

    /// GiB a second.
    pub fn rate(&self) -> f64 {
        self.gib() / self.wall.as_secs_f64()
    }

    /// Processor seconds a GiB.
    pub fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() / self.gib()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>7.3} s wall, {:>7.3} s cpu ({:.3} the store's), {:>5} MiB, {} requests",
            self.wall.as_secs_f64(),
            self.cpu.as_secs_f64(),
            self.store_cpu.as_secs_f64(),
            self.peak >> 20,
            self.requests
        )
    }
}

/// Runs a command to its end, with the processes that serve it beside; says
/// what it said if it fails.
pub fn run(command: &mut Command, served_by: &[Process]) -> Result<Sample, String> {
    for process in served_by {
        forget_peak(process);
    }
    let served = || -> Duration { served_by.iter().map(|p| cpu_of(p.pid)).sum() };
    let before = served();
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let (pid, mut stderr) = (child.id(), child.stderr.take().unwrap());
    let (ended, end) = mpsc::channel::<()>();
    let (words, peaks, (status, cpu, largest), wall) = std::thread::scope(|scope| {
        let words = scope.spawn(move || {
            let mut words = String::new();
            let _ = stderr.read_to_string(&mut words);
            words
        });
        let peaks = scope.spawn(move || {
            let mut peaks = BTreeMap::new();
            while end.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
                look(pid, &mut peaks);
                if begun.elapsed() > LIMIT {
                    let group = rustix::process::Pid::from_raw(pid.try_into().unwrap());
                    let _ = kill_process_group(group.unwrap(), Signal::KILL);
                }
            }
            peaks
        });
        let waited = wait(pid);
        let wall = begun.elapsed();
        drop(ended);
        (words.join().unwrap(), peaks.join().unwrap(), waited, wall)
    });
    if !status.success() {
        let last = words.trim().lines().last().unwrap_or("").to_owned();
        return Err(format!("{status}: {last}"));
    }
    // What wait4 tells includes what this program had when it forked, so it
    // is for commands that ended before they were looked at.
    let seen: u64 = peaks.values().sum();
    let own = if seen > 0 { seen } else { largest };
    Ok(Sample {
        wall,
        cpu: served().saturating_sub(before) + cpu,
        peak: own + served_by.iter().map(Process::peak_memory).sum::<u64>(),
        ..Sample::default()
    })
}

/// A process's peak memory is counted from here on (proc(5), clear_refs).
pub fn forget_peak(process: &Process) {
    let _ = std::fs::write(format!("/proc/{}/clear_refs", process.pid), "5");
}

/// Notes the peak memory of a process and its descendants.
fn look(pid: u32, peaks: &mut BTreeMap<u32, u64>) {
    let process = Process {
        pid,
        parent: 0,
        args: Vec::new(),
    };
    let peak = peaks.entry(pid).or_default();
    *peak = process.peak_memory().max(*peak);
    let children = process.proc(&format!("task/{pid}/children"));
    for child in String::from_utf8_lossy(&children).split_whitespace() {
        look(child.parse().unwrap(), peaks);
    }
}

/// Processor time of a running process.
pub fn cpu_of(pid: u32) -> Duration {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both pointers are to live locals of the right type. A process
    // that is gone makes an error, and no time.
    #[allow(unsafe_code, reason = "to the nanosecond; proc(5) has hundredths")]
    unsafe {
        if libc::clock_getcpuclockid(pid.try_into().unwrap(), &raw mut clock) == 0 {
            libc::clock_gettime(clock, &raw mut time);
        }
    }
    let (seconds, nanos) = (time.tv_sec.try_into(), time.tv_nsec.try_into());
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

/// The memory that processes have now, shared pages divided among those that
/// share them (proportional set size), in bytes.
pub fn shared_out(processes: &[Process]) -> u64 {
    let of = |process: &Process| {
        let rollup = String::from_utf8(process.proc("smaps_rollup")).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) << 10
    };
    processes.iter().map(of).sum()
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

/// Figures of several runs.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        match (values.first(), values.last()) {
            (Some(&least), Some(&most)) => Self {
                median: f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]),
                least,
                most,
            },
            _ => Self {
                median: f64::NAN,
                least: f64::NAN,
                most: f64::NAN,
            },
        }
    }
}

impl fmt::Display for Spread {
    /// `median (least to most)`, with as many decimals as are asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = f.precision().unwrap_or(2);
        let (median, least, most) = (self.median, self.least, self.most);
        write!(f, "{median:.places$} ({least:.places$} to {most:.places$})")
    }
}
