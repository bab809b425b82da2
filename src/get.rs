//! Read one object: fetch, verify, and release only what is verified.
//!
//! Order of proof: the header (commitment and tag, with a data key from the
//! token, whose EDK may stand in a keyslot), the place (encryption context), the catalogue (rollback), the
//! final frame (and with it the length) — and only then the first byte.

mod body;
mod plan;
mod proof;

pub use body::PlaintextBody;

use crate::api::{self, Error, ErrorKind, Receipt};
use crate::binding;
use crate::catalog::{CatalogError, Known, Standing};
use crate::engine::{Engine, Settings};
use crate::fault::{message_error, store_error};
use crate::message::{Header, Parsed, Permit};
use crate::store::{Buffer, ByteRange, Fetched, Pin, Place, Select};
use crate::unlock::{Unlocked, Via, unlock};

use std::ops::Range;
use std::sync::Arc;

/// Bytes fetched first when only the header is wanted: ours are below 2 KiB,
/// and a whole small object often fits.
const HEADER_FETCH: u64 = 16 << 10;
/// The longest header we read, SECURITY rule 4.
const MAX_HEADER: u64 = 64 << 10;

/// What part of the plaintext is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// From the first offset, to the second one inclusive if given.
    Span(u64, Option<u64>),
    /// The last so many bytes.
    Suffix(u64),
    /// Nothing but the facts.
    Facts,
}

/// A request to read one object.
pub struct GetRequest {
    /// Where.
    pub place: Place,
    /// Which version; the current one when absent.
    pub version_id: Option<String>,
    /// How much.
    pub wanted: Wanted,
    /// Open a message without our context pairs.
    pub allow_unbound: bool,
    /// Open a message without key commitment.
    pub allow_uncommitted: bool,
    /// The place a copied object is bound to.
    pub bound_to: Option<Place>,
    /// The rings whose keys may open it; any when absent.
    pub rings: Option<Vec<String>>,
}

impl GetRequest {
    /// The object whose record in the catalogue this one is held against: of
    /// a replica, the one that it replicates. What is said to be a copy of
    /// some other object is known under its own name only.
    #[must_use]
    pub fn home(&self, settings: &Settings) -> Place {
        match self.bound_to {
            Some(_) => self.place.clone(),
            None => settings.home(&self.place),
        }
    }
}

/// Facts about an opened object, all of them authenticated but for what S3
/// alone knows (version id, content type, storage class).
#[derive(Clone, Debug)]
pub struct Facts {
    /// Plaintext bytes of the whole object.
    pub plaintext_len: u64,
    /// The part of them that the body delivers.
    pub span: Range<u64>,
    /// The message id, hexadecimal.
    pub message_id: String,
    /// The wrapping key that opened it.
    pub wrapping_key: String,
    /// S3's version id.
    pub version_id: Option<String>,
    /// S3's content type.
    pub content_type: Option<String>,
    /// S3's modification time, RFC 3339.
    pub last_modified: Option<String>,
    /// What the catalogue says of the message.
    pub standing: api::Standing,
    /// S3's storage class.
    pub storage_class: Option<String>,
    /// The state of a copy restored from an archive class, in S3's words.
    pub restore: Option<String>,
    /// Another writer stored it.
    pub foreign: bool,
    /// The store's id of the request that brought the header.
    pub request_id: Option<String>,
}

/// Opens one object. The body has been proved to have the length that the
/// facts say; each of its bytes is verified before it is yielded.
///
/// # Errors
/// See docs/errors.md; nothing of the plaintext has left when this fails.
pub async fn get(
    engine: &Arc<Engine>,
    request: GetRequest,
) -> Result<(Facts, PlaintextBody), Error> {
    engine.check_reserved(&request.place)?;
    let whole = request.wanted == Wanted::Whole;
    // Before the first byte is asked for: what was current then is no
    // rollback, even if it is replaced while this request runs.
    let home = request.home(&engine.settings);
    let known = known(engine, &home).await?;
    let hint = known.as_ref().map(|known| known.receipt.stored_size);
    let first = if whole {
        let settings = &engine.settings;
        let part = settings.part_size + u64::from(settings.frame_length);
        hint.map_or(part, |size| size.clamp(1, part))
    } else {
        HEADER_FETCH
    };

    let mut window = Window::fetch(engine, &request, first).await?;
    let permit = Permit {
        uncommitted: request.allow_uncommitted,
    };
    let header = loop {
        match Header::parse(window.bytes(), permit).map_err(|e| message_error(&e))? {
            Parsed::Header(header) => break header,
            Parsed::NeedMore if window.is_whole() => {
                return Err(Error::new(
                    ErrorKind::Truncated,
                    "it ends inside its header",
                ));
            }
            Parsed::NeedMore if window.len() >= MAX_HEADER => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "its header is longer than 64 KiB",
                ));
            }
            Parsed::NeedMore => window = window.refetch(engine, &request, MAX_HEADER).await?,
        }
    };

    let place = request.bound_to.as_ref().unwrap_or(&home);
    let receipt = vouching(engine, &home, &header).await?;
    // A bucket's keyslots are replicated with its objects.
    let slots = match request.bound_to {
        Some(_) => &place.bucket,
        None => &request.place.bucket,
    };
    let Unlocked { opened, via } = unlock(
        engine,
        &header,
        place,
        slots,
        request.rings.as_deref(),
        receipt.is_some(),
    )
    .await?;
    // The data key goes here; what opens the body stays.
    let (opener, wrapping_key) = (opened.opener, opened.key);
    let created = binding::check(header.context(), place, request.allow_unbound)?;
    let named = request.version_id.is_some();
    let standing = check_standing(engine, &home, named, &header, created, known, &window.pin);
    let standing = standing.await.map_err(|error| match error.kind {
        ErrorKind::RolledBack if home != request.place => {
            error.hint("a replica may be behind its bucket: name its version to have what it holds")
        }
        _ => error,
    })?;

    let vouched = match via {
        Via::Compromised => receipt,
        Via::Header | Via::Slot(_) => None,
    };
    let read_twice = header.is_signed() || vouched.is_some();
    if read_twice && !matches!(request.wanted, Wanted::Whole | Wanted::Facts) {
        return Err(Error::new(
            ErrorKind::Range,
            "it is signed, or opens by a compromised key alone: it is verified as a whole, and ranges of it are not served",
        )
        .hint("fetch the whole object"));
    }
    let request_id = window.request_id.clone();
    let names_version = request.version_id.is_some();
    let sealed = proof::prove(engine, &request, window, Arc::new(opener), vouched).await?;
    let len = sealed.plaintext_len();
    let span = resolve(request.wanted, len)?;
    let facts = Facts {
        plaintext_len: len,
        span: span.clone(),
        message_id: header.message_id().to_string(),
        wrapping_key,
        version_id: sealed.pin().version_id.clone(),
        content_type: sealed.pin().content_type.clone(),
        last_modified: sealed.pin().last_modified.clone(),
        standing,
        storage_class: sealed.pin().storage_class.clone(),
        restore: sealed.pin().restore.clone(),
        // Whoever names a version is not warned of a new one.
        foreign: standing == api::Standing::Foreign && !names_version,
        request_id,
    };
    let body = PlaintextBody::new(engine.clone(), request.place, sealed, span);
    Ok((facts, body))
}

/// The receipt of what this host stored there last, if it is there still.
async fn known(engine: &Engine, place: &Place) -> Result<Option<Known>, Error> {
    let Place { bucket, key } = place;
    let known = engine.catalog.lookup(bucket, key).await;
    let known = known.map_err(|e| unreadable(&e))?;
    Ok(known.filter(|known| !known.deleted))
}

/// This host's receipt of exactly this message, where a compromised key may
/// have to be tried (SECURITY rule 10).
async fn vouching(
    engine: &Engine,
    place: &Place,
    header: &Header,
) -> Result<Option<Receipt>, Error> {
    if engine.keyring.search(header, None).compromised().is_empty() {
        return Ok(None);
    }
    let message_id = header.message_id().to_string();
    // Not what a rebuilt catalogue only found there.
    let found = engine
        .catalog
        .message(&place.bucket, &place.key, &message_id);
    found.await.map_err(|e| unreadable(&e))
}

fn unreadable(error: &CatalogError) -> Error {
    Error::new(ErrorKind::StateFailed, "the catalogue cannot be read").log(error)
}

/// SECURITY rule 6: what the catalogue says of the message, or that it is a
/// rollback. Whoever named a version meant that one: he is told, and served.
async fn check_standing(
    engine: &Engine,
    place: &Place,
    names_version: bool,
    header: &Header,
    created: u64,
    known: Option<Known>,
    pin: &Pin,
) -> Result<api::Standing, Error> {
    let message_id = header.message_id().to_string();
    if known.is_some_and(|known| !known.found && known.receipt.message_id == message_id) {
        return Ok(api::Standing::Current);
    }
    // What a rebuilt catalogue only found there has nobody's word.
    let ours = |standing| async move {
        let id = header.message_id().to_string();
        let catalog = &engine.catalog;
        let found = catalog.first_seen(&place.bucket, &place.key, &id);
        Ok(match found.await.map_err(|e| unreadable(&e))? {
            Some(_) => api::Standing::Unknown,
            None => standing,
        })
    };
    let classify = || async {
        engine
            .catalog
            .classify(&place.bucket, &place.key, &message_id, created)
            .await
            .map_err(|e| unreadable(&e))
    };
    let mut standing = classify().await?;
    if names_version {
        return match standing {
            Standing::Unknown => Ok(api::Standing::Unknown),
            Standing::Current(_) => ours(api::Standing::Current).await,
            Standing::Superseded { .. } => ours(api::Standing::Superseded).await,
            Standing::Older { .. } => Ok(api::Standing::Older),
            Standing::Newer => Ok(api::Standing::Foreign),
        };
    }
    if standing == Standing::Newer {
        // It may be one of our own that S3 has and whose receipt is being
        // written: its writer holds the place.
        let _guard = engine.lock_place(place).await;
        standing = classify().await?;
    }
    match standing {
        Standing::Unknown => Ok(api::Standing::Unknown),
        Standing::Current(_) => ours(api::Standing::Current).await,
        Standing::Superseded { .. } => Err(Error::new(
            ErrorKind::RolledBack,
            "the store serves a message that this agent has since replaced or deleted",
        )),
        Standing::Older { .. } => Err(Error::new(
            ErrorKind::RolledBack,
            "the store serves a message older than the one whose receipt this agent holds",
        )),
        Standing::Newer => {
            tracing::warn!(
                bucket = place.bucket,
                key = place.key,
                message_id,
                "foreign write"
            );
            let version = pin.version_id.as_deref();
            engine
                .catalog
                .record_foreign(&place.bucket, &place.key, &message_id, created, version)
                .await
                .map_err(|e| unreadable(&e))?;
            Ok(api::Standing::Foreign)
        }
    }
}

fn resolve(wanted: Wanted, len: u64) -> Result<Range<u64>, Error> {
    let span = match wanted {
        Wanted::Whole => return Ok(0..len),
        Wanted::Facts => return Ok(0..0),
        Wanted::Span(first, last) => {
            first..last.map_or(len, |last| last.saturating_add(1).min(len))
        }
        Wanted::Suffix(count) => len.saturating_sub(count)..len,
    };
    if span.start >= span.end {
        return Err(Error::new(
            ErrorKind::Range,
            format!("the object has {len} bytes"),
        ));
    }
    Ok(span)
}

/// The beginning of an object, as fetched.
struct Window {
    buffer: Buffer,
    pin: Pin,
    /// Bytes in S3.
    total: u64,
    request_id: Option<String>,
}

impl Window {
    async fn fetch(engine: &Engine, request: &GetRequest, len: u64) -> Result<Self, Error> {
        let mut buffer = engine
            .reserve(usize::try_from(len).unwrap_or(usize::MAX))
            .await?;
        let select = Select {
            version_id: request.version_id.clone(),
            range: Some(ByteRange::new(0, len - 1)),
            pin: None,
        };
        let fetched = engine
            .store
            .fetch(&request.place, select, &mut buffer)
            .await
            .map_err(|e| store_error(&e))?;
        let Fetched {
            pin,
            total_len,
            request_id,
            ..
        } = fetched;
        if total_len == 0 {
            return Err(Error::new(ErrorKind::Truncated, "it is empty"));
        }
        Ok(Self {
            buffer,
            pin,
            total: total_len,
            request_id,
        })
    }

    /// The same object's beginning again, longer.
    async fn refetch(self, engine: &Engine, request: &GetRequest, len: u64) -> Result<Self, Error> {
        drop(self.buffer);
        let mut buffer = engine
            .reserve(usize::try_from(len).unwrap_or(usize::MAX))
            .await?;
        let select = Select {
            version_id: request.version_id.clone(),
            range: Some(ByteRange::new(0, len - 1)),
            pin: Some(self.pin.clone()),
        };
        engine
            .store
            .fetch(&request.place, select, &mut buffer)
            .await
            .map_err(|e| store_error(&e))?;
        Ok(Self { buffer, ..self })
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.as_slice()
    }

    fn len(&self) -> u64 {
        self.buffer.len() as u64
    }

    fn is_whole(&self) -> bool {
        self.len() >= self.total
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_to_the_object_and_never_empty() {
        assert_eq!(resolve(Wanted::Span(0, Some(99)), 10).unwrap(), 0..10);
        assert_eq!(resolve(Wanted::Span(3, Some(3)), 10).unwrap(), 3..4);
        assert_eq!(resolve(Wanted::Span(3, None), 10).unwrap(), 3..10);
        assert_eq!(resolve(Wanted::Suffix(4), 10).unwrap(), 6..10);
        assert_eq!(resolve(Wanted::Suffix(40), 10).unwrap(), 0..10);
        assert_eq!(resolve(Wanted::Whole, 0).unwrap(), 0..0);
        for wanted in [
            Wanted::Span(10, None),
            Wanted::Suffix(0),
            Wanted::Span(u64::MAX, Some(u64::MAX)),
        ] {
            assert_eq!(resolve(wanted, 10).unwrap_err().kind, ErrorKind::Range);
        }
        assert_eq!(
            resolve(Wanted::Span(0, None), 0).unwrap_err().kind,
            ErrorKind::Range
        );
    }
}
