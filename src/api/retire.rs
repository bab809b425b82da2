//! The life of a wrapping key as the routes tell it: what depends on it,
//! whether it may be retired, and the catalogue that other hosts are shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::KeyInfo;

/// `GET /v1/keys/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDetail {
    /// What `GET /v1/keys` tells of it.
    #[serde(flatten)]
    pub info: KeyInfo,
    /// Objects and versions in the catalogue whose data key it holds, as
    /// wrapping key or as a recipient's.
    pub objects: u64,
    /// Their ciphertext bytes.
    pub stored_bytes: u64,
    /// What is queued or to be resumed under it.
    pub dependents: u64,
    /// Uploads in progress under it.
    pub uploads: u64,
}

/// `POST /v1/keys/retire`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetireRequest {
    /// The key's configured name.
    pub key: String,
    /// Buckets to look at besides those that catalogue, grants and writers
    /// name.
    #[serde(default)]
    pub buckets: Vec<String>,
    /// How old another writer's catalogue may be, in seconds; a day when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
    /// Nothing is looked at: the key was found to be needless, has been
    /// disabled since, and is put on record as retired.
    #[serde(default)]
    pub done: bool,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetireLine {
    /// How far it has come.
    Progress {
        /// Versions looked at.
        versions: u64,
    },
    /// The last line, if all was looked at.
    Report(RetireReport),
    /// The last line, if it broke off.
    Problem(super::Problem),
}

/// Whether anything may be openable by one key alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetireReport {
    /// The key.
    pub key: String,
    /// Whether nothing speaks against it.
    pub may_retire: bool,
    /// What does, the first of it.
    pub reasons: Vec<RetireReason>,
    /// How much there is of that.
    pub total_reasons: u64,
    /// Every bucket whose versions were listed.
    pub buckets: Vec<String>,
    /// Versions looked at.
    pub versions: u64,
    /// Of these, no message of ours.
    pub no_messages: u64,
    /// Of these, messages for which the key is not needed: it holds no data
    /// key of theirs.
    pub independent: u64,
    /// Of these, messages that another key was seen to open, by its name.
    pub opened_by: BTreeMap<String, u64>,
    /// Entries of this host's catalogue that were found in the listing.
    pub catalogue: u64,
    /// Other writers whose catalogues were looked at.
    pub writers: Vec<String>,
}

/// What speaks against it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetireReason {
    /// `in-use`, `only-key`, `hidden`, `queue`, `upload`, `writer`, or
    /// `unknown` where something could not be looked at.
    pub kind: String,
    /// The object, ticket or writer.
    pub subject: String,
    /// In words.
    pub why: String,
}

/// What the first line of an exported catalogue says of its format.
pub const EXPORT_FORMAT: &str = "strongroom/catalogue/1";

/// The first line of an exported catalogue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportHead {
    /// [`EXPORT_FORMAT`].
    pub format: String,
    /// Whose it is: the log's name.
    pub host: String,
    /// When it was begun, RFC 3339.
    pub time: String,
    /// The schema's version.
    pub schema: u64,
    /// Keys that wrap on that host.
    pub active: Vec<String>,
    /// What depends on keys and is no object yet: wrapping key and words.
    pub dependents: Vec<(String, String)>,
}

/// Its last line, without which it is not whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportEnd {
    /// Entries between the first line and this one.
    pub entries: u64,
}
