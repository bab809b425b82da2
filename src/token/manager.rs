//! One task per token that owns its state: it takes new workers, runs their
//! hello, gate and canaries, and publishes what callers may use.
//!
//! A link and the key ids that are valid on it are published together, so
//! that no id is ever used on another worker's link.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::calls::Inner;
use super::error::TokenError;
use super::link::Link;
use super::opening::open_key;
use super::protocol::{Frame, KeySpec, Reply, TokenInfo};
use super::state::{Health, Slot, State};

/// How long a new worker may take to load the module, log in and say hello.
/// CloudHSM's client takes seconds when the cluster is busy; a worker that
/// takes longer is replaced.
const HELLO_PATIENCE: Duration = Duration::from_secs(60);
/// How often an idle token is probed, and keys that failed for a temporary
/// reason are tried again. Ready means a proof within the last 30 s, so one
/// probe may fail.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// What the manager is told.
pub(super) enum Command {
    Attach(UnixStream, u32),
    SetKeys(Vec<KeySpec>),
    Down(Health, String, Option<String>),
    /// A call on this worker passed its deadline.
    Stuck(u32),
    Hello(u64, Result<TokenInfo, TokenError>),
    Keys(u64, Vec<Slot>),
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
}

/// Why there is no worker: health, detail, hint.
type Verdict = (Health, String, Option<String>);

impl Manager {
    pub(super) fn new(inner: Arc<Inner>, state: watch::Sender<State>) -> Self {
        Self {
            inner,
            state,
            link: None,
            specs: Vec::new(),
            generation: 0,
            task: None,
            refused: false,
            verdict: None,
        }
    }

    /// Runs until the last handle is dropped, whose end closes `commands`.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut tick = interval(PROBE_EVERY);
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
            Command::Attach(stream, pid) => self.attach(stream, pid),
            Command::SetKeys(specs) => self.set_keys(specs),
            Command::Down(health, detail, hint) => self.down((health, detail, hint)),
            Command::Stuck(pid) => {
                if self.link.as_ref().is_some_and(|link| link.pid == pid) {
                    self.stuck();
                }
            }
            Command::Hello(generation, hello) if generation == self.generation => {
                self.hello(hello);
            }
            Command::Keys(generation, keys) if generation == self.generation => self.opened(keys),
            Command::Hello(..) | Command::Keys(..) => {}
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
        } else if !(self.refused && self.state.borrow().health == verdict.0) {
            self.drop_link();
            self.publish_down(verdict);
        }
    }

    fn attach(&mut self, stream: UnixStream, pid: u32) {
        self.drop_link();
        self.refused = false;
        let (link, hello) = match Link::new(stream, pid) {
            Ok(new) => new,
            Err(error) => return self.lost(&format!("the worker's socket is unusable: {error}")),
        };
        self.link = Some(Arc::clone(&link));
        let (inner, generation) = (Arc::clone(&self.inner), self.generation);
        self.start(async move {
            let hello = await_hello(hello).await;
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
                    "logged in"
                );
                let link = self.link.clone();
                self.state.send_modify(|state| {
                    state.info = Some(info);
                    state.link = link;
                });
                // Ids of keys opened on a former link mean nothing on this.
                self.publish_specs(false);
                self.open_keys();
            }
            Err(error) => {
                let hint = error.hint().map(str::to_owned);
                let health = match error {
                    TokenError::Locked { .. } => Health::Locked,
                    TokenError::Misconfigured { .. } => Health::Misconfigured,
                    _ => Health::Recovering,
                };
                tracing::warn!(token = self.inner.name, "{error}");
                // Where it left no words of its own, the supervisor's count.
                let verdict = self.verdict.take();
                let verdict = verdict.filter(|_| health == Health::Recovering);
                self.drop_link();
                self.refused = verdict.is_none();
                self.publish_down(verdict.unwrap_or((health, error.to_string(), hint)));
            }
        }
    }

    fn set_keys(&mut self, specs: Vec<KeySpec>) {
        self.specs = specs;
        self.publish_specs(true);
        if self.state.borrow().link.is_some() {
            self.open_keys();
        }
    }

    /// Publishes the configured keys; those that did not change keep what
    /// they have if `keep`.
    fn publish_specs(&mut self, keep: bool) {
        self.state.send_modify(|state| {
            let keys = self.specs.iter().map(|spec| {
                let former = state.keys.iter().find(|key| key.spec == *spec);
                former
                    .filter(|key| keep && key.opened.is_some())
                    .cloned()
                    .unwrap_or_else(|| Slot::pending(spec.clone()))
            });
            state.keys = Arc::new(keys.collect());
        });
    }

    /// Runs gate and canary for every key that has not passed on this link.
    fn open_keys(&mut self) {
        let state = self.state.borrow().clone();
        let Some(link) = state.link else { return };
        let (inner, generation) = (Arc::clone(&self.inner), self.generation);
        self.start(async move {
            let mut keys = Vec::with_capacity(state.keys.len());
            for key in state.keys.iter() {
                if key.opened.is_some() {
                    keys.push(key.clone());
                    continue;
                }
                let outcome = open_key(&inner, &link, &key.spec).await;
                if let Err(error) = &outcome {
                    tracing::error!(token = inner.name, hint = error.hint(), "{error}");
                }
                keys.push(Slot {
                    spec: key.spec.clone(),
                    problem: outcome.as_ref().err().cloned(),
                    opened: outcome.ok(),
                });
            }
            inner.tell(Command::Keys(generation, keys));
        });
    }

    fn opened(&mut self, keys: Vec<Slot>) {
        let good = keys.is_empty() || keys.iter().any(|key| key.opened.is_some());
        let problem = keys
            .iter()
            .filter(|key| !key.temporary())
            .chain(&keys)
            .find_map(|key| key.problem.as_ref())
            .filter(|_| !good);
        let health = match problem {
            None => Health::Ready,
            Some(TokenError::Misconfigured { .. }) => Health::Misconfigured,
            Some(_) => Health::Recovering,
        };
        let detail = problem.map(ToString::to_string);
        let hint = problem.and_then(|problem| problem.hint().map(str::to_owned));
        self.state.send_modify(|state| {
            state.health = health;
            state.detail = detail;
            state.hint = hint;
            state.keys = Arc::new(keys);
        });
    }

    fn tick(&mut self) {
        let state = self.state.borrow().clone();
        if state.link.is_none() {
            return;
        }
        // A task still at work means that keys are being opened.
        let busy = self.task.as_ref().is_some_and(|task| !task.is_finished());
        if !busy && state.keys.iter().any(Slot::temporary) {
            self.open_keys();
        }
        if state.health == Health::Ready && self.inner.idle_for() >= PROBE_EVERY {
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move {
                if let Err(error) = inner.probe().await {
                    tracing::warn!(token = inner.name, "the probe failed: {error}");
                }
            });
        }
    }

    fn stuck(&mut self) {
        // Closing the link makes a healthy worker end by itself; one that is
        // stuck in the module is killed by the supervisor.
        self.lost("the token did not answer in time; its worker is being replaced");
    }

    fn lost(&mut self, detail: &str) {
        let verdict = self.verdict.take();
        self.drop_link();
        tracing::warn!(token = self.inner.name, "{detail}");
        self.publish_down(verdict.unwrap_or((Health::Recovering, detail.to_owned(), None)));
    }

    /// Whether the current worker has said hello.
    fn greeted(&self) -> bool {
        let state = self.state.borrow();
        matches!((&self.link, &state.link), (Some(ours), Some(told)) if Arc::ptr_eq(ours, told))
    }

    /// Ends the current link and everything that runs on it.
    fn drop_link(&mut self) {
        self.generation += 1;
        self.verdict = None;
        if let Some(task) = self.task.take() {
            task.abort();
        }
        if let Some(link) = self.link.take() {
            link.close();
        }
    }

    fn publish_down(&mut self, (health, detail, hint): Verdict) {
        self.state.send_modify(|state| {
            state.health = health;
            state.detail = Some(detail);
            state.hint = hint;
            state.link = None;
        });
    }

    fn start(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(former) = self.task.replace(tokio::spawn(work).abort_handle()) {
            former.abort();
        }
    }
}

async fn await_hello(hello: oneshot::Receiver<Frame>) -> Result<TokenInfo, TokenError> {
    let frame = tokio::time::timeout(HELLO_PATIENCE, hello)
        .await
        .map_err(|_| TokenError::Timeout)?
        .map_err(|_| TokenError::away("the token's worker ended before it said hello"))?;
    match frame.decode() {
        Ok(Reply::Token(info)) => Ok(info),
        Ok(Reply::Failed(failure)) => Err(failure.into()),
        _ => Err(TokenError::away(
            "the token's worker said something strange",
        )),
    }
}
