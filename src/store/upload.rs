//! Multipart upload: several parts in flight, each sent from its buffered
//! ciphertext, and an object only once every size and checksum agrees.

use std::sync::Arc;

use aws_sdk_s3::types::CompletedPart;
use tokio::task::JoinSet;

use super::attributes::Attributes;
use super::body::Body;
use super::checksum::{Sum, combine, sdk_type};
use super::error::classify;
use super::multipart::{Job, Part};
use super::single::{Expected, Stored, with_checksum};
use super::{PartBody, Place, Store, StoreError};

/// A part that the store has confirmed, in words that can be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentPart {
    /// Its number, from 1.
    pub number: u32,
    /// Its entity tag.
    pub etag: String,
    /// Its checksum, base64.
    pub checksum: String,
    /// Its bytes.
    pub size: u64,
}

/// Who is told of each part that the store confirms, at once.
#[derive(Clone)]
pub struct OnSent(Arc<dyn Fn(SentPart) + Send + Sync>);

impl OnSent {
    /// Tells `listener`, which must not block.
    pub fn new(listener: impl Fn(SentPart) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }
}

impl std::fmt::Debug for OnSent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnSent")
    }
}

/// An upload in progress. [`Upload::complete`] and [`Upload::abort`] consume
/// it; one that is dropped is aborted in the background, unless it is to be
/// [kept](Upload::keep).
#[derive(Debug)]
pub struct Upload {
    job: Arc<Job>,
    attributes: Attributes,
    concurrency: usize,
    sending: JoinSet<Result<Part, StoreError>>,
    parts: Vec<Part>,
    /// Parts begun, and the size of the last.
    begun: u32,
    last_len: u64,
    first_error: Option<StoreError>,
    /// Completed or aborted: dropping it has nothing to do.
    over: bool,
    /// It is to be resumed: only the one who says so aborts it.
    kept: bool,
    on_sent: Option<OnSent>,
}

impl Store {
    /// Begins a multipart upload with at most `concurrency` parts in flight.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is left then.
    pub async fn begin(
        &self,
        place: &Place,
        attributes: &Attributes,
        concurrency: usize,
    ) -> Result<Upload, StoreError> {
        place.check()?;
        attributes.check()?;
        let inner = &self.inner;
        let answer = inner
            .client
            .create_multipart_upload()
            .bucket(&place.bucket)
            .key(place.sdk_key())
            .checksum_algorithm(self.algorithm())
            .checksum_type(sdk_type(self.kind()))
            .set_expected_bucket_owner(inner.owner.clone())
            .set_content_type(attributes.content_type.clone())
            .set_storage_class(attributes.class())
            .set_object_lock_mode(attributes.lock_mode())
            .set_object_lock_retain_until_date(attributes.lock_until()?)
            .set_object_lock_legal_hold_status(attributes.hold())
            .set_tagging(attributes.tags.clone())
            .set_metadata(attributes.metadata_map())
            .set_server_side_encryption(self.encryption())
            .set_ssekms_key_id(inner.sse_kms_key_id.clone())
            .send()
            .await
            .map_err(|e| classify("CreateMultipartUpload", place, e))?;
        let id = answer
            .upload_id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| StoreError::Failed {
                code: "no upload id".into(),
                message: "CreateMultipartUpload was answered without one".into(),
                request_id: None,
            })?;
        Ok(self.upload(place, attributes, concurrency, id))
    }

    /// Goes on with an upload that was begun before and kept. What becomes of
    /// it, its caller says: nothing aborts it but [`Upload::abort`].
    ///
    /// # Errors
    /// [`StoreError::Invalid`].
    pub fn resume(
        &self,
        place: &Place,
        attributes: &Attributes,
        concurrency: usize,
        id: &str,
        on_sent: OnSent,
    ) -> Result<Upload, StoreError> {
        place.check()?;
        attributes.check()?;
        let mut upload = self.upload(place, attributes, concurrency, id.to_owned());
        upload.kept = true;
        upload.on_sent = Some(on_sent);
        Ok(upload)
    }

    fn upload(
        &self,
        place: &Place,
        attributes: &Attributes,
        concurrency: usize,
        id: String,
    ) -> Upload {
        Upload {
            job: Arc::new(Job {
                store: self.clone(),
                place: place.clone(),
                id,
            }),
            attributes: attributes.clone(),
            concurrency: concurrency.max(1),
            sending: JoinSet::new(),
            parts: Vec::new(),
            begun: 0,
            last_len: 0,
            first_error: None,
            over: false,
            kept: false,
            on_sent: None,
        }
    }
}

impl Upload {
    /// The store's id of it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.job.id
    }

    /// Leaves it as it is, to be resumed. What is in flight may arrive or not.
    pub fn keep(mut self) {
        self.over = true;
    }

    /// Counts the next part as sent: the store has confirmed it before.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for another number than the next, or a checksum
    /// of another kind than the configured one.
    pub fn sent(&mut self, part: &SentPart) -> Result<(), StoreError> {
        let number = self.number(part.size)?;
        let sum = Sum::parse(self.job.store.kind(), &part.checksum, part.size)
            .filter(|_| u32::try_from(number) == Ok(part.number))
            .ok_or_else(|| StoreError::invalid("a part is not the next of this upload"))?;
        self.parts.push(Part {
            number,
            etag: part.etag.clone(),
            sum,
        });
        Ok(())
    }

    /// Sends the next part: waits until fewer than the allowed number are in
    /// flight, then returns while this one goes out.
    ///
    /// # Errors
    /// The first error of any part so far; the upload is then good only for
    /// [`Upload::abort`].
    pub async fn send(&mut self, body: PartBody) -> Result<(), StoreError> {
        while let Some(done) = self.sending.try_join_next() {
            self.note(done);
        }
        while self.sending.len() >= self.concurrency && self.first_error.is_none() {
            if let Some(done) = self.sending.join_next().await {
                self.note(done);
            }
        }
        if let Some(error) = &self.first_error {
            return Err(error.clone());
        }
        let body = Body::from(body);
        let number = self.number(body.len())?;
        let job = self.job.clone();
        let on_sent = self.on_sent.clone();
        self.sending.spawn(async move {
            let part = job.send(number, body).await?;
            if let Some(tell) = on_sent {
                tell.0(part.told());
            }
            Ok(part)
        });
        Ok(())
    }

    /// Waits until every part is at the store: what can take long, before
    /// what must not be interrupted.
    ///
    /// # Errors
    /// The first error of any part; the upload is then good only for
    /// [`Upload::abort`].
    pub async fn drained(&mut self) -> Result<(), StoreError> {
        while self.first_error.is_none() {
            match self.sending.join_next().await {
                Some(done) => self.note(done),
                None => break,
            }
        }
        self.first_error.clone().map_or(Ok(()), Err)
    }

    /// Waits for all parts, compares, and makes the object.
    ///
    /// # Errors
    /// The first error of any part; else the completion's own. The upload has
    /// been aborted then, unless it is one to be resumed, and no object of
    /// ours is there as far as the store can be asked.
    pub async fn complete(mut self) -> Result<Stored, StoreError> {
        let outcome = match self.drained().await {
            Ok(()) => self.finish().await,
            Err(error) => Err(error),
        };
        match outcome {
            Err(error) if !self.kept => {
                self.abort().await;
                Err(error)
            }
            outcome => {
                self.over = true;
                outcome
            }
        }
    }

    /// Ends the upload without an object, and says whether the store has. A
    /// failure to do so is logged: the caller has an error to report already.
    pub async fn abort(mut self) -> bool {
        // Parts first: one that arrives after the abort would be kept, and
        // charged for. What the store has of them already may do so still.
        let under_way = !self.sending.is_empty();
        self.sending.shutdown().await;
        let aborted = self.job.abort().await && (!under_way || self.job.settled().await);
        // Not before: a caller that is cancelled here leaves it to `drop`.
        self.over = true;
        aborted
    }

    fn note(&mut self, done: Result<Result<Part, StoreError>, tokio::task::JoinError>) {
        let outcome = done.unwrap_or_else(|e| {
            Err(StoreError::Failed {
                code: "internal".into(),
                message: format!("sending a part was interrupted: {e}"),
                request_id: None,
            })
        });
        match outcome {
            Ok(part) => self.parts.push(part),
            Err(error) if self.first_error.is_none() => self.first_error = Some(error),
            Err(error) => tracing::debug!(%error, "another part failed too"),
        }
    }

    /// The next part's number, if the limits allow a part of `len` after the
    /// ones before.
    fn number(&mut self, len: u64) -> Result<i32, StoreError> {
        let limits = self.job.store.inner.limits;
        let refused = if self.begun >= limits.max_parts {
            format!("an object of more than {} parts", limits.max_parts)
        } else if len > limits.max_part {
            format!(
                "a part of {len} bytes; the store allows {}",
                limits.max_part
            )
        } else if self.begun > 0 && self.last_len < limits.min_part {
            format!("a part of {} bytes before the last", self.last_len)
        } else {
            self.begun += 1;
            self.last_len = len;
            return i32::try_from(self.begun)
                .map_err(|_| StoreError::invalid("a part number beyond any store's limit"));
        };
        let error = StoreError::invalid(refused);
        self.first_error = Some(error.clone());
        Err(error)
    }

    /// All parts are there: compare, then complete.
    async fn finish(&mut self) -> Result<Stored, StoreError> {
        self.parts.sort_unstable_by_key(|part| part.number);
        let in_order = self.parts.iter().zip(1..).all(|(part, n)| part.number == n);
        let count = u32::try_from(self.parts.len()).unwrap_or(u32::MAX);
        if !in_order || count != self.begun || count == 0 {
            return Err(StoreError::corrupt(format!(
                "{count} of {} parts are confirmed",
                self.begun
            )));
        }
        let job = &self.job;
        let kind = job.store.kind();
        let sums: Vec<Sum> = self.parts.iter().map(|part| part.sum.clone()).collect();
        let whole = combine(kind, &sums);
        let expected = Expected {
            message_id: self.attributes.message_id(),
            base64: &whole.base64,
            told: &whole.told,
            size: whole.len,
        };
        let parts = self
            .parts
            .iter()
            .map(|part| {
                let listed = CompletedPart::builder()
                    .part_number(part.number)
                    .e_tag(&part.etag);
                with_checksum!(listed, kind, part.sum.base64()).build()
            })
            .collect();
        match job.complete(&self.attributes, parts, &whole).await {
            Ok(stored) => Ok(stored),
            Err(error) => job.store.settle(&job.place, &expected, error).await,
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.over || self.kept {
            return;
        }
        let mut sending = std::mem::take(&mut self.sending);
        let job = self.job.clone();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move {
                    tracing::warn!(place = %job.place, "an upload was abandoned: aborting it");
                    sending.shutdown().await;
                    job.abort().await;
                });
            }
            Err(_) => {
                tracing::error!(place = %job.place, upload = job.id, "an upload was abandoned and cannot be aborted: no runtime");
            }
        }
    }
}
