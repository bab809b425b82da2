//! The catalogue held against a bucket's listing: what is known of each listed
//! version, and which of those that should be there were not listed.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::reader::{receipt, unsigned};
use super::{Catalog, CatalogError};
use crate::api::Receipt;

/// A version as the store tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The object's key.
    pub key: String,
    /// Its version, where there are versions.
    pub version_id: Option<String>,
    /// Its bytes, as stored.
    pub size: u64,
    /// Its entity tag.
    pub etag: Option<String>,
}

/// A message of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number: they are given in order and without large gaps.
    pub id: u64,
    /// What was acknowledged.
    pub receipt: Receipt,
    /// When it was recorded, Unix ms on this host's clock.
    pub recorded: u64,
    /// Whether this host deleted this version.
    pub removed: bool,
    /// Since when it is known, Unix ms, if it was found and not stored here.
    pub first_seen: Option<u64>,
}

/// What is known of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceRecord {
    /// The message stored there last.
    pub current: Option<Record>,
    /// Whether this host deleted it afterwards.
    pub deleted: bool,
}

/// What is known of a listed version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Its place.
    pub place: Option<PlaceRecord>,
    /// The message of this version id (or, like it, of none).
    pub version: Option<Record>,
    /// The newest message of the place with its size and entity tag, where
    /// the version is not the current message as it was stored.
    pub twin: Option<Record>,
}

/// A message that should be in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number.
    pub id: u64,
    /// The object's key.
    pub key: String,
    /// Its version.
    pub version_id: Option<String>,
    /// Whether it is the place's current one.
    pub current: bool,
}

impl Record {
    /// Whether size and entity tag are those of the receipt.
    #[must_use]
    pub fn is_like(&self, size: u64, etag: Option<&str>) -> bool {
        let same_tag = match (self.receipt.etag.as_deref(), etag) {
            (Some(ours), Some(theirs)) => ours.trim_matches('"') == theirs.trim_matches('"'),
            _ => true,
        };
        self.receipt.stored_size == size && same_tag
    }

    /// Its version id, if its bucket had versions then.
    #[must_use]
    pub fn version_id(&self) -> Option<&str> {
        versioned(self.receipt.version_id.as_deref())
    }
}

/// A version id that is one: `null` is S3's word for none.
fn versioned(id: Option<&str>) -> Option<&str> {
    id.filter(|id| !id.is_empty() && *id != "null")
}

impl Catalog {
    /// What is known of each version of a page of a listing, in its order.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn compare(
        &self,
        bucket: &str,
        asked: Vec<Asked>,
    ) -> Result<Vec<Match>, CatalogError> {
        let bucket = bucket.to_owned();
        self.readers
            .run(move |conn| {
                // One snapshot: a place and its messages agree.
                let tx = conn.unchecked_transaction()?;
                asked.iter().map(|a| find(&tx, &bucket, a)).collect()
            })
            .await
    }

    /// The next messages under a prefix that should be in the bucket, in the
    /// order of keys and then of numbers: behind `after`, numbered `horizon`
    /// at most.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn waiting(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<(String, u64)>,
        horizon: u64,
        limit: u32,
    ) -> Result<Vec<Waiting>, CatalogError> {
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        self.readers
            .run(move |conn| waiting(conn, &bucket, &prefix, after, horizon, limit))
            .await
    }
}

const COLUMNS: &str = "m.id, m.version_id, m.etag, m.plaintext_size, m.stored_size, m.checksum,
     m.message_id, m.wrapping_key, m.created, m.recipients, m.recorded, m.removed, m.first_seen";

fn record(row: &Row<'_>, bucket: &str, key: &str) -> rusqlite::Result<Record> {
    let first_seen: Option<i64> = row.get(12)?;
    Ok(Record {
        id: unsigned(row, 0)?,
        receipt: receipt(row, bucket, key)?,
        recorded: unsigned(row, 10)?,
        removed: row.get::<_, Option<i64>>(11)?.is_some(),
        first_seen: first_seen.and_then(|ms| u64::try_from(ms).ok()),
    })
}

fn find(conn: &Connection, bucket: &str, asked: &Asked) -> rusqlite::Result<Match> {
    let key = &asked.key;
    let place: Option<(i64, Option<i64>, bool)> = conn
        .prepare_cached(
            "SELECT id, current, deleted IS NOT NULL FROM place WHERE bucket = ?1 AND key = ?2",
        )?
        .query_row([bucket, key], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((place, current, deleted)) = place else {
        return Ok(Match::default());
    };
    let one = |condition: &str, values: &[&dyn rusqlite::ToSql]| {
        conn.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM message m WHERE {condition} ORDER BY m.id DESC LIMIT 1"
        ))?
        .query_row(values, |row| record(row, bucket, key))
        .optional()
    };
    let current = match current {
        Some(id) => one("m.id = ?1", &[&id])?,
        None => None,
    };
    let version_id = versioned(asked.version_id.as_deref());
    let is_current = current
        .as_ref()
        .is_some_and(|current| current.version_id() == version_id);
    let version = match (is_current, version_id) {
        (true, _) => current.clone(),
        (false, Some(id)) => one("m.place = ?1 AND m.version_id = ?2", &[&place, &id])?,
        (false, None) => one(
            "m.place = ?1 AND coalesce(nullif(m.version_id, 'null'), '') = ''",
            &[&place],
        )?,
    };
    let as_stored = is_current
        && current
            .as_ref()
            .is_some_and(|current| current.is_like(asked.size, asked.etag.as_deref()));
    let twin = match (&asked.etag, i64::try_from(asked.size)) {
        (Some(etag), Ok(size)) if !as_stored => one(
            "m.place = ?1 AND m.stored_size = ?2 AND trim(m.etag, '\"') = trim(?3, '\"')",
            &[&place, &size, etag],
        )?,
        _ => None,
    };
    Ok(Match {
        place: Some(PlaceRecord { current, deleted }),
        version,
        twin,
    })
}

fn waiting(
    conn: &Connection,
    bucket: &str,
    prefix: &str,
    after: Option<(String, u64)>,
    horizon: u64,
    limit: u32,
) -> rusqlite::Result<Vec<Waiting>> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let (key, id) = after.unwrap_or_default();
    let from = if key.as_str() > prefix { &key } else { prefix };
    conn.prepare_cached(
        "SELECT m.id, p.key, m.version_id, p.current = m.id AND p.deleted IS NULL
         FROM place p JOIN message m ON m.place = p.id
         WHERE p.bucket = ?1 AND p.key >= ?2 AND p.key < ?3 || char(1114111)
           AND (p.key > ?4 OR m.id > ?5) AND m.id <= ?6
           AND m.removed IS NULL
           AND ((p.current = m.id AND p.deleted IS NULL) OR m.version_id IS NOT NULL)
         ORDER BY p.key, m.id LIMIT ?7",
    )?
    .query_map(
        params![
            bucket,
            from,
            prefix,
            key,
            number(id),
            number(horizon),
            limit
        ],
        |row| {
            Ok(Waiting {
                id: unsigned(row, 0)?,
                key: row.get(1)?,
                version_id: row.get(2)?,
                current: row.get::<_, Option<bool>>(3)?.unwrap_or(false),
            })
        },
    )?
    .collect()
}
