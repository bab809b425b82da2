//! A version's header, without reading the version where that can be helped.
//!
//! The catalogue has those of what this host stored. Metadata and slot 0 hold the exact header since the first release. They
//! are the store's to exchange, so they count only where this host's receipt
//! names their message for this very version; else the header is read from
//! the object, and no byte more (SECURITY rule 9).

use super::Listed;
use crate::api::{Error, ErrorKind, Receipt};
use crate::engine::Engine;
use crate::fault::{message_error, store_error};
use crate::message::{Header, MAX_SLOT, Parsed, Permit, header_slot_name};
use crate::store::{
    ByteRange, Head, METADATA_HEADER, METADATA_MESSAGE_ID, Place, Select, StoreError,
};

/// What is read first of an object whose header's length nobody tells, in
/// bytes. Ours are shorter, so this is for messages of other writers.
const GUESS: usize = 2 << 10;

/// A version's header, and what the store says of the version.
pub(super) struct Found {
    pub(super) header: Box<Header>,
    pub(super) head: Head,
}

/// The header of a version as this host wrote it, if what the store lists is
/// what the receipt says: then the store is asked for nothing. Only where no
/// version can be under Object Lock, of which a listing says nothing.
pub(super) async fn known(
    engine: &Engine,
    place: &Place,
    listed: &Listed,
) -> Result<Option<Found>, Error> {
    let Some((size, etag)) = &listed.stored else {
        return Ok(None);
    };
    let version = listed.version_id.as_deref();
    let bytes = engine
        .catalog
        .header(&place.bucket, &place.key, version, *size, etag)
        .await?;
    let header = bytes.and_then(|bytes| parse(&bytes).ok().flatten());
    Ok(header.map(|header| Found {
        header,
        head: Head::default(),
    }))
}

/// Finds the header of a version; `None` if it is no message, and none that
/// anybody knew as one.
pub(super) async fn find(
    engine: &Engine,
    place: &Place,
    version: Option<&str>,
) -> Result<Option<Found>, Error> {
    let head = engine
        .store
        .head(place, version)
        .await
        .map_err(|e| store_error(&e))?;
    let told = told(engine, place, &head).await?;
    if let Some(header) = &told {
        let id = header.message_id().to_string();
        let receipt = engine
            .catalog
            .message(&place.bucket, &place.key, &id)
            .await?;
        if receipt.is_some_and(|receipt| is_of(&receipt, &head)) {
            let header = Box::new(header.as_ref().clone());
            return Ok(Some(Found { header, head }));
        }
    }
    if is_away(&head) {
        return Err(Error::new(
            ErrorKind::Archived,
            "it is archived, and this host has no receipt that vouches for its header",
        )
        .hint("run rewrap on the host that stored it, or restore it first"));
    }
    let len = told.as_ref().map_or(GUESS, |header| header.len());
    let claimed = told.is_some() || metadata(&head, METADATA_MESSAGE_ID).is_some();
    let header = match read(engine, place, &head, version, len).await {
        Ok(header) => header,
        Err(error) if error.kind == ErrorKind::NotAMessage && !claimed => {
            let known = engine.catalog.lookup(&place.bucket, &place.key).await?;
            return match known {
                None => Ok(None),
                Some(_) => Err(error),
            };
        }
        Err(error) => return Err(error),
    };
    Ok(Some(Found { header, head }))
}

/// The header that metadata or slot 0 tell; nothing in it is verified.
async fn told(engine: &Engine, place: &Place, head: &Head) -> Result<Option<Box<Header>>, Error> {
    if let Some(text) = metadata(head, METADATA_HEADER) {
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).ok();
        return Ok(bytes.and_then(|bytes| parse(&bytes).ok().flatten()));
    }
    let Some(id) = metadata(head, METADATA_MESSAGE_ID) else {
        return Ok(None);
    };
    let settings = &engine.settings;
    let bucket = settings.slot_bucket(&place.bucket);
    let name = header_slot_name(&settings.keyslot_prefix, id);
    match engine.store.get_slot(bucket, &name, MAX_SLOT).await {
        Ok(bytes) => Ok(parse(&bytes)
            .ok()
            .flatten()
            .filter(|header| header.message_id().to_string() == id)),
        Err(error) if error.is_of_the_object() => Ok(None),
        Err(error) => Err(store_error(&error)),
    }
}

fn metadata<'a>(head: &'a Head, name: &str) -> Option<&'a str> {
    let pair = head.metadata.iter().find(|(key, _)| key == name);
    pair.map(|(_, value)| value.as_str())
}

/// A whole header; `None` if it goes on.
fn parse(bytes: &[u8]) -> Result<Option<Box<Header>>, Error> {
    match Header::parse(bytes, Permit::default()).map_err(|e| message_error(&e))? {
        Parsed::Header(header) => Ok(Some(header)),
        Parsed::NeedMore => Ok(None),
    }
}

/// Whether a receipt is that of this version.
fn is_of(receipt: &Receipt, head: &Head) -> bool {
    let null = |id: &Option<String>| id.clone().filter(|id| id != "null");
    receipt.stored_size == head.size && null(&receipt.version_id) == null(&head.version_id)
}

/// Whether its bytes cannot be read now.
fn is_away(head: &Head) -> bool {
    let archived = matches!(
        head.storage_class.as_deref(),
        Some("GLACIER" | "DEEP_ARCHIVE")
    );
    let restored = head
        .restore
        .as_deref()
        .is_some_and(|state| state.contains("ongoing-request=\"false\""));
    archived && !restored
}

async fn read(
    engine: &Engine,
    place: &Place,
    head: &Head,
    version: Option<&str>,
    len: usize,
) -> Result<Box<Header>, Error> {
    for len in [len, MAX_SLOT] {
        if head.size == 0 {
            break;
        }
        let select = Select {
            version_id: version.map(str::to_owned),
            range: Some(ByteRange::new(0, len as u64 - 1)),
            pin: None,
        };
        let (fetched, bytes) = match engine.store.fetch_bytes(place, select, len).await {
            Ok(read) => read,
            Err(StoreError::Changed) => {
                return Err(Error::new(ErrorKind::Conflict, "it was replaced meanwhile"));
            }
            Err(error) => return Err(store_error(&error)),
        };
        if let Some(header) = parse(&bytes)? {
            return Ok(header);
        }
        if bytes.len() as u64 == fetched.total_len {
            return Err(Error::new(
                ErrorKind::Truncated,
                "it ends inside its header",
            ));
        }
    }
    Err(Error::new(
        ErrorKind::NotAMessage,
        "it does not begin with a header",
    ))
}
