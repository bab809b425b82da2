//! The one writer: a thread that commits whatever is queued together.
//!
//! A commit costs an fsync; under load it is shared by everyone who waits
//! (group commit), so the rate of puts is not bounded by the disk's rate of
//! flushes. The thread outlives every error: a failed commit is reported to
//! those who wait, and the next batch starts afresh.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::head::{self, Chain};
use super::{CanaryRow, CatalogError, Head, WrapsRow, queue, rewrap, schema, seen, uploads, wraps};
use crate::api::Receipt;
use crate::gather::Gather;

/// Most changes in one transaction. Bounds how long the first of them waits
/// for the last; far more than `max_requests` defaults to.
const MAX_BATCH: usize = 1024;

/// One change to the catalogue.
pub(super) enum Change {
    /// A message was stored and acknowledged: with its header, and what is
    /// over with it.
    Put(Receipt, MessageId, Vec<u8>, Over),
    /// A place, or one version of it, was deleted.
    Delete {
        bucket: String,
        key: String,
        version_id: Option<String>,
    },
    /// A message that this host did not write was served.
    Foreign {
        bucket: String,
        key: String,
        message_id: MessageId,
        created: u64,
        version_id: Option<String>,
    },
    /// The first use of a wrapping key.
    Canary(String, CanaryRow),
    /// Further wraps under a wrapping key.
    Wraps { key: String, count: u64 },
    /// Keyslots are being written.
    Rewrap(rewrap::Change),
    /// About the head of all changes.
    Head(head::Change),
    /// A message was found in a bucket.
    Seen(seen::Seen),
    /// The upload journal.
    Upload(uploads::Change),
    /// The queue.
    Queue(queue::Change),
}

/// What a stored message was until then.
#[derive(Default)]
pub(super) struct Over {
    /// The journal's row of an upload.
    pub(super) upload: Option<i64>,
    /// A ticket of the queue.
    pub(super) ticket: Option<String>,
}

/// A message id as stored: its bytes.
pub(super) type MessageId = Vec<u8>;

/// What a change did.
pub(super) enum Effect {
    /// It was made.
    Made,
    /// There was a canary already.
    None,
    /// The count of a key's wraps after it.
    Wraps(WrapsRow),
    /// The head after it.
    Head(Head),
    /// The row, or the number, that it made.
    Row(i64),
}

/// How a change ended.
pub(super) type Outcome = Result<Effect, CatalogError>;

/// Whom to tell once the change is durable.
pub(super) enum Reply {
    Async(oneshot::Sender<Outcome>),
    Blocking(SyncSender<Outcome>),
}

impl Reply {
    fn send(self, outcome: Outcome) {
        // A caller that went away needs no answer; the change stays.
        match self {
            Self::Async(sender) => drop(sender.send(outcome)),
            Self::Blocking(sender) => drop(sender.send(outcome)),
        }
    }
}

/// A change and whoever waits for it.
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) reply: Reply,
}

/// The writer thread's state.
pub(super) struct Writer {
    path: PathBuf,
    /// Absent after an I/O error, until it could be opened again.
    conn: Option<Connection>,
    commits: Arc<AtomicU64>,
}

impl Writer {
    pub(super) fn new(path: &Path, conn: Connection, commits: Arc<AtomicU64>) -> Self {
        Self {
            path: path.to_owned(),
            conn: Some(conn),
            commits,
        }
    }

    /// Runs until every sender is gone.
    pub(super) fn run(mut self, queue: &Receiver<Job>) {
        let mut gather = Gather::default();
        while let Ok(first) = queue.recv() {
            self.commit(gather.batch(first, queue, MAX_BATCH));
        }
    }

    fn commit(&mut self, batch: Vec<Job>) {
        match self.attempt(&batch) {
            Ok(effects) => {
                for (job, effect) in batch.into_iter().zip(effects) {
                    job.reply.send(Ok(effect));
                }
            }
            // One bad record must not fail its neighbours; a disk that is
            // full or broken fails them all alike.
            Err(CatalogError::Invalid(_)) if batch.len() > 1 => {
                for job in batch {
                    self.commit(vec![job]);
                }
            }
            Err(error) => {
                if !matches!(error, CatalogError::Invalid(_)) {
                    // What the connection holds of the file may be stale.
                    self.conn = None;
                }
                for job in batch {
                    job.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Applies all changes in one transaction; all or none.
    fn attempt(&mut self, batch: &[Job]) -> Result<Vec<Effect>, CatalogError> {
        let conn = match &mut self.conn {
            Some(conn) => conn,
            none => none.insert(schema::open_writer(&self.path)?),
        };
        let path = &self.path;
        let fail = |error| CatalogError::sqlite(path, error);
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fail)?;
        let refused = |error| match error {
            ApplyError::Sqlite(error) => fail(error),
            ApplyError::TooLarge => CatalogError::Invalid("a number beyond 2^63"),
        };
        let mut effects = Vec::with_capacity(batch.len());
        let mut chain = Chain::load(&tx).map_err(fail)?;
        for job in batch {
            effects.push(apply(&tx, &job.change, &mut chain).map_err(refused)?);
        }
        chain.save(&tx).map_err(refused)?;
        tx.commit().map_err(fail)?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(effects)
    }
}

pub(super) enum ApplyError {
    Sqlite(rusqlite::Error),
    TooLarge,
}

impl From<rusqlite::Error> for ApplyError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<std::num::TryFromIntError> for ApplyError {
    fn from(_: std::num::TryFromIntError) -> Self {
        Self::TooLarge
    }
}

fn apply(tx: &Transaction<'_>, change: &Change, chain: &mut Chain) -> Result<Effect, ApplyError> {
    let now = now_ms();
    chain.take(change);
    match change {
        Change::Put(receipt, message_id, header, over) => {
            put(tx, receipt, message_id, header, now)?;
            if let Some(row) = over.upload {
                uploads::forget(tx, row)?;
            }
            if let Some(ticket) = &over.ticket {
                queue::leave(tx, ticket)?;
            }
        }
        Change::Delete {
            bucket,
            key,
            version_id,
        } => delete(tx, place(tx, bucket, key)?, version_id.as_deref(), now)?,
        Change::Foreign {
            bucket,
            key,
            message_id,
            created,
            version_id,
        } => {
            tx.prepare_cached(
                "INSERT INTO foreign_write
                     (place, message_id, created, version_id, first_seen, last_seen)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5)
                 ON CONFLICT (place, message_id) DO UPDATE SET last_seen = ?5",
            )?
            .execute(params![
                place(tx, bucket, key)?,
                message_id,
                i64::try_from(*created)?,
                version_id,
                now
            ])?;
        }
        Change::Canary(key, row) => {
            let inserted = tx
                .prepare_cached(
                    "INSERT INTO canary (key, iv, ciphertext, digest, created)
                     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (key) DO NOTHING",
                )?
                .execute(params![key, row.iv, row.ciphertext, row.digest, now])?;
            if inserted == 0 {
                return Ok(Effect::None);
            }
        }
        Change::Wraps { key, count } => {
            return Ok(Effect::Wraps(wraps::reserve(tx, key, *count)?));
        }
        Change::Rewrap(change) => rewrap::apply(tx, change, now)?,
        Change::Head(change) => return Ok(Effect::Head(head::apply(tx, change, chain)?)),
        Change::Seen(seen) => {
            let place = place(tx, &seen.receipt.bucket, &seen.receipt.key)?;
            if !seen::apply(tx, place, seen, now)? {
                return Ok(Effect::None);
            }
        }
        Change::Upload(change) => return uploads::apply(tx, change, now),
        Change::Queue(change) => return queue::apply(tx, change, now),
    }
    Ok(Effect::Made)
}

fn put(
    tx: &Transaction<'_>,
    receipt: &Receipt,
    message_id: &[u8],
    header: &[u8],
    now: i64,
) -> Result<(), ApplyError> {
    let place = place(tx, &receipt.bucket, &receipt.key)?;
    let message: i64 = tx
        .prepare_cached(
            "INSERT INTO message (place, message_id, created, recorded, version_id, etag,
                                  plaintext_size, stored_size, checksum, wrapping_key, recipients)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT (place, message_id)
             DO UPDATE SET recorded = ?4, removed = NULL, first_seen = NULL
             RETURNING id",
        )?
        .query_row(
            params![
                place,
                message_id,
                i64::try_from(receipt.created)?,
                now,
                receipt.version_id,
                receipt.etag,
                i64::try_from(receipt.plaintext_size)?,
                i64::try_from(receipt.stored_size)?,
                receipt.checksum,
                receipt.wrapping_key,
                // Names have no commas: the configuration allows none.
                receipt.recipients.join(",")
            ],
            |row| row.get(0),
        )?;
    if !header.is_empty() {
        tx.prepare_cached("INSERT OR IGNORE INTO header (message, bytes) VALUES (?1, ?2)")?
            .execute(params![message, header])?;
    }
    tx.prepare_cached("UPDATE place SET current = ?2, deleted = NULL WHERE id = ?1")?
        .execute(params![place, message])?;
    Ok(())
}

fn delete(
    tx: &Transaction<'_>,
    place: i64,
    version_id: Option<&str>,
    now: i64,
) -> rusqlite::Result<()> {
    if let Some(version) = version_id {
        tx.prepare_cached("UPDATE message SET removed = ?3 WHERE place = ?1 AND version_id = ?2")?
            .execute(params![place, version, now])?;
        // S3 then serves the version before it as the current one.
        let gone: Option<i64> = tx
            .prepare_cached(
                "SELECT m.id FROM place p JOIN message m ON m.id = p.current
                 WHERE p.id = ?1 AND m.removed IS NOT NULL",
            )?
            .query_row([place], |row| row.get(0))
            .optional()?;
        let Some(gone) = gone else { return Ok(()) };
        let before: Option<i64> = tx
            .prepare_cached(
                "SELECT max(id) FROM message WHERE place = ?1 AND removed IS NULL AND id < ?2",
            )?
            .query_row([place, gone], |row| row.get(0))?;
        if before.is_some() {
            tx.prepare_cached("UPDATE place SET current = ?2 WHERE id = ?1")?
                .execute(params![place, before])?;
            return Ok(());
        }
    }
    tx.prepare_cached("UPDATE place SET deleted = ?2 WHERE id = ?1")?
        .execute(params![place, now])?;
    Ok(())
}

/// The place's row, made when there is none yet.
fn place(tx: &Transaction<'_>, bucket: &str, key: &str) -> rusqlite::Result<i64> {
    let known = tx
        .prepare_cached("SELECT id FROM place WHERE bucket = ?1 AND key = ?2")?
        .query_row([bucket, key], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    tx.prepare_cached("INSERT INTO place (bucket, key) VALUES (?1, ?2)")?
        .execute([bucket, key])?;
    Ok(tx.last_insert_rowid())
}

fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
