//! One run at a time, and what a run that was killed had stored.
//!
//! The lock is the kernel's, on a file: whoever dies lets go of it. Beside it
//! lies a journal of what the agent acknowledged since the last checkpoint;
//! it saves sending that again, and nothing more depends on it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use data_encoding::HEXLOWER;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::options::Plan;
use crate::cli::failure::{FAILED, Failure, TEMPORARY, why};
use crate::manifest::{self, Entry, MAX_LINE, RelPath};

/// Where locks lie unless told otherwise; the first that takes a file. The
/// same for a user's terminal and cron, so never by the environment.
const DIRECTORIES: [&str; 2] = ["/run/lock", "/tmp"];
/// Lines of a journal that are believed, at most; more are stored again.
/// Ours: five times what a run writes before it makes a checkpoint.
const MAX_LINES: usize = 100_000;

/// Holds other runs to the same place out until it is dropped.
pub(super) struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    pub(super) fn take(plan: &Plan, socket: &Path) -> Result<Self, Failure> {
        let (path, file) = match &plan.lock {
            Some(path) => (path.clone(), open(path)),
            None => default(plan, socket),
        };
        let cannot = |error: &io::Error| {
            Failure::new(
                FAILED,
                format!("cannot lock {}: {}", path.display(), why(error)),
            )
            .hint("--lock names another file")
        };
        let file = file.map_err(|error| cannot(&error))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file, path }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::new(
                TEMPORARY,
                format!("another run archives to {}", plan.place()),
            )
            .hint(format!(
                "it holds the lock {}; the next run will do its work",
                path.display()
            ))),
            Err(error) => Err(cannot(&error.into())),
        }
    }

    /// The journal, and what it has: what an earlier run had acknowledged and
    /// could not write down.
    pub(super) fn journal(&self, plan: &Plan) -> (Journal, Vec<Entry>) {
        let mut path = self.path.clone().into_os_string();
        path.push(".journal");
        let path = PathBuf::from(path);
        let head = format!(
            "{}\n",
            serde_json::json!({ "bucket": plan.bucket, "prefix": plan.prefix })
        );
        let file = open(&path).ok();
        let entries = file
            .as_ref()
            .map(|file| read(file, &head))
            .unwrap_or_default();
        let journal = Journal {
            head,
            path,
            inner: Mutex::new(Inner {
                file,
                waiting: BTreeMap::new(),
                lines: entries.len(),
            }),
        };
        if entries.is_empty() {
            journal.checkpointed();
        }
        (journal, entries)
    }
}

fn default(plan: &Plan, socket: &Path) -> (PathBuf, io::Result<File>) {
    let place = [
        plan.bucket.as_bytes(),
        b"\0",
        plan.prefix.as_bytes(),
        b"\0",
        socket.as_os_str().as_encoded_bytes(),
    ];
    let hash = crate::crypto::digest::digest(&crate::crypto::digest::SHA256, &place.concat());
    let uid = rustix::process::geteuid().as_raw();
    let short = &HEXLOWER.encode(hash.as_ref())[..16];
    let name = format!("strongroom-archive-{uid}-{short}.lock");
    let mut paths = DIRECTORIES
        .map(|dir| Path::new(dir).join(&name))
        .into_iter();
    let mut path = paths.next().unwrap_or_default();
    let mut file = open(&path);
    for next in paths {
        if file.is_ok() {
            break;
        }
        file = open(&next);
        path = next;
    }
    (path, file)
}

/// Opens a file that only we can have made: others may write to the directory.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR
        | OFlags::CREATE
        | OFlags::APPEND
        | OFlags::NOFOLLOW
        | OFlags::CLOEXEC
        | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() || meta.nlink() != 1 {
        return Err(io::Error::other("it is not a file of ours"));
    }
    Ok(file)
}

/// What the journal of the same place has, by path; the newest counts. A last
/// line that was cut off ends it.
fn read(file: &File, head: &str) -> Vec<Entry> {
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| {
        line.clear();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let read = lines.by_ref().take(limit).read_until(b'\n', line);
        matches!(read, Ok(n) if n > 0) && line.last() == Some(&b'\n')
    };
    if !next(&mut line) || line != head.as_bytes() {
        return Vec::new();
    }
    let mut entries = BTreeMap::new();
    let mut count = 0;
    while count < MAX_LINES && next(&mut line) {
        count += 1;
        match manifest::decode_entry(&line) {
            Ok(entry) => drop(entries.insert(entry.path.clone(), entry)),
            Err(_) => break,
        }
    }
    entries.into_values().collect()
}

/// What was acknowledged and is not in any manifest yet. Failing to write it
/// costs time after a crash, and is no failure.
pub(super) struct Journal {
    head: String,
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: Option<File>,
    /// Acknowledged, and not yet recorded.
    waiting: BTreeMap<RelPath, Entry>,
    lines: usize,
}

impl Journal {
    /// A file was acknowledged.
    pub(super) fn stored(&self, entry: &Entry) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(file), Ok(line)) = (&inner.file, manifest::encode_entry(entry)) {
            drop((&*file).write_all(&line));
        }
        inner.lines += 1;
        inner.waiting.insert(entry.path.clone(), entry.clone());
    }

    /// Its entry is in the manifest so far.
    pub(super) fn recorded(&self, path: &RelPath) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.waiting.remove(path);
    }

    /// Lines that a crash would leave to read.
    pub(super) fn lines(&self) -> usize {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.lines
    }

    /// The manifest so far is stored: only what waits is still needed.
    pub(super) fn checkpointed(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.lines = inner.waiting.len();
        inner.file = self.rewrite(&inner.waiting).ok();
    }

    /// The run is complete.
    pub(super) fn end(&self) {
        drop(std::fs::remove_file(&self.path));
    }

    fn rewrite(&self, waiting: &BTreeMap<RelPath, Entry>) -> io::Result<File> {
        let mut next = self.path.clone().into_os_string();
        next.push(".new");
        let next = PathBuf::from(next);
        drop(std::fs::remove_file(&next));
        let mut file = open(&next)?;
        let mut text = self.head.clone().into_bytes();
        for entry in waiting.values() {
            text.extend(manifest::encode_entry(entry).map_err(io::Error::other)?);
        }
        file.write_all(&text)?;
        std::fs::rename(&next, &self.path)?;
        Ok(file)
    }
}
