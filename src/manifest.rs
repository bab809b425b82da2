//! What an archive run leaves beside the files: the manifest of every entry,
//! and where its own objects lie (docs/archive.md).
//!
//! A manifest is a zstd stream of JSON lines: a head, entries in the order of
//! a sorted walk, an end. It is written and read as a stream, so that a tree of any size is
//! compared with the last run's in flat memory. The reader believes nothing:
//! lines, paths and counts are bounded, the order is checked, and without its
//! end line a manifest is refused. Whose manifest it is, the caller has
//! found out before (the agent says so).

mod entry;
mod layout;
mod path;
mod read;
#[cfg(test)]
mod tests;
mod wire;
mod write;

pub use entry::{Content, Entry, Kind, StoredAt, Time};
pub use layout::{
    BUNDLES, LATEST, LATEST_TYPE, Latest, MANIFEST_TYPE, MAX_KEY, NAMES, OWN, PARTIAL, RUNS, RunId,
    bundle_key, manifest_key, object_key,
};
pub use path::{MAX_PATH, RelPath};
pub use read::Reader;
pub use wire::{Counts, End, Head, Root};
pub(crate) use wire::{Name, decode_path, encode_path, hash};
pub use write::Writer;

/// Bytes of one line, at most, its line break included. Ours: a path, a link
/// and 512 KiB of extended attributes in base64 fit.
pub const MAX_LINE: usize = 1 << 20;
/// Bytes of an entry's extended attributes, names and values, at most. Ours;
/// Linux lists at most 64 KiB of names of a file (XATTR_LIST_MAX), and most
/// file systems hold a few KiB of values.
pub const MAX_XATTRS: usize = 512 << 10;
/// Log2 of the largest zstd window we read, in bytes: 8 MiB. Ours: level 3
/// writes 2 MiB, and a hostile frame cannot ask for more memory.
const MAX_WINDOW_LOG: u32 = 23;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed, or what was read is no zstd stream.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It says something that no manifest may.
    #[error("line {line}: {why}")]
    Malformed {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// It ends without its end line: the run that wrote it broke off, or
    /// somebody cut it short.
    #[error("it ends after line {0} without an end line")]
    Unfinished(u64),
}

/// One entry as a line of JSON, for a journal of single entries.
///
/// # Errors
/// [`Error::Malformed`] if it is too long.
pub fn encode_entry(entry: &Entry) -> Result<Vec<u8>, Error> {
    let mut line =
        serde_json::to_vec(&wire::WireEntry::encode(entry)).map_err(std::io::Error::from)?;
    line.push(b'\n');
    if line.len() > MAX_LINE {
        return Err(Error::Malformed {
            line: 1,
            why: "an entry is too long".to_owned(),
        });
    }
    Ok(line)
}

/// The entry that [`encode_entry`] wrote.
///
/// # Errors
/// It breaks the bounds of an entry.
pub fn decode_entry(line: &[u8]) -> Result<Entry, Why> {
    let wire: wire::WireEntry = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    wire.decode()
}

/// A value that breaks a bound: why.
pub(crate) type Why = std::borrow::Cow<'static, str>;
