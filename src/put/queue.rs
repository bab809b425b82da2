//! Store and forward: an object is sealed into the spool, acknowledged, and
//! sent when the store is there, in order.
//!
//! It is sealed once. What waits is ciphertext and a wrapped data key; the
//! data key itself is gone when the client is told (docs/security.md, rule
//! 14). Objects are sent one at a time, in the order of their tickets. One
//! that the store refuses is parked with the reason, and the later ones for
//! its place wait behind it; those for other places go on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::journal::Entry;
use super::parts::Assembly;
use super::{Begun, Plaintext, PutRequest, Source, unless, write_header_slot};
use crate::api::{Error, ErrorKind, Receipt};
use crate::audit::Op;
use crate::catalog::Queued;
use crate::engine::Engine;
use crate::fault::{spool_error, store_error};
use crate::message::Sealer;
use crate::store::{
    Attributes, FileSums, METADATA_HEADER, METADATA_MESSAGE_ID, PartBody, PartPlan, Place,
    QueueReader, QueueWriter, StoreError, Stored,
};

/// Tickets at most: their names are read into memory at a start.
const MOST_QUEUED: u64 = 100_000;
/// How long a client whose object is next waits for the store before it gets
/// its ticket instead of a receipt: longer than a small object takes.
const FIRST_TRY: Duration = Duration::from_secs(5);
/// How long after a failure the store is asked again, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Tries after which an error of the store's own, which no rule says is
/// permanent, is taken for it: with the back-off some three minutes.
const TRIES: u64 = 10;
/// Tickets read at a time at a start.
const PAGE: u32 = 1000;

/// Begins the records of one ticket's sending.
pub type Records = Arc<dyn Fn(&Queued) -> Op + Send + Sync>;

/// What has become of an object.
pub enum Outcome {
    /// It is stored.
    Stored(Box<Receipt>),
    /// It is safe, and will be.
    Queued(String),
}

/// Seals an object into the spool, durably; sends it at once if nothing else
/// waits and the store is there.
///
/// # Errors
/// As for a put, but for the store's being away; [`ErrorKind::SpoolFull`].
pub async fn enqueue(
    engine: &Engine,
    mut request: PutRequest,
    (uid, gid): (u32, u32),
    source: &mut impl Plaintext,
    op: &mut Op,
) -> Result<Outcome, Error> {
    // What is there cannot be asked now: the store decides when it takes it.
    request.attributes.if_none_match |= std::mem::take(&mut request.no_overwrite);
    let (key, in_use) = super::check(engine, &mut request, op).await?;
    let backlog = engine.catalog.backlog().await?;
    if backlog.tickets >= MOST_QUEUED {
        return Err(Error::new(
            ErrorKind::SpoolFull,
            format!("{MOST_QUEUED} objects wait to be sent"),
        ));
    }
    let length = request.length;
    if let Some(length) = length
        && !engine.spool.has_room(length)
    {
        return Err(Error::new(
            ErrorKind::SpoolFull,
            format!("{length} bytes do not fit the spool beside what waits in it"),
        ));
    }
    let mut assembly = Assembly::begin_whole(engine, length).await?;
    let Begun {
        place,
        attributes,
        header,
        sealer,
        message_id,
        held,
        created,
        ..
    } = super::begin(engine, request, key.as_ref(), op).await?;
    assembly.header(&header)?;
    let ticket = super::resume::ticket()?;
    let mut file = engine
        .spool
        .create_queued(&ticket)
        .map_err(|e| spool_error(&e))?;
    let plaintext_size = seal(engine, assembly, sealer, length, source, &mut file).await?;
    let sums = file.finish().await.map_err(|e| spool_error(&e))?;
    op.event().plaintext_size = Some(plaintext_size);
    op.event().stored_size = Some(sums.size);
    let size = sums.size;
    let queued = Queued {
        seq: 0,
        ticket: ticket.clone(),
        bucket: place.bucket,
        key: place.key,
        uid,
        gid,
        attributes: serde_json::to_string(&attributes)
            .map_err(|e| Error::new(ErrorKind::Internal, "attributes").log(e))?,
        header: header.to_vec(),
        message_id,
        wrapping_key: held.wrapping_key,
        recipients: held.recipients,
        created,
        plaintext_size,
        size,
        crc64: sums.crc64,
        sha256: sums.sha256,
        since: 0,
        attempts: 0,
        parked: None,
    };
    // Whoever is not next gets a ticket at once.
    let first = backlog.tickets == backlog.parked;
    let told = first.then(|| engine.waiting.begin(&ticket));
    // Only then may a client hear of it. Whether it is durable after a failure
    // nobody knows: the next start decides, by the row that is there or not.
    let kept = match engine.catalog.enqueue(queued).await {
        Ok(()) => engine.spool.keep_queued(&ticket).await,
        Err(error) => {
            engine.waiting.end(&ticket);
            return Err(error.into());
        }
    };
    if let Err(error) = kept {
        engine.waiting.end(&ticket);
        return Err(spool_error(&error.into()));
    }
    drop(in_use);
    engine.queued.notify_one();
    let tried = match told {
        Some(told) => tokio::time::timeout(FIRST_TRY, told).await.ok(),
        None => None,
    };
    engine.waiting.end(&ticket);
    match tried {
        Some(Ok(Ok(Some(receipt)))) => Ok(Outcome::Stored(Box::new(receipt))),
        // Its client is still there to hear it.
        Some(Ok(Err(error))) => {
            discard(engine, &ticket, size).await?;
            Err(error)
        }
        _ => Ok(Outcome::Queued(ticket)),
    }
}

async fn seal(
    engine: &Engine,
    mut assembly: Assembly<'_>,
    mut sealer: Sealer,
    length: Option<u64>,
    source: &mut impl Plaintext,
    file: &mut QueueWriter,
) -> Result<u64, Error> {
    let mut cancel = engine.cancel.clone();
    let mut source = Source::Stream(source);
    loop {
        let filled = assembly.fill(&mut source, sealer);
        let ended;
        (sealer, ended) = unless(&mut cancel, filled).await?;
        if ended {
            break;
        }
        if assembly.is_full() {
            append(file, assembly.take_part().await?).await?;
            unless(&mut cancel, assembly.next_part()).await?;
        }
    }
    let finished = assembly.seal_final(sealer)?;
    if let Some(declared) = length
        && declared != finished
    {
        return Err(Error::new(
            ErrorKind::Incomplete,
            format!("{declared} bytes were declared and {finished} arrived"),
        ));
    }
    append(file, assembly.take_part().await?).await?;
    Ok(finished)
}

async fn append(file: &mut QueueWriter, body: PartBody) -> Result<(), Error> {
    match body {
        PartBody::Memory(bytes) | PartBody::Summed(bytes, _) => {
            file.append(bytes).await.map_err(|e| spool_error(&e))
        }
        PartBody::Spooled(_) => Err(Error::new(ErrorKind::Internal, "a part in the spool twice")),
    }
}

/// Gives a ticket up; false if it is gone.
///
/// # Errors
/// The catalogue cannot be written.
pub async fn discard(engine: &Engine, ticket: &str, size: u64) -> Result<bool, Error> {
    let _session = engine
        .sessions
        .begin(ticket)
        .ok_or_else(|| Error::new(ErrorKind::Busy, "the object is being sent at this moment"))?;
    let ended = engine.spool.end_queued(ticket).await;
    ended.map_err(|e| spool_error(&e.into()))?;
    let there = engine.catalog.drop_queued(ticket).await?;
    if there {
        engine.spool.remove_queued(ticket, size);
        engine.queued.notify_one();
    }
    Ok(there)
}

/// At a start, before the first request: what is in the spool belongs to a
/// ticket, or is removed.
///
/// # Errors
/// The catalogue or the spool cannot be read.
pub async fn adopt(engine: &Engine) -> Result<(), Error> {
    let mut tickets = HashSet::new();
    let mut after = 0;
    loop {
        let page = engine.catalog.queued_page(None, after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        tickets.extend(page.into_iter().map(|queued| queued.ticket));
    }
    let adopted = engine.spool.adopt_queued(&tickets);
    adopted.map_err(|e| spool_error(&e.into()))
}

/// Sends what is queued, for as long as the server lives.
pub async fn drain(engine: Arc<Engine>, records: Records) {
    let mut wait = BACKOFF.0;
    loop {
        match next(&engine, &records).await {
            Ok(true) => {
                wait = BACKOFF.0;
                continue;
            }
            Ok(false) => engine.queued.notified().await,
            Err(error) => {
                tracing::warn!(detail = error.detail, "the queue waits");
                let sleep = tokio::time::sleep(wait);
                wait = (wait * 2).min(BACKOFF.1);
                // A new ticket may be what finds the store back.
                tokio::select! {
                    () = sleep => {}
                    () = engine.queued.notified() => {}
                }
            }
        }
        if *engine.cancel.borrow() {
            return;
        }
    }
}

/// Sends the next ticket; false if there is none.
async fn next(engine: &Engine, records: &Records) -> Result<bool, Error> {
    let Some(queued) = engine.catalog.next_queued().await? else {
        return Ok(false);
    };
    // Somebody drops it at this moment.
    let Some(session) = engine.sessions.begin(&queued.ticket) else {
        tokio::task::yield_now().await;
        return Ok(true);
    };
    if !engine.catalog.try_queued(&queued.ticket).await? {
        return Ok(true);
    }
    let mut op = records(&queued);
    let outcome = send(engine, &queued, &mut op).await;
    let kind = outcome.as_ref().map(|_| ()).map_err(|error| error.kind);
    let recorded = op.end(kind).await;
    match outcome {
        Ok(receipt) => {
            engine.spool.remove_queued(&queued.ticket, queued.size);
            tracing::info!(
                bucket = receipt.bucket,
                key = receipt.key,
                ticket = queued.ticket,
                message_id = receipt.message_id,
                "stored what was queued"
            );
            recorded?;
            engine.waiting.tell(&queued.ticket, Ok(Some(receipt)));
            Ok(true)
        }
        Err(error) if is_temporary(error.kind, queued.attempts) => {
            engine.waiting.tell(&queued.ticket, Ok(None));
            Err(error)
        }
        Err(error) => {
            let (kind, why) = (error.kind.slug(), &error.detail);
            tracing::error!(
                bucket = queued.bucket,
                key = queued.key,
                ticket = queued.ticket,
                kind,
                why,
                "a queued object is refused, and parked"
            );
            engine.catalog.park(&queued.ticket, kind, why).await?;
            drop(session);
            engine.waiting.tell(&queued.ticket, Err(error));
            Ok(true)
        }
    }
}

/// Whether it may be otherwise later, without anybody's doing.
fn is_temporary(kind: ErrorKind, attempts: u64) -> bool {
    match kind {
        ErrorKind::StoreAway
        | ErrorKind::Busy
        | ErrorKind::Conflict
        | ErrorKind::AuditFailed
        | ErrorKind::ShuttingDown => true,
        ErrorKind::StateFailed | ErrorKind::StoreFailed | ErrorKind::Internal => attempts < TRIES,
        _ => false,
    }
}

async fn send(engine: &Engine, queued: &Queued, op: &mut Op) -> Result<Receipt, Error> {
    let place = Place::new(&queued.bucket, &queued.key);
    let attributes: Attributes = serde_json::from_str(&queued.attributes)
        .map_err(|e| Error::new(ErrorKind::Internal, "its attributes cannot be read").log(e))?;
    // Sent before, and the answer may have been lost.
    let lost = match queued.attempts {
        0 => None,
        _ => stored_before(engine, queued, &place).await?,
    };
    let gone = |error: std::io::Error| {
        Error::new(
            ErrorKind::StateFailed,
            format!("its file in the spool cannot be read: {error}"),
        )
    };
    let (stored, entry, guard) = match lost {
        Some(stored) => {
            op.begin().await?;
            (stored, None, engine.lock_place(&place).await)
        }
        None => {
            check_newest(engine, queued).await?;
            let file = engine.spool.open_queued(&queued.ticket).map_err(gone)?;
            let sums = FileSums {
                size: queued.size,
                crc64: queued.crc64,
                sha256: queued.sha256.clone(),
            };
            if !file.is(sums).await.map_err(gone)? {
                return Err(Error::new(
                    ErrorKind::Altered,
                    "its file in the spool is not what was written: nothing of it was sent",
                )
                .hint(
                    "find out what the disk did; then drop the ticket, and store the object again",
                ));
            }
            if !attributes
                .metadata
                .iter()
                .any(|(n, _)| n == METADATA_HEADER)
            {
                let (id, header) = (&queued.message_id, &queued.header);
                write_header_slot(engine, &place, id, header, &attributes).await?;
            }
            let job = Sending {
                engine,
                queued,
                place: &place,
                attributes: &attributes,
                file,
            };
            match queued.size <= engine.settings.part_size {
                true => job.single(op).await?,
                false => job.multipart(op).await?,
            }
        }
    };
    let event = op.event();
    event.version_id.clone_from(&stored.version_id);
    event.checksum = Some(stored.checksum.clone());
    event.s3_request_id.clone_from(&stored.request_id);
    let receipt = Receipt {
        bucket: queued.bucket.clone(),
        key: queued.key.clone(),
        version_id: stored.version_id,
        etag: stored.etag,
        plaintext_size: queued.plaintext_size,
        stored_size: stored.size,
        checksum: stored.checksum,
        message_id: queued.message_id.clone(),
        wrapping_key: queued.wrapping_key.clone(),
        recipients: queued.recipients.clone(),
        missing_recipients: Vec::new(),
        created: queued.created,
    };
    let row = entry.as_ref().map(Entry::row);
    let ended = engine.spool.end_queued(&queued.ticket).await;
    ended.map_err(|e| spool_error(&e.into()))?;
    engine.catalog.record_queued(&receipt, queued, row).await?;
    if let Some(entry) = entry {
        entry.over();
    }
    drop(guard);
    Ok(receipt)
}

/// An object that was put there past the queue must not be replaced by an
/// older one.
async fn check_newest(engine: &Engine, queued: &Queued) -> Result<(), Error> {
    let known = engine.catalog.lookup(&queued.bucket, &queued.key).await?;
    match known {
        Some(known) if !known.deleted && known.receipt.created > queued.created => Err(Error::new(
            ErrorKind::AlreadyExists,
            "a newer object was stored there meanwhile, without the queue",
        )
        .hint("drop the ticket, or delete the newer object and retry")),
        _ => Ok(()),
    }
}

/// What the store has there, if it is this very message.
async fn stored_before(
    engine: &Engine,
    queued: &Queued,
    place: &Place,
) -> Result<Option<Stored>, Error> {
    let head = match engine.store.head(place, None).await {
        Ok(head) => head,
        Err(StoreError::NoSuchKey { .. }) => return Ok(None),
        Err(error) => return Err(store_error(&error)),
    };
    let ours = |(name, value): &(String, String)| {
        name == METADATA_MESSAGE_ID && *value == queued.message_id
    };
    if head.size != queued.size || !head.metadata.iter().any(ours) {
        return Ok(None);
    }
    let crc = data_encoding::BASE64.encode(&queued.crc64.to_be_bytes());
    let crc = format!("crc64nvme:{crc}");
    if let Some(theirs) = &head.checksum
        && theirs.starts_with("crc64nvme:")
        && *theirs != crc
    {
        return Ok(None);
    }
    Ok(Some(Stored {
        version_id: head.version_id,
        etag: head.etag,
        checksum: head.checksum.unwrap_or(crc),
        size: queued.size,
        request_id: head.request_id,
    }))
}

struct Sending<'e> {
    engine: &'e Engine,
    queued: &'e Queued,
    place: &'e Place,
    attributes: &'e Attributes,
    file: QueueReader,
}

type Sent<'e> = (Stored, Option<Entry<'e>>, tokio::sync::MutexGuard<'e, ()>);

impl<'e> Sending<'e> {
    async fn part(&self, at: u64, len: u64) -> Result<PartBody, Error> {
        let len = usize::try_from(len)
            .map_err(|_| Error::new(ErrorKind::Internal, "a part beyond the address space"))?;
        let buffer = self.engine.reserve_more(len).await?;
        let bytes = self.file.read(at, len, buffer).await.map_err(|e| {
            Error::new(
                ErrorKind::StateFailed,
                format!("its file in the spool cannot be read: {e}"),
            )
        })?;
        Ok(PartBody::Memory(bytes))
    }

    async fn single(&self, op: &mut Op) -> Result<Sent<'e>, Error> {
        let body = self.part(0, self.queued.size).await?;
        op.begin().await?;
        let guard = self.engine.lock_place(self.place).await;
        let stored = self.engine.store.put(self.place, self.attributes, body);
        let stored = stored.await.map_err(|e| store_error(&e))?;
        Ok((stored, None, guard))
    }

    async fn multipart(&self, op: &mut Op) -> Result<Sent<'e>, Error> {
        let engine = self.engine;
        let settings = &engine.settings;
        let entry = Entry::intend(engine, self.place).await?;
        let mut upload = engine
            .store
            .begin(self.place, self.attributes, settings.concurrency)
            .await
            .map_err(|e| store_error(&e))?;
        // Dropped on failure, the upload is aborted and its entry given up.
        engine
            .catalog
            .upload_begun(entry.row(), upload.id())
            .await?;
        let size = self.queued.size;
        let plan = PartPlan::known(size, settings.part_size, 1, settings.limits)
            .map_err(|e| store_error(&e))?;
        let mut cancel = engine.cancel.clone();
        let mut at = 0;
        while at < size {
            let len = plan.target(1).min(size - at);
            let body = unless(&mut cancel, self.part(at, len)).await?;
            let sent = async { upload.send(body).await.map_err(|e| store_error(&e)) };
            unless(&mut cancel, sent).await?;
            at += len;
        }
        let drained = async { upload.drained().await.map_err(|e| store_error(&e)) };
        unless(&mut cancel, drained).await?;
        op.begin().await?;
        let guard = engine.lock_place(self.place).await;
        let stored = upload.complete().await.map_err(|e| store_error(&e))?;
        Ok((stored, Some(entry), guard))
    }
}
