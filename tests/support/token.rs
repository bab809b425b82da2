//! Which soft token the tests run against: `STRONGROOM_TEST_TOKEN` is
//! `softhsm`, the default, or `kryoptic`. `make test` runs both.
//!
//! Two implementations that share no code: what both do is PKCS#11, what one
//! does is its own. Where they differ by nature a test asks [`TokenKind::chosen`]
//! and says what each does; a test of one alone ends early with
//! [`TokenKind::is_only`], which prints why.

use std::fs;
use std::path::{Path, PathBuf};

/// A soft token's implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// SoftHSM 2, in C++: a directory of files.
    SoftHsm,
    /// Kryoptic, in Rust: an SQLite file for each slot.
    Kryoptic,
}

use TokenKind::{Kryoptic, SoftHsm};

/// Slots of a Kryoptic configuration, which has to list them; SoftHSM always
/// offers one more.
const SLOTS: [u32; 2] = [0, 3];

impl TokenKind {
    /// The one that this run is about.
    #[must_use]
    pub fn chosen() -> Self {
        match std::env::var("STRONGROOM_TEST_TOKEN").as_deref() {
            Err(_) | Ok("" | "softhsm") => SoftHsm,
            Ok("kryoptic") => Kryoptic,
            Ok(other) => panic!("STRONGROOM_TEST_TOKEN={other}: softhsm or kryoptic"),
        }
    }

    /// Whether a test that is about `self` alone has its token; otherwise says
    /// why it is skipped.
    #[must_use]
    pub fn is_only(self, why: &str) -> bool {
        let chosen = Self::chosen();
        if chosen != self {
            println!("skipped on {chosen:?}: {why}");
        }
        chosen == self
    }

    /// Its PKCS#11 library.
    #[must_use]
    pub fn module(self) -> PathBuf {
        let candidates = match self {
            SoftHsm => [
                "/usr/lib/softhsm/libsofthsm2.so",
                "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
                "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
                "/usr/lib64/pkcs11/libsofthsm2.so",
            ]
            .map(PathBuf::from)
            .to_vec(),
            Kryoptic => vec![super::cache().join("kryoptic/libkryoptic_pkcs11.so")],
        };
        candidates
            .into_iter()
            .find(|path| path.exists())
            .unwrap_or_else(|| super::lacking(&format!("{self:?}")))
    }

    /// The environment variable that names its configuration.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            SoftHsm => "SOFTHSM2_CONF",
            Kryoptic => "KRYOPTIC_CONF",
        }
    }

    /// Part of its module's path, as it stands in `/proc/PID/maps`.
    #[must_use]
    pub const fn mapped(self) -> &'static str {
        match self {
            SoftHsm => "libsofthsm2",
            Kryoptic => "libkryoptic_pkcs11",
        }
    }

    /// Writes a configuration, and a directory `tokens` for what the token
    /// keeps; returns what [`Self::variable`] must be.
    #[must_use]
    pub fn configure(self, dir: &Path) -> PathBuf {
        let tokens = dir.join("tokens");
        fs::create_dir(&tokens).unwrap();
        let (name, text) = match self {
            SoftHsm => (
                "softhsm2.conf",
                format!(
                    "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
                    tokens.display()
                ),
            ),
            Kryoptic => (
                "kryoptic.conf",
                SLOTS
                    .map(|slot| {
                        let file = tokens.join(format!("{slot}.sql"));
                        format!(
                            "[[slots]]\nslot = {slot}\ndbtype = \"sqlite\"\ndbargs = {file:?}\n"
                        )
                    })
                    .concat(),
            ),
        };
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}
