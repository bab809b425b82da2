//! Reading: a few connections that see every committed record, and the
//! queries.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use tokio::sync::Semaphore;

use super::{CanaryRow, CatalogError, Counts, Custody, Known, Standing, schema};
use crate::api::Receipt;

/// Connections kept open, and queries running at once. They take
/// microseconds from the page cache; more would only wait for the cores.
const READERS: usize = 4;

/// Idle connections, opened as they are needed.
pub(super) struct Readers {
    path: PathBuf,
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            permits: Semaphore::new(READERS),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// The catalogue's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a query on a thread that may block.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let Ok(_permit) = self.permits.acquire().await else {
            return Err(CatalogError::Closed);
        };
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.run_blocking(query))
            .await
            .unwrap_or(Err(CatalogError::Closed))
    }

    /// Runs a query here and now.
    pub(super) fn run_blocking<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CatalogError> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let conn = match idle {
            Some(conn) => conn,
            None => schema::open_reader(&self.path)?,
        };
        // A connection that failed is closed, not reused.
        let result = query(&conn).map_err(|error| CatalogError::sqlite(&self.path, error))?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < READERS {
            idle.push(conn);
        }
        Ok(result)
    }
}

pub(super) fn lookup(
    conn: &Connection,
    bucket: &str,
    key: &str,
) -> rusqlite::Result<Option<Known>> {
    conn.prepare_cached(
        "SELECT p.deleted IS NOT NULL, m.version_id, m.etag, m.plaintext_size, m.stored_size,
                m.checksum, m.message_id, m.wrapping_key, m.created, m.recipients,
                m.first_seen IS NOT NULL
         FROM place p JOIN message m ON m.id = p.current
         WHERE p.bucket = ?1 AND p.key = ?2",
    )?
    .query_row([bucket, key], |row| {
        Ok(Known {
            deleted: row.get(0)?,
            found: row.get(10)?,
            receipt: receipt(row, bucket, key)?,
        })
    })
    .optional()
}

/// One message of a place that this host stored, by its id.
pub(super) fn message(
    conn: &Connection,
    bucket: &str,
    key: &str,
    id: &[u8],
) -> rusqlite::Result<Option<Receipt>> {
    conn.prepare_cached(
        "SELECT NULL, m.version_id, m.etag, m.plaintext_size, m.stored_size,
                m.checksum, m.message_id, m.wrapping_key, m.created, m.recipients
         FROM place p JOIN message m ON m.place = p.id
         WHERE p.bucket = ?1 AND p.key = ?2 AND m.message_id = ?3 AND m.first_seen IS NULL",
    )?
    .query_row(params![bucket, key, id], |row| receipt(row, bucket, key))
    .optional()
}

/// The newest first: without versions only that one can be there.
pub(super) fn header(
    conn: &Connection,
    (bucket, key): (&str, &str),
    version: Option<&str>,
    size: u64,
    etag: &str,
) -> rusqlite::Result<Option<Vec<u8>>> {
    let Ok(size) = i64::try_from(size) else {
        return Ok(None);
    };
    conn.prepare_cached(
        "SELECT h.bytes FROM place p JOIN message m ON m.place = p.id
                                     JOIN header h ON h.message = m.id
         WHERE p.bucket = ?1 AND p.key = ?2 AND m.stored_size = ?3
           AND trim(m.etag, '\"') = trim(?4, '\"')
           AND coalesce(nullif(m.version_id, 'null'), '') = ?5
         ORDER BY m.id DESC LIMIT 1",
    )?
    .query_row(
        params![bucket, key, size, etag, version.unwrap_or_default()],
        |row| row.get(0),
    )
    .optional()
}

/// Of columns 1 to 9.
pub(super) fn receipt(row: &Row<'_>, bucket: &str, key: &str) -> rusqlite::Result<Receipt> {
    let id: Vec<u8> = row.get(6)?;
    Ok(Receipt {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        version_id: row.get(1)?,
        etag: row.get(2)?,
        plaintext_size: unsigned(row, 3)?,
        stored_size: unsigned(row, 4)?,
        checksum: row.get(5)?,
        message_id: data_encoding::HEXLOWER.encode(&id),
        wrapping_key: row.get(7)?,
        created: unsigned(row, 8)?,
        recipients: names(&row.get::<_, String>(9)?),
        // Only its client was told.
        missing_recipients: Vec::new(),
    })
}

pub(super) fn classify(
    conn: &Connection,
    bucket: &str,
    key: &str,
    id: &[u8],
    created: u64,
) -> rusqlite::Result<Standing> {
    // One snapshot for both statements: a put in between must not make a
    // current message look superseded.
    let tx = conn.unchecked_transaction()?;
    let Some(known) = lookup(&tx, bucket, key)? else {
        return Ok(Standing::Unknown);
    };
    let current_created = known.receipt.created;
    if known.receipt.message_id == data_encoding::HEXLOWER.encode(id) {
        return Ok(if known.deleted {
            Standing::Superseded { current_created }
        } else {
            Standing::Current(known.receipt)
        });
    }
    let ours: bool = tx
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM place p JOIN message m ON m.place = p.id
             WHERE p.bucket = ?1 AND p.key = ?2 AND m.message_id = ?3)",
        )?
        .query_row(params![bucket, key, id], |row| row.get(0))?;
    Ok(if ours {
        Standing::Superseded { current_created }
    } else if created <= current_created {
        Standing::Older { current_created }
    } else {
        Standing::Newer
    })
}

pub(super) fn sizes(
    conn: &Connection,
    bucket: &str,
    entries: &[(String, u64, Option<String>)],
) -> rusqlite::Result<Vec<Option<u64>>> {
    entries
        .iter()
        .map(|(key, stored_size, etag)| {
            let known = lookup(conn, bucket, key)?;
            Ok(known.filter(|known| !known.deleted).and_then(|known| {
                let receipt = known.receipt;
                let same_tag = match (&receipt.etag, etag) {
                    (Some(ours), Some(theirs)) => {
                        ours.trim_matches('"') == theirs.trim_matches('"')
                    }
                    _ => true,
                };
                (receipt.stored_size == *stored_size && same_tag).then_some(receipt.plaintext_size)
            }))
        })
        .collect()
}

pub(super) fn counts(conn: &Connection) -> rusqlite::Result<Counts> {
    // Rows are never deleted, so the largest id is the count: no scan.
    conn.query_row(
        "SELECT (SELECT coalesce(max(id), 0) FROM message),
                (SELECT coalesce(max(id), 0) FROM foreign_write)",
        [],
        |row| {
            Ok(Counts {
                receipts: unsigned(row, 0)?,
                foreign_writes: unsigned(row, 1)?,
            })
        },
    )
}

pub(super) fn canary(conn: &Connection, key: &str) -> rusqlite::Result<Option<CanaryRow>> {
    conn.query_row(
        "SELECT iv, ciphertext, digest FROM canary WHERE key = ?1",
        [key],
        |row| {
            Ok(CanaryRow {
                iv: row.get(0)?,
                ciphertext: row.get(1)?,
                digest: row.get(2)?,
            })
        },
    )
    .optional()
}

/// What depends on each wrapping key: current objects, and earlier versions
/// that were not deleted.
pub(super) fn custody(conn: &Connection) -> rusqlite::Result<Vec<Custody>> {
    conn.prepare(
        "SELECT m.wrapping_key, count(*), coalesce(sum(m.stored_size), 0)
         FROM message m JOIN place p ON p.id = m.place
         WHERE m.removed IS NULL
           AND ((p.current = m.id AND p.deleted IS NULL) OR m.version_id IS NOT NULL)
         GROUP BY m.wrapping_key",
    )?
    .query_map([], |row| {
        Ok(Custody {
            key: row.get(0)?,
            objects: unsigned(row, 1)?,
            stored_bytes: unsigned(row, 2)?,
        })
    })?
    .collect()
}

/// When each key's canary was made, Unix milliseconds.
pub(super) fn first_uses(conn: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    conn.prepare("SELECT key, created FROM canary")?
        .query_map([], |row| Ok((row.get(0)?, unsigned(row, 1)?)))?
        .collect()
}

/// Names as they are stored.
pub(super) fn names(text: &str) -> Vec<String> {
    let names = text.split(',').filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

pub(super) fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(index)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(index, value))
}
