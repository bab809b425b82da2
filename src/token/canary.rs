//! A key's identity: random bytes that only this key opens (SECURITY.md 18).
//!
//! Labels and check values can be equal on two keys; what a key once wrapped,
//! no other key opens. The plaintext is thrown away, its digest is kept.

use crate::secret::Secret32;

use super::{IV_LEN, Wrapped};

/// What the catalogue keeps of a key's first use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The IV of the wrap.
    pub iv: [u8; IV_LEN],
    /// The wrapped random bytes, with their tag.
    pub ciphertext: Vec<u8>,
    /// SHA-256 of the 32 random bytes.
    pub digest: [u8; 32],
}

/// Where canaries are kept. Calls may block; they are made on a blocking
/// thread.
pub trait CanaryStore: Send + Sync {
    /// The canary of the key with this configured name, if it has one.
    ///
    /// # Errors
    /// The store cannot be read; the text says why.
    fn load(&self, key: &str) -> Result<Option<Canary>, String>;

    /// Keeps a new key's canary, durably, before the key is used, unless it
    /// has one; says whether it did.
    ///
    /// # Errors
    /// The store cannot be written; the text says why.
    fn save(&self, key: &str, canary: &Canary) -> Result<bool, String>;
}

impl Canary {
    pub(super) fn new(plaintext: &Secret32, wrapped: &Wrapped) -> Self {
        Self {
            iv: wrapped.iv,
            ciphertext: wrapped.ciphertext.to_vec(),
            digest: digest(plaintext),
        }
    }

    pub(super) fn matches(&self, plaintext: &Secret32) -> bool {
        self.digest == digest(plaintext)
    }

    /// The AAD of a key's canary. No object's wrapped key can pass for one:
    /// a serialised encryption context never begins with a count of zero
    /// (FORMATS.md: an empty one has no bytes at all).
    pub(super) fn aad(key: &str) -> Vec<u8> {
        [b"\0\0strongroom canary\0", key.as_bytes()].concat()
    }
}

fn digest(plaintext: &Secret32) -> [u8; 32] {
    let mut out = [0; 32];
    let digest = crate::crypto::digest::digest(&crate::crypto::digest::SHA256, plaintext.expose());
    out.copy_from_slice(digest.as_ref());
    out
}
