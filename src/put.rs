//! Store one object: read, seal in place, upload, record, acknowledge.
//!
//! One attempt has one data key, one message id and one header (SECURITY
//! rule 1). A part is sealed once and re-sent, if need be, from its buffered
//! ciphertext; nothing here reads the source twice.

mod journal;
mod orphans;
mod parts;
pub mod queue;
pub mod resume;

pub use orphans::sweep;
pub use parts::{Gate, Lent, SourceFile};

use bytes::Bytes;
use tokio::sync::watch;

use crate::api::{Error, ErrorKind, Receipt};
use crate::audit::Op;
use crate::binding;
use crate::config::Key;
use crate::engine::{Engine, Use};
use crate::fault::{message_error, store_error};
use crate::keyring::{self, Held};
use crate::message::{Draft, SealedHeader, Sealer, header_slot_name};
use crate::store::{
    Attributes, METADATA_HEADER, METADATA_MESSAGE_ID, PartBody, Place, StoreError, Stored, Upload,
};

use journal::Entry;
use parts::Assembly;

/// User metadata S3 stores with an object, in bytes, keys and values together
/// (S3 User Guide, "Working with object metadata").
const METADATA_LIMIT: usize = 2048;

/// What a put reads.
pub enum Source<'a, S> {
    /// Bytes as they come.
    Stream(&'a mut S),
    /// A file that the client passed open.
    File(&'a mut SourceFile),
}

/// Where streamed plaintext comes from: a request's body.
pub trait Plaintext: Send {
    /// Fills the beginning of `into` with at least one byte; 0 only at the
    /// end that the sender meant.
    fn read(&mut self, into: &mut [u8]) -> impl Future<Output = Result<usize, Error>> + Send;

    /// Whether that end has come; waits for a byte or the end.
    fn ended(&mut self) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// A request to store one object.
pub struct PutRequest {
    /// Where.
    pub place: Place,
    /// What S3 keeps beside it.
    pub attributes: Attributes,
    /// The client's pairs for the encryption context.
    pub context: Vec<(String, String)>,
    /// The ring whose active key wraps; the only ring when absent.
    pub ring: Option<String>,
    /// The rings that may be used; any when absent.
    pub rings: Option<Vec<String>>,
    /// Whether an object that is there may not be replaced.
    pub no_overwrite: bool,
    /// Plaintext bytes, when the client declared them.
    pub length: Option<u64>,
}

/// Stores one object and returns its receipt once it is durable. `op` is told
/// what is known of it, and begins before the request that makes the object
/// (SECURITY rule 28).
///
/// # Errors
/// Any failure leaves nothing in S3: no object, no multipart upload. The
/// first error is returned; an abort's own failure is logged.
pub async fn put<S: Plaintext>(
    engine: &Engine,
    mut request: PutRequest,
    source: Source<'_, S>,
    op: &mut Op,
) -> Result<Receipt, Error> {
    let (key, in_use) = check(engine, &mut request, op).await?;
    // The share of memory comes before anything that costs others something,
    // and the message's time after the wait for it.
    let mut assembly = Assembly::begin(engine, request.length).await?;
    let length = request.length;
    let Begun {
        place,
        attributes,
        header,
        sealer,
        message_id,
        held,
        created,
        needs_slot,
    } = begin(engine, request, key.as_ref(), op).await?;
    assembly.header(&header)?;

    let mut job = Job {
        engine,
        place,
        attributes,
        header,
        message_id,
        upload: None,
        entry: None,
        cancel: engine.cancel.clone(),
    };
    let outcome = job
        .run(assembly, sealer, source, length, needs_slot, op)
        .await;
    let (finished, stored, guard) = match outcome {
        Ok(done) => done,
        Err(error) => {
            if let Some(upload) = job.upload.take()
                && upload.abort().await
                && let Some(entry) = job.entry.take()
            {
                entry.forget().await;
            }
            // What is left in the journal is aborted in the background.
            return Err(error);
        }
    };

    let event = op.event();
    event.version_id.clone_from(&stored.version_id);
    event.stored_size = Some(stored.size);
    event.checksum = Some(stored.checksum.clone());
    event.s3_request_id.clone_from(&stored.request_id);
    let receipt = Receipt {
        bucket: job.place.bucket,
        key: job.place.key,
        version_id: stored.version_id,
        etag: stored.etag,
        plaintext_size: finished,
        stored_size: stored.size,
        checksum: stored.checksum,
        message_id: job.message_id,
        wrapping_key: held.wrapping_key,
        recipients: held.recipients,
        missing_recipients: held.missing,
        created,
    };
    record(engine, &receipt, &job.header, job.entry).await?;
    drop((guard, in_use));
    Ok(receipt)
}

/// Records a stored object, and that its upload is over.
async fn record(
    engine: &Engine,
    receipt: &Receipt,
    header: &[u8],
    entry: Option<Entry<'_>>,
) -> Result<(), Error> {
    let row = entry.as_ref().map(Entry::row);
    let recorded = engine.catalog.record_uploaded(receipt, header, row).await;
    recorded.map_err(|e| {
        Error::new(
            ErrorKind::StateFailed,
            "the object is in S3, but its receipt could not be recorded",
        )
        .log(e)
    })?;
    if let Some(entry) = entry {
        entry.over();
    }
    Ok(())
}

/// What may be refused before anything is waited for: the key that wraps, and
/// its use from here on.
async fn check(
    engine: &Engine,
    request: &mut PutRequest,
    op: &mut Op,
) -> Result<(Option<Key>, Option<Use>), Error> {
    op.check()?;
    engine.check_reserved(&request.place)?;
    engine.check_no_replica(&request.place)?;
    request.attributes.check().map_err(|e| store_error(&e))?;
    let key = wrapping_key(engine, request.ring.as_deref())?;
    let in_use = key.as_ref().map(|key| engine.uses.begin(&key.name));
    if let Some(key) = &key {
        keyring::permitted(key, request.rings.as_deref())?;
    }
    if request.no_overwrite {
        request.attributes.if_none_match = true;
        check_absent(engine, &request.place).await?;
    }
    // A dry run, for the client's mistakes.
    binding::context(&request.place, now_ms(), &request.context)?;
    Ok((key, in_use))
}

/// A message that is begun: its one header, and what seals its frames.
struct Begun {
    place: Place,
    /// With what of the message S3 keeps beside the object.
    attributes: Attributes,
    header: SealedHeader,
    sealer: Sealer,
    message_id: String,
    held: Held,
    created: u64,
    /// Whether the header goes into a slot, since metadata has no room.
    needs_slot: bool,
}

async fn begin(
    engine: &Engine,
    request: PutRequest,
    key: Option<&Key>,
    op: &mut Op,
) -> Result<Begun, Error> {
    let created = now_ms();
    let context = binding::context(&request.place, created, &request.context)?;
    let data_key = engine.keyring.fresh_data_key(key).await?;
    let mut draft = Draft::new(data_key, context, engine.settings.frame_length)
        .map_err(|e| message_error(&e))?;
    let held = engine.keyring.wrap(key, &mut draft).await?;
    let message_id = draft.message_id().to_string();
    let event = op.event();
    event.message_id = Some(message_id.clone());
    event.wrapping_key = Some(held.wrapping_key.clone());
    event.check_value = engine.keyring.check_value(&held.wrapping_key);
    event.recipients = (!held.recipients.is_empty()).then(|| held.recipients.clone());
    event.missing = (!held.missing.is_empty()).then(|| held.missing.clone());
    let (header, sealer) = draft.seal().map_err(|e| message_error(&e))?;
    let mut attributes = request.attributes;
    attributes
        .metadata
        .push((METADATA_MESSAGE_ID.to_owned(), message_id.clone()));
    let needs_slot = add_header_metadata(&mut attributes, &header);
    Ok(Begun {
        place: request.place,
        attributes,
        header,
        sealer,
        message_id,
        held,
        created,
        needs_slot,
    })
}

/// Puts the header into user metadata if it fits; true if it does not.
fn add_header_metadata(attributes: &mut Attributes, header: &[u8]) -> bool {
    let encoded = data_encoding::BASE64.encode(header);
    let pair = (METADATA_HEADER.to_owned(), encoded);
    let size = attributes.metadata_size() + pair.0.len() + pair.1.len();
    let fits = size <= METADATA_LIMIT;
    if fits {
        attributes.metadata.push(pair);
    }
    !fits
}

/// Slot 0: the exact header bytes, where they do not fit user metadata.
/// Written before the object, so that no object exists without one.
async fn write_header_slot(
    engine: &Engine,
    place: &Place,
    message_id: &str,
    header: &[u8],
    attributes: &Attributes,
) -> Result<(), Error> {
    let settings = &engine.settings;
    let bucket = settings.slot_bucket(&place.bucket);
    let name = header_slot_name(&settings.keyslot_prefix, message_id);
    let header = Bytes::copy_from_slice(header);
    let written = engine.store.put_slot(bucket, &name, header, attributes);
    written.await.map_err(|e| store_error(&e))
}

/// The ring's key; a write-only host needs none.
fn wrapping_key(engine: &Engine, ring: Option<&str>) -> Result<Option<Key>, Error> {
    match engine.keyring.active(ring) {
        Err(error)
            if ring.is_none()
                && error.kind == ErrorKind::Misconfigured
                && engine.keyring.is_write_only() =>
        {
            Ok(None)
        }
        key => key.map(Some),
    }
}

/// A store that ignores `If-None-Match` must not replace what is there; what
/// two writers do to each other at the same moment it still may.
async fn check_absent(engine: &Engine, place: &Place) -> Result<(), Error> {
    match engine.store.head(place, None).await {
        Ok(_) => Err(store_error(&StoreError::Exists)),
        Err(StoreError::NoSuchKey { .. }) => Ok(()),
        Err(error) => Err(store_error(&error)),
    }
}

struct Job<'e> {
    engine: &'e Engine,
    place: Place,
    attributes: Attributes,
    header: SealedHeader,
    message_id: String,
    upload: Option<Upload>,
    /// The upload's entry in the journal.
    entry: Option<Entry<'e>>,
    cancel: watch::Receiver<bool>,
}

type Done<'e> = (u64, Stored, tokio::sync::MutexGuard<'e, ()>);

impl<'e> Job<'e> {
    async fn run<S: Plaintext>(
        &mut self,
        mut assembly: Assembly<'e>,
        mut sealer: Sealer,
        mut source: Source<'_, S>,
        length: Option<u64>,
        needs_slot: bool,
        op: &mut Op,
    ) -> Result<Done<'e>, Error> {
        let mut cancel = self.cancel.clone();
        loop {
            let filled = assembly.fill(&mut source, sealer);
            let ended;
            (sealer, ended) = unless(&mut cancel, filled).await?;
            if ended {
                break;
            }
            if assembly.is_full() {
                let body = unless(&mut cancel, assembly.take_part()).await?;
                self.begin().await?;
                unless(&mut cancel, self.send(body)).await?;
                unless(&mut cancel, assembly.next_part()).await?;
            } else {
                unless(&mut cancel, assembly.make_room()).await?;
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
        op.event().plaintext_size = Some(finished);
        let last = unless(&mut cancel, assembly.take_part()).await?;

        if needs_slot {
            let Self {
                place,
                attributes,
                header,
                message_id,
                ..
            } = &*self;
            let slot = write_header_slot(self.engine, place, message_id, header, attributes);
            unless(&mut cancel, slot).await?;
        }
        let engine = self.engine;
        let place = self.place.clone();
        let lock = async { Ok(engine.lock_place(&place).await) };
        if self.upload.is_none() {
            op.begin().await?;
            let guard = unless(&mut cancel, lock).await?;
            let stored = engine
                .store
                .put(&self.place, &self.attributes, last)
                .await
                .map_err(|e| store_error(&e))?;
            return Ok((finished, stored, guard));
        }
        // Whatever may wait for others comes before the one request that
        // makes the object, and only that is not interrupted.
        unless(&mut cancel, self.send(last)).await?;
        unless(&mut cancel, self.drained()).await?;
        op.begin().await?;
        let guard = unless(&mut cancel, lock).await?;
        // `complete` consumes the upload and aborts it if it fails.
        let stored = match self.upload.take() {
            Some(upload) => upload.complete().await.map_err(|e| store_error(&e))?,
            None => return Err(Error::new(ErrorKind::Internal, "the upload vanished")),
        };
        Ok((finished, stored, guard))
    }

    /// Begins the multipart upload, once. Never interrupted: an upload that
    /// the store has begun and whose id nobody holds cannot be aborted.
    async fn begin(&mut self) -> Result<(), Error> {
        if self.upload.is_none() {
            let engine = self.engine;
            // Whatever ends this process, the next one finds the upload.
            self.entry = Some(Entry::intend(engine, &self.place).await?);
            let concurrency = engine.settings.concurrency;
            let begun = engine
                .store
                .begin(&self.place, &self.attributes, concurrency);
            let upload = match begun.await {
                Ok(upload) => upload,
                Err(error) => {
                    // A plain no has begun nothing.
                    if !error.is_doubtful()
                        && let Some(entry) = self.entry.take()
                    {
                        entry.forget().await;
                    }
                    return Err(store_error(&error));
                }
            };
            if let Some(entry) = &self.entry {
                let id = upload.id().to_owned();
                self.upload = Some(upload);
                engine.catalog.upload_begun(entry.row(), &id).await?;
            }
        }
        Ok(())
    }

    /// The upload stays in `self` while this works, so that `put` finds and
    /// aborts it if this is interrupted.
    async fn send(&mut self, body: PartBody) -> Result<(), Error> {
        match &mut self.upload {
            Some(upload) => upload.send(body).await.map_err(|e| store_error(&e)),
            None => Err(Error::new(ErrorKind::Internal, "the upload vanished")),
        }
    }

    async fn drained(&mut self) -> Result<(), Error> {
        match &mut self.upload {
            Some(upload) => upload.drained().await.map_err(|e| store_error(&e)),
            None => Ok(()),
        }
    }
}

/// `work`, unless the agent is told to stop first.
async fn unless<T>(
    cancel: &mut watch::Receiver<bool>,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::select! {
        biased;
        _ = cancel.wait_for(|stop| *stop) => Err(Error::new(
            ErrorKind::ShuttingDown,
            "the agent stopped before the upload was complete",
        )),
        done = work => done,
    }
}

/// Unix milliseconds.
fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
