//! Ranged reads, pinned to one version of the object.

use std::time::Duration;

use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use bytes::BytesMut;

use super::error::classify;
use super::object::instant;
use super::range::{ByteRange, parse_content_range};
use super::{Buffer, Place, Store, StoreError};

/// Attempts at one read whose body broke off. The SDK retries only until the
/// answer's head has come.
const BODY_ATTEMPTS: u32 = 4;
/// Before the first of those retries; doubles.
const BODY_BACKOFF: Duration = Duration::from_millis(100);

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Select {
    /// A version of the caller's choice; the newest when absent. The pin's
    /// goes before it.
    pub version_id: Option<String>,
    /// A part of the object; all of it when absent.
    pub range: Option<ByteRange>,
    /// The version that an earlier read found.
    pub pin: Option<Pin>,
}

/// One version of one object. Reads that share a pin read the same bytes, or
/// fail with [`StoreError::Changed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Its version id, in a bucket with versioning.
    pub version_id: Option<String>,
    /// Its entity tag, quotes included.
    pub etag: Option<String>,
    /// Its bytes in all.
    pub total_len: u64,
    /// Its content type.
    pub content_type: Option<String>,
    /// When it was stored, RFC 3339; the store's word.
    pub last_modified: Option<String>,
    /// Its storage class; absent for the standard one.
    pub storage_class: Option<String>,
    /// The state of a copy restored from an archive class, in S3's words.
    pub restore: Option<String>,
}

/// What was read.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The version that was read.
    pub pin: Pin,
    /// Bytes of the whole object.
    pub total_len: u64,
    /// The position of the first byte that was read.
    pub start: u64,
    /// Bytes read.
    pub len: u64,
    /// User metadata.
    pub metadata: Vec<(String, String)>,
    /// The store's id of the request.
    pub request_id: Option<String>,
}

/// Where a body goes.
trait Sink {
    fn len(&self) -> usize;
    fn room(&self) -> usize;
    fn take(&mut self, bytes: &[u8]);
    fn truncate(&mut self, len: usize);
}

impl Sink for Buffer {
    fn len(&self) -> usize {
        Buffer::len(self)
    }
    fn room(&self) -> usize {
        self.spare()
    }
    fn take(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
    fn truncate(&mut self, len: usize) {
        Buffer::truncate(self, len);
    }
}

/// Bytes on the heap, for objects that are small by their nature.
struct Small {
    bytes: BytesMut,
    limit: usize,
}

impl Sink for Small {
    fn len(&self) -> usize {
        self.bytes.len()
    }
    fn room(&self) -> usize {
        self.limit - self.bytes.len()
    }
    fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
    fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }
}

impl Store {
    /// Reads into `buffer`, behind what it holds. A body that breaks off is
    /// read again, of the same version.
    ///
    /// An empty object has no ranges: it is told by a `total_len` of 0.
    ///
    /// # Errors
    /// [`StoreError::Changed`] if the object is no longer what the pin says;
    /// [`StoreError::Invalid`] if what was selected does not fit the buffer or
    /// begins behind the object's end. The buffer is as before then.
    pub async fn fetch(
        &self,
        place: &Place,
        select: Select,
        buffer: &mut Buffer,
    ) -> Result<Fetched, StoreError> {
        self.fetch_to(place, select, buffer).await
    }

    /// Reads at most `limit` bytes to the heap: for headers and keyslots.
    ///
    /// # Errors
    /// As [`Store::fetch`].
    pub async fn fetch_bytes(
        &self,
        place: &Place,
        select: Select,
        limit: usize,
    ) -> Result<(Fetched, BytesMut), StoreError> {
        let mut sink = Small {
            bytes: BytesMut::new(),
            limit,
        };
        let fetched = self.fetch_to(place, select, &mut sink).await?;
        Ok((fetched, sink.bytes))
    }

    /// Reads a keyslot of at most `max_len` bytes.
    ///
    /// # Errors
    /// [`StoreError::NoSuchKey`] if there is none, [`StoreError::Invalid`] if
    /// it is longer.
    pub async fn get_slot(
        &self,
        bucket: &str,
        name: &str,
        max_len: usize,
    ) -> Result<bytes::Bytes, StoreError> {
        let place = Place::new(bucket, name);
        let (_, bytes) = self.fetch_bytes(&place, Select::default(), max_len).await?;
        Ok(bytes.freeze())
    }

    async fn fetch_to(
        &self,
        place: &Place,
        mut select: Select,
        sink: &mut impl Sink,
    ) -> Result<Fetched, StoreError> {
        place.check()?;
        let before = sink.len();
        let mut attempt = 1;
        loop {
            let Some(answer) = self.open(place, &select).await? else {
                return self.behind_the_end(place, &select).await;
            };
            let fetched = describe(place, &select, &answer)?;
            let len = usize::try_from(fetched.len).unwrap_or(usize::MAX);
            if len > sink.room() {
                return Err(StoreError::invalid(format!(
                    "{place} has {len} bytes where at most {} were expected",
                    sink.room()
                )));
            }
            // Whatever is read again must be the same.
            select.pin = Some(fetched.pin.clone());
            match drain(answer.body, len, sink).await {
                Ok(()) => return Ok(fetched),
                Err(message) => {
                    sink.truncate(before);
                    if attempt == BODY_ATTEMPTS {
                        return Err(StoreError::Away { message });
                    }
                    tracing::debug!(%place, message, attempt, "a read broke off");
                    tokio::time::sleep(BODY_BACKOFF * 2_u32.pow(attempt - 1)).await;
                    attempt += 1;
                }
            }
        }
    }

    /// `None` if the range lies behind the object's end (416).
    async fn open(
        &self,
        place: &Place,
        select: &Select,
    ) -> Result<Option<GetObjectOutput>, StoreError> {
        let pin = select.pin.as_ref();
        let version = pin.map_or(&select.version_id, |pin| &pin.version_id);
        let sent = self
            .inner
            .client
            .get_object()
            .bucket(&place.bucket)
            .key(place.sdk_key())
            .set_version_id(version.clone())
            .set_if_match(pin.and_then(|pin| pin.etag.clone()))
            .set_range(select.range.map(ByteRange::header).transpose()?)
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await;
        let error = match sent {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => error,
        };
        if error
            .raw_response()
            .is_some_and(|r| r.status().as_u16() == 416)
        {
            return Ok(None);
        }
        Err(match classify("GetObject", place, error) {
            // 412 can only come from If-Match here.
            StoreError::Exists => StoreError::Changed,
            gone if pin.is_some() && gone.is_absent() => StoreError::Changed,
            other => other,
        })
    }

    /// After a 416: an empty object, or a range that is not in it.
    async fn behind_the_end(&self, place: &Place, select: &Select) -> Result<Fetched, StoreError> {
        if select.pin.as_ref().is_some_and(|pin| pin.total_len > 0) {
            return Err(StoreError::Changed);
        }
        let head = self.head(place, select.version_id.as_deref()).await?;
        if head.size > 0 {
            return Err(StoreError::invalid(format!(
                "the range begins behind the end of {place}, which has {} bytes",
                head.size
            )));
        }
        Ok(Fetched {
            pin: Pin {
                version_id: head.version_id,
                etag: head.etag,
                total_len: 0,
                content_type: head.content_type,
                last_modified: head.last_modified,
                storage_class: head.storage_class,
                restore: head.restore,
            },
            total_len: 0,
            start: 0,
            len: 0,
            metadata: head.metadata,
            request_id: head.request_id,
        })
    }
}

/// Checks what the answer says about itself against what was asked.
fn describe(
    place: &Place,
    select: &Select,
    answer: &GetObjectOutput,
) -> Result<Fetched, StoreError> {
    let told = |what: &str| StoreError::corrupt(format!("{place} was answered with {what}"));
    let body_len = answer
        .content_length()
        .and_then(|n| u64::try_from(n).ok())
        .ok_or_else(|| told("no length"))?;
    let (start, total_len) = match answer.content_range() {
        Some(text) => {
            let (start, end, total) =
                parse_content_range(text).ok_or_else(|| told("an unreadable Content-Range"))?;
            if end - start + 1 != body_len {
                return Err(told("a body that is not as long as its range"));
            }
            (start, total)
        }
        // No range asked for, or one that covers all and was left unsaid.
        None => (0, body_len),
    };
    let wanted = select
        .range
        .map_or((0, total_len), |range| range.of(total_len));
    if wanted != (start, body_len) {
        return Err(told("another range than the one asked for"));
    }
    let pin = Pin {
        version_id: answer.version_id().map(str::to_owned),
        etag: answer.e_tag().map(str::to_owned),
        total_len,
        content_type: answer.content_type().map(str::to_owned),
        last_modified: answer.last_modified().and_then(instant),
        storage_class: answer.storage_class().map(|c| c.as_str().to_owned()),
        restore: answer.restore().map(str::to_owned),
    };
    if let (None, Some(version)) = (&select.pin, &select.version_id)
        && pin.version_id.as_ref() != Some(version)
    {
        // Whoever names a version is not warned of an old one.
        return Err(match &pin.version_id {
            Some(_) => told("another version than the one asked for"),
            None => StoreError::NoSuchVersion {
                bucket: place.bucket.clone(),
                key: place.key.clone(),
            },
        });
    }
    if let Some(before) = &select.pin {
        // A store that ignores If-Match or the version still tells what it
        // served.
        let same = before.etag == pin.etag
            && before.total_len == total_len
            && (before.version_id.is_none() || before.version_id == pin.version_id);
        if !same {
            return Err(StoreError::Changed);
        }
    }
    Ok(Fetched {
        pin,
        total_len,
        start,
        len: body_len,
        metadata: super::object::pairs(answer.metadata()),
        request_id: answer.request_id().map(str::to_owned),
    })
}

/// Reads exactly `len` bytes.
async fn drain(mut body: ByteStream, len: usize, sink: &mut impl Sink) -> Result<(), String> {
    let mut left = len;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| format!("a read broke off: {e}"))?;
        if chunk.len() > left {
            return Err(format!("a read brought more than {len} bytes"));
        }
        sink.take(&chunk);
        left -= chunk.len();
    }
    if left > 0 {
        return Err(format!("a read ended {left} bytes early"));
    }
    Ok(())
}
