//! Objects in archive classes, and versions: what is looked at before
//! something is read back.

use crate::api::{ArchiveState, Availability, Error, ErrorKind, Tier, VersionEntry, VersionList};
use crate::audit::Event;
use crate::engine::Engine;
use crate::fault::store_error;
use crate::store::{Head, Place, VersionMarker};

/// Days that a restored copy stays, unless somebody says otherwise: long
/// enough for a second attempt after a weekend.
pub const DEFAULT_DAYS: i32 = 7;
/// The most that are taken; who wants to keep it longer copies the object.
pub const MAX_DAYS: i32 = 365;

/// What a head says of an object's readability.
#[must_use]
pub fn archive_state(head: &Head) -> ArchiveState {
    let (state, until) = head.availability();
    ArchiveState {
        state,
        asked: false,
        storage_class: head.storage_class.clone(),
        until,
    }
}

/// Asks the store for an archived object, unless it can be read, or was asked
/// for, already.
///
/// # Errors
/// The store refuses.
pub async fn ask_for(
    engine: &Engine,
    place: &Place,
    version: Option<&str>,
    tier: Tier,
    days: i32,
    event: &mut Event,
) -> Result<ArchiveState, Error> {
    engine.check_reserved(place)?;
    let head = engine
        .store
        .head(place, version)
        .await
        .map_err(|e| store_error(&e))?;
    event.s3_request_id.clone_from(&head.request_id);
    event.stored_size = Some(head.size);
    let mut state = archive_state(&head);
    if state.state != Availability::Archived {
        return Ok(state);
    }
    // Intelligent-Tiering keeps what it brings back, and takes no days.
    let days = head.archive_status.is_none().then_some(days);
    let asked = engine
        .store
        .ask_for(place, version, tier, days)
        .await
        .map_err(|e| store_error(&e))?;
    event.s3_request_id = asked.request_id;
    state.asked = asked.begun;
    state.state = match asked.readable {
        true => Availability::Readable,
        false => Availability::Restoring,
    };
    Ok(state)
}

/// One page of the versions of a bucket's objects, without the reserved
/// prefix.
///
/// # Errors
/// The store refuses, the prefix is reserved, or the continuation is none of
/// ours.
pub async fn versions(
    engine: &Engine,
    bucket: &str,
    prefix: &str,
    continuation: Option<&str>,
) -> Result<VersionList, Error> {
    engine.check_reserved(&Place::new(bucket, prefix))?;
    let after = continuation.map(marker).transpose()?;
    let page = engine
        .store
        .list_versions(bucket, prefix, after.as_ref())
        .await
        .map_err(|e| store_error(&e))?;
    let versions = page
        .versions
        .into_iter()
        .filter(|version| !engine.is_reserved(bucket, &version.key))
        .map(|version| VersionEntry {
            key: version.key,
            version_id: version.version_id,
            is_latest: version.is_latest,
            delete_marker: version.delete_marker,
            stored_size: version.size,
            last_modified: version.last_modified.unwrap_or_default(),
            storage_class: version.storage_class,
        })
        .collect();
    Ok(VersionList {
        versions,
        continuation: page.next.as_ref().map(continue_behind),
    })
}

/// A place in the listing as one word of a query: key, NUL, version.
fn continue_behind(marker: &VersionMarker) -> String {
    let version = marker.version_id.as_deref().unwrap_or_default();
    let text = format!("{}\0{version}", marker.key);
    data_encoding::BASE64URL_NOPAD.encode(text.as_bytes())
}

fn marker(text: &str) -> Result<VersionMarker, Error> {
    data_encoding::BASE64URL_NOPAD
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| {
            let (key, version) = text.split_once('\0')?;
            Some(VersionMarker {
                key: key.to_owned(),
                version_id: Some(version.to_owned()).filter(|id| !id.is_empty()),
            })
        })
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Malformed,
                "continuation is not from a former page",
            )
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_continuation_names_a_place_and_nothing_else_does() {
        for (key, version) in [("a/b ü", Some("v1")), ("a", None)] {
            let place = VersionMarker {
                key: key.to_owned(),
                version_id: version.map(str::to_owned),
            };
            assert_eq!(marker(&continue_behind(&place)).unwrap(), place);
        }
        for bad in ["", "!", "YQ"] {
            assert!(marker(bad).is_err(), "{bad}");
        }
    }
}
