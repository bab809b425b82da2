//! `POST /v1/verify`: what is asked, and the JSON lines of the answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is to be verified.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// How closely it is looked at: `list`, `head`, `read`; or `recipient`.
    pub check: String,
    /// Whose hold on the objects, for `recipient`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// Only keys that begin so.
    #[serde(default)]
    pub prefix: String,
    /// The share of the objects to look at, above 0 and at most 1; all when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<f64>,
    /// What this host did not store is counted and is no finding: other
    /// writers use the prefix too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_extra: bool,
    /// Only the current version of each object: a lifecycle rule takes the
    /// others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub current_only: bool,
}

/// One line of the answer: objects that are not good, how far it has come,
/// and at the end a summary or a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyLine {
    /// An object that is not good.
    Object(VerifiedObject),
    /// How far it has come.
    Progress {
        /// Objects listed.
        listed: u64,
        /// Objects looked at.
        checked: u64,
    },
    /// The last line, if all was looked at.
    Summary(VerifySummary),
    /// The last line, if it broke off.
    Problem(super::Problem),
}

/// An object that is not good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedObject {
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// The version, if it is not the current one that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Of the levels, a word of docs/verify.md. Of a recipient `missing`,
    /// `wrong`, `altered`, `unreadable`, or `unchecked` where the token was
    /// away.
    pub result: String,
    /// Why.
    pub detail: String,
}

/// A verification's result, as the audit log has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verification {
    /// `list`, `head` or `read`.
    pub level: String,
    /// The share that `head` or `read` looked at, if not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
    /// What this host did not store was no finding.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_extra: bool,
    /// Older versions were left alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub current_only: bool,
    /// When it began, RFC 3339.
    pub began: String,
    /// Objects and versions listed.
    pub listed: u64,
    /// Those looked at more closely.
    pub checked: u64,
    /// Those in order.
    pub good: u64,
    /// The others.
    pub bad: u64,
    /// Allowed ones that this host did not store.
    pub extra: u64,
    /// Those that could not be looked at.
    pub unchecked: u64,
    /// How many of each finding.
    pub findings: BTreeMap<String, u64>,
    /// SHA-256 of the lines of the findings, hexadecimal.
    pub digest: String,
}

/// What it came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifySummary {
    /// What was looked at.
    pub check: String,
    /// Whose hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The bucket.
    #[serde(default)]
    pub bucket: String,
    /// The prefix.
    #[serde(default)]
    pub prefix: String,
    /// Objects under the prefix; of the levels, with older versions.
    pub listed: u64,
    /// Objects looked at: of `head` and `read`, more closely than in the
    /// listing.
    pub checked: u64,
    /// Those in order.
    pub good: u64,
    /// The others, each named before.
    pub bad: u64,
    /// Objects that this host did not store, where they are allowed.
    #[serde(default)]
    pub extra: u64,
    /// Objects that could not be looked at: archived ones.
    #[serde(default)]
    pub unchecked: u64,
    /// Objects looked at whose store told no checksum to compare.
    #[serde(default)]
    pub without_checksum: u64,
    /// How many of each finding.
    #[serde(default)]
    pub findings: BTreeMap<String, u64>,
    /// SHA-256 of the lines of the findings, as they were told, each with its
    /// line feed; hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When it began, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<String>,
    /// The operation in the audit log, whose next signed checkpoint covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// What being good proves.
    pub proves: String,
}
