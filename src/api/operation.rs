//! What can be asked of the agent, in the words of grants and of the audit log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operation that a grant can name (docs/configuration.md, `[[grant]]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Encrypt and store an object.
    Put,
    /// Decrypt and read an object.
    Get,
    /// Size and attributes of an object, for which its header is opened.
    Head,
    /// What is known of an object without decrypting it.
    Inspect,
    /// The names below a prefix.
    List,
    /// Delete an object or a version of it.
    Delete,
    /// Write keyslots for another wrapping key.
    Rewrap,
    /// Read a message that is not bound to a place by our context pairs.
    GetUnbound,
    /// Read a version 1 message, which has no key commitment.
    GetUncommitted,
    /// Status, keys, configuration, evidence.
    Admin,
}

impl Operation {
    /// All of them, in the order in which documents list them.
    pub const ALL: [Self; 10] = [
        Self::Put,
        Self::Get,
        Self::Head,
        Self::Inspect,
        Self::List,
        Self::Delete,
        Self::Rewrap,
        Self::GetUnbound,
        Self::GetUncommitted,
        Self::Admin,
    ];

    /// The operation with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.as_str() == word)
    }

    /// Its word in grants, records and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::Inspect => "inspect",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Rewrap => "rewrap",
            Self::GetUnbound => "get-unbound",
            Self::GetUncommitted => "get-uncommitted",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
