//! Where the versions come from: the store's listing, or a list of the
//! client's (an S3 Inventory).

use std::sync::Arc;

use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};

use super::{Run, Shard};
use crate::api::{Error, ErrorKind, RewrapItem};
use crate::fault::store_error;
use crate::store::{ListedVersion, VersionMarker};

/// A client's list.
pub type Items = BoxStream<'static, Result<RewrapItem, Error>>;

/// A version to be rewrapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The object's key.
    pub key: String,
    /// Its version, where there are versions.
    pub version_id: Option<String>,
    /// Its number in the list.
    pub position: u64,
    /// Its size and entity tag, where the store listed it.
    pub stored: Option<(u64, String)>,
}

pub(super) type List = BoxStream<'static, Result<Listed, Error>>;

/// All versions that the store lists behind `after`, those of this shard.
pub(super) fn stored(after: &str, prefix: String, run: Arc<Run>, shard: Shard) -> List {
    let begin = (!after.is_empty()).then(|| VersionMarker::behind(after));
    let listing = run.clone();
    let pages = futures_util::stream::try_unfold((begin, false), move |(marker, ended)| {
        let (run, prefix) = (listing.clone(), prefix.clone());
        async move {
            if ended {
                return Ok::<_, Error>(None);
            }
            let store = &run.engine.store;
            let page = store.list_versions(&run.bucket, &prefix, marker.as_ref());
            let page = page.await.map_err(|e| store_error(&e))?;
            let ended = page.next.is_none();
            Ok(Some((page.versions, (page.next, ended))))
        }
    });
    pages
        .map_ok(move |versions| {
            let run = run.clone();
            let ours = move |version: &ListedVersion| {
                !version.delete_marker && takes(&run, shard, &version.key)
            };
            let listed = versions.into_iter().filter(ours).map(|version| {
                Ok(Listed {
                    key: version.key,
                    version_id: version.version_id,
                    position: 0,
                    stored: version.etag.map(|etag| (version.size, etag)),
                })
            });
            futures_util::stream::iter(listed)
        })
        .try_flatten()
        .boxed()
}

/// A client's list from item number `from` on, those of this shard.
pub(super) fn given(items: Items, from: u64, run: Arc<Run>, shard: Shard) -> List {
    let mut position = 0_u64;
    items
        .map(move |item| {
            let at = position;
            position += 1;
            item.map(|item| Listed {
                key: item.key,
                version_id: item.version_id.filter(|id| !id.is_empty()),
                position: at,
                stored: None,
            })
        })
        .try_filter(move |listed| {
            let ours = listed.position >= from && takes(&run, shard, &listed.key);
            std::future::ready(ours)
        })
        .boxed()
}

/// Refuses what a grant for `prefix` does not cover.
///
/// # Errors
/// [`ErrorKind::Forbidden`].
pub fn check_item(item: &RewrapItem, prefix: &str) -> Result<(), Error> {
    if item.key.starts_with(prefix) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Forbidden,
        format!(
            "the list names {:?}, which is not under {prefix:?}",
            item.key
        ),
    ))
}

fn takes(run: &Run, shard: Shard, key: &str) -> bool {
    shard.has(key) && !run.engine.is_reserved(&run.bucket, key)
}
