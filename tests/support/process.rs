//! Child processes: the real binary, run with a deadline, and what `/proc`
//! says about a running one.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No command of a test runs longer than this.
const DEADLINE: Duration = Duration::from_secs(600);

/// The binary under test with an empty environment but PATH and HOME.
pub fn strongroom() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("RUST_BACKTRACE", "1");
    for name in ["LLVM_PROFILE_FILE", "TMPDIR"] {
        if let Some(setting) = std::env::var_os(name) {
            command.env(name, setting);
        }
    }
    command
}

/// Copies a program to where a test runs it. Another process does it: a file
/// that this one had open for writing is still open in whatever child another
/// thread is just starting, and cannot be run until that child is (ETXTBSY).
pub fn install(program: impl AsRef<OsStr>, to: &Path) {
    let copied = Command::new("install")
        .args(["-m", "755"])
        .arg(program.as_ref())
        .arg(to)
        .status()
        .unwrap();
    assert!(copied.success(), "{}: {copied}", to.display());
}

/// What a finished command left.
pub struct Run {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, as text.
    pub stderr: String,
    what: String,
}

impl Run {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: not JSON: {e}\n{}", self.what, self.text()))
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(
            self.code,
            Some(0),
            "{} failed:\n{}{}",
            self.what,
            self.stderr,
            self.text_head()
        );
        self
    }

    /// Asserts this exit code, and that standard error holds each of `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "{}: another exit code\n{}{}",
            self.what,
            self.stderr,
            self.text_head()
        );
        for word in words {
            assert!(
                self.stderr.contains(word),
                "{}: {word:?} is not in:\n{}",
                self.what,
                self.stderr
            );
        }
        self
    }

    fn text_head(&self) -> String {
        String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2000)]).into_owned()
    }
}

/// Runs a command to its end with these bytes as standard input.
#[track_caller]
pub fn run(command: &mut Command, stdin: &[u8]) -> Run {
    run_reading(command, &mut &stdin[..])
}

/// Runs a command to its end, feeding it what `stdin` reads.
#[track_caller]
pub fn run_reading(command: &mut Command, stdin: &mut (dyn Read + Send)) -> Run {
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let program = Path::new(command.get_program()).file_name();
    let what = format!(
        "`{} {}`",
        program.unwrap_or_default().to_string_lossy(),
        args.join(" ")
    );
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut to = child.stdin.take().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = std::thread::scope(|scope| {
        // A command that ends before it has read everything is no error here.
        scope.spawn(move || drop(std::io::copy(stdin, &mut to)));
        scope.spawn(|| out.read_to_end(&mut stdout).unwrap());
        scope.spawn(|| err.read_to_end(&mut stderr).unwrap());
        wait(&mut child, DEADLINE).unwrap_or_else(|| {
            child.kill().unwrap();
            child.wait().unwrap()
        })
    });
    Run {
        code: status.code(),
        stdout,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        what,
    }
}

/// Waits for a child to end, at most so long.
pub fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits until `check` gives something, at most so long.
pub fn eventually<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to one process.
pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid.unwrap(), signal);
    if signal == rustix::process::Signal::STOP {
        stopped(pid.unwrap().as_raw_nonzero().get().unsigned_abs());
    }
}

/// Waits until every thread of a process is stopped: the kernel tells one, and
/// that one the others, which work on until then.
pub fn stopped(pid: u32) {
    let still = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter();
        let mut states = threads.flatten().flatten().map(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The name stands in brackets, and may hold anything.
            let state = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.starts_with(['T', 'Z', 'X']));
            state.unwrap_or(true)
        });
        states.all(|stopped| stopped).then_some(())
    };
    assert!(
        eventually(Duration::from_secs(10), still).is_some(),
        "{pid} runs on"
    );
}

/// One running process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its command line.
    pub args: Vec<String>,
}

impl Process {
    /// Whether it still runs (a zombie does not).
    pub fn runs(&self) -> bool {
        status_field(self.pid, "State:").is_some_and(|state| !state.starts_with(['Z', 'X']))
    }

    /// The most memory it ever had resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        kib(&status_field(self.pid, "VmHWM:").unwrap_or_default())
    }

    /// The memory it has resident now, in bytes.
    pub fn memory(&self) -> u64 {
        kib(&status_field(self.pid, "VmRSS:").unwrap_or_default())
    }

    /// The memory that it alone has now, program and shared pages left out, in
    /// bytes.
    pub fn own_memory(&self) -> u64 {
        kib(&status_field(self.pid, "RssAnon:").unwrap_or_default())
    }

    /// A file of its `/proc` directory: `environ`, `cmdline`, `maps`, ….
    pub fn proc(&self, file: &str) -> Vec<u8> {
        std::fs::read(format!("/proc/{}/{file}", self.pid)).unwrap_or_default()
    }
}

/// A process and all its descendants, parents first.
pub fn tree(root: u32) -> Vec<Process> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let Some(parent) = status_field(pid, "PPid:").and_then(|p| p.parse().ok()) else {
            continue;
        };
        let mut process = Process {
            pid,
            parent,
            args: Vec::new(),
        };
        process.args = process
            .proc("cmdline")
            .split(|b| *b == 0)
            .filter(|a| !a.is_empty())
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .collect();
        all.push(process);
    }
    let mut found: Vec<Process> = all.iter().filter(|p| p.pid == root).cloned().collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next].pid;
        found.extend(all.iter().filter(|p| p.parent == parent).cloned());
        next += 1;
    }
    found
}

/// One field of `/proc/PID/task/TID/status` for every thread.
#[track_caller]
pub fn of_threads(process: &Process, field: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.pid)).unwrap();
    threads
        .flatten()
        .map(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|l| l.strip_prefix(field));
            line.unwrap_or("gone").trim().to_owned()
        })
        .filter(|value| value != "gone")
        .collect()
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

fn kib(field: &str) -> u64 {
    let number = field.split_whitespace().next().unwrap_or("0");
    number.parse::<u64>().unwrap_or(0) * 1024
}
