//! Messages that were found in a bucket by a catalogue that lost its receipts:
//! known from a date on, and never taken for receipts of this host's.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::writer::{self, ApplyError, Effect};
use super::{Catalog, CatalogError};
use crate::api::Receipt;

/// A message that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What the store and the message say of it, in a receipt's terms.
    pub receipt: Receipt,
    /// Whether the store serves it as the current one.
    pub latest: bool,
}

impl Catalog {
    /// Remembers a message that was found; false if the place's message was
    /// known, or the place has a current one already. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn record_seen(&self, seen: Seen) -> Result<bool, CatalogError> {
        super::message_id(&seen.receipt.message_id)?;
        let effect = self.effect(writer::Change::Seen(seen)).await?;
        Ok(matches!(effect, Effect::Made))
    }

    /// Since when a message is known that this host found and did not store,
    /// Unix milliseconds; `None` for receipts of its own, and unknown ones.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn first_seen(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
    ) -> Result<Option<u64>, CatalogError> {
        let (bucket, key, id) = (bucket.to_owned(), key.to_owned(), super::message_id(id)?);
        self.readers
            .run(move |conn| first_seen(conn, &bucket, &key, &id))
            .await
    }
}

fn first_seen(
    conn: &Connection,
    bucket: &str,
    key: &str,
    id: &[u8],
) -> rusqlite::Result<Option<u64>> {
    let since: Option<Option<i64>> = conn
        .prepare_cached(
            "SELECT m.first_seen FROM place p JOIN message m ON m.place = p.id
             WHERE p.bucket = ?1 AND p.key = ?2 AND m.message_id = ?3",
        )?
        .query_row(params![bucket, key, id], |row| row.get(0))
        .optional()?;
    Ok(since.flatten().and_then(|ms| u64::try_from(ms).ok()))
}

pub(super) fn apply(
    tx: &Transaction<'_>,
    place: i64,
    seen: &Seen,
    now: i64,
) -> Result<bool, ApplyError> {
    let receipt = &seen.receipt;
    let id = super::message_id(&receipt.message_id).unwrap_or_default();
    let row: Option<i64> = tx
        .prepare_cached(
            "INSERT INTO message (place, message_id, created, recorded, version_id, etag,
                                  plaintext_size, stored_size, checksum, wrapping_key, recipients,
                                  first_seen)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?4)
             ON CONFLICT (place, message_id) DO NOTHING RETURNING id",
        )?
        .query_row(
            params![
                place,
                id,
                i64::try_from(receipt.created)?,
                now,
                receipt.version_id,
                receipt.etag,
                i64::try_from(receipt.plaintext_size)?,
                i64::try_from(receipt.stored_size)?,
                receipt.checksum,
                receipt.wrapping_key,
                receipt.recipients.join(",")
            ],
            |row| row.get(0),
        )
        .optional()?;
    let Some(row) = row else { return Ok(false) };
    if seen.latest {
        // What this host stored or deleted itself stands.
        tx.prepare_cached(
            "UPDATE place SET current = ?2 WHERE id = ?1 AND current IS NULL AND deleted IS NULL",
        )?
        .execute(params![place, row])?;
    }
    Ok(true)
}
