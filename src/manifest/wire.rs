//! The JSON of a manifest's lines, and its bounds.

use std::collections::BTreeMap;

use data_encoding::{BASE64, HEXLOWER};
use serde::{Deserialize, Serialize};

use super::entry::{Content, Entry, Kind, StoredAt, Time};
use super::layout::{MAX_KEY, RunId};
use super::path::{MAX_PATH, RelPath};
use super::{MAX_XATTRS, Why};

/// `format` of a head line.
pub(super) const FORMAT: &str = "strongroom-manifest";
/// The version that this program writes and reads.
pub(super) const VERSION: u32 = 1;
/// Bytes of a name, id or note, at most. Ours.
const MAX_TEXT: usize = 1024;
/// Extended attributes of an entry, at most. Ours: the shortest name in the
/// 64 KiB that Linux lists, with its namespace and NUL, has 7 bytes.
const MAX_XATTR_COUNT: usize = 65_536 / 7;

/// A directory that a run archived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Where it was on its host; for people, bytes that are not UTF-8 replaced.
    pub path: String,
    /// Its path below the archive's root: `.`, or its own name if there were
    /// several.
    pub name: String,
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub(super) format: String,
    pub(super) version: u32,
    /// The run that wrote it.
    pub run: RunId,
    /// When the run began, RFC 3339.
    pub started: String,
    /// The host's name.
    pub host: String,
    /// What was archived.
    pub roots: Vec<Root>,
    /// The bucket.
    pub bucket: String,
    /// The archive's prefix: empty, or ending in a slash. All keys of the
    /// manifest are below it.
    pub prefix: String,
    /// What wrote it.
    pub program: String,
}

impl Head {
    /// Of a run that begins now.
    #[must_use]
    pub fn new(
        run: RunId,
        started: jiff::Timestamp,
        host: String,
        roots: Vec<Root>,
        bucket: String,
        prefix: String,
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            run,
            started: started.to_string(),
            host,
            roots,
            bucket,
            prefix,
            program: concat!("strongroom ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// How many entries of each kind a manifest has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All entries.
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counts {
    pub(super) fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        if let Kind::File(content) = &entry.kind {
            self.files += 1;
            self.bytes = self.bytes.saturating_add(content.size);
        }
    }
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Whether the run went through its whole tree; a manifest so far has
    /// `false`.
    pub complete: bool,
    /// What is in it.
    pub counts: Counts,
}

/// Any line, as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    Head(Head),
    Entry(Box<WireEntry>),
    End(End),
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct WireEntry {
    #[serde(flatten)]
    path: Name,
    #[serde(rename = "type")]
    kind: String,
    /// Octal, as `chmod` takes it.
    mode: String,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    mtime: (i64, u32),
    ctime: (i64, u32),
    dev: u64,
    ino: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    sparse: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<WireStored>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<WireStored>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_b64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdev: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireStored {
    key: String,
    message_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

/// A path: text where it is UTF-8, else base64.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Name {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
}

/// A path as JSON has it; the root is `.`.
pub(crate) fn encode_path(path: &RelPath) -> Name {
    match path.as_str() {
        Some("") => Name {
            path: Some(".".to_owned()),
            path_b64: None,
        },
        Some(text) => Name {
            path: Some(text.to_owned()),
            path_b64: None,
        },
        None => Name {
            path: None,
            path_b64: Some(BASE64.encode(path.as_bytes())),
        },
    }
}

/// The path that JSON has.
pub(crate) fn decode_path(name: Name) -> Result<RelPath, Why> {
    match one_of(name.path, name.path_b64, "path")? {
        Some(bytes) if bytes == b"." => Ok(RelPath::root()),
        Some(bytes) => RelPath::new(bytes),
        None => Err("no path".into()),
    }
}

/// Text, or bytes in base64 that are none: never both, so that one name has
/// one form.
fn one_of(text: Option<String>, b64: Option<String>, what: &str) -> Result<Option<Vec<u8>>, Why> {
    match (text, b64) {
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(b64)) => {
            let bytes = BASE64
                .decode(b64.as_bytes())
                .map_err(|_| format!("{what}_b64 is not base64"))?;
            if std::str::from_utf8(&bytes).is_ok() {
                return Err(format!("{what}_b64 is text").into());
            }
            Ok(Some(bytes))
        }
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(format!("both {what} and {what}_b64").into()),
    }
}

impl WireEntry {
    pub(super) fn encode(entry: &Entry) -> Self {
        let time = |time: Time| (time.seconds, time.nanoseconds);
        let mut wire = Self {
            path: encode_path(&entry.path),
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            user: entry.user.clone(),
            group: entry.group.clone(),
            mtime: time(entry.mtime),
            ctime: time(entry.ctime),
            dev: entry.dev,
            ino: entry.ino,
            xattrs: entry
                .xattrs
                .iter()
                .map(|(name, value)| (name.clone(), BASE64.encode(value)))
                .collect(),
            stale: entry.stale.clone(),
            deleted: entry.deleted.clone(),
            ..Self::default()
        };
        wire.kind = match &entry.kind {
            Kind::File(content) => {
                wire.size = Some(content.size);
                wire.sha256 = Some(HEXLOWER.encode(&content.sha256));
                wire.sparse = content.sparse;
                let stored = WireStored {
                    key: content.at.key.clone(),
                    message_id: content.at.message_id.clone(),
                    version_id: content.at.version_id.clone(),
                    offset: content.at.offset,
                };
                if stored.offset.is_some() {
                    wire.bundle = Some(stored);
                } else {
                    wire.object = Some(stored);
                }
                "file"
            }
            Kind::Dir => "dir",
            Kind::Symlink(target) => {
                match std::str::from_utf8(target) {
                    Ok(text) => wire.target = Some(text.to_owned()),
                    Err(_) => wire.target_b64 = Some(BASE64.encode(target)),
                }
                "symlink"
            }
            Kind::Hardlink(first) => {
                wire.link = Some(encode_path(first));
                "hardlink"
            }
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
            Kind::Char(rdev) => {
                wire.rdev = Some(*rdev);
                "char"
            }
            Kind::Block(rdev) => {
                wire.rdev = Some(*rdev);
                "block"
            }
        }
        .to_owned();
        wire
    }

    pub(super) fn decode(mut self) -> Result<Entry, Why> {
        let path = decode_path(std::mem::take(&mut self.path))?;
        let mode = u32::from_str_radix(&self.mode, 8).map_err(|_| "mode is not octal")?;
        if mode > 0o7777 {
            return Err("mode has more than permissions in it".into());
        }
        for text in [&self.user, &self.group, &self.stale, &self.deleted]
            .into_iter()
            .flatten()
        {
            bounded(text, MAX_TEXT)?;
        }
        let kind = self.kind(&path)?;
        if path.is_root() && kind != Kind::Dir {
            return Err("the root is no directory".into());
        }
        Ok(Entry {
            kind,
            mode,
            uid: self.uid,
            gid: self.gid,
            user: self.user.take(),
            group: self.group.take(),
            mtime: time(self.mtime)?,
            ctime: time(self.ctime)?,
            dev: self.dev,
            ino: self.ino,
            xattrs: xattrs(&self.xattrs)?,
            stale: self.stale.take(),
            deleted: self.deleted.take(),
            path,
        })
    }

    fn kind(&mut self, path: &RelPath) -> Result<Kind, Why> {
        Ok(match self.kind.as_str() {
            "file" => Kind::File(self.content()?),
            "dir" => Kind::Dir,
            "symlink" => {
                let target = one_of(self.target.take(), self.target_b64.take(), "target")?
                    .ok_or("a symlink without target")?;
                if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                    return Err("a symlink's target that no system has".into());
                }
                Kind::Symlink(target)
            }
            "hardlink" => {
                let first = decode_path(self.link.take().ok_or("a hard link to nothing")?)?;
                if first.is_root() || first >= *path {
                    return Err("a hard link to what did not come before".into());
                }
                Kind::Hardlink(first)
            }
            "fifo" => Kind::Fifo,
            "socket" => Kind::Socket,
            "char" => Kind::Char(self.rdev.ok_or("a device without number")?),
            "block" => Kind::Block(self.rdev.ok_or("a device without number")?),
            _ => return Err("an unknown type".into()),
        })
    }

    fn content(&mut self) -> Result<Content, Why> {
        let size = self.size.ok_or("a file without size")?;
        let sha256 = self.sha256.take().and_then(|text| hash(&text));
        let at = match (self.object.take(), self.bundle.take()) {
            (Some(object), None) if object.offset.is_none() => object,
            (None, Some(bundle)) if bundle.offset.is_some() => bundle,
            _ => return Err("a file that is not in one place".into()),
        };
        if at.key.is_empty() || at.key.starts_with('/') {
            return Err("an object's key that is not below the prefix".into());
        }
        bounded(&at.key, MAX_KEY)?;
        bounded(&at.message_id, MAX_TEXT)?;
        bounded(at.version_id.as_deref().unwrap_or_default(), MAX_TEXT)?;
        if at
            .offset
            .is_some_and(|offset| offset.checked_add(size).is_none())
        {
            return Err("an offset beyond all bounds".into());
        }
        Ok(Content {
            size,
            sha256: sha256.ok_or("a file without SHA-256")?,
            sparse: self.sparse,
            at: StoredAt {
                key: at.key,
                message_id: at.message_id,
                version_id: at.version_id,
                offset: at.offset,
            },
        })
    }
}

/// A SHA-256 in lower-case hexadecimal.
pub(crate) fn hash(text: &str) -> Option<[u8; 32]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

fn bounded(text: &str, most: usize) -> Result<(), Why> {
    if text.len() > most {
        return Err(format!("a text of more than {most} bytes").into());
    }
    Ok(())
}

fn time((seconds, nanoseconds): (i64, u32)) -> Result<Time, Why> {
    if nanoseconds >= 1_000_000_000 {
        return Err("more than a second of nanoseconds".into());
    }
    Ok(Time {
        seconds,
        nanoseconds,
    })
}

fn xattrs(wire: &BTreeMap<String, String>) -> Result<Vec<(String, Vec<u8>)>, Why> {
    if wire.len() > MAX_XATTR_COUNT {
        return Err(format!("more than {MAX_XATTR_COUNT} extended attributes").into());
    }
    let mut all = Vec::with_capacity(wire.len());
    let mut total = 0;
    for (name, value) in wire {
        if name.is_empty() || name.len() > 255 || name.contains('\0') {
            return Err("an extended attribute's name that no system has".into());
        }
        let value = BASE64
            .decode(value.as_bytes())
            .map_err(|_| "an extended attribute that is not base64")?;
        total += name.len() + value.len();
        all.push((name.clone(), value));
    }
    if total > MAX_XATTRS {
        return Err(format!("more than {MAX_XATTRS} bytes of extended attributes").into());
    }
    Ok(all)
}
