//! One call to a worker: waiting for one that has the key, the deadline, the
//! reply, and what each success proves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::secret::Secret32;

use super::IV_LEN;
use super::canary::CanaryStore;
use super::error::TokenError;
use super::handle::{Stuck, Wrapped};
use super::ledger::{Charge, Purpose, WrapCounts};
use super::link::{Closed, Link};
use super::manager::Command;
use super::pool::{self, Pool};
use super::protocol::{Frame, Reply, Request};
use super::state::{Health, Slot, State};

/// What the handle and its manager share.
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) canaries: Arc<dyn CanaryStore>,
    pub(super) counts: Arc<WrapCounts>,
    pub(super) call_timeout: Duration,
    pub(super) state: watch::Receiver<State>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) commands: mpsc::WeakUnboundedSender<Command>,
    pub(super) stuck: mpsc::Sender<Stuck>,
    pub(super) pool: Pool,
    /// When [`Proof`]s below are counted from.
    pub(super) epoch: Instant,
    pub(super) wrapped: Proof,
    pub(super) unwrapped: Proof,
}

/// When something last succeeded: milliseconds after the epoch, plus one;
/// zero is never.
#[derive(Default)]
pub(super) struct Proof(AtomicU64);

impl Inner {
    /// Waits for a worker on which this key works.
    pub(super) async fn route(&self, key: &str) -> Result<(Arc<Link>, u32), TokenError> {
        self.wait_for(|state| state.route(key)).await
    }

    /// Waits for a worker that said hello, whatever the state of its keys.
    pub(super) async fn link(&self) -> Result<Arc<Link>, TokenError> {
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

    pub(super) fn away(&self) -> TokenError {
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

    /// Counts what a request may cost, before it is sent.
    pub(super) async fn charge(&self, key: &str, purpose: Purpose) -> Result<Charge, TokenError> {
        timeout(self.call_timeout, self.counts.charge(key, purpose))
            .await
            .unwrap_or_else(|_| {
                let detail = format!("key {key}: its wraps could not be counted in time");
                Err(TokenError::Uncounted { detail })
            })
    }

    pub(super) async fn wrap_on(
        &self,
        link: &Link,
        name: &str,
        key: u32,
        data_key: &Secret32,
        aad: &[u8],
    ) -> Result<Wrapped, TokenError> {
        let charge = self.charge(name, Purpose::DataKey).await?;
        let data_key = data_key.expose();
        let frame = self
            .call(link, &Request::Wrap { key, data_key, aad })
            .await?;
        let Ok(Reply::Wrapped {
            iv,
            ciphertext,
            wraps,
        }) = frame.decode()
        else {
            return Err(strange());
        };
        charge.spent(wraps);
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
        // A key at its limit wraps no more, not even to prove that it could.
        let wraps = |key: &&Slot| !self.counts.is_exhausted(&key.spec.name);
        let route = |state: &State| {
            let mut keys = state.keys.iter().filter(wraps);
            let first = keys.clone().next();
            let name = keys.find(|key| key.opened.is_some()).or(first)?;
            let name = name.spec.name.clone();
            let found = state.route(&name)?;
            Some(found.map(|(link, key)| (link, key, name)))
        };
        if !self.state.borrow().keys.iter().any(|key| wraps(&key)) {
            let link = self.link().await?;
            return self.call(&link, &Request::Describe).await.map(drop);
        }
        let (link, key, name) = self.wait_for(route).await?;
        // Its reply does not say how many it took.
        let _charge = self.charge(&name, Purpose::Upkeep).await?;
        self.call(&link, &Request::Probe { key }).await?;
        self.proved();
        Ok(())
    }

    /// Fetches a block for the pool.
    pub(super) async fn fill(self: Arc<Self>) {
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

    pub(super) fn last_proof(&self) -> Option<Instant> {
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
pub(super) fn strange() -> TokenError {
    TokenError::away("the token's worker answered something strange")
}
