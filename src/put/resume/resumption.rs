//! One resumption, start to finish: claimed, compared, sealed on from where
//! the store's confirmations end, and completed with the last byte.

use std::time::Duration;

use tokio::sync::watch;

use super::claims::remove_claims;
use super::compare::part_of;
use super::geometry::Geometry;
use super::{Append, Appended, Failure, confirmed, gone, standing};
use crate::api::{Error, ErrorKind, Receipt};
use crate::audit::Op;
use crate::catalog::{ConfirmedPart, JournalledUpload};
use crate::engine::Engine;
use crate::fault::{message_error, store_error};
use crate::message::{Header, Parsed, Permit, Resealer};
use crate::put::parts::Assembly;
use crate::put::{Plaintext, unless, write_header_slot};
use crate::store::{
    Attributes, METADATA_HEADER, OnSent, PartBody, Place, SentPart, StoreError, Stored, Upload,
};
use crate::unlock::unlock;

/// How long parts in flight may take to arrive after their client is gone:
/// each that does need not be sent again.
const LAST_PARTS: Duration = Duration::from_secs(30);

/// One resumption of an upload.
pub(super) struct Resumption<'e> {
    pub(super) engine: &'e Engine,
    pub(super) geometry: Geometry,
    pub(super) upload: &'e JournalledUpload,
    pub(super) place: Place,
    pub(super) attributes: Attributes,
    pub(super) cancel: watch::Receiver<bool>,
}

impl Resumption<'_> {
    pub(super) async fn run(
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
        let unlocked = unlock(
            self.engine,
            &header,
            &self.place,
            &self.place.bucket,
            rings,
            false,
        )
        .await;
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

fn misuse() -> Error {
    gone("its journal contradicts itself")
}
