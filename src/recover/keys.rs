//! The keys that recovery opens an object with: an escrow private key from its
//! file, a wrapping key's bytes, or a key in a token.

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::consts::U12;
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, KeyInit as _};
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{RsaPrivateKey, rand_core::OsRng};
use zeroize::{Zeroizing, zeroize_stack};

use crate::api;
use crate::message::{DataKey, Edk};
use crate::secret::Secret32;
use crate::token::{RecoveryKey, RecoveryToken, TokenError};
use crate::transport::OaepHash;

/// Bytes of a GCM tag.
const TAG: usize = 16;
/// Stack, in bytes, that is overwritten after an unwrap: a key schedule and a
/// GHASH table, unoptimised builds with copies.
const OPEN_STACK: usize = 32 * 1024;

/// What an object may be opened with.
pub enum Key {
    /// An escrow private key.
    Rsa(Box<RsaPrivateKey>),
    /// A wrapping key whose bytes are at hand, from its components.
    Aes(Secret32),
    /// A key in a token, RSA or AES.
    Token(Box<RecoveryToken>),
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a private key, or one in a form that is not read.
    #[error("{0}")]
    Malformed(String),
    /// It is encrypted, and nobody gave a passphrase.
    #[error("the private key is encrypted: it needs its passphrase")]
    Encrypted,
    /// It is encrypted, and this passphrase does not open it.
    #[error("the passphrase does not open the private key")]
    Passphrase,
    /// Its token.
    #[error("{0}")]
    Token(Box<api::Error>),
}

impl From<TokenError> for KeyError {
    fn from(error: TokenError) -> Self {
        Self::Token(Box::new(error.into()))
    }
}

/// An RSA private key from PEM: PKCS#8, encrypted PKCS#8, or PKCS#1.
///
/// # Errors
/// See [`KeyError`]: [`KeyError::Encrypted`] where a passphrase is missing.
pub fn read_private_key(
    pem: &str,
    passphrase: Option<&Zeroizing<String>>,
) -> Result<Key, KeyError> {
    let malformed = |what: String| KeyError::Malformed(what);
    let refused = |error: rsa::pkcs8::Error| malformed(format!("no RSA private key: {error}"));
    let key = if pem.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        let passphrase = passphrase.ok_or(KeyError::Encrypted)?;
        RsaPrivateKey::from_pkcs8_encrypted_pem(pem, passphrase.as_bytes()).map_err(|error| {
            match error {
                rsa::pkcs8::Error::EncryptedPrivateKey(_) => KeyError::Passphrase,
                // A wrong passphrase may also leave well-padded garbage.
                rsa::pkcs8::Error::Asn1(_) => KeyError::Passphrase,
                error => refused(error),
            }
        })?
    } else if pem.contains("BEGIN RSA PRIVATE KEY") {
        if pem.contains("Proc-Type:") {
            return Err(malformed(
                "the private key is encrypted in OpenSSL's old form; convert it with `openssl pkcs8 -topk8`".to_owned(),
            ));
        }
        RsaPrivateKey::from_pkcs1_pem(pem)
            .map_err(|error| malformed(format!("no RSA private key: {error}")))?
    } else if pem.contains("BEGIN PRIVATE KEY") {
        RsaPrivateKey::from_pkcs8_pem(pem).map_err(refused)?
    } else {
        return Err(malformed(
            "no private key in PEM (PKCS#8, encrypted PKCS#8 or PKCS#1)".to_owned(),
        ));
    };
    Ok(Key::Rsa(Box::new(key)))
}

impl Key {
    /// A key in a token: logs in, with exactly one attempt.
    ///
    /// # Errors
    /// [`KeyError::Token`].
    pub fn in_token(key: RecoveryKey) -> Result<Self, KeyError> {
        Ok(Self::Token(Box::new(RecoveryToken::log_in(key)?)))
    }

    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "this RSA private key",
            Self::Aes(_) => "the key of these components",
            Self::Token(_) => "this key in the token",
        }
    }

    /// Whether an encrypted data key is of the kind that this key opens.
    pub(super) fn is_for(&self, edk: &Edk) -> bool {
        let provider = edk.provider_id();
        match self {
            // Nothing but its length tells an RSA ciphertext.
            Self::Rsa(key) => {
                edk.raw_rsa_parts_in(provider).is_some() && edk.ciphertext().len() == key.size()
            }
            Self::Aes(_) => edk.raw_aes_parts_in(provider).is_some(),
            Self::Token(_) => {
                edk.raw_aes_parts_in(provider).is_some() || edk.raw_rsa_parts_in(provider).is_some()
            }
        }
    }

    /// Whether an object that opens by this encrypted data key was written by
    /// somebody who had the use of a secret: not with RSA, whose public half
    /// anybody may have.
    pub(super) fn is_secret_to_writers(&self, edk: &Edk) -> bool {
        !matches!(self, Self::Rsa(_)) && edk.raw_aes_parts_in(edk.provider_id()).is_some()
    }

    /// Opens an encrypted data key of any namespace; `None` if this key does
    /// not.
    pub(super) fn open(&mut self, edk: &Edk, aad: &[u8]) -> Result<Option<DataKey>, KeyError> {
        if !self.is_for(edk) {
            return Ok(None);
        }
        let opened = match self {
            Self::Rsa(key) => open_rsa(key, edk.ciphertext()),
            Self::Aes(key) => {
                let opened = open_aes(key, edk, aad);
                zeroize_stack::<OPEN_STACK>();
                opened
            }
            Self::Token(token) => {
                let iv = edk
                    .raw_aes_parts_in(edk.provider_id())
                    .map(|parts| *parts.iv);
                token.open(iv, edk.ciphertext(), aad)?
            }
        };
        Ok(opened.and_then(DataKey::unwrapped_of_any_length))
    }
}

/// RSA-OAEP with whichever hash its writer chose: only the right one opens.
///
/// The time that the `rsa` crate's decryption takes depends on the key
/// (RUSTSEC-2023-0071), which whoever can have many ciphertexts decrypted and
/// measure it might exploit. Here a person decrypts one object, on a machine
/// that answers nobody; it is blinded all the same.
fn open_rsa(key: &RsaPrivateKey, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    OaepHash::ALL.into_iter().find_map(|hash| {
        let opened = key.decrypt_blinded(&mut OsRng, hash.padding(), ciphertext);
        opened.ok().map(Zeroizing::new)
    })
}

/// AES-GCM as the raw AES keyring does it. Never inlined, so that the stack it
/// used lies below its caller's when that is overwritten.
#[inline(never)]
fn open_aes(key: &Secret32, edk: &Edk, aad: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let parts = edk.raw_aes_parts_in(edk.provider_id())?;
    let (text, tag) = parts.ciphertext.split_last_chunk::<TAG>()?;
    let mut text = Zeroizing::new(text.to_vec());
    let cipher = AesGcm::<Aes256, U12>::new(key.expose().into());
    cipher
        .decrypt_inout_detached(
            &(*parts.iv).into(),
            aad,
            (&mut text[..]).into(),
            &(*tag).into(),
        )
        .ok()?;
    Some(text)
}
