//! Listing every version of every object, a page at a time.

use aws_sdk_s3::types::EncodingType;

use super::error::classify;
use super::list::decode;
use super::object::instant;
use super::{Place, Store, StoreError};

/// Most entries of a page (S3 API reference, ListObjectVersions).
const MAX_PAGE: i32 = 1000;

/// The version id of objects that were stored while their bucket had no
/// versioning (S3 User Guide, "How S3 Versioning works").
const NULL: &str = "null";

/// A page of versions: an object's stand together, its newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionPage {
    /// Versions and delete markers, in the store's order of keys.
    pub versions: Vec<ListedVersion>,
    /// Where the next page begins; absent on the last.
    pub next: Option<VersionMarker>,
}

/// A version of an object in a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedVersion {
    /// The object's key.
    pub key: String,
    /// How to ask for it; absent where the bucket has no versions.
    pub version_id: Option<String>,
    /// Whether it is what a read without a version id gets.
    pub is_latest: bool,
    /// A mark of deletion, which has no bytes.
    pub delete_marker: bool,
    /// Its bytes, as stored.
    pub size: u64,
    /// Its entity tag, quotes included.
    pub etag: Option<String>,
    /// When it was stored, RFC 3339.
    pub last_modified: Option<String>,
    /// Its storage class.
    pub storage_class: Option<String>,
}

/// A place in a listing of versions: what stands behind it comes next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionMarker {
    /// Behind this key, or behind one of its versions.
    pub key: String,
    /// That version.
    pub version_id: Option<String>,
}

impl VersionMarker {
    /// Behind all versions of a key.
    #[must_use]
    pub fn behind(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            version_id: None,
        }
    }
}

impl Store {
    /// A page of the versions of all objects under `prefix`, delete markers
    /// included, from behind `after`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn list_versions(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&VersionMarker>,
    ) -> Result<VersionPage, StoreError> {
        let place = Place::new(bucket, prefix);
        let answer = self
            .inner
            .client
            .list_object_versions()
            .bucket(bucket)
            .prefix(prefix)
            .max_keys(MAX_PAGE)
            .set_key_marker(after.map(|marker| marker.key.clone()))
            .set_version_id_marker(after.and_then(|marker| marker.version_id.clone()))
            // XML cannot hold every character that a key may have.
            .encoding_type(EncodingType::Url)
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await
            .map_err(|e| classify("ListObjectVersions", &place, e))?;
        let encoded = answer.encoding_type() == Some(&EncodingType::Url);
        let mut versions = Vec::new();
        for version in answer.versions() {
            let is_latest = version.is_latest().unwrap_or(false);
            versions.push(ListedVersion {
                key: decode(version.key().unwrap_or_default(), encoded)?,
                version_id: asked_for(version.version_id(), is_latest),
                is_latest,
                delete_marker: false,
                size: version
                    .size()
                    .and_then(|n| u64::try_from(n).ok())
                    .unwrap_or_default(),
                etag: version.e_tag().map(str::to_owned),
                last_modified: version.last_modified().and_then(instant),
                storage_class: version.storage_class().map(|c| c.as_str().to_owned()),
            });
        }
        for marker in answer.delete_markers() {
            let is_latest = marker.is_latest().unwrap_or(false);
            versions.push(ListedVersion {
                key: decode(marker.key().unwrap_or_default(), encoded)?,
                version_id: asked_for(marker.version_id(), is_latest),
                is_latest,
                delete_marker: true,
                last_modified: marker.last_modified().and_then(instant),
                ..ListedVersion::default()
            });
        }
        // Two lists in the answer, one in ours: in the order of keys, each
        // list's own order kept within a key.
        versions.sort_by(|a, b| a.key.cmp(&b.key));
        let next = match answer.next_key_marker().filter(|key| !key.is_empty()) {
            Some(key) if answer.is_truncated() == Some(true) => Some(VersionMarker {
                key: decode(key, encoded)?,
                version_id: answer
                    .next_version_id_marker()
                    .filter(|id| !id.is_empty())
                    .map(str::to_owned),
            }),
            None if answer.is_truncated() == Some(true) => {
                return Err(StoreError::corrupt(
                    "a listing of versions goes on and does not say where",
                ));
            }
            _ => None,
        };
        Ok(VersionPage { versions, next })
    }
}

/// The newest version of a bucket that never had versions is asked for
/// without an id: not every store takes `null` for one.
fn asked_for(id: Option<&str>, is_latest: bool) -> Option<String> {
    id.filter(|id| !id.is_empty())
        .filter(|id| !is_latest || *id != NULL)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::asked_for;

    #[test]
    fn a_version_without_an_id_is_asked_for_without_one() {
        assert_eq!(asked_for(Some("null"), true), None);
        assert_eq!(asked_for(Some("null"), false), Some("null".to_owned()));
        assert_eq!(asked_for(Some(""), true), None);
        assert_eq!(asked_for(Some("3abc"), true), Some("3abc".to_owned()));
    }
}
