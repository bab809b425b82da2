//! The cryptographic library: AWS-LC, and with the `fips` feature its FIPS
//! module. The only file that names it. It was chosen by measurement
//! (docs/benchmarks.md, "Pieces").
//!
//! Everything that protects data or evidence while the agent runs comes
//! through here. docs/fips.md says what does not.

use std::fmt;

pub(crate) use aws_lc_rs::{aead, digest, hkdf, signature};

/// Another library's: what tests compare with.
#[cfg(test)]
pub(crate) use ring::aead as ring_aead;

use digest::Digest;

/// The library's name, as `strongroom status` tells it.
#[cfg(not(feature = "fips"))]
pub const NAME: &str = "AWS-LC";
/// The library's name, as `strongroom status` tells it.
#[cfg(feature = "fips")]
pub const NAME: &str = "AWS-LC, FIPS module";

/// A signature, or a key, that is not one, or not of this text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the cryptographic library refuses it")
    }
}

/// Whether the library may be used: the module's own self-tests have passed,
/// and it is the validated one.
///
/// # Errors
/// What is wrong, in words.
pub fn check() -> Result<(), String> {
    #[cfg(feature = "fips")]
    aws_lc_rs::try_fips_mode()
        .map_err(|why| format!("this build is for FIPS, and its module is not: {why}"))?;
    Ok(())
}

/// Checks an ECDSA signature (ASN.1) over a digest; the point is SEC 1's,
/// compressed or not.
pub(crate) fn verify_p256(point: &[u8], digest: &Digest, der: &[u8]) -> Result<(), Refused> {
    signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, point)
        .verify_digest(digest, der)
        .map_err(|_| Refused)
}

/// Checks an ECDSA signature (ASN.1) over a digest; the point is SEC 1's,
/// compressed or not.
pub(crate) fn verify_p384(point: &[u8], digest: &Digest, der: &[u8]) -> Result<(), Refused> {
    signature::UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_ASN1, point)
        .verify_digest(digest, der)
        .map_err(|_| Refused)
}

/// RSA-OAEP (RFC 8017) with SHA-256 for hash and MGF1 and an empty label; the
/// key is DER (SPKI).
pub(crate) fn encrypt_oaep(spki: &[u8], text: &[u8]) -> Result<Vec<u8>, Refused> {
    use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
    let key = PublicEncryptingKey::from_der(spki).map_err(|_| Refused)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| Refused)?;
    let mut out = vec![0; key.ciphertext_size()];
    let len = key
        .encrypt(&OAEP_SHA256_MGF1SHA256, text, &mut out, None)
        .map_err(|_| Refused)?
        .len();
    out.truncate(len);
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_the_one_that_was_asked_for() {
        check().unwrap();
        assert_eq!(NAME.contains("FIPS"), cfg!(feature = "fips"));
    }

    /// Against another implementation's signatures, whatever this build's own.
    #[test]
    fn signatures_over_digests_verify_and_others_do_not() {
        use p256::ecdsa::signature::hazmat::PrehashSigner as _;
        let digest = |text: &[u8]| digest::digest(&digest::SHA256, text);
        let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
        let signed: p256::ecdsa::Signature = key.sign_prehash(digest(b"text").as_ref()).unwrap();
        for compressed in [false, true] {
            let point = key.verifying_key().to_sec1_point(compressed);
            let verify =
                |text| verify_p256(point.as_bytes(), &digest(text), &signed.to_der().to_bytes());
            assert_eq!(verify(b"text"), Ok(()));
            assert_eq!(verify(b"test"), Err(Refused));
        }

        let digest = |text: &[u8]| digest::digest(&digest::SHA384, text);
        let key = p384::ecdsa::SigningKey::from_slice(&[7; 48]).unwrap();
        let signed: p384::ecdsa::Signature = key.sign_prehash(digest(b"text").as_ref()).unwrap();
        for compressed in [false, true] {
            let point = key.verifying_key().to_sec1_point(compressed);
            let verify =
                |text| verify_p384(point.as_bytes(), &digest(text), &signed.to_der().to_bytes());
            assert_eq!(verify(b"text"), Ok(()));
            assert_eq!(verify(b"test"), Err(Refused));
        }
    }
}
