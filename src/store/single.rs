//! PutObject, and what to do when an answer was lost.

use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ServerSideEncryption;

use super::attributes::{Attributes, METADATA_MESSAGE_ID};
use super::body::Body;
use super::checksum::{Sum, sdk_algorithm};
use super::error::classify;
use super::{PartBody, Place, Store, StoreError};
use crate::config::Checksum;

/// An object that the store has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its version, in a bucket with versioning.
    pub version_id: Option<String>,
    /// Its entity tag, quotes included.
    pub etag: Option<String>,
    /// Its checksum as computed here: `crc64nvme:BASE64`.
    pub checksum: String,
    /// Its bytes.
    pub size: u64,
    /// The store's id of the request that made it, if its answer came.
    pub request_id: Option<String>,
}

/// What an object must be to be the one we sent.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    pub(super) message_id: Option<&'a str>,
    /// As S3 writes it.
    pub(super) base64: &'a str,
    /// As receipts write it.
    pub(super) told: &'a str,
    pub(super) size: u64,
}

/// Fills in the checksum value under its algorithm's name; the builders of
/// the SDK share method names but no trait.
macro_rules! with_checksum {
    ($request:expr, $kind:expr, $value:expr) => {
        match $kind {
            $crate::config::Checksum::Crc64nvme => $request.checksum_crc64_nvme($value),
            $crate::config::Checksum::Crc32c => $request.checksum_crc32_c($value),
            $crate::config::Checksum::Sha256 => $request.checksum_sha256($value),
        }
    };
}
/// The checksum value in an answer.
macro_rules! told_checksum {
    ($answer:expr, $kind:expr) => {
        match $kind {
            $crate::config::Checksum::Crc64nvme => $answer.checksum_crc64_nvme(),
            $crate::config::Checksum::Crc32c => $answer.checksum_crc32_c(),
            $crate::config::Checksum::Sha256 => $answer.checksum_sha256(),
        }
    };
}
pub(super) use {told_checksum, with_checksum};

impl Store {
    /// Stores a whole object in one request.
    ///
    /// If the answer is lost, or says that the object exists already, the
    /// store is asked whether what is there is ours, by message id, size and
    /// checksum, before anything is reported.
    ///
    /// # Errors
    /// See [`StoreError`]; after one, no object of ours is there as far as
    /// the store can be asked.
    pub async fn put(
        &self,
        place: &Place,
        attributes: &Attributes,
        body: PartBody,
    ) -> Result<Stored, StoreError> {
        place.check()?;
        attributes.check()?;
        let inner = &self.inner;
        let body = Body::from(body);
        let sum = body.sum(inner.checksum, inner.signed).await?;
        let base64 = sum.base64();
        let request = inner
            .client
            .put_object()
            .bucket(&place.bucket)
            .key(place.sdk_key())
            .body(ByteStream::new(body.stream()))
            .content_length(length(&sum)?)
            .set_expected_bucket_owner(inner.owner.clone())
            .set_if_none_match(attributes.condition())
            .set_content_type(attributes.content_type.clone())
            .set_storage_class(attributes.class())
            .set_object_lock_mode(attributes.lock_mode())
            .set_object_lock_retain_until_date(attributes.lock_until()?)
            .set_object_lock_legal_hold_status(attributes.hold())
            .set_tagging(attributes.tags.clone())
            .set_metadata(attributes.metadata_map())
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(inner.sse_kms_key_id.clone());
        let request = with_checksum!(request, inner.checksum, base64.clone());
        let sent = inner.with_payload(request.customize(), &sum).send().await;

        let told = sum.told();
        let expected = Expected {
            message_id: attributes.message_id(),
            base64: &base64,
            told: &told,
            size: sum.len(),
        };
        match sent {
            Ok(answer) => {
                let stored = Stored {
                    version_id: answer.version_id().map(str::to_owned),
                    etag: answer.e_tag().map(str::to_owned),
                    checksum: told.clone(),
                    size: sum.len(),
                    request_id: answer.request_id().map(str::to_owned),
                };
                match told_checksum!(answer, inner.checksum) {
                    Some(theirs) if theirs != base64 => {
                        self.undo(place, &stored).await;
                        Err(disagreement("the object", &base64, theirs))
                    }
                    _ => Ok(stored),
                }
            }
            Err(error) => {
                let error = classify("PutObject", place, error);
                self.settle(place, &expected, error).await
            }
        }
    }

    /// Stores a keyslot: never replaces one, and is retained as long as the
    /// object that `attributes` belong to.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is another one already.
    pub async fn put_slot(
        &self,
        bucket: &str,
        name: &str,
        slot: bytes::Bytes,
        attributes: &Attributes,
    ) -> Result<(), StoreError> {
        let place = Place::new(bucket, name);
        let mut attributes = attributes.retention_only();
        attributes.if_none_match = true;
        attributes.content_type = Some("application/octet-stream".into());
        let sent = self.put(&place, &attributes, PartBody::Memory(slot.clone()));
        match sent.await {
            Ok(_) => Ok(()),
            // A retry finds what its lost answer had stored: read it back
            // (SECURITY rule 8).
            Err(StoreError::Exists) => match self.get_slot(bucket, name, slot.len()).await {
                Ok(there) if there == slot => Ok(()),
                _ => Err(StoreError::Exists),
            },
            Err(error) => Err(error),
        }
    }

    /// Stores a small object that says who came first: never replaces one,
    /// and is not retained. `claim` is random, so that a retry knows its own.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if somebody came before.
    pub async fn put_claim(
        &self,
        bucket: &str,
        name: &str,
        claim: bytes::Bytes,
    ) -> Result<(), StoreError> {
        // Where the store ignores `If-None-Match`, at least what is there long.
        match self.head_raw(&Place::new(bucket, name), None).await {
            Ok(_) => return Err(StoreError::Exists),
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
        self.put_slot(bucket, name, claim, &Attributes::default())
            .await
    }

    /// After a failure that may hide a success: is the object there ours?
    pub(super) async fn settle(
        &self,
        place: &Place,
        expected: &Expected<'_>,
        error: StoreError,
    ) -> Result<Stored, StoreError> {
        // After a first attempt that timed out on our side alone, the second
        // one's 412 or 409 speaks of the first.
        let doubtful = error.is_ambiguous()
            || matches!(error, StoreError::Exists | StoreError::Conflict { .. });
        let Some(message_id) = expected.message_id.filter(|_| doubtful) else {
            return Err(error);
        };
        let kind = self.inner.checksum;
        let head = match self.head_raw(place, None).await {
            Ok(head) => head,
            Err(second) => {
                if !second.is_absent() {
                    tracing::warn!(%place, %second, "cannot ask what became of a doubtful put");
                }
                return Err(error);
            }
        };
        let ours = head
            .metadata()
            .and_then(|m| m.get(METADATA_MESSAGE_ID))
            .is_some_and(|id| id == message_id);
        if !ours {
            return Err(error);
        }
        let size = head.content_length().and_then(|n| u64::try_from(n).ok());
        let stored = Stored {
            version_id: head.version_id().map(str::to_owned),
            etag: head.e_tag().map(str::to_owned),
            checksum: expected.told.to_owned(),
            size: expected.size,
            request_id: None,
        };
        if size != Some(expected.size) {
            self.undo(place, &stored).await;
            return Err(StoreError::corrupt(format!(
                "the object has {size:?} bytes, {} were sent",
                expected.size
            )));
        }
        if let Some(theirs) = told_checksum!(head, kind)
            && theirs != expected.base64
        {
            self.undo(place, &stored).await;
            return Err(disagreement("the object", expected.base64, theirs));
        }
        tracing::info!(%place, message_id, %error, "the answer was lost, the object is there");
        Ok(stored)
    }

    /// Removes an object that the store says it altered: exactly that version,
    /// or, without versions, only while it is still that object.
    pub(super) async fn undo(&self, place: &Place, stored: &Stored) {
        let request = self
            .inner
            .client
            .delete_object()
            .bucket(&place.bucket)
            .key(place.sdk_key())
            .set_expected_bucket_owner(self.inner.owner.clone());
        let request = match (&stored.version_id, &stored.etag) {
            (Some(version), _) => request.version_id(version),
            (None, Some(etag)) => request.if_match(etag),
            (None, None) => {
                tracing::error!(%place, "an altered object cannot be told apart, and stays");
                return;
            }
        };
        if let Err(error) = request.send().await {
            let error = classify("DeleteObject", place, error);
            tracing::error!(%place, %error, "an altered object could not be removed");
        }
    }

    pub(super) fn encryption(&self) -> Option<ServerSideEncryption> {
        self.inner.sse.as_deref().map(ServerSideEncryption::from)
    }

    pub(super) fn algorithm(&self) -> aws_sdk_s3::types::ChecksumAlgorithm {
        sdk_algorithm(self.kind())
    }

    pub(super) fn kind(&self) -> Checksum {
        self.inner.checksum
    }
}

/// A length as the SDK wants it.
pub(super) fn length(sum: &Sum) -> Result<i64, StoreError> {
    i64::try_from(sum.len()).map_err(|_| StoreError::invalid("a body beyond any store's limit"))
}

pub(super) fn disagreement(what: &str, ours: &str, theirs: &str) -> StoreError {
    StoreError::corrupt(format!(
        "the checksum of {what} is {ours} here and {theirs} there"
    ))
}
