//! One entry of a manifest: what a file, directory or link was like.

use super::path::RelPath;

/// An instant of a file system: seconds since 1970, and nanoseconds after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after them, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Where bytes are stored: one version of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAt {
    /// The object's key below the archive's prefix.
    pub key: String,
    /// Its message id, hexadecimal: what this run wrote there, or an earlier one.
    pub message_id: String,
    /// Its version id, in versioned buckets.
    pub version_id: Option<String>,
    /// Where in a bundle's plaintext the file begins; `None` if the whole
    /// object is the file.
    pub offset: Option<u64>,
}

/// A regular file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: [u8; 32],
    /// Whether it had holes.
    pub sparse: bool,
    /// Where it is.
    pub at: StoredAt,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(Content),
    /// A directory.
    Dir,
    /// A symbolic link; its target is the link's bytes, never followed.
    Symlink(Vec<u8>),
    /// Another name of a file that came before.
    Hardlink(RelPath),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device: its number.
    Char(u64),
    /// A block device: its number.
    Block(u64),
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the root.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-uid, set-gid and sticky: at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The owner's name, where the host knew one.
    pub user: Option<String>,
    /// The group's name, where the host knew one.
    pub group: Option<String>,
    /// When the content was last changed.
    pub mtime: Time,
    /// When the inode was last changed.
    pub ctime: Time,
    /// The device that held it.
    pub dev: u64,
    /// Its inode there.
    pub ino: u64,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Set if this is how an *earlier* run found the file, because this run
    /// could not store it as it is now: why.
    pub stale: Option<String>,
    /// Set once an archive run deleted the file here, because it is stored:
    /// the run. Such entries go from manifest to manifest.
    pub deleted: Option<String>,
}
