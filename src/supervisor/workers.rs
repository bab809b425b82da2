//! The token workers: which run, which wait for their next start, which are
//! latched. Nothing here waits; what the server must hear goes to `outbox`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use crate::config::{GcmIv, Token};
use crate::control::ToServer;
use crate::token::worker::{ABSENT, LINK_CLOSED, LOCKED, MISCONFIGURED};
use crate::token::{Attempt, Latches};

use super::backoff::Backoff;

/// A worker that was lost is back at once, and does not hammer a dead HSM; the
/// longest pause leaves a client with the usual `call_timeout` of 10 s enough
/// of it once the HSM is back.
const LOST_DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// What an operator must mend is looked at again without him, but seldom; what
/// mended itself at once is in service again within 5 s, a login included.
const MISCONFIGURED_DELAYS: (Duration, Duration) =
    (Duration::from_secs(4), Duration::from_secs(60));
/// How long a worker may take to notice that its link is closed: it has
/// nothing to finish, but may be inside its module, even logging in.
const LEAVE: Duration = Duration::from_secs(5);
/// The same for one whose token was reconfigured: the server may let requests
/// finish on the old link.
const RETIRE: Duration = Duration::from_secs(15);

/// How often it is looked whether a worker that stands in the way has ended.
const LEAVING_TICK: Duration = Duration::from_millis(20);

/// Starts a worker process: the child, and the server's end of its link.
pub(super) type Spawn = fn(&Token, &Path) -> io::Result<(Child, OwnedFd)>;

/// All workers.
#[derive(Debug)]
pub(super) struct Workers {
    spawn: Spawn,
    exe: PathBuf,
    latches: Latches,
    list: Vec<Worker>,
    leaving: Vec<Leaving>,
    /// What the server must be told, in order.
    pub(super) outbox: Vec<(ToServer, Option<OwnedFd>)>,
}

#[derive(Debug)]
struct Worker {
    token: Token,
    generation: u64,
    state: State,
    lost: Backoff,
    misconfigured: Backoff,
    /// When somebody last said that he had mended something.
    reloaded: Instant,
}

#[derive(Debug)]
enum State {
    Running {
        child: Child,
        since: Instant,
        attempt: Attempt,
    },
    Waiting {
        until: Instant,
    },
    /// Its PIN was refused; only a reload looks at it again.
    Latched,
}

/// A process that is to end by itself, and is killed if it does not.
#[derive(Debug)]
struct Leaving {
    token: String,
    child: Child,
    attempt: Attempt,
    kill_at: Instant,
}

impl Worker {
    fn new(token: Token, now: Instant) -> Self {
        Self {
            token,
            generation: 0,
            state: State::Waiting { until: now },
            lost: Backoff::new(LOST_DELAYS.0, LOST_DELAYS.1),
            misconfigured: Backoff::new(MISCONFIGURED_DELAYS.0, MISCONFIGURED_DELAYS.1),
            reloaded: now,
        }
    }

    /// Sets a new state; the process of the old one is to leave by `kill_at`.
    fn switch(&mut self, state: State, kill_at: Instant) -> Option<Leaving> {
        match std::mem::replace(&mut self.state, state) {
            State::Running { child, attempt, .. } => Some(Leaving {
                token: self.token.name.clone(),
                child,
                attempt,
                kill_at,
            }),
            State::Waiting { .. } | State::Latched => None,
        }
    }

    fn down(&self, health: &str, detail: String, hint: &str) -> (ToServer, Option<OwnedFd>) {
        let token = self.token.name.clone();
        tracing::warn!(token, health, hint, "{detail}");
        let (health, hint) = (health.to_owned(), hint.to_owned());
        let message = ToServer::WorkerDown {
            token,
            health,
            detail,
            hint,
        };
        (message, None)
    }

    fn locked(&self) -> (ToServer, Option<OwnedFd>) {
        self.down(
            "locked",
            "the token refused its PIN; it is not tried again".into(),
            "correct the PIN file, then reload the agent (SIGHUP); if the fault was the token's, `touch` the file before",
        )
    }
}

impl Workers {
    pub(super) fn new(spawn: Spawn, exe: PathBuf, latches: Latches, tokens: &[Token]) -> Self {
        let now = Instant::now();
        Self {
            spawn,
            exe,
            latches,
            list: tokens
                .iter()
                .map(|token| Worker::new(token.clone(), now))
                .collect(),
            leaving: Vec::new(),
            outbox: Vec::new(),
        }
    }

    /// A new server knows no worker yet.
    pub(super) fn server_started(&mut self, now: Instant) {
        self.outbox.clear();
        for worker in &mut self.list {
            match worker.state {
                State::Latched => self.outbox.push(worker.locked()),
                _ => self
                    .leaving
                    .extend(worker.switch(State::Waiting { until: now }, now)),
            }
        }
    }

    /// The other end of every link is gone, and so are the workers soon.
    pub(super) fn server_ended(&mut self, now: Instant) {
        self.outbox.clear();
        for worker in &mut self.list {
            if matches!(worker.state, State::Running { .. }) {
                let state = State::Waiting { until: now };
                let patience = LEAVE.max(worker.token.call_timeout.duration());
                self.leaving.extend(worker.switch(state, now + patience));
            }
        }
    }

    /// Uses these tokens from now on. Unchanged workers run on; whatever
    /// waits or is latched is looked at again.
    pub(super) fn reconfigure(&mut self, tokens: &[Token], now: Instant) {
        let mut old = std::mem::take(&mut self.list);
        for token in tokens {
            let found = old.iter().position(|w| w.token.name == token.name);
            let mut worker = match found {
                Some(at) => old.swap_remove(at),
                None => Worker::new(token.clone(), now),
            };
            let running = matches!(worker.state, State::Running { .. });
            if !(running && same(&worker.token, token)) {
                worker.misconfigured.reset();
                if running {
                    // The server lets go of it, and it ends.
                    self.outbox.push(worker.down(
                        "replaced",
                        "its configuration was changed".into(),
                        "it comes back by itself",
                    ));
                }
                let state = State::Waiting { until: now };
                let patience = RETIRE.max(worker.token.call_timeout.duration());
                self.leaving.extend(worker.switch(state, now + patience));
            }
            worker.token = token.clone();
            worker.reloaded = now;
            self.list.push(worker);
        }
        for mut removed in old {
            let state = State::Waiting { until: now };
            self.leaving.extend(removed.switch(state, now + RETIRE));
        }
    }

    /// The server gave up on this worker: it is killed, and another follows.
    pub(super) fn replace(&mut self, token: &str, generation: u64, reason: &str, now: Instant) {
        let Some(worker) = self.list.iter_mut().find(|w| w.token.name == token) else {
            return;
        };
        let State::Running { since, .. } = worker.state else {
            return;
        };
        if worker.generation != generation {
            return;
        }
        let until = now + worker.lost.after(now.saturating_duration_since(since));
        self.leaving
            .extend(worker.switch(State::Waiting { until }, now));
        self.outbox.push(worker.down(
            "recovering",
            format!("the token worker was replaced: {reason}"),
            "it comes back by itself",
        ));
        self.kill_overdue(now);
    }

    /// Starts what is due. Only while a server serves.
    pub(super) fn start_due(&mut self, now: Instant) {
        for worker in &mut self.list {
            if !matches!(worker.state, State::Waiting { until } if until <= now) {
                continue;
            }
            let attempt = match Attempt::now(&worker.token) {
                Ok(attempt) => attempt,
                Err(error) => {
                    let until = now + worker.misconfigured.after(Duration::ZERO);
                    worker.state = State::Waiting { until };
                    self.outbox.push(worker.down(
                        "misconfigured",
                        format!("cannot find the PIN file: {error}"),
                        "put it back, then reload the agent (SIGHUP)",
                    ));
                    continue;
                }
            };
            // One that was told to go may still be logging in with this very
            // PIN: its answer comes first.
            let name = &worker.token.name;
            if self
                .leaving
                .iter()
                .any(|old| old.token == *name && old.attempt == attempt)
            {
                let until = now + LEAVING_TICK;
                worker.state = State::Waiting { until };
                continue;
            }
            if self.latches.holds(&worker.token.name, &attempt) {
                worker.state = State::Latched;
                self.outbox.push(worker.locked());
                continue;
            }
            match (self.spawn)(&worker.token, &self.exe) {
                Ok((child, link)) => {
                    worker.generation += 1;
                    let (pid, token) = (child.id(), worker.token.name.clone());
                    let generation = worker.generation;
                    tracing::info!(token, worker = pid, generation, "token worker started");
                    let message = ToServer::Worker {
                        token,
                        pid,
                        generation,
                    };
                    self.outbox.push((message, Some(link)));
                    worker.state = State::Running {
                        child,
                        since: now,
                        attempt,
                    };
                }
                Err(error) => {
                    let until = now + worker.lost.after(Duration::ZERO);
                    worker.state = State::Waiting { until };
                    self.outbox.push(worker.down(
                        "recovering",
                        format!("cannot start the token worker: {error}"),
                        "it is tried again",
                    ));
                }
            }
        }
    }

    /// Notices who ended, and decides when the next one starts.
    pub(super) fn reap(&mut self, now: Instant) {
        for worker in &mut self.list {
            let State::Running {
                child,
                since,
                attempt,
            } = &mut worker.state
            else {
                continue;
            };
            let Some(status) = ended(child) else { continue };
            let life = now.saturating_duration_since(*since);
            let how = describe(status);
            match code(status) {
                Some(LOCKED) => {
                    remember(&mut self.latches, &worker.token.name, attempt);
                    // Latched at the next look, unless the PIN file is
                    // another than the one that was refused.
                    worker.state = State::Waiting { until: now };
                }
                Some(MISCONFIGURED) => {
                    // One that began before the reload may have met what has
                    // been mended since.
                    let until = match *since < worker.reloaded {
                        true => now,
                        false => now + worker.misconfigured.after(life),
                    };
                    worker.state = State::Waiting { until };
                    self.outbox.push(worker.down(
                        "misconfigured",
                        "the token worker cannot use the token as configured; its log line says why".into(),
                        "`strongroom doctor` names the fault and its remedy; then reload the agent (SIGHUP)",
                    ));
                }
                Some(ABSENT) => {
                    let until = now + worker.lost.after(life);
                    worker.state = State::Waiting { until };
                    self.outbox.push(worker.down(
                        "recovering",
                        "the module offers no such token at present".into(),
                        "is the HSM reachable? `strongroom doctor` shows what the module offers",
                    ));
                }
                other => {
                    let until = now + worker.lost.after(life);
                    worker.state = State::Waiting { until };
                    let detail = match other {
                        Some(LINK_CLOSED) => "the token worker's link was closed".to_owned(),
                        _ => format!("the token worker ended ({how})"),
                    };
                    self.outbox
                        .push(worker.down("recovering", detail, "it comes back by itself"));
                }
            }
        }
        let latches = &mut self.latches;
        self.leaving.retain_mut(|leaving| {
            let status = ended(&mut leaving.child);
            if status.and_then(code) == Some(LOCKED) {
                remember(latches, &leaving.token, &leaving.attempt);
            }
            status.is_none()
        });
    }

    pub(super) fn kill_overdue(&mut self, now: Instant) {
        for leaving in self.leaving.iter_mut().filter(|l| l.kill_at <= now) {
            // It fails only for a process that has already ended.
            let _ = leaving.child.kill();
            // Reaped by SIGCHLD; looked at again later in case it is stuck in
            // the kernel.
            leaving.kill_at = now + RETIRE;
        }
    }

    /// When the next start or kill is due.
    pub(super) fn next(&self, may_start: bool) -> Option<Instant> {
        let starts = self.list.iter().filter_map(|w| match w.state {
            State::Waiting { until } if may_start => Some(until),
            _ => None,
        });
        starts.chain(self.leaving.iter().map(|l| l.kill_at)).min()
    }

    /// Whether no process is left.
    pub(super) fn gone(&self) -> bool {
        let running = |w: &Worker| matches!(w.state, State::Running { .. });
        self.leaving.is_empty() && !self.list.iter().any(running)
    }
}

fn ended(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().unwrap_or_else(|error| {
        tracing::error!(%error, child = child.id(), "cannot wait for a child");
        None
    })
}

fn code(status: ExitStatus) -> Option<u8> {
    status.code().and_then(|code| u8::try_from(code).ok())
}

/// `exit code 1`, or `signal 9`.
pub(super) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn remember(latches: &mut Latches, token: &str, attempt: &Attempt) {
    if let Err(error) = latches.set(token, attempt) {
        tracing::error!(token, %error, "cannot store the PIN latch: a restart of the agent would try the PIN again");
    }
}

/// Whether a worker started for `a` serves `b`. Written out so that a new
/// setting cannot be forgotten here.
fn same(a: &Token, b: &Token) -> bool {
    fn parts(token: &Token) -> impl PartialEq + '_ {
        let Token {
            name,
            module,
            token_label,
            serial,
            pin_file,
            pin_credential,
            gcm_iv,
            sessions,
            call_timeout,
            network,
            verify_wraps,
        } = token;
        let iv: GcmIv = *gcm_iv;
        let place = (module, token_label, serial, pin_file, pin_credential);
        let work = (iv, sessions, call_timeout, verify_wraps);
        (name, place, work, network)
    }
    parts(a) == parts(b)
}
