//! The server's handle on a token: wrap, unwrap, random.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::api;
use crate::secret::Secret32;

use super::canary::CanaryStore;
use super::error::TokenError;
use super::link::{Closed, Link};
use super::manager::{Command, Health, KeyState, Manager, State};
use super::pool::{self, Pool};
use super::protocol::{Frame, KeySpec, OpenedKey, Reply, Request};
use super::{IV_LEN, WRAPPED_LEN};

/// A wrapped data key, as it goes into an EDK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The IV that the worker, or the token, chose.
    pub iv: [u8; IV_LEN],
    /// Ciphertext and tag.
    pub ciphertext: [u8; WRAPPED_LEN],
}

/// A worker that did not answer in time: kill it, and start another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The token's configured name.
    pub token: String,
    /// The worker's process id.
    pub pid: u32,
    /// What it did not do.
    pub reason: String,
}

/// A token. Clones share it.
///
/// While there is no worker, calls wait for one, at most `call_timeout`, and
/// then fail as [`TokenError::Away`]. Every call is cancel-safe; callers with
/// a deadline of their own wrap the call in it.
#[derive(Clone)]
pub struct Token {
    inner: Arc<Inner>,
    /// The manager runs as long as one of these is alive.
    commands: Arc<mpsc::UnboundedSender<Command>>,
}

/// What the handle and its manager share.
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) canaries: Arc<dyn CanaryStore>,
    call_timeout: Duration,
    state: watch::Receiver<State>,
    health: watch::Receiver<Health>,
    commands: mpsc::WeakUnboundedSender<Command>,
    stuck: mpsc::Sender<Stuck>,
    pool: Pool,
    /// When [`Proof`]s below are counted from.
    epoch: Instant,
    wrapped: Proof,
    unwrapped: Proof,
}

/// When something last succeeded: milliseconds after the epoch, plus one;
/// zero is never.
#[derive(Default)]
struct Proof(AtomicU64);

impl Token {
    /// A token without a worker as yet. `stuck` receives the workers that did
    /// not answer within `call_timeout`. Needs a tokio runtime.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        call_timeout: Duration,
        canaries: Arc<dyn CanaryStore>,
        stuck: mpsc::Sender<Stuck>,
    ) -> Self {
        let (state, watching) = watch::channel(State::starting());
        let (health, healthy) = watch::channel(Health::Starting);
        let (commands, orders) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            name: name.into(),
            canaries,
            call_timeout,
            state: watching.clone(),
            health: healthy,
            commands: commands.downgrade(),
            stuck,
            pool: Pool::new(),
            epoch: Instant::now(),
            wrapped: Proof::default(),
            unwrapped: Proof::default(),
        });
        tokio::spawn(Manager::new(Arc::clone(&inner), state).run(orders));
        tokio::spawn(mirror_health(watching, health));
        Self {
            inner,
            commands: Arc::new(commands),
        }
    }

    /// Sets the configured keys; those that are new, or did not pass before,
    /// go through gate and canary.
    pub fn set_keys(&self, keys: Vec<KeySpec>) {
        self.tell(Command::SetKeys(keys));
    }

    /// Takes a new worker in place of the former one, whose pending requests
    /// get a temporary error.
    pub fn attach(&self, link: UnixStream, pid: u32) {
        // At once, so that whoever calls from now on waits for the new one.
        if let Some(former) = &self.inner.state.borrow().link {
            former.close();
        }
        self.tell(Command::Attach(link, pid));
    }

    /// Says that no worker can be started, and why.
    pub fn down(&self, health: Health, detail: impl Into<String>, hint: Option<String>) {
        self.tell(Command::Down(health, detail.into(), hint));
    }

    /// Its configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Wraps a data key under a configured key; `aad` is the serialised
    /// encryption context.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn wrap(
        &self,
        key: &str,
        data_key: &Secret32,
        aad: &[u8],
    ) -> Result<Wrapped, TokenError> {
        let (link, id) = self.inner.route(key).await?;
        self.inner.wrap_on(&link, id, data_key, aad).await
    }

    /// Unwraps a data key.
    ///
    /// # Errors
    /// See [`TokenError`]; [`TokenError::BadCiphertext`] is about this EDK
    /// alone.
    pub async fn unwrap(
        &self,
        key: &str,
        iv: &[u8; IV_LEN],
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<Secret32, TokenError> {
        // Whatever does not have the length of a wrapped key is not one; no
        // token call is spent on it.
        if ciphertext.len() != WRAPPED_LEN {
            return Err(TokenError::BadCiphertext);
        }
        let (link, id) = self.inner.route(key).await?;
        self.inner.unwrap_on(&link, id, iv, ciphertext, aad).await
    }

    /// 32 bytes of the token's generator, from a pool that is fetched ahead.
    /// To be mixed with the operating system's at the moment of use.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn random(&self) -> Result<Secret32, TokenError> {
        let wait = async {
            loop {
                // Before looking, so that a fill in between is not missed.
                let filled = self.inner.pool.filled();
                let (secret, fetch) = self.inner.pool.take();
                if fetch {
                    tokio::spawn(Arc::clone(&self.inner).fill());
                }
                match secret {
                    Some(secret) => return Ok(secret),
                    None => filled.await,
                }
                // A token that cannot be used at all says so at once.
                if let Some(error) = self.inner.state.borrow().refusal() {
                    return Err(error);
                }
            }
        };
        let patience = self.inner.call_timeout;
        timeout(patience, wait)
            .await
            .unwrap_or_else(|_| Err(self.inner.away()))
    }

    /// Makes a wrapping key in the token, all attributes set explicitly, and
    /// runs the gate on it.
    ///
    /// # Errors
    /// [`TokenError::Exists`] if the label is taken, and the others.
    pub async fn generate_key(&self, label: &str) -> Result<OpenedKey, TokenError> {
        let link = self.inner.link().await?;
        let label = label.to_owned();
        let generate = Request::GenerateKey {
            label: label.clone(),
        };
        self.inner.call(&link, &generate).await?;
        let spec = KeySpec {
            name: label.clone(),
            label,
            imported: false,
        };
        let frame = self.inner.call(&link, &Request::OpenKey(spec)).await?;
        match frame.decode() {
            Ok(Reply::Key(opened)) => Ok(opened),
            _ => Err(strange()),
        }
    }

    /// A wrap and an unwrap with the first working key: the only proof that
    /// the token lives.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn probe(&self) -> Result<(), TokenError> {
        self.inner.probe().await
    }

    /// When both a wrap and an unwrap had last succeeded.
    #[must_use]
    pub fn last_proof(&self) -> Option<Instant> {
        self.inner.last_proof()
    }

    /// The health, and its changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// Every configured key and its state.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyState> {
        let state = self.inner.state.borrow();
        let alive = state.link.is_some();
        state.keys.iter().map(|key| key.report(alive)).collect()
    }

    /// What `GET /v1/status` tells of it.
    #[must_use]
    pub fn status(&self) -> api::TokenStatus {
        let state = self.inner.state.borrow().clone();
        let info = state.info;
        api::TokenStatus {
            name: self.inner.name.clone(),
            health: state.health.as_str().to_owned(),
            detail: state.detail,
            hint: state.hint,
            worker_pid: state.link.map(|link| link.pid),
            token_label: info.as_ref().map(|info| info.label.clone()),
            serial: info.as_ref().map(|info| info.serial.clone()),
            model: info
                .as_ref()
                .map(|info| format!("{} {}", info.manufacturer, info.model)),
            soft: info.is_some_and(|info| info.soft),
        }
    }

    fn tell(&self, command: Command) {
        // The manager ends only after the last handle.
        let _ = self.commands.send(command);
    }
}

impl State {
    /// Why no call can succeed before somebody acts.
    fn refusal(&self) -> Option<TokenError> {
        let detail = self.detail.clone().unwrap_or_default();
        let hint =
            |kind: api::ErrorKind| self.hint.clone().unwrap_or_else(|| kind.hint().to_owned());
        match self.health {
            Health::Misconfigured => Some(TokenError::Misconfigured {
                detail,
                hint: hint(api::ErrorKind::Misconfigured),
            }),
            Health::Locked => Some(TokenError::Locked {
                detail,
                hint: hint(api::ErrorKind::TokenLocked),
            }),
            Health::Starting | Health::Ready | Health::Recovering | Health::Down => None,
        }
    }

    /// The worker's link, unless it was closed a moment ago.
    fn open_link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref().filter(|link| link.is_open())
    }

    /// Where a call with this key goes; `None` is "not yet".
    fn route(&self, name: &str) -> Option<Result<(Arc<Link>, u32), TokenError>> {
        // A key's own problem tells more than the token's.
        let key = self.keys.iter().find(|key| key.spec.name == name);
        if let Some(error @ TokenError::Misconfigured { .. }) =
            key.and_then(|key| key.problem.as_ref())
        {
            return Some(Err(error.clone()));
        }
        if let Some(error) = self.refusal().filter(|_| self.link.is_none()) {
            return Some(Err(error));
        }
        // Before the first worker, the keys may not have been set yet.
        if key.is_none() && self.health != Health::Starting {
            return Some(Err(TokenError::UnknownKey(name.to_owned())));
        }
        let opened = key?.opened.as_ref()?;
        Some(Ok((Arc::clone(self.open_link()?), opened.id)))
    }
}

impl Inner {
    /// Waits for a worker on which this key works.
    async fn route(&self, key: &str) -> Result<(Arc<Link>, u32), TokenError> {
        self.wait_for(|state| state.route(key)).await
    }

    /// Waits for a worker that said hello, whatever the state of its keys.
    async fn link(&self) -> Result<Arc<Link>, TokenError> {
        self.wait_for(|state| match state.open_link() {
            Some(link) => Some(Ok(Arc::clone(link))),
            None => state.refusal().map(Err),
        })
        .await
    }

    async fn wait_for<T>(
        &self,
        mut look: impl FnMut(&State) -> Option<Result<T, TokenError>>,
    ) -> Result<T, TokenError> {
        // The usual case, without a clone of the receiver.
        if let Some(found) = look(&self.state.borrow()) {
            return found;
        }
        let mut state = self.state.clone();
        let wait = async {
            loop {
                let found = look(&state.borrow_and_update());
                if let Some(found) = found {
                    return found;
                }
                if state.changed().await.is_err() {
                    return Err(self.away());
                }
            }
        };
        timeout(self.call_timeout, wait)
            .await
            .unwrap_or_else(|_| Err(self.away()))
    }

    fn away(&self) -> TokenError {
        let state = self.state.borrow();
        let why = state.detail.as_deref().unwrap_or("its keys are not ready");
        TokenError::away(format!("token {} is away: {why}", self.name))
    }

    /// Makes one call, within `call_timeout`; a reply that says "failed" is
    /// an error.
    pub(super) async fn call(
        &self,
        link: &Link,
        request: &Request<'_>,
    ) -> Result<Frame, TokenError> {
        let frame = match timeout(self.call_timeout, link.call(request)).await {
            Ok(Ok(Ok(frame))) => frame,
            Ok(Ok(Err(error))) => {
                let detail = format!("the request does not fit the token: {error}");
                return Err(TokenError::Rejected { detail });
            }
            Ok(Err(Closed)) => {
                return Err(TokenError::away(format!(
                    "token {} is away: its worker ended during the call",
                    self.name
                )));
            }
            Err(_) => {
                self.report_stuck(link);
                return Err(TokenError::Timeout);
            }
        };
        match frame.decode() {
            Ok(Reply::Failed(failure)) => Err(failure.into()),
            Ok(_) => Ok(frame),
            Err(_) => Err(strange()),
        }
    }

    pub(super) async fn wrap_on(
        &self,
        link: &Link,
        key: u32,
        data_key: &Secret32,
        aad: &[u8],
    ) -> Result<Wrapped, TokenError> {
        let data_key = data_key.expose();
        let frame = self
            .call(link, &Request::Wrap { key, data_key, aad })
            .await?;
        let Ok(Reply::Wrapped { iv, ciphertext }) = frame.decode() else {
            return Err(strange());
        };
        let ciphertext = ciphertext.try_into().map_err(|_| strange())?;
        self.wrapped.set(self.epoch);
        Ok(Wrapped { iv, ciphertext })
    }

    pub(super) async fn unwrap_on(
        &self,
        link: &Link,
        key: u32,
        iv: &[u8; IV_LEN],
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<Secret32, TokenError> {
        let request = Request::Unwrap {
            key,
            iv: *iv,
            ciphertext,
            aad,
        };
        let frame = self.call(link, &request).await?;
        let Ok(Reply::DataKey(data_key)) = frame.decode() else {
            return Err(strange());
        };
        self.unwrapped.set(self.epoch);
        Secret32::from_slice(data_key).ok_or_else(strange)
    }

    pub(super) async fn probe(&self) -> Result<(), TokenError> {
        let route = |state: &State| {
            let ready = state.keys.iter().find(|key| key.opened.is_some());
            let name = ready
                .or(state.keys.first())
                .map(|key| key.spec.name.clone())?;
            state.route(&name)
        };
        if self.state.borrow().keys.is_empty() {
            let link = self.link().await?;
            return self.call(&link, &Request::Describe).await.map(drop);
        }
        let (link, key) = self.wait_for(route).await?;
        self.call(&link, &Request::Probe { key }).await?;
        self.proved();
        Ok(())
    }

    /// Fetches a block for the pool.
    async fn fill(self: Arc<Self>) {
        let block = async {
            let link = self.link().await?;
            let len = u16::try_from(pool::BLOCK).map_err(|_| strange())?;
            self.call(&link, &Request::Random { len }).await
        };
        match block.await {
            Ok(frame) => match frame.decode() {
                Ok(Reply::Random(block)) if block.len() == pool::BLOCK => {
                    self.pool.fetched(Some(block));
                }
                _ => self.pool.fetched(None),
            },
            Err(error) => {
                tracing::warn!(token = self.name, "no random bytes: {error}");
                self.pool.fetched(None);
            }
        }
    }

    /// Notes that a wrap and an unwrap succeeded.
    pub(super) fn proved(&self) {
        self.wrapped.set(self.epoch);
        self.unwrapped.set(self.epoch);
    }

    fn last_proof(&self) -> Option<Instant> {
        let at = |proof: &Proof| proof.get(self.epoch);
        Some(at(&self.wrapped)?.min(at(&self.unwrapped)?))
    }

    /// How long nothing has proved that the token lives.
    pub(super) fn idle_for(&self) -> Duration {
        self.last_proof().map_or(Duration::MAX, |at| at.elapsed())
    }

    /// Has the worker replaced: the manager drops its link, the supervisor
    /// kills it.
    pub(super) fn report_stuck(&self, link: &Link) {
        let pid = link.pid;
        link.close();
        tracing::error!(token = self.name, pid, "the token did not answer in time");
        self.tell(Command::Stuck(pid));
        // Many calls report one worker; a full channel has it already, and
        // the dropped link ends a worker that can end.
        let _ = self.stuck.try_send(Stuck {
            token: self.name.clone(),
            pid,
            reason: format!("no answer within {:?}", self.call_timeout),
        });
    }

    pub(super) fn tell(&self, command: Command) {
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.send(command);
        }
    }
}

impl Proof {
    fn set(&self, epoch: Instant) {
        let now = u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.0.store(now + 1, Ordering::Relaxed);
    }

    fn get(&self, epoch: Instant) -> Option<Instant> {
        let after = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        epoch.checked_add(Duration::from_millis(after))
    }
}

/// A worker that answers something else is of no use, and no worse than one
/// that is gone.
fn strange() -> TokenError {
    TokenError::away("the token's worker answered something strange")
}

async fn mirror_health(mut state: watch::Receiver<State>, health: watch::Sender<Health>) {
    while state.changed().await.is_ok() {
        let now = state.borrow_and_update().health;
        health.send_if_modified(|known| std::mem::replace(known, now) != now);
    }
}
