//! RSA recipients: public keys whose private halves are locked away.
//!
//! Reads a public key, judges it, and encrypts data keys to it (RSA-OAEP,
//! RFC 8017, with SHA-256 for hash and MGF1 and an empty label: what the AWS
//! Encryption SDK's raw RSA keyring reads). Knows neither messages nor files:
//! the supervisor reads the file, the confined server gets the key itself.
//! Nothing here could decrypt.

use rsa::RsaPublicKey;
use rsa::pkcs1::DecodeRsaPublicKey as _;
use rsa::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use rsa::traits::PublicKeyParts as _;

use crate::crypto::digest::{SHA256, digest};
use crate::crypto::encrypt_oaep;
use crate::secret::Secret32;

/// Bits of the modulus. Below 2,048 NIST SP 800-131A disallows it; above
/// 4,096 the `rsa` crate and many tokens refuse it, and each wrap would cost
/// milliseconds.
const BITS: std::ops::RangeInclusive<usize> = 2048..=4096;
/// Bits from which a key is good beyond 2030 (NIST SP 800-57 part 1, table 2:
/// 128-bit strength); an archive lasts longer.
const RECOMMENDED: usize = 3072;
/// Longest public key file that is read, in bytes: 4,096 bits take 800.
pub const MAX_FILE: u64 = 64 << 10;

/// A recipient's public key: parsed, and strong enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(RsaPublicKey);

/// Why a public key cannot be used. Never quotes it: it may be the wrong file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is the half that must be locked away.
    #[error("it holds a private key, which must never be on this host")]
    Private,
    /// Neither form of an RSA public key.
    #[error("it holds no RSA public key in PEM (SPKI or PKCS#1)")]
    Malformed,
    /// Too short, or too long.
    #[error("it is an RSA key of {0} bits; it must have from 2048 to 4096")]
    Size(usize),
}

impl PublicKey {
    /// From PEM: `PUBLIC KEY` (SPKI) or `RSA PUBLIC KEY` (PKCS#1).
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private);
        }
        let key = RsaPublicKey::from_public_key_pem(text)
            .ok()
            .or_else(|| RsaPublicKey::from_pkcs1_pem(text).ok());
        Self::judged(key)
    }

    /// From DER (SPKI), as [`Self::to_der`] gives it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        Self::judged(RsaPublicKey::from_public_key_der(der).ok())
    }

    fn judged(key: Option<RsaPublicKey>) -> Result<Self, KeyError> {
        let key = key.ok_or(KeyError::Malformed)?;
        let bits = key.n().bits();
        if !BITS.contains(&bits) {
            return Err(KeyError::Size(bits));
        }
        Ok(Self(key))
    }

    /// As DER (SPKI); empty if it could not be written, which is then refused
    /// where it is read.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        let der = self.0.to_public_key_der();
        der.map(|der| der.as_bytes().to_vec()).unwrap_or_default()
    }

    /// Bits of its modulus.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.0.n().bits()
    }

    /// Whether it is shorter than is recommended for archives.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.bits() < RECOMMENDED
    }

    /// Bytes of what [`Self::wrap`] returns.
    #[must_use]
    pub fn wrapped_len(&self) -> usize {
        self.0.size()
    }

    /// SHA-256 of the DER form, hexadecimal: what
    /// `openssl pkey -pubin -outform DER | sha256sum` prints.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        data_encoding::HEXLOWER.encode(digest(&SHA256, &self.to_der()).as_ref())
    }

    /// Encrypts a data key to it.
    ///
    /// # Errors
    /// The crate refuses the key; in words.
    pub fn wrap(&self, data_key: &Secret32) -> Result<Vec<u8>, String> {
        encrypt_oaep(&self.to_der(), data_key.expose()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rsa::pkcs1::EncodeRsaPublicKey as _;
    use rsa::pkcs8::{EncodePrivateKey as _, LineEnding};
    use rsa::sha2::Sha256;
    use rsa::{Oaep, RsaPrivateKey};

    fn pair(bits: usize) -> (RsaPrivateKey, RsaPublicKey) {
        let private = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, bits).unwrap();
        let public = private.to_public_key();
        (private, public)
    }

    #[test]
    fn what_is_wrapped_opens_with_the_private_half_in_either_form() {
        let (private, public) = pair(2048);
        let spki = public.to_public_key_pem(LineEnding::LF).unwrap();
        let pkcs1 = public.to_pkcs1_pem(LineEnding::LF).unwrap();
        let key = PublicKey::from_pem(&spki).unwrap();
        assert_eq!(key, PublicKey::from_pem(&pkcs1).unwrap());
        assert_eq!(key, PublicKey::from_der(&key.to_der()).unwrap());
        assert!(key.is_short());
        let secret = Secret32::from_slice(&[7; 32]).unwrap();
        let wrapped = key.wrap(&secret).unwrap();
        assert_eq!(wrapped.len(), key.wrapped_len());
        assert_eq!(
            private.decrypt(Oaep::new::<Sha256>(), &wrapped).unwrap(),
            [7; 32]
        );
    }

    #[test]
    fn a_private_half_a_short_key_and_garbage_are_refused() {
        let (private, public) = pair(1024);
        let spki = public.to_public_key_pem(LineEnding::LF).unwrap();
        assert_eq!(PublicKey::from_pem(&spki), Err(KeyError::Size(1024)));
        let pem = private.to_pkcs8_pem(LineEnding::LF).unwrap();
        assert_eq!(PublicKey::from_pem(&pem), Err(KeyError::Private));
        assert_eq!(PublicKey::from_pem("x"), Err(KeyError::Malformed));
        assert_eq!(PublicKey::from_der(&[]), Err(KeyError::Malformed));
    }
}
