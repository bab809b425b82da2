//! Work on tokens that needs no agent: `strongroom token init` and `list`,
//! offline `key generate`, and the token part of `doctor`.
//!
//! Each call starts a worker of its own and ends it, so that no command ever
//! has a PKCS#11 module in its own process.

use std::path::{Path, PathBuf};

use crate::api::{Error, ErrorKind, ImportBegun, ImportStep, KeyInfo};
use crate::audit::PublicKey;
use crate::config::{self, Config};
use crate::secret::Pin;
use crate::token::{Arrival, KeySpec, Offline, OpenedKey, Signer, TokenError};

pub use crate::token::{InitTarget, TokenEntry};

/// Starts workers from one binary: this one, outside of tests.
pub struct Admin {
    exe: PathBuf,
}

/// One thing that `doctor` looked at.
#[derive(Debug)]
pub struct Check {
    /// What was looked at, such as `token primary` or `key archive-2026`.
    pub what: String,
    /// What was found, or what is wrong and what to do.
    pub result: Result<String, Error>,
}

/// Every token of a PKCS#11 module.
///
/// # Errors
/// The module is missing or does not load.
pub fn list_tokens(module: &Path) -> Result<Vec<TokenEntry>, Error> {
    Admin::this_binary()?.list_tokens(module)
}

/// Initialises a token and sets the user's PIN, which is then tried.
///
/// # Errors
/// A token of that label exists, the token is initialised already, or it
/// refuses a PIN.
pub fn init_token(
    module: &Path,
    target: &InitTarget,
    label: &str,
    so_pin: &Pin,
    user_pin: &Pin,
) -> Result<TokenEntry, Error> {
    Admin::this_binary()?.init_token(module, target, label, so_pin, user_pin)
}

/// Makes a wrapping key in a configured token and runs the start-up gate on
/// it.
///
/// # Errors
/// A key of that label exists, or the token cannot be used.
pub fn generate_key(token: &config::Token, label: &str) -> Result<KeyInfo, Error> {
    Admin::this_binary()?.generate_key(token, label)
}

/// Makes an audit key in a token, without the agent.
///
/// # Errors
/// A key of that label exists, or the token cannot be used.
pub fn generate_audit_key(token: &config::Token, label: &str) -> Result<KeyInfo, Error> {
    Admin::this_binary()?.generate_audit_key(token, label)
}

/// What is told of a new audit key.
///
/// # Errors
/// The token gave something that is no public key.
pub fn audit_key_info(token: &str, label: &str, signer: Signer) -> Result<KeyInfo, Error> {
    let key = PublicKey::from_point(&signer.public_key).ok_or_else(|| {
        Error::new(
            ErrorKind::Misconfigured,
            "the token's public key is no point of P-256",
        )
    })?;
    Ok(KeyInfo {
        name: label.to_owned(),
        token: token.to_owned(),
        tokens: vec![token.to_owned()],
        label: label.to_owned(),
        usage: "audit".to_owned(),
        ready: true,
        attributes: signer.attributes,
        public_key: Some(key.to_pem()),
        ..KeyInfo::default()
    })
}

/// Takes a step of an import, without the agent.
///
/// # Errors
/// The token cannot be used, or refuses the step.
pub fn import_key(token: &config::Token, label: &str, step: ImportStep) -> Result<Imported, Error> {
    let mut worker = Offline::log_in(token, &Admin::this_binary()?.exe)?;
    Ok(match step {
        ImportStep::Begin => {
            let begun = worker.begin_import(label)?;
            Imported::Begun(ImportBegun {
                public_key: begun.public_key,
                hash: begun.hash,
            })
        }
        ImportStep::Cancel => {
            worker.cancel_import(label)?;
            Imported::Cancelled
        }
        ImportStep::Finish {
            pair,
            hash,
            sealed,
            check_value,
        } => {
            let arrival = Arrival {
                label: label.to_owned(),
                pair,
                hash,
                sealed,
                check_value,
            };
            let opened = worker.finish_import(&arrival)?;
            Imported::Finished(Box::new(imported_key_info(&token.name, &arrival, opened)))
        }
    })
}

/// What is told of an imported key. Its check value is the one that came with
/// it: not every token reports one, and the proof has shown that it is this
/// key's.
#[must_use]
pub fn imported_key_info(token: &str, arrival: &Arrival, opened: OpenedKey) -> KeyInfo {
    KeyInfo {
        name: arrival.label.clone(),
        token: token.to_owned(),
        tokens: vec![token.to_owned()],
        label: arrival.label.clone(),
        ring: arrival.label.clone(),
        usage: "active".to_owned(),
        ready: true,
        wrap_limit: config::WrapLimit::default().wraps(),
        wraps_complete: true,
        check_value: Some(data_encoding::HEXLOWER.encode(&arrival.check_value)),
        attributes: opened.attributes,
        ..KeyInfo::default()
    }
}

/// What a step of an import came to.
#[derive(Debug)]
pub enum Imported {
    /// The pair is made.
    Begun(ImportBegun),
    /// The key is in the token.
    Finished(Box<KeyInfo>),
    /// The pair is destroyed.
    Cancelled,
}

/// Looks at a configured token and its keys: does the module load, is the
/// token there, is the PIN accepted (one attempt), does each key pass the
/// gate. Canaries are the agent's to open.
#[must_use]
pub fn check_token(token: &config::Token, keys: &[KeySpec]) -> Vec<Check> {
    match Admin::this_binary() {
        Ok(admin) => admin.check_token(token, keys),
        Err(error) => vec![Check {
            what: format!("token {}", token.name),
            result: Err(error),
        }],
    }
}

/// The directory with `file` in it that the server can write to, if there is
/// one: no place for a PIN, which the server could read, or exchange.
#[must_use]
pub fn servers_directory_of(config: &Config, file: &Path) -> Option<PathBuf> {
    let real = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let state = &config.agent.state_dir;
    let spool = config.spool.dir.clone();
    [state.clone(), spool.unwrap_or_else(|| state.join("spool"))]
        .into_iter()
        .map(|dir| dir.canonicalize().unwrap_or(dir))
        .find(|dir| real.starts_with(dir) || file.starts_with(dir))
}

impl Admin {
    /// Starts workers from the running binary.
    ///
    /// # Errors
    /// The system does not say where it is.
    pub fn this_binary() -> Result<Self, Error> {
        let exe = std::env::current_exe().map_err(|error| {
            Error::new(
                ErrorKind::Internal,
                format!("cannot find this program's own file: {error}"),
            )
        })?;
        Ok(Self { exe })
    }

    /// Starts workers from `exe`, which must be `strongroom`.
    #[must_use]
    pub fn with(exe: impl Into<PathBuf>) -> Self {
        Self { exe: exe.into() }
    }

    /// See [`list_tokens`].
    ///
    /// # Errors
    /// See there.
    pub fn list_tokens(&self, module: &Path) -> Result<Vec<TokenEntry>, Error> {
        Ok(Offline::load(module, &self.exe)?.list_tokens()?)
    }

    /// See [`init_token`].
    ///
    /// # Errors
    /// See there.
    pub fn init_token(
        &self,
        module: &Path,
        target: &InitTarget,
        label: &str,
        so_pin: &Pin,
        user_pin: &Pin,
    ) -> Result<TokenEntry, Error> {
        let mut worker = Offline::load(module, &self.exe)?;
        Ok(worker.init_token(target, label, so_pin, user_pin)?)
    }

    /// See [`generate_audit_key`].
    ///
    /// # Errors
    /// See there.
    pub fn generate_audit_key(&self, token: &config::Token, label: &str) -> Result<KeyInfo, Error> {
        let signer = Offline::log_in(token, &self.exe)?.generate_signer(label)?;
        audit_key_info(&token.name, label, signer)
    }

    /// See [`generate_key`].
    ///
    /// # Errors
    /// See there.
    pub fn generate_key(&self, token: &config::Token, label: &str) -> Result<KeyInfo, Error> {
        let mut worker = Offline::log_in(token, &self.exe)?;
        worker.generate_key(label)?;
        let opened = worker.open_key(&KeySpec {
            name: label.to_owned(),
            label: label.to_owned(),
            imported: false,
        })?;
        Ok(KeyInfo {
            name: label.to_owned(),
            token: token.name.clone(),
            tokens: vec![token.name.clone()],
            label: label.to_owned(),
            ring: label.to_owned(),
            usage: "active".to_owned(),
            ready: true,
            wrap_limit: config::WrapLimit::default().wraps(),
            wraps_complete: true,
            check_value: hex(&opened),
            attributes: opened.attributes,
            ..KeyInfo::default()
        })
    }

    /// See [`check_token`].
    #[must_use]
    pub fn check_token(&self, token: &config::Token, keys: &[KeySpec]) -> Vec<Check> {
        let check = |what: String, result: Result<String, TokenError>| Check {
            what,
            result: result.map_err(Error::from),
        };
        let what = format!("token {}", token.name);
        let mut worker = match Offline::log_in(token, &self.exe) {
            Ok(worker) => worker,
            Err(error) => return vec![check(what, Err(error))],
        };
        let found = worker.info().map_or_else(String::new, |info| {
            format!(
                "{} {}, label {:?}, serial {}{}",
                info.manufacturer,
                info.model,
                info.label,
                info.serial,
                if info.soft { " (a software token)" } else { "" }
            )
        });
        let mut checks = vec![check(what, Ok(found))];
        for key in keys {
            let opened = worker.open_key(key).map(|opened| {
                hex(&opened).map_or_else(
                    || "passes the start-up gate".to_owned(),
                    |value| format!("passes the start-up gate, check value {value}"),
                )
            });
            checks.push(check(format!("key {}", key.name), opened));
        }
        checks
    }
}

fn hex(opened: &OpenedKey) -> Option<String> {
    opened
        .check_value
        .map(|value| data_encoding::HEXLOWER.encode(&value))
}
