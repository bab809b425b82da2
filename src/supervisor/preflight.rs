//! What can be checked about a configuration by looking at the files it
//! names: never into them, least of all into a PIN.

use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use rustix::net::SocketAddrUnix;

use crate::config::{Config, Token};
use crate::control::MAX_CONFIG;
use crate::recipient::{MAX_FILE, PublicKey};
use crate::secret::PinError;
use crate::token::pin_path;

use super::SupervisorError;

/// A configuration that was found good, with what the server needs of it.
pub(super) struct Loaded {
    pub(super) config: Config,
    /// The server cannot open the file.
    pub(super) text: String,
    /// Nor can it look up the users and groups of grants.
    pub(super) principals: Vec<u32>,
    /// Nor can it open the files of RSA recipients.
    pub(super) public_keys: Vec<Vec<u8>>,
}

/// Reads, validates and checks a configuration.
pub(super) fn load(path: &Path) -> Result<Loaded, SupervisorError> {
    let refused = |error: crate::config::ConfigError| {
        SupervisorError::configuration(error.message, error.hint)
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        // It says why, and what to do.
        Err(error) => {
            return Err(Config::load(path).err().map_or_else(
                || SupervisorError::configuration(error.to_string(), "try again"),
                refused,
            ));
        }
    };
    if text.len() > MAX_CONFIG {
        return Err(SupervisorError::configuration(
            format!("{}: longer than {MAX_CONFIG} bytes", path.display()),
            "shorten it; comments count",
        ));
    }
    let config = Config::parse(&text, path).map_err(refused)?;
    check_socket(&config.agent.socket)?;
    for token in &config.tokens {
        check_module(token)?;
        check_pin(token, &config)?;
    }
    let principals = config.principals().map_err(refused)?;
    let public_keys = public_keys(&config)?;
    Ok(Loaded {
        config,
        text,
        principals,
        public_keys,
    })
}

/// Settings that processes were built on, and that a reload cannot change.
pub(super) fn check_unchanged(old: &Config, new: &Config) -> Result<(), SupervisorError> {
    let (a, b) = (&old.agent, &new.agent);
    let same = [
        ("agent.socket", a.socket == b.socket),
        ("agent.socket_mode", a.socket_mode == b.socket_mode),
        ("agent.socket_group", a.socket_group == b.socket_group),
        ("agent.state_dir", a.state_dir == b.state_dir),
        ("spool.dir", old.spool.dir == new.spool.dir),
    ];
    match same.iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((name, _)) => Err(SupervisorError::configuration(
            format!(
                "{}: {name} cannot change while the agent runs",
                new.path.display()
            ),
            format!("restart the agent, or put {name} back"),
        )),
    }
}

/// The public keys of RSA recipients, in the configuration's order.
fn public_keys(config: &Config) -> Result<Vec<Vec<u8>>, SupervisorError> {
    let each = config.recipients.public_keys().map(|(recipient, path)| {
        let fault = |why: String| {
            SupervisorError::configuration(
                format!("recipient {:?}: {}: {why}", recipient.name, path.display()),
                "put the recipient's RSA public key there, in PEM",
            )
        };
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
            .map_err(|error| fault(error.to_string()))?;
        let key = PublicKey::from_pem(&text).map_err(|error| fault(error.to_string()))?;
        if key.is_short() {
            tracing::warn!(
                recipient = recipient.name,
                bits = key.bits(),
                "the RSA key is shorter than the 3072 bits recommended for archives"
            );
        }
        Ok(key.to_der())
    });
    each.collect()
}

fn check_socket(path: &Path) -> Result<(), SupervisorError> {
    SocketAddrUnix::new(path).map(drop).map_err(|_| {
        SupervisorError::configuration(
            format!(
                "agent.socket {} is longer than the 107 bytes that Unix sockets allow",
                path.display()
            ),
            "choose a shorter path",
        )
    })
}

fn check_module(token: &Token) -> Result<(), SupervisorError> {
    let what = match token.module.metadata() {
        Ok(meta) if meta.is_file() => return Ok(()),
        Ok(_) => "not a regular file".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(SupervisorError::configuration(
        format!(
            "token {:?}: the PKCS#11 module {}: {what}",
            token.name,
            token.module.display()
        ),
        "install the token's PKCS#11 library, or correct `module`",
    ))
}

fn check_pin(token: &Token, config: &Config) -> Result<(), SupervisorError> {
    let fault = |text: String, hint: &str| {
        SupervisorError::configuration(format!("token {:?}: {text}", token.name), hint)
    };
    let path = pin_path(token).map_err(|error| {
        let name = token.pin_credential.as_deref().unwrap_or_default();
        fault(
            format!("no credential {name:?}: {error}"),
            "start the agent by systemd with LoadCredential=, or use pin_file",
        )
    })?;
    let hint = "put the PIN in a file of mode 0400 that belongs to root or the agent's user";
    let io = |source| {
        let path = path.clone();
        fault(PinError::Io { path, source }.to_string(), hint)
    };
    let meta = path.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(io(io::Error::other("not a regular file")));
    }
    let mode = meta.mode() & 0o7777;
    // Where systemd grants the service's user access by an ACL, the group's
    // bits are the ACL's mask and say nothing about the group.
    let exposed = match token.pin_credential {
        Some(_) => mode & 0o007,
        None => mode & 0o077,
    };
    if exposed != 0 {
        return Err(fault(PinError::Exposed { path, mode }.to_string(), hint));
    }
    let uid = meta.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(fault(PinError::Owner { path, uid }.to_string(), hint));
    }
    match crate::admin::servers_directory_of(config, &path) {
        None => Ok(()),
        Some(dir) => Err(fault(
            format!(
                "the PIN file {} is inside {}, which the server can read and write",
                path.display(),
                dir.display()
            ),
            "move it elsewhere, such as /etc/strongroom/pin",
        )),
    }
}

/// Creates the state directory, closed to everybody else, with its parents.
pub(super) fn create_state_dir(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => return result,
    }
    let meta = dir.metadata()?;
    if !meta.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    if meta.mode() & 0o077 != 0 {
        tracing::warn!(
            dir = %dir.display(),
            "other users can look into the state directory (chmod 0700)"
        );
    }
    Ok(())
}
