//! One call to a worker: waiting for one that has the key, the deadline, the
//! reply, and what each success proves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{timeout, timeout_at};

use crate::secret::Secret32;

use super::IV_LEN;
use super::canary::CanaryStore;
use super::error::TokenError;
use super::handle::{Stuck, Wrapped};
use super::health::Health;
use super::ledger::{Charge, Purpose, WrapCounts};
use super::link::{Closed, Lane, Link};
use super::manager::Command;
use super::opening;
use super::pool::{self, Pool};
use super::protocol::{Frame, Reply, Request};
use super::state::{Slot, State};
use super::tally::Tally;

/// What the handle and its manager share.
pub(super) struct Inner {
    pub(super) name: String,
    pub(super) canaries: Arc<dyn CanaryStore>,
    pub(super) counts: Arc<WrapCounts>,
    pub(super) call_timeout: CallTimeout,
    pub(super) state: watch::Receiver<State>,
    pub(super) health: watch::Receiver<Health>,
    pub(super) commands: mpsc::WeakUnboundedSender<Command>,
    pub(super) stuck: mpsc::Sender<Stuck>,
    pub(super) pool: Pool,
    /// How its workers called the module.
    pub(super) tally: Arc<Tally>,
    /// Calls that wait for a worker or a session.
    pub(super) waiting: AtomicUsize,
    /// Workers that were attached.
    pub(super) workers: AtomicU64,
    /// When [`Proof`]s below are counted from.
    pub(super) epoch: Instant,
    pub(super) wrapped: Proof,
    pub(super) unwrapped: Proof,
    /// A call failed for no reason of its own since the last probe.
    pub(super) doubted: AtomicBool,
}

/// How long making an RSA pair may take: the search for primes takes seconds on
/// a smart card's processor, and now and then much longer.
const PAIR_PATIENCE: Duration = Duration::from_secs(60);

/// `call_timeout`, which a reload may change: in milliseconds.
pub(super) struct CallTimeout(AtomicU64);

impl CallTimeout {
    pub(super) fn new(value: Duration) -> Self {
        let this = Self(AtomicU64::new(0));
        this.set(value);
        this
    }

    pub(super) fn set(&self, value: Duration) {
        let millis = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// When something last succeeded: milliseconds after the epoch, plus one;
/// zero is never.
#[derive(Default)]
pub(super) struct Proof(AtomicU64);

/// Counts one call in wait, for as long as it is there.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    /// Waits for a worker on which this key works, and for a free session.
    pub(super) async fn route(&self, key: &str) -> Result<(Lane, u32), TokenError> {
        self.admit(|state| state.route(key)).await
    }

    /// Waits for a worker that said hello, whatever the state of its keys,
    /// and for a free session.
    pub(super) async fn lane(&self) -> Result<Lane, TokenError> {
        let (lane, ()) = self
            .admit(|state| match state.open_link() {
                Some(link) => Some(Ok((Arc::clone(link), ()))),
                None => state.refusal().map(Err),
            })
            .await?;
        Ok(lane)
    }

    /// A free session on this very worker.
    pub(super) async fn lane_on(&self, link: &Arc<Link>) -> Result<Lane, TokenError> {
        match timeout(self.call_timeout.get(), link.lane()).await {
            Ok(Ok(lane)) => Ok(lane),
            Ok(Err(Closed)) => Err(self.ended()),
            Err(_) => Err(self.busy()),
        }
    }

    /// Waits, at most `call_timeout` in all, for a worker that will do and a
    /// free session on it. A worker that is lost meanwhile costs nothing:
    /// nothing was sent to it, and the next one may come in time.
    async fn admit<T>(
        &self,
        mut look: impl FnMut(&State) -> Option<Result<(Arc<Link>, T), TokenError>>,
    ) -> Result<(Lane, T), TokenError> {
        let deadline = Instant::now() + self.call_timeout.get();
        let _waiting = Waiting::begin(&self.waiting);
        loop {
            let (link, found) = self.wait_for(deadline, &mut look).await?;
            match timeout_at(deadline.into(), link.lane()).await {
                Ok(Ok(lane)) => return Ok((lane, found)),
                Ok(Err(Closed)) => {}
                Err(_) => return Err(self.busy()),
            }
        }
    }

    async fn wait_for<T>(
        &self,
        deadline: Instant,
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
        timeout_at(deadline.into(), wait)
            .await
            .unwrap_or_else(|_| Err(self.away()))
    }

    pub(super) fn away(&self) -> TokenError {
        let state = self.state.borrow();
        let why = state.detail.as_deref().unwrap_or("its keys are not ready");
        TokenError::away(format!("token {} is away: {why}", self.name))
    }

    pub(super) fn busy(&self) -> TokenError {
        TokenError::away(format!(
            "token {} is busy: none of its sessions was free within {:?}",
            self.name,
            self.call_timeout.get()
        ))
    }

    fn ended(&self) -> TokenError {
        TokenError::away(format!(
            "token {} is away: its worker ended during the call",
            self.name
        ))
    }

    /// Makes one call, within `call_timeout` of a session; a reply that says "failed" is
    /// an error.
    pub(super) async fn call(
        &self,
        lane: Lane,
        request: &Request<'_>,
    ) -> Result<Frame, TokenError> {
        let link = Arc::clone(&lane.link);
        // A call that another one goes before has that one's time as well: if
        // it is that one which is stuck, its own deadline ends both.
        let mut deadline = self.call_timeout.get() * (1 + lane.ahead);
        if matches!(request, Request::BeginImport { .. }) {
            deadline = deadline.max(PAIR_PATIENCE);
        }
        let frame = match timeout(deadline, lane.call(request)).await {
            Ok(Ok(Ok(frame))) => frame,
            Ok(Ok(Err(error))) => {
                let detail = format!("the request does not fit the token: {error}");
                return Err(TokenError::Rejected { detail });
            }
            Ok(Err(Closed)) => return Err(self.ended()),
            Err(_) => {
                self.report_stuck(&link);
                return Err(TokenError::Timeout);
            }
        };
        match frame.decode() {
            Ok(Reply::Failed(failure)) => Err(failure.into()),
            Ok(_) => Ok(frame),
            Err(_) => Err(strange()),
        }
    }

    /// A call with an opened key. What it says of the key or the token is
    /// the manager's to know, too.
    async fn call_key(
        &self,
        lane: Lane,
        key: u32,
        request: &Request<'_>,
    ) -> Result<Frame, TokenError> {
        let pid = lane.link.pid;
        let done = self.call(lane, request).await;
        match &done {
            Err(error @ TokenError::Misconfigured { .. }) => {
                self.tell(Command::Refused(pid, key, error.clone()));
            }
            // Once is enough until somebody has looked.
            Err(TokenError::Away { detail }) if !self.doubted.swap(true, Ordering::Relaxed) => {
                self.tell(Command::Doubt(pid, key, detail.clone()));
            }
            _ => {}
        }
        done
    }

    /// Counts what a request may cost, before it is sent.
    pub(super) async fn charge(&self, key: &str, purpose: Purpose) -> Result<Charge, TokenError> {
        timeout(self.call_timeout.get(), self.counts.charge(key, purpose))
            .await
            .unwrap_or_else(|_| {
                let detail = format!("key {key}: its wraps could not be counted in time");
                Err(TokenError::Uncounted { detail })
            })
    }

    pub(super) async fn wrap_on(
        &self,
        lane: Lane,
        name: &str,
        key: u32,
        data_key: &Secret32,
        aad: &[u8],
    ) -> Result<Wrapped, TokenError> {
        let charge = self.charge(name, Purpose::DataKey).await?;
        let data_key = data_key.expose();
        let request = Request::Wrap { key, data_key, aad };
        let frame = self.call_key(lane, key, &request).await?;
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
        lane: Lane,
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
        let frame = self.call_key(lane, key, &request).await?;
        let Ok(Reply::DataKey(data_key)) = frame.decode() else {
            return Err(strange());
        };
        self.unwrapped.set(self.epoch);
        Secret32::from_slice(data_key).ok_or_else(strange)
    }

    /// A wrap and an unwrap with this key, or with any that works.
    pub(super) async fn probe(&self, name: Option<&str>) -> Result<(), TokenError> {
        let wraps = |key: &&Slot| !self.counts.is_exhausted(&key.spec.name);
        let route = |state: &State| {
            let mut open = state.keys.iter().filter(|key| key.opened.is_some());
            let named = state
                .keys
                .iter()
                .find(|key| Some(key.spec.name.as_str()) == name);
            let ready = named.or_else(|| open.clone().find(wraps).or_else(|| open.next()));
            let spec = ready.or(state.keys.first())?.spec.clone();
            let found = state.route(&spec.name)?;
            Some(found.map(|(link, key)| (link, (key, spec))))
        };
        if self.state.borrow().keys.is_empty() {
            let lane = self.lane().await?;
            return self.call(lane, &Request::Describe).await.map(drop);
        }
        let (lane, (key, spec)) = self.admit(route).await?;
        if self.counts.is_exhausted(&spec.name) {
            // It wraps no more, not even to prove that it could: that it
            // opens what it wrapped once is all there is to know of it.
            let link = Arc::clone(&lane.link);
            drop(lane);
            opening::reopen(self, &link, &spec, key).await?;
        } else {
            // Its reply does not say how many wraps it took.
            let _charge = self.charge(&spec.name, Purpose::Proof).await?;
            self.call_key(lane, key, &Request::Probe { key }).await?;
        }
        self.proved();
        Ok(())
    }

    /// Fetches a block for the pool.
    pub(super) async fn fill(self: Arc<Self>) {
        let block = async {
            let lane = self.lane().await?;
            let len = u16::try_from(pool::BLOCK).map_err(|_| strange())?;
            self.call(lane, &Request::Random { len }).await
        };
        match block.await {
            Ok(frame) => match frame.decode() {
                Ok(Reply::Random(block)) if block.len() == pool::BLOCK => {
                    self.pool.fetched(block);
                }
                _ => self.pool.failed(strange()),
            },
            Err(error) => {
                tracing::warn!(token = self.name, "no random bytes: {error}");
                self.pool.failed(error);
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
            reason: format!("no answer within {:?}", self.call_timeout.get()),
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
