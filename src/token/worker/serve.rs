//! Session threads: each owns one logged-in session, takes requests from the
//! link, and answers over it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use zeroize::zeroize_stack;

use crate::token::protocol::{Failure, FailureKind, Frame, HELLO, Reply, Serve, TokenInfo};
use crate::token::wire::{self, Inbox};

use super::gate::Opened;
use super::mechanism::Convention;
use super::probe::Candidates;
use super::raw::Raw;
use super::watch::Watch;
use super::{exit, module};

/// How long a token may refuse further sessions for a passing reason: a busy
/// cluster, or sessions of a worker that was killed a moment ago.
const SESSION_PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two attempts.
const SESSION_PAUSE: Duration = Duration::from_millis(100);

/// Stack, in bytes, that is overwritten below a caller of the module after
/// each login and request: several times what SoftHSM and Kryoptic use. It
/// costs microseconds; a thread has 2 MiB.
pub(super) const MODULE_STACK: usize = 128 * 1024;
/// How often the server is told how the module was called, at most: what a
/// killed worker did not tell is lost.
const TELL_CALLS: Duration = Duration::from_secs(1);

/// What all session threads share.
pub(super) struct Shared {
    pub(super) pkcs11: Pkcs11,
    pub(super) raw: Raw,
    pub(super) slot: Slot,
    pub(super) info: TokenInfo,
    pub(super) convention: Convention,
    /// Whether each wrap is opened before it is handed out.
    pub(super) verify_wraps: bool,
    /// Keys by the id that requests use; only ever grows.
    keys: RwLock<Vec<Arc<Opened>>>,
    /// To the server.
    link: OwnedFd,
    /// When the server was last told how the module was called.
    told: Mutex<Option<Instant>>,
}

/// One thread's session.
pub(super) struct Thread {
    pub(super) shared: Arc<Shared>,
    pub(super) session: Session,
}

/// Loads, finds, logs in, opens the sessions, says hello, and lets them work.
pub(super) fn start(module_path: &Path, setup: &Serve, link: &OwnedFd) -> Result<(), Failure> {
    let io = |error: std::io::Error| Failure::new(FailureKind::Away, error.to_string());
    let watch = Watch::start(setup.call_timeout, link.try_clone().map_err(io)?).map_err(io)?;
    let pkcs11 = module::load(module_path, &watch)?;
    watch.step("C_GetTokenInfo");
    let (slot, info) = module::find(&pkcs11, setup)?;
    watch.step("C_GetMechanismInfo");
    let mut info = module::describe(&pkcs11, slot, &info)?;
    let candidates = Candidates::of(&pkcs11, slot, &info.label, setup.gcm_iv)?;
    let raw = Raw::load(module_path).map_err(|fault| fault.failed("cannot use the module"))?;
    // One login for all sessions (PKCS#11 2.40, 5.6), on the first of them;
    // the rest are opened one by one after it, so that a wrong PIN costs
    // exactly one attempt.
    let open = || {
        watch.step("C_OpenSession");
        module::open_session(&pkcs11, slot).map_err(|fault| fault.failed("cannot open a session"))
    };
    let first = open()?;
    watch.step("C_Login");
    let logged_in = module::log_in(&first, &setup.pin);
    // Kryoptic leaves the PIN there.
    zeroize_stack::<MODULE_STACK>();
    logged_in?;
    // Not before: SoftHSM rewrites the token's file at every login, in place,
    // and a worker killed in the middle of that leaves no token behind. Until
    // here the end of the link is what ends an orphan.
    crate::confine::die_with_parent();
    watch.step("C_GenerateRandom");
    module::check_generator(&first)
        .map_err(|fault| fault.failed("the token's generator failed"))?;
    let convention = candidates.choose(&raw, &first, &watch)?;
    info.gcm_iv = convention.iv.name().to_owned();
    let mut sessions = vec![first];
    let until = Instant::now() + SESSION_PATIENCE;
    while sessions.len() < setup.sessions {
        match open() {
            Ok(session) => sessions.push(session),
            Err(failure) if failure.kind == FailureKind::Away && Instant::now() < until => {
                std::thread::sleep(SESSION_PAUSE);
            }
            // A token with fewer sessions than configured still serves, and
            // says that it is degraded.
            Err(failure) if failure.kind == FailureKind::Away => {
                tracing::warn!(
                    sessions = sessions.len(),
                    "fewer sessions than configured: {}",
                    failure.detail
                );
                break;
            }
            Err(failure) => return Err(failure),
        }
    }
    info.sessions = sessions.len();
    info.sessions_wanted = setup.sessions;
    let shared = Arc::new(Shared {
        pkcs11,
        raw,
        slot,
        info,
        convention,
        verify_wraps: setup.verify_wraps,
        keys: RwLock::default(),
        link: link.try_clone().map_err(io)?,
        told: Mutex::default(),
    });
    drop(watch);
    shared.send(HELLO, &Reply::Token(shared.info.clone()));
    for session in sessions {
        let thread = Thread {
            shared: Arc::clone(&shared),
            session,
        };
        std::thread::Builder::new()
            .name("session".into())
            .spawn(move || thread.run())
            .map_err(io)?;
    }
    Ok(())
}

impl Shared {
    /// Writes one reply; without a link there is nobody to work for.
    pub(super) fn send(&self, id: u64, reply: &Reply<'_>) {
        let frame = match Frame::encode(id, reply) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!("cannot answer: {error}");
                exit::now(exit::LOST);
            }
        };
        // Before a failure: this process may end with it.
        let last = matches!(reply, Reply::Failed(_));
        let told = match last || self.is_due() {
            true => super::tell_calls(&self.link),
            false => Ok(()),
        };
        if told.and_then(|()| wire::send(&self.link, &frame)).is_err() {
            exit::now(exit::LINK_CLOSED);
        }
    }

    /// Whether the server is to be told now how the module was called; true
    /// for one thread alone.
    fn is_due(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| told.elapsed() >= TELL_CALLS);
        if due {
            *told = Some(Instant::now());
        }
        due
    }

    /// A key by the id that requests use.
    pub(super) fn key(&self, id: u32) -> Result<Arc<Opened>, Failure> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        usize::try_from(id)
            .ok()
            .and_then(|id| keys.get(id).cloned())
            .ok_or_else(|| Failure::new(FailureKind::Away, "a key id of another worker"))
    }

    /// Keeps a key that passed the gate; returns its id.
    pub(super) fn keep(&self, key: Arc<Opened>) -> Result<u32, Failure> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let id = u32::try_from(keys.len())
            .map_err(|_| Failure::new(FailureKind::Away, "too many keys were opened"))?;
        keys.push(key);
        Ok(id)
    }
}

impl Thread {
    fn run(mut self) {
        let mut inbox = Inbox::new();
        loop {
            let frame = match inbox.recv(&self.shared.link) {
                Ok(Some(frame)) => frame,
                // The first thread of this process sees it too, and ends it.
                Ok(None) => return,
                Err(error) => {
                    tracing::error!("the link broke: {error}");
                    exit::now(exit::LINK_CLOSED);
                }
            };
            let answered = self.answer(&frame);
            // The module's own frames too: SoftHSM leaves data keys in them.
            zeroize_stack::<MODULE_STACK>();
            let Err(failure) = answered else {
                continue;
            };
            let kind = failure.kind;
            let ends = matches!(kind, FailureKind::Lost | FailureKind::Locked);
            if ends {
                tracing::error!("this worker is of no more use: {}", failure.detail);
            }
            self.shared.send(frame.id(), &Reply::Failed(failure));
            if ends {
                exit::now(exit::code(kind));
            }
        }
    }
}
