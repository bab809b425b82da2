//! What can go wrong with a token, by what the caller can do about it.

use crate::api;

use super::protocol::{Failure, FailureKind};

/// Why a token call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Temporary: no worker, or it was lost on the way. Nothing was decided
    /// about the input.
    #[error("{detail}")]
    Away {
        /// What failed and why.
        detail: String,
    },
    /// The PIN was refused; nothing is tried again until it is mended.
    #[error("{detail}")]
    Locked {
        /// What failed and why.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// The token or this key is set up wrongly.
    #[error("{detail}")]
    Misconfigured {
        /// What failed and why.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// This wrapped data key does not open; the key and the token are fine.
    #[error("the wrapping key does not open this encrypted data key")]
    BadCiphertext,
    /// The token refuses this input: an AAD beyond what it takes.
    #[error("{detail}")]
    Rejected {
        /// What failed and why.
        detail: String,
    },
    /// There already is a token or key of that label.
    #[error("{detail}")]
    Exists {
        /// What failed and why.
        detail: String,
    },
    /// No such key is configured on this token.
    #[error("no key {0:?} is configured on this token")]
    UnknownKey(String),
    /// The token did not answer within `call_timeout`; its worker is being
    /// replaced.
    #[error("the token did not answer within its call_timeout")]
    Timeout,
}

impl TokenError {
    pub(super) fn away(detail: impl Into<String>) -> Self {
        Self::Away {
            detail: detail.into(),
        }
    }

    /// What to do, where the fault itself knows better than the table.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Locked { hint, .. } | Self::Misconfigured { hint, .. } => Some(hint),
            _ => None,
        }
    }
}

impl From<Failure> for TokenError {
    fn from(failure: Failure) -> Self {
        let Failure { kind, detail, hint } = failure;
        let hint = hint.unwrap_or_else(|| api_kind(kind).hint().to_owned());
        match kind {
            FailureKind::Away | FailureKind::Lost => Self::Away { detail },
            FailureKind::Locked => Self::Locked { detail, hint },
            FailureKind::Misconfigured | FailureKind::Absent => {
                Self::Misconfigured { detail, hint }
            }
            FailureKind::BadCiphertext => Self::BadCiphertext,
            FailureKind::Rejected => Self::Rejected { detail },
            FailureKind::Exists => Self::Exists { detail },
        }
    }
}

impl From<TokenError> for api::Error {
    fn from(error: TokenError) -> Self {
        let kind = match &error {
            TokenError::Away { .. } | TokenError::Timeout => api::ErrorKind::TokenAway,
            TokenError::Locked { .. } => api::ErrorKind::TokenLocked,
            TokenError::Misconfigured { .. } => api::ErrorKind::Misconfigured,
            TokenError::BadCiphertext => api::ErrorKind::NoKey,
            TokenError::Rejected { .. } => api::ErrorKind::Malformed,
            TokenError::Exists { .. } => api::ErrorKind::AlreadyExists,
            TokenError::UnknownKey(_) => api::ErrorKind::NotFound,
        };
        let text = Self::new(kind, error.to_string());
        match (&error, error.hint()) {
            (_, Some(hint)) => text.hint(hint),
            (TokenError::Rejected { .. }, _) => {
                text.hint("shorten the encryption context, or choose another value")
            }
            (TokenError::Exists { .. }, _) => text.hint("choose another label"),
            (TokenError::UnknownKey(_), _) => {
                text.hint("`strongroom key list` shows the configured keys")
            }
            _ => text,
        }
    }
}

fn api_kind(kind: FailureKind) -> api::ErrorKind {
    match kind {
        FailureKind::Locked => api::ErrorKind::TokenLocked,
        FailureKind::Misconfigured | FailureKind::Absent => api::ErrorKind::Misconfigured,
        _ => api::ErrorKind::TokenAway,
    }
}
