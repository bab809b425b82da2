//! What all jobs of a run share, and the job that stores one file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::content::{Opened, Pace, ReadError, Sha256};
use super::entries::{self, Names};
use super::lock::Journal;
use super::options::Plan;
use super::walk::{Found, REST};
use crate::api::{Error, ErrorKind, Receipt};
use crate::cli::failure::{FAILED, Failure};
use crate::client::{Client, PutOptions, Upload};
use crate::manifest::{Entry, Kind, RelPath, RunId, StoredAt, object_key};

/// How often a file that changes is read, or a busy agent asked. Ours.
const ATTEMPTS: u32 = 4;
/// The wait before the second attempt; each further one waits as much longer.
const WAIT: Duration = Duration::from_millis(250);

/// Files from this many bytes on go on where an interrupted run was: below,
/// the client sends them whole anyway (docs/uploads.md).
const LARGE: u64 = 16 << 20;

/// What every job needs.
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) plan: Plan,
    pub(super) run: RunId,
    pub(super) names: Names,
    pub(super) pace: Option<Arc<Pace>>,
    pub(super) permits: Semaphore,
    pub(super) journal: Option<Journal>,
}

/// What became of one thing that was found.
pub(super) enum Outcome {
    /// Nothing had to be sent.
    Kept(Box<Entry>),
    /// Its content was sent, so many bytes.
    Stored(Box<Entry>),
    /// It is not stored as it is now: left to the next run, which is no failure.
    Later(RelPath, &'static str),
    /// It is not stored as it is now, and that is a failure.
    Problem(RelPath, Failure),
    /// It is not there any more.
    Gone(RelPath),
    /// What failed would fail for the others too.
    Stop(Failure),
}

impl Shared {
    /// The mark of a file that is to be deleted here once it is stored. Of
    /// several names of one file none is: others may refer to its entry.
    pub(super) fn deleted_by_us(&self, found: &Found) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        let deletes = self.plan.delete_after && found.meta.is_file() && found.meta.nlink() == 1;
        deletes.then(|| self.run.to_string())
    }

    /// An entry that holds still.
    pub(super) fn keep(&self, found: &Found, entry: &Entry) -> Outcome {
        let mut entry = entry.clone();
        entry.deleted = self.deleted_by_us(found);
        Outcome::Kept(Box::new(entry))
    }

    /// Puts one of the archive's objects, again if the agent is busy.
    pub(super) async fn put(
        &self,
        key: &str,
        options: &PutOptions,
        mut body: impl FnMut() -> Upload,
    ) -> Result<Receipt, Failure> {
        let place = self.plan.place_of(key);
        let mut attempt = 0;
        loop {
            let answer = self
                .client
                .put(&place.bucket, &place.key, options, body())
                .await;
            match answer {
                Ok(receipt) => {
                    self.confirm(&receipt, options).await?;
                    return Ok(receipt);
                }
                Err(error) if is_passing(error.kind) && attempt + 1 < ATTEMPTS => {
                    attempt += 1;
                    wait(attempt, &error).await;
                }
                Err(error) => {
                    return Err(Failure::api(format_args!("cannot store {place}"), &error));
                }
            }
        }
    }

    /// Reads back the retention that was asked for.
    async fn confirm(&self, receipt: &Receipt, options: &PutOptions) -> Result<(), Failure> {
        let Some(wanted) = options.retain_until.as_deref() else {
            return Ok(());
        };
        let place = self.plan.place_of("");
        let version = receipt.version_id.as_deref();
        let cannot = format!(
            "cannot confirm the retention of s3://{}/{}",
            place.bucket,
            crate::cli::ui::shown(&receipt.key)
        );
        let seen = self
            .client
            .inspect(&receipt.bucket, &receipt.key, version)
            .await
            .map_err(|error| Failure::api(&cannot, &error))?;
        let instant = |text: &str| text.parse::<jiff::Timestamp>().ok();
        let until = seen.retain_until.as_deref().and_then(instant);
        let held = until.is_some() && until >= instant(wanted);
        if held && seen.retention_mode == options.retention_mode {
            return Ok(());
        }
        Err(Failure::new(
            FAILED,
            format!(
                "{cannot}: the store reports {} until {}",
                seen.retention_mode.as_deref().unwrap_or("no retention"),
                seen.retain_until.as_deref().unwrap_or("no date")
            ),
        )
        .hint("is Object Lock enabled for the bucket? nothing is archived without the retention that was asked for"))
    }
}

/// Stores a file, unless its content proves to be what `before` has.
pub(super) async fn file(shared: Arc<Shared>, found: Found, before: Option<Entry>) -> Outcome {
    let Ok(_permit) = shared.permits.acquire().await else {
        return Outcome::Gone(found.path);
    };
    let key = object_key(&shared.plan.prefix, &found.path);
    let mut before = before;
    let mut attempt = 0;
    loop {
        let opened = {
            let (shared, found) = (Arc::clone(&shared), found.clone());
            blocking(move || Opened::open(&found, &shared.names)).await
        };
        let mut opened = match opened {
            Ok(opened) => opened,
            Err(error) => return unreadable(&found, error),
        };
        if let Some(before) = before.take() {
            match same_content(&shared, opened, &before).await {
                (_, Ok(Some(mut entry))) => {
                    entry.deleted = shared.deleted_by_us(&found);
                    return Outcome::Kept(Box::new(entry));
                }
                (Some(back), Ok(None)) => opened = back,
                (_, Err(ReadError::Changed)) => continue,
                (_, Err(error)) => return unreadable(&found, error),
                (None, Ok(None)) => return Outcome::Gone(found.path),
            }
        }
        attempt += 1;
        let sent = if opened.size() < LARGE {
            send(&shared, &found, &key, opened).await
        } else {
            send_large(&shared, &found, &key, opened).await
        };
        match sent {
            Sent::Done(outcome) => return outcome,
            Sent::Changed if attempt >= ATTEMPTS => return changed(&found),
            Sent::Changed => tokio::time::sleep(WAIT * attempt).await,
            Sent::Passing(error) if attempt >= ATTEMPTS => return failed(&found, &error),
            Sent::Passing(error) => wait(attempt, &error).await,
        }
    }
}

enum Sent {
    Done(Outcome),
    Changed,
    Passing(Error),
}

async fn send(shared: &Arc<Shared>, found: &Found, key: &str, opened: Opened) -> Sent {
    let place = shared.plan.place_of(key);
    let (upload, verdict) = opened.stream(shared.pace.clone());
    let answer = shared
        .client
        .put(&place.bucket, &place.key, &shared.plan.put, upload)
        .await;
    let verdict = match &answer {
        Ok(_) => verdict.await.ok(),
        // The reader ends on its own; only what it has said counts.
        Err(error) if crate::cli::put::is_consequence(error.kind) => verdict.await.ok(),
        Err(_) => None,
    };
    let (opened, read) = match verdict {
        Some((opened, read)) => (Some(opened), Some(read)),
        None => (None, None),
    };
    match (answer, opened, read) {
        (Ok(receipt), Some(opened), Some(Ok(sha256)))
            if receipt.plaintext_size == opened.size() =>
        {
            Sent::Done(stored(shared, found, key, &receipt, opened.into_entry(sha256)).await)
        }
        (_, _, Some(Err(ReadError::Changed))) => Sent::Changed,
        (_, _, Some(Err(ReadError::Io(error)))) => {
            Sent::Done(unreadable(found, ReadError::Io(error)))
        }
        (Err(error), ..) if is_passing(error.kind) => Sent::Passing(error),
        (Err(error), ..) => Sent::Done(failed(found, &error)),
        (Ok(_), ..) => Sent::Changed,
    }
}

/// Sends a large file by an upload that an interrupted run may have begun,
/// and hashes it at the same time: both read the same file, or neither counts.
async fn send_large(shared: &Arc<Shared>, found: &Found, key: &str, opened: Opened) -> Sent {
    let source = match opened.resumable(shared.pace.clone()) {
        Ok(source) => source,
        Err(error) => return Sent::Done(unreadable(found, error.into())),
    };
    let failed_meanwhile = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&failed_meanwhile);
    let hash = blocking(move || {
        let read = opened.read(None, |_| !stop.load(Ordering::Relaxed));
        (opened, read)
    });
    let place = shared.plan.place_of(key);
    let put = async {
        let answer = shared
            .client
            .resumable_put(&place.bucket, &place.key, &shared.plan.put, &source)
            .await;
        failed_meanwhile.store(answer.is_err(), Ordering::Relaxed);
        answer
    };
    let (answer, (opened, read)) = tokio::join!(put, hash);
    match (answer, read) {
        (Ok(receipt), Ok(sha256)) if receipt.plaintext_size == opened.size() => {
            Sent::Done(stored(shared, found, key, &receipt, opened.into_entry(sha256)).await)
        }
        (_, Err(ReadError::Io(error))) => Sent::Done(unreadable(found, ReadError::Io(error))),
        (Err(error), _) if is_passing(error.kind) => Sent::Passing(error),
        (Err(error), _) if error.kind != ErrorKind::Incomplete || opened.is_unchanged() => {
            Sent::Done(failed(found, &error))
        }
        _ => Sent::Changed,
    }
}

/// A file was acknowledged.
async fn stored(
    shared: &Shared,
    found: &Found,
    key: &str,
    receipt: &Receipt,
    mut entry: Entry,
) -> Outcome {
    if let Err(failure) = shared.confirm(receipt, &shared.plan.put).await {
        return Outcome::Stop(failure);
    }
    entry.deleted = shared.deleted_by_us(found);
    place_at(&mut entry, key, receipt, None);
    if let Some(journal) = &shared.journal {
        journal.stored(&entry);
    }
    Outcome::Stored(Box::new(entry))
}

/// Where a file's content is from now on.
pub(super) fn place_at(entry: &mut Entry, key: &str, receipt: &Receipt, offset: Option<u64>) {
    if let Kind::File(content) = &mut entry.kind {
        content.at = StoredAt {
            key: key.to_owned(),
            message_id: receipt.message_id.clone(),
            version_id: receipt.version_id.clone(),
            offset,
        };
    }
}

/// The new entry of a file whose content is what `before` says; else the
/// file, to be read again.
async fn same_content(
    shared: &Arc<Shared>,
    opened: Opened,
    before: &Entry,
) -> (Option<Opened>, Result<Option<Entry>, ReadError>) {
    let Kind::File(content) = before.kind.clone() else {
        return (Some(opened), Ok(None));
    };
    if content.size != opened.size() {
        return (Some(opened), Ok(None));
    }
    let pace = shared.pace.clone();
    blocking(move || match opened.read(pace.as_deref(), |_| true) {
        Ok(sha256) if sha256 == content.sha256 => {
            (None, Ok(Some(with_content(opened, sha256, &content.at))))
        }
        Ok(_) => (Some(opened), Ok(None)),
        Err(error) => (Some(opened), Err(error)),
    })
    .await
}

/// A file's entry as it is now, with its content where it was.
pub(super) fn with_content(opened: Opened, sha256: Sha256, at: &StoredAt) -> Entry {
    let mut entry = opened.into_entry(sha256);
    if let Kind::File(content) = &mut entry.kind {
        content.at = at.clone();
    }
    entry
}

/// The entry of what is no regular file.
pub(super) async fn describe(shared: Arc<Shared>, found: Found) -> Outcome {
    let Ok(_permit) = shared.permits.acquire().await else {
        return Outcome::Gone(found.path.clone());
    };
    let names = Arc::clone(&shared);
    blocking(move || match entries::describe(&found, &names.names) {
        Ok(entry) => Outcome::Kept(Box::new(entry)),
        Err(error) => unreadable(&found, error.into()),
    })
    .await
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Whether the same request may succeed in a moment.
fn is_passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Busy | ErrorKind::TooSlow | ErrorKind::Conflict
    )
}

async fn wait(attempt: u32, error: &Error) {
    let wait = error.retry_after.unwrap_or(WAIT * attempt);
    tokio::time::sleep(wait.min(Duration::from_secs(10))).await;
}

/// What an error of the agent means for the run: some meet every file.
pub(super) fn failed(found: &Found, error: &Error) -> Outcome {
    let failure = Failure::api(format_args!("cannot archive {}", found.shown()), error);
    let meets_all = matches!(error.kind.exit_code(), 75 | 77 | 78)
        || matches!(
            error.kind,
            ErrorKind::NoSuchBucket | ErrorKind::StoreDenied | ErrorKind::NotFound
        );
    if meets_all {
        Outcome::Stop(failure)
    } else {
        Outcome::Problem(found.path.clone(), failure)
    }
}

pub(super) fn changed(found: &Found) -> Outcome {
    let failure = Failure::new(
        FAILED,
        format!("cannot archive {}: it changed while it was read", found.shown()),
    )
    .hint("the next run tries again; --min-age leaves files alone that are still written to, --exclude those that always are");
    Outcome::Problem(found.path.clone(), failure)
}

pub(super) fn unreadable(found: &Found, error: ReadError) -> Outcome {
    match error {
        ReadError::Gone => Outcome::Gone(found.path.clone()),
        ReadError::Changed => changed(found),
        ReadError::Io(error) => {
            let what = format!("cannot archive {}", found.shown());
            let failure = Failure::new(
                FAILED,
                format!("{what}: {}", crate::cli::failure::why(&error)),
            )
            .hint(REST);
            Outcome::Problem(found.path.clone(), failure)
        }
    }
}
