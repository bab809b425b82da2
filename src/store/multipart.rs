//! The requests of one multipart upload: a part, the completion, the abort.

use std::time::Duration;

use aws_sdk_s3::config::Builder;
use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};

use super::attributes::Attributes;
use super::body::Body;
use super::checksum::{Sum, Whole, sdk_type};
use super::client::attempt;
use super::error::{NO_SUCH_UPLOAD, classify};
use super::single::{Stored, disagreement, length, told_checksum, with_checksum};
use super::upload::SentPart;
use super::{Place, Store, StoreError};

/// When an aborted upload is looked at again. Ours: a part that the store had
/// received is through its work within moments.
const SETTLING: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];

/// Which upload the requests are about.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) store: Store,
    pub(super) place: Place,
    pub(super) id: String,
}

/// A part that the store has confirmed.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) number: i32,
    pub(super) etag: String,
    pub(super) sum: Sum,
}

impl Job {
    pub(super) async fn send(&self, number: i32, body: Body) -> Result<Part, StoreError> {
        let inner = &self.store.inner;
        let kind = inner.checksum;
        let sum = body.sum(kind, inner.signed).await?;
        let base64 = sum.base64();
        let request = inner
            .client
            .upload_part()
            .bucket(&self.place.bucket)
            .key(self.place.sdk_key())
            .upload_id(&self.id)
            .part_number(number)
            .content_length(length(&sum)?)
            .body(ByteStream::new(body.stream()))
            .set_expected_bucket_owner(inner.owner.clone());
        let request = with_checksum!(request, kind, base64.clone());
        let answer = inner
            .with_payload(request.customize(), &sum)
            .send()
            .await
            .map_err(|e| classify("UploadPart", &self.place, e))?;
        if let Some(theirs) = told_checksum!(answer, kind)
            && theirs != base64
        {
            return Err(disagreement(&format!("part {number}"), &base64, theirs));
        }
        let etag = answer.e_tag.ok_or_else(|| StoreError::Failed {
            code: "no entity tag".into(),
            message: format!("part {number} was answered without one"),
            request_id: None,
        })?;
        Ok(Part { number, etag, sum })
    }

    pub(super) async fn complete(
        &self,
        attributes: &Attributes,
        parts: Vec<CompletedPart>,
        whole: &Whole,
    ) -> Result<Stored, StoreError> {
        let inner = &self.store.inner;
        let kind = inner.checksum;
        let size = i64::try_from(whole.len)
            .map_err(|_| StoreError::invalid("an object beyond any store's limit"))?;
        let request = inner
            .client
            .complete_multipart_upload()
            .bucket(&self.place.bucket)
            .key(self.place.sdk_key())
            .upload_id(&self.id)
            .multipart_upload(
                CompletedMultipartUpload::builder()
                    .set_parts(Some(parts))
                    .build(),
            )
            .mpu_object_size(size)
            .checksum_type(sdk_type(kind))
            .set_if_none_match(attributes.condition())
            .set_expected_bucket_owner(inner.owner.clone());
        let answer = with_checksum!(request, kind, whole.base64.clone())
            .customize()
            .config_override(Builder::new().timeout_config(attempt(inner.timing.complete)))
            .send()
            .await
            .map_err(|e| classify("CompleteMultipartUpload", &self.place, e))?;
        let stored = Stored {
            version_id: answer.version_id().map(str::to_owned),
            etag: answer.e_tag().map(str::to_owned),
            checksum: whole.told.clone(),
            size: whole.len,
            request_id: answer.request_id().map(str::to_owned),
        };
        let theirs = match told_checksum!(answer, kind) {
            Some(theirs) => Some(theirs.to_owned()),
            // Nothing to compare: at least the size must be right.
            None => self.measure(&stored).await?,
        };
        if let Some(theirs) = theirs
            && theirs != whole.base64
        {
            self.store.undo(&self.place, &stored).await;
            return Err(disagreement("the object", &whole.base64, &theirs));
        }
        Ok(stored)
    }

    /// For stores whose completion tells no checksum: HEAD tells the size and
    /// perhaps a checksum. One that denies HEAD has verified what we sent or
    /// nothing; either way the frames' own tags decide when it is read.
    async fn measure(&self, stored: &Stored) -> Result<Option<String>, StoreError> {
        let head = match self
            .store
            .head_raw(&self.place, stored.version_id.as_deref())
            .await
        {
            Ok(head) => head,
            Err(error) => {
                tracing::warn!(place = %self.place, %error, "a completed object could not be measured");
                return Ok(None);
            }
        };
        // Without versions somebody may have replaced it already.
        if head.e_tag() != stored.etag.as_deref() {
            return Ok(None);
        }
        let size = head.content_length().and_then(|n| u64::try_from(n).ok());
        if size != Some(stored.size) {
            self.store.undo(&self.place, stored).await;
            return Err(StoreError::corrupt(format!(
                "the object has {size:?} bytes, {} were sent",
                stored.size
            )));
        }
        Ok(told_checksum!(head, self.store.kind()).map(str::to_owned))
    }

    pub(super) async fn abort(&self) -> bool {
        match self.store.abort_upload(&self.place, &self.id).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(place = %self.place, upload = self.id, %error, "an upload could not be aborted");
                false
            }
        }
    }

    /// After an abort with parts under way: looks whether one brought the
    /// upload back, and aborts it again ("you might need to abort a multipart
    /// upload multiple times", S3 API, AbortMultipartUpload). False if it is
    /// there still.
    pub(super) async fn settled(&self) -> bool {
        for wait in SETTLING {
            tokio::time::sleep(wait).await;
            match self.store.list_parts(&self.place, &self.id).await {
                Ok(None) => return true,
                Ok(Some(_)) => {
                    tracing::debug!(place = %self.place, upload = self.id, "a part came after the abort");
                    if !self.abort().await {
                        return false;
                    }
                }
                // Whoever may not look has the abort's own answer.
                Err(error) => {
                    return error.is_absent() || matches!(error, StoreError::Denied { .. });
                }
            }
        }
        false
    }
}

impl Part {
    /// In words that can be written down.
    pub(super) fn told(&self) -> SentPart {
        SentPart {
            number: u32::try_from(self.number).unwrap_or_default(),
            etag: self.etag.clone(),
            checksum: self.sum.base64(),
            size: self.sum.len(),
        }
    }
}

/// A part of an upload as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPart {
    /// Its number, from 1.
    pub number: u32,
    /// Its entity tag.
    pub etag: String,
    /// Its bytes.
    pub size: u64,
    /// Its checksum, base64, if the store tells one.
    pub checksum: Option<String>,
}

impl Store {
    /// The parts that the store has of an upload; `None` if there is no such
    /// upload. At most as many as an object may have.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn list_parts(
        &self,
        place: &Place,
        upload_id: &str,
    ) -> Result<Option<Vec<ListedPart>>, StoreError> {
        let kind = self.kind();
        let most = self.inner.limits.max_parts as usize;
        let mut parts = Vec::new();
        let mut marker = None;
        loop {
            let sent = self
                .inner
                .client
                .list_parts()
                .bucket(&place.bucket)
                .key(place.sdk_key())
                .upload_id(upload_id)
                .set_part_number_marker(marker)
                .set_expected_bucket_owner(self.inner.owner.clone())
                .send()
                .await;
            let answer = match sent.map_err(|e| classify("ListParts", place, e)) {
                Ok(answer) => answer,
                Err(StoreError::Failed { code, .. }) if code == NO_SUCH_UPLOAD => return Ok(None),
                Err(error) => return Err(error),
            };
            for part in answer.parts() {
                parts.push(ListedPart {
                    number: part
                        .part_number()
                        .and_then(|n| u32::try_from(n).ok())
                        .unwrap_or_default(),
                    etag: part.e_tag().unwrap_or_default().to_owned(),
                    size: part
                        .size()
                        .and_then(|n| u64::try_from(n).ok())
                        .unwrap_or_default(),
                    checksum: told_checksum!(part, kind).map(str::to_owned),
                });
            }
            if parts.len() > most {
                return Err(StoreError::corrupt("the upload has too many parts"));
            }
            let next = answer.next_part_number_marker();
            match next.filter(|_| answer.is_truncated() == Some(true)) {
                // A page that is empty would be the last for ever.
                Some(next) if !answer.parts().is_empty() => marker = Some(next.to_owned()),
                _ => return Ok(Some(parts)),
            }
        }
    }

    /// Ends a multipart upload by its id; one that is gone already is fine.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn abort_upload(&self, place: &Place, upload_id: &str) -> Result<(), StoreError> {
        let sent = self
            .inner
            .client
            .abort_multipart_upload()
            .bucket(&place.bucket)
            .key(place.sdk_key())
            .upload_id(upload_id)
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await;
        match sent.map_err(|e| classify("AbortMultipartUpload", place, e)) {
            Ok(_) => Ok(()),
            Err(StoreError::Failed { code, .. }) if code == NO_SUCH_UPLOAD => Ok(()),
            Err(error) => Err(error),
        }
    }
}
