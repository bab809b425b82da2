//! The queue: objects that are sealed and acknowledged, in the spool and not
//! yet in S3. No data key is kept for them but the one in their header,
//! wrapped.

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};
use tokio::sync::oneshot;

use super::reader::{names, unsigned};
use super::writer::{self, ApplyError, Effect, Outcome, Reply};
use super::{Catalog, CatalogError, message_id};
use crate::api::Receipt;

/// The `kind` of a ticket's rows in `dependents`.
const KIND: &str = "queue";

/// A queued object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Its place in the order; 0 before it has one.
    pub seq: u64,
    /// Its name, and its file's.
    pub ticket: String,
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// Whose it is.
    pub uid: u32,
    /// The group that its client had.
    pub gid: u32,
    /// What S3 is to keep beside it, as JSON.
    pub attributes: String,
    /// The header's exact bytes.
    pub header: Vec<u8>,
    /// The message's id, hexadecimal.
    pub message_id: String,
    /// The key that wrapped its data key.
    pub wrapping_key: String,
    /// Who else holds its data key.
    pub recipients: Vec<String>,
    /// When the message was begun, Unix milliseconds.
    pub created: u64,
    /// Plaintext bytes.
    pub plaintext_size: u64,
    /// Bytes of its file.
    pub size: u64,
    /// CRC-64/NVME of its file.
    pub crc64: u64,
    /// SHA-256 of its file.
    pub sha256: Vec<u8>,
    /// Since when it waits, Unix milliseconds.
    pub since: u64,
    /// How often it was sent, or was about to be.
    pub attempts: u64,
    /// Why it is not tried any more: an error's type, and its words.
    pub parked: Option<(String, String)>,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Tickets, parked ones included.
    pub tickets: u64,
    /// Their files' bytes.
    pub bytes: u64,
    /// Parked ones among them.
    pub parked: u64,
    /// Since when the oldest waits, Unix milliseconds.
    pub oldest: Option<u64>,
}

/// A change to the queue.
pub(super) enum Change {
    /// One more, at the end.
    Add(Box<Queued>),
    /// It is about to be sent.
    Try { ticket: String },
    /// It is not tried any more.
    Park {
        ticket: String,
        kind: String,
        why: String,
    },
    /// It is tried again.
    Retry { ticket: String },
    /// It is given up.
    Drop { ticket: String },
}

pub(super) fn apply(tx: &Transaction<'_>, change: &Change, now: i64) -> Result<Effect, ApplyError> {
    let done = match change {
        Change::Add(queued) => {
            add(tx, queued, now)?;
            1
        }
        Change::Try { ticket } => tx
            .prepare_cached("UPDATE queue SET attempts = attempts + 1 WHERE ticket = ?1")?
            .execute([ticket])?,
        Change::Park { ticket, kind, why } => tx
            .prepare_cached("UPDATE queue SET parked = ?2, why = ?3 WHERE ticket = ?1")?
            .execute(params![ticket, kind, why])?,
        Change::Retry { ticket } => tx
            .prepare_cached("UPDATE queue SET parked = NULL, why = NULL WHERE ticket = ?1")?
            .execute([ticket])?,
        Change::Drop { ticket } => leave(tx, ticket)?,
    };
    Ok(if done == 0 {
        Effect::None
    } else {
        Effect::Made
    })
}

fn add(tx: &Transaction<'_>, queued: &Queued, now: i64) -> Result<(), ApplyError> {
    tx.prepare_cached(
        "INSERT INTO queue (ticket, bucket, key, uid, gid, attributes, header, message_id,
             wrapping_key, recipients, created, plaintext_size, size, crc64, sha256, since)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )?
    .execute(params![
        queued.ticket,
        queued.bucket,
        queued.key,
        queued.uid,
        queued.gid,
        queued.attributes,
        queued.header,
        queued.message_id,
        queued.wrapping_key,
        queued.recipients.join(","),
        i64::try_from(queued.created)?,
        i64::try_from(queued.plaintext_size)?,
        i64::try_from(queued.size)?,
        // All 64 bits, in SQLite's sign.
        i64::from_ne_bytes(queued.crc64.to_ne_bytes()),
        queued.sha256,
        now,
    ])?;
    let place = format!("s3://{}/{}", queued.bucket, queued.key);
    for key in std::iter::once(&queued.wrapping_key).chain(&queued.recipients) {
        tx.prepare_cached(
            "INSERT OR IGNORE INTO dependents (kind, id, wrapping_key, place, since)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![KIND, queued.ticket, key, place, now])?;
    }
    Ok(())
}

/// A ticket that is over; how many there were.
pub(super) fn leave(tx: &Transaction<'_>, ticket: &str) -> rusqlite::Result<usize> {
    tx.prepare_cached("DELETE FROM dependents WHERE kind = ?1 AND id = ?2")?
        .execute([KIND, ticket])?;
    tx.prepare_cached("DELETE FROM queue WHERE ticket = ?1")?
        .execute([ticket])
}

const COLUMNS: &str = "seq, ticket, bucket, key, uid, gid, attributes, header, message_id,
     wrapping_key, recipients, created, plaintext_size, size, crc64, sha256, since, attempts,
     parked, why";

fn queued(row: &Row<'_>) -> rusqlite::Result<Queued> {
    let parked: Option<String> = row.get(18)?;
    let why: Option<String> = row.get(19)?;
    Ok(Queued {
        seq: unsigned(row, 0)?,
        ticket: row.get(1)?,
        bucket: row.get(2)?,
        key: row.get(3)?,
        uid: row.get(4)?,
        gid: row.get(5)?,
        attributes: row.get(6)?,
        header: row.get(7)?,
        message_id: row.get(8)?,
        wrapping_key: row.get(9)?,
        recipients: names(&row.get::<_, String>(10)?),
        created: unsigned(row, 11)?,
        plaintext_size: unsigned(row, 12)?,
        size: unsigned(row, 13)?,
        crc64: u64::from_ne_bytes(row.get::<_, i64>(14)?.to_ne_bytes()),
        sha256: row.get(15)?,
        since: unsigned(row, 16)?,
        attempts: unsigned(row, 17)?,
        parked: parked.map(|kind| (kind, why.unwrap_or_default())),
    })
}

/// The first that may be sent: behind a parked one, the others of its place
/// wait with it.
fn next(conn: &Connection) -> rusqlite::Result<Option<Queued>> {
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM queue q WHERE parked IS NULL AND NOT EXISTS
             (SELECT 1 FROM queue p WHERE p.bucket = q.bucket AND p.key = q.key
                  AND p.seq < q.seq AND p.parked IS NOT NULL)
         ORDER BY seq LIMIT 1"
    ))?
    .query_row([], queued)
    .optional()
}

fn one(conn: &Connection, ticket: &str) -> rusqlite::Result<Option<Queued>> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM queue WHERE ticket = ?1"))?
        .query_row([ticket], queued)
        .optional()
}

fn page(
    conn: &Connection,
    uid: Option<u32>,
    after: u64,
    limit: u32,
) -> rusqlite::Result<Vec<Queued>> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM queue
         WHERE (?1 IS NULL OR uid = ?1) AND seq > ?2 ORDER BY seq LIMIT ?3"
    ))?
    .query_map(params![uid, after, limit], queued)?
    .collect()
}

fn backlog(conn: &Connection) -> rusqlite::Result<Backlog> {
    conn.query_row(
        "SELECT count(*), coalesce(sum(size), 0), count(parked), min(since) FROM queue",
        [],
        |row| {
            let oldest: Option<i64> = row.get(3)?;
            Ok(Backlog {
                tickets: unsigned(row, 0)?,
                bytes: unsigned(row, 1)?,
                parked: unsigned(row, 2)?,
                oldest: oldest.and_then(|at| u64::try_from(at).ok()),
            })
        },
    )
}

impl Catalog {
    /// Puts an object at the queue's end, with the keys that it depends on.
    /// Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn enqueue(&self, queued: Queued) -> Result<(), CatalogError> {
        self.queue_change(Change::Add(Box::new(queued))).await?;
        Ok(())
    }

    /// Takes down that a ticket is about to be sent; false if it is gone.
    /// Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn try_queued(&self, ticket: &str) -> Result<bool, CatalogError> {
        let ticket = ticket.to_owned();
        self.queue_change(Change::Try { ticket }).await
    }

    /// Sets a ticket aside, with an error's type and words. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn park(&self, ticket: &str, kind: &str, why: &str) -> Result<(), CatalogError> {
        let change = Change::Park {
            ticket: ticket.to_owned(),
            kind: kind.to_owned(),
            why: why.to_owned(),
        };
        self.queue_change(change).await.map(drop)
    }

    /// Lets a ticket be tried again; false if it is gone.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn retry_queued(&self, ticket: &str) -> Result<bool, CatalogError> {
        let ticket = ticket.to_owned();
        self.queue_change(Change::Retry { ticket }).await
    }

    /// Takes a ticket out of the queue; false if it is gone.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn drop_queued(&self, ticket: &str) -> Result<bool, CatalogError> {
        let ticket = ticket.to_owned();
        self.queue_change(Change::Drop { ticket }).await
    }

    /// [`Self::record_message`] of a queued object, which leaves the queue, and
    /// its upload the journal, in the same transaction.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn record_queued(
        &self,
        receipt: &Receipt,
        queued: &Queued,
        upload: Option<i64>,
    ) -> Result<(), CatalogError> {
        let id = message_id(&receipt.message_id)?;
        let over = writer::Over {
            upload,
            ticket: Some(queued.ticket.clone()),
        };
        let change = writer::Change::Put(receipt.clone(), id, queued.header.clone(), over);
        self.change(change).await
    }

    /// The ticket that is to be sent next.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn next_queued(&self) -> Result<Option<Queued>, CatalogError> {
        self.readers.run(next).await
    }

    /// One ticket.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn queued(&self, ticket: &str) -> Result<Option<Queued>, CatalogError> {
        let ticket = ticket.to_owned();
        self.readers.run(move |conn| one(conn, &ticket)).await
    }

    /// The next tickets behind number `after`, in order; of one user, if one is
    /// named.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn queued_page(
        &self,
        uid: Option<u32>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Queued>, CatalogError> {
        self.readers
            .run(move |conn| page(conn, uid, after, limit))
            .await
    }

    /// What waits.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn backlog(&self) -> Result<Backlog, CatalogError> {
        self.readers.run(backlog).await
    }

    /// [`Self::backlog`], here and now: blocks for as long as a scan takes.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub fn backlog_now(&self) -> Result<Backlog, CatalogError> {
        self.readers.run_blocking(backlog)
    }

    async fn queue_change(&self, change: Change) -> Result<bool, CatalogError> {
        let (sender, answer) = oneshot::channel::<Outcome>();
        self.send(writer::Change::Queue(change), Reply::Async(sender))?;
        let effect = answer.await.unwrap_or(Err(CatalogError::Closed))?;
        Ok(matches!(effect, Effect::Made))
    }
}
