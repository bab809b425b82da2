//! The upload journal: what was begun at the store and is no object yet.
//!
//! Every multipart upload has an intent before the store hears of it, so that
//! whatever ends the process leaves nothing that the next start cannot find
//! and abort. One that may be resumed has, besides, everything that rule 12
//! of docs/security.md fixes: header, geometry, and each frame's tag before
//! its part is first sent.

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::reader::{names, unsigned};
use super::writer::{ApplyError, Effect};

/// The `kind` of an upload's rows in `dependents`.
pub(super) const KIND: &str = "upload";

/// What an upload that may be resumed has to keep to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Its name at the agent's socket.
    pub ticket: String,
    /// Whose it is.
    pub uid: u32,
    /// What the client says the source is: opaque.
    pub source: String,
    /// What was asked for, as JSON: compared as a whole.
    pub request: String,
    /// What S3 keeps beside the object, as JSON.
    pub attributes: String,
    /// The header's exact bytes.
    pub header: Vec<u8>,
    /// The message's id, hexadecimal.
    pub message_id: String,
    /// The key that wrapped its data key.
    pub wrapping_key: String,
    /// Who else holds its data key.
    pub recipients: Vec<String>,
    /// Who should, and was away.
    pub missing: Vec<String>,
    /// When the message was begun, Unix milliseconds.
    pub created: u64,
    /// Plaintext bytes.
    pub length: u64,
    /// Plaintext bytes a frame.
    pub frame_length: u32,
    /// The configured part size, in bytes.
    pub part_size: u64,
    /// Frames of the first part.
    pub first_frames: u32,
    /// Frames of every other part but the last.
    pub part_frames: u32,
    /// Frames in all: the number of the final one.
    pub frames: u32,
    /// The configured checksum.
    pub checksum: String,
}

/// A journalled upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalledUpload {
    /// Its row.
    pub row: i64,
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The store's id.
    pub upload_id: String,
    /// What it has to keep to.
    pub journal: Journal,
    /// How often it was resumed.
    pub resumes: u64,
    /// When it last made progress, Unix milliseconds.
    pub touched: u64,
    /// Its parts that may have been sent, by their numbers.
    pub parts: Vec<JournalledPart>,
}

/// A part that may have been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalledPart {
    /// Its number, from 1.
    pub number: u32,
    /// Its first frame.
    pub first: u32,
    /// Its last frame.
    pub last: u32,
    /// What the store confirmed.
    pub confirmed: Option<ConfirmedPart>,
}

/// The store's word on a part, with what was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfirmedPart {
    /// Its entity tag.
    pub etag: String,
    /// Its checksum, base64.
    pub checksum: String,
    /// Its bytes.
    pub size: u64,
}

/// An upload that nobody goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its row.
    pub row: i64,
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The store's id; absent if it was never heard.
    pub upload_id: Option<String>,
    /// When it was to be begun, Unix milliseconds.
    pub intent: u64,
    /// How often it was resumed.
    pub resumes: u64,
}

/// The uploads of one place that are not orphans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Open {
    /// The store's ids of them.
    pub ids: Vec<String>,
    /// Whether one of them has none yet.
    pub beginning: bool,
}

/// A change to the journal.
pub(super) enum Change {
    /// Before the store hears of an upload.
    Intend { bucket: String, key: String },
    /// The store gave it this id.
    Begun { row: i64, upload_id: String },
    /// The same, of one that may be resumed.
    Keep {
        row: i64,
        upload_id: String,
        journal: Box<Journal>,
    },
    /// It is to be resumed once more.
    Resume { row: i64 },
    /// A part is about to be sent for the first time.
    Tags {
        row: i64,
        number: u32,
        first: u32,
        last: u32,
        tags: Vec<u8>,
    },
    /// The store has a part.
    Confirm {
        row: i64,
        number: u32,
        part: ConfirmedPart,
    },
    /// Nobody goes on with it.
    Orphan { row: i64 },
    /// Nobody goes on with what a former process had open.
    OrphanAll,
    /// Nobody goes on with what has not moved since.
    Expire { before: u64 },
    /// It is over.
    Forget { row: i64 },
}

pub(super) fn apply(tx: &Transaction<'_>, change: &Change, now: i64) -> Result<Effect, ApplyError> {
    match change {
        Change::Intend { bucket, key } => {
            tx.prepare_cached(
                "INSERT INTO upload (bucket, key, intent, state) VALUES (?1, ?2, ?3, 'open')",
            )?
            .execute(params![bucket, key, now])?;
            return Ok(Effect::Row(tx.last_insert_rowid()));
        }
        Change::Begun { row, upload_id } => {
            tx.prepare_cached("UPDATE upload SET upload_id = ?2 WHERE id = ?1")?
                .execute(params![row, upload_id])?;
        }
        Change::Keep {
            row,
            upload_id,
            journal,
        } => keep(tx, *row, upload_id, journal, now)?,
        Change::Resume { row } => {
            let n = tx
                .prepare_cached(
                    "UPDATE upload SET resumes = resumes + 1, touched = ?2
                     WHERE id = ?1 AND state = 'resumable' RETURNING resumes",
                )?
                .query_row(params![row, now], |row| row.get(0))
                .optional()?;
            // Somebody ended it meanwhile.
            return Ok(n.map_or(Effect::None, Effect::Row));
        }
        Change::Tags {
            row,
            number,
            first,
            last,
            tags,
        } => {
            // A second set of tags for a part would be a second set of frames,
            // and an upload that is over sends nothing more.
            let made = tx
                .prepare_cached(
                    "INSERT INTO upload_part (upload, number, first, last, tags)
                     SELECT id, ?2, ?3, ?4, ?5 FROM upload WHERE id = ?1 AND state = 'resumable'
                     ON CONFLICT DO NOTHING",
                )?
                .execute(params![row, number, first, last, tags])?;
            if made == 0 {
                return Ok(Effect::None);
            }
        }
        Change::Confirm { row, number, part } => {
            tx.prepare_cached(
                "UPDATE upload_part SET etag = ?3, checksum = ?4, size = ?5
                 WHERE upload = ?1 AND number = ?2",
            )?
            .execute(params![
                row,
                number,
                part.etag,
                part.checksum,
                i64::try_from(part.size)?
            ])?;
            tx.prepare_cached("UPDATE upload SET touched = ?2 WHERE id = ?1")?
                .execute(params![row, now])?;
        }
        Change::Orphan { row } => {
            tx.prepare_cached("UPDATE upload SET state = 'orphan' WHERE id = ?1")?
                .execute([row])?;
            undepend(tx, *row)?;
        }
        Change::OrphanAll => {
            tx.execute(
                "UPDATE upload SET state = 'orphan' WHERE state = 'open'",
                [],
            )?;
        }
        Change::Expire { before } => {
            let before = i64::try_from(*before)?;
            tx.execute(
                "DELETE FROM dependents WHERE kind = ?1 AND id IN
                     (SELECT ticket FROM upload WHERE state = 'resumable' AND touched < ?2)",
                params![KIND, before],
            )?;
            tx.execute(
                "UPDATE upload SET state = 'orphan' WHERE state = 'resumable' AND touched < ?1",
                [before],
            )?;
        }
        Change::Forget { row } => forget(tx, *row)?,
    }
    Ok(Effect::Made)
}

fn keep(
    tx: &Transaction<'_>,
    row: i64,
    upload_id: &str,
    journal: &Journal,
    now: i64,
) -> Result<(), ApplyError> {
    tx.prepare_cached(
        "UPDATE upload SET state = 'resumable', upload_id = ?2, touched = ?3, ticket = ?4,
             uid = ?5, source = ?6, request = ?7, attributes = ?8, header = ?9,
             message_id = ?10, wrapping_key = ?11, recipients = ?12, missing = ?13,
             created = ?14, length = ?15, frame_length = ?16, part_size = ?17,
             first_frames = ?18, part_frames = ?19, frames = ?20, checksum = ?21
         WHERE id = ?1",
    )?
    .execute(params![
        row,
        upload_id,
        now,
        journal.ticket,
        journal.uid,
        journal.source,
        journal.request,
        journal.attributes,
        journal.header,
        journal.message_id,
        journal.wrapping_key,
        journal.recipients.join(","),
        journal.missing.join(","),
        i64::try_from(journal.created)?,
        i64::try_from(journal.length)?,
        journal.frame_length,
        i64::try_from(journal.part_size)?,
        journal.first_frames,
        journal.part_frames,
        journal.frames,
        journal.checksum,
    ])?;
    let place: String = tx.query_row(
        "SELECT 's3://' || bucket || '/' || key FROM upload WHERE id = ?1",
        [row],
        |row| row.get(0),
    )?;
    for key in std::iter::once(&journal.wrapping_key).chain(&journal.recipients) {
        tx.prepare_cached(
            "INSERT OR IGNORE INTO dependents (kind, id, wrapping_key, place, since)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![KIND, journal.ticket, key, place, now])?;
    }
    Ok(())
}

/// Its data key will never be used again.
fn undepend(tx: &Transaction<'_>, row: i64) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "DELETE FROM dependents WHERE kind = ?1
             AND id = (SELECT ticket FROM upload WHERE id = ?2)",
    )?
    .execute(params![KIND, row])
    .map(drop)
}

/// Everything of an upload that is over.
pub(super) fn forget(tx: &Transaction<'_>, row: i64) -> rusqlite::Result<()> {
    undepend(tx, row)?;
    tx.prepare_cached("DELETE FROM upload_part WHERE upload = ?1")?
        .execute([row])?;
    tx.prepare_cached("DELETE FROM upload WHERE id = ?1")?
        .execute([row])
        .map(drop)
}

const COLUMNS: &str = "id, bucket, key, upload_id, resumes, touched, ticket, uid, source, request,
     attributes, header, message_id, wrapping_key, recipients, missing, created, length,
     frame_length, part_size, first_frames, part_frames, frames, checksum";

fn upload(row: &Row<'_>) -> rusqlite::Result<JournalledUpload> {
    Ok(JournalledUpload {
        row: row.get(0)?,
        bucket: row.get(1)?,
        key: row.get(2)?,
        upload_id: row.get(3)?,
        resumes: unsigned(row, 4)?,
        touched: unsigned(row, 5)?,
        journal: Journal {
            ticket: row.get(6)?,
            uid: row.get(7)?,
            source: row.get(8)?,
            request: row.get(9)?,
            attributes: row.get(10)?,
            header: row.get(11)?,
            message_id: row.get(12)?,
            wrapping_key: row.get(13)?,
            recipients: names(&row.get::<_, String>(14)?),
            missing: names(&row.get::<_, String>(15)?),
            created: unsigned(row, 16)?,
            length: unsigned(row, 17)?,
            frame_length: row.get(18)?,
            part_size: unsigned(row, 19)?,
            first_frames: row.get(20)?,
            part_frames: row.get(21)?,
            frames: row.get(22)?,
            checksum: row.get(23)?,
        },
        parts: Vec::new(),
    })
}

/// One upload with its parts: 10,000 of them at most, and without their tags.
pub(super) fn resumable(
    conn: &Connection,
    ticket: &str,
) -> rusqlite::Result<Option<JournalledUpload>> {
    let tx = conn.unchecked_transaction()?;
    let found = tx
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM upload WHERE ticket = ?1 AND state = 'resumable'"
        ))?
        .query_row([ticket], upload)
        .optional()?;
    let Some(mut found) = found else {
        return Ok(None);
    };
    found.parts = tx
        .prepare_cached(
            "SELECT number, first, last, etag, checksum, size FROM upload_part
             WHERE upload = ?1 ORDER BY number",
        )?
        .query_map([found.row], |row| {
            let etag: Option<String> = row.get(3)?;
            Ok(JournalledPart {
                number: row.get(0)?,
                first: row.get(1)?,
                last: row.get(2)?,
                confirmed: match etag {
                    Some(etag) => Some(ConfirmedPart {
                        etag,
                        checksum: row.get(4)?,
                        size: unsigned(row, 5)?,
                    }),
                    None => None,
                },
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Some(found))
}

/// The tags of one part that may have been sent.
pub(super) fn tags(conn: &Connection, row: i64, number: u32) -> rusqlite::Result<Option<Vec<u8>>> {
    conn.prepare_cached("SELECT tags FROM upload_part WHERE upload = ?1 AND number = ?2")?
        .query_row(params![row, number], |row| row.get(0))
        .optional()
}

/// Uploads that may be resumed, the oldest first and without their parts: of
/// one user, of one place, if they are named.
pub(super) fn resumables(
    conn: &Connection,
    uid: Option<u32>,
    place: Option<(&str, &str)>,
    limit: u32,
) -> rusqlite::Result<Vec<JournalledUpload>> {
    let (bucket, key) = place.unzip();
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM upload
         WHERE state = 'resumable' AND (?1 IS NULL OR uid = ?1)
           AND (?2 IS NULL OR (bucket = ?2 AND key = ?3))
         ORDER BY id LIMIT ?4"
    ))?
    .query_map(params![uid, bucket, key, limit], upload)?
    .collect()
}

/// The next orphans behind row `after`.
pub(super) fn orphans(conn: &Connection, after: i64, limit: u32) -> rusqlite::Result<Vec<Orphan>> {
    conn.prepare_cached(
        "SELECT id, bucket, key, upload_id, intent, resumes FROM upload
         WHERE state = 'orphan' AND id > ?1 ORDER BY id LIMIT ?2",
    )?
    .query_map(params![after, limit], |row| {
        Ok(Orphan {
            row: row.get(0)?,
            bucket: row.get(1)?,
            key: row.get(2)?,
            upload_id: row.get(3)?,
            intent: unsigned(row, 4)?,
            resumes: unsigned(row, 5)?,
        })
    })?
    .collect()
}

/// What is under way at a place.
pub(super) fn open_at(conn: &Connection, bucket: &str, key: &str) -> rusqlite::Result<Open> {
    let mut open = Open::default();
    let mut statement = conn.prepare_cached(
        "SELECT upload_id FROM upload WHERE bucket = ?1 AND key = ?2 AND state <> 'orphan'",
    )?;
    let ids = statement.query_map([bucket, key], |row| row.get::<_, Option<String>>(0))?;
    for id in ids {
        match id? {
            Some(id) => open.ids.push(id),
            None => open.beginning = true,
        }
    }
    Ok(open)
}

/// How many one user may resume.
pub(super) fn count_of(conn: &Connection, uid: u32) -> rusqlite::Result<u64> {
    conn.query_row(
        "SELECT count(*) FROM upload WHERE state = 'resumable' AND uid = ?1",
        [uid],
        |row| unsigned(row, 0),
    )
}

/// Uploads that are no objects yet: under way or to be resumed, and orphans.
pub(super) fn count(conn: &Connection) -> rusqlite::Result<(u64, u64)> {
    conn.query_row(
        "SELECT count(*) FILTER (WHERE state = 'resumable'),
                count(*) FILTER (WHERE state = 'orphan') FROM upload",
        [],
        |row| Ok((unsigned(row, 0)?, unsigned(row, 1)?)),
    )
}
