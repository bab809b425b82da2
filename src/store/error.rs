//! What can go wrong at the store, by what the caller can do about it.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::Place;

/// A failure of the store. No text holds a credential.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Make the bucket, or name another.
    #[error("no such bucket: {bucket:?}")]
    NoSuchBucket {
        /// Its name.
        bucket: String,
    },
    /// There is no such object.
    #[error("no such object: s3://{bucket}/{key}")]
    NoSuchKey {
        /// The bucket.
        bucket: String,
        /// The object's key.
        key: String,
    },
    /// The object has no such version, or that version is a delete marker.
    #[error("s3://{bucket}/{key} has no such version")]
    NoSuchVersion {
        /// The bucket.
        bucket: String,
        /// The object's key.
        key: String,
    },
    /// `If-None-Match: *` and there is an object already (412).
    #[error("an object already exists there")]
    Exists,
    /// Somebody else writes the same object at this moment (409): start over.
    #[error("another writer is changing the same object: {message}")]
    Conflict {
        /// What the store said.
        message: String,
    },
    /// The object was replaced or deleted while it was being read.
    #[error("the object was replaced or deleted while it was being read")]
    Changed,
    /// The credentials are missing, wrong or expired, or do not permit this.
    #[error("the store denies access ({code}): {message}")]
    Denied {
        /// The store's error code.
        code: String,
        /// What it said.
        message: String,
    },
    /// The object is in an archive class and must be restored first.
    #[error("the object is archived and must be restored before it can be read")]
    Archived,
    /// The request cannot succeed as it is.
    #[error("{message}")]
    Invalid {
        /// What is wrong with it.
        message: String,
    },
    /// The store cannot be reached, or failed after all retries.
    #[error("the store is away: {message}")]
    Away {
        /// What happened.
        message: String,
    },
    /// The store asks for fewer requests, and retries did not help.
    #[error("the store is busy: {message}")]
    SlowDown {
        /// What it said.
        message: String,
    },
    /// What the store has or says it has is not what we sent.
    #[error("the store altered the data: {message}")]
    Corrupt {
        /// Which comparison failed.
        message: String,
    },
    /// A spooled part could not be read back as it was written.
    #[error("the spool failed: {message}")]
    Spool {
        /// What the system said.
        message: String,
    },
    /// Anything else that the store answered.
    #[error("the store failed ({code}): {message}")]
    Failed {
        /// Its error code, or the HTTP status.
        code: String,
        /// What it said.
        message: String,
        /// Its id of the request, for the provider's support.
        request_id: Option<String>,
    },
}

/// The code under which a vanished multipart upload is told.
pub(super) const NO_SUCH_UPLOAD: &str = "NoSuchUpload";

impl StoreError {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid {
            message: message.into(),
        }
    }

    pub(super) fn corrupt(message: impl Into<String>) -> Self {
        Self::Corrupt {
            message: message.into(),
        }
    }

    /// Whether the request may have been carried out although it failed: the
    /// answer was lost, or came from something between us and the store.
    pub(super) fn is_ambiguous(&self) -> bool {
        match self {
            Self::Away { .. } | Self::SlowDown { .. } => true,
            Self::Failed { code, .. } => code == NO_SUCH_UPLOAD || code == UNREADABLE,
            _ => false,
        }
    }

    /// Whether the request may have been carried out although it failed.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.is_ambiguous() || matches!(self, Self::Failed { .. })
    }

    /// Whether this object is to blame, and not the way to it: asking again
    /// changes nothing.
    #[must_use]
    pub fn is_of_the_object(&self) -> bool {
        matches!(
            self,
            Self::Invalid { .. }
                | Self::Archived
                | Self::Corrupt { .. }
                | Self::Changed
                | Self::NoSuchKey { .. }
                | Self::NoSuchVersion { .. }
        )
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::NoSuchKey { .. } | Self::NoSuchVersion { .. })
    }
}

/// An answer that could not be understood.
const UNREADABLE: &str = "unreadable answer";

/// Turns the SDK's failure of `operation` on `place` into ours, and logs the
/// request ids.
pub(super) fn classify<E>(
    operation: &'static str,
    place: &Place,
    error: SdkError<E, HttpResponse>,
) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let status = error.raw_response().map(|r| r.status().as_u16());
    let request_id = error.request_id().map(str::to_owned);
    let extended = error
        .raw_response()
        .and_then(|r| r.headers().get("x-amz-id-2"));
    let code = error.code().unwrap_or_default().to_owned();
    tracing::debug!(operation, status, code, request_id, extended, place = %place, "the store refused");
    match &error {
        SdkError::ConstructionFailure(_) => {
            StoreError::invalid(format!("the request cannot be built: {}", deep(&error)))
        }
        SdkError::TimeoutError(_) => StoreError::Away {
            message: format!("{operation} got no answer in time"),
        },
        SdkError::DispatchFailure(failure) => {
            let message = deep(&error);
            if failure.is_other() && message.contains("credential") {
                return StoreError::Denied {
                    code: "no credentials".into(),
                    message,
                };
            }
            StoreError::Away { message }
        }
        SdkError::ResponseError(_) => StoreError::Failed {
            code: UNREADABLE.into(),
            message: deep(&error),
            request_id,
        },
        SdkError::ServiceError(_) => {
            let message = error.message().unwrap_or_default().to_owned();
            by_code(
                operation,
                place,
                status.unwrap_or_default(),
                code,
                message,
                request_id,
            )
        }
        // The enum is open; a failure we do not know may have been sent.
        _ => StoreError::Away {
            message: deep(&error),
        },
    }
}

/// An error with its causes, in one line. The SDK's hold no credentials.
fn deep(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += ": ";
        text += &cause.to_string();
        next = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn by_code(
    operation: &str,
    place: &Place,
    status: u16,
    code: String,
    message: String,
    request_id: Option<String>,
) -> StoreError {
    let Place { bucket, key } = place.clone();
    // A HEAD's error has no body and so no code; neither has a proxy's.
    let told = if code.is_empty() {
        format!("HTTP {status}")
    } else {
        code.clone()
    };
    let said = if message.is_empty() {
        format!("{operation} was answered with {told}")
    } else {
        message
    };
    match (code.as_str(), status) {
        ("NoSuchBucket", _) => StoreError::NoSuchBucket { bucket },
        ("NoSuchVersion", _) | (_, 405) => StoreError::NoSuchVersion { bucket, key },
        (NO_SUCH_UPLOAD, _) => StoreError::Failed {
            code,
            message: said,
            request_id,
        },
        ("NoSuchKey" | "NotFound", _) | ("", 404) => StoreError::NoSuchKey { bucket, key },
        ("PreconditionFailed", _) | (_, 412) => StoreError::Exists,
        ("InvalidObjectState", _) => StoreError::Archived,
        (
            "BadDigest"
            | "InvalidDigest"
            | "XAmzContentChecksumMismatch"
            | "XAmzContentSHA256Mismatch"
            | "IncompleteBody",
            _,
        ) => StoreError::Corrupt { message: said },
        (
            "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "AccessDenied"
            | "RequestTimeTooSkewed",
            _,
        )
        | (_, 401 | 403) => StoreError::Denied {
            code: told,
            message: said,
        },
        ("SlowDown" | "ServiceUnavailable" | "RequestLimitExceeded" | "Throttling", _)
        | (_, 429 | 503) => StoreError::SlowDown { message: said },
        ("InternalError" | "RequestTimeout", _) | (_, 408 | 500 | 502 | 504) => StoreError::Away {
            message: format!("{told}: {said}"),
        },
        (_, 409) => StoreError::Conflict { message: said },
        // A success that the SDK cannot read.
        ("", 200..=299) => StoreError::Failed {
            code: UNREADABLE.into(),
            message: said,
            request_id,
        },
        ("NotImplemented", _) | (_, 501) => StoreError::Failed {
            code: told,
            message: said,
            request_id,
        },
        ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) | (_, 301 | 307) => {
            StoreError::invalid(format!(
                "the bucket {bucket:?} is in another region or behind another endpoint ({told}): {said}"
            ))
        }
        (_, 400..=499) => StoreError::invalid(format!("the store refuses it ({told}): {said}")),
        _ => StoreError::Failed {
            code: told,
            message: said,
            request_id,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, code: &str) -> StoreError {
        by_code(
            "PutObject",
            &Place::new("b", "k"),
            status,
            code.into(),
            String::new(),
            None,
        )
    }

    #[test]
    fn answers_become_what_the_caller_can_do() {
        assert!(matches!(
            told(404, "NoSuchBucket"),
            StoreError::NoSuchBucket { .. }
        ));
        assert!(matches!(told(404, ""), StoreError::NoSuchKey { .. }));
        assert!(matches!(
            told(404, "NoSuchUpload"),
            StoreError::Failed { .. }
        ));
        assert!(matches!(
            told(405, "MethodNotAllowed"),
            StoreError::NoSuchVersion { .. }
        ));
        assert!(matches!(told(412, ""), StoreError::Exists));
        assert!(matches!(
            told(409, "ConditionalRequestConflict"),
            StoreError::Conflict { .. }
        ));
        assert!(matches!(
            told(400, "ExpiredToken"),
            StoreError::Denied { .. }
        ));
        assert!(matches!(
            told(403, "InvalidObjectState"),
            StoreError::Archived
        ));
        assert!(matches!(told(400, "BadDigest"), StoreError::Corrupt { .. }));
        assert!(matches!(told(503, ""), StoreError::SlowDown { .. }));
        assert!(matches!(
            told(500, "InternalError"),
            StoreError::Away { .. }
        ));
        // Inside a 200, as CompleteMultipartUpload may answer.
        assert!(matches!(
            told(200, "InternalError"),
            StoreError::Away { .. }
        ));
        assert!(matches!(
            told(400, "KeyTooLongError"),
            StoreError::Invalid { .. }
        ));
        assert!(matches!(
            told(301, "PermanentRedirect"),
            StoreError::Invalid { .. }
        ));
        assert!(matches!(told(418, "Teapot"), StoreError::Invalid { .. }));
        assert!(matches!(told(200, "Odd"), StoreError::Failed { .. }));
    }

    #[test]
    fn only_lost_answers_are_ambiguous() {
        assert!(told(500, "").is_ambiguous());
        assert!(told(404, "NoSuchUpload").is_ambiguous());
        assert!(told(200, "").is_ambiguous());
        assert!(!told(403, "AccessDenied").is_ambiguous());
        assert!(!told(400, "BadDigest").is_ambiguous());
    }
}
