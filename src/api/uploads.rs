//! Uploads that may be resumed (docs/uploads.md).

use serde::{Deserialize, Serialize};

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadInfo {
    /// Its name: `/v1/uploads/{id}`.
    pub id: String,
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// Whose it is.
    pub uid: u32,
    /// What its client says the source is.
    pub source: String,
    /// Plaintext bytes in all.
    pub length: u64,
    /// Plaintext bytes that need not be sent again; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// When it was begun, Unix milliseconds.
    pub created: u64,
    /// When it is given up unless it is resumed before, Unix milliseconds.
    pub expires: u64,
}
