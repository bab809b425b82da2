//! Parts that do not fit the memory budget wait on disk, as ciphertext, in
//! files without a name: whatever ends the process also ends them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

/// A directory for spooled parts, with a limit on all of them together.
/// Clones share the limit.
#[derive(Clone, Debug)]
pub struct Spool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    max: u64,
    used: AtomicU64,
}

/// Why a part could not be spooled.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The limit is reached; it comes down when uploads end.
    #[error("the spool is full: its limit is {max} bytes")]
    Full {
        /// The limit in bytes.
        max: u64,
    },
    /// The directory or the disk.
    #[error("the spool cannot be written: {0}")]
    Io(#[from] std::io::Error),
}

impl Spool {
    /// Spools into `dir`, at most `max` bytes at a time.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, max: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                dir: dir.into(),
                max,
                used: AtomicU64::new(0),
            }),
        }
    }

    /// An empty file, unlinked from the start (O_TMPFILE where the file
    /// system has it) and readable by this user only.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn create(&self) -> Result<SpoolFile, SpoolError> {
        let file = tempfile::tempfile_in(&self.shared.dir)?;
        Ok(SpoolFile {
            file: Arc::new(file),
            len: 0,
            crc: Box::new(Digest::new(CrcAlgorithm::Crc64Nvme)),
            shared: self.shared.clone(),
        })
    }

    /// Whether `more` bytes would fit now.
    #[must_use]
    pub fn has_room(&self, more: u64) -> bool {
        let sum = self.in_use().checked_add(more);
        sum.is_some_and(|sum| sum <= self.shared.max)
    }

    /// Counts bytes that are about to be written.
    pub(super) fn take(&self, more: u64) -> Result<(), SpoolError> {
        let max = self.shared.max;
        self.shared
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|sum| *sum <= max)
            })
            .map(drop)
            .map_err(|_| SpoolError::Full { max })
    }

    /// Counts bytes that are there, whatever the limit is now.
    pub(super) fn count(&self, more: u64) {
        self.shared.used.fetch_add(more, Ordering::Relaxed);
    }

    /// Bytes that are gone.
    pub(super) fn give_back(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        // Never refused: it always has a value.
        let _ = self
            .shared
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Bytes spooled at this moment.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }
}

/// A spooled part.
#[derive(Debug)]
pub struct SpoolFile {
    file: Arc<File>,
    len: u64,
    /// Of what was meant to be written: a disk that returns something else is
    /// found out before it is sent.
    crc: Box<Digest>,
    shared: Arc<Shared>,
}

impl SpoolFile {
    /// Appends ciphertext, off the runtime's threads.
    ///
    /// # Errors
    /// [`SpoolError::Full`] before anything is written; [`SpoolError::Io`],
    /// after which the file is of no use.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), SpoolError> {
        let more = bytes.len() as u64;
        let max = self.shared.max;
        self.shared
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|sum| *sum <= max)
            })
            .map_err(|_| SpoolError::Full { max })?;
        // Counted before it is written: if the write fails or the caller
        // goes away in the middle, dropping the file gives all of it back.
        self.len += more;
        self.crc.update(&bytes);
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || (&*file).write_all(&bytes))
            .await
            .map_err(std::io::Error::other)??;
        Ok(())
    }

    /// Bytes appended.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was appended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn crc64(&self) -> u64 {
        self.crc.finalize()
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.len, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[tokio::test]
    async fn spooled_bytes_are_counted_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 100);
        let mut a = spool.create().unwrap();
        a.append(Bytes::from_static(&[1; 60])).await.unwrap();
        let mut b = spool.create().unwrap();
        let full = b.append(Bytes::from_static(&[2; 41])).await.unwrap_err();
        assert!(matches!(full, SpoolError::Full { max: 100 }));
        b.append(Bytes::from_static(&[2; 40])).await.unwrap();
        assert_eq!((spool.in_use(), a.len(), b.len()), (100, 60, 40));
        drop(a);
        b.append(Bytes::from_static(&[3; 60])).await.unwrap();
        let mut back = [0; 100];
        b.file().read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back[..40], [2; 40]);
        assert_eq!(back[40..], [3; 60]);
        drop(b);
        assert_eq!(spool.in_use(), 0);
    }

    #[tokio::test]
    async fn spooled_files_have_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 100);
        let mut file = spool.create().unwrap();
        file.append(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let spool = Spool::new("/nonexistent/spool", 100);
        assert!(matches!(spool.create().unwrap_err(), SpoolError::Io(_)));
    }
}
