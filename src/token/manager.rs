//! One task per token that owns its state: it takes new workers, runs their
//! hello, gate and canaries, probes, and publishes what callers may use.
//!
//! A link and the key ids that are valid on it are published together, so
//! that no id is ever used on another worker's link. There is one recovery at
//! a time, because there is one worker at a time: the supervisor starts the
//! next when the last has ended, and whatever a former one still reports is
//! dropped.

mod keys;
mod watching;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::calls::Inner;
use super::error::TokenError;
use super::health::{Health, Verdict};
use super::link::Link;
use super::protocol::{FailureKind, Frame, KeySpec, Reply, TokenInfo};
use super::retry::Retry;
use super::state::{Slot, State};

/// How long a new worker may take to load the module, log in, open its
/// sessions and say hello, in `call_timeout`s, and at least. It has a deadline
/// of its own for each call into the module; this is for one that does not
/// even keep those, a stopped process say.
const HELLO_PATIENCE: (u32, Duration) = (30, Duration::from_secs(60));
/// How often the state is looked at when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// A recovery that takes longer than this is told as "down".
const DOWN_AFTER: Duration = Duration::from_secs(30);

/// A worker that finds no key of those that were there is replaced: at most so
/// often, twice as long from time to time, up to the second; each is a log-in.
const FRESH: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));

/// What the manager is told.
pub(super) enum Command {
    Attach(OwnedFd, u32),
    /// The worker is to be let go, said hello or not.
    Detach(String),
    SetKeys(Vec<KeySpec>),
    Down(Health, String, Option<String>),
    /// A call on this worker passed its deadline.
    Stuck(u32),
    /// A call with this worker's key failed for no reason of its own.
    Doubt(u32, u32, String),
    /// This worker's key was refused for a reason that somebody must mend.
    Refused(u32, u32, TokenError),
    Hello(u64, Result<TokenInfo, TokenError>),
    /// How an attempt to open keys ended.
    Keys(u64, Vec<Slot>),
    /// How a probe of this key ended.
    Probed(u64, Option<String>, Result<(), TokenError>),
}

pub(super) struct Manager {
    inner: Arc<Inner>,
    state: watch::Sender<State>,
    /// The current link, before and after its hello.
    link: Option<Arc<Link>>,
    specs: Vec<KeySpec>,
    /// Counts links; what a former one's tasks report is dropped.
    generation: u64,
    task: Option<AbortHandle>,
    /// The last worker said itself why it cannot serve.
    refused: bool,
    /// What the supervisor said while a hello was outstanding.
    verdict: Option<Verdict>,
    /// Since when no worker has served.
    away_since: Option<Instant>,
    /// When keys that did not open are tried again.
    retry: Retry,
    /// Keys that have been in service since this server started.
    known: Vec<KeySpec>,
    /// When a worker that finds none of them is next replaced, and how long
    /// after that again.
    fresh: (Instant, Duration),
    /// Counts attempts to open keys; what a former one reports is dropped.
    opening: u64,
    probing: bool,
    last_probe: Instant,
    /// Keys whose last probe failed, and why.
    probe_failures: BTreeMap<String, String>,
    /// Which key is next.
    probe_turn: usize,
}

impl Manager {
    pub(super) fn new(inner: Arc<Inner>, state: watch::Sender<State>) -> Self {
        let now = Instant::now();
        Self {
            inner,
            state,
            link: None,
            specs: Vec::new(),
            generation: 0,
            task: None,
            refused: false,
            verdict: None,
            away_since: Some(now),
            retry: Retry::new(),
            known: Vec::new(),
            fresh: (now, FRESH.0),
            opening: 0,
            probing: false,
            last_probe: now,
            probe_failures: BTreeMap::new(),
            probe_turn: 0,
        }
    }

    /// Runs until the last handle is dropped, whose end closes `commands`.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // A link that ends before its hello is the hello's to tell: the
            // worker may have said why it ends.
            let link = self.link.clone().filter(|_| self.greeted());
            let lost = async {
                match &link {
                    Some(link) => link.closed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.handle(command),
                    None => break,
                },
                () = lost => self.lost("the token's worker ended"),
                _ = tick.tick() => self.tick(),
            }
        }
        self.drop_link();
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Attach(socket, pid) => self.attach(socket, pid),
            Command::Detach(why) => self.lost(&why),
            Command::SetKeys(specs) => self.set_keys(specs),
            Command::Down(health, detail, hint) => {
                self.down(Verdict::new(health, detail).hint(hint));
            }
            Command::Stuck(pid) if self.is_current(pid) => {
                // Closing the link makes a healthy worker end by itself; one
                // that is stuck in the module is killed by the supervisor.
                self.lost("the token did not answer in time; its worker is being replaced");
            }
            Command::Doubt(pid, key, detail) if self.is_current(pid) => {
                tracing::warn!(token = self.inner.name, "{detail}");
                let name = self.key_name(key);
                self.probe(name);
            }
            Command::Refused(pid, key, error) if self.is_current(pid) => self.refuse(key, error),
            Command::Hello(generation, hello) if generation == self.generation => {
                self.hello(hello);
            }
            Command::Keys(opening, keys) if opening == self.opening => self.opened(keys),
            Command::Probed(generation, key, outcome) if generation == self.generation => {
                self.probed(key, outcome);
            }
            Command::Stuck(_)
            | Command::Doubt(..)
            | Command::Refused(..)
            | Command::Hello(..)
            | Command::Keys(..)
            | Command::Probed(..) => {}
        }
    }

    /// The supervisor knows an exit code; the worker's own words, where it
    /// left any, say more.
    fn down(&mut self, verdict: Verdict) {
        let awaited = self.link.is_some() && !self.greeted();
        if awaited {
            // The worker is gone, but its hello may still be in the socket;
            // the end of the link follows it.
            self.verdict = Some(verdict);
            return;
        }
        let known = self.state.borrow().health;
        let weaker = known == verdict.health || verdict.health == Health::Recovering;
        if !(self.refused && weaker) {
            self.drop_link();
            self.publish_away(verdict);
        }
    }

    fn attach(&mut self, socket: OwnedFd, pid: u32) {
        let replaced = self.link.is_some();
        self.drop_link();
        self.refused = false;
        if replaced {
            let detail = "its worker is being replaced";
            self.publish_away(Verdict::new(Health::Recovering, detail));
        }
        let (link, hello) = match Link::new(socket, pid, Arc::clone(&self.inner.tally)) {
            Ok(new) => new,
            Err(error) => return self.lost(&format!("the worker's socket is unusable: {error}")),
        };
        self.link = Some(Arc::clone(&link));
        let (inner, generation) = (Arc::clone(&self.inner), self.generation);
        let seen = self.state.borrow().info.is_some();
        let (calls, least) = HELLO_PATIENCE;
        let patience = least.max(calls * self.inner.call_timeout.get());
        self.start(async move {
            let hello = await_hello(hello, seen, patience).await;
            if matches!(hello, Err(TokenError::Timeout)) {
                inner.report_stuck(&link);
            }
            inner.tell(Command::Hello(generation, hello));
        });
    }

    fn hello(&mut self, hello: Result<TokenInfo, TokenError>) {
        match hello {
            Ok(info) => {
                tracing::info!(
                    token = self.inner.name,
                    label = info.label,
                    serial = info.serial,
                    gcm_iv = info.gcm_iv,
                    sessions = info.sessions,
                    "logged in"
                );
                let sessions = info.sessions;
                // In one step: an id from a former link may be another key's
                // on this one.
                let pending = self.specs.iter().cloned().map(Slot::pending);
                let keys = Arc::new(pending.collect());
                let link = self.link.clone();
                self.state.send_modify(|state| {
                    state.info = Some(info);
                    state.keys = keys;
                    state.link.clone_from(&link);
                });
                if let Some(link) = link {
                    link.admit(sessions);
                }
                self.retry.reset();
                self.last_probe = Instant::now();
                self.open_keys();
            }
            Err(error) => {
                tracing::warn!(token = self.inner.name, "{error}");
                let own = Verdict::of(&error);
                // Where it left no words of its own, the supervisor's count.
                let verdict = self.verdict.take();
                let verdict = verdict.filter(|_| own.health == Health::Recovering);
                self.drop_link();
                self.refused = verdict.is_none();
                self.publish_away(verdict.unwrap_or(own));
            }
        }
    }

    fn lost(&mut self, detail: &str) {
        let verdict = self.verdict.take();
        self.drop_link();
        let lost = || Verdict::new(Health::Recovering, detail);
        self.publish_away(verdict.unwrap_or_else(lost));
    }

    /// Whether the current worker has said hello.
    fn greeted(&self) -> bool {
        let state = self.state.borrow();
        matches!((&self.link, &state.link), (Some(ours), Some(told)) if Arc::ptr_eq(ours, told))
    }

    fn is_current(&self, pid: u32) -> bool {
        self.link.as_ref().is_some_and(|link| link.pid == pid)
    }

    /// Ends the current link and everything that runs on it.
    fn drop_link(&mut self) {
        self.generation += 1;
        self.opening += 1;
        self.verdict = None;
        self.probing = false;
        self.probe_failures.clear();
        self.inner.doubted.store(false, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            task.abort();
        }
        if let Some(link) = self.link.take() {
            link.close();
        }
    }

    /// There is no worker, and this is why.
    fn publish_away(&mut self, verdict: Verdict) {
        self.away_since.get_or_insert_with(Instant::now);
        self.state.send_modify(|state| state.link = None);
        self.publish(verdict);
    }

    /// Publishes a health, and logs it if it is another than before.
    fn publish(&mut self, verdict: Verdict) {
        let Verdict {
            mut health,
            detail,
            hint,
        } = verdict;
        let long = |since: Instant| since.elapsed() >= DOWN_AFTER;
        if matches!(health, Health::Starting | Health::Recovering)
            && self.away_since.is_some_and(long)
        {
            health = Health::Down;
        }
        let token = &self.inner.name;
        let former = self.state.borrow().health;
        let why = detail.as_deref().unwrap_or_default();
        let (from, to) = (former.as_str(), health.as_str());
        if former == health {
            // Nothing new.
        } else if health == Health::Ready {
            tracing::info!(token, from, to, "token health");
        } else {
            tracing::warn!(token, from, to, hint, "token health: {why}");
        }
        self.state.send_if_modified(|state| {
            let told = (&state.health, &state.detail, &state.hint);
            let changed = told != (&health, &detail, &hint);
            (state.health, state.detail, state.hint) = (health, detail, hint);
            changed
        });
    }

    fn start(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(former) = self.task.replace(tokio::spawn(work).abort_handle()) {
            former.abort();
        }
    }
}

/// Waits for a worker's first word. A token that is not there is one to be
/// configured; unless it was `seen` before: then it is away.
async fn await_hello(
    hello: oneshot::Receiver<Frame>,
    seen: bool,
    patience: Duration,
) -> Result<TokenInfo, TokenError> {
    let frame = tokio::time::timeout(patience, hello)
        .await
        .map_err(|_| TokenError::Timeout)?
        .map_err(|_| TokenError::away("the token's worker ended before it said hello"))?;
    match frame.decode() {
        Ok(Reply::Token(info)) => Ok(info),
        Ok(Reply::Failed(failure)) if seen && failure.kind == FailureKind::Absent => {
            Err(TokenError::away(failure.detail))
        }
        Ok(Reply::Failed(failure)) => Err(failure.into()),
        _ => Err(TokenError::away(
            "the token's worker said something strange",
        )),
    }
}
