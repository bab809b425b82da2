//! The footer's ECDSA signature, over everything before the footer.
//!
//! Specification: data-format/message-footer.md; the public key is base64 of
//! the (compressed) point, SEC 1 2.3.3, in the encryption context.

use data_encoding::BASE64;
use p384::ecdsa::signature::hazmat::PrehashVerifier as _;
use ring::digest::{Context as Digest, SHA256, SHA384};

use super::context::Context;
use super::error::Error;
use super::suite::Curve;

/// The context pair that holds a signed message's public key.
pub(super) const PUBLIC_KEY: &str = "aws-crypto-public-key";

enum Key {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

/// Takes a message's bytes in order, then its signature.
pub(super) struct Verifier {
    key: Key,
    digest: Digest,
}

impl Verifier {
    /// For a message whose (verified) header holds `context`.
    pub(super) fn new(curve: Curve, context: &Context) -> Result<Self, Error> {
        let bad = || Error::altered("no usable public key for the signature");
        let text = context.get(PUBLIC_KEY).ok_or_else(bad)?;
        let point = BASE64.decode(text.as_bytes()).map_err(|_| bad())?;
        let (key, digest) = match curve {
            Curve::P256 => {
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&point);
                (Key::P256(key.map_err(|_| bad())?), &SHA256)
            }
            Curve::P384 => {
                let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(&point);
                (Key::P384(key.map_err(|_| bad())?), &SHA384)
            }
        };
        Ok(Self {
            key,
            digest: Digest::new(digest),
        })
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    pub(super) fn finish(self, der: &[u8]) -> Result<(), Error> {
        let hash = self.digest.finish();
        let hash = hash.as_ref();
        let good = match self.key {
            Key::P256(key) => p256::ecdsa::Signature::from_der(der)
                .and_then(|signature| key.verify_prehash(hash, &signature)),
            Key::P384(key) => p384::ecdsa::Signature::from_der(der)
                .and_then(|signature| key.verify_prehash(hash, &signature)),
        };
        good.map_err(|_| Error::altered("the signature does not verify"))
    }
}
