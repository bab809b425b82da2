//! The message id: 32 random bytes (version 2) or 16 (version 1).

use std::fmt;

use data_encoding::HEXLOWER;

use super::error::Error;

/// Length of a version 2 message id, in bytes.
const LEN_V2: usize = 32;
/// Length of a version 1 message id, in bytes.
const LEN_V1: usize = 16;

/// Names one message. Public; unique with overwhelming probability.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Zeros behind `len`, so that comparing the whole compares the id.
    bytes: [u8; LEN_V2],
    len: u8,
}

impl MessageId {
    /// Fresh from the operating system's generator.
    pub(super) fn random() -> Result<Self, Error> {
        let mut bytes = [0; LEN_V2];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::Internal(format!("random generator: {error}")))?;
        Ok(Self::v2(bytes))
    }

    pub(super) const fn v2(bytes: [u8; LEN_V2]) -> Self {
        Self { bytes, len: 32 }
    }

    pub(super) fn v1(short: [u8; LEN_V1]) -> Self {
        let mut bytes = [0; LEN_V2];
        bytes[..LEN_V1].copy_from_slice(&short);
        Self { bytes, len: 16 }
    }

    /// Reads what [`Display`](fmt::Display) wrote; `None` for anything else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
        if let Ok(long) = <[u8; LEN_V2]>::try_from(bytes.as_slice()) {
            return Some(Self::v2(long));
        }
        <[u8; LEN_V1]>::try_from(bytes.as_slice())
            .ok()
            .map(Self::v1)
    }

    /// Lower-case hexadecimal, 64 or 32 characters.
    #[must_use]
    pub fn hex(&self) -> String {
        HEXLOWER.encode(self.as_bytes())
    }

    /// The id as it stands in the message.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways_for_both_versions() {
        for id in [MessageId::v2([0xab; 32]), MessageId::v1([0x0c; 16])] {
            assert_eq!(MessageId::from_hex(&id.to_string()), Some(id));
        }
        for bad in [
            "",
            "ab",
            &"AB".repeat(32),
            &"ab".repeat(31),
            &"zz".repeat(32),
        ] {
            assert!(MessageId::from_hex(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_short_id_is_not_the_long_one_it_prefixes() {
        let mut long = [0; 32];
        long[..16].copy_from_slice(&[7; 16]);
        assert_ne!(MessageId::v2(long), MessageId::v1([7; 16]));
    }
}
