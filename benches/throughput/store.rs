//! The null store as a process of its own: what it costs is not its client's.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::measure;
use super::support::null_store::NullStore;

/// Asks this program to be the store.
pub const ROLE: &str = "--null-store";

/// Where it answers, and whom to trust: its first line.
#[derive(Serialize, Deserialize)]
struct Hello {
    http: u16,
    https: u16,
    authority: String,
}

/// What it can be told, one on a line; each is answered with [`Counters`].
#[derive(Serialize, Deserialize)]
enum Order {
    /// Keep bodies of up to so many bytes from now on.
    Keep(usize),
    /// Answer so many microseconds later.
    Latency(u64),
    /// Have so many objects of so many bytes, whose keys begin with this.
    Plant(String, u64, u64),
    Count,
}

/// Since it started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    pub requests: u64,
    /// Bytes of objects in answers.
    pub sent: u64,
}

/// Answers until standard input ends.
pub fn serve() {
    let store = NullStore::start_with(0, false);
    let (tls, authority) = store.tls();
    let hello = Hello {
        http: store.addr.port(),
        https: tls.port(),
        authority,
    };
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(&hello).unwrap()).unwrap();
    for line in std::io::stdin().lines() {
        let Ok(line) = line else { return };
        match serde_json::from_str(&line).unwrap() {
            Order::Keep(bytes) => store.remember(bytes),
            Order::Latency(micros) => store.latency(Duration::from_micros(micros)),
            Order::Plant(prefix, count, size) => {
                for i in 0..count {
                    store.plant_synthetic(&format!("{prefix}{i:08}"), size);
                }
            }
            Order::Count => {}
        }
        let counters = Counters {
            requests: store.total(),
            sent: store.sent(),
        };
        writeln!(out, "{}", serde_json::to_string(&counters).unwrap()).unwrap();
    }
}

/// A running one; it ends with this.
pub struct Store {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    before: Counters,
    /// `http://127.0.0.1:PORT`.
    pub http: String,
    /// `https://127.0.0.1:PORT`.
    pub https: String,
    /// What to trust for that, in PEM.
    pub authority: tempfile::NamedTempFile,
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
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let hello: Hello = serde_json::from_str(&line).unwrap();
        let mut authority = tempfile::NamedTempFile::new().unwrap();
        authority.write_all(hello.authority.as_bytes()).unwrap();
        Self {
            child,
            stdin,
            stdout,
            before: Counters::default(),
            http: format!("http://127.0.0.1:{}", hello.http),
            https: format!("https://127.0.0.1:{}", hello.https),
            authority,
        }
    }

    /// Keeps bodies of up to so many bytes from now on.
    pub fn keep(&mut self, bytes: usize) {
        self.order(&Order::Keep(bytes));
    }

    /// Answers so much later from now on.
    pub fn latency(&mut self, latency: Duration) {
        let micros = latency.as_micros().try_into().unwrap();
        self.order(&Order::Latency(micros));
    }

    /// Has `count` objects of `size` bytes, named by `BUCKET/PREFIX`.
    pub fn plant(&mut self, prefix: &str, count: u64, size: u64) {
        self.order(&Order::Plant(prefix.to_owned(), count, size));
    }

    /// What there was since this was asked last.
    pub fn count(&mut self) -> Counters {
        let now = self.order(&Order::Count);
        let before = std::mem::replace(&mut self.before, now);
        Counters {
            requests: now.requests - before.requests,
            sent: now.sent - before.sent,
        }
    }

    /// Its processor time so far.
    pub fn cpu(&self) -> Duration {
        measure::cpu_of(self.child.id())
    }

    fn order(&mut self, order: &Order) -> Counters {
        let order = serde_json::to_string(order).unwrap();
        writeln!(self.stdin.as_mut().unwrap(), "{order}").unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}
