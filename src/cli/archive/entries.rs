//! From what the system says of a file to an entry of the manifest.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use xattr::FileExt as _;

use super::walk::Found;
use crate::manifest::{Content, Entry, Kind, MAX_XATTRS, RelPath, StoredAt, Time};

/// Owners and groups whose names are remembered, at most. Ours.
const MAX_NAMES: usize = 10_000;
/// Bytes that `st_blocks` counts in (stat(2)).
const BLOCK: u64 = 512;

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) mtime: Time,
    ctime: Time,
    dev: u64,
    ino: u64,
}

impl Stamp {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            size: if meta.is_file() { meta.len() } else { 0 },
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime: time(meta.ctime(), meta.ctime_nsec()),
            dev: meta.dev(),
            ino: meta.ino(),
        }
    }

    /// Whether `stat` says the same.
    pub(super) fn is_of(&self, stat: &rustix::fs::Stat) -> bool {
        let nanoseconds = |nsec| u32::try_from(nsec).ok();
        u64::try_from(stat.st_size) == Ok(self.size)
            && stat.st_dev == self.dev
            && stat.st_ino == self.ino
            && (stat.st_mtime, nanoseconds(stat.st_mtime_nsec))
                == (self.mtime.seconds, Some(self.mtime.nanoseconds))
            && (stat.st_ctime, nanoseconds(stat.st_ctime_nsec))
                == (self.ctime.seconds, Some(self.ctime.nanoseconds))
    }

    /// Of a file as an entry has it.
    pub(super) fn then(entry: &Entry) -> Self {
        Self {
            size: match &entry.kind {
                Kind::File(content) => content.size,
                _ => 0,
            },
            mtime: entry.mtime,
            ctime: entry.ctime,
            dev: entry.dev,
            ino: entry.ino,
        }
    }
}

/// Whether an entry is still how this looks, and no more has to be asked.
pub(super) fn is_unchanged(found: &Found, entry: &Entry) -> bool {
    let kind = found.meta.file_type();
    let same_kind = match &entry.kind {
        Kind::File(_) => kind.is_file(),
        Kind::Dir => kind.is_dir(),
        Kind::Symlink(_) => kind.is_symlink(),
        Kind::Hardlink(_) => false,
        Kind::Fifo => kind.is_fifo(),
        Kind::Socket => kind.is_socket(),
        Kind::Char(_) => kind.is_char_device(),
        Kind::Block(_) => kind.is_block_device(),
    };
    same_kind && entry.stale.is_none() && Stamp::of(&found.meta) == Stamp::then(entry)
}

/// Whether a file may have its content still, though something of it changed.
pub(super) fn may_be_same(found: &Found, entry: &Entry) -> bool {
    let now = Stamp::of(&found.meta);
    let then = Stamp::then(entry);
    matches!(entry.kind, Kind::File(_)) && now.size == then.size && now.mtime == then.mtime
}

/// The entry of what is no regular file. Blocks.
pub(super) fn describe(found: &Found, names: &Names) -> io::Result<Entry> {
    let kind = found.meta.file_type();
    if kind.is_dir() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = File::from(found.root.open(&found.within, flags)?);
        let meta = dir.metadata()?;
        let mut entry = entry(&found.path, Kind::Dir, &meta, names);
        entry.xattrs = xattrs(&dir)?;
        return Ok(entry);
    }
    let kind = if kind.is_symlink() {
        // The link itself, found without following any other.
        let link = found.root.open(&found.within, OFlags::PATH)?;
        let target = rustix::fs::readlinkat(&link, c"", Vec::new())?;
        Kind::Symlink(target.into_bytes())
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else if kind.is_char_device() {
        Kind::Char(found.meta.rdev())
    } else {
        Kind::Block(found.meta.rdev())
    };
    Ok(entry(&found.path, kind, &found.meta, names))
}

/// The entry of a regular file whose place is not known yet. Blocks.
pub(super) fn file(
    path: &RelPath,
    file: &File,
    meta: &Metadata,
    names: &Names,
) -> io::Result<Entry> {
    let content = Content {
        size: meta.len(),
        sha256: [0; 32],
        sparse: meta.blocks().saturating_mul(BLOCK) < meta.len(),
        at: StoredAt {
            key: String::new(),
            message_id: String::new(),
            version_id: None,
            offset: None,
        },
    };
    let mut entry = entry(path, Kind::File(content), meta, names);
    entry.xattrs = xattrs(file)?;
    Ok(entry)
}

/// The entry of another name of a file.
pub(super) fn hardlink(found: &Found, first: RelPath, names: &Names) -> Entry {
    entry(&found.path, Kind::Hardlink(first), &found.meta, names)
}

fn entry(path: &RelPath, kind: Kind, meta: &Metadata, names: &Names) -> Entry {
    let stamp = Stamp::of(meta);
    Entry {
        path: path.clone(),
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        user: names.user(meta.uid()),
        group: names.group(meta.gid()),
        mtime: stamp.mtime,
        ctime: stamp.ctime,
        dev: stamp.dev,
        ino: stamp.ino,
        xattrs: Vec::new(),
        stale: None,
        deleted: None,
    }
}

fn time(seconds: i64, nanoseconds: i64) -> Time {
    Time {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    }
}

/// All extended attributes that the caller may read: `user.*`, and access
/// lists, capabilities and labels where they are shown.
fn xattrs(file: &File) -> io::Result<Vec<(String, Vec<u8>)>> {
    let names = match file.list_xattr() {
        Ok(names) => names,
        // A file system without them.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = BTreeMap::new();
    let mut total = 0;
    for name in names {
        let name = name
            .into_string()
            .map_err(|_| io::Error::other("an extended attribute's name is not UTF-8"))?;
        match file.get_xattr(&name) {
            Ok(Some(value)) => {
                total += name.len() + value.len();
                all.insert(name, value);
            }
            // Gone meanwhile, or listed to those who may not read it.
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    if total > MAX_XATTRS {
        return Err(io::Error::other(format!(
            "more than {MAX_XATTRS} bytes of extended attributes"
        )));
    }
    Ok(all.into_iter().collect())
}

/// Names of owners and groups, each looked up once.
#[derive(Default)]
pub(super) struct Names {
    users: Mutex<HashMap<u32, Option<String>>>,
    groups: Mutex<HashMap<u32, Option<String>>>,
}

impl Names {
    fn user(&self, uid: u32) -> Option<String> {
        look_up(&self.users, uid, |uid| {
            let user = uzers::get_user_by_uid(uid)?;
            user.name().to_str().map(str::to_owned)
        })
    }

    fn group(&self, gid: u32) -> Option<String> {
        look_up(&self.groups, gid, |gid| {
            let group = uzers::get_group_by_gid(gid)?;
            group.name().to_str().map(str::to_owned)
        })
    }
}

fn look_up(
    known: &Mutex<HashMap<u32, Option<String>>>,
    id: u32,
    ask: impl FnOnce(u32) -> Option<String>,
) -> Option<String> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = known.get(&id) {
        return name.clone();
    }
    // A name that no manifest takes is as good as none.
    let name = ask(id).filter(|name| name.len() <= 256);
    if known.len() < MAX_NAMES {
        known.insert(id, name.clone());
    }
    name
}
