//! `POST /v1/catalog/rebuild`: what is asked, and the JSON lines of the answer.

use serde::{Deserialize, Serialize};

use super::VerifiedObject;

/// What the catalogue is to be rebuilt from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebuildRequest {
    /// The bucket.
    pub bucket: String,
    /// Only keys that begin so.
    #[serde(default)]
    pub prefix: String,
    /// Believe headers that no token opened: one call less for each version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified: bool,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RebuildLine {
    /// A version that is not remembered: an error's type as its result, or
    /// `archived`.
    Object(VerifiedObject),
    /// How far it has come.
    Progress {
        /// Versions looked at.
        listed: u64,
    },
    /// The last line, if all was looked at.
    Summary(RebuildSummary),
    /// The last line, if it broke off.
    Problem(super::Problem),
}

/// What it came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildSummary {
    /// Versions of objects in the bucket.
    pub listed: u64,
    /// Those that are remembered from now on.
    pub recorded: u64,
    /// Those that were known.
    pub known: u64,
    /// Those that are not remembered, each named before.
    pub refused: u64,
}
