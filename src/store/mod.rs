//! The object store: **the only code that names aws-sdk-s3**.
//!
//! Everything that passes through here is ciphertext or a wrapped key; this
//! module cannot name a key type. It keeps three promises:
//!
//! - an upload becomes an object whole, with the sizes and checksums that we
//!   computed, or leaves nothing behind ([`Store::put`], [`Upload`]);
//! - a read is pinned to one version: an overwrite in between is an error,
//!   never a mixture ([`Store::fetch`], [`Pin`]);
//! - memory and spool space are budgets that callers reserve before they read
//!   ([`Pool`], [`Spool`]).

mod attributes;
mod body;
mod buffer;
mod checksum;
mod client;
mod compare;
mod download;
mod error;
mod list;
mod multipart;
mod object;
mod parts;
mod pool;
mod probe;
mod queued;
mod range;
mod restore;
mod single;
mod spool;
mod tally;
mod upload;
mod versions;
mod wire;

pub use attributes::{Attributes, METADATA_HEADER, METADATA_LIMIT, METADATA_MESSAGE_ID};
pub use body::{PartBody, Running};
pub use buffer::Buffer;
pub use checksum::Sum;
pub use client::{Store, Timing};
pub use compare::Comparison;
pub use download::{Fetched, Pin, Select};
pub use error::StoreError;
pub use list::{ListedObject, ListedUpload, Page};
pub use multipart::ListedPart;
pub use object::{Deleted, Head};
pub use parts::{Limits, PartPlan};
pub use pool::{Pool, Starved};
pub use probe::BucketFacts;
pub use queued::{FileSums, QueueReader, QueueWriter};
pub use range::ByteRange;
pub use restore::Asked;
pub use single::Stored;
pub use spool::{Spool, SpoolError, SpoolFile};
pub use tally::Calls;
pub use upload::{OnSent, SentPart, Upload};
pub use versions::{ListedVersion, VersionMarker, VersionPage};

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The bucket's name.
    pub bucket: String,
    /// The object's key, decoded: any 1 to 1,024 bytes of UTF-8 without NUL.
    pub key: String,
}

impl Place {
    /// The place of `key` in `bucket`.
    pub fn new(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            key: key.into(),
        }
    }

    /// Refuses what S3 cannot store, before anything is sent: an empty or
    /// over-long key (S3 User Guide, "Naming Amazon S3 objects": at most
    /// 1,024 bytes), a NUL, a bucket's name that would change the URL.
    ///
    /// # Errors
    /// [`StoreError::Invalid`].
    pub fn check(&self) -> Result<(), StoreError> {
        let invalid = |message: String| Err(StoreError::Invalid { message });
        // Names of 3 to 63 bytes, and 255 on stores that keep the old rule.
        let bucket_fine = (1..=255).contains(&self.bucket.len())
            && self
                .bucket
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !self.bucket.bytes().all(|b| b == b'.');
        if !bucket_fine {
            return invalid(format!("{:?} is not a bucket's name", self.bucket));
        }
        match self.key.len() {
            0 => invalid("the object key is empty".into()),
            1..=MAX_KEY_LEN if self.key.contains('\0') => {
                invalid("the object key contains a NUL byte".into())
            }
            1..=MAX_KEY_LEN => Ok(()),
            n => invalid(format!(
                "the object key has {n} bytes; S3 allows {MAX_KEY_LEN}"
            )),
        }
    }
}

/// Longest object key, in bytes of UTF-8 (S3 User Guide, "Naming Amazon S3
/// objects").
const MAX_KEY_LEN: usize = 1024;

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::Place;

    #[test]
    fn keys_are_refused_only_where_s3_refuses_them() {
        let longest = "k".repeat(1024);
        for key in ["..", "a//b", "a%2Fb", " ", "\u{e9}\u{4e2d}", &longest] {
            Place::new("bucket", key).check().unwrap();
        }
        let too_long = "k".repeat(1025);
        for key in ["", "a\0b", &too_long] {
            Place::new("bucket", key).check().unwrap_err();
        }
        for bucket in ["", "..", "a/b", "a?b", "a b", "\u{e9}"] {
            Place::new(bucket, "key").check().unwrap_err();
        }
    }
}
