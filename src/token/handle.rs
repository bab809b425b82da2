//! The server's handle on a token: wrap, unwrap, random.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::api;
use crate::secret::Secret32;

use super::calls::{CallTimeout, Inner, Proof, strange};
use super::canary::CanaryStore;
use super::error::TokenError;
use super::health::Health;
use super::ledger::WrapCounts;
use super::manager::{Command, Manager};
use super::pool::Pool;
use super::protocol::{KeySpec, OpenedKey, Reply, Request, SIGNATURE_LEN, Signer};
use super::state::{KeyState, State};
use super::tally::Calls;
use super::{IV_LEN, WRAPPED_LEN};

/// The pause between looks at a key that is not usable yet.
pub(super) const SYNC_PAUSE: Duration = Duration::from_millis(250);

/// A wrapped data key, as it goes into an EDK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The IV that the worker, or the token, chose.
    pub iv: [u8; IV_LEN],
    /// Ciphertext and tag.
    pub ciphertext: [u8; WRAPPED_LEN],
}

/// A signature, and the audit key that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// r and s, big-endian.
    pub bytes: [u8; SIGNATURE_LEN],
    /// Who signed.
    pub signer: Signer,
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
/// While there is no worker, or none of its sessions is free, calls wait, at
/// most `call_timeout`, and then fail as [`TokenError::Away`]; once a session
/// has taken it, a call has `call_timeout` to return. Every call is
/// cancel-safe; callers with a deadline of their own wrap the call in it.
#[derive(Clone)]
pub struct Token {
    pub(super) inner: Arc<Inner>,
    /// The manager runs as long as one of these is alive.
    commands: Arc<mpsc::UnboundedSender<Command>>,
}

impl Token {
    /// A token without a worker as yet. `stuck` receives the workers that did
    /// not answer within `call_timeout`. Needs a tokio runtime.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        call_timeout: Duration,
        canaries: Arc<dyn CanaryStore>,
        counts: Arc<WrapCounts>,
        stuck: mpsc::Sender<Stuck>,
    ) -> Self {
        let (state, watching) = watch::channel(State::starting());
        let (health, healthy) = watch::channel(Health::Starting);
        let (commands, orders) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            name: name.into(),
            canaries,
            counts,
            call_timeout: CallTimeout::new(call_timeout),
            state: watching.clone(),
            health: healthy,
            commands: commands.downgrade(),
            stuck,
            pool: Pool::new(),
            tally: Arc::default(),
            waiting: AtomicUsize::new(0),
            workers: AtomicU64::new(0),
            epoch: Instant::now(),
            wrapped: Proof::default(),
            unwrapped: Proof::default(),
            doubted: AtomicBool::new(false),
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

    /// Sets the deadline of calls that begin from now on.
    pub fn set_call_timeout(&self, call_timeout: Duration) {
        self.inner.call_timeout.set(call_timeout);
    }

    /// Takes a new worker in place of the former one, whose pending requests
    /// get a temporary error.
    pub fn attach(&self, link: OwnedFd, pid: u32) {
        // At once, so that whoever calls from now on waits for the new one.
        if let Some(former) = &self.inner.state.borrow().link {
            former.close();
        }
        self.inner.workers.fetch_add(1, Ordering::Relaxed);
        self.tell(Command::Attach(link, pid));
    }

    /// How its workers called the module, since this process began.
    #[must_use]
    pub fn calls(&self) -> Vec<Calls> {
        self.inner.tally.calls()
    }

    /// Workers that it was given, since this process began.
    #[must_use]
    pub fn workers(&self) -> u64 {
        self.inner.workers.load(Ordering::Relaxed)
    }

    /// Calls that wait for a worker or for a free session.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inner.waiting.load(Ordering::Relaxed)
    }

    /// Lets go of the worker, which ends by itself; another will come.
    pub fn detach(&self, why: impl Into<String>) {
        self.tell(Command::Detach(why.into()));
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
        let (lane, id) = self.inner.route(key).await?;
        self.inner.wrap_on(lane, key, id, data_key, aad).await
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
        let (lane, id) = self.inner.route(key).await?;
        self.inner.unwrap_on(lane, id, iv, ciphertext, aad).await
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
                // A worker that was lost meanwhile is waited for; what only
                // somebody else can mend is told at once.
                match self.inner.pool.failure() {
                    None | Some(TokenError::Away { .. } | TokenError::Timeout) => {}
                    Some(error) => return Err(error),
                }
            }
        };
        let patience = self.inner.call_timeout.get();
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
        let label = label.to_owned();
        let generate = Request::GenerateKey {
            label: label.clone(),
        };
        let lane = self.inner.lane().await?;
        self.inner.call(lane, &generate).await?;
        let open = Request::OpenKey(KeySpec {
            name: label.clone(),
            label,
            imported: false,
        });
        // A cluster needs a moment before a new key exists on all its HSMs
        // (CloudHSM: on two) and can be used.
        let deadline = Instant::now() + self.inner.call_timeout.get();
        loop {
            let lane = self.inner.lane().await?;
            match self.inner.call(lane, &open).await {
                Ok(frame) => {
                    return match frame.decode() {
                        Ok(Reply::Key(opened)) => Ok(opened),
                        _ => Err(strange()),
                    };
                }
                Err(TokenError::Away { .. }) if Instant::now() + SYNC_PAUSE < deadline => {
                    tokio::time::sleep(SYNC_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Signs `message` (ECDSA on P-256 over its SHA-256) with the audit key of
    /// that label. What the message is must be told by its first line: one
    /// key signs messages of several kinds.
    ///
    /// # Errors
    /// [`TokenError::Misconfigured`] if it is no key that only signs, and the
    /// others.
    pub async fn sign(&self, label: &str, message: &[u8]) -> Result<Signature, TokenError> {
        let lane = self.inner.lane().await?;
        let request = Request::Sign { label, message };
        let frame = self.inner.call(lane, &request).await?;
        let Ok(Reply::Signed { signature, signer }) = frame.decode() else {
            return Err(strange());
        };
        Ok(Signature {
            bytes: signature.try_into().map_err(|_| strange())?,
            signer,
        })
    }

    /// Looks at the audit key of that label.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub async fn signer(&self, label: &str) -> Result<Signer, TokenError> {
        let label = label.to_owned();
        self.ask_signer(&Request::OpenSigner { label }).await
    }

    /// Makes an audit key in the token, all attributes set explicitly, and
    /// has it sign.
    ///
    /// # Errors
    /// [`TokenError::Exists`] if the label is taken, and the others.
    pub async fn generate_signer(&self, label: &str) -> Result<Signer, TokenError> {
        let label = label.to_owned();
        self.ask_signer(&Request::GenerateSigner { label }).await
    }

    async fn ask_signer(&self, request: &Request<'_>) -> Result<Signer, TokenError> {
        let lane = self.inner.lane().await?;
        let frame = self.inner.call(lane, request).await?;
        match frame.decode() {
            Ok(Reply::Signer(signer)) => Ok(signer),
            _ => Err(strange()),
        }
    }

    /// A wrap and an unwrap with the first working key: the only proof that
    /// the token lives.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub async fn probe(&self) -> Result<(), TokenError> {
        self.inner.probe(None).await
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

    /// The health as it is now.
    #[must_use]
    pub fn health_now(&self) -> Health {
        self.inner.state.borrow().health
    }

    /// The check value of a configured key, as the token reported it when the
    /// key was last opened.
    #[must_use]
    pub fn check_value(&self, key: &str) -> Option<[u8; 3]> {
        let state = self.inner.state.borrow();
        let slot = state.keys.iter().find(|slot| slot.spec.name == key)?;
        slot.opened.as_ref()?.check_value
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
            firmware: info.as_ref().map(|info| info.firmware.clone()),
            library: info.as_ref().map(|info| info.library.clone()),
            gcm_iv: info.as_ref().map(|info| info.gcm_iv.clone()),
            soft: info.is_some_and(|info| info.soft),
        }
    }

    fn tell(&self, command: Command) {
        // The manager ends only after the last handle.
        let _ = self.commands.send(command);
    }
}

async fn mirror_health(mut state: watch::Receiver<State>, health: watch::Sender<Health>) {
    while state.changed().await.is_ok() {
        let now = state.borrow_and_update().health;
        health.send_if_modified(|known| std::mem::replace(known, now) != now);
    }
}
