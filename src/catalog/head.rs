//! The catalogue's head: how many changes there were, and a hash chained over
//! them, kept in the same transaction as each change.
//!
//! Audit checkpoints name it (docs/security.md, rule 15). A catalogue that was
//! put back from a copy does not know the head that the evidence names: it
//! marked each before a checkpoint could.

use data_encoding::BASE64;
use rusqlite::{Connection, Transaction, params};

use crate::crypto::digest::{Context, SHA256};

use super::reader::unsigned;
use super::writer::{self, ApplyError, Effect};
use super::{Catalog, CatalogError};

/// Marked heads that are kept. Only the newest local and the newest anchored
/// checkpoint are compared; at one mark a minute these reach back 70 days,
/// which is how long an anchor may be away. 5 MiB.
const KEPT: i64 = 100_000;

/// The changes up to a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// How many.
    pub count: u64,
    /// SHA-256, chained: of the hash before and the change as JSON.
    pub hash: [u8; 32],
}

impl std::fmt::Display for Head {
    /// As a checkpoint's extension line has it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.count, BASE64.encode(&self.hash))
    }
}

impl Head {
    /// From such a line.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (count, hash) = text.split_once(' ')?;
        Some(Self {
            count: count.parse().ok()?,
            hash: BASE64.decode(hash.as_bytes()).ok()?.try_into().ok()?,
        })
    }
}

/// A change about the head.
pub(super) enum Change {
    /// It is about to be named by a checkpoint.
    Mark,
    /// The evidence names one that is not of this catalogue's past.
    Doubt(String, Head),
    /// The operator takes the catalogue for good although the evidence names
    /// this one.
    Accept(Option<Head>),
}

impl Catalog {
    /// The head as it is now, after which a checkpoint may name it. Durable on
    /// return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn mark_head(&self) -> Result<Head, CatalogError> {
        self.head_change(Change::Mark).await
    }

    /// Remembers that this is not the catalogue the evidence knows, until
    /// [`Self::accept`].
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn set_doubt(&self, why: &str, named: Head) -> Result<(), CatalogError> {
        self.head_change(Change::Doubt(why.to_owned(), named))
            .await?;
        Ok(())
    }

    /// Takes the catalogue for good, whatever head the evidence names; the
    /// count goes on behind that one.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn accept(&self, named: Option<Head>) -> Result<Head, CatalogError> {
        self.head_change(Change::Accept(named)).await
    }

    /// Why this is not the catalogue the evidence knows; `None` if it is, as
    /// far as was looked.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn doubt(&self) -> Result<Option<String>, CatalogError> {
        self.readers
            .run(|conn| conn.query_row("SELECT doubt FROM head", [], |row| row.get(0)))
            .await
    }

    /// The same, blocking.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub fn load_doubt(&self) -> Result<Option<String>, CatalogError> {
        self.readers
            .run_blocking(|conn| conn.query_row("SELECT doubt FROM head", [], |row| row.get(0)))
    }

    /// The head now, and whether `named` is one that this catalogue had.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn compare_head(&self, named: Head) -> Result<(Head, bool), CatalogError> {
        self.readers
            .run(move |conn| Ok((load(conn)?, is_known(conn, &named)?)))
            .await
    }

    async fn head_change(&self, change: Change) -> Result<Head, CatalogError> {
        match self.effect(writer::Change::Head(change)).await? {
            Effect::Head(head) => Ok(head),
            _ => Err(CatalogError::Closed),
        }
    }
}

/// The head while a transaction goes on.
pub(super) struct Chain {
    head: Head,
    changed: bool,
}

impl Chain {
    pub(super) fn load(tx: &Transaction<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            head: load(tx)?,
            changed: false,
        })
    }

    /// Takes in a change, if it is one of what is known of places.
    pub(super) fn take(&mut self, change: &writer::Change) {
        use writer::Change::{Delete, Foreign, Put, Seen};
        let json = match change {
            Put(receipt, ..) => serde_json::to_vec(&("put", receipt)),
            Delete {
                bucket,
                key,
                version_id,
            } => serde_json::to_vec(&("delete", bucket, key, version_id)),
            Foreign {
                bucket,
                key,
                message_id,
                created,
                version_id,
            } => serde_json::to_vec(&("foreign", bucket, key, message_id, created, version_id)),
            Seen(seen) => serde_json::to_vec(&("seen", &seen.receipt, seen.latest)),
            _ => return,
        };
        // Strings and numbers always are JSON; an empty one still counts.
        self.push(&json.unwrap_or_default());
    }

    fn push(&mut self, change: &[u8]) {
        let mut context = Context::new(&SHA256);
        context.update(&self.head.hash);
        context.update(change);
        self.head.hash.copy_from_slice(context.finish().as_ref());
        self.head.count += 1;
        self.changed = true;
    }

    pub(super) fn save(&self, tx: &Transaction<'_>) -> Result<(), ApplyError> {
        if self.changed {
            tx.prepare_cached("UPDATE head SET count = ?1, hash = ?2")?
                .execute(params![i64::try_from(self.head.count)?, self.head.hash])?;
        }
        Ok(())
    }
}

pub(super) fn apply(
    tx: &Transaction<'_>,
    change: &Change,
    chain: &mut Chain,
) -> Result<Head, ApplyError> {
    match change {
        Change::Mark => {
            mark(tx, &chain.head)?;
            tx.prepare_cached(
                "DELETE FROM anchored WHERE count <
                     (SELECT count FROM anchored ORDER BY count DESC LIMIT 1 OFFSET ?1)",
            )?
            .execute([KEPT])?;
        }
        Change::Doubt(why, named) => {
            tx.execute(
                "UPDATE head SET doubt = ?1, named = ?2 WHERE doubt IS NULL",
                params![why, named.to_string()],
            )?;
        }
        Change::Accept(named) => {
            let doubted: Option<String> =
                tx.query_row("SELECT named FROM head", [], |row| row.get(0))?;
            let doubted = doubted.and_then(|text| Head::parse(&text));
            tx.execute("UPDATE head SET doubt = NULL, named = NULL", [])?;
            for named in named.iter().chain(&doubted) {
                mark(tx, named)?;
                // No count of ours may stand for two histories.
                chain.head.count = chain.head.count.max(named.count);
                chain.push(named.to_string().as_bytes());
            }
        }
    }
    Ok(chain.head)
}

fn mark(tx: &Transaction<'_>, head: &Head) -> Result<(), ApplyError> {
    tx.prepare_cached("INSERT OR IGNORE INTO anchored (count, hash) VALUES (?1, ?2)")?
        .execute(params![i64::try_from(head.count)?, head.hash])?;
    Ok(())
}

pub(super) fn load(conn: &Connection) -> rusqlite::Result<Head> {
    conn.prepare_cached("SELECT count, hash FROM head")?
        .query_row([], |row| {
            Ok(Head {
                count: unsigned(row, 0)?,
                hash: row.get(1)?,
            })
        })
}

fn is_known(conn: &Connection, head: &Head) -> rusqlite::Result<bool> {
    conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM anchored WHERE count = ?1 AND hash = ?2)",
        params![i64::try_from(head.count).unwrap_or(i64::MAX), head.hash],
        |row| row.get(0),
    )
}
