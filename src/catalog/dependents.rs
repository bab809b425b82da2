//! What depends on a wrapping key: objects, and what is to become one.
//!
//! Whoever holds a wrapped data key outside S3 for longer than a request (a
//! queue, an upload that may be resumed) has a row of `dependents` for each
//! key that wrapped it, from before the data key is used until the object's
//! receipt is recorded: no key is retired while it has one.

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::Custody;
use super::reader::{names, unsigned};

/// Rows that are there: current objects, and earlier versions that were not
/// deleted.
const LIVE: &str = "m.removed IS NULL
     AND ((p.current = m.id AND p.deleted IS NULL) OR m.version_id IS NOT NULL)";

/// Something that is no object yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependent {
    /// `queue` or `upload`.
    pub kind: String,
    /// Its ticket, or its upload id.
    pub id: String,
    /// The key that it depends on.
    pub wrapping_key: String,
    /// Where it is to be stored.
    pub place: String,
    /// Unix milliseconds.
    pub since: u64,
}

/// An object, or a version of it, that this host stored and that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number in the catalogue.
    pub id: u64,
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// Its version, in a versioned bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Hexadecimal.
    pub message_id: String,
    /// The key that wrapped its data key.
    pub wrapping_key: String,
    /// Who else holds its data key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
    /// Unix milliseconds.
    pub created: u64,
    /// Ciphertext bytes.
    pub stored_size: u64,
}

pub(super) fn custody_of(conn: &Connection, key: &str) -> rusqlite::Result<Custody> {
    conn.query_row(
        &format!(
            "SELECT count(*), coalesce(sum(m.stored_size), 0)
             FROM message m JOIN place p ON p.id = m.place
             WHERE (m.wrapping_key = ?1
                    OR instr(',' || m.recipients || ',', ',' || ?1 || ',') > 0) AND {LIVE}"
        ),
        [key],
        |row| {
            Ok(Custody {
                key: key.to_owned(),
                objects: unsigned(row, 0)?,
                stored_bytes: unsigned(row, 1)?,
            })
        },
    )
}

pub(super) fn first_use(conn: &Connection, key: &str) -> rusqlite::Result<Option<u64>> {
    conn.query_row("SELECT created FROM canary WHERE key = ?1", [key], |row| {
        unsigned(row, 0)
    })
    .optional()
}

pub(super) fn dependents(conn: &Connection) -> rusqlite::Result<Vec<Dependent>> {
    conn.prepare(
        "SELECT kind, id, wrapping_key, place, since FROM dependents ORDER BY since, kind, id",
    )?
    .query_map([], |row| {
        Ok(Dependent {
            kind: row.get(0)?,
            id: row.get(1)?,
            wrapping_key: row.get(2)?,
            place: row.get(3)?,
            since: unsigned(row, 4)?,
        })
    })?
    .collect()
}

pub(super) fn entries(conn: &Connection, after: u64, limit: u32) -> rusqlite::Result<Vec<Entry>> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    conn.prepare_cached(&format!(
        "SELECT m.id, p.bucket, p.key, m.version_id, m.message_id, m.wrapping_key,
                m.recipients, m.created, m.stored_size
         FROM message m JOIN place p ON p.id = m.place
         WHERE m.id > ?1 AND {LIVE} ORDER BY m.id LIMIT ?2"
    ))?
    .query_map(params![after, limit], |row| {
        let id: Vec<u8> = row.get(4)?;
        Ok(Entry {
            id: unsigned(row, 0)?,
            bucket: row.get(1)?,
            key: row.get(2)?,
            version_id: row.get(3)?,
            message_id: data_encoding::HEXLOWER.encode(&id),
            wrapping_key: row.get(5)?,
            recipients: names(&row.get::<_, String>(6)?),
            created: unsigned(row, 7)?,
            stored_size: unsigned(row, 8)?,
        })
    })?
    .collect()
}

pub(super) fn buckets(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    conn.prepare("SELECT DISTINCT bucket FROM place ORDER BY bucket")?
        .query_map([], |row| row.get(0))?
        .collect()
}
