//! Zeroised secrets: a 32-byte key and a PIN.
//!
//! Neither type implements `Clone`, `Debug`, `Display` or `Serialize`; both
//! live on the heap so that moving one copies a pointer, not the secret, and
//! both are overwritten when dropped.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::{Zeroize, Zeroizing};

/// Longest PIN file we read, in bytes. `CKA` PINs are at most 255 bytes on
/// every token we know; CloudHSM's `user:password` stays below 100.
const MAX_PIN_LEN: usize = 1024;

/// A 32-byte secret: a data key (AES-256) or random bytes on their way to one.
pub struct Secret32(Box<[u8; 32]>);

impl Secret32 {
    /// Lets `fill` write the secret directly into its final place.
    pub fn fill_with<E>(fill: impl FnOnce(&mut [u8; 32]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Self(Box::new([0; 32]));
        fill(&mut secret.0)?;
        Ok(secret)
    }

    /// Copies a secret out of `bytes`; `None` unless there are exactly 32.
    /// The caller zeroises its own buffer.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut secret = Self(Box::new([0; 32]));
        if bytes.len() != secret.0.len() {
            return None;
        }
        secret.0.copy_from_slice(bytes);
        Some(secret)
    }

    /// 32 bytes from the operating system's generator (`getrandom(2)`).
    ///
    /// # Errors
    /// The kernel's generator is unavailable, which does not happen once a
    /// system has booted.
    pub fn random() -> std::io::Result<Self> {
        Self::fill_with(|buf| getrandom::fill(buf).map_err(std::io::Error::other))
    }

    /// The bytes themselves. Keep the borrow short, and copy into nothing
    /// that is not zeroised.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Secret32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A token user's PIN. Exists only in the token worker and in the commands
/// that initialise a token.
pub struct Pin(Zeroizing<String>);

/// Why a PIN could not be read. The text never contains file contents.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The file cannot be opened or read.
    #[error("cannot read the PIN file {path}: {source}")]
    Io {
        /// The configured path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Other users can read or change it.
    #[error(
        "the PIN file {path} has mode {mode:04o}: other users can reach it (chmod 0400 {path}; owner root or the agent's user)"
    )]
    Exposed {
        /// The configured path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Someone other than root or this process's user owns it.
    #[error("the PIN file {path} belongs to uid {uid}, which is neither root nor the agent's user")]
    Owner {
        /// The configured path.
        path: PathBuf,
        /// The owner.
        uid: u32,
    },
    /// Nothing in it, not UTF-8, or implausibly long.
    #[error("the PIN file {path} is empty, longer than 1024 bytes, or not UTF-8 text")]
    Content {
        /// The configured path.
        path: PathBuf,
    },
}

impl Pin {
    /// Reads a PIN file: one line of UTF-8; one trailing newline is dropped.
    ///
    /// Refused unless it is a regular file that only its owner can reach, and
    /// the owner is root or this process's effective user.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn from_file(path: &Path) -> Result<Self, PinError> {
        let io = io_at(path);
        let mut file = std::fs::File::open(path).map_err(&io)?;
        // Checked on the open file, so that it cannot be exchanged in between.
        check(path, &file.metadata().map_err(&io)?)?;
        let mut raw = Zeroizing::new(Vec::with_capacity(MAX_PIN_LEN + 1));
        file.by_ref()
            .take(MAX_PIN_LEN as u64 + 1)
            .read_to_end(&mut raw)
            .map_err(&io)?;
        if raw.last() == Some(&b'\n') {
            raw.pop();
        }
        let content = || PinError::Content {
            path: path.to_owned(),
        };
        if raw.is_empty() || raw.len() > MAX_PIN_LEN {
            return Err(content());
        }
        let text = std::str::from_utf8(&raw).map_err(|_| content())?;
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// Looks at a PIN file without opening it: [`from_file`](Self::from_file)
    /// makes the same checks, and more.
    ///
    /// # Errors
    /// See [`PinError`]; never [`PinError::Content`].
    pub fn check_file(path: &Path) -> Result<(), PinError> {
        check(path, &path.metadata().map_err(io_at(path))?)
    }

    /// Wraps a PIN typed at a prompt.
    #[must_use]
    pub fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The PIN itself, for `C_Login` and `C_InitToken` alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

fn io_at(path: &Path) -> impl Fn(std::io::Error) -> PinError {
    move |source| PinError::Io {
        path: path.to_owned(),
        source,
    }
}

/// A regular file, its owner's alone, its owner being root or us.
fn check(path: &Path, meta: &std::fs::Metadata) -> Result<(), PinError> {
    if !meta.is_file() {
        return Err(io_at(path)(std::io::Error::other("not a regular file")));
    }
    let mode = meta.mode() & 0o7777;
    // Where systemd grants the service's user access to a credential by an
    // ACL, the group's bits are the ACL's mask and say nothing of the group.
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
        .is_some_and(|dir| !dir.is_empty() && path.starts_with(dir));
    if mode & if credential { 0o007 } else { 0o077 } != 0 {
        return Err(PinError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != me {
        return Err(PinError::Owner {
            path: path.to_owned(),
            uid: meta.uid(),
        });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn pin_file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_pin_file_loses_exactly_one_newline() {
        let file = pin_file(b"crypto:user pin\n", 0o400);
        assert_eq!(
            Pin::from_file(file.path()).unwrap().expose(),
            "crypto:user pin"
        );
    }

    #[test]
    fn a_world_readable_pin_file_is_refused_with_its_mode() {
        let file = pin_file(b"1234\n", 0o644);
        let error = Pin::from_file(file.path()).err().unwrap().to_string();
        assert!(error.contains("0644") && error.contains("chmod"), "{error}");
    }

    #[test]
    fn empty_and_binary_pin_files_are_refused() {
        for content in [&b""[..], b"\n", b"\xff\xfe\n"] {
            let file = pin_file(content, 0o600);
            assert!(matches!(
                Pin::from_file(file.path()),
                Err(PinError::Content { .. })
            ));
        }
    }

    #[test]
    fn a_secret_needs_exactly_32_bytes() {
        assert!(Secret32::from_slice(&[1; 31]).is_none());
        assert!(Secret32::from_slice(&[1; 33]).is_none());
        assert_eq!(Secret32::from_slice(&[1; 32]).unwrap().expose(), &[1; 32]);
    }
}
