//! A pack: the keyslots of many messages for one wrapping key, in one object
//! (docs/formats.md).
//!
//! ```text
//! "SgKp" | version u8 = 01 | u16 len|key_name | count u32 | record[count]
//! record: message_id[32] | iv[12] | ciphertext and tag[48]
//! ```
//!
//! Records are sorted by message id. Ids are random, so a record's place can
//! be computed to within a few standard deviations, and one ranged read finds
//! it. A pack's name tells which objects it covers and how many records it
//! has: a listing is the index. Like a slot, it is believed nothing.

use std::ops::Range;

use data_encoding::HEXLOWER;

use super::edk::Edk;
use super::error::Error;
use super::id::MessageId;

const MAGIC: [u8; 4] = *b"SgKp";
const VERSION: u8 = 1;
/// Bytes of a record.
const RECORD: u64 = 32 + 12 + 48;
/// Records of a pack, at most. Ours: 736 KiB, one PUT for 8,192 objects, and
/// 70 KiB to find one of them.
pub const MAX_RECORDS: usize = 8192;
/// Standard deviations to either side of a record's computed place that are
/// read: the writer checks that each of its records lies within them.
const DEVIATIONS: u64 = 8;
/// Records read beyond them, for small packs.
const SPARE: u64 = 16;
/// Bytes of a key that stand for it in a name: as hexadecimal they stay below
/// 255, which some stores allow a component of a path.
const LAST_BYTES: usize = 120;
const FIRST_BYTES: usize = 100;

/// A data key of a pack: whose it is, and how it is wrapped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    id: [u8; 32],
    iv: [u8; 12],
    ciphertext: [u8; 48],
}

impl Record {
    /// Of a version 2 message and one of our AES EDKs; `None` for others.
    #[must_use]
    pub fn new(id: MessageId, edk: &Edk) -> Option<Self> {
        let parts = edk.raw_aes_parts()?;
        Some(Self {
            id: id.as_bytes().try_into().ok()?,
            iv: *parts.iv,
            ciphertext: parts.ciphertext.try_into().ok()?,
        })
    }

    /// Whose data key it is.
    #[must_use]
    pub fn id(&self) -> &[u8; 32] {
        &self.id
    }
}

/// What a pack's name says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackName {
    /// Its whole name.
    pub name: String,
    first: String,
    count: u64,
    shard: (u32, u32),
    header: u64,
}

/// A pack to be stored.
pub struct Pack {
    /// Its name under the keyslot prefix.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The beginning of the names of all packs of a wrapping key for the objects
/// of a bucket.
#[must_use]
pub fn pack_prefix(prefix: &str, key_name: &str, bucket: &str) -> String {
    format!("{prefix}packs/{key_name}/{bucket}/")
}

/// Behind this name in a listing stand the packs that may cover an object.
#[must_use]
pub fn packs_behind(pack_prefix: &str, object: &str) -> String {
    // Just before the name's first component: a store with directories takes
    // the component itself for passed already.
    let mut behind = cut(object, LAST_BYTES).0;
    match behind.pop() {
        Some('0') => behind.push('-'),
        Some('a') => behind.push_str("9~"),
        Some(digit) => {
            behind.push(char::from_u32(u32::from(digit) - 1).unwrap_or('-'));
            behind.push('~');
        }
        None => {}
    }
    format!("{pack_prefix}{behind}")
}

/// The beginning of a key in hexadecimal, which sorts as the key does, and
/// whether that is not all of it.
fn cut(key: &str, most: usize) -> (String, bool) {
    let bytes = key.as_bytes();
    let len = bytes.len().min(most);
    (HEXLOWER.encode(&bytes[..len]), len < bytes.len())
}

impl Pack {
    /// A pack of these records, which cover the objects from `first` to `last`
    /// of shard `shard.0` of `shard.1`. Records that no reader would find
    /// where it looks come back.
    ///
    /// # Errors
    /// [`Error::Misuse`] without records or with too many.
    pub fn new(
        pack_prefix: &str,
        key_name: &str,
        mut records: Vec<Record>,
        (first, last): (&str, &str),
        shard: (u32, u32),
    ) -> Result<(Self, Vec<Record>), Error> {
        records.sort_unstable();
        records.dedup_by(|a, b| a.id == b.id);
        let mut outliers = Vec::new();
        loop {
            let count = records.len() as u64;
            let strays =
                |at: usize, record: &Record| !window(&record.id, count).contains(&(at as u64));
            let Some(at) = (0..records.len()).find(|at| strays(*at, &records[*at])) else {
                break;
            };
            outliers.push(records.remove(at));
        }
        if records.is_empty() || records.len() > MAX_RECORDS {
            return Err(Error::Misuse("a pack of no records, or of too many"));
        }
        let name_len = u16::try_from(key_name.len()).map_err(|_| Error::Misuse("a long name"))?;
        let count = u32::try_from(records.len()).map_err(|_| Error::Misuse("many records"))?;
        let mut bytes = Vec::with_capacity(256 + records.len() * 92);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&name_len.to_be_bytes());
        bytes.extend_from_slice(key_name.as_bytes());
        bytes.extend_from_slice(&count.to_be_bytes());
        for record in &records {
            bytes.extend_from_slice(&record.id);
            bytes.extend_from_slice(&record.iv);
            bytes.extend_from_slice(&record.ciphertext);
        }
        let digest = crate::crypto::digest::digest(&crate::crypto::digest::SHA256, &bytes);
        let (mut upper, is_cut) = cut(last, LAST_BYTES);
        if is_cut {
            // Behind every key that begins so.
            upper.push('g');
        }
        let name = format!(
            "{pack_prefix}{upper}/{}-{count:x}-{}.{}-{}",
            cut(first, FIRST_BYTES).0,
            shard.0,
            shard.1,
            HEXLOWER.encode(&digest.as_ref()[..8]),
        );
        Ok((Self { name, bytes }, outliers))
    }
}

impl PackName {
    /// Reads a name from a listing of `pack_prefix`, of an object of `size`
    /// bytes; `None` if it is no pack's.
    #[must_use]
    pub fn parse(pack_prefix: &str, key_name: &str, name: &str, size: u64) -> Option<Self> {
        let (_, rest) = name.strip_prefix(pack_prefix)?.split_once('/')?;
        let mut fields = rest.split('-');
        let first = fields.next()?.to_owned();
        let count = u64::from_str_radix(fields.next()?, 16).ok()?;
        let (index, of) = fields.next()?.split_once('.')?;
        fields.next()?;
        let header = 4 + 1 + 2 + key_name.len() as u64 + 4;
        let fits = (1..=MAX_RECORDS as u64).contains(&count)
            && size == header + count * RECORD
            && fields.next().is_none();
        fits.then_some(Self {
            name: name.to_owned(),
            first,
            count,
            shard: (index.parse().ok()?, of.parse().ok()?),
            header,
        })
    }

    /// Whether the object may be in it; `hash` is the object's, modulo which
    /// shards are made.
    #[must_use]
    pub fn may_cover(&self, object: &str, hash: u64) -> bool {
        let (index, of) = self.shard;
        self.first <= cut(object, FIRST_BYTES).0
            && of > 0
            && hash % u64::from(of) == u64::from(index)
    }

    /// The bytes of the pack to read for a message's record: first and last.
    #[must_use]
    pub fn span(&self, id: &MessageId) -> Option<(u64, u64)> {
        let id: &[u8; 32] = id.as_bytes().try_into().ok()?;
        let window = window(id, self.count);
        let start = self.header + window.start * RECORD;
        Some((start, self.header + window.end * RECORD - 1))
    }

    /// The bytes of all its records: first and last.
    #[must_use]
    pub fn records(&self) -> (u64, u64) {
        (self.header, self.header + self.count * RECORD - 1)
    }
}

/// The EDK of a message in a stretch of records, if it is there.
#[must_use]
pub fn edk_in(records: &[u8], id: &MessageId, key_name: &str) -> Option<Edk> {
    let (records, _) = records.as_chunks::<92>();
    let id = id.as_bytes();
    let at = records
        .binary_search_by(|record| record[..32].cmp(id))
        .ok()?;
    let record = records.get(at)?;
    let iv = record[32..44].try_into().ok()?;
    Edk::raw_aes(key_name, iv, &record[44..]).ok()
}

/// Where a record stands among `count`, as far as its id tells.
fn window(id: &[u8; 32], count: u64) -> Range<u64> {
    let mut high = [0; 8];
    high.copy_from_slice(&id[..8]);
    let share = u128::from(u64::from_be_bytes(high)) * u128::from(count);
    let place = u64::try_from(share >> 64).unwrap_or(u64::MAX);
    // Binomial: the deviation is at most half the root of the count.
    let width = DEVIATIONS * (count.isqrt() + 1) / 2 + SPARE;
    place.saturating_sub(width)..place.saturating_add(width).min(count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn random_records(count: usize) -> Vec<Record> {
        (0..count)
            .map(|_| {
                let id = MessageId::random().unwrap();
                let edk = Edk::raw_aes("k", &[1; 12], &[2; 48]).unwrap();
                Record::new(id, &edk).unwrap()
            })
            .collect()
    }

    fn pack(records: Vec<Record>) -> (Pack, Vec<Record>) {
        let prefix = pack_prefix("p/", "k", "b");
        Pack::new(&prefix, "k", records, ("a", "z"), (0, 1)).unwrap()
    }

    #[test]
    fn every_record_is_found_in_one_stretch() {
        for count in [1, 2, 100, MAX_RECORDS] {
            let records = random_records(count);
            let (pack, outliers) = pack(records.clone());
            assert_eq!(outliers, []);
            let prefix = pack_prefix("p/", "k", "b");
            let size = pack.bytes.len() as u64;
            let name = PackName::parse(&prefix, "k", &pack.name, size).unwrap();
            for record in &records {
                let id = MessageId::v2(record.id);
                let (start, end) = name.span(&id).unwrap();
                let bytes =
                    &pack.bytes[usize::try_from(start).unwrap()..=usize::try_from(end).unwrap()];
                assert!(bytes.len() <= 80 << 10, "{}", bytes.len());
                let edk = edk_in(bytes, &id, "k").unwrap();
                assert_eq!(Record::new(id, &edk).unwrap(), *record);
                assert!(edk_in(bytes, &MessageId::v2([0; 32]), "k").is_none());
            }
        }
    }

    #[test]
    fn ids_that_are_not_random_come_back_and_none_is_lost() {
        let mut records = random_records(1000);
        for (i, record) in records.iter_mut().enumerate().take(900) {
            record.id = [0; 32];
            record.id[31] = u8::try_from(i % 256).unwrap();
            record.id[30] = u8::try_from(i / 256).unwrap();
        }
        let (pack, outliers) = pack(records);
        let kept = (pack.bytes.len() - 12) / 92;
        assert!(!outliers.is_empty() && kept + outliers.len() == 1000);
    }

    #[test]
    fn names_sort_as_keys_do_and_tell_what_is_covered() {
        let prefix = pack_prefix("p/", "k", "b");
        let long = "x".repeat(300);
        for (first, last, inside, outside) in [
            ("a", "c", "b", "d"),
            ("a", "a", "a", "aa"),
            ("a/b", "a/b/c", "a/b/a", "a/b/cc"),
            ("a", "p", "p", "q"),
            ("a", "j", "j", "k"),
            (&long[..200], &long[..], &long[..250], "y"),
        ] {
            let (pack, _) =
                Pack::new(&prefix, "k", random_records(3), (first, last), (0, 1)).unwrap();
            let size = pack.bytes.len() as u64;
            let name = PackName::parse(&prefix, "k", &pack.name, size).unwrap();
            assert!(pack.name > packs_behind(&prefix, inside), "{inside}");
            assert!(name.may_cover(inside, 7));
            assert!(pack.name < packs_behind(&prefix, outside), "{outside}");
            assert!(PackName::parse(&prefix, "k", &pack.name, size + 1).is_none());
        }
        assert!(
            !PackName::parse(&prefix, "k", &format!("{prefix}63/61-1-1.2-00"), 12 + 92)
                .unwrap()
                .may_cover("b", 4)
        );
    }
}
