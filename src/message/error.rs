//! Why a message cannot be written or read, by what the caller can do.

/// What went wrong with a message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes do not begin like a message: another kind of object.
    #[error("not an AWS Encryption SDK message")]
    NotAMessage,
    /// A message that we do not read (yet): use another implementation.
    #[error("unsupported message: {0}")]
    Unsupported(String),
    /// Larger than we take; the text names the limit.
    #[error("over a limit: {0}")]
    Limit(String),
    /// The encryption context that the caller gave cannot be used.
    #[error("unusable encryption context: {0}")]
    Context(String),
    /// A version 1 message without key commitment, which the caller did not
    /// ask for by name.
    #[error("the message has no key commitment (version 1)")]
    Uncommitted,
    /// Shorter than it must be.
    #[error("the message is truncated: {0}")]
    Truncated(String),
    /// Not what its writer sealed.
    #[error("the message was altered: {0}")]
    Altered(String),
    /// This data key does not belong to this message: try the next EDK.
    #[error("the data key does not fit the message")]
    WrongKey,
    /// A frame sealed anew is not what was sealed before: the source changed.
    #[error("frame {0} is not what was sealed before")]
    Differs(u32),
    /// A call that the message's state does not allow: a fault of the caller.
    #[error("misuse of the message format: {0}")]
    Misuse(&'static str),
    /// The operating system or the cipher failed.
    #[error("internal failure: {0}")]
    Internal(String),
}

impl Error {
    /// Short for [`Error::Altered`] with fixed words.
    pub(super) fn altered(what: &str) -> Self {
        Self::Altered(what.to_owned())
    }
}
