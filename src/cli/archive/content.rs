//! Reading a file so that what is stored is how it was at one instant, or
//! nothing is.
//!
//! The last chunk is held back until the file has proved the same as when
//! reading began: the agent never has a whole body of a file that changed.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::OFlags;
use tokio::sync::{mpsc, oneshot};

use super::entries::{self, Names, Stamp};
use super::walk::Found;
use crate::api::{Error, ErrorKind};
use crate::cli::source::{CHUNK, Pool};
use crate::client::{Resumable, Upload};
use crate::crypto::digest::{Context, SHA256};
use crate::manifest::{Entry, Kind};

/// Chunks between the reader and the connection.
const QUEUE: usize = 4;

/// Why a file could not be read as one.
pub(super) enum ReadError {
    /// It changed meanwhile.
    Changed,
    /// It is gone, or not the regular file that the walk saw.
    Gone,
    /// The system refused.
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        // Another kind of file at its place: ENXIO of a socket, ELOOP of a link.
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO) => Self::Gone,
            _ => Self::Io(error),
        }
    }
}

pub(super) type Sha256 = [u8; 32];

/// A file that was read, and how that ended.
pub(super) type Verdict = (Opened, Result<Sha256, ReadError>);

/// A regular file, opened, with its entry but for hash and place.
pub(super) struct Opened {
    file: File,
    stamp: Stamp,
    pub(super) entry: Entry,
}

impl Opened {
    /// Blocks.
    pub(super) fn open(found: &Found, names: &Names) -> Result<Self, ReadError> {
        let file = File::from(found.root.open(&found.within, OFlags::RDONLY)?);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(ReadError::Gone);
        }
        // Only advice; a file system that cannot take it reads as well.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        Ok(Self {
            entry: entries::file(&found.path, &file, &meta, names)?,
            stamp: Stamp::of(&meta),
            file,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.stamp.size
    }

    /// Reads it from the beginning to the end, and says its hash. `each` gets
    /// every chunk, the last one once the file has proved unchanged; it
    /// returns `false` to end early. Blocks.
    pub(super) fn read(
        &self,
        pace: Option<&Pace>,
        mut each: impl FnMut(Bytes) -> bool,
    ) -> Result<Sha256, ReadError> {
        let mut file = &self.file;
        io::Seek::rewind(&mut file)?;
        let most = pace.map_or(CHUNK, Pace::chunk);
        let mut pool = Pool::default();
        let mut hash = Context::new(&SHA256);
        let mut held: Option<Bytes> = None;
        let mut total = 0_u64;
        loop {
            // One byte more than there should be tells a file that has grown.
            let left = self.stamp.size.saturating_sub(total);
            let want = usize::try_from(left).unwrap_or(most).clamp(1, most);
            let chunk = pool.read(&mut file, want)?;
            if chunk.is_empty() {
                break;
            }
            total += chunk.len() as u64;
            if total > self.stamp.size {
                return Err(ReadError::Changed);
            }
            hash.update(&chunk);
            if let Some(pace) = pace {
                pace.take(chunk.len());
            }
            if let Some(before) = held.replace(chunk)
                && !each(before)
            {
                return Err(ReadError::Gone);
            }
        }
        if total != self.stamp.size || Stamp::of(&self.file.metadata()?) != self.stamp {
            return Err(ReadError::Changed);
        }
        if let Some(last) = held {
            each(last);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(hash.finish().as_ref());
        Ok(digest)
    }

    /// Reads it into memory; for small files. Blocks.
    pub(super) fn read_all(&self, pace: Option<&Pace>) -> Result<(Vec<u8>, Sha256), ReadError> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.stamp.size).unwrap_or(0));
        let hash = self.read(pace, |chunk| {
            bytes.extend_from_slice(&chunk);
            true
        })?;
        Ok((bytes, hash))
    }

    /// Its entry, with its hash.
    pub(super) fn into_entry(self, sha256: Sha256) -> Entry {
        let mut entry = self.entry;
        if let Kind::File(content) = &mut entry.kind {
            content.sha256 = sha256;
        }
        entry
    }

    /// As an upload that goes on where an interrupted one was.
    pub(super) fn resumable(&self, pace: Option<Arc<Pace>>) -> io::Result<Resumable> {
        let mut source = Resumable::of(self.file.try_clone()?)?;
        let stamp = self.stamp;
        source.length = stamp.size;
        source.check = Arc::new(move |file| match file.metadata() {
            Ok(meta) if Stamp::of(&meta) == stamp => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Incomplete,
                "it changed while it was read",
            )),
        });
        if let Some(pace) = pace {
            let before = AtomicU64::new(u64::MAX);
            source.progress = Arc::new(move |at| {
                let sent = at.saturating_sub(before.swap(at, Ordering::Relaxed));
                pace.take(usize::try_from(sent).unwrap_or(0));
            });
        }
        Ok(source)
    }

    /// Whether the file is still as it was when it was opened.
    pub(super) fn is_unchanged(&self) -> bool {
        let meta = self.file.metadata();
        meta.is_ok_and(|meta| Stamp::of(&meta) == self.stamp)
    }

    /// As the body of a put; the receiver hears how reading ended, and has
    /// the file back.
    pub(super) fn stream(self, pace: Option<Arc<Pace>>) -> (Upload, oneshot::Receiver<Verdict>) {
        let (done, verdict) = oneshot::channel();
        let length = self.size();
        let (sender, chunks) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            let result = self.read(pace.as_deref(), |chunk| {
                sender.blocking_send(Ok(chunk)).is_ok()
            });
            if result.is_err() {
                // Breaks the body off; the other side may have gone first.
                drop(sender.blocking_send(Err(io::Error::other("the file changed"))));
            }
            drop(done.send((self, result)));
        });
        // Announced as empty, a body is whole before anything is read.
        let upload = if length == 0 {
            Upload::empty()
        } else {
            Upload::from_channel(chunks, Some(length))
        };
        (upload, verdict)
    }
}

/// Slows all readers down together.
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When the bytes that were taken so far are due.
    due: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            due: Mutex::new(Instant::now()),
        }
    }

    /// Bytes of a read: about a quarter of a second of them.
    fn chunk(&self) -> usize {
        usize::try_from(self.bytes_per_second / 4)
            .unwrap_or(CHUNK)
            .clamp(1024, CHUNK)
    }

    /// Takes so many bytes, and waits until the rate allows them. Blocks.
    fn take(&self, bytes: usize) {
        let share = bytes as f64 / self.bytes_per_second as f64;
        let wait = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *due = (*due).max(now) + Duration::from_secs_f64(share);
            *due - now
        };
        std::thread::sleep(wait);
    }
}
