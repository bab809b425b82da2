//! What `doctor` asks: is the bucket there, what does it keep, and does the
//! store enforce conditional writes?

use aws_sdk_s3::types::{BucketVersioningStatus, ObjectLockEnabled};
use bytes::Bytes;

use super::error::classify;
use super::{Attributes, PartBody, Place, Store, StoreError};

/// What a bucket does with objects. `None`: the store does not say, or does
/// not let us ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketFacts {
    /// Whether it keeps versions.
    pub versioning: Option<bool>,
    /// Whether Object Lock is enabled.
    pub object_lock: Option<bool>,
}

impl Store {
    /// Whether the bucket can be reached, and what it does with objects.
    ///
    /// # Errors
    /// [`StoreError::NoSuchBucket`], [`StoreError::Denied`],
    /// [`StoreError::Away`], …
    pub async fn probe_bucket(&self, bucket: &str) -> Result<BucketFacts, StoreError> {
        if !self.bucket_exists(bucket).await? {
            return Err(StoreError::NoSuchBucket {
                bucket: bucket.to_owned(),
            });
        }
        let client = &self.inner.client;
        let owner = &self.inner.owner;
        let versioning = client
            .get_bucket_versioning()
            .bucket(bucket)
            .set_expected_bucket_owner(owner.clone())
            .send()
            .await
            .ok()
            .map(|answer| answer.status() == Some(&BucketVersioningStatus::Enabled));
        Ok(BucketFacts {
            versioning,
            object_lock: self.object_lock(bucket).await,
        })
    }

    /// Whether Object Lock is enabled in the bucket; `None` if the store does
    /// not say, or does not let us ask.
    pub async fn object_lock(&self, bucket: &str) -> Option<bool> {
        let asked = self
            .inner
            .client
            .get_object_lock_configuration()
            .bucket(bucket)
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await;
        match asked {
            Ok(answer) => Some(
                answer
                    .object_lock_configuration()
                    .and_then(|c| c.object_lock_enabled())
                    .is_some_and(|e| *e == ObjectLockEnabled::Enabled),
            ),
            Err(error) => error
                .raw_response()
                .is_some_and(|r| r.status().as_u16() == 404)
                .then_some(false),
        }
    }

    /// Whether the store enforces `If-None-Match: *`: writes `key` twice,
    /// then deletes what it wrote. `key` lies under the reserved prefix and
    /// is the caller's to make unique.
    ///
    /// # Errors
    /// The first write failed, or the second in another way than by the
    /// condition.
    pub async fn probe_if_none_match(&self, bucket: &str, key: &str) -> Result<bool, StoreError> {
        let place = Place::new(bucket, key);
        let attributes = Attributes {
            if_none_match: true,
            ..Attributes::default()
        };
        let write = |text: &'static str| {
            let body = PartBody::Memory(Bytes::from_static(text.as_bytes()));
            self.put(&place, &attributes, body)
        };
        let first = write("strongroom doctor: first").await?;
        let second = write("strongroom doctor: second").await;
        let enforced = match &second {
            Ok(_) => Ok(false),
            Err(StoreError::Exists) => Ok(true),
            Err(error) => Err(error.clone()),
        };
        for stored in std::iter::once(&first).chain(second.as_ref().ok()) {
            if let Err(error) = self.delete(&place, stored.version_id.as_deref()).await {
                tracing::warn!(%place, %error, "a probe's object could not be removed");
            }
        }
        enforced
    }

    pub(super) async fn bucket_exists(&self, bucket: &str) -> Result<bool, StoreError> {
        let sent = self
            .inner
            .client
            .head_bucket()
            .bucket(bucket)
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await;
        let place = Place::new(bucket, "");
        match sent.map_err(|e| classify("HeadBucket", &place, e)) {
            Ok(_) => Ok(true),
            Err(StoreError::NoSuchKey { .. } | StoreError::NoSuchBucket { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
