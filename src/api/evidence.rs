//! The auditor's report (docs/evidence.md), as JSON.
//!
//! All numbers are whole, so that a report's bytes are the same wherever it
//! is written again; times are RFC 3339 in UTC. What changes from run to run
//! (when it was made, the signature) is outside the [`Report`].

use serde::{Deserialize, Serialize};

use super::{Answer, Operation, Verification};

/// The format's name, which a report of another shape will not bear.
pub const EVIDENCE_FORMAT: &str = "strongroom.evidence/1";

/// A report and who stands for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// What was found.
    pub report: Report,
    /// When it was made.
    pub made_at: String,
    /// SHA-256 of the report's compact JSON, hexadecimal.
    pub report_sha256: String,
    /// A signed note (C2SP signed-note) over hash and time; absent where no
    /// audit key is configured or its token is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why it is not signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsigned: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`EVIDENCE_FORMAT`].
    pub format: String,
    /// From this instant, inclusive.
    pub from: String,
    /// To this one, exclusive.
    pub to: String,
    /// The installation.
    pub installation: Installation,
    /// The six questions of custody with their answers.
    pub questions: Vec<Answer>,
    /// Every configured token.
    pub tokens: Vec<EvidenceToken>,
    /// Every configured wrapping key.
    pub keys: Vec<EvidenceKey>,
    /// The key that signs checkpoints and reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_key: Option<AuditKey>,
    /// Who may do what, by the configuration in force.
    pub grants: Vec<String>,
    /// Who did what, and how it ended.
    pub activity: Vec<Activity>,
    /// The same by day.
    pub days: Vec<Day>,
    /// What was refused because no grant permitted it.
    pub denials: Listing,
    /// What was refused because the object was not what it should be.
    pub refusals: Listing,
    /// What was verified to be there, the first 500 runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verifications: Vec<EvidenceVerification>,
    /// When a token, the log or the agent was away.
    pub outages: Vec<Outage>,
    /// Changes of keys and configuration.
    pub changes: Listing,
    /// What is behind all this.
    pub log: LogReport,
}

/// The installation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// The host's name, as in the log.
    pub host: String,
    /// The log's name.
    pub origin: String,
    /// The agent's version.
    pub version: String,
    /// Where objects are stored.
    pub endpoint: String,
    /// How the server is confined.
    pub confinement: String,
    /// SHA-256 of the configuration in force, hexadecimal.
    pub config_sha256: String,
    /// The message format and algorithm suite of what is written.
    pub suite: String,
    /// The library that does the body's cryptography.
    pub cryptography: String,
}

/// A token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceToken {
    /// Its configured name.
    pub name: String,
    /// Its label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Manufacturer and model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Hardware and firmware versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// The PKCS#11 library and its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// Who chooses the IV of a wrap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gcm_iv: Option<String>,
    /// A software token: whoever is root on its host can take its keys.
    pub soft: bool,
}

/// A wrapping key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceKey {
    /// Its configured, permanent name.
    pub name: String,
    /// Its ring.
    pub ring: String,
    /// `active`, `decrypt`, `disabled`, `compromised`.
    #[serde(rename = "use")]
    pub usage: String,
    /// The tokens that hold it.
    pub tokens: Vec<String>,
    /// Its CKA_LABEL.
    pub label: String,
    /// The token's check value, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_value: Option<String>,
    /// Its attributes as read from the token; empty while it is away.
    pub attributes: Vec<(String, String)>,
    /// Where it was made: in the token, as the token says, or elsewhere.
    pub origin: String,
    /// When the log tells of its making, or it was first used on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Whether that is when it was made, or only when it was first used here.
    pub made_here: bool,
    /// Whole days from then to the end of the period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_days: Option<u64>,
    /// The configured cryptoperiod in days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cryptoperiod_days: Option<u64>,
    /// Wraps reserved on this host, which bounds those made.
    pub wraps_reserved: u64,
    /// Whether all of its life is counted.
    pub wraps_complete: bool,
    /// Its limit on this host.
    pub wrap_limit: u64,
    /// Objects in the catalogue that depend on it, now.
    pub objects: u64,
    /// Their ciphertext bytes.
    pub stored_bytes: u64,
    /// Objects stored under it in the period.
    pub puts: u64,
    /// Reads that it opened in the period.
    pub gets: u64,
    /// Whether it is active although its cryptoperiod is over.
    #[serde(default)]
    pub cryptoperiod_exceeded: bool,
    /// Its life up to the end of the period, as the log has it.
    #[serde(default)]
    pub life: Vec<LifeEvent>,
}

/// Something that happened to a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifeEvent {
    /// The record's number in the log.
    pub seq: u64,
    /// When.
    pub time: String,
    /// Who did it, where somebody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// `generated`, `rotated`, `decrypt`, `disabled`, `retired`, …
    pub state: String,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The key that signs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditKey {
    /// The token that holds it.
    pub token: String,
    /// Its CKA_LABEL.
    pub label: String,
    /// Its public key: an uncompressed point of P-256, hexadecimal.
    pub public_key: String,
    /// Its attributes as read from the token.
    pub attributes: Vec<(String, String)>,
}

/// What one user did, by operation and result.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Activity {
    /// The user.
    pub uid: u32,
    /// What was asked.
    pub operation: String,
    /// `ok`, an error's type, `abandoned`, or `denied`.
    pub result: String,
    /// How often.
    pub count: u64,
    /// Plaintext bytes taken in or handed out.
    pub bytes: u64,
}

/// A day's operations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    /// The date, UTC.
    pub date: String,
    /// Objects stored.
    pub puts: u64,
    /// Objects read, whole or in part.
    pub gets: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Operations that failed for another reason than the next two.
    pub failures: u64,
    /// Not permitted.
    pub denials: u64,
    /// Refused as altered.
    pub refusals: u64,
}

/// Records, the first of them shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// How many there are in the period.
    pub total: u64,
    /// The first of them.
    pub shown: Vec<Shown>,
}

/// A record of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Its number in the log.
    pub seq: u64,
    /// When.
    pub time: String,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// What was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// The object, or the key or token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What came of it.
    pub what: String,
}

/// A run of `verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceVerification {
    /// Its record's number in the log.
    pub seq: u64,
    /// When it ended.
    pub time: String,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// What was verified: `s3://BUCKET/PREFIX`.
    pub subject: String,
    /// `ok` if it came to its end.
    pub result: String,
    /// What it came to, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<Verification>,
}

/// Something was away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// `token NAME`, `audit log`, `agent`.
    pub what: String,
    /// Since when, or before the period.
    pub from: String,
    /// Until when; absent if it lasted beyond the period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// In words.
    pub why: String,
}

/// What is behind the report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// Records in the period.
    pub records: u64,
    /// The first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seq: Option<u64>,
    /// The last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// All records up to the end of the period.
    pub size: u64,
    /// RFC 6962 root over them, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Begins in the period that have no end and no resolution.
    pub open: u64,
    /// Whether every record and checkpoint agrees.
    pub intact: bool,
    /// The first thing that does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Records under a signed checkpoint.
    pub signed: u64,
    /// Records under an anchored checkpoint, as the agent remembers it.
    pub anchored: u64,
    /// What the log does not prove.
    pub caveats: Vec<String>,
}
