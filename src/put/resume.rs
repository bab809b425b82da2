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

mod geometry;

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::watch;

use super::journal::Entry;
use super::orphans::abort_now;
use super::parts::Assembly;
use super::{Plaintext, PutRequest, now_ms, unless, write_header_slot};
use crate::api::{Error, ErrorKind, Receipt};
use crate::audit::Op;
use crate::catalog::{ConfirmedPart, Journal, JournalledPart, JournalledUpload};
use crate::engine::Engine;
use crate::fault::{message_error, store_error};
use crate::message::{Header, Parsed, Permit, Resealer};
use crate::store::{
    Attributes, ListedPart, METADATA_HEADER, OnSent, PartBody, Place, SentPart, StoreError, Stored,
    Upload,
};
use crate::unlock::unlock;

use geometry::Geometry;

/// How long an upload is kept that nobody resumes: a nightly job that failed
/// on Friday goes on after the weekend, and what never comes back does not
/// cost storage for longer than S3's own advice for lifecycle rules (7 days,
/// S3 User Guide, "Configuring a bucket lifecycle configuration to delete
/// incomplete multipart uploads").
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Uploads that one user may have kept. Each is a row of a few KiB here, and
/// parts at the store; a tree that is archived has a handful.
const MOST_KEPT: u64 = 1000;
/// How long parts in flight may take to arrive after their client is gone:
/// each that does need not be sent again.
const LAST_PARTS: Duration = Duration::from_secs(30);
/// Claims removed after an upload, at most: it has one for each resumption,
/// and what is left a lifecycle rule removes.
const CLAIMS_REMOVED: u64 = 100;

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

struct Resumption<'e> {
    engine: &'e Engine,
    geometry: Geometry,
    upload: &'e JournalledUpload,
    place: Place,
    attributes: Attributes,
    cancel: watch::Receiver<bool>,
}

impl Resumption<'_> {
    async fn run(
        &self,
        request: &Append<'_>,
        source: &mut impl Plaintext,
        op: &mut Op,
    ) -> Result<Appended, Failure> {
        let journal = &self.upload.journal;
        if !self.geometry.fits(self.engine, journal) {
            return Err(gone("the configured sizes are not those it was begun with").into());
        }
        self.check_parts()?;
        self.claim().await?;
        self.compare().await?;
        let next = confirmed(self.upload) + 1;
        let sealer = match self.geometry.span(next) {
            Some((first, _)) => Some(self.sealer(first, request.rings).await?),
            None => None,
        };
        let mut parts = self.resume(next)?;
        let ended = match sealer {
            Some(sealer) => self.pump(next, sealer, source, &mut parts).await,
            None => Ok(true),
        };
        match ended {
            Ok(true) if request.complete => self.complete(parts, op).await,
            // Nothing of it is waited for that is to be aborted.
            Err(over @ (Failure::Over(_) | Failure::Left(_))) => {
                parts.keep();
                Err(over)
            }
            ended => {
                // What is on its way need not be sent again, if it arrives.
                let mut cancel = self.cancel.clone();
                let drained = async {
                    let drained = tokio::time::timeout(LAST_PARTS, parts.drained()).await;
                    Ok(drained.is_ok_and(|drained| drained.is_ok()))
                };
                let drained = unless(&mut cancel, drained).await;
                parts.keep();
                let whole = ended?;
                drained?;
                // The journal's word is the one that a resumption goes by.
                self.engine.catalog.uploads_written().await?;
                let known = self.engine.catalog.resumable(request.ticket).await?;
                let known = known.ok_or_else(|| gone("it was given up meanwhile"))?;
                let offset = standing(&known, true).offset;
                if request.complete && !whole {
                    let declared = journal.length;
                    return Err(Failure::Kept(Error::new(
                        ErrorKind::Incomplete,
                        format!("the body ended before byte {declared}, and was to complete it"),
                    )));
                }
                Ok(Appended::Kept(offset))
            }
        }
    }

    /// The journal's own words against its geometry.
    fn check_parts(&self) -> Result<(), Error> {
        let fits = |part: &JournalledPart| {
            self.geometry.span(part.number) == Some((part.first, part.last))
        };
        match self.upload.parts.iter().all(fits) {
            true => Ok(()),
            false => Err(gone("its journal contradicts itself")),
        }
    }

    /// Counts this resumption and claims it at the store.
    async fn claim(&self) -> Result<(), Failure> {
        let n = self.engine.catalog.resume_upload(self.upload.row).await?;
        let n = n.ok_or_else(|| gone("it was given up meanwhile"))?;
        let mut random = [0; 32];
        getrandom::fill(&mut random)
            .map_err(|e| Error::new(ErrorKind::Internal, "no random bytes").log(e))?;
        let bucket = self.engine.settings.slot_bucket(&self.place.bucket);
        let name = claim_name(self.engine, &self.upload.upload_id, n);
        let claim = Bytes::copy_from_slice(&random);
        match self.engine.store.put_claim(bucket, &name, claim).await {
            Ok(()) => Ok(()),
            Err(StoreError::Exists) => Err(Failure::Left(gone(
                "another copy of this host's state goes on with it",
            ))),
            Err(error) => Err(Failure::Kept(store_error(&error))),
        }
    }

    /// What the store has of it against what the journal knows.
    async fn compare(&self) -> Result<(), Failure> {
        let upload = self.upload;
        let listed = self
            .engine
            .store
            .list_parts(&self.place, &upload.upload_id)
            .await
            .map_err(|e| store_error(&e))?;
        let Some(listed) = listed else {
            // It may have become the object, and nobody heard of it: then
            // completing it once more finds that out.
            let all = confirmed(upload) == self.geometry.parts();
            return match all {
                true => Ok(()),
                false => Err(gone("the store has no such upload").into()),
            };
        };
        let mut there = HashSet::new();
        for part in &listed {
            there.insert(part.number);
            let known = part_of(upload, part.number)
                .ok_or_else(|| gone(format!("the journal lacks part {}", part.number)))?;
            if let Some(confirmed) = &known.confirmed
                && !same(confirmed, part)
            {
                return Err(gone(format!("the store has another part {}", part.number)).into());
            }
        }
        let lost =
            |part: &&JournalledPart| part.confirmed.is_some() && !there.contains(&part.number);
        let missing = upload.parts.iter().find(lost);
        match missing {
            Some(part) => Err(gone(format!("the store lost part {}", part.number)).into()),
            None => Ok(()),
        }
    }

    /// The data key out of the journalled header, once header tag and
    /// commitment are verified.
    async fn sealer(&self, first: u32, rings: Option<&[String]>) -> Result<Resealer, Failure> {
        let journal = &self.upload.journal;
        let parsed = Header::parse(&journal.header, Permit::default());
        let header = match parsed {
            Ok(Parsed::Header(header)) if header.bytes() == journal.header => header,
            _ => return Err(gone("its journalled header cannot be read").into()),
        };
        if header.message_id().hex() != journal.message_id
            || header.frame_length() != journal.frame_length
        {
            return Err(gone("its journalled header is another message's").into());
        }
        let unlocked = unlock(self.engine, &header, &self.place, rings, false).await;
        let unlocked = unlocked.map_err(|error| match error.kind {
            // No key that may open it will.
            kind if kind.status() == 422 => {
                gone(format!("its data key cannot be opened: {}", error.detail))
            }
            _ => error,
        })?;
        Resealer::new(unlocked.opened.opener, journal.length, first)
            .map_err(|e| message_error(&e).into())
    }

    /// The store's side of it, with the parts before `next`.
    fn resume(&self, next: u32) -> Result<Upload, Failure> {
        let row = self.upload.row;
        let catalog = self.engine.catalog.clone();
        let on_sent = OnSent::new(move |part: SentPart| {
            let confirmed = ConfirmedPart {
                etag: part.etag,
                checksum: part.checksum,
                size: part.size,
            };
            catalog.confirm_part(row, part.number, confirmed);
        });
        let mut upload = self
            .engine
            .store
            .resume(
                &self.place,
                &self.attributes,
                self.engine.settings.concurrency,
                &self.upload.upload_id,
                on_sent,
            )
            .map_err(|e| store_error(&e))?;
        for number in 1..next {
            self.skip(number, &mut upload)?;
        }
        Ok(upload)
    }

    /// Counts a confirmed part as sent; false if it is not confirmed.
    fn skip(&self, number: u32, parts: &mut Upload) -> Result<bool, Failure> {
        let known = part_of(self.upload, number);
        let Some(confirmed) = known.and_then(|part| part.confirmed.as_ref()) else {
            return Ok(false);
        };
        let sent = SentPart {
            number,
            etag: confirmed.etag.clone(),
            checksum: confirmed.checksum.clone(),
            size: confirmed.size,
        };
        let counted = parts.sent(&sent);
        counted.map_err(|error| gone(error.to_string()))?;
        Ok(true)
    }

    /// Seals and sends from part `next` on; false if the source ends before
    /// its last byte.
    async fn pump(
        &self,
        next: u32,
        mut sealer: Resealer,
        source: &mut impl Plaintext,
        parts: &mut Upload,
    ) -> Result<bool, Failure> {
        let mut cancel = self.cancel.clone();
        let catalog = &self.engine.catalog;
        let (row, header) = (self.upload.row, &self.upload.journal.header);
        let frame_length = self.upload.journal.frame_length as usize;
        let size = self.geometry.part_bytes();
        let mut assembly = Assembly::at(self.engine, frame_length, size, next).await?;
        for number in next..=self.geometry.parts() {
            let (first, last) = self.geometry.span(number).ok_or_else(misuse)?;
            let sent = catalog.part_tags(row, number).await?;
            if number == 1 {
                assembly.header(header)?;
            }
            let mut tags = Vec::new();
            for seq in first..=last {
                let (head, text) = (sealer.head_len(), sealer.text_len());
                let filled = assembly.fill_text(source, head, text);
                if !unless(&mut cancel, filled).await? {
                    return Ok(false);
                }
                if sealer.is_final() && !unless(&mut cancel, source.ended()).await? {
                    return Err(gone("the source is longer than it was").into());
                }
                let tag = match &sent {
                    Some(sent) => Some(tag_of(sent, seq - first).ok_or_else(misuse)?),
                    None => None,
                };
                tags.extend(assembly.reseal(&mut sealer, tag)?);
                if seq < last {
                    unless(&mut cancel, assembly.make_room()).await?;
                }
            }
            let body = unless(&mut cancel, assembly.take_part()).await?;
            if sent.is_none() {
                let written = catalog.journal_tags(row, number, (first, last), tags);
                if !written.await? {
                    return Err(gone("it was given up meanwhile").into());
                }
            }
            if !self.skip(number, parts)? {
                unless(&mut cancel, send(parts, body)).await?;
            }
            if number < self.geometry.parts() {
                unless(&mut cancel, assembly.next_part()).await?;
            }
        }
        Ok(true)
    }

    async fn complete(&self, mut parts: Upload, op: &mut Op) -> Result<Appended, Failure> {
        let journal = &self.upload.journal;
        let mut cancel = self.cancel.clone();
        let drained = async { parts.drained().await.map_err(|e| store_error(&e)) };
        unless(&mut cancel, drained).await?;
        let in_metadata = |(name, _): &(String, String)| name == METADATA_HEADER;
        if !self.attributes.metadata.iter().any(in_metadata) {
            let id = &journal.message_id;
            let header = &journal.header;
            let slot = write_header_slot(self.engine, &self.place, id, header, &self.attributes);
            unless(&mut cancel, slot).await?;
        }
        op.event().plaintext_size = Some(journal.length);
        op.begin().await?;
        let lock = async { Ok(self.engine.lock_place(&self.place).await) };
        let guard = unless(&mut cancel, lock).await?;
        let stored = parts.complete().await.map_err(|error| {
            let told = store_error(&error);
            match error {
                StoreError::Away { .. }
                | StoreError::SlowDown { .. }
                | StoreError::Denied { .. } => Failure::Kept(told),
                _ => Failure::Over(told),
            }
        })?;
        let receipt = self.receipt(stored, op);
        let header = &journal.header;
        let row = Some(self.upload.row);
        let recorded = self.engine.catalog.record_uploaded(&receipt, header, row);
        // If not, it stays in the journal: resumed once more, it is found.
        recorded.await.map_err(|e| {
            let why = "the object is in S3, but its receipt could not be recorded";
            Failure::Kept(Error::new(ErrorKind::StateFailed, why).log(e))
        })?;
        drop(guard);
        let resumes = self.upload.resumes + 1;
        remove_claims(self.engine, &self.place, &self.upload.upload_id, resumes).await;
        Ok(Appended::Stored(Box::new(receipt)))
    }

    fn receipt(&self, stored: Stored, op: &mut Op) -> Receipt {
        let journal = &self.upload.journal;
        let event = op.event();
        event.version_id.clone_from(&stored.version_id);
        event.stored_size = Some(stored.size);
        event.checksum = Some(stored.checksum.clone());
        event.s3_request_id.clone_from(&stored.request_id);
        Receipt {
            bucket: self.place.bucket.clone(),
            key: self.place.key.clone(),
            version_id: stored.version_id,
            etag: stored.etag,
            plaintext_size: journal.length,
            stored_size: stored.size,
            checksum: stored.checksum,
            message_id: journal.message_id.clone(),
            wrapping_key: journal.wrapping_key.clone(),
            recipients: journal.recipients.clone(),
            missing_recipients: journal.missing.clone(),
            created: journal.created,
        }
    }
}

async fn send(parts: &mut Upload, body: PartBody) -> Result<(), Error> {
    parts.send(body).await.map_err(|e| store_error(&e))
}

/// The tag of the `n`th frame, from 0, of a part.
fn tag_of(tags: &[u8], n: u32) -> Option<&[u8; Resealer::TAG_LEN]> {
    let at = usize::try_from(n).ok()?.checked_mul(Resealer::TAG_LEN)?;
    tags.get(at..)?.first_chunk()
}

/// Whether the store has of a part what it confirmed.
fn same(confirmed: &ConfirmedPart, listed: &ListedPart) -> bool {
    let tag = |text: &str| text.trim_matches('"').to_owned();
    confirmed.size == listed.size
        && tag(&confirmed.etag) == tag(&listed.etag)
        && listed
            .checksum
            .as_ref()
            .is_none_or(|there| *there == confirmed.checksum)
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

/// Where resumption `n` of an upload is claimed: beside the keyslots, under
/// the hash of the store's id of it.
fn claim_name(engine: &Engine, upload_id: &str, n: u64) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, upload_id.as_bytes());
    let hash = data_encoding::HEXLOWER.encode(hash.as_ref());
    format!("{}claims/{hash}/{n}", engine.settings.keyslot_prefix)
}

/// Removes the claims of an upload that is over. Best effort.
pub(super) async fn remove_claims(engine: &Engine, place: &Place, upload_id: &str, resumes: u64) {
    let bucket = engine.settings.slot_bucket(&place.bucket);
    for n in 1..=resumes.min(CLAIMS_REMOVED) {
        let claim = Place::new(bucket, claim_name(engine, upload_id, n));
        if let Err(error) = engine.store.delete(&claim, None).await {
            tracing::debug!(%claim, %error, "a claim is left to the lifecycle rule");
            return;
        }
    }
}

fn gone(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::UploadGone, why)
}

/// A part that may have been sent.
fn part_of(upload: &JournalledUpload, number: u32) -> Option<&JournalledPart> {
    let at = upload
        .parts
        .binary_search_by_key(&number, |part| part.number);
    upload.parts.get(at.ok()?)
}

fn misuse() -> Error {
    gone("its journal contradicts itself")
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
