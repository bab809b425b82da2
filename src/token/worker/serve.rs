//! Session threads: each owns one logged-in session and answers requests from
//! a common queue.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::Duration;

use cryptoki::context::Pkcs11;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use cryptoki_sys::{CK_RV, CKR_OPERATION_ACTIVE, CKR_RANDOM_NO_RNG};
use zeroize::Zeroizing;

use crate::token::IV_LEN;
use crate::token::protocol::{
    Failure, FailureKind, Frame, HELLO, KeySpec, MOST_WRAPS, OpenedKey, Reply, Request, Serve,
    TokenInfo,
};

use super::failure::{Class, During, Fault, classify};
use super::gate::{self, Opened};
use super::mechanism::{self, Convention};
use super::raw::Raw;
use super::{exit, module};

/// Attempts at a call that fails with a transient code; with the pauses below
/// that is at most about 0.3 s, well inside any `call_timeout`.
const ATTEMPTS: u32 = 4;
const _: () = assert!(ATTEMPTS <= MOST_WRAPS, "every wrap is counted beforehand");
/// The pause before the second attempt; it doubles, and up to as much again
/// is added at random so that sessions do not retry in step.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Most random bytes of one request; the pool's block is 4 KiB.
const MAX_RANDOM: usize = 16 * 1024;

/// What all session threads share.
pub(super) struct Shared {
    pkcs11: Pkcs11,
    raw: Raw,
    slot: Slot,
    info: TokenInfo,
    convention: Convention,
    /// Keys by the id that requests use; only ever grows.
    keys: RwLock<Vec<Arc<Opened>>>,
    replies: Mutex<UnixStream>,
}

/// One thread's session.
struct Thread {
    shared: Arc<Shared>,
    session: Session,
}

/// How a request ended, if it did not end well.
enum Fatal {
    /// It failed, and that is all.
    No(Failure),
    /// It failed because this process is of no more use.
    Lost(Failure),
}

/// Loads, finds, logs in, opens the sessions; returns the queue's end.
pub(super) fn start(
    module_path: &Path,
    setup: &Serve,
    link: &UnixStream,
) -> Result<mpsc::Sender<Frame>, Failure> {
    let convention = Convention::choose(setup.gcm_iv)?;
    let pkcs11 = module::load(module_path)?;
    let (slot, info) = module::find(&pkcs11, setup)?;
    let info = module::describe(&pkcs11, slot, &info, convention.name());
    if !info.mechanisms.iter().any(|name| name == "CKM_AES_GCM") {
        return Err(Failure::misconfigured(
            format!("token {:?} does not offer CKM_AES_GCM", info.label),
            "such a token cannot wrap data keys; see docs/tokens.md",
        ));
    }
    let raw = Raw::load(module_path).map_err(|fault| fault.failed("cannot use the module"))?;
    // One login for all sessions (PKCS#11 2.40, 5.6), on the first of them;
    // the rest are opened one by one after it, so that a wrong PIN costs
    // exactly one attempt.
    let open = || {
        module::open_session(&pkcs11, slot).map_err(|fault| fault.failed("cannot open a session"))
    };
    let first = open()?;
    module::log_in(&first, &setup.pin)?;
    // Not before: SoftHSM rewrites the token's file at every login, in place,
    // and a worker killed in the middle of that leaves no token behind. Until
    // here the end of the link is what ends an orphan.
    crate::confine::die_with_parent();
    let mut sessions = vec![first];
    for _ in 1..setup.sessions {
        match open() {
            Ok(session) => sessions.push(session),
            // A token with fewer sessions than configured still serves.
            Err(failure) => {
                tracing::warn!(
                    sessions = sessions.len(),
                    "fewer sessions than configured: {}",
                    failure.detail
                );
                break;
            }
        }
    }
    let io = |error: std::io::Error| Failure::new(FailureKind::Away, error.to_string());
    let shared = Arc::new(Shared {
        pkcs11,
        raw,
        slot,
        info,
        convention,
        keys: RwLock::default(),
        replies: Mutex::new(link.try_clone().map_err(io)?),
    });
    shared.send(HELLO, &Reply::Token(shared.info.clone()));
    let (queue, jobs) = mpsc::channel();
    let jobs = Arc::new(Mutex::new(jobs));
    for session in sessions {
        let thread = Thread {
            shared: Arc::clone(&shared),
            session,
        };
        let jobs = Arc::clone(&jobs);
        std::thread::Builder::new()
            .name("session".into())
            .spawn(move || thread.run(&jobs))
            .map_err(io)?;
    }
    Ok(queue)
}

impl Shared {
    /// Writes one reply; without a link there is nobody to work for.
    fn send(&self, id: u64, reply: &Reply<'_>) {
        let frame = match Frame::encode(id, reply) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!("cannot answer: {error}");
                exit::now(exit::LOST);
            }
        };
        let mut link = lock(&self.replies);
        if link.write_all(frame.as_bytes()).is_err() {
            exit::now(exit::LINK_CLOSED);
        }
    }

    fn key(&self, id: u32) -> Result<Arc<Opened>, Fatal> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        usize::try_from(id)
            .ok()
            .and_then(|id| keys.get(id).cloned())
            .ok_or_else(|| {
                Fatal::No(Failure::new(
                    FailureKind::Away,
                    "a key id of another worker",
                ))
            })
    }
}

impl Thread {
    fn run(mut self, jobs: &Mutex<mpsc::Receiver<Frame>>) {
        loop {
            let Ok(frame) = lock(jobs).recv() else { return };
            if let Err(fatal) = self.answer(&frame) {
                let (failure, lost) = match fatal {
                    Fatal::No(failure) => (failure, false),
                    Fatal::Lost(failure) => (failure, true),
                };
                let detail = failure.detail.clone();
                self.shared.send(frame.id(), &Reply::Failed(failure));
                if lost {
                    tracing::error!("this worker is of no more use: {detail}");
                    exit::now(exit::LOST);
                }
            }
        }
    }

    fn answer(&mut self, frame: &Frame) -> Result<(), Fatal> {
        let request = frame
            .decode()
            .map_err(|error| Fatal::Lost(Failure::new(FailureKind::Away, error.to_string())))?;
        let id = frame.id();
        match request {
            Request::Wrap { key, data_key, aad } => self.wrap(id, key, data_key, aad),
            Request::Unwrap {
                key,
                iv,
                ciphertext,
                aad,
            } => self.unwrap(id, key, &iv, ciphertext, aad),
            Request::Random { len } => self.random(id, usize::from(len)),
            Request::Probe { key } => {
                let key = self.shared.key(key)?;
                let well = self
                    .attempt(|t| key.round_trip(&t.shared.raw, &t.session, t.shared.convention));
                match well.map_err(|fault| fatal(&fault, "the probe failed"))? {
                    true => self.reply(id, &Reply::Done),
                    false => Err(Fatal::Lost(Failure::new(
                        FailureKind::Away,
                        format!("key {}: what it wrapped it does not open", key.spec.name),
                    ))),
                }
            }
            Request::Describe => {
                let info = self.shared.info.clone();
                self.reply(id, &Reply::Token(info))
            }
            Request::OpenKey(spec) => {
                let opened = self.open_key(spec).map_err(Fatal::No)?;
                self.reply(id, &Reply::Key(opened))
            }
            Request::GenerateKey { label } => {
                gate::generate(&self.session, &label).map_err(Fatal::No)?;
                self.reply(id, &Reply::Done)
            }
            Request::ListTokens | Request::InitToken { .. } => Err(Fatal::No(Failure::new(
                FailureKind::Rejected,
                "not in this mode",
            ))),
        }
    }

    fn reply(&self, id: u64, reply: &Reply<'_>) -> Result<(), Fatal> {
        self.shared.send(id, reply);
        Ok(())
    }

    fn open_key(&self, spec: KeySpec) -> Result<OpenedKey, Failure> {
        let Shared {
            raw,
            convention,
            keys,
            ..
        } = &*self.shared;
        let (key, mut opened) = gate::open(raw, &self.session, *convention, spec)?;
        let mut keys = keys.write().unwrap_or_else(PoisonError::into_inner);
        opened.id = u32::try_from(keys.len())
            .map_err(|_| Failure::new(FailureKind::Away, "too many keys were opened"))?;
        keys.push(key);
        Ok(opened)
    }

    fn wrap(&mut self, id: u64, key: u32, data_key: &[u8], aad: &[u8]) -> Result<(), Fatal> {
        let key = self.shared.key(key)?;
        if data_key.len() != mechanism::KEY_LEN {
            return Err(Fatal::No(Failure::new(
                FailureKind::Rejected,
                "a data key has 32 bytes",
            )));
        }
        let mut wraps = 0;
        let wrapped = self
            .attempt(|t| {
                wraps += 1;
                let Shared {
                    raw, convention, ..
                } = &*t.shared;
                convention.wrap(raw, &t.session, key.handle, data_key, aad)
            })
            .map_err(|fault| fatal(&fault, "the wrap failed"))?;
        let reply = Reply::Wrapped {
            iv: wrapped.iv,
            ciphertext: &wrapped.ciphertext,
            wraps,
        };
        self.reply(id, &reply)
    }

    fn unwrap(
        &mut self,
        id: u64,
        key: u32,
        iv: &[u8; IV_LEN],
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<(), Fatal> {
        let key = self.shared.key(key)?;
        let bad = || Fatal::No(Failure::new(FailureKind::BadCiphertext, "it does not open"));
        let during = During::Decrypt {
            bad_ciphertext: key.bad_ciphertext,
        };
        let opened = self.attempt_during(during, |t| {
            mechanism::unwrap(&t.shared.raw, &t.session, key.handle, iv, ciphertext, aad)
        });
        match opened {
            Ok(Some(data_key)) => self.reply(id, &Reply::DataKey(&data_key[..])),
            // It authenticated, but is no data key of ours.
            Ok(None) => Err(bad()),
            Err(fault) => match classify(fault.code, during) {
                Class::BadInput => Err(bad()),
                Class::Ambiguous => self.judge(&key, &fault).and_then(|()| Err(bad())),
                _ => Err(fatal(&fault, "the unwrap failed")),
            },
        }
    }

    /// A decrypt failed with a code that says nothing: if the key still opens
    /// what it is known to open, the ciphertext is bad; otherwise we are.
    fn judge(&mut self, key: &Opened, fault: &Fault) -> Result<(), Fatal> {
        let lost = |why: String| {
            Err(Fatal::Lost(Failure::new(
                FailureKind::Away,
                format!("the unwrap failed: {why}"),
            )))
        };
        match self.attempt(|t| key.still_opens(&t.shared.raw, &t.session)) {
            Ok(true) => Ok(()),
            Ok(false) => lost(format!(
                "{fault}, and a known-good wrap opens to something else"
            )),
            Err(known) => lost(format!("{fault}, and a known-good wrap fails too: {known}")),
        }
    }

    fn random(&mut self, id: u64, len: usize) -> Result<(), Fatal> {
        if len > MAX_RANDOM {
            return Err(Fatal::No(Failure::new(
                FailureKind::Rejected,
                "too many random bytes",
            )));
        }
        let mut bytes = Zeroizing::new(vec![0; len]);
        self.attempt(|t| Ok(t.session.generate_random_slice(&mut bytes)?))
            .map_err(|fault| fatal(&fault, "the token's generator failed"))?;
        // A generator that "succeeds" without writing would otherwise be
        // mixed into every data key unnoticed.
        if len >= 32 && bytes.iter().all(|byte| *byte == 0) {
            let fault = Fault::new(CKR_RANDOM_NO_RNG, "C_GenerateRandom returned zeros");
            return Err(fatal(&fault, "the token's generator failed"));
        }
        self.reply(id, &Reply::Random(&bytes))
    }

    fn attempt<T>(&mut self, call: impl FnMut(&Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.attempt_during(During::Other, call)
    }

    /// Makes a call, again after a pause if its code is a transient one. Each
    /// attempt at a wrap has an IV of its own.
    fn attempt_during<T>(
        &mut self,
        during: During,
        mut call: impl FnMut(&Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let fault = match call(self) {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            if classify(fault.code, during) != Class::Transient || attempt == ATTEMPTS {
                return Err(fault);
            }
            self.refresh(fault.code)?;
            std::thread::sleep(pause.mul_f64(1.0 + jitter()));
            pause *= 2;
            attempt += 1;
        }
    }

    /// A session on which an operation was left active is good for nothing.
    /// The login belongs to the process, not to the session.
    fn refresh(&mut self, code: CK_RV) -> Result<(), Fault> {
        if code == CKR_OPERATION_ACTIVE {
            self.session = module::open_session(&self.shared.pkcs11, self.shared.slot)?;
        }
        Ok(())
    }
}

/// Whether a failed call costs this request or this process.
fn fatal(fault: &Fault, what: &str) -> Fatal {
    let failure = fault.failed(what);
    match fault.class() {
        Class::SessionLost | Class::ModuleLost => Fatal::Lost(failure),
        _ => Fatal::No(failure),
    }
}

/// A random number from 0 to 1; its quality does not matter.
fn jitter() -> f64 {
    let mut byte = [0];
    // Without jitter a retry is only less polite.
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

/// A panic ends the process, so a poisoned lock cannot be seen in earnest.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
