//! Grants as the agent tells of them: which there are, and how one decides.

use serde::{Deserialize, Serialize};

use super::Operation;

/// One grant in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantInfo {
    /// The line of its `[[grant]]` in the configuration.
    pub line: usize,
    /// To whom, as written: `user "backup"`, `gid 1004`.
    pub who: String,
    /// The uid or gid that this stands for.
    pub id: u32,
    /// What.
    pub operations: Vec<Operation>,
    /// Where; empty for `admin`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub bucket: String,
    /// Which keys of the bucket.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub prefix: String,
    /// The only ring whose keys may wrap or open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What a request must also meet, as written: `max_size = 1.0 GiB`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub conditions: Vec<String>,
}

/// How one grant stands to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantCheck {
    /// The grant.
    #[serde(flatten)]
    pub grant: GrantInfo,
    /// Why it does not let it pass; absent if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miss: Option<String>,
}

/// What `GET /v1/grants/test` is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantQuestion {
    /// Who would ask.
    pub uid: u32,
    /// With which primary group.
    pub gid: u32,
    /// With which supplementary groups.
    pub groups: Vec<u32>,
    /// What for.
    pub operation: Operation,
    /// Bucket and key; of a listing, bucket and prefix. None for `admin`.
    pub place: Option<(String, String)>,
    /// The ring that a put would name.
    pub ring: Option<String>,
}

/// `GET /v1/grants/test`: a decision, and how it comes about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantTest {
    /// Whether the request passes, its conditions aside.
    pub allowed: bool,
    /// Why.
    pub why: String,
    /// Who asks.
    pub uid: u32,
    /// With which primary group.
    pub gid: u32,
    /// With which supplementary groups.
    pub groups: Vec<u32>,
    /// What for.
    pub operation: Operation,
    /// Where, `s3://BUCKET/KEY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The line of the grant that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Every grant, in the order in which they are tried.
    pub grants: Vec<GrantCheck>,
}
