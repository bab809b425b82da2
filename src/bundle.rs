//! Bundles: many small files in one object, each readable by itself
//! (docs/archive.md).
//!
//! ```text
//! data:    the files' bytes, one after the other, without gaps
//! index:   a JSON line for each file: path, offset, length, sha256
//! trailer: "strongroom-bundle 1 " offset[20] " " length[20] " " count[10] "\n"
//! ```
//!
//! The trailer's numbers, decimal with leading zeros, are where the index
//! begins, its bytes, and its lines. All of it is plaintext of one message:
//! what authenticates the data authenticates the index. The reader still
//! believes no number in it.

use serde::{Deserialize, Serialize};

use crate::manifest::{Name, RelPath, Why, decode_path, encode_path, hash};

/// Media type of bundles.
pub const BUNDLE_TYPE: &str = "application/vnd.strongroom.bundle";
/// Files of a bundle, at most. Ours: an index of 16 MiB with common paths.
pub const MAX_COUNT: usize = 65_536;
/// Bytes of an index, at most. Ours: what a reader holds in memory.
pub const MAX_INDEX: usize = 64 << 20;
/// Bytes of the trailer.
pub const TRAILER: usize = 20 + 20 + 1 + 20 + 1 + 10 + 1;
const MAGIC: &[u8] = b"strongroom-bundle 1 ";

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path below the archive's root.
    pub path: RelPath,
    /// Where it begins in the bundle.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// Their SHA-256.
    pub sha256: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct WireMember {
    #[serde(flatten)]
    path: Name,
    offset: u64,
    length: u64,
    sha256: String,
}

/// Where a bundle's index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Where it begins: the length of the data.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// Its lines.
    pub count: u64,
}

/// Collects the files of a bundle. Only small files go into one, so it is
/// made in memory.
#[derive(Default)]
pub struct Builder {
    data: Vec<u8>,
    index: Vec<u8>,
    count: usize,
}

impl Builder {
    /// An empty bundle.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file; says where it begins.
    ///
    /// # Errors
    /// The bundle is full: [`Builder::fits`] would have said so.
    pub fn add(&mut self, path: &RelPath, bytes: &[u8], sha256: [u8; 32]) -> Result<u64, Why> {
        let offset = self.data.len() as u64;
        let member = WireMember {
            path: encode_path(path),
            offset,
            length: bytes.len() as u64,
            sha256: data_encoding::HEXLOWER.encode(&sha256),
        };
        let line = serde_json::to_vec(&member).map_err(|error| error.to_string())?;
        if self.count >= MAX_COUNT || self.index.len() + line.len() >= MAX_INDEX {
            return Err("the bundle is full".into());
        }
        self.data.extend_from_slice(bytes);
        self.index.extend_from_slice(&line);
        self.index.push(b'\n');
        self.count += 1;
        Ok(offset)
    }

    /// Whether so many bytes more stay within `most`, and the bundle has room
    /// for another file.
    #[must_use]
    pub fn fits(&self, bytes: usize, most: usize) -> bool {
        // The longest line that a path of 4096 bytes can make.
        const LINE: usize = 32 << 10;
        self.count < MAX_COUNT
            && self.index.len() + LINE < MAX_INDEX
            && (self.count == 0 || self.data.len() + bytes <= most)
    }

    /// Files so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The bundle's bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let trailer = Trailer {
            offset: self.data.len() as u64,
            length: self.index.len() as u64,
            count: self.count as u64,
        };
        self.data.extend_from_slice(&self.index);
        self.data.extend_from_slice(&trailer.encode());
        self.data
    }
}

impl Trailer {
    /// As a bundle's last bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let numbers = format!(
            "{:020} {:020} {:010}\n",
            self.offset, self.length, self.count
        );
        bytes.extend_from_slice(numbers.as_bytes());
        bytes
    }

    /// From the last [`TRAILER`] bytes of a bundle of `size` bytes.
    ///
    /// # Errors
    /// They are no trailer, or an index that they name does not fill what
    /// lies between the data and the trailer.
    pub fn decode(bytes: &[u8], size: u64) -> Result<Self, Why> {
        const NO: &str = "no bundle's trailer";
        let numbers = bytes
            .strip_prefix(MAGIC)
            .filter(|_| bytes.len() == TRAILER)
            .ok_or(NO)?;
        let number = |from: usize, digits: usize, behind: u8| -> Result<u64, Why> {
            let text = &numbers[from..from + digits];
            if !text.iter().all(u8::is_ascii_digit) || numbers[from + digits] != behind {
                return Err(NO.into());
            }
            let text = std::str::from_utf8(text).map_err(|_| NO)?;
            text.parse()
                .map_err(|_| "a number beyond all bounds".into())
        };
        let trailer = Self {
            offset: number(0, 20, b' ')?,
            length: number(21, 20, b' ')?,
            count: number(42, 10, b'\n')?,
        };
        let end = trailer
            .offset
            .checked_add(trailer.length)
            .and_then(|end| end.checked_add(TRAILER as u64));
        if end != Some(size) {
            return Err("an index that does not end at its trailer".into());
        }
        if trailer.length > MAX_INDEX as u64 || trailer.count > MAX_COUNT as u64 {
            return Err("an index beyond all bounds".into());
        }
        Ok(trailer)
    }

    /// The files, from the index's bytes.
    ///
    /// # Errors
    /// The index is not what the trailer says, or its files do not fill the
    /// data exactly, one after the other.
    pub fn members(&self, index: &[u8]) -> Result<Vec<Member>, Why> {
        if index.len() as u64 != self.length {
            return Err("an index of another length".into());
        }
        if !index.is_empty() && index.last() != Some(&b'\n') {
            return Err("an index that is cut off".into());
        }
        let mut members = Vec::new();
        let mut next = 0_u64;
        for line in index.split_inclusive(|byte| *byte == b'\n') {
            if members.len() as u64 == self.count {
                return Err("more files than the trailer counts".into());
            }
            let wire: WireMember =
                serde_json::from_slice(line).map_err(|error| error.to_string())?;
            if wire.offset != next {
                return Err("files that overlap or leave a gap".into());
            }
            next = next
                .checked_add(wire.length)
                .filter(|end| *end <= self.offset)
                .ok_or("a file beyond the data's end")?;
            members.push(Member {
                path: decode_path(wire.path)?,
                offset: wire.offset,
                length: wire.length,
                sha256: hash(&wire.sha256).ok_or("a file without SHA-256")?,
            });
        }
        if members.len() as u64 != self.count || next != self.offset {
            return Err("files that are not all of the data".into());
        }
        Ok(members)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn bundle() -> Vec<u8> {
        let mut builder = Builder::new();
        for (name, bytes) in [("a", &b"first"[..]), ("b/c", b""), ("d", b"third")] {
            builder.add(&path(name), bytes, [7; 32]).unwrap();
        }
        builder.finish()
    }

    fn open(bytes: &[u8]) -> Result<Vec<Member>, Why> {
        let trailer = Trailer::decode(&bytes[bytes.len() - TRAILER..], bytes.len() as u64)?;
        let start = usize::try_from(trailer.offset).unwrap();
        trailer.members(&bytes[start..bytes.len() - TRAILER])
    }

    /// The bundle with its index (and the trailer's numbers) replaced.
    fn with(data: &str, index: &str, count: u64) -> Vec<u8> {
        let trailer = Trailer {
            offset: data.len() as u64,
            length: index.len() as u64,
            count,
        };
        [data.as_bytes(), index.as_bytes(), &trailer.encode()].concat()
    }

    #[test]
    fn files_are_found_by_the_index() {
        let bytes = bundle();
        let members = open(&bytes).unwrap();
        let places: Vec<_> = members
            .iter()
            .map(|m| (m.path.to_string(), m.offset, m.length))
            .collect();
        assert_eq!(
            places,
            [("a".into(), 0, 5), ("b/c".into(), 5, 0), ("d".into(), 5, 5)]
        );
        assert_eq!(&bytes[5..10], b"third");
        assert_eq!(open(&Builder::new().finish()).unwrap(), []);
    }

    #[test]
    fn a_full_bundle_takes_no_more() {
        let mut builder = Builder::new();
        assert!(builder.fits(100, 10), "one file always fits");
        builder.add(&path("a"), b"12345", [0; 32]).unwrap();
        assert!(builder.fits(5, 10));
        assert!(!builder.fits(6, 10));
    }

    #[test]
    fn rule_16_a_hostile_index_is_refused() {
        let hash = "0".repeat(64);
        let line = |path: &str, offset: u64, length: u64| {
            format!(
                "{{\"path\":\"{path}\",\"offset\":{offset},\"length\":{length},\"sha256\":\"{hash}\"}}\n"
            )
        };
        assert!(open(&with("12345", &line("a", 0, 5), 1)).is_ok());
        let two = line("a", 0, 5) + &line("b", 0, 5);
        for (index, count) in [
            (line("a", 0, 6), 1),                       // into the index
            (line("a", 0, 4), 1),                       // a gap at the end
            (line("a", 1, 4), 1),                       // a gap before
            (line("a", 0, u64::MAX), 1),                // beyond all bounds
            (two, 2),                                   // overlapping
            (line("a", 0, 5), 2),                       // fewer than counted
            (line("a", 0, 5) + &line("b", 5, 0), 1),    // more than counted
            (line("../a", 0, 5), 1),                    // out of the tree
            (line("/etc/passwd", 0, 5), 1),             // absolute
            (line("a", 0, 5).trim_end().to_owned(), 1), // cut off
            ("{}\n".to_owned(), 1),
        ] {
            assert!(open(&with("12345", &index, count)).is_err(), "{index}");
        }
    }

    #[test]
    fn rule_16_a_hostile_trailer_is_refused() {
        let good = bundle();
        let size = good.len() as u64;
        let last = &good[good.len() - TRAILER..];
        assert!(Trailer::decode(last, size).is_ok());
        assert!(Trailer::decode(last, size + 1).is_err());
        assert!(Trailer::decode(&last[1..], size).is_err());
        for at in 0..TRAILER {
            let mut bad = last.to_vec();
            bad[at] ^= 0x40;
            assert!(Trailer::decode(&bad, size).is_err(), "byte {at}");
        }
        let huge = Trailer {
            offset: u64::MAX,
            length: u64::MAX,
            count: 1,
        };
        assert!(Trailer::decode(&huge.encode(), size).is_err());
        let wide = Trailer {
            offset: 0,
            length: MAX_INDEX as u64 + 1,
            count: 1,
        };
        let whole = wide.length + TRAILER as u64;
        assert!(Trailer::decode(&wide.encode(), whole).is_err());
    }
}
