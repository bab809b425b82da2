//! How far runs of `rewrap` are, and the data keys that one has wrapped anew
//! and not yet stored: so that a run that is cut short goes on, and asks the
//! token for nothing twice.

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::writer::{self, ApplyError};
use super::{Catalog, CatalogError, reader};

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// All versions of keys up to and with this one are through.
    pub after: String,
    /// Items of the list that are through.
    pub position: u64,
    /// What they came to, as JSON.
    pub counts: String,
}

/// A data key wrapped anew that is in no pack yet. No secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The message's id.
    pub message_id: Vec<u8>,
    /// The IV it was wrapped with.
    pub iv: [u8; 12],
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
}

/// A change to these tables.
pub(super) enum Change {
    Save(String, Checkpoint),
    Clear(String),
    Wrapped(String, Unpacked),
    Packed(String, Vec<Vec<u8>>),
}

impl Catalog {
    /// How far the run of this name got; `None` if it is none's or ended.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn rewrap_checkpoint(&self, run: &str) -> Result<Option<Checkpoint>, CatalogError> {
        let run = run.to_owned();
        self.readers.run(move |conn| load(conn, &run)).await
    }

    /// Records how far a run is. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn save_rewrap(&self, run: &str, to: Checkpoint) -> Result<(), CatalogError> {
        self.rewrap_change(Change::Save(run.to_owned(), to)).await
    }

    /// Forgets a run that has ended. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn clear_rewrap(&self, run: &str) -> Result<(), CatalogError> {
        self.rewrap_change(Change::Clear(run.to_owned())).await
    }

    /// Keeps a data key that was wrapped for `target` until it is in a pack.
    /// Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn keep_unpacked(&self, target: &str, row: Unpacked) -> Result<(), CatalogError> {
        self.rewrap_change(Change::Wrapped(target.to_owned(), row))
            .await
    }

    /// What was kept for a message and `target`.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn unpacked(
        &self,
        target: &str,
        message_id: &[u8],
    ) -> Result<Option<Unpacked>, CatalogError> {
        let (target, message_id) = (target.to_owned(), message_id.to_owned());
        self.readers
            .run(move |conn| find(conn, &target, message_id))
            .await
    }

    /// Forgets what is in a pack by now.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn drop_unpacked(&self, target: &str, ids: Vec<Vec<u8>>) -> Result<(), CatalogError> {
        self.rewrap_change(Change::Packed(target.to_owned(), ids))
            .await
    }

    /// How many messages this host stored under a prefix and did not delete;
    /// `None` if there are none, or too many to be counted in passing.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn messages_under(
        &self,
        bucket: &str,
        prefix: &str,
    ) -> Result<Option<u64>, CatalogError> {
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        self.readers
            .run(move |conn| count(conn, &bucket, &prefix))
            .await
    }

    async fn rewrap_change(&self, change: Change) -> Result<(), CatalogError> {
        self.change(writer::Change::Rewrap(change)).await
    }
}

fn load(conn: &Connection, run: &str) -> rusqlite::Result<Option<Checkpoint>> {
    conn.prepare_cached("SELECT after, position, counts FROM rewrap WHERE run = ?1")?
        .query_row([run], |row| {
            Ok(Checkpoint {
                after: row.get(0)?,
                position: reader::unsigned(row, 1)?,
                counts: row.get(2)?,
            })
        })
        .optional()
}

fn find(conn: &Connection, target: &str, id: Vec<u8>) -> rusqlite::Result<Option<Unpacked>> {
    conn.prepare_cached(
        "SELECT iv, ciphertext FROM unpacked WHERE target = ?1 AND message_id = ?2",
    )?
    .query_row(params![target, id], |row| {
        Ok(Unpacked {
            iv: row.get(0)?,
            ciphertext: row.get(1)?,
            message_id: id.clone(),
        })
    })
    .optional()
}

/// Messages are counted one by one up to here: seconds.
const COUNTED: u64 = 5_000_000;

fn count(conn: &Connection, bucket: &str, prefix: &str) -> rusqlite::Result<Option<u64>> {
    // Keys are compared as bytes, like the store's; no character is greater
    // than the last one.
    let some: u64 = conn
        .prepare_cached(
            "SELECT count(*) FROM (
                 SELECT 1 FROM place p JOIN message m ON m.place = p.id
                 WHERE p.bucket = ?1 AND p.key >= ?2 AND p.key < ?2 || char(1114111)
                   AND m.removed IS NULL
                   AND ((p.current = m.id AND p.deleted IS NULL) OR m.version_id IS NOT NULL)
                 LIMIT ?3)",
        )?
        .query_row(
            params![bucket, prefix, i64::try_from(COUNTED).ok()],
            |row| reader::unsigned(row, 0),
        )?;
    Ok((0 < some && some < COUNTED).then_some(some))
}

pub(super) fn apply(tx: &Transaction<'_>, change: &Change, now: i64) -> Result<(), ApplyError> {
    match change {
        Change::Save(run, to) => {
            tx.prepare_cached(
                "INSERT INTO rewrap (run, after, position, counts, updated)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (run) DO UPDATE
                 SET after = ?2, position = ?3, counts = ?4, updated = ?5",
            )?
            .execute(params![
                run,
                to.after,
                i64::try_from(to.position)?,
                to.counts,
                now
            ])?;
        }
        Change::Clear(run) => {
            tx.prepare_cached("DELETE FROM rewrap WHERE run = ?1")?
                .execute([run])?;
        }
        Change::Wrapped(target, row) => {
            tx.prepare_cached(
                "INSERT INTO unpacked (target, message_id, iv, ciphertext)
                 VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET iv = ?3, ciphertext = ?4",
            )?
            .execute(params![target, row.message_id, row.iv, row.ciphertext])?;
        }
        Change::Packed(target, ids) => {
            let mut delete =
                tx.prepare_cached("DELETE FROM unpacked WHERE target = ?1 AND message_id = ?2")?;
            for id in ids {
                delete.execute(params![target, id])?;
            }
        }
    }
    Ok(())
}
