//! A short-lived worker for one command: listing and initialising tokens,
//! generating a key, checking a set-up. Blocking, no runtime; the PIN stays
//! on the socket between the two processes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::config;
use crate::secret::Pin;

use super::error::TokenError;
use super::protocol::{
    Frame, HELLO, KeySpec, Mode, OpenedKey, Reply, Request, Setup, Signer, TALLY, TokenEntry,
    TokenInfo,
};
use super::spawn::spawn_with;
use super::wire::{self, Inbox};

/// How long one operation may take. Initialising a hardware token, or
/// generating a key that two HSMs must hold, takes seconds; a command that a
/// person waits for should not take minutes.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A worker of one's own; ends when dropped.
pub struct Offline {
    link: OwnedFd,
    inbox: Inbox,
    child: Child,
    next: u64,
    info: Option<TokenInfo>,
}

/// Which token to initialise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitTarget {
    /// The first that is not initialised.
    Free,
    /// The one in this slot.
    Slot(u64),
    /// The one with this serial number.
    Serial(String),
}

impl Offline {
    /// Starts a worker that is logged in to a configured token, with one
    /// session: exactly one attempt with the PIN.
    ///
    /// # Errors
    /// See [`TokenError`]: the hello's failure.
    pub fn log_in(token: &config::Token, exe: &Path) -> Result<Self, TokenError> {
        let token = config::Token {
            sessions: 1,
            ..token.clone()
        };
        Self::start(&Setup::serve(&token).map_err(away)?, exe)
    }

    /// Starts a worker that loads a module and logs in to nothing.
    ///
    /// # Errors
    /// See [`TokenError`]: the module does not load.
    pub fn load(module: &Path, exe: &Path) -> Result<Self, TokenError> {
        let setup = Setup {
            module: module.to_owned(),
            network: true,
            mode: Mode::Admin,
        };
        Self::start(&setup, exe)
    }

    pub(super) fn start(setup: &Setup, exe: &Path) -> Result<Self, TokenError> {
        let (child, link) = spawn_with(exe, setup).map_err(away)?;
        let mut worker = Self {
            link,
            inbox: Inbox::new(),
            child,
            next: HELLO,
            info: None,
        };
        wire::limit_waiting(&worker.link, Some(PATIENCE)).map_err(away)?;
        let hello = worker.receive()?;
        worker.info = match hello.decode().map_err(away)? {
            Reply::Token(info) => Some(info),
            _ => None,
        };
        Ok(worker)
    }

    /// The token that it is logged in to.
    #[must_use]
    pub fn info(&self) -> Option<&TokenInfo> {
        self.info.as_ref()
    }

    /// Every token of the module.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn list_tokens(&mut self) -> Result<Vec<TokenEntry>, TokenError> {
        match self.call(&Request::ListTokens)?.decode().map_err(away)? {
            Reply::Tokens(tokens) => Ok(tokens),
            _ => Err(strange()),
        }
    }

    /// Initialises a token and sets the user's PIN.
    ///
    /// # Errors
    /// [`TokenError::Exists`] if the label is taken, or the token is
    /// initialised; [`TokenError::Rejected`] for a PIN that it does not take.
    pub fn init_token(
        &mut self,
        target: &InitTarget,
        label: &str,
        so_pin: &Pin,
        user_pin: &Pin,
    ) -> Result<TokenEntry, TokenError> {
        let (slot, serial) = match target {
            InitTarget::Free => (None, None),
            InitTarget::Slot(slot) => (Some(*slot), None),
            InitTarget::Serial(serial) => (None, Some(serial.clone())),
        };
        let request = Request::InitToken {
            slot,
            serial,
            label: label.to_owned(),
            so_pin: so_pin.expose(),
            user_pin: user_pin.expose(),
        };
        match self.call(&request)?.decode().map_err(away)? {
            Reply::Tokens(mut tokens) => tokens.pop().ok_or_else(strange),
            _ => Err(strange()),
        }
    }

    /// Makes a wrapping key in the token.
    ///
    /// # Errors
    /// [`TokenError::Exists`] if the label is taken, and the others.
    pub fn generate_key(&mut self, label: &str) -> Result<(), TokenError> {
        let label = label.to_owned();
        self.call(&Request::GenerateKey { label }).map(drop)
    }

    /// Makes an audit key in the token, and has it sign.
    ///
    /// # Errors
    /// [`TokenError::Exists`] if the label is taken, and the others.
    pub fn generate_signer(&mut self, label: &str) -> Result<Signer, TokenError> {
        let label = label.to_owned();
        self.signer_by(&Request::GenerateSigner { label })
    }

    /// Looks at the audit key of that label.
    ///
    /// # Errors
    /// [`TokenError::Misconfigured`] if it is no key that only signs.
    pub fn signer(&mut self, label: &str) -> Result<Signer, TokenError> {
        let label = label.to_owned();
        self.signer_by(&Request::OpenSigner { label })
    }

    fn signer_by(&mut self, request: &Request<'_>) -> Result<Signer, TokenError> {
        match self.call(request)?.decode().map_err(away)? {
            Reply::Signer(signer) => Ok(signer),
            _ => Err(strange()),
        }
    }

    /// Runs the start-up gate for a key; not its canary.
    ///
    /// # Errors
    /// [`TokenError::Misconfigured`] with what the gate found.
    pub fn open_key(&mut self, spec: &KeySpec) -> Result<OpenedKey, TokenError> {
        let request = Request::OpenKey(spec.clone());
        match self.call(&request)?.decode().map_err(away)? {
            Reply::Key(opened) => Ok(opened),
            _ => Err(strange()),
        }
    }

    pub(super) fn call(&mut self, request: &Request<'_>) -> Result<Frame, TokenError> {
        self.next += 1;
        let frame = Frame::encode(self.next, request).map_err(away)?;
        wire::send(&self.link, &frame).map_err(away)?;
        self.receive()
    }

    fn receive(&mut self) -> Result<Frame, TokenError> {
        let frame = match self.inbox.recv(&self.link) {
            Ok(Some(frame)) if frame.id() == TALLY => return self.receive(),
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(TokenError::away("the token's worker ended")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(TokenError::Timeout);
            }
            Err(error) => return Err(away(error)),
        };
        if frame.id() != self.next {
            return Err(strange());
        }
        match frame.decode().map_err(away)? {
            Reply::Failed(failure) => Err(failure.into()),
            _ => Ok(frame),
        }
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        // It has nothing to finish, and may be stuck in the module.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn away(error: io::Error) -> TokenError {
    TokenError::away(format!("the token's worker: {error}"))
}

pub(super) fn strange() -> TokenError {
    TokenError::away("the token's worker answered something strange")
}
