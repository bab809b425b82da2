//! What a client hears of the rooms' failures: each room's own error, by its
//! place in the closed table.

use crate::api::{Error, ErrorKind};
use crate::message;
use crate::store::{SpoolError, StoreError};

/// What a client hears of the store's failure.
#[must_use]
pub fn store_error(error: &StoreError) -> Error {
    let kind = match error {
        StoreError::NoSuchBucket { .. } => ErrorKind::NoSuchBucket,
        StoreError::NoSuchKey { .. } | StoreError::NoSuchVersion { .. } => ErrorKind::NoSuchObject,
        StoreError::Exists => ErrorKind::AlreadyExists,
        StoreError::Conflict { .. } | StoreError::Changed => ErrorKind::Conflict,
        StoreError::Denied { .. } => ErrorKind::StoreDenied,
        StoreError::Archived => ErrorKind::Archived,
        StoreError::Invalid { .. } => ErrorKind::Malformed,
        StoreError::Away { .. } | StoreError::SlowDown { .. } => ErrorKind::StoreAway,
        StoreError::Spool { .. } => ErrorKind::StateFailed,
        StoreError::Corrupt { .. } | StoreError::Failed { .. } => ErrorKind::StoreFailed,
    };
    Error::new(kind, error.to_string())
}

/// What a client hears of a message's failure.
#[must_use]
pub fn message_error(error: &message::Error) -> Error {
    let kind = match error {
        message::Error::NotAMessage => ErrorKind::NotAMessage,
        message::Error::Unsupported(..) | message::Error::Limit(..) => ErrorKind::Unsupported,
        message::Error::Context(..) => ErrorKind::Malformed,
        message::Error::Uncommitted => ErrorKind::Uncommitted,
        message::Error::Truncated(..) => ErrorKind::Truncated,
        message::Error::Altered(..) | message::Error::WrongKey => ErrorKind::Altered,
        message::Error::Differs(..) => ErrorKind::UploadGone,
        message::Error::Misuse(..) | message::Error::Internal(..) => ErrorKind::Internal,
    };
    Error::new(kind, error.to_string())
}

/// What a client hears of the spool's failure.
#[must_use]
pub fn spool_error(error: &SpoolError) -> Error {
    match error {
        SpoolError::Full { .. } => Error::new(ErrorKind::SpoolFull, error.to_string()),
        SpoolError::Io(_) => Error::new(ErrorKind::StateFailed, error.to_string())
            .hint("check space and permissions of the spool directory"),
    }
}
