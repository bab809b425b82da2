//! Archive classes, standing and versions: what a client must know before it
//! reads an old or a stored-away object back.

use serde::{Deserialize, Serialize};

/// What this host's catalogue says of the message that was opened
/// (docs/api.md, `Strongroom-Standing`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// This host stored it, and nothing after it.
    Current,
    /// This host stored it, and another message or a deletion after it.
    Superseded,
    /// Another writer stored it, before this host's last.
    Older,
    /// Another writer stored it, after this host's last.
    Foreign,
    /// This host never stored anything there.
    Unknown,
    /// The catalogue of a configured `[[writer]]` has it.
    Writer,
}

impl Standing {
    const ALL: [Self; 6] = [
        Self::Current,
        Self::Superseded,
        Self::Older,
        Self::Foreign,
        Self::Unknown,
        Self::Writer,
    ];

    /// Its word in headers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Superseded => "superseded",
            Self::Older => "older",
            Self::Foreign => "foreign",
            Self::Unknown => "unknown",
            Self::Writer => "writer",
        }
    }

    /// The standing with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == word)
    }

    /// Whether a catalogue that this host trusts has the message (SECURITY
    /// rule 16).
    #[must_use]
    pub fn is_vouched_for(self) -> bool {
        matches!(self, Self::Current | Self::Superseded | Self::Writer)
    }
}

/// How soon, and for how much money, an archived object is to be readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Cheapest: 5 to 48 hours.
    Bulk,
    /// 3 to 12 hours.
    #[default]
    Standard,
    /// Minutes; not for DEEP_ARCHIVE.
    Expedited,
}

impl Tier {
    /// Its word in queries and options.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Standard => "standard",
            Self::Expedited => "expedited",
        }
    }

    /// The tier with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Bulk, Self::Standard, Self::Expedited]
            .into_iter()
            .find(|tier| tier.as_str() == word)
    }
}

/// Whether an object can be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Availability {
    /// It can.
    Readable,
    /// It was asked for, and is not there yet.
    Restoring,
    /// It is in an archive class, and nobody asked for it.
    Archived,
}

/// `POST /v1/objects/{bucket}/{key}?restore`: how far an archived object is
/// from being readable. The store's word; nothing of it is authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveState {
    /// Whether it can be read.
    pub state: Availability,
    /// Whether this request made the store begin.
    pub asked: bool,
    /// Its storage class, where the store tells one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// A restored copy is readable until then, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// A version of an object, or the mark of its deletion, in a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionEntry {
    /// The object's key.
    pub key: String,
    /// How to ask for it; absent where the bucket has no versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Whether it is what a read without a version id gets.
    pub is_latest: bool,
    /// A mark of deletion, which has no bytes.
    pub delete_marker: bool,
    /// Bytes in the store.
    pub stored_size: u64,
    /// When it was stored, RFC 3339; the store's word.
    pub last_modified: String,
    /// Its storage class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
}

/// A page of versions: an object's stand together, its newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionList {
    /// Versions and delete markers, in the store's order of keys.
    pub versions: Vec<VersionEntry>,
    /// Give this as `continuation` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuation: Option<String>,
}
