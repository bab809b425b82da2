//! The footer's ECDSA signature, over everything before the footer.
//!
//! Specification: data-format/message-footer.md; the public key is base64 of
//! the (compressed) point, SEC 1 2.3.3, in the encryption context.

use data_encoding::BASE64;

use crate::crypto::digest::{Context as Digest, SHA256, SHA384};
use crate::crypto::{verify_p256, verify_p384};

use super::context::Context;
use super::error::Error;
use super::suite::Curve;

/// The context pair that holds a signed message's public key.
pub(super) const PUBLIC_KEY: &str = "aws-crypto-public-key";

/// Takes a message's bytes in order, then its signature.
pub(super) struct Verifier {
    curve: Curve,
    point: Vec<u8>,
    digest: Digest,
}

impl Verifier {
    /// For a message whose (verified) header holds `context`.
    pub(super) fn new(curve: Curve, context: &Context) -> Result<Self, Error> {
        let bad = || Error::altered("no usable public key for the signature");
        let text = context.get(PUBLIC_KEY).ok_or_else(bad)?;
        let point = BASE64.decode(text.as_bytes()).map_err(|_| bad())?;
        let digest = match curve {
            Curve::P256 => &SHA256,
            Curve::P384 => &SHA384,
        };
        Ok(Self {
            curve,
            point,
            digest: Digest::new(digest),
        })
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    pub(super) fn finish(self, der: &[u8]) -> Result<(), Error> {
        let digest = self.digest.finish();
        let verify = match self.curve {
            Curve::P256 => verify_p256,
            Curve::P384 => verify_p384,
        };
        verify(&self.point, &digest, der)
            .map_err(|_| Error::altered("the signature does not verify"))
    }
}
