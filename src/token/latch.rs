//! The PIN latch (SECURITY.md 22): a refused PIN is not tried again until the
//! PIN file or the token's configuration differs, however often worker, agent
//! or host restart. Tokens lock their user after a few wrong PINs.
//!
//! Remembered is which file held the PIN, by inode, ctime and size; never
//! anything made from the PIN itself.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Token;

/// Which PIN a worker was started with, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    module: PathBuf,
    token_label: Option<String>,
    serial: Option<String>,
    pin_path: PathBuf,
    inode: u64,
    ctime_seconds: i64,
    ctime_nanoseconds: i64,
    size: u64,
}

impl Attempt {
    /// What a worker started now would try. Looks at the PIN file, never
    /// into it.
    ///
    /// # Errors
    /// There is no such file.
    pub fn now(token: &Token) -> io::Result<Self> {
        let path = pin_path(token)?;
        let meta = path.metadata()?;
        Ok(Self {
            module: token.module.clone(),
            token_label: token.token_label.clone(),
            serial: token.serial.clone(),
            pin_path: path,
            inode: meta.ino(),
            ctime_seconds: meta.ctime(),
            ctime_nanoseconds: meta.ctime_nsec(),
            size: meta.size(),
        })
    }
}

/// Refused attempts that are remembered for a token: more than the workers
/// that can be on their way out at once.
const REMEMBERED: usize = 16;

/// The latches of all tokens, one small file each in the state directory.
#[derive(Debug)]
pub struct Latches {
    dir: PathBuf,
    /// What this process saw refused, should the directory be full.
    seen: HashMap<String, Vec<Attempt>>,
}

impl Latches {
    /// Latches kept in `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.to_owned(),
            seen: HashMap::new(),
        }
    }

    /// Token names are file names: `config::check_name` sees to it.
    fn path(&self, token: &str) -> PathBuf {
        self.dir.join(format!("pin-latch-{token}"))
    }

    /// Whether exactly this attempt was refused before. A latch that cannot
    /// be read or understood counts: rather ask the operator once too often
    /// than lock the token.
    #[must_use]
    pub fn holds(&self, token: &str, attempt: &Attempt) -> bool {
        let seen = self.seen.get(token);
        if seen.is_some_and(|seen| seen.contains(attempt)) {
            return true;
        }
        let path = self.path(token);
        let refused = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Vec<Attempt>>(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Err(error) => Err(error),
        };
        refused.map_or_else(
            |error| {
                tracing::error!(path = %path.display(), %error, "cannot read a PIN latch; remove it by hand");
                true
            },
            |refused| refused.contains(attempt),
        )
    }

    /// Remembers a refused attempt, durably.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn set(&mut self, token: &str, attempt: &Attempt) -> io::Result<()> {
        let path = self.path(token);
        // Workers may end in another order than they began: what an earlier
        // one tried must not make a later one's attempt forgotten.
        let known = std::fs::read(&path).unwrap_or_default();
        let mut refused: Vec<Attempt> = serde_json::from_slice(&known).unwrap_or_default();
        let seen = self.seen.entry(token.to_owned()).or_default();
        refused.extend(seen.iter().cloned());
        refused.retain(|other| other != attempt);
        refused.push(attempt.clone());
        refused.dedup();
        let oldest = refused.len().saturating_sub(REMEMBERED);
        refused.drain(..oldest);
        seen.clone_from(&refused);
        let new = path.with_file_name(format!(".pin-latch-{token}.new"));
        // The server may write here too: a link it left must not lead us on.
        if let Err(error) = std::fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        // `doctor` may run as root; the agent's user must be able to read it.
        let dir = std::fs::metadata(&self.dir)?;
        if file.metadata()?.uid() != dir.uid() {
            std::os::unix::fs::fchown(&file, Some(dir.uid()), Some(dir.gid()))?;
        }
        file.write_all(&serde_json::to_vec(&refused)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(&self.dir)?.sync_all()
    }
}

/// Says so, if the PIN that `token` would be opened with was refused before.
#[must_use]
pub fn latched(state_dir: &Path, token: &Token) -> Option<String> {
    let attempt = Attempt::now(token).ok()?;
    Latches::new(state_dir)
        .holds(&token.name, &attempt)
        .then(|| {
            "the token refused the PIN in its PIN file, and the file has not changed since"
                .to_owned()
        })
}

/// Where a token's PIN comes from.
///
/// # Errors
/// `pin_credential` is configured and systemd passed no credentials.
pub fn pin_path(token: &Token) -> io::Result<PathBuf> {
    match (&token.pin_file, &token.pin_credential) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(name)) => std::env::var_os("CREDENTIALS_DIRECTORY")
            .map(|dir| Path::new(&dir).join(name))
            .ok_or_else(|| io::Error::other("CREDENTIALS_DIRECTORY is not set")),
        // `Config::parse` refuses it.
        (None, None) => Err(io::Error::other("no PIN is configured")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rule_22_the_latch_holds_for_the_same_file_and_configuration_only() {
        let dir = tempfile::tempdir().unwrap();
        let pin = dir.path().join("pin");
        std::fs::write(&pin, "4711-secret").unwrap();
        let token: Token = toml::from_str(&format!(
            "name = 't'\nmodule = '/m'\ntoken_label = 'x'\npin_file = {pin:?}"
        ))
        .unwrap();
        let mut latches = Latches::new(dir.path());
        let attempt = Attempt::now(&token).unwrap();
        assert!(!latches.holds("t", &attempt));
        latches.set("t", &attempt).unwrap();
        // As after a restart: nothing but the directory survives.
        let latches = Latches::new(dir.path());
        assert!(latches.holds("t", &attempt));
        let text = std::fs::read_to_string(latches.path("t")).unwrap();
        assert!(!text.contains("4711"), "{text}");

        let mut other = token.clone();
        other.serial = Some("1".into());
        assert!(!latches.holds("t", &Attempt::now(&other).unwrap()));
        std::fs::write(&pin, "4711-correct!").unwrap();
        let later = Attempt::now(&token).unwrap();
        assert!(!latches.holds("t", &later));
        // The later one is refused first, the earlier one after it.
        let mut latches = latches;
        latches.set("t", &later).unwrap();
        latches.set("t", &attempt).unwrap();
        let latches = Latches::new(dir.path());
        assert!(latches.holds("t", &later) && latches.holds("t", &attempt));
        std::fs::write(latches.path("t"), "garbage").unwrap();
        assert!(latches.holds("t", &attempt), "fails closed");
    }
}
