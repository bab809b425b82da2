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

use crate::secret::Secret32;

use super::canary::Canary;
use super::error::TokenError;
use super::handle::{Inner, Wrapped};
use super::link::Link;
use super::protocol::{Attributes, Frame, KeySpec, OpenedKey, Reply, Request, TokenInfo};

/// How long a new worker may take to load the module, log in and say hello.
/// CloudHSM's client takes seconds when the cluster is busy; a worker that
/// takes longer is replaced.
const HELLO_PATIENCE: Duration = Duration::from_secs(60);
/// How often an idle token is probed, and keys that failed for a temporary
/// reason are tried again. Ready means a proof within the last 30 s, so one
/// probe may fail.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// A token's health, as status, ready and logs tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// No worker has said hello yet.
    Starting,
    /// Logged in, and at least one key (if any is configured) works.
    Ready,
    /// The worker was lost; another is coming.
    Recovering,
    /// No worker can be started at present.
    Down,
    /// Somebody has to correct something.
    Misconfigured,
    /// The PIN was refused.
    Locked,
}

impl Health {
    /// Its name in status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Recovering => "recovering",
            Self::Down => "down",
            Self::Misconfigured => "misconfigured",
            Self::Locked => "locked",
        }
    }
}

/// A configured key's state on its token.
#[derive(Clone, Debug)]
pub struct KeyState {
    /// The key.
    pub spec: KeySpec,
    /// Whether it can be used now.
    pub ready: bool,
    /// Why not.
    pub problem: Option<String>,
    /// Its attributes, as the token reported them when it was last opened.
    pub attributes: Attributes,
    /// The token's own check value, if it gives one.
    pub check_value: Option<[u8; 3]>,
}

/// A configured key: what the token says of it once it passed gate and
/// canary, or why it did not pass.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) spec: KeySpec,
    pub(super) opened: Option<OpenedKey>,
    pub(super) problem: Option<TokenError>,
}

impl Slot {
    fn pending(spec: KeySpec) -> Self {
        Self {
            spec,
            opened: None,
            problem: None,
        }
    }

    /// Whether another attempt may end differently with nothing corrected.
    fn temporary(&self) -> bool {
        self.opened.is_none() && !matches!(self.problem, Some(TokenError::Misconfigured { .. }))
    }

    pub(super) fn report(&self, alive: bool) -> KeyState {
        let opened = self.opened.clone().unwrap_or_default();
        KeyState {
            spec: self.spec.clone(),
            ready: alive && self.opened.is_some(),
            problem: self.problem.as_ref().map(ToString::to_string),
            attributes: opened.attributes,
            check_value: opened.check_value,
        }
    }
}

/// What callers see.
#[derive(Clone)]
pub(super) struct State {
    pub(super) health: Health,
    pub(super) detail: Option<String>,
    pub(super) hint: Option<String>,
    pub(super) info: Option<TokenInfo>,
    /// A worker that said hello.
    pub(super) link: Option<Arc<Link>>,
    /// Every configured key, in the configuration's order.
    pub(super) keys: Arc<Vec<Slot>>,
}

impl State {
    pub(super) fn starting() -> Self {
        Self {
            health: Health::Starting,
            detail: Some("the token's worker has not said hello yet".to_owned()),
            hint: None,
            info: None,
            link: None,
            keys: Arc::default(),
        }
    }
}

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
            let link = self.link.clone();
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
        let awaited = self.link.is_some() && !self.had_link();
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
                self.drop_link();
                self.refused = true;
                self.publish_down((health, error.to_string(), hint));
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

    fn had_link(&self) -> bool {
        self.state.borrow().link.is_some()
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

/// Gate, then canary.
async fn open_key(
    inner: &Arc<Inner>,
    link: &Link,
    spec: &KeySpec,
) -> Result<OpenedKey, TokenError> {
    let frame = inner.call(link, &Request::OpenKey(spec.clone())).await?;
    let Ok(Reply::Key(opened)) = frame.decode() else {
        return Err(TokenError::away(
            "the token's worker said something strange",
        ));
    };
    match stored_canary(inner, spec).await? {
        Some(canary) => check_canary(inner, link, spec, opened.id, &canary).await?,
        None => make_canary(inner, link, spec, opened.id).await?,
    }
    inner.proved();
    Ok(opened)
}

async fn stored_canary(inner: &Arc<Inner>, spec: &KeySpec) -> Result<Option<Canary>, TokenError> {
    let (store, name) = (Arc::clone(&inner.canaries), spec.name.clone());
    let loaded = tokio::task::spawn_blocking(move || store.load(&name)).await;
    settle(spec, "cannot read", loaded)
}

async fn check_canary(
    inner: &Arc<Inner>,
    link: &Link,
    spec: &KeySpec,
    id: u32,
    canary: &Canary,
) -> Result<(), TokenError> {
    let aad = Canary::aad(&spec.name);
    let opened = inner
        .unwrap_on(link, id, &canary.iv, &canary.ciphertext, &aad)
        .await;
    match opened {
        Ok(plaintext) if canary.matches(&plaintext) => Ok(()),
        Ok(_) | Err(TokenError::BadCiphertext) => Err(TokenError::Misconfigured {
            detail: format!(
                "key {}: the key labelled {:?} is not the key it was: it does not open this key's canary",
                spec.name, spec.label
            ),
            hint: "put the former key back; a new key needs a new name, because a name stays with the objects it wrapped".to_owned(),
        }),
        Err(error) => Err(error),
    }
}

async fn make_canary(
    inner: &Arc<Inner>,
    link: &Link,
    spec: &KeySpec,
    id: u32,
) -> Result<(), TokenError> {
    let plaintext = Secret32::random()
        .map_err(|error| TokenError::away(format!("no random bytes: {error}")))?;
    let aad = Canary::aad(&spec.name);
    let wrapped: Wrapped = inner.wrap_on(link, id, &plaintext, &aad).await?;
    let canary = Canary::new(&plaintext, &wrapped);
    let (store, name) = (Arc::clone(&inner.canaries), spec.name.clone());
    let saved = tokio::task::spawn_blocking(move || store.save(&name, &canary)).await;
    settle(spec, "cannot keep", saved)
}

fn settle<T>(
    spec: &KeySpec,
    what: &str,
    outcome: Result<Result<T, String>, tokio::task::JoinError>,
) -> Result<T, TokenError> {
    outcome
        .map_err(|error| error.to_string())
        .and_then(|inner| inner)
        .map_err(|why| TokenError::away(format!("key {}: {what} its canary: {why}", spec.name)))
}
