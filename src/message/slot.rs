//! A keyslot: another object's data key, wrapped anew (docs/formats.md).
//!
//! ```text
//! "SgKs" | version u8 = 01 | message_id[32] | edk_count u16 (> 0) | EDK*
//! ```
//!
//! Nothing in it is authenticated, and nothing needs to be: place and AAD
//! come from the object's header, and what the EDK opens to has to meet that
//! header's commitment. A wrong slot opens nothing.

use super::cursor::{Cursor, Stop};
use super::edk::Edk;
use super::error::Error;
use super::header::parse_edks;
use super::id::MessageId;
use super::limits::MAX_HEADER;

/// First bytes of a keyslot.
const MAGIC: [u8; 4] = *b"SgKs";
/// The layout's version.
const VERSION: u8 = 1;

/// Longest keyslot that is read, in bytes; as long as the longest header,
/// since slot 0 holds one.
pub const MAX_SLOT: usize = MAX_HEADER;

/// A keyslot as it was read. Nothing in it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    message_id: MessageId,
    edks: Vec<Edk>,
}

impl Slot {
    /// A slot with one EDK of the message's data key.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a version 1 message, which does not commit to
    /// its data key: nothing could tell a wrong slot from a right one.
    pub fn new(message_id: MessageId, edk: Edk) -> Result<Self, Error> {
        if message_id.as_bytes().len() != 32 {
            return Err(Error::Misuse("a keyslot for a version 1 message"));
        }
        Ok(Self {
            message_id,
            edks: vec![edk],
        })
    }

    /// Reads a whole keyslot; costs one pass over at most [`MAX_SLOT`] bytes.
    ///
    /// # Errors
    /// [`Error::NotAMessage`], [`Error::Limit`], [`Error::Truncated`] or
    /// [`Error::Altered`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut input = Cursor::new(bytes);
        match parse(&mut input) {
            Ok(_) if input.position() < bytes.len() => {
                Err(Error::altered("bytes follow the keyslot's last key"))
            }
            Ok(slot) => Ok(slot),
            Err(Stop::NeedMore) => Err(Error::Truncated("it ends inside the keyslot".to_owned())),
            Err(Stop::Refused(error)) => Err(error),
        }
    }

    /// The bytes to be stored.
    ///
    /// # Errors
    /// [`Error::Limit`] when they would be too many.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        let too_long = || Error::Limit(format!("a keyslot is longer than {MAX_SLOT} bytes"));
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.extend_from_slice(self.message_id.as_bytes());
        let count = u16::try_from(self.edks.len()).map_err(|_| too_long())?;
        out.extend_from_slice(&count.to_be_bytes());
        for edk in &self.edks {
            edk.serialise(&mut out)?;
        }
        if out.len() > MAX_SLOT {
            return Err(too_long());
        }
        Ok(out)
    }

    /// Whose data key it says it holds.
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    /// All of its EDKs: for offline recovery alone.
    #[must_use]
    pub fn edks(&self) -> &[Edk] {
        &self.edks
    }

    /// The first of its EDKs that names this wrapping key: the only one that
    /// is tried, so that no slot costs more than one token call.
    #[must_use]
    pub fn edk_of(&self, key_name: &str) -> Option<&Edk> {
        let names = |edk: &&Edk| edk.raw_aes_parts().is_some_and(|p| p.key_name == key_name);
        self.edks.iter().find(names)
    }
}

fn parse(input: &mut Cursor<'_>) -> Result<Slot, Stop> {
    if input.array::<4>()? != MAGIC || input.u8()? != VERSION {
        return Err(Error::NotAMessage.into());
    }
    let message_id = MessageId::v2(input.array()?);
    let edks = parse_edks(input)?;
    Ok(Slot { message_id, edks })
}

/// The name of a message's keyslot for a wrapping key: the first one without
/// a number, further ones (where somebody's garbage lies) with `.1`, `.2`, …
#[must_use]
pub fn slot_name(prefix: &str, id: MessageId, key_name: &str, n: usize) -> String {
    match n {
        0 => format!("{prefix}{id}/{key_name}"),
        n => format!("{prefix}{id}/{key_name}.{n}"),
    }
}

/// The name of the slot with a message's header, where that does not fit the
/// object's metadata. No wrapping key has a name of digits alone.
#[must_use]
pub fn header_slot_name(prefix: &str, id: &str) -> String {
    format!("{prefix}{id}/0")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn edk(name: &str, fill: u8) -> Edk {
        Edk::raw_aes(name, &[fill; 12], &[fill; 48]).unwrap()
    }

    fn slot() -> Slot {
        Slot::new(MessageId::v2([7; 32]), edk("archive-2027", 9)).unwrap()
    }

    #[test]
    fn a_slot_goes_both_ways_and_has_these_bytes() {
        let bytes = slot().bytes().unwrap();
        let mut expected = b"SgKs\x01".to_vec();
        expected.extend([7; 32]);
        expected.extend(b"\x00\x01\x00\x0astrongroom\x00\x20archive-2027\0\0\0\x80\0\0\0\x0c");
        expected.extend([9; 12]);
        expected.extend(b"\x00\x30");
        expected.extend([9; 48]);
        assert_eq!(bytes, expected);
        let read = Slot::parse(&bytes).unwrap();
        assert_eq!(read, slot());
        assert!(read.edk_of("archive-2027").is_some());
        assert!(read.edk_of("archive-2026").is_none());
    }

    #[test]
    fn a_cut_extended_or_foreign_slot_is_refused() {
        let good = slot().bytes().unwrap();
        for cut in 0..good.len() {
            assert!(Slot::parse(&good[..cut]).is_err(), "{cut}");
        }
        let mut long = good.clone();
        long.push(0);
        assert!(matches!(Slot::parse(&long), Err(Error::Altered(_))));
        let mut other = good.clone();
        other[4] = 2;
        assert!(matches!(Slot::parse(&other), Err(Error::NotAMessage)));
        let mut many = good;
        many[37..39].copy_from_slice(&17u16.to_be_bytes());
        assert!(matches!(Slot::parse(&many), Err(Error::Limit(_))));
    }

    #[test]
    fn rule_08_ten_thousand_wrong_slots_are_read_without_a_crash() {
        let good = slot().bytes().unwrap();
        // xorshift64, seeded: the same garbage in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % (1 << 31)).unwrap()
        };
        let mut same = 0;
        for _ in 0..10_000 {
            let mut bytes = good.clone();
            for _ in 0..=random() % 4 {
                let at = random() % bytes.len();
                match random() % 3 {
                    0 => bytes[at] ^= 1 << (random() % 8),
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.extend(vec![bytes[at]; random() % 4096]),
                }
            }
            // Whatever parses is no more than what was there.
            if let Ok(read) = Slot::parse(&bytes) {
                assert_eq!(read.bytes().unwrap(), bytes);
                same += usize::from(bytes == good);
            }
        }
        println!("slots that came out as they were: {same}");
    }

    #[test]
    fn version_1_messages_get_no_slot() {
        assert!(Slot::new(MessageId::v1([1; 16]), edk("k", 0)).is_err());
    }

    #[test]
    fn names_of_slots() {
        let id = MessageId::v2([0xab; 32]);
        let hex = "ab".repeat(32);
        assert_eq!(slot_name("p/", id, "k", 0), format!("p/{hex}/k"));
        assert_eq!(slot_name("p/", id, "k", 3), format!("p/{hex}/k.3"));
        assert_eq!(header_slot_name("p/", &hex), format!("p/{hex}/0"));
    }
}
