//! Bringing files here: one object, or a stretch of a bundle, at a time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::attributes::{Attributes, set_time};
use super::choose::Archive;
use super::manifest::another;
use super::report::{Outcome, name};
use super::tree::{NewFile, Spot};
use crate::api::{Error, ErrorKind};
use crate::cli::failure::{ALTERED, Failure};
use crate::cli::progress::Progress;
use crate::client::{Download, GetOptions};
use crate::manifest::{Entry, RelPath, Time};

/// Attempts at one object while agent, token or store are busy or away.
const ATTEMPTS: u32 = 4;
/// Before the second of them; doubles.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes of a block that is not written where a file had holes and the block
/// is all zeros: a page, and the block of most file systems.
const BLOCK: usize = 4096;
/// Permissions of files of which nothing else is known; the umask applies.
const FILE_MODE: u32 = 0o666;

/// A file that is to be written.
pub(super) struct Job {
    pub(super) path: RelPath,
    pub(super) spot: Spot,
    /// Whether what is there now is replaced.
    pub(super) replace: bool,
    /// All that is known of it; nothing where there is no manifest.
    pub(super) entry: Option<Entry>,
    pub(super) mtime: Time,
    /// Bytes and their SHA-256, where known.
    pub(super) size: Option<u64>,
    pub(super) sha256: Option<[u8; 32]>,
    pub(super) sparse: bool,
    pub(super) at: Source,
}

/// Where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// The object's key, whole.
    pub(super) key: String,
    pub(super) version_id: Option<String>,
    pub(super) message_id: Option<String>,
    /// Where it begins in a bundle.
    pub(super) offset: Option<u64>,
}

impl Source {
    /// Whether both are the same object.
    pub(super) fn shares_object(&self, other: &Self) -> bool {
        self.key == other.key
            && self.version_id == other.version_id
            && self.message_id == other.message_id
    }
}

/// What all fetches need.
pub(super) struct Fetcher<'a> {
    pub(super) archive: &'a Archive,
    pub(super) attributes: &'a RefCell<Attributes>,
    pub(super) outcome: &'a Outcome<'a>,
    pub(super) progress: &'a Progress,
    /// The process's.
    pub(super) umask: u32,
    /// Whether each file is named.
    pub(super) names: bool,
}

/// Why an attempt failed.
enum Trouble {
    Agent(Error),
    Here(Failure),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Agent(error)
    }
}

impl Fetcher<'_> {
    /// Restores files that lie in one object: one that is all of it, or some
    /// of a bundle, in the order of their offsets. What fails is reported.
    pub(super) async fn fetch(&self, jobs: Vec<Job>) {
        let mut jobs = VecDeque::from(jobs);
        let mut attempt = 1;
        while !jobs.is_empty() {
            if self.outcome.is_stopped() {
                return;
            }
            let Err(trouble) = self.attempt(&mut jobs).await else {
                return;
            };
            let error = match trouble {
                Trouble::Agent(error) if may_pass(error.kind) && attempt < ATTEMPTS => {
                    tokio::time::sleep(PAUSE * 2_u32.pow(attempt - 1)).await;
                    attempt += 1;
                    continue;
                }
                trouble => trouble,
            };
            // A range that is not in the bundle is one file's lie: the others
            // are fetched one by one.
            let lies = matches!(&error, Trouble::Agent(error)
                if matches!(error.kind, ErrorKind::Range | ErrorKind::Truncated));
            if !lies || jobs.len() == 1 {
                return self.give_up(&jobs, error);
            }
            for job in jobs.drain(..) {
                let mut alone = VecDeque::from([job]);
                if let Err(trouble) = self.attempt(&mut alone).await {
                    self.give_up(&alone, trouble);
                }
            }
        }
    }

    /// All jobs that are left failed for the same reason.
    fn give_up(&self, jobs: &VecDeque<Job>, trouble: Trouble) {
        if let Trouble::Agent(error) = &trouble {
            if error.kind == ErrorKind::Archived {
                for job in jobs {
                    let why = "its object is in an archive class, and not readable yet";
                    self.outcome.told("archived", &name(&job.path), why);
                }
                let count = jobs.len() as u64;
                self.outcome.add(|counts| counts.archived += count);
                return;
            }
            if error.kind == ErrorKind::AgentAway {
                let url = self.archive.url();
                self.outcome
                    .stop(Failure::api(format!("cannot restore {url}"), error));
                return;
            }
        }
        for job in jobs {
            let path = name(&job.path);
            let what = format!("cannot restore {path}");
            match &trouble {
                Trouble::Agent(error) => self.outcome.failed(&path, &Failure::api(what, error)),
                Trouble::Here(failure) => self.outcome.failed(&path, failure),
            }
        }
    }

    /// One request for all jobs that are left; each is taken off when it is
    /// through.
    async fn attempt(&self, jobs: &mut VecDeque<Job>) -> Result<(), Trouble> {
        let all = extent(jobs);
        let Some(first) = jobs.front() else {
            return Ok(());
        };
        let at = first.at.clone();
        let range = match at.offset {
            None => None,
            Some(_) if all.is_empty() => {
                // Nothing to fetch: empty files.
                while let Some(job) = jobs.pop_front() {
                    self.empty(&job);
                }
                return Ok(());
            }
            Some(_) => Some(format!("bytes={}-{}", all.start, all.end - 1)),
        };
        let whole = range.is_none();
        let options = GetOptions {
            range,
            version_id: at.version_id.clone(),
            ..GetOptions::default()
        };
        let client = &self.archive.client;
        let mut download = client.get(&self.archive.bucket, &at.key, &options).await?;
        if at.message_id.is_some() && download.info.message_id != at.message_id {
            let what = format!("s3://{}/{}", self.archive.bucket, at.key);
            return Err(another(&what).into());
        }
        if !whole && download.info.length != all.end - all.start {
            return Err(Error::new(
                ErrorKind::Truncated,
                format!(
                    "the bundle s3://{}/{} ends early",
                    self.archive.bucket, at.key
                ),
            )
            .into());
        }
        let mut stream = Stream {
            download: &mut download,
            kept: bytes::Bytes::new(),
            at: all.start,
        };
        while let Some(job) = jobs.front() {
            let length = match job.at.offset {
                Some(_) if job.size == Some(0) => 0,
                Some(offset) => {
                    stream.skip_to(offset).await?;
                    job.size.unwrap_or(0)
                }
                None => stream.download.info.length,
            };
            if job.size.is_some_and(|size| size != length) {
                return Err(Trouble::Agent(Error::new(
                    ErrorKind::Altered,
                    "it has another length than the archive says",
                )));
            }
            let written = self.one(job, &mut stream, length).await;
            // What the network did is tried again; what this file did is not.
            let written = match written {
                Err(Trouble::Agent(error)) => return Err(Trouble::Agent(error)),
                Err(Trouble::Here(failure)) => Err(failure),
                Ok(()) => Ok(()),
            };
            let Some(job) = jobs.pop_front() else { break };
            self.note(&job, length, written);
        }
        Ok(())
    }

    fn empty(&self, job: &Job) {
        let written = Sink::begin(job)
            .map_err(|e| cannot_write(job, &e))
            .and_then(|sink| self.finish(job, sink));
        self.note(job, 0, written);
    }

    fn note(&self, job: &Job, length: u64, written: Result<(), Failure>) {
        let path = name(&job.path);
        match written {
            Ok(()) => {
                self.outcome.add(|counts| {
                    counts.files += 1;
                    counts.bytes += length;
                });
                self.outcome.done(&path, self.names);
            }
            Err(failure) => self.outcome.failed(&path, &failure),
        }
    }

    /// One file, from where the stream stands.
    async fn one(&self, job: &Job, stream: &mut Stream<'_>, length: u64) -> Result<(), Trouble> {
        let mut sink = Sink::begin(job).map_err(|e| Trouble::Here(cannot_write(job, &e)));
        let mut left = length;
        while left > 0 {
            let bytes = stream.next(left).await?;
            left -= bytes.len() as u64;
            self.progress.advance(bytes.len());
            // A file that cannot be written leaves the others of its bundle
            // to be read on.
            if let Ok(open) = &mut sink
                && let Err(error) = open.write(&bytes)
            {
                if matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) {
                    self.outcome
                        .stop(cannot_write(job, &error).and("; the restore stopped"));
                }
                sink = Err(Trouble::Here(cannot_write(job, &error)));
                if job.at.offset.is_none() {
                    break;
                }
            }
        }
        if job.at.offset.is_none() && left == 0 {
            // Only its end says that all of it came.
            stream.end().await?;
        }
        self.finish(job, sink?).map_err(Trouble::Here)
    }

    /// Verifies, sets attributes, and gives the file its name.
    fn finish(&self, job: &Job, sink: Sink) -> Result<(), Failure> {
        let cannot = |error: &io::Error| cannot_write(job, error);
        let (new, digest) = sink.finish().map_err(|e| cannot(&e))?;
        if job.sha256.is_some_and(|expected| expected != digest) {
            let path = name(&job.path);
            return Err(Failure::new(
                ALTERED,
                format!("cannot restore {path}: its SHA-256 is not the one in the manifest"),
            )
            .hint("what was read is genuine, and not what the manifest says: ask who wrote this archive"));
        }
        match &job.entry {
            Some(entry) => self
                .attributes
                .borrow_mut()
                .set(new.file(), entry)
                .map_err(|e| cannot(&e))?,
            None => {
                let mode = rustix::fs::Mode::from_raw_mode(FILE_MODE & !self.umask);
                rustix::fs::fchmod(new.file(), mode).map_err(|e| cannot(&e.into()))?;
                set_time(new.file(), job.mtime).map_err(|e| cannot(&e))?;
            }
        }
        new.put(job.replace).map_err(|e| cannot(&e))
    }
}

fn cannot_write(job: &Job, error: &io::Error) -> Failure {
    Failure::io(format!("cannot restore {}", name(&job.path)), error)
}

/// Whether the same request may succeed a moment later.
fn may_pass(kind: ErrorKind) -> bool {
    kind.exit_code() == 75 && !matches!(kind, ErrorKind::Archived)
}

/// The bytes that jobs of one bundle lie in: their offsets rise.
fn extent(jobs: &VecDeque<Job>) -> Range<u64> {
    let end = |job: &Job| {
        job.at
            .offset
            .unwrap_or(0)
            .saturating_add(job.size.unwrap_or(0))
    };
    // Empty files need no bytes, wherever they are.
    let mut full = jobs.iter().filter(|job| job.size != Some(0));
    let first = full.next();
    let start = first.and_then(|job| job.at.offset).unwrap_or(0);
    start..full.next_back().or(first).map_or(start, end)
}

/// A download, cut where files end.
struct Stream<'a> {
    download: &'a mut Download,
    kept: bytes::Bytes,
    /// The position in the object of the first byte of `kept`.
    at: u64,
}

impl Stream<'_> {
    /// At least one byte, at most `most`.
    async fn next(&mut self, most: u64) -> Result<bytes::Bytes, Error> {
        while self.kept.is_empty() {
            self.kept = self.download.next().await?.ok_or_else(|| {
                Error::new(ErrorKind::Truncated, "the agent's answer ended early")
            })?;
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let bytes = self.kept.split_to(self.kept.len().min(most));
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    async fn skip_to(&mut self, offset: u64) -> Result<(), Error> {
        while self.at < offset {
            self.next(offset - self.at).await?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Error> {
        match self.download.next().await? {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Internal, "the answer has no end")),
        }
    }
}

/// A file being written, and its digest.
struct Sink {
    new: NewFile,
    digest: crate::crypto::digest::Context,
    at: u64,
    sparse: bool,
}

impl Sink {
    fn begin(job: &Job) -> io::Result<Self> {
        Ok(Self {
            new: job.spot.begin()?,
            digest: crate::crypto::digest::Context::new(&crate::crypto::digest::SHA256),
            at: 0,
            sparse: job.sparse,
        })
    }

    /// On this thread: the page cache takes it in microseconds, and the next
    /// bytes are under way in the agent meanwhile.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        let file = self.new.file();
        if self.sparse {
            write_sparse(file, bytes, self.at)?;
        } else {
            file.write_all_at(bytes, self.at)?;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> io::Result<(NewFile, [u8; 32])> {
        if self.sparse {
            // Zeros at the end were not written.
            self.new.file().set_len(self.at)?;
        }
        let digest = self.digest.finish();
        let digest = digest.as_ref().try_into().map_err(io::Error::other)?;
        Ok((self.new, digest))
    }
}

/// Writes all but whole blocks of zeros.
fn write_sparse(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let into = usize::try_from(at % BLOCK as u64).unwrap_or(0);
        let (block, rest) = bytes.split_at(bytes.len().min(BLOCK - into));
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, at)?;
        }
        at += block.len() as u64;
        bytes = rest;
    }
    Ok(())
}
