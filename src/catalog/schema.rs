//! The catalogue's file: creation, checks, migrations, connection settings.
//!
//! `PRAGMA user_version` counts the migrations that were applied. Later
//! releases append to [`MIGRATIONS`] and never edit an entry.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::CatalogError;

/// SQLite's `application_id` of our files: `SgRm` in ASCII, so that `file(1)`
/// and we can tell a catalogue from any other database.
pub(super) const APPLICATION_ID: i32 = 0x5367_526d;

/// How long a statement waits for another connection's lock. In WAL mode only
/// recovery after a crash makes anyone wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Files up to this many bytes are checked page by page at every start (about
/// 0.1 s); in larger ones damage is found when a query meets it.
const QUICK_CHECK_LIMIT: u64 = 16 << 20;

/// Rows are never deleted from `message` and `foreign_write`: their largest
/// id is their count, and every message id of a place stays known.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE place (
        id              INTEGER PRIMARY KEY,
        bucket          TEXT NOT NULL,
        key             TEXT NOT NULL,
        current         INTEGER REFERENCES message (id),
        deleted         INTEGER,              -- Unix ms
        UNIQUE (bucket, key)
    ) STRICT;
    CREATE TABLE message (
        id              INTEGER PRIMARY KEY,
        place           INTEGER NOT NULL REFERENCES place (id),
        message_id      BLOB NOT NULL,
        created         INTEGER NOT NULL,     -- Unix ms, as in its context
        recorded        INTEGER NOT NULL,     -- Unix ms, this host's clock
        removed         INTEGER,              -- Unix ms; this version was deleted
        version_id      TEXT,
        etag            TEXT,
        plaintext_size  INTEGER NOT NULL,
        stored_size     INTEGER NOT NULL,
        checksum        TEXT NOT NULL,
        wrapping_key    TEXT NOT NULL,
        UNIQUE (place, message_id)
    ) STRICT;
    CREATE TABLE foreign_write (
        id              INTEGER PRIMARY KEY,
        place           INTEGER NOT NULL REFERENCES place (id),
        message_id      BLOB NOT NULL,
        created         INTEGER NOT NULL,     -- Unix ms, as in its context
        version_id      TEXT,
        first_seen      INTEGER NOT NULL,     -- Unix ms
        last_seen       INTEGER NOT NULL,     -- Unix ms
        UNIQUE (place, message_id)
    ) STRICT;
    CREATE TABLE canary (
        key             TEXT PRIMARY KEY,     -- the wrapping key's configured name
        iv              BLOB NOT NULL,
        ciphertext      BLOB NOT NULL,
        digest          BLOB NOT NULL,
        created         INTEGER NOT NULL      -- Unix ms
    ) STRICT;
",
    "
    CREATE TABLE wraps (
        key             TEXT PRIMARY KEY,     -- the wrapping key's configured name
        reserved        INTEGER NOT NULL,     -- wraps it may have made on this host
        complete        INTEGER NOT NULL      -- 0: it was in use before its count
    ) STRICT;
",
    "
    ALTER TABLE message ADD COLUMN
        recipients      TEXT NOT NULL DEFAULT '';  -- further holders' names, by commas
    CREATE TABLE dependents (
        kind            TEXT NOT NULL,        -- `queue`, `upload`
        id              TEXT NOT NULL,        -- its ticket, its upload id
        wrapping_key    TEXT NOT NULL,        -- a key that has wrapped for it
        place           TEXT NOT NULL,        -- s3://BUCKET/KEY
        since           INTEGER NOT NULL,     -- Unix ms
        PRIMARY KEY (kind, id, wrapping_key)
    ) STRICT;
    CREATE TABLE header (
        message         INTEGER PRIMARY KEY REFERENCES message (id),
        bytes           BLOB NOT NULL         -- as it was written; no secret
    ) STRICT;
    CREATE TABLE rewrap (
        run             TEXT PRIMARY KEY,     -- what is rewrapped, as JSON
        after           TEXT NOT NULL,        -- all versions of keys up to this are through
        position        INTEGER NOT NULL,     -- items of the list that are through
        counts          TEXT NOT NULL,        -- what they came to, as JSON
        updated         INTEGER NOT NULL      -- Unix ms
    ) STRICT;
    CREATE TABLE unpacked (                   -- wrapped anew, not yet in a pack
        target          TEXT NOT NULL,        -- the wrapping key's configured name
        message_id      BLOB NOT NULL,
        iv              BLOB NOT NULL,
        ciphertext      BLOB NOT NULL,
        PRIMARY KEY (target, message_id)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE upload (                     -- begun at the store, and no object yet
        id              INTEGER PRIMARY KEY,
        bucket          TEXT NOT NULL,
        key             TEXT NOT NULL,
        intent          INTEGER NOT NULL,     -- Unix ms, before the store hears of it
        state           TEXT NOT NULL,        -- `open`, `resumable`, `orphan`
        upload_id       TEXT,                 -- the store's
        ticket          TEXT UNIQUE,          -- from here on: of resumable ones
        uid             INTEGER,
        source          TEXT,                 -- the client's word for it
        request         TEXT,                 -- what was asked for, as JSON
        attributes      TEXT,                 -- what S3 keeps beside it, as JSON
        header          BLOB,                 -- the exact bytes; no secret
        message_id      TEXT,
        wrapping_key    TEXT,
        recipients      TEXT,
        missing         TEXT,
        created         INTEGER,              -- Unix ms, as in its context
        length          INTEGER,              -- plaintext bytes
        frame_length    INTEGER,
        part_size       INTEGER,
        first_frames    INTEGER,              -- of the first part
        part_frames     INTEGER,              -- of every other but the last
        frames          INTEGER,              -- in all
        checksum        TEXT,
        resumes         INTEGER NOT NULL DEFAULT 0,
        touched         INTEGER               -- Unix ms
    ) STRICT;
    CREATE INDEX upload_place ON upload (bucket, key);
    CREATE TABLE upload_part (
        upload          INTEGER NOT NULL REFERENCES upload (id),
        number          INTEGER NOT NULL,     -- from 1
        first           INTEGER NOT NULL,     -- frame
        last            INTEGER NOT NULL,     -- frame
        tags            BLOB NOT NULL,        -- 16 bytes a frame, durable before it is sent
        etag            TEXT,                 -- once the store has it
        checksum        TEXT,
        size            INTEGER,
        PRIMARY KEY (upload, number)
    ) STRICT;
",
    "
    ALTER TABLE message ADD COLUMN
        first_seen      INTEGER;              -- Unix ms; found in the bucket: no receipt of ours
    CREATE INDEX message_version ON message (place, version_id) WHERE version_id IS NOT NULL;
    CREATE TABLE head (
        one             INTEGER PRIMARY KEY CHECK (one = 1),
        count           INTEGER NOT NULL,     -- changes so far
        hash            BLOB NOT NULL,        -- SHA-256 chained over them
        doubt           TEXT,                 -- why it is not the one the evidence knows
        named           TEXT                  -- the head that the evidence names
    ) STRICT;
    INSERT INTO head (one, count, hash) VALUES (1, 0, zeroblob(32));
    CREATE TABLE anchored (                   -- heads that a checkpoint may name
        count           INTEGER NOT NULL,
        hash            BLOB NOT NULL,
        PRIMARY KEY (count, hash)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE queue (                      -- in the spool, and not yet in S3
        seq             INTEGER PRIMARY KEY AUTOINCREMENT,
        ticket          TEXT NOT NULL UNIQUE, -- its file's name, too
        bucket          TEXT NOT NULL,
        key             TEXT NOT NULL,
        uid             INTEGER NOT NULL,
        gid             INTEGER NOT NULL,
        attributes      TEXT NOT NULL,        -- what S3 keeps beside it, as JSON
        header          BLOB NOT NULL,        -- the exact bytes; no secret
        message_id      TEXT NOT NULL,
        wrapping_key    TEXT NOT NULL,
        recipients      TEXT NOT NULL,
        created         INTEGER NOT NULL,     -- Unix ms, as in its context
        plaintext_size  INTEGER NOT NULL,
        size            INTEGER NOT NULL,     -- of the file
        crc64           INTEGER NOT NULL,     -- of the file
        sha256          BLOB NOT NULL,        -- of the file
        since           INTEGER NOT NULL,     -- Unix ms
        attempts        INTEGER NOT NULL DEFAULT 0,
        parked          TEXT,                 -- an error's type
        why             TEXT
    ) STRICT;
    CREATE INDEX queue_place ON queue (bucket, key);
",
];

/// Opens, and if necessary creates or migrates, the catalogue for writing.
pub(super) fn open_writer(path: &Path) -> Result<Connection, CatalogError> {
    create_private(path)?;
    let fail = |error| CatalogError::sqlite(path, error);
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    check_identity(&conn, path)?;
    // WAL with FULL: a commit is one append and one fsync, and survives
    // power loss.
    conn.pragma_update(None, "journal_mode", "WAL")
        .map_err(fail)?;
    conn.pragma_update(None, "synchronous", "FULL")
        .map_err(fail)?;
    migrate(&mut conn).map_err(fail)?;
    Ok(conn)
}

/// Opens the catalogue for a copy of it, which a connection that may only
/// query cannot make.
pub(super) fn open_plain(path: &Path) -> Result<Connection, CatalogError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

/// Looks at every page and row, however large the file is.
pub(super) fn check_all(conn: &Connection, path: &Path) -> Result<(), CatalogError> {
    let verdict: String = conn
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| CatalogError::sqlite(path, error))?;
    if verdict != "ok" {
        return Err(CatalogError::Corrupt {
            path: path.to_owned(),
            detail: verdict,
        });
    }
    Ok(())
}

/// Opens the catalogue for reading; the writer has made it ready before.
pub(super) fn open_reader(path: &Path) -> Result<Connection, CatalogError> {
    // Not READ_ONLY: a reader may have to create the WAL index.
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    conn.pragma_update(None, "query_only", true)
        .map_err(|error| CatalogError::sqlite(path, error))?;
    Ok(conn)
}

fn connect(path: &Path, mode: OpenFlags) -> Result<Connection, CatalogError> {
    let fail = |error| CatalogError::sqlite(path, error);
    let flags = mode | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(fail)?;
    conn.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
    // The confined server has no /tmp.
    conn.pragma_update(None, "temp_store", "MEMORY")
        .map_err(fail)?;
    conn.pragma_update(None, "foreign_keys", true)
        .map_err(fail)?;
    // All the statements there are.
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// Creates the file (and the state directory) readable by nobody else;
/// SQLite gives its `-wal` and `-shm` files the same mode.
fn create_private(path: &Path) -> Result<(), CatalogError> {
    let fail = |error: std::io::Error| CatalogError::Io {
        path: path.to_owned(),
        detail: error.to_string(),
    };
    if let Some(dir) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(fail)?;
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(fail)?;
    Ok(())
}

/// Refuses damaged files, other programs' databases, and schemas of releases
/// to come, before anything is written.
fn check_identity(conn: &Connection, path: &Path) -> Result<(), CatalogError> {
    let fail = |error| CatalogError::sqlite(path, error);
    let pragma = |name: &str| -> rusqlite::Result<i32> {
        conn.pragma_query_value(None, name, |row| row.get(0))
    };
    let version = pragma("user_version").map_err(fail)?;
    let application = pragma("application_id").map_err(fail)?;
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(fail)?;
    let empty = application == 0 && version == 0 && tables == 0;
    if !empty && application != APPLICATION_ID {
        return Err(CatalogError::NotOurs {
            path: path.to_owned(),
        });
    }
    if usize::try_from(version).map_or(true, |v| v > MIGRATIONS.len()) {
        return Err(CatalogError::Newer {
            path: path.to_owned(),
            found: version,
            known: MIGRATIONS.len(),
        });
    }
    let length = std::fs::metadata(path).map_or(0, |meta| meta.len());
    if length <= QUICK_CHECK_LIMIT {
        let verdict: String = conn
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(fail)?;
        if verdict != "ok" {
            return Err(CatalogError::Corrupt {
                path: path.to_owned(),
                detail: verdict,
            });
        }
    }
    Ok(())
}

fn migrate(conn: &mut Connection) -> rusqlite::Result<()> {
    let done: usize = conn
        .pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))
        .map(|version| usize::try_from(version).unwrap_or(0))?;
    for (index, statements) in MIGRATIONS.iter().enumerate().skip(done) {
        // Statements and version in one transaction: a crash leaves either
        // the old schema or the new one.
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(statements)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", i64::try_from(index + 1).unwrap_or(0))?;
        tx.commit()?;
    }
    Ok(())
}
