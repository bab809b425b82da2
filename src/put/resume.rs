//! Uploads that may be resumed: a source of known length, sent over as many
//! requests as it takes, under one data key, and no frame ever in two forms.
//!
//! Each request is a resumption, the first one too: between them nothing but
//! the journal is kept, and the data key only as its header has it, wrapped.
//! What decides (docs/security.md, rules 12 and 13):
//!
//! - the geometry is the journal's; another in the configuration, another
//!   source or another length makes another upload;
//! - resumption `n` is counted, then claimed at the store: whoever restored or
//!   copied the journal and comes second sends nothing;
//! - a part that the store has and the journal lacks, or that differs, ends
//!   the upload;
//! - the tags of a part are durable before it is first sent; a part that may
//!   have been sent is sealed as a whole, and compared, before a byte of it is
//!   sent again.

mod claims;
mod compare;
mod geometry;
mod resumption;

use std::time::Duration;

use serde_json::json;

use super::journal::Entry;
use super::orphans::abort_now;
use super::{Plaintext, PutRequest, now_ms};
use crate::api::{Error, ErrorKind, Receipt};
use crate::audit::Op;
use crate::catalog::{Journal, JournalledUpload};
use crate::engine::Engine;
use crate::fault::store_error;
use crate::store::{Attributes, Place};

pub(super) use claims::remove_claims;
use geometry::Geometry;
use resumption::Resumption;

/// How long an upload is kept that nobody resumes: a nightly job that failed
/// on Friday goes on after the weekend, and what never comes back does not
/// cost storage for longer than S3's own advice for lifecycle rules (7 days,
/// S3 User Guide, "Configuring a bucket lifecycle configuration to delete
/// incomplete multipart uploads").
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Uploads that one user may have kept. Each is a row of a few KiB here, and
/// parts at the store; a tree that is archived has a handful.
const MOST_KEPT: u64 = 1000;

/// An upload as its client sees it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its name.
    pub ticket: String,
    /// Where it will be.
    pub place: Place,
    /// Plaintext bytes that need not be sent again.
    pub offset: u64,
    /// Plaintext bytes in all.
    pub length: u64,
    /// Whether it was there already.
    pub found: bool,
}

/// What a request has come to.
pub enum Appended {
    /// The object is stored.
    Stored(Box<Receipt>),
    /// It goes on from here.
    Kept(u64),
    /// Nothing was read: it stands here.
    Elsewhere(u64),
}

/// The upload of `source` to a place: the one that is there, or a new one. An
/// idle one of the same user that is for the same place, and differs in
/// anything, is given up.
///
/// # Errors
/// As for a put; [`ErrorKind::NotImplemented`] on a host that cannot open its
/// own data keys.
pub async fn create(
    engine: &Engine,
    uid: u32,
    source: &str,
    mut request: PutRequest,
    op: &mut Op,
) -> Result<Standing, Error> {
    let length = request
        .length
        .ok_or_else(|| Error::new(ErrorKind::Malformed, "an upload to be resumed has a length"))?;
    if engine.keyring.is_write_only() {
        return Err(Error::new(
            ErrorKind::NotImplemented,
            "this host writes only: it cannot open its own data keys, so it resumes nothing",
        )
        .hint("send the object with one PUT"));
    }
    let (key, in_use) = super::check(engine, &mut request, op).await?;
    let place = request.place.clone();
    // Two requests at once must not begin two.
    let _guard = engine.lock_place(&place).await;
    let asked = asked(&request);
    let catalog = &engine.catalog;
    let there = Some((place.bucket.as_str(), place.key.as_str()));
    for upload in catalog.resumables(Some(uid), there, PAGE).await? {
        let journal = &upload.journal;
        let same = journal.source == source && journal.request == asked && journal.length == length;
        if same && Geometry::of(journal).fits(engine, journal) {
            if let Some(upload) = catalog.resumable(&journal.ticket).await? {
                return Ok(standing(&upload, true));
            }
        } else if let Some(_session) = engine.sessions.begin(&journal.ticket) {
            catalog.give_up_upload(upload.row).await?;
            engine.orphaned.notify_one();
        }
    }
    if catalog.upload_count_of(uid).await? >= MOST_KEPT {
        return Err(Error::new(
            ErrorKind::Busy,
            format!("uid {uid} has {MOST_KEPT} uploads that are not complete"),
        )
        .hint("complete or delete some: GET /v1/uploads lists them"));
    }
    let begun = super::begin(engine, request, key.as_ref(), op).await?;
    let settings = &engine.settings;
    let geometry = Geometry::new(engine, length, begun.header.len())?;
    let journal = Journal {
        ticket: ticket()?,
        uid,
        source: source.to_owned(),
        request: asked,
        attributes: serde_json::to_string(&begun.attributes).map_err(internal)?,
        header: begun.header.to_vec(),
        message_id: begun.message_id,
        wrapping_key: begun.held.wrapping_key,
        recipients: begun.held.recipients,
        missing: begun.held.missing,
        created: begun.created,
        length,
        frame_length: settings.frame_length,
        part_size: settings.part_size,
        first_frames: geometry.first_frames,
        part_frames: geometry.part_frames,
        frames: geometry.frames,
        checksum: settings.checksum.clone(),
    };
    let standing = Standing {
        ticket: journal.ticket.clone(),
        place: place.clone(),
        offset: 0,
        length,
        found: false,
    };
    let entry = Entry::intend(engine, &place).await?;
    let upload = engine
        .store
        .begin(&place, &begun.attributes, settings.concurrency)
        .await
        .map_err(|e| store_error(&e))?;
    // Dropped on failure, the upload is aborted and its entry given up.
    catalog
        .keep_upload(entry.row(), upload.id(), journal)
        .await?;
    upload.keep();
    entry.over();
    drop(in_use);
    Ok(standing)
}

/// Uploads looked at for one user and place: there is one, or after a crash
/// in the middle of something a few.
const PAGE: u32 = 16;

/// Where an upload stands.
#[must_use]
pub fn standing(upload: &JournalledUpload, found: bool) -> Standing {
    let geometry = Geometry::of(&upload.journal);
    Standing {
        ticket: upload.journal.ticket.clone(),
        place: Place::new(&upload.bucket, &upload.key),
        offset: geometry.offset_of(confirmed(upload) + 1),
        length: upload.journal.length,
        found,
    }
}

/// The parts from the first on that the store has confirmed without a gap.
fn confirmed(upload: &JournalledUpload) -> u32 {
    let run = upload
        .parts
        .iter()
        .zip(1..)
        .take_while(|(part, number)| part.number == *number && part.confirmed.is_some());
    u32::try_from(run.count()).unwrap_or(u32::MAX)
}

/// Gives an upload up, on its owner's word.
///
/// # Errors
/// [`ErrorKind::Busy`] while somebody sends to it.
pub async fn give_up(engine: &Engine, upload: &JournalledUpload) -> Result<(), Error> {
    let _session = session(engine, &upload.journal.ticket)?;
    engine.catalog.give_up_upload(upload.row).await?;
    let place = Place::new(&upload.bucket, &upload.key);
    match abort_now(engine, &place, &upload.upload_id).await {
        Ok(()) => {
            engine.catalog.forget_upload(upload.row).await?;
            remove_claims(engine, &place, &upload.upload_id, upload.resumes).await;
        }
        // It is tried again until it succeeds.
        Err(_) => engine.orphaned.notify_one(),
    }
    Ok(())
}

/// A request to send more of an upload.
pub struct Append<'a> {
    /// The upload's name.
    pub ticket: &'a str,
    /// Where the body begins, in plaintext bytes.
    pub offset: u64,
    /// Whether the body is to be the rest.
    pub complete: bool,
    /// The rings that may be used; any when absent.
    pub rings: Option<&'a [String]>,
    /// Whether an object that is there may not be replaced.
    pub no_overwrite: bool,
}

/// Takes more of an upload, and makes the object with its last byte.
///
/// # Errors
/// [`ErrorKind::UploadGone`]: it cannot go on, and is aborted unless another
/// goes on with it. After any other error it can be resumed.
pub async fn append(
    engine: &Engine,
    request: &Append<'_>,
    source: &mut impl Plaintext,
    op: &mut Op,
) -> Result<Appended, Error> {
    op.check()?;
    let _session = session(engine, request.ticket)?;
    let upload = engine.catalog.resumable(request.ticket).await?;
    let upload = upload.ok_or_else(|| gone("there is no such upload"))?;
    let place = Place::new(&upload.bucket, &upload.key);
    let at = standing(&upload, true).offset;
    if at != request.offset {
        return Ok(Appended::Elsewhere(at));
    }
    let event = op.event();
    event.message_id = Some(upload.journal.message_id.clone());
    event.wrapping_key = Some(upload.journal.wrapping_key.clone());
    event.check_value = engine.keyring.check_value(&upload.journal.wrapping_key);
    let mut attributes: Attributes =
        serde_json::from_str(&upload.journal.attributes).map_err(internal)?;
    attributes.if_none_match |= request.no_overwrite;
    let resumption = Resumption {
        engine,
        geometry: Geometry::of(&upload.journal),
        upload: &upload,
        place,
        attributes,
        cancel: engine.cancel.clone(),
    };
    match resumption.run(request, source, op).await {
        Ok(appended) => Ok(appended),
        Err(Failure::Kept(error)) => Err(error),
        Err(Failure::Left(error)) => {
            // Somebody else's by now: nothing of it is ours to abort.
            engine.catalog.forget_upload(upload.row).await?;
            Err(error)
        }
        Err(Failure::Over(error)) => {
            tracing::warn!(
                place = %resumption.place,
                ticket = request.ticket,
                why = error.detail,
                "an upload cannot be resumed, and is aborted"
            );
            engine.catalog.give_up_upload(upload.row).await?;
            engine.orphaned.notify_one();
            Err(error)
        }
    }
}

/// Why a resumption ended, by what becomes of the upload.
enum Failure {
    /// It can be resumed.
    Kept(Error),
    /// It is aborted; a new one has a new data key.
    Over(Error),
    /// It is another's.
    Left(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind {
            ErrorKind::UploadGone => Self::Over(error),
            _ => Self::Kept(error),
        }
    }
}

impl From<crate::catalog::CatalogError> for Failure {
    fn from(error: crate::catalog::CatalogError) -> Self {
        Self::Kept(error.into())
    }
}

/// What is asked for, in a form that can be compared.
fn asked(request: &PutRequest) -> String {
    json!({
        "attributes": request.attributes,
        "context": request.context,
        "ring": request.ring,
    })
    .to_string()
}

/// What S3 was to keep, and the ring, as they were asked for.
#[must_use]
pub fn asked_of(upload: &JournalledUpload) -> (Attributes, Option<String>) {
    #[derive(Default, serde::Deserialize)]
    struct Asked {
        attributes: Attributes,
        ring: Option<String>,
    }
    let asked: Asked = serde_json::from_str(&upload.journal.request).unwrap_or_default();
    (asked.attributes, asked.ring)
}

fn session(engine: &Engine, ticket: &str) -> Result<crate::engine::Session, Error> {
    engine.sessions.begin(ticket).ok_or_else(|| {
        Error::new(
            ErrorKind::Busy,
            "another request of this upload is in progress",
        )
    })
}

/// 128 random bits: nobody guesses another's.
pub(super) fn ticket() -> Result<String, Error> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|e| Error::new(ErrorKind::Internal, "no random bytes").log(e))?;
    Ok(data_encoding::HEXLOWER.encode(&random))
}

fn gone(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::UploadGone, why)
}

fn internal(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Internal, "the journal cannot be read or written").log(error)
}

/// When an upload that was last touched then is given up, Unix milliseconds.
#[must_use]
pub fn expires(touched: u64) -> u64 {
    touched.saturating_add(u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX))
}

/// Whether it is still kept.
#[must_use]
pub fn is_kept(touched: u64) -> bool {
    expires(touched) > now_ms()
}
