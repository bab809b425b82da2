//! Algorithm suites.
//!
//! Specification: framework/algorithm-suites.md.

use std::fmt;

/// How the payload key comes from the data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kdf {
    /// The data key itself.
    Identity,
    /// HKDF with SHA-256, zero salt.
    Sha256,
    /// HKDF with SHA-384, zero salt.
    Sha384,
    /// HKDF with SHA-512, salted with the message id, and a commitment.
    Sha512Commit,
}

/// What the footer is signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    /// ECDSA on P-256 with SHA-256.
    P256,
    /// ECDSA on P-384 with SHA-384.
    P384,
}

/// One algorithm suite. All use AES-GCM with a 12-byte IV and 16-byte tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite {
    pub(super) id: u16,
    pub(super) version: u8,
    /// Data key and payload key, in bytes.
    pub(super) key_len: usize,
    pub(super) kdf: Kdf,
    pub(super) curve: Option<Curve>,
}

const fn suite(id: u16, version: u8, key_len: usize, kdf: Kdf, curve: Option<Curve>) -> Suite {
    Suite {
        id,
        version,
        key_len,
        kdf,
        curve,
    }
}

const SUITES: [Suite; 11] = [
    Suite::WRITTEN,
    suite(0x0578, 2, 32, Kdf::Sha512Commit, Some(Curve::P384)),
    suite(0x0014, 1, 16, Kdf::Identity, None),
    suite(0x0046, 1, 24, Kdf::Identity, None),
    suite(0x0078, 1, 32, Kdf::Identity, None),
    suite(0x0114, 1, 16, Kdf::Sha256, None),
    suite(0x0146, 1, 24, Kdf::Sha256, None),
    suite(0x0178, 1, 32, Kdf::Sha256, None),
    suite(0x0214, 1, 16, Kdf::Sha256, Some(Curve::P256)),
    suite(0x0346, 1, 24, Kdf::Sha384, Some(Curve::P384)),
    suite(0x0378, 1, 32, Kdf::Sha384, Some(Curve::P384)),
];

impl Suite {
    /// The one we write: AES-256-GCM, HKDF-SHA-512, commitment, no signature.
    pub(super) const WRITTEN: Self = suite(0x0478, 2, 32, Kdf::Sha512Commit, None);

    pub(super) fn from_id(id: u16) -> Option<Self> {
        SUITES.into_iter().find(|suite| suite.id == id)
    }

    /// The number in the header.
    #[must_use]
    pub fn id(self) -> u16 {
        self.id
    }

    /// Message version that the suite belongs to: 1 or 2.
    #[must_use]
    pub fn version(self) -> u8 {
        self.version
    }

    /// Strength of the payload key, in bits.
    #[must_use]
    pub fn key_bits(self) -> usize {
        self.key_len * 8
    }

    /// Whether the header commits to the data key.
    #[must_use]
    pub fn is_committed(self) -> bool {
        self.kdf == Kdf::Sha512Commit
    }

    /// Whether a footer signature ends the message.
    #[must_use]
    pub fn is_signed(self) -> bool {
        self.curve.is_some()
    }

    /// The algorithms in words.
    #[must_use]
    pub fn description(self) -> String {
        let kdf = match self.kdf {
            Kdf::Identity => "",
            Kdf::Sha256 => ", HKDF-SHA-256",
            Kdf::Sha384 => ", HKDF-SHA-384",
            Kdf::Sha512Commit => ", HKDF-SHA-512, key commitment",
        };
        let signature = match self.curve {
            None => "",
            Some(Curve::P256) => ", ECDSA P-256",
            Some(Curve::P384) => ", ECDSA P-384",
        };
        format!("AES-{}-GCM{kdf}{signature}", self.key_bits())
    }
}

/// `0x0478`
impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04x}", self.id)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_low_byte_of_a_suite_is_its_key_length() {
        for suite in SUITES {
            assert_eq!(Suite::from_id(suite.id), Some(suite));
            let bits = [(0x14, 128), (0x46, 192), (0x78, 256)];
            assert!(bits.contains(&(usize::from(suite.id & 0xff), suite.key_bits())));
        }
        assert_eq!(Suite::WRITTEN.to_string(), "0x0478");
        assert_eq!(
            Suite::WRITTEN.description(),
            "AES-256-GCM, HKDF-SHA-512, key commitment"
        );
        assert!(Suite::from_id(0x0479).is_none());
    }
}
