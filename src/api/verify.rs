//! `POST /v1/verify`: what is asked, and the JSON lines of the answer.

use serde::{Deserialize, Serialize};

/// What is to be verified.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// What is looked at: `recipient`.
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
    /// `missing`, `wrong`, `altered`, `unreadable`, or `unchecked` where the
    /// token was away.
    pub result: String,
    /// Why.
    pub detail: String,
}

/// What it came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifySummary {
    /// What was looked at.
    pub check: String,
    /// Whose hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// Objects under the prefix.
    pub listed: u64,
    /// Objects looked at.
    pub checked: u64,
    /// Those in order.
    pub good: u64,
    /// The others, each named before.
    pub bad: u64,
    /// What being good proves.
    pub proves: String,
}
