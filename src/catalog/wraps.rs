//! How often each wrapping key may have wrapped on this host.
//!
//! The number only grows, and is durable before the wraps are made. A key
//! that has a canary but no count was in use before it was counted, or its
//! count was lost: its number then begins at what the receipts prove, and is
//! marked incomplete for good.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::WrapsRow;
use super::writer::ApplyError;

/// Wraps that a key may have made before its count began: the one with which
/// `key generate` proves it, and a few for each run of `doctor` before the
/// agent's first start. 1,024 leaves room for 256 of these.
const UNCOUNTED: u64 = 1024;

/// The count as it stands, or as it would begin.
pub(super) fn load(conn: &Connection, key: &str) -> rusqlite::Result<WrapsRow> {
    let known = conn
        .prepare_cached("SELECT reserved, complete FROM wraps WHERE key = ?1")?
        .query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if let Some((reserved, complete)) = known {
        return Ok(WrapsRow {
            reserved: unsigned(reserved)?,
            complete,
        });
    }
    let in_use: bool = conn
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM canary WHERE key = ?1)")?
        .query_row([key], |row| row.get(0))?;
    let proven = if in_use {
        // A scan, once in a key's life.
        conn.query_row(
            "SELECT count(*) FROM message WHERE wrapping_key = ?1",
            [key],
            |row| row.get(0),
        )?
    } else {
        0
    };
    Ok(WrapsRow {
        reserved: unsigned(proven)?.saturating_add(UNCOUNTED),
        complete: !in_use,
    })
}

/// Adds `count` to a key's number.
pub(super) fn reserve(conn: &Connection, key: &str, count: u64) -> Result<WrapsRow, ApplyError> {
    let before = load(conn, key)?;
    let row = WrapsRow {
        reserved: before.reserved.saturating_add(count),
        ..before
    };
    conn.prepare_cached(
        "INSERT INTO wraps (key, reserved, complete) VALUES (?1, ?2, ?3)
         ON CONFLICT (key) DO UPDATE SET reserved = ?2",
    )?
    .execute(params![key, i64::try_from(row.reserved)?, row.complete])?;
    Ok(row)
}

fn unsigned(value: i64) -> rusqlite::Result<u64> {
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, value))
}
