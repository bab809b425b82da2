//! One object as a whole: what is known of it, and its deletion.

use std::collections::HashMap;

use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::ChecksumMode;
use aws_smithy_types::DateTime;

use super::error::classify;
use super::{Place, Store, StoreError};

/// What the store tells of an object. Nothing here is authenticated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Bytes.
    pub size: u64,
    /// Entity tag, quotes included.
    pub etag: Option<String>,
    /// Version id, in a bucket with versioning.
    pub version_id: Option<String>,
    /// When it was stored, RFC 3339.
    pub last_modified: Option<String>,
    /// Content type.
    pub content_type: Option<String>,
    /// Storage class; absent for the standard one.
    pub storage_class: Option<String>,
    /// Object Lock retains it until then, RFC 3339.
    pub retain_until: Option<String>,
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub retention_mode: Option<String>,
    /// Whether a legal hold is on it.
    pub legal_hold: bool,
    /// The state of a restore from an archive class, as S3 writes it:
    /// `ongoing-request="false", expiry-date="…"`.
    pub restore: Option<String>,
    /// Intelligent-Tiering has moved it to this archive tier.
    pub archive_status: Option<String>,
    /// Server-side encryption, by S3's name.
    pub server_side_encryption: Option<String>,
    /// Checksum with its algorithm: `crc64nvme:BASE64`.
    pub checksum: Option<String>,
    /// User metadata, sorted by name.
    pub metadata: Vec<(String, String)>,
    /// The store's id of the request.
    pub request_id: Option<String>,
}

/// What a deletion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// The version that was deleted, or the delete marker that was made.
    pub version_id: Option<String>,
    /// Whether a delete marker was made (or deleted): the versions remain.
    pub delete_marker: bool,
    /// The store's id of the request.
    pub request_id: Option<String>,
}

impl Store {
    /// What the store tells of an object.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::NoSuchBucket`] and
    /// [`StoreError::NoSuchKey`] are told apart.
    pub async fn head(&self, place: &Place, version: Option<&str>) -> Result<Head, StoreError> {
        place.check()?;
        match self.head_raw(place, version).await {
            Ok(answer) => Ok(head(&answer)),
            // The answer to a HEAD has no body that would say which it was.
            Err(error) if error.is_absent() => match self.bucket_exists(&place.bucket).await {
                Ok(false) => Err(StoreError::NoSuchBucket {
                    bucket: place.bucket.clone(),
                }),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    pub(super) async fn head_raw(
        &self,
        place: &Place,
        version: Option<&str>,
    ) -> Result<HeadObjectOutput, StoreError> {
        self.inner
            .client
            .head_object()
            .bucket(&place.bucket)
            .key(place.sdk_key())
            .set_version_id(version.map(str::to_owned))
            .checksum_mode(ChecksumMode::Enabled)
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await
            .map_err(|e| match classify("HeadObject", place, e) {
                StoreError::NoSuchKey { bucket, key } if version.is_some() => {
                    StoreError::NoSuchVersion { bucket, key }
                }
                // A version id that is not one is answered with a bare 400.
                StoreError::Invalid { .. } if version.is_some() => StoreError::NoSuchVersion {
                    bucket: place.bucket.clone(),
                    key: place.key.clone(),
                },
                other => other,
            })
    }

    /// Deletes an object, or one version of it. S3 does not tell whether
    /// there was one.
    ///
    /// # Errors
    /// [`StoreError::Denied`] where Object Lock protects the version.
    pub async fn delete(
        &self,
        place: &Place,
        version: Option<&str>,
    ) -> Result<Deleted, StoreError> {
        place.check()?;
        let answer = self
            .inner
            .client
            .delete_object()
            .bucket(&place.bucket)
            .key(place.sdk_key())
            .set_version_id(version.map(str::to_owned))
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await
            .map_err(|e| classify("DeleteObject", place, e))?;
        Ok(Deleted {
            delete_marker: answer.delete_marker().unwrap_or(false),
            request_id: answer.request_id().map(str::to_owned),
            version_id: answer.version_id,
        })
    }
}

fn head(answer: &HeadObjectOutput) -> Head {
    let checksum = [
        ("crc64nvme", answer.checksum_crc64_nvme()),
        ("crc32c", answer.checksum_crc32_c()),
        ("sha256", answer.checksum_sha256()),
    ];
    Head {
        size: answer
            .content_length()
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or_default(),
        etag: answer.e_tag().map(str::to_owned),
        version_id: answer.version_id().map(str::to_owned),
        last_modified: answer.last_modified().and_then(instant),
        content_type: answer.content_type().map(str::to_owned),
        storage_class: answer.storage_class().map(|c| c.as_str().to_owned()),
        retain_until: answer.object_lock_retain_until_date().and_then(instant),
        retention_mode: answer.object_lock_mode().map(|m| m.as_str().to_owned()),
        legal_hold: answer
            .object_lock_legal_hold_status()
            .is_some_and(|status| status.as_str() == "ON"),
        restore: answer.restore().map(str::to_owned),
        archive_status: answer.archive_status().map(|s| s.as_str().to_owned()),
        server_side_encryption: answer
            .server_side_encryption()
            .map(|sse| sse.as_str().to_owned()),
        checksum: checksum
            .into_iter()
            .find_map(|(name, value)| value.map(|value| format!("{name}:{value}"))),
        metadata: pairs(answer.metadata()),
        request_id: answer.request_id().map(str::to_owned),
    }
}

/// The SDK's instant in RFC 3339.
pub(super) fn instant(at: &DateTime) -> Option<String> {
    let at = jiff::Timestamp::from_second(at.secs()).ok()?;
    Some(at.to_string())
}

/// User metadata in a stable order.
pub(super) fn pairs(metadata: Option<&HashMap<String, String>>) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = metadata
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    pairs.sort_unstable();
    pairs
}
