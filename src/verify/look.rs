//! Looking closer at one object: again under the place's lock, so that what
//! is being stored or deleted meanwhile is no finding; at its header, to name
//! what stands there; and at all of it.

use std::sync::Arc;

use super::finding::Finding;
use super::judge::{self, Verdict, absent, compare, judge};
use crate::api::{Error, ErrorKind, Receipt};
use crate::binding::{CONTEXT_BUCKET, CONTEXT_CREATED, CONTEXT_KEY};
use crate::catalog::{Asked, CatalogError, Match, Record, Standing};
use crate::engine::Engine;
use crate::fault::store_error;
use crate::get::{GetRequest, Wanted, get};
use crate::objects::read_header;
use crate::store::{Head, ListedVersion, Place, StoreError};

/// What is wrong, and how that shows.
pub(super) type Found = Option<(Finding, String)>;

/// What is known of one listed version.
pub(super) async fn known(
    engine: &Engine,
    bucket: &str,
    listed: &ListedVersion,
) -> Result<Match, Error> {
    let asked = vec![asked(listed)];
    let found = engine.catalog.compare(bucket, asked).await;
    Ok(found.map_err(unread)?.pop().unwrap_or_default())
}

pub(super) fn asked(listed: &ListedVersion) -> Asked {
    Asked {
        key: listed.key.clone(),
        version_id: listed.version_id.clone(),
        size: listed.size,
        etag: listed.etag.clone(),
    }
}

/// Judges a version again while nobody on this host changes its place: by the
/// catalogue and the store as they are now. Also tells what it judged.
pub(super) async fn again(
    engine: &Engine,
    place: &Place,
    listed: &ListedVersion,
) -> Result<(Verdict, ListedVersion), Error> {
    let _guard = engine.lock_place(place).await;
    let found = known(engine, &place.bucket, listed).await?;
    // As long as the catalogue knows nothing there, what is there is extra.
    let unknown = match listed.is_latest {
        true => !listed.delete_marker && found.place.is_none(),
        false => found.version.is_none(),
    };
    if unknown {
        return Ok((judge(listed, &found), listed.clone()));
    }
    let version = listed.version_id.as_deref().filter(|_| !listed.is_latest);
    match engine.store.head(place, version).await {
        Ok(head) => {
            let now = as_listed(&head, listed, &found);
            let found = known(engine, &place.bucket, &now).await?;
            Ok((judge(&now, &found), now))
        }
        Err(StoreError::NoSuchKey { .. } | StoreError::NoSuchVersion { .. }) => {
            let verdict = match (listed.is_latest, listed.delete_marker) {
                (true, true) => judge(listed, &found),
                (true, false) => absent(&found, false),
                // It was deleted since it was listed.
                (false, _) => Verdict::default(),
            };
            Ok((verdict, listed.clone()))
        }
        Err(error) => Err(store_error(&error)),
    }
}

fn as_listed(head: &Head, listed: &ListedVersion, found: &Match) -> ListedVersion {
    // Not every store tells the version of what it serves as the current one:
    // it is then told by its bytes, which no two messages share.
    let by_bytes = || {
        let current = found.place.as_ref()?.current.as_ref()?;
        if (head.size, &head.etag) == (listed.size, &listed.etag) && !listed.delete_marker {
            return listed.version_id.clone();
        }
        let same = head.etag.is_some() && current.is_like(head.size, head.etag.as_deref());
        current.receipt.version_id.clone().filter(|_| same)
    };
    ListedVersion {
        key: listed.key.clone(),
        version_id: match listed.is_latest {
            true => head.version_id.clone().or_else(by_bytes),
            false => listed.version_id.clone(),
        }
        .filter(|id| !listed.is_latest || id != "null"),
        is_latest: listed.is_latest,
        delete_marker: false,
        size: head.size,
        etag: head.etag.clone(),
        last_modified: head.last_modified.clone(),
        storage_class: head.storage_class.clone(),
    }
}

/// Whether an older version that was not listed is gone.
pub(super) async fn version_gone(
    engine: &Engine,
    place: &Place,
    version: &str,
) -> Result<Found, Error> {
    let _guard = engine.lock_place(place).await;
    let listed = ListedVersion {
        key: place.key.clone(),
        version_id: Some(version.to_owned()),
        ..ListedVersion::default()
    };
    let found = known(engine, &place.bucket, &listed).await?;
    let Some(record) = found.version.filter(|record| !record.removed) else {
        return Ok(None);
    };
    match engine.store.head(place, Some(version)).await {
        Ok(_) => Ok(None),
        Err(StoreError::NoSuchKey { .. } | StoreError::NoSuchVersion { .. }) => Ok(Some((
            Finding::VersionMissing,
            format!(
                "the version {version} is not in the bucket; {}",
                judge::since(&record, "this host stored it on")
            ),
        ))),
        Err(error) => Err(store_error(&error)),
    }
}

/// Compares one version with what the store tells of it by HEAD. The second is
/// whether there was a checksum to compare; `None` if the version went away.
pub(super) async fn by_head(
    engine: &Engine,
    place: &Place,
    version: Option<&str>,
    record: &Record,
) -> Result<Option<(Found, bool)>, Error> {
    match engine.store.head(place, version).await {
        Ok(head) => Ok(Some(compare(&head, record))),
        Err(StoreError::NoSuchKey { .. } | StoreError::NoSuchVersion { .. }) => Ok(None),
        Err(error) => Err(store_error(&error)),
    }
}

/// Names what stands at a place by its header, which nothing has
/// authenticated: `found` is what the listing made of it.
pub(super) async fn by_header(
    engine: &Engine,
    place: &Place,
    listed: &ListedVersion,
    found: (Finding, String),
) -> Result<(Finding, String), Error> {
    let header = match read_header(engine, place, listed.version_id.clone()).await {
        Ok(header) => header,
        Err(error) => {
            return match error.kind {
                ErrorKind::NotAMessage | ErrorKind::Truncated | ErrorKind::Unsupported => {
                    Ok(match found.0 {
                        Finding::Extra => (Finding::Extra, error.detail),
                        _ => (Finding::Replaced, error.detail),
                    })
                }
                ErrorKind::NoSuchObject | ErrorKind::Archived => Ok(found),
                _ => Err(error),
            };
        }
    };
    let pair = |name| header.context().get(name).map(str::to_owned);
    match (pair(CONTEXT_BUCKET), pair(CONTEXT_KEY)) {
        (Some(bucket), Some(key)) if bucket == place.bucket && key == place.key => {}
        (Some(bucket), Some(key)) => {
            let detail = format!("it belongs at {}", Place::new(bucket, key));
            return Ok((Finding::Swapped, detail));
        }
        _ if found.0 == Finding::Extra => return Ok(found),
        _ => return Ok((Finding::Replaced, "it is bound to no place".to_owned())),
    }
    let id = header.message_id().to_string();
    let created = pair(CONTEXT_CREATED).and_then(|ms| ms.parse().ok());
    let standing =
        engine
            .catalog
            .classify(&place.bucket, &place.key, &id, created.unwrap_or_default());
    Ok(match standing.await.map_err(unread)? {
        Standing::Unknown => found,
        Standing::Current(receipt) if receipt.stored_size != listed.size => (
            Finding::Truncated,
            format!(
                "the message is the right one, but it has {} bytes and the receipt {}",
                listed.size, receipt.stored_size
            ),
        ),
        Standing::Current(_) if found.0 == Finding::Altered => found,
        Standing::Current(receipt) if other_checksum(engine, place, listed, &receipt).await? => (
            Finding::Altered,
            "the header is the right one, and the checksum is not the receipt's".to_owned(),
        ),
        Standing::Current(_) => (
            Finding::ReUploaded,
            "the message is the right one, and somebody stored it again".to_owned(),
        ),
        Standing::Superseded { .. } => (
            Finding::RolledBack,
            "it is a message that this host has since replaced or deleted".to_owned(),
        ),
        Standing::Older { .. } => (
            Finding::RolledBack,
            "it is a message older than the one whose receipt this host holds".to_owned(),
        ),
        Standing::Newer => (
            Finding::Foreign,
            format!("another writer's message {id}, newer than this host's"),
        ),
    })
}

/// Whether the store tells a checksum of the receipt's kind that is another.
async fn other_checksum(
    engine: &Engine,
    place: &Place,
    listed: &ListedVersion,
    receipt: &Receipt,
) -> Result<bool, Error> {
    match engine.store.head(place, listed.version_id.as_deref()).await {
        Ok(head) => Ok(judge::told(&head, receipt).is_some_and(|told| *told != receipt.checksum)),
        Err(StoreError::NoSuchKey { .. } | StoreError::NoSuchVersion { .. }) => Ok(false),
        Err(error) => Err(store_error(&error)),
    }
}

/// Reads and authenticates all of a version, and keeps nothing of it. Says
/// what is wrong; `Err` where nothing can be said of it now.
pub(super) async fn by_reading(
    engine: &Arc<Engine>,
    place: &Place,
    listed: &ListedVersion,
    rings: Option<Vec<String>>,
    record: Option<&Record>,
) -> Result<Found, Error> {
    let request = GetRequest {
        place: place.clone(),
        version_id: listed.version_id.clone().filter(|_| !listed.is_latest),
        wanted: Wanted::Whole,
        allow_unbound: false,
        allow_uncommitted: false,
        bound_to: None,
        rings,
    };
    let read = async {
        let (facts, mut body) = get(engine, request).await?;
        let mut length = 0;
        while let Some(bytes) = body.next().await {
            length += bytes?.len() as u64;
        }
        Ok::<_, Error>((facts, length))
    };
    let (facts, length) = match read.await {
        Ok(read) => read,
        Err(error) => return of_failure(error),
    };
    let Some(record) = record else {
        return Ok(facts.foreign.then(|| {
            let detail = "another writer's message, newer than this host's";
            (Finding::Foreign, detail.to_owned())
        }));
    };
    let receipt = &record.receipt;
    if facts.message_id != receipt.message_id {
        let detail = format!(
            "its message is {}, and the receipt's {}",
            facts.message_id, receipt.message_id
        );
        return Ok(Some((Finding::Replaced, detail)));
    }
    // Where a rebuilt catalogue could only compute it, this is the first time
    // that it is proved; it must be the same all the same.
    if length != receipt.plaintext_size || facts.plaintext_len != length {
        let detail = format!(
            "its plaintext has {length} bytes, and the receipt {}",
            receipt.plaintext_size
        );
        return Ok(Some((Finding::WrongSize, detail)));
    }
    Ok(None)
}

fn of_failure(error: Error) -> Result<Found, Error> {
    let finding = match error.kind {
        ErrorKind::Altered => Finding::Altered,
        ErrorKind::Truncated => Finding::Truncated,
        ErrorKind::Elsewhere => Finding::Swapped,
        ErrorKind::RolledBack => Finding::RolledBack,
        ErrorKind::NoKey => Finding::Unreadable,
        ErrorKind::NotAMessage
        | ErrorKind::Unbound
        | ErrorKind::Uncommitted
        | ErrorKind::Unsupported => Finding::Replaced,
        _ => return Err(error),
    };
    Ok(Some((finding, error.detail)))
}

pub(super) fn unread(error: CatalogError) -> Error {
    Error::new(ErrorKind::StateFailed, "the catalogue cannot be read").log(error)
}
