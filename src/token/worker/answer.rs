//! What a session thread does with one request.
//!
//! A failure is judged here, where the session is: retried if it is known to
//! pass, blamed on the input only after the token has shown that it is well
//! (docs/tokens.md, "Failure classes").

use std::time::Duration;

use cryptoki_sys::*;
use zeroize::Zeroizing;

use crate::token::IV_LEN;
use crate::token::protocol::{
    Failure, FailureKind, Frame, KeySpec, OpenedKey, PROOF_COST, Reply, Request, WRAP_COST,
};

use super::failure::{Class, During, Fault, classify, counted};
use super::gate::{self, Opened};
use super::import::{Arriving, Importer};
use super::mechanism::Wrapped;
use super::serve::{Shared, Thread};
use super::{mechanism, module, signer};

/// Attempts at a call that fails with a transient code; with the pauses below
/// that is at most about 0.3 s, well inside any `call_timeout`.
const ATTEMPTS: u32 = 4;
const _: () = assert!(
    ATTEMPTS <= PROOF_COST && 3 * ATTEMPTS <= WRAP_COST,
    "a wrap is tried, the key proved, and the wrap tried again"
);
/// The pause before the second attempt; it doubles, and up to as much again
/// is added at random so that sessions do not retry in step.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Most random bytes of one request; the pool's block is 4 KiB.
const MAX_RANDOM: usize = 16 * 1024;
/// Random bytes of one call: libkmsp11 gives 8 to 1,024.
const RANDOM_PIECE: usize = 1024;

impl Thread {
    /// Does what a frame asks for and answers it; an error is still to be
    /// answered. Never inlined, so that all it used of the stack lies below
    /// its caller's when that is overwritten.
    #[inline(never)]
    pub(super) fn answer(&mut self, frame: &Frame) -> Result<(), Failure> {
        let request = frame
            .decode()
            .map_err(|error| Failure::new(FailureKind::Lost, error.to_string()))?;
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
                self.prove(&key, "the probe failed")?;
                self.reply(id, &Reply::Done)
            }
            Request::Describe => {
                let info = self.shared.info.clone();
                self.reply(id, &Reply::Token(info))
            }
            Request::OpenKey(spec) => {
                let opened = self.open_key(spec)?;
                self.reply(id, &Reply::Key(opened))
            }
            Request::GenerateKey { label } => {
                gate::generate(&self.session, self.shared.convention, &label)?;
                self.reply(id, &Reply::Done)
            }
            Request::OpenSigner { label } => {
                let (_, signer) = signer::open(&self.session, &label)?;
                self.reply(id, &Reply::Signer(signer))
            }
            Request::Sign { label, message } => {
                let (signature, signer) = signer::sign(&self.session, label, message)?;
                let signature = &signature;
                self.reply(id, &Reply::Signed { signature, signer })
            }
            Request::GenerateSigner { label } => {
                let signer = signer::generate(&self.session, &label)?;
                self.reply(id, &Reply::Signer(signer))
            }
            Request::BeginImport { label } => {
                let transport = self.importer().begin(label)?;
                self.reply(id, &Reply::Transport(transport))
            }
            Request::FinishImport {
                label,
                pair,
                hash,
                sealed,
                check_value,
            } => {
                self.importer().finish(&Arriving {
                    label,
                    pair,
                    hash,
                    sealed: &sealed,
                    check_value,
                })?;
                self.reply(id, &Reply::Done)
            }
            Request::CancelImport { label } => {
                self.importer().cancel(label)?;
                self.reply(id, &Reply::Done)
            }
            Request::ListTokens | Request::InitToken { .. } | Request::Recover { .. } => {
                Err(Failure::new(FailureKind::Rejected, "not in this mode"))
            }
        }
    }

    fn reply(&self, id: u64, reply: &Reply<'_>) -> Result<(), Failure> {
        self.shared.send(id, reply);
        Ok(())
    }

    fn importer(&self) -> Importer<'_> {
        Importer {
            session: &self.session,
            raw: &self.shared.raw,
            convention: self.shared.convention,
        }
    }

    fn open_key(&self, spec: KeySpec) -> Result<OpenedKey, Failure> {
        let Shared {
            raw, convention, ..
        } = &*self.shared;
        let (key, mut opened) = gate::open(raw, &self.session, *convention, spec)?;
        opened.id = self.shared.keep(key)?;
        Ok(opened)
    }

    fn wrap(&mut self, id: u64, key: u32, data_key: &[u8], aad: &[u8]) -> Result<(), Failure> {
        const WHAT: &str = "the wrap failed";
        let key = self.shared.key(key)?;
        if data_key.len() != mechanism::KEY_LEN {
            let detail = "a data key has 32 bytes";
            return Err(Failure::new(FailureKind::Rejected, detail));
        }
        // A code that speaks of parameters speaks of this context; any other
        // is the token's own matter, although it is well otherwise.
        let refused = |fault: &Fault| {
            let kind = match fault.class() {
                Class::Configuration | Class::BadInput => FailureKind::Rejected,
                _ if matches!(fault.code, CKR_ARGUMENTS_BAD | CKR_BUFFER_TOO_SMALL) => {
                    FailureKind::Rejected
                }
                _ => FailureKind::Away,
            };
            Failure::new(kind, format!("{WHAT}: {fault}"))
        };
        let mut calls = 0;
        let wrapped = self.judged(&key, During::Encrypt, WHAT, refused, |t| {
            calls += 1;
            let Shared {
                raw, convention, ..
            } = &*t.shared;
            convention.wrap(raw, &t.session, key.handle, data_key, aad)
        })?;
        if nothing_encrypted(&wrapped, data_key) {
            let detail = format!("{WHAT}: the token says it encrypted, and did not");
            return Err(Failure::new(FailureKind::Lost, detail));
        }
        if self.shared.verify_wraps {
            self.verify(&key, &wrapped, data_key, aad)?;
        }
        let reply = Reply::Wrapped {
            iv: wrapped.iv,
            ciphertext: &wrapped.ciphertext,
            wraps: if calls == 1 { 1 } else { WRAP_COST },
        };
        self.reply(id, &reply)
    }

    /// Opens what was just wrapped (`verify_wraps`): the one way to notice a
    /// token that alters its output, or wraps with another key than it was
    /// told, before an object depends on it.
    fn verify(
        &mut self,
        key: &Opened,
        wrapped: &Wrapped,
        data_key: &[u8],
        aad: &[u8],
    ) -> Result<(), Failure> {
        const WHAT: &str = "the wrap was not confirmed";
        let opened = self.attempt(During::Other, |t| {
            let Wrapped { iv, ciphertext } = wrapped;
            let Shared {
                raw, convention, ..
            } = &*t.shared;
            convention.unwrap(raw, &t.session, key.handle, iv, ciphertext, aad)
        });
        let same = opened.map(|opened| opened.is_some_and(|found| found[..] == *data_key));
        self.verdict(same, key, WHAT)
    }

    fn unwrap(
        &mut self,
        id: u64,
        key: u32,
        iv: &[u8; IV_LEN],
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<(), Failure> {
        let key = self.shared.key(key)?;
        let bad = || Failure::new(FailureKind::BadCiphertext, "it does not open");
        let during = During::Decrypt {
            bad_ciphertext: key.bad_ciphertext,
        };
        let opened = self.judged(
            &key,
            during,
            "the unwrap failed",
            |_| bad(),
            |t| {
                let Shared {
                    raw, convention, ..
                } = &*t.shared;
                convention.unwrap(raw, &t.session, key.handle, iv, ciphertext, aad)
            },
        )?;
        // It may authenticate, and still be no data key of ours.
        let data_key = opened.ok_or_else(bad)?;
        self.reply(id, &Reply::DataKey(&data_key[..]))
    }

    fn random(&mut self, id: u64, len: usize) -> Result<(), Failure> {
        if len > MAX_RANDOM {
            let detail = "too many random bytes";
            return Err(Failure::new(FailureKind::Rejected, detail));
        }
        let mut bytes = Zeroizing::new(vec![0; len]);
        self.attempt(During::Other, |t| {
            for piece in bytes.chunks_mut(RANDOM_PIECE) {
                counted("C_GenerateRandom", t.session.generate_random_slice(piece))?;
                module::check_random(piece)?;
            }
            Ok(())
        })
        .map_err(|fault| {
            let mut failure = fault.failed("the token's generator failed");
            // It worked when this process started: a new one tells whether
            // somebody has to mend it.
            if failure.kind == FailureKind::Misconfigured {
                failure.kind = FailureKind::Lost;
            }
            failure
        })?;
        self.reply(id, &Reply::Random(&bytes))
    }

    /// Makes a call whose input is somebody else's. A failure that may be the
    /// token's as well as the input's is blamed on the input (`refused`) only
    /// if it comes twice, with a known-good call that succeeds in between.
    fn judged<T>(
        &mut self,
        key: &Opened,
        during: During,
        what: &str,
        refused: impl Fn(&Fault) -> Failure,
        mut call: impl FnMut(&Self) -> Result<T, Fault>,
    ) -> Result<T, Failure> {
        let mut doubted = false;
        loop {
            let fault = match self.attempt(during, &mut call) {
                Ok(done) => return Ok(done),
                Err(fault) => fault,
            };
            match classify(fault.code, during) {
                Class::Ambiguous if doubted => return Err(refused(&fault)),
                Class::Ambiguous => {
                    let what = format!("{what}: {fault}");
                    match during {
                        During::Decrypt { .. } => self.prove_opens(key, &what)?,
                        During::Encrypt | During::Other => self.prove(key, &what)?,
                    }
                    doubted = true;
                }
                _ => return Err(fault.failed(what)),
            }
        }
    }

    /// The key wraps, opens what it wrapped, and opens what it is known to.
    fn prove(&mut self, key: &Opened, what: &str) -> Result<(), Failure> {
        let well = self.attempt(During::Other, |t| {
            key.round_trip(&t.shared.raw, &t.session, t.shared.convention)
        });
        self.verdict(well, key, what)?;
        self.prove_opens(key, what)
    }

    /// The key opens what it is known to open.
    fn prove_opens(&mut self, key: &Opened, what: &str) -> Result<(), Failure> {
        let well = self.attempt(During::Other, |t| {
            key.still_opens(&t.shared.raw, &t.session)
        });
        self.verdict(well, key, what)
    }

    fn verdict(&self, well: Result<bool, Fault>, key: &Opened, what: &str) -> Result<(), Failure> {
        let name = &key.spec.name;
        match well {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(
                FailureKind::Lost,
                format!(
                    "{what}: what key {name} wrapped it does not open; objects written since the last probe should be read again"
                ),
            )),
            Err(fault) => {
                let mut failure = fault.failed(format!("{what}: key {name}"));
                // It is what the key took, or made, before.
                if failure.kind == FailureKind::Rejected {
                    failure.kind = FailureKind::Lost;
                }
                Err(failure)
            }
        }
    }

    /// Makes a call, again after a pause if its code is a transient one. Each
    /// attempt at a wrap has an IV of its own.
    fn attempt<T>(
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
    /// The new one is opened before the old one closes: with the last session
    /// the login would go too.
    fn refresh(&mut self, code: CK_RV) -> Result<(), Fault> {
        if code == CKR_OPERATION_ACTIVE {
            let opened = module::open_session(&self.shared.pkcs11, self.shared.slot);
            // A token at its limit of sessions: a new process has them all.
            self.session = opened.map_err(|fault| {
                let why = format!("no session in place of a busy one: {fault}");
                Fault::new(CKR_SESSION_HANDLE_INVALID, &why)
            })?;
        }
        Ok(())
    }
}

/// What costs nothing to notice of a module that does not do its work.
fn nothing_encrypted(wrapped: &Wrapped, data_key: &[u8]) -> bool {
    let Wrapped { ciphertext, .. } = wrapped;
    ciphertext.starts_with(data_key) || ciphertext.iter().all(|byte| *byte == 0)
}

/// A random number from 0 to 1; its quality does not matter.
fn jitter() -> f64 {
    let mut byte = [0];
    // Without jitter a retry is only less polite.
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}
