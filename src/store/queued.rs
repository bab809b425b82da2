//! Whole objects in the spool, as ciphertext, in files with a name: what was
//! acknowledged must outlive the process.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use crate::crypto::digest;

use super::Buffer;
use super::spool::{Spool, SpoolError};

/// Their directory inside the spool's.
const QUEUE: &str = "queue";
/// What a file's name ends in until its ticket is durable, and from the moment
/// on at which its ticket ends. A file without either is one that a client was
/// told of.
const NEW: &str = ".new";
const OVER: &str = ".over";
/// Bytes read at a time while a file is verified.
const READ: usize = 256 << 10;

/// What a file must be to be the one that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSums {
    /// Its bytes.
    pub size: u64,
    /// CRC-64/NVME.
    pub crc64: u64,
    /// SHA-256.
    pub sha256: Vec<u8>,
}

struct Hashes {
    crc: Digest,
    sha: digest::Context,
    len: u64,
}

impl Hashes {
    fn new() -> Self {
        Self {
            crc: Digest::new(CrcAlgorithm::Crc64Nvme),
            sha: digest::Context::new(&digest::SHA256),
            len: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        self.sha.update(bytes);
        self.len += bytes.len() as u64;
    }

    fn finish(self) -> FileSums {
        FileSums {
            size: self.len,
            crc64: self.crc.finalize(),
            sha256: self.sha.finish().as_ref().to_vec(),
        }
    }
}

/// A file being written. Dropped before it is [finished](Self::finish), it is
/// removed. Its ticket is recorded next, and then [`Spool::keep_queued`].
pub struct QueueWriter {
    spool: Spool,
    path: PathBuf,
    file: Arc<File>,
    hashes: Arc<Mutex<Hashes>>,
    /// Bytes counted against the limit.
    counted: u64,
    done: bool,
}

/// A file to be sent.
pub struct QueueReader {
    file: Arc<File>,
}

impl Spool {
    /// A new file for `ticket`, readable by this user only.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn create_queued(&self, ticket: &str) -> Result<QueueWriter, SpoolError> {
        let dir = self.dir().join(QUEUE);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let path = dir.join(format!("{ticket}{NEW}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(QueueWriter {
            spool: self.clone(),
            path,
            file: Arc::new(file),
            hashes: Arc::new(Mutex::new(Hashes::new())),
            counted: 0,
            done: false,
        })
    }

    /// Before anybody is told of `ticket`, which is durable: no start removes
    /// its file from now on, whatever becomes of the catalogue.
    ///
    /// # Errors
    /// The system's.
    pub async fn keep_queued(&self, ticket: &str) -> io::Result<()> {
        self.rename_queued(ticket, &[NEW], "").await
    }

    /// Before `ticket` is ended: the next start removes its file if it is gone.
    ///
    /// # Errors
    /// The system's.
    pub async fn end_queued(&self, ticket: &str) -> io::Result<()> {
        // It may get its name at this moment.
        self.rename_queued(ticket, &["", NEW, ""], OVER).await
    }

    /// From the first of these endings that there is; a file that is not there
    /// has the other name already, or is missed when it is read.
    async fn rename_queued(
        &self,
        ticket: &str,
        from: &'static [&str],
        to: &'static str,
    ) -> io::Result<()> {
        let (dir, ticket) = (self.dir().join(QUEUE), ticket.to_owned());
        off_thread(move || {
            let to = dir.join(format!("{ticket}{to}"));
            for from in from {
                match std::fs::rename(dir.join(format!("{ticket}{from}")), &to) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    renamed => {
                        renamed?;
                        return File::open(dir)?.sync_all();
                    }
                }
            }
            Ok(())
        })
        .await
    }

    /// The file of `ticket`.
    ///
    /// # Errors
    /// The system's; not found, if somebody removed it.
    pub fn open_queued(&self, ticket: &str) -> io::Result<QueueReader> {
        let dir = self.dir().join(QUEUE);
        // It may get its name at this moment.
        for suffix in ["", NEW, "", OVER] {
            match File::open(dir.join(format!("{ticket}{suffix}"))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => {
                    return file.map(|file| QueueReader {
                        file: Arc::new(file),
                    });
                }
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Removes the file of `ticket`, and gives its `size` back.
    pub fn remove_queued(&self, ticket: &str, size: u64) {
        self.give_back(size);
        for suffix in [OVER, "", NEW] {
            let path = self.dir().join(QUEUE).join(format!("{ticket}{suffix}"));
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a spooled file cannot be removed");
                }
                _ => {}
            }
        }
    }

    /// At a start: counts the files of these tickets, and removes those that
    /// nobody was told of or that are done with. A file whose ticket is gone
    /// although a client was told of it stays: the catalogue was lost, and the
    /// file is all there is. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn adopt_queued(&self, tickets: &HashSet<String>) -> io::Result<()> {
        let entries = match std::fs::read_dir(self.dir().join(QUEUE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ticket = [NEW, OVER].iter().find_map(|end| name.strip_suffix(end));
            if tickets.contains(ticket.unwrap_or(&name)) {
                self.count(entry.metadata()?.len());
            } else if ticket.is_none() {
                self.count(entry.metadata()?.len());
                tracing::error!(
                    path = %path.display(),
                    "an object waits in the spool that the catalogue does not know: `strongroom recover` opens it (docs/queue.md)"
                );
            } else if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a spooled file without a ticket cannot be removed");
            }
        }
        Ok(())
    }
}

impl QueueWriter {
    /// Appends ciphertext, off the runtime's threads.
    ///
    /// # Errors
    /// [`SpoolError::Full`] before anything is written; [`SpoolError::Io`].
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), SpoolError> {
        let more = bytes.len() as u64;
        self.spool.take(more)?;
        self.counted += more;
        let (file, hashes) = (self.file.clone(), self.hashes.clone());
        off_thread(move || {
            let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
            hashes.update(&bytes);
            (&*file).write_all(&bytes)
        })
        .await?;
        Ok(())
    }

    /// Makes it durable: file and directory entry.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; it is removed then.
    pub async fn finish(mut self) -> Result<FileSums, SpoolError> {
        let (file, dir) = (self.file.clone(), self.spool.dir().to_owned());
        off_thread(move || {
            file.sync_all()?;
            File::open(dir.join(QUEUE))?.sync_all()?;
            // The directory itself may be new.
            File::open(dir)?.sync_all()
        })
        .await?;
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = std::mem::replace(&mut *hashes, Hashes::new()).finish();
        drop(hashes);
        self.done = true;
        Ok(sums)
    }
}

impl Drop for QueueWriter {
    fn drop(&mut self) {
        if !self.done {
            self.spool.give_back(self.counted);
            // What stays, the next start removes.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl QueueReader {
    /// Whether it is what was written: all of it is read.
    ///
    /// # Errors
    /// The system's.
    pub async fn is(&self, sums: FileSums) -> io::Result<bool> {
        let file = self.file.clone();
        off_thread(move || {
            let mut hashes = Hashes::new();
            let mut chunk = vec![0; READ];
            loop {
                match file.read_at(&mut chunk, hashes.len)? {
                    0 => return Ok(hashes.finish() == sums),
                    n => hashes.update(&chunk[..n]),
                }
            }
        })
        .await
    }

    /// `len` bytes from `at` on.
    ///
    /// # Errors
    /// The system's, or it is shorter.
    pub async fn read(&self, at: u64, len: usize, mut into: Buffer) -> io::Result<Bytes> {
        let file = self.file.clone();
        off_thread(move || {
            into.resize(len);
            file.read_exact_at(into.as_mut_slice(), at)?;
            into.mark_ciphertext();
            Ok(into.freeze())
        })
        .await
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_stay_only_when_they_are_finished_and_known() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 100);
        let mut dropped = spool.create_queued("dropped").unwrap();
        dropped.append(Bytes::from_static(&[1; 60])).await.unwrap();
        let mut kept = spool.create_queued("kept").unwrap();
        let full = kept.append(Bytes::from_static(&[2; 41])).await;
        assert!(matches!(full, Err(SpoolError::Full { .. })));
        drop(dropped);
        kept.append(Bytes::from_static(&[2; 41])).await.unwrap();
        let sums = kept.finish().await.unwrap();
        assert_eq!((spool.in_use(), sums.size), (41, 41));
        spool.keep_queued("kept").await.unwrap();
        for stray in ["untold", "over", "lost"] {
            let file = spool.create_queued(stray).unwrap();
            file.finish().await.unwrap();
        }
        spool.keep_queued("over").await.unwrap();
        spool.end_queued("over").await.unwrap();
        spool.keep_queued("lost").await.unwrap();

        let next = Spool::new(dir.path(), 100);
        next.adopt_queued(&HashSet::from(["kept".to_owned()]))
            .unwrap();
        assert_eq!(next.in_use(), 41);
        let left = std::fs::read_dir(dir.path().join(QUEUE)).unwrap();
        let mut left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["kept", "lost"]);
        let reader = next.open_queued("kept").unwrap();
        assert!(reader.is(sums.clone()).await.unwrap());
        std::fs::write(dir.path().join(QUEUE).join("kept"), [3; 41]).unwrap();
        assert!(!reader.is(sums).await.unwrap());
        next.remove_queued("kept", 41);
        assert_eq!(next.in_use(), 0);
    }
}
