//! The null store as a process of its own: what it costs is not its client's.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::support::null_store::NullStore;

/// Asks this program to be the store.
pub const ROLE: &str = "--null-store";

/// Answers until standard input ends. A line there is the bytes of a body that
/// are kept from now on; it is answered with the number of requests so far.
pub fn serve() {
    let store = NullStore::start_with(0, false);
    let mut out = std::io::stdout();
    writeln!(out, "{}", store.addr.port()).unwrap();
    for line in std::io::stdin().lines() {
        let Ok(line) = line else { return };
        store.remember(line.parse().unwrap());
        writeln!(out, "{}", store.total()).unwrap();
    }
}

/// A running one; it ends with this.
pub struct Store {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    keep: u64,
    counted: u64,
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
}

impl Store {
    /// Drops what it is sent, until it is told to keep it.
    pub fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(ROLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        stdout.read_line(&mut port).unwrap();
        Self {
            child,
            stdin,
            stdout,
            keep: 0,
            counted: 0,
            endpoint: format!("http://127.0.0.1:{}", port.trim()),
        }
    }

    /// Keeps bodies of up to so many bytes from now on.
    pub fn keep(&mut self, bytes: u64) {
        self.keep = bytes;
        self.requests();
    }

    /// Requests since this was asked last.
    pub fn requests(&mut self) -> u64 {
        let mut line = String::new();
        writeln!(self.stdin.as_mut().unwrap(), "{}", self.keep).unwrap();
        self.stdout.read_line(&mut line).unwrap();
        let total: u64 = line.trim().parse().unwrap();
        total - std::mem::replace(&mut self.counted, total)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}
