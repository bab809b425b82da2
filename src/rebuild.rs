//! A catalogue that was lost, rebuilt from what the bucket can tell.
//!
//! Every version that the catalogue does not know is looked at: by HEAD, and
//! its header, whose data key a token unwraps and whose commitment and tag are
//! verified. What is good is remembered as first seen now, never as a receipt:
//! that it is the newest, and that nothing is missing, a bucket cannot prove
//! (docs/catalog.md).

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use tokio::sync::mpsc::Sender;

use crate::api::{
    Error, ErrorKind, RebuildLine, RebuildRequest, RebuildSummary, Receipt, VerifiedObject,
};
use crate::binding;
use crate::catalog::{Asked, CatalogError, Seen};
use crate::engine::Engine;
use crate::fault::store_error;
use crate::message::Header;
use crate::objects::{computed_size, read_header};
use crate::store::{ListedVersion, METADATA_MESSAGE_ID, Place};
use crate::unlock::{Unlocked, unlock};

/// Versions looked at at once: enough to hide the store's latency, and fewer
/// than a token has sessions.
const AT_ONCE: usize = 8;

/// What became of a version.
enum Outcome {
    /// It was known.
    Known,
    /// It is remembered from now on.
    Recorded,
    /// It is none of ours, and why.
    Refused(&'static str, String),
}

/// Looks at everything under a prefix; tells what is not remembered and why,
/// then the sum. A receiver that goes away ends it. Doing it again is
/// harmless, and goes on where it broke off.
///
/// # Errors
/// The store, the token or the catalogue is away.
pub async fn rebuild(
    engine: &Arc<Engine>,
    request: &RebuildRequest,
    lines: &Sender<RebuildLine>,
) -> Result<RebuildSummary, Error> {
    let left = |_| Error::new(ErrorKind::Incomplete, "the client left before the end");
    let mut sum = RebuildSummary::default();
    let mut after = None;
    loop {
        let store = &engine.store;
        let page = store
            .list_versions(&request.bucket, &request.prefix, after.as_ref())
            .await;
        let page = page.map_err(|e| store_error(&e))?;
        // The oldest of a key first, as they were stored.
        let versions = page.versions.into_iter().rev();
        let versions = versions.filter(|version| {
            !version.delete_marker && !engine.is_reserved(&request.bucket, &version.key)
        });
        let looks = versions.map(|version| async move {
            let outcome = look(engine, request, &version).await;
            (version, outcome)
        });
        let mut looks = stream::iter(looks).buffered(AT_ONCE);
        while let Some((version, outcome)) = looks.next().await {
            sum.listed += 1;
            match outcome? {
                Outcome::Known => sum.known += 1,
                Outcome::Recorded => sum.recorded += 1,
                Outcome::Refused(result, detail) => {
                    sum.refused += 1;
                    let object = VerifiedObject {
                        bucket: request.bucket.clone(),
                        key: version.key,
                        version_id: version.version_id,
                        result: result.to_owned(),
                        detail,
                    };
                    lines
                        .send(RebuildLine::Object(object))
                        .await
                        .map_err(left)?;
                }
            }
        }
        let so_far = RebuildLine::Progress { listed: sum.listed };
        lines.send(so_far).await.map_err(left)?;
        match page.next {
            None => return Ok(sum),
            next if next == after => {
                return Err(Error::new(
                    ErrorKind::StoreFailed,
                    "the store's listing goes round in a circle",
                ));
            }
            next => after = next,
        }
    }
}

async fn look(
    engine: &Engine,
    request: &RebuildRequest,
    listed: &ListedVersion,
) -> Result<Outcome, Error> {
    let place = Place::new(&request.bucket, &listed.key);
    let asked = vec![Asked {
        key: listed.key.clone(),
        version_id: listed.version_id.clone(),
        size: listed.size,
        etag: listed.etag.clone(),
    }];
    let known = engine.catalog.compare(&place.bucket, asked).await;
    let known = known.map_err(|e| unrecorded(&e))?.pop().unwrap_or_default();
    if known.version.is_some() || known.twin.is_some() {
        return Ok(Outcome::Known);
    }
    match seen(engine, request, &place, listed).await {
        Ok(seen) => match engine.catalog.record_seen(seen).await {
            Ok(true) => Ok(Outcome::Recorded),
            Ok(false) => Ok(Outcome::Known),
            Err(error) => Err(unrecorded(&error)),
        },
        Err(error) => match error.kind {
            // Deleted since it was listed.
            ErrorKind::NoSuchObject => Ok(Outcome::Known),
            ErrorKind::Archived => Ok(Outcome::Refused("archived", error.detail)),
            kind if kind.status() == 422 => Ok(Outcome::Refused(kind.slug(), error.detail)),
            _ => Err(error),
        },
    }
}

async fn seen(
    engine: &Engine,
    request: &RebuildRequest,
    place: &Place,
    listed: &ListedVersion,
) -> Result<Seen, Error> {
    let version = listed.version_id.as_deref();
    let head = engine.store.head(place, version).await;
    let head = head.map_err(|e| store_error(&e))?;
    let header = read_header(engine, place, listed.version_id.clone()).await?;
    let created = binding::check(header.context(), place, false)?;
    let wrapping_key = if request.unverified {
        holders(&header).into_iter().next().unwrap_or_default()
    } else {
        let Unlocked { opened, .. } =
            unlock(engine, &header, place, &place.bucket, None, false).await?;
        opened.key
    };
    let message_id = header.message_id().to_string();
    let mut told = head.metadata.iter();
    let told = told.find(|(name, _)| name == METADATA_MESSAGE_ID);
    if told.is_some_and(|(_, id)| *id != message_id) {
        return Err(Error::new(
            ErrorKind::Altered,
            "its metadata names another message than its header",
        ));
    }
    let plaintext_size = computed_size(&header, head.size).ok_or_else(|| {
        Error::new(
            ErrorKind::Truncated,
            "no message with this header has its length",
        )
    })?;
    let mut recipients = holders(&header);
    recipients.retain(|name| *name != wrapping_key);
    Ok(Seen {
        latest: listed.is_latest,
        receipt: Receipt {
            bucket: place.bucket.clone(),
            key: place.key.clone(),
            version_id: listed.version_id.clone().or(head.version_id),
            etag: head.etag,
            plaintext_size,
            stored_size: head.size,
            checksum: head.checksum.unwrap_or_default(),
            message_id,
            wrapping_key,
            recipients,
            missing_recipients: Vec::new(),
            created,
        },
    })
}

/// Who holds the data key, by the header's word.
fn holders(header: &Header) -> Vec<String> {
    let names = header.edks().iter().filter_map(|edk| {
        let aes = edk.raw_aes_parts().map(|parts| parts.key_name.to_owned());
        aes.or_else(|| edk.raw_rsa_parts().map(|parts| parts.key_name.to_owned()))
    });
    // The catalogue separates them by commas, which no name of ours has.
    names.filter(|name| !name.contains(',')).collect()
}

fn unrecorded(error: &CatalogError) -> Error {
    Error::new(
        ErrorKind::StateFailed,
        "the catalogue cannot be read or written",
    )
    .log(error)
}
