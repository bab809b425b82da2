//! Carrying an AES key to a token that unwraps it and nothing else: the key
//! wrapped (RFC 3394) under a one-time transport key, which is wrapped by
//! RSA-OAEP (RFC 8017) to a key pair that the token made for this.
//!
//! Only the sealing side, and its public half: an offline machine seals a real
//! key, a token's worker a throwaway one to find out what its token can do.
//! The proof that travels along is a GCM ciphertext under the carried key:
//! tokens need not report a check value (Kryoptic ignores it), but a key that
//! opens the proof is the key.

use std::fmt;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use aes_kw::KwAes256;
use rsa::pkcs8::{DecodePublicKey as _, EncodePublicKey as _, LineEnding};
use rsa::rand_core::OsRng;
use rsa::sha2::{Digest as _, Sha256, Sha384, Sha512};
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, Oaep, RsaPublicKey};
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use zeroize::zeroize_stack;

use crate::secret::Secret32;

/// Bits of the pair that a token makes: 128-bit strength (NIST SP 800-57
/// part 1, table 2), for a key that lives for one ceremony.
pub const BITS: usize = 3072;
/// The proof's AAD: never an encryption context, which does not begin with a
/// count of zero.
pub const PROOF_AAD: &[u8] = b"\0\0strongroom import";
/// Stack, in bytes, that is overwritten after the ciphers that were keyed on
/// it: key schedules and GHASH tables, unoptimised builds with copies.
const SEAL_STACK: usize = 32 * 1024;
/// Digits of a fingerprint that a person has to confirm at least: 128 bits,
/// beyond anybody's search for a second key with the same ones.
const CONFIRMED: usize = 32;

/// The hash of RSA-OAEP and of its MGF1; the label is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OaepHash {
    /// All that some tokens have (SoftHSM); OAEP does not rest on its
    /// collision resistance.
    #[serde(rename = "sha1")]
    Sha1,
    /// Ours where the token has it.
    #[serde(rename = "sha256")]
    Sha256,
    /// Other writers'.
    #[serde(rename = "sha384")]
    Sha384,
    /// Other writers'.
    #[serde(rename = "sha512")]
    Sha512,
}

/// The public half of the pair that a token made for one import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportKey(RsaPublicKey);

/// SHA-256, in groups of four hexadecimal digits: what two people compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

/// A key on its way, and how to know that it arrived. Nothing here is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The transport key under the token's RSA key.
    #[serde(with = "base64")]
    pub transport_key: Vec<u8>,
    /// The key under the transport key.
    #[serde(with = "base64")]
    pub key: Vec<u8>,
    /// What the proof opens to.
    #[serde(with = "base64")]
    pub proof_plaintext: Vec<u8>,
    /// The proof's IV.
    #[serde(with = "base64")]
    pub proof_iv: Vec<u8>,
    /// The proof: ciphertext and tag, under the key itself.
    #[serde(with = "base64")]
    pub proof: Vec<u8>,
}

/// Why something was not sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotSealed(String);

impl OaepHash {
    /// Every one of them, those we write first.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Sha1, Self::Sha384, Self::Sha512];
    /// Those that a ceremony may use: OAEP of a 32-byte key fits either.
    pub const WRITTEN: [Self; 2] = [Self::Sha256, Self::Sha1];

    /// RSA-OAEP with it.
    #[must_use]
    pub fn padding(self) -> Oaep {
        match self {
            Self::Sha1 => Oaep::new::<Sha1>(),
            Self::Sha256 => Oaep::new::<Sha256>(),
            Self::Sha384 => Oaep::new::<Sha384>(),
            Self::Sha512 => Oaep::new::<Sha512>(),
        }
    }
}

impl fmt::Display for OaepHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        })
    }
}

impl TransportKey {
    /// From CKA_MODULUS and CKA_PUBLIC_EXPONENT.
    ///
    /// # Errors
    /// They are no RSA public key of 2,048 to 4,096 bits.
    pub fn from_parts(modulus: &[u8], exponent: &[u8]) -> Result<Self, NotSealed> {
        let (n, e) = (
            BigUint::from_bytes_be(modulus),
            BigUint::from_bytes_be(exponent),
        );
        Self::judged(RsaPublicKey::new(n, e).ok())
    }

    /// From PEM (SPKI).
    ///
    /// # Errors
    /// It holds no RSA public key of 2,048 to 4,096 bits.
    pub fn from_pem(text: &str) -> Result<Self, NotSealed> {
        Self::judged(RsaPublicKey::from_public_key_pem(text).ok())
    }

    fn judged(key: Option<RsaPublicKey>) -> Result<Self, NotSealed> {
        key.filter(|key| (2048..=4096).contains(&key.n().bits()))
            .map(Self)
            .ok_or_else(|| NotSealed("no RSA public key of 2,048 to 4,096 bits".to_owned()))
    }

    /// As PEM (SPKI).
    ///
    /// # Errors
    /// It cannot be written.
    pub fn to_pem(&self) -> Result<String, NotSealed> {
        self.0
            .to_public_key_pem(LineEnding::LF)
            .map_err(|error| NotSealed(error.to_string()))
    }

    /// SHA-256 of its DER form (SPKI), which
    /// `openssl pkey -pubin -outform DER | sha256sum` prints too.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn fingerprint(&self) -> Result<Fingerprint, NotSealed> {
        let der = self
            .0
            .to_public_key_der()
            .map_err(|error| NotSealed(error.to_string()))?;
        Ok(Fingerprint::of(der.as_bytes()))
    }

    /// Seals `key` for the token that has the private half.
    ///
    /// # Errors
    /// The RSA key is too short for this hash.
    pub fn seal(&self, hash: OaepHash, key: &Secret32) -> Result<Sealed, NotSealed> {
        let sealed = self.seal_on_stack(hash, key);
        zeroize_stack::<SEAL_STACK>();
        sealed
    }

    /// Never inlined, so that the stack it used lies below its caller's when
    /// that is overwritten.
    #[inline(never)]
    fn seal_on_stack(&self, hash: OaepHash, key: &Secret32) -> Result<Sealed, NotSealed> {
        let random = |error: std::io::Error| NotSealed(format!("no random bytes: {error}"));
        // Used once, here, and gone with this function.
        let transport = Secret32::random().map_err(random)?;
        let mut wrapped = [0; 40];
        KwAes256::new(transport.expose().into())
            .wrap_key(key.expose(), &mut wrapped)
            .map_err(|error| NotSealed(error.to_string()))?;
        let transport_key = self
            .0
            .encrypt(&mut OsRng, hash.padding(), transport.expose())
            .map_err(|error| NotSealed(format!("RSA-OAEP with {hash}: {error}")))?;
        let mut iv = [0; 12];
        getrandom::fill(&mut iv).map_err(|error| random(std::io::Error::other(error)))?;
        let plaintext = Secret32::random().map_err(random)?;
        let mut proof = plaintext.expose().to_vec();
        let tag = Aes256Gcm::new(key.expose().into())
            .encrypt_inout_detached(&iv.into(), PROOF_AAD, (&mut proof[..]).into())
            .map_err(|error| NotSealed(error.to_string()))?;
        proof.extend_from_slice(&tag);
        Ok(Sealed {
            transport_key,
            key: wrapped.to_vec(),
            proof_plaintext: plaintext.expose().to_vec(),
            proof_iv: iv.to_vec(),
            proof,
        })
    }
}

impl Fingerprint {
    /// SHA-256 of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Whether `typed` is this fingerprint, or at least the first half of it;
    /// case, spaces, dashes and colons do not count.
    #[must_use]
    pub fn is(&self, typed: &str) -> bool {
        let typed: String = typed
            .chars()
            .filter(|c| !matches!(c, ' ' | '-' | ':'))
            .map(|c| c.to_ascii_uppercase())
            .collect();
        let ours = data_encoding::HEXUPPER.encode(&self.0);
        typed.len() >= CONFIRMED && ours.starts_with(&typed)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, pair) in self.0.chunks(2).enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{}", data_encoding::HEXUPPER.encode(pair))?;
        }
        Ok(())
    }
}

/// Bytes as base64 text.
mod base64 {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        BASE64.decode(text.as_bytes()).map_err(de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rsa::RsaPrivateKey;

    #[test]
    fn what_is_sealed_is_what_the_holder_of_the_pair_unwraps() {
        let private = RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        let public = TransportKey(private.to_public_key());
        let key = Secret32::random().unwrap();
        for hash in OaepHash::ALL {
            let sealed = public.seal(hash, &key).unwrap();
            let transport = private
                .decrypt(hash.padding(), &sealed.transport_key)
                .unwrap();
            let mut out = [0; 32];
            KwAes256::new_from_slice(&transport)
                .unwrap()
                .unwrap_key(&sealed.key, &mut out)
                .unwrap();
            assert_eq!(&out, key.expose());
            let (text, tag) = sealed.proof.split_at(32);
            let mut text = text.to_vec();
            let iv: [u8; 12] = sealed.proof_iv[..].try_into().unwrap();
            let tag: [u8; 16] = tag.try_into().unwrap();
            Aes256Gcm::new(key.expose().into())
                .decrypt_inout_detached(&iv.into(), PROOF_AAD, (&mut text[..]).into(), &tag.into())
                .unwrap();
            assert_eq!(text, sealed.proof_plaintext);
            let json = serde_json::to_string(&sealed).unwrap();
            assert_eq!(serde_json::from_str::<Sealed>(&json).unwrap(), sealed);
        }
    }

    #[test]
    fn rule_23_a_fingerprint_is_confirmed_by_at_least_half_of_it() {
        let print = Fingerprint::of(b"x");
        let text = print.to_string();
        assert_eq!(text.len(), 64 + 15);
        assert!(print.is(&text) && print.is(&text.to_lowercase().replace(' ', ":")));
        assert!(print.is(&text[..39]), "{}", &text[..39]);
        assert!(!print.is(&text[..38]));
        assert!(!print.is("") && !print.is(&Fingerprint::of(b"y").to_string()));
        assert!(!print.is(&format!("{text} 00")));
    }

    #[test]
    fn a_public_key_survives_pem_and_the_tokens_parts() {
        let public = RsaPrivateKey::new(&mut OsRng, 2048)
            .unwrap()
            .to_public_key();
        let parts = TransportKey::from_parts(&public.n().to_bytes_be(), &[1, 0, 1]).unwrap();
        let pem = parts.to_pem().unwrap();
        assert_eq!(TransportKey::from_pem(&pem).unwrap(), parts);
        let short = RsaPrivateKey::new(&mut OsRng, 1024).unwrap();
        let short = short.to_public_key();
        assert!(TransportKey::from_parts(&short.n().to_bytes_be(), &[1, 0, 1]).is_err());
        assert!(TransportKey::from_pem("x").is_err());
    }
}
