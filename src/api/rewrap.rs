//! `POST /v1/rewrap`: what it is asked, and the lines it answers with.

use serde::{Deserialize, Serialize};

/// What is rewrapped, and how. The query of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewrapOptions {
    /// The bucket.
    pub bucket: String,
    /// Which keys of it.
    pub prefix: String,
    /// The key or ring that is to open all of it; by default, for each
    /// object, the active key of the ring of the key that opens it.
    pub to: Option<String>,
    /// Which of how many shards, `3/16`.
    pub shard: Option<String>,
    /// Objects a second, at most.
    pub rate: Option<u32>,
    /// Only find out what there is to do.
    pub dry_run: bool,
    /// Many keyslots in one object.
    pub pack: bool,
    /// What the list in the body is called; a run is resumed by it.
    pub source: Option<String>,
}

/// A version to be rewrapped: a line of the request's body, where the list
/// does not come from the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewrapItem {
    /// The object's key.
    pub key: String,
    /// Its version; the current one when absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version_id: Option<String>,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewrapCounts {
    /// Versions looked at.
    pub examined: u64,
    /// Those that got a keyslot (or would, in a dry run).
    pub rewrapped: u64,
    /// Those that the target opened already.
    pub already: u64,
    /// What is no message at all.
    pub ignored: u64,
    /// Those that have no keyslot now and need one.
    pub failed: u64,
    /// Keyslots that were not what their names say.
    pub planted: u64,
    /// Packs written.
    pub packs: u64,
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum RewrapLine {
    /// It begins.
    Begin {
        /// Versions there are about, if the catalogue can tell.
        #[serde(skip_serializing_if = "Option::is_none")]
        about: Option<u64>,
        /// A former run got this far; its counts are taken over.
        #[serde(skip_serializing_if = "Option::is_none")]
        resumed: Option<RewrapCounts>,
    },
    /// How far it is, about once a second.
    Progress {
        /// So far.
        #[serde(flatten)]
        counts: RewrapCounts,
    },
    /// A version that has no keyslot now and needs one.
    Failed {
        /// The object's key.
        key: String,
        /// Its version.
        #[serde(skip_serializing_if = "Option::is_none")]
        version_id: Option<String>,
        /// The error's type (docs/errors.md).
        error: String,
        /// What failed and why.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// A keyslot that is not what its name says: somebody else can write
    /// there.
    Planted {
        /// The object's key.
        key: String,
        /// The keyslot's name.
        slot: String,
        /// What is wrong with it.
        detail: String,
    },
    /// It has been through everything.
    End {
        /// In all.
        #[serde(flatten)]
        counts: RewrapCounts,
        /// Whether nothing is left to do: no version failed.
        complete: bool,
    },
    /// It stopped before the end; the same request goes on from there.
    Stopped {
        /// So far.
        #[serde(flatten)]
        counts: RewrapCounts,
        /// The error's type (docs/errors.md).
        error: String,
        /// What failed and why.
        detail: String,
        /// What to do.
        hint: String,
    },
}
