//! Listing, a page at a time: memory does not grow with the bucket.

use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::types::EncodingType;
use percent_encoding::percent_decode_str;

use super::error::classify;
use super::object::instant;
use super::{Place, Store, StoreError};

/// Most entries of a page (S3 API reference, ListObjectsV2).
const MAX_PAGE: u32 = 1000;

/// A page of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The objects, in the store's order.
    pub objects: Vec<ListedObject>,
    /// What lies behind the delimiter, rolled up.
    pub prefixes: Vec<String>,
    /// Where the next page begins; absent on the last.
    pub continuation: Option<String>,
    /// The store's id of the request.
    pub request_id: Option<String>,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key.
    pub key: String,
    /// Its bytes, as stored.
    pub size: u64,
    /// Its entity tag, quotes included.
    pub etag: Option<String>,
    /// When it was stored, RFC 3339.
    pub last_modified: Option<String>,
    /// Its storage class.
    pub storage_class: Option<String>,
}

/// A multipart upload that was neither completed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedUpload {
    /// The key it would make.
    pub key: String,
    /// Its id, for [`Store::abort_upload`].
    pub upload_id: String,
    /// When it was begun, RFC 3339.
    pub initiated: Option<String>,
}

impl Store {
    /// A page of at most `max` (and 1,000) entries.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        continuation: Option<&str>,
        max: u32,
    ) -> Result<Page, StoreError> {
        self.list_from(bucket, prefix, delimiter, None, continuation, max)
            .await
    }

    /// The first `max` (and 1,000) objects under `prefix` whose names sort
    /// behind `after`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn list_behind(
        &self,
        bucket: &str,
        prefix: &str,
        after: &str,
        max: u32,
    ) -> Result<Page, StoreError> {
        self.list_from(bucket, prefix, None, Some(after), None, max)
            .await
    }

    async fn list_from(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
        continuation: Option<&str>,
        max: u32,
    ) -> Result<Page, StoreError> {
        let max = i32::try_from(max.clamp(1, MAX_PAGE)).unwrap_or(i32::MAX);
        let place = Place::new(bucket, prefix);
        let answer = self
            .inner
            .client
            .list_objects_v2()
            .bucket(bucket)
            .prefix(prefix)
            .set_delimiter(delimiter.map(str::to_owned))
            .set_start_after(after.map(str::to_owned))
            .set_continuation_token(continuation.map(str::to_owned))
            .max_keys(max)
            // XML cannot hold every character that a key may have.
            .encoding_type(EncodingType::Url)
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await
            .map_err(|e| classify("ListObjectsV2", &place, e))?;
        let encoded = answer.encoding_type() == Some(&EncodingType::Url);
        let mut page = Page {
            continuation: answer
                .next_continuation_token()
                .filter(|_| answer.is_truncated() == Some(true))
                .map(str::to_owned),
            request_id: answer.request_id().map(str::to_owned),
            ..Page::default()
        };
        for object in answer.contents() {
            page.objects.push(ListedObject {
                key: decode(object.key().unwrap_or_default(), encoded)?,
                size: object
                    .size()
                    .and_then(|n| u64::try_from(n).ok())
                    .unwrap_or_default(),
                etag: object.e_tag().map(str::to_owned),
                last_modified: object.last_modified().and_then(instant),
                storage_class: object.storage_class().map(|c| c.as_str().to_owned()),
            });
        }
        for common in answer.common_prefixes() {
            page.prefixes
                .push(decode(common.prefix().unwrap_or_default(), encoded)?);
        }
        Ok(page)
    }

    /// The multipart uploads in progress under `prefix`: all of them, since
    /// there are few.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
    ) -> Result<Vec<ListedUpload>, StoreError> {
        let place = Place::new(bucket, prefix);
        let mut uploads = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let answer = self
                .inner
                .client
                .list_multipart_uploads()
                .bucket(bucket)
                .prefix(prefix)
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker)
                .encoding_type(EncodingType::Url)
                .set_expected_bucket_owner(self.inner.owner.clone())
                .send()
                .await
                .map_err(|e| classify("ListMultipartUploads", &place, e))?;
            let encoded = answer.encoding_type() == Some(&EncodingType::Url);
            for upload in answer.uploads() {
                uploads.push(ListedUpload {
                    key: decode(upload.key().unwrap_or_default(), encoded)?,
                    upload_id: upload.upload_id().unwrap_or_default().to_owned(),
                    initiated: upload.initiated().and_then(instant),
                });
            }
            let next = answer.next_key_marker().filter(|m| !m.is_empty());
            match next.filter(|_| answer.is_truncated() == Some(true)) {
                Some(marker) => key_marker = Some(decode(marker, encoded)?),
                None => return Ok(uploads),
            }
            id_marker = answer.next_upload_id_marker().map(str::to_owned);
        }
    }
}

/// Undoes `encoding-type=url`, in which a space is `+`.
pub(super) fn decode(text: &str, encoded: bool) -> Result<String, StoreError> {
    if !encoded {
        return Ok(text.to_owned());
    }
    percent_decode_str(&text.replace('+', " "))
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| {
            StoreError::corrupt(format!("the listing has a key that is not UTF-8: {text}"))
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::decode;

    #[test]
    fn listed_keys_are_decoded_once() {
        assert_eq!(
            decode("a+b%2Bc%252F%C3%A9", true).unwrap(),
            "a b+c%2F\u{e9}"
        );
        assert_eq!(decode("a+b%20", false).unwrap(), "a+b%20");
        decode("%FF", true).unwrap_err();
    }
}
