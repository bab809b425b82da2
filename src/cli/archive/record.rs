//! Writing down what was found, in order: the manifest in a file without a
//! name, its checkpoints while the run goes on, and at the end the manifest
//! and `latest`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::known::{Positioned, spool};
use super::store::Shared;
use crate::cli::failure::Failure;
use crate::client::{PutOptions, Upload};
use crate::manifest::{
    Counts, Entry, Error, Head, LATEST, LATEST_TYPE, Latest, MANIFEST_TYPE, PARTIAL, Reader,
    RelPath, Writer, manifest_key,
};

/// A checkpoint takes at most this share of the time: 1/20.
const SHARE: u32 = 20;
/// Lines of the journal that make a checkpoint due. Ours: 10 MiB of it.
const MAX_LINES: usize = 20_000;
/// Bytes of a read of the spooled manifest.
const CHUNK: usize = 256 << 10;

pub(super) struct Recorder {
    writer: Writer<File>,
    carried: Option<File>,
    started: jiff::Timestamp,
    checked: Instant,
    /// How long what was stored may go without a checkpoint: what a lost host
    /// has to send again. The journal covers what was merely killed.
    least: Duration,
    interval: Duration,
    /// Files were stored since the last checkpoint.
    dirty: bool,
}

impl Recorder {
    pub(super) fn new(
        head: &Head,
        started: jiff::Timestamp,
        carried: Option<File>,
        interval: Duration,
    ) -> Result<Self, Failure> {
        let file = tempfile::tempfile().map_err(|error| spool(&error))?;
        Ok(Self {
            writer: Writer::new(file, head).map_err(failed)?,
            carried,
            started,
            checked: Instant::now(),
            least: interval,
            interval,
            dirty: false,
        })
    }

    /// The next entry.
    pub(super) fn entry(&mut self, entry: &Entry, is_new: bool) -> Result<(), Failure> {
        self.dirty |= is_new;
        self.writer.entry(entry).map_err(failed)
    }

    pub(super) fn counts(&self) -> Counts {
        self.writer.counts()
    }

    /// Stores the manifest so far, if that is due.
    pub(super) async fn checkpoint(&mut self, shared: &Shared) -> Result<(), Failure> {
        let lines = shared.journal.as_ref().map_or(0, |journal| journal.lines());
        let due = self.checked.elapsed() >= self.interval || lines >= MAX_LINES;
        if !self.dirty || !due {
            return Ok(());
        }
        let begun = Instant::now();
        let (last, counts) = (self.writer.last().cloned(), self.writer.counts());
        let file = self.writer.pause().map_err(failed)?;
        let so_far = Arc::new(file.try_clone().map_err(|error| spool(&error))?);
        let length = length(&so_far)?;
        let carried = match &self.carried {
            Some(file) => Some(Positioned::new(file).map_err(|error| spool(&error))?),
            None => None,
        };
        let rest = tokio::task::spawn_blocking(move || rest(carried, last, counts))
            .await
            .map_err(|_| spool(&io::Error::other("the thread failed")))?
            .map_err(failed)?;
        let rest = Arc::new(rest);
        let rest_length = self::length(&rest)?;
        let body = || {
            body(vec![
                (Arc::clone(&so_far), length),
                (Arc::clone(&rest), rest_length),
            ])
        };
        // Never retained: it is overwritten again and again.
        let options = PutOptions {
            retain_until: None,
            retention_mode: None,
            ..options(shared, MANIFEST_TYPE)
        };
        shared.put(PARTIAL, &options, body).await?;
        if let Some(journal) = &shared.journal {
            journal.checkpointed();
        }
        self.dirty = false;
        self.checked = Instant::now();
        self.interval = self.least.max(begun.elapsed() * SHARE);
        Ok(())
    }

    /// Stores the manifest, then `latest`; gives the manifest's file.
    pub(super) async fn finish(self, shared: &Shared) -> Result<File, Failure> {
        let file = Arc::new(self.writer.finish(true).map_err(failed)?);
        let length = length(&file)?;
        let receipt = shared
            .put(
                &manifest_key(&shared.run),
                &options(shared, MANIFEST_TYPE),
                || body(vec![(Arc::clone(&file), length)]),
            )
            .await?;
        let latest = Latest::new(
            shared.run.clone(),
            self.started,
            receipt.message_id,
            receipt.version_id,
        );
        let latest = Bytes::from(latest.encode());
        shared
            .put(LATEST, &options(shared, LATEST_TYPE), || {
                Upload::from_bytes(latest.clone())
            })
            .await?;
        if let Some(journal) = &shared.journal {
            journal.end();
        }
        file.try_clone().map_err(|error| spool(&error))
    }
}

/// The entries after `last` of a run that broke off, and the end line.
fn rest(carried: Option<Positioned>, last: Option<RelPath>, counts: Counts) -> Result<File, Error> {
    let mut writer = Writer::resume(tempfile::tempfile()?, last.clone(), counts)?;
    if let Some(carried) = carried {
        let mut reader = Reader::open(carried)?;
        while let Some(entry) = reader.next()? {
            if last.as_ref().is_none_or(|last| entry.path > *last) {
                writer.entry(&entry)?;
            }
        }
    }
    writer.finish(false)
}

fn options(shared: &Shared, content_type: &str) -> PutOptions {
    PutOptions {
        content_type: Some(content_type.to_owned()),
        ..shared.plan.own.clone()
    }
}

fn length(file: &File) -> Result<u64, Failure> {
    let meta = file.metadata().map_err(|error| spool(&error))?;
    Ok(meta.len())
}

/// The beginnings of files, one after the other.
fn body(files: Vec<(Arc<File>, u64)>) -> Upload {
    let whole = files.iter().map(|(_, length)| length).sum();
    let (sender, chunks) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        for (file, length) in files {
            let mut at = 0;
            while at < length {
                let want = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
                let mut buffer = vec![0; want];
                let read = file.read_exact_at(&mut buffer, at);
                at += want as u64;
                let failed = read.is_err();
                if sender.blocking_send(read.map(|()| buffer.into())).is_err() || failed {
                    return;
                }
            }
        }
    });
    Upload::from_channel(chunks, Some(whole))
}

fn failed(error: Error) -> Failure {
    match error {
        Error::Io(error) => spool(&error),
        error => spool(&io::Error::other(error)),
    }
}
