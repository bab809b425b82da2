//! What agent and client exchange: the closed table of errors, receipts, and
//! the JSON of status, listing, inspection and keys.
//!
//! Field names and error types are promises to clients (docs/api.md).

mod archive;
mod error;
mod evidence;
mod grants;
mod operation;
mod queue;
mod rebuild;
mod retire;
mod rewrap;
mod uploads;
mod verify;

pub use archive::{ArchiveState, Availability, Standing, Tier, VersionEntry, VersionList};
pub use error::{Error, ErrorKind, Problem};
pub use evidence::{
    Activity, AuditKey, Day, EVIDENCE_FORMAT, Evidence, EvidenceKey, EvidenceToken,
    EvidenceVerification, Installation, LifeEvent, Listing, LogReport, Outage, Report, Shown,
};
pub use grants::{GrantCheck, GrantInfo, GrantQuestion, GrantTest};
pub use operation::Operation;
pub use queue::{QueueStatus, Queued, Ticket};
pub use rebuild::{RebuildLine, RebuildRequest, RebuildSummary};
pub use retire::{
    EXPORT_FORMAT, ExportEnd, ExportHead, KeyDetail, RetireLine, RetireReason, RetireReport,
    RetireRequest,
};
pub use rewrap::{RewrapCounts, RewrapItem, RewrapLine, RewrapOptions};
pub use uploads::UploadInfo;
pub use verify::{Verification, VerifiedObject, VerifyLine, VerifyRequest, VerifySummary};

use serde::{Deserialize, Serialize};

use crate::transport::{Fingerprint, OaepHash, Sealed};

/// Request and response headers that are ours; lower case, as `http` wants.
pub mod header {
    /// Repeatable `k=v`: a pair for the encryption context.
    pub const CONTEXT: &str = "strongroom-context";
    /// S3 storage class.
    pub const STORAGE_CLASS: &str = "strongroom-storage-class";
    /// RFC 3339 instant until which Object Lock retains the object.
    pub const RETAIN_UNTIL: &str = "strongroom-retain-until";
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub const RETENTION_MODE: &str = "strongroom-retention-mode";
    /// `ON` or `OFF`.
    pub const LEGAL_HOLD: &str = "strongroom-legal-hold";
    /// Object tags, URL-encoded as in `x-amz-tagging`.
    pub const TAGS: &str = "strongroom-tags";
    /// The ring (or key) that wraps this object.
    pub const KEY: &str = "strongroom-key";
    /// Opens a message that is not bound to a place by our context pairs.
    pub const ALLOW_UNBOUND: &str = "strongroom-allow-unbound";
    /// Opens a version 1 message, which has no key commitment.
    pub const ALLOW_UNCOMMITTED: &str = "strongroom-allow-uncommitted";
    /// The place, `s3://BUCKET/KEY`, that a copied object is bound to.
    pub const BOUND_TO: &str = "strongroom-bound-to";
    /// On responses: the message id, hexadecimal.
    pub const MESSAGE_ID: &str = "strongroom-message-id";
    /// On responses: the wrapping key that opened the message.
    pub const WRAPPING_KEY: &str = "strongroom-wrapping-key";
    /// On responses: S3's version id.
    pub const VERSION_ID: &str = "strongroom-version-id";
    /// On responses: `true` if another writer stored this object.
    pub const FOREIGN_WRITE: &str = "strongroom-foreign-write";
    /// `true` if the object may wait with the agent while the store is away.
    pub const QUEUE: &str = "strongroom-queue";
    /// The plaintext is no body, but so many bytes of the open file whose
    /// descriptor comes with the connection's first byte.
    pub const DESCRIPTOR: &str = "strongroom-descriptor";
    /// What an upload's client says its source is.
    pub const SOURCE: &str = "strongroom-source";
    /// Where an upload stands, or a part of it begins: bytes (the IETF's
    /// draft on resumable uploads, as the two below).
    pub const UPLOAD_OFFSET: &str = "upload-offset";
    /// The bytes of an upload in all.
    pub const UPLOAD_LENGTH: &str = "upload-length";
    /// `?1` if a request is to complete, or an answer says that it has.
    pub const UPLOAD_COMPLETE: &str = "upload-complete";
    /// On responses: what the catalogue says of the message.
    pub const STANDING: &str = "strongroom-standing";
    /// On responses: the `[[writer]]` whose catalogue has the message.
    pub const WRITER: &str = "strongroom-writer";
    /// On requests: looks for the message in the writers' catalogues too, if
    /// this host's does not have it.
    pub const ASK_WRITERS: &str = "strongroom-ask-writers";
    /// On responses: the state of a copy that was restored from an archive
    /// class, in S3's words.
    pub const RESTORE: &str = "strongroom-restore";
    /// On every response: the id in the agent's log lines.
    pub const REQUEST_ID: &str = "strongroom-request-id";
}

/// Proof of a stored object: what S3 acknowledged and which key wrapped it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The bucket.
    pub bucket: String,
    /// The object key, decoded.
    pub key: String,
    /// S3's version id, in versioned buckets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// S3's entity tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Plaintext bytes.
    pub plaintext_size: u64,
    /// Bytes in S3.
    pub stored_size: u64,
    /// The object's checksum, `algorithm:base64`.
    pub checksum: String,
    /// The message id, 64 hexadecimal digits.
    pub message_id: String,
    /// The configured name of the wrapping key.
    pub wrapping_key: String,
    /// Who else holds the data key: recipients, by their names in the object.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
    /// Recipients that are not required and were away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_recipients: Vec<String>,
    /// When the message was begun, Unix milliseconds; also in its context.
    pub created: u64,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// The object key.
    pub key: String,
    /// Bytes in S3.
    pub stored_size: u64,
    /// Plaintext bytes, where the catalogue knows this very object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plaintext_size: Option<u64>,
    /// S3's modification time, RFC 3339.
    pub last_modified: String,
    /// S3's storage class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPage {
    /// Objects, in S3's order.
    pub objects: Vec<ListEntry>,
    /// Common prefixes, when a delimiter was given.
    pub prefixes: Vec<String>,
    /// Give this as `continuation` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continuation: Option<String>,
}

/// What the six questions need, and what is known without decrypting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The bucket.
    pub bucket: String,
    /// The object key.
    pub key: String,
    /// S3's version id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Bytes in S3.
    pub stored_size: u64,
    /// Plaintext bytes by computation; not authenticated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plaintext_size: Option<u64>,
    /// S3's modification time, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
    /// S3's storage class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Object Lock retains it until then, as the store reports it, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_until: Option<String>,
    /// Object Lock's mode, as the store reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_mode: Option<String>,
    /// Whether it can be read now, for objects in an archive class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveState>,
    /// ESDK message format version.
    pub format_version: u8,
    /// ESDK algorithm suite, such as `0x0478`.
    pub suite: String,
    /// The message id, hexadecimal.
    pub message_id: String,
    /// Plaintext bytes a frame; 0 when not framed.
    pub frame_length: u32,
    /// The encryption context as stored.
    pub context: Vec<(String, String)>,
    /// Who can open it.
    pub encrypted_data_keys: Vec<InspectedKey>,
    /// Keyslots and packs beside the object: who can open it as well.
    #[serde(default)]
    pub keyslots: Vec<InspectedSlot>,
    /// How it compares with the catalogue: `current`, `superseded`, `unknown`.
    pub catalogue: String,
    /// What of the above was cryptographically verified: never anything here
    /// but `header` if the token opened a data key, else `nothing`.
    pub verified: String,
    /// The six questions with their answers, in order.
    pub questions: Vec<Answer>,
}

/// One encrypted data key of an inspected object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedKey {
    /// The EDK's provider id (key namespace).
    pub provider: String,
    /// The wrapping key's name.
    pub name: String,
    /// Whether this agent is configured with that key.
    pub at_hand: bool,
    /// The token that holds it, when at hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Who holds it, in words.
    #[serde(default)]
    pub holder: String,
}

/// A keyslot of an inspected object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectedSlot {
    /// The wrapping key's name.
    pub name: String,
    /// The slot's or pack's name in the store.
    pub slot: String,
    /// Whether this agent is configured with that key.
    pub at_hand: bool,
}

/// One of the six questions of custody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question.
    pub question: String,
    /// Its answer for this object and this installation.
    pub answer: String,
}

/// A wrapping key, with its attributes as the token reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its configured name.
    pub name: String,
    /// The token that is asked first, by its configured name.
    pub token: String,
    /// Every token that holds it, in order of preference.
    #[serde(default)]
    pub tokens: Vec<String>,
    /// CKA_LABEL.
    pub label: String,
    /// The ring grants and requests name.
    pub ring: String,
    /// `active`, `decrypt`, `disabled`.
    #[serde(rename = "use")]
    pub usage: String,
    /// Whether it can be used now, on one of its tokens at least.
    pub ready: bool,
    /// Why not, or on which token not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Wraps that this host has made under it, at most (a crash skips some).
    #[serde(default)]
    pub wraps_used: u64,
    /// Wraps that this host may make.
    #[serde(default)]
    pub wrap_limit: u64,
    /// Whether the count goes back to the key's first use; if not, rotate.
    #[serde(default)]
    pub wraps_complete: bool,
    /// The key of its ring that is to take over before the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub successor: Option<String>,
    /// An audit key's public key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// How long it is to be used, in seconds, where configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cryptoperiod_seconds: Option<u64>,
    /// The successor, once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handed_over_to: Option<String>,
    /// When this host first used it, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_used: Option<String>,
    /// Whole days since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_days: Option<u64>,
    /// Seconds until its cryptoperiod is over; negative since it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cryptoperiod_left_seconds: Option<i64>,
    /// What somebody should do something about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The attributes, by their PKCS#11 names, as the token reports them.
    pub attributes: Vec<(String, String)>,
    /// The token's own check value, hexadecimal, if it gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_value: Option<String>,
}

/// A token's state as status tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// The configured name.
    pub name: String,
    /// `starting`, `ready`, `degraded`, `suspect`, `recovering`, `down`,
    /// `misconfigured` or `locked`: docs/tokens.md.
    pub health: String,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The worker's process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_pid: Option<u32>,
    /// CKA_LABEL of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_label: Option<String>,
    /// Its serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Manufacturer and model as the token reports them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Versions of its hardware and firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// The PKCS#11 library and its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// Who chooses the IV of a wrap: `host`, `zero-writeback` or
    /// `vendor-prefix`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gcm_iv: Option<String>,
    /// Whether it is a software token, which protects no key from root.
    pub soft: bool,
}

/// The checkpoints of the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointStatus {
    /// Whether a key in a token signs them: without, they are a self-check
    /// and prove nothing.
    pub signed: bool,
    /// Records that the last one covers.
    pub size: u64,
    /// Why one that is due cannot be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Whether they are anchored: without, the log is not proven against the
    /// operator.
    pub anchor: bool,
    /// Records that the last anchored one covers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchored: Option<u64>,
    /// Why one cannot be anchored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor_problem: Option<String>,
    /// The log, or the catalogue, is behind what was anchored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm: Option<String>,
}

/// The audit log, in `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// `recording`; `failed`: nothing is stored, read, listed or deleted; or
    /// `opening`.
    pub state: String,
    /// Since when it has failed, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The log's name, the first line of its checkpoints.
    pub origin: String,
    /// Records in it.
    pub records: u64,
    /// Its checkpoints.
    pub checkpoints: CheckpointStatus,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// A token's words, of the whole: what an upload would meet; or
    /// `stopping`.
    pub health: String,
    /// The agent's version.
    pub version: String,
    /// The supervisor's process id.
    pub supervisor_pid: u32,
    /// The server's process id.
    pub server_pid: u32,
    /// Seconds since the server started.
    pub uptime_seconds: u64,
    /// Requests in progress.
    pub requests: usize,
    /// Bytes of `memory_budget` in use.
    pub memory_in_use: u64,
    /// `memory_budget` in bytes.
    pub memory_budget: u64,
    /// The store's endpoint.
    pub endpoint: String,
    /// How the server is confined, such as `landlock+seccomp`.
    pub confinement: String,
    /// The cryptographic library of this build.
    #[serde(default)]
    pub cryptography: String,
    /// The audit log.
    #[serde(default)]
    pub audit: AuditStatus,
    /// How many `[[grant]]`s are in force; without any, only root and the
    /// agent's own user may use it.
    #[serde(default)]
    pub grants: usize,
    /// What waits for the store.
    #[serde(default)]
    pub queue: QueueStatus,
    /// Every configured token.
    pub tokens: Vec<TokenStatus>,
    /// Every configured key.
    pub keys: Vec<KeyInfo>,
}

/// `POST /v1/keys`: generate a key in a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateKey {
    /// CKA_LABEL of the new key.
    pub label: String,
    /// The name it is to have in the configuration, for the records; its
    /// label when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The configured name of the token.
    pub token: String,
    /// Not a wrapping key, but one that signs checkpoints and reports.
    #[serde(default)]
    pub audit: bool,
}

/// `POST /v1/keys/import`: one step of importing a key into a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportKey {
    /// CKA_LABEL of the key to be.
    pub label: String,
    /// The configured name of the token.
    pub token: String,
    /// Which step.
    #[serde(flatten)]
    pub step: ImportStep,
}

/// A step of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum ImportStep {
    /// Make the RSA pair that the key is sealed for: answered with
    /// [`ImportBegun`].
    Begin,
    /// Unwrap the sealed key: answered with its [`KeyInfo`].
    Finish {
        /// The fingerprint of the pair that it was sealed for.
        pair: Fingerprint,
        /// The hash of RSA-OAEP.
        hash: OaepHash,
        /// The sealed key.
        sealed: Sealed,
        /// Its check value, as computed where it was sealed.
        check_value: [u8; 3],
    },
    /// Destroy the pair.
    Cancel,
}

/// An import has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportBegun {
    /// The public half, in PEM (SPKI).
    pub public_key: String,
    /// The hash of RSA-OAEP that the token takes.
    pub hash: OaepHash,
}
