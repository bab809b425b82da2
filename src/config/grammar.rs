//! The file's grammar, table by table. Defaults are stated here and nowhere
//! else.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use crate::api::Operation;

use super::units::{ByteRate, Length, RequestRate, Timeout, WrapLimit, one_or_more};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) agent: Agent,
    #[serde(default)]
    pub(super) s3: S3,
    #[serde(default)]
    pub(super) message: Message,
    #[serde(default)]
    pub(super) spool: Spool,
    #[serde(default)]
    pub(super) keyslots: Keyslots,
    #[serde(default)]
    pub(super) token: Vec<Token>,
    #[serde(default)]
    pub(super) key: Vec<Key>,
    #[serde(default)]
    pub(super) audit: Audit,
    #[serde(default)]
    pub(super) metrics: Metrics,
    #[serde(default)]
    pub(super) recipients: Recipients,
    #[serde(default)]
    pub(super) recipient: Vec<Recipient>,
    #[serde(default)]
    pub(super) writer: Vec<Writer>,
    #[serde(default)]
    pub(super) bucket_alias: Vec<BucketAlias>,
    #[serde(default)]
    pub(super) grant: Vec<Spanned<Grant>>,
}

/// `[agent]`: the process, its socket and its limits.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agent {
    /// The Unix socket's path.
    pub socket: PathBuf,
    /// Its mode, as octal digits.
    pub socket_mode: String,
    /// Its group; the agent's own when absent.
    pub socket_group: Option<String>,
    /// Where the catalogue lives.
    pub state_dir: PathBuf,
    /// Part buffers of all requests together.
    pub memory_budget: Length,
    /// Requests in progress at once; more get 429.
    pub max_requests: usize,
    /// How long running requests may go on after SIGTERM.
    pub shutdown_grace: Timeout,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            socket: "/run/strongroom/agent.sock".into(),
            socket_mode: "0660".into(),
            socket_group: None,
            state_dir: "/var/lib/strongroom".into(),
            memory_budget: Length::from_bytes(256 << 20),
            max_requests: 256,
            shutdown_grace: Timeout::from_secs(60),
        }
    }
}

impl Agent {
    /// The socket's permission bits.
    #[must_use]
    pub fn socket_mode_bits(&self) -> u32 {
        u32::from_str_radix(&self.socket_mode, 8).unwrap_or(0o600)
    }
}

/// When SigV4 covers the payload's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PayloadSigning {
    /// Over plain http only: TLS already protects the payload in transit.
    Auto,
    /// On every request.
    Always,
    /// On none; the checksum and the ciphertext's own tags cover it.
    Never,
}

/// The checksum S3 verifies and stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// CRC-64/NVME, combinable over parts, S3's own default.
    Crc64nvme,
    /// CRC-32C, combinable over parts.
    Crc32c,
    /// SHA-256; a multipart object's is a checksum of checksums.
    Sha256,
}

/// `[s3]`: the store.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3 {
    /// The region; the SDK's chain decides when absent.
    pub region: Option<String>,
    /// A store other than AWS's.
    pub endpoint_url: Option<String>,
    /// `http://host/bucket/key` instead of `http://bucket.host/key`.
    pub force_path_style: bool,
    /// Permits plain http beyond loopback.
    pub allow_http: bool,
    /// When payloads are signed.
    pub payload_signing: PayloadSigning,
    /// The account that must own every bucket.
    pub expected_bucket_owner: Option<String>,
    /// The nominal size of a part.
    pub part_size: Length,
    /// Parts in flight for one request.
    pub upload_concurrency: usize,
    /// Trust anchors (PEM) instead of the system's.
    pub ca_bundle: Option<PathBuf>,
    /// The checksum on every part and object.
    pub checksum: Checksum,
    /// Server-side encryption as a second layer.
    pub sse: Option<String>,
    /// The KMS key for `sse = "aws:kms"`.
    pub sse_kms_key_id: Option<String>,
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            region: None,
            endpoint_url: None,
            force_path_style: false,
            allow_http: false,
            payload_signing: PayloadSigning::Auto,
            expected_bucket_owner: None,
            part_size: Length::from_bytes(8 << 20),
            upload_concurrency: 8,
            ca_bundle: None,
            checksum: Checksum::Crc64nvme,
            sse: None,
            sse_kms_key_id: None,
        }
    }
}

/// `[message]`: how plaintext is framed.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Message {
    /// Plaintext bytes in every frame but the last.
    pub frame_length: Length,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            frame_length: Length::from_bytes(256 << 10),
        }
    }
}

/// `[spool]`: where ciphertext waits that does not fit `memory_budget`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// The directory; `spool` in the state directory when absent.
    pub dir: Option<PathBuf>,
    /// All requests' spooled bytes together.
    pub max: Length,
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            dir: None,
            max: Length::from_bytes(20 << 30),
        }
    }
}

/// `[keyslots]`: where headers and re-wrapped data keys are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keyslots {
    /// Their bucket; the object's own when absent.
    pub bucket: Option<String>,
    /// Their prefix; clients cannot reach what is under it.
    pub prefix: String,
}

impl Default for Keyslots {
    fn default() -> Self {
        Self {
            bucket: None,
            prefix: ".strongroom/keyslots/".into(),
        }
    }
}

/// A second sink of audit records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditAlso {
    /// systemd's journal.
    Journald,
    /// The local syslog.
    Syslog,
}

/// `[audit]`: the record of what was done (docs/audit.md).
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// The directory; `audit` in the state directory when absent.
    pub dir: Option<PathBuf>,
    /// CKA_LABEL of the key that signs checkpoints; unsigned when absent.
    pub checkpoint_key: Option<String>,
    /// The token that holds it; the only one when absent.
    pub checkpoint_token: Option<String>,
    /// Where checkpoints are put out of the operator's reach.
    pub anchor: Option<Anchor>,
    /// How long Object Lock keeps each of them there.
    pub anchor_retention: Timeout,
    /// The size after which a file of records is followed by another.
    pub rotate: Length,
    /// Where each record goes as well, best effort.
    pub also: Option<AuditAlso>,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            dir: None,
            checkpoint_key: None,
            checkpoint_token: None,
            anchor: None,
            anchor_retention: Timeout::from_secs(YEAR),
            rotate: Length::from_bytes(64 << 20),
            also: None,
        }
    }
}

/// Seconds of a year, as the units of durations have it.
const YEAR: u64 = 31_557_600;

/// Where checkpoints are anchored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// `s3://BUCKET/PREFIX/`.
    S3 {
        /// The bucket, with Object Lock.
        bucket: String,
        /// What their names begin with; ends with a slash or is empty.
        prefix: String,
    },
    /// `file:///DIR`: a directory that is written once, by its mount.
    Dir(PathBuf),
}

impl<'de> Deserialize<'de> for Anchor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is neither s3://BUCKET/PREFIX/ nor file:///DIRECTORY"
            ))
        })
    }
}

impl Anchor {
    /// From its URL.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("file://") {
            return path.starts_with('/').then(|| Self::Dir(path.into()));
        }
        let rest = text.strip_prefix("s3://")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fine = !bucket.is_empty() && (prefix.is_empty() || prefix.ends_with('/'));
        fine.then(|| Self::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

/// Who chooses the IV of a wrap (docs/tokens.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GcmIv {
    /// Found out at start.
    Auto,
    /// The worker supplies 12 random bytes.
    Host,
    /// The token writes its own into 12 zero bytes.
    ZeroWriteback,
    /// The token puts its own before the ciphertext.
    VendorPrefix,
}

/// `[[token]]`: one PKCS#11 token.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What keys call it.
    pub name: String,
    /// The PKCS#11 library's absolute path.
    pub module: PathBuf,
    /// CKA_LABEL of the token.
    pub token_label: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// A file with the user PIN.
    pub pin_file: Option<PathBuf>,
    /// The name of a systemd credential with the user PIN.
    pub pin_credential: Option<String>,
    /// The IV convention.
    #[serde(default = "auto")]
    pub gcm_iv: GcmIv,
    /// Logged-in sessions working in parallel.
    #[serde(default = "sessions")]
    pub sessions: usize,
    /// The deadline of one token call.
    #[serde(default = "call_timeout")]
    pub call_timeout: Timeout,
    /// Whether the worker may use the network.
    #[serde(default = "yes")]
    pub network: bool,
    /// Whether each wrap is opened again before the object depends on it: two
    /// token calls a write instead of one.
    #[serde(default)]
    pub verify_wraps: bool,
}

/// What a wrapping key is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyUse {
    /// Wraps and unwraps.
    Active,
    /// Unwraps only.
    Decrypt,
    /// Neither.
    Disabled,
    /// Unwraps only what the catalogue vouches for: somebody else may have it.
    Compromised,
}

/// `[[key]]`: one wrapping key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its name in every object it wraps; permanent.
    pub name: String,
    /// The tokens that hold it, in order of preference; at least one.
    #[serde(rename = "token", deserialize_with = "one_or_more")]
    pub tokens: Vec<String>,
    /// Its CKA_LABEL there.
    pub label: String,
    ring: Option<String>,
    /// What it is used for.
    #[serde(rename = "use", default = "active")]
    pub usage: KeyUse,
    /// Not generated in this token.
    #[serde(default)]
    pub imported: bool,
    /// How often this host may wrap under it.
    #[serde(default)]
    pub wrap_limit: WrapLimit,
    /// The key of its ring that wraps in its place before the limit.
    pub successor: Option<String>,
    /// How long it is to be used; the evidence report holds its age against it.
    pub cryptoperiod: Option<Timeout>,
}

impl Key {
    /// The ring that requests name; its own name by default.
    #[must_use]
    pub fn ring(&self) -> &str {
        self.ring.as_deref().unwrap_or(&self.name)
    }

    /// The token that is asked first.
    #[must_use]
    pub fn token(&self) -> &str {
        self.tokens.first().map_or("", String::as_str)
    }

    /// Whether this token holds it.
    #[must_use]
    pub fn is_on(&self, token: &str) -> bool {
        self.tokens.iter().any(|name| name == token)
    }

    /// Whether it wraps new data keys.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.usage == KeyUse::Active
    }

    /// Whether it may unwrap.
    #[must_use]
    pub fn opens(&self) -> bool {
        matches!(self.usage, KeyUse::Active | KeyUse::Decrypt)
    }

    /// Whether it unwraps only what the catalogue vouches for.
    #[must_use]
    pub fn is_compromised(&self) -> bool {
        self.usage == KeyUse::Compromised
    }
}

/// `[recipients]`: which of them a put must have.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Recipients {
    pub(super) required: Option<Vec<String>>,
    pub(super) min: Option<usize>,
    pub(super) write_only: bool,
}

/// How a recipient holds data keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RecipientKind {
    RsaOaep,
    Key,
}

/// `[[recipient]]`: a further holder of every data key.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipient {
    pub(super) kind: RecipientKind,
    pub(super) name: Option<String>,
    pub(super) public_key: Option<PathBuf>,
    pub(super) key: Option<String>,
}

/// `[[writer]]`: another host that wraps under keys of ours, and where it
/// leaves what its catalogue knows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Writer {
    pub(super) name: String,
    pub(super) catalogue: String,
}

/// `[[bucket_alias]]`: a bucket with replicas of another one's objects.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketAlias {
    /// The bucket that is read.
    pub bucket: String,
    /// The bucket that its objects were written for.
    pub holds: String,
}

/// `[metrics]`: who reads them besides administrators at the socket.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// A loopback address and port with the metrics on it and nothing else.
    pub listen: Option<SocketAddr>,
}

/// `[[grant]]`: who may do what, where, under which conditions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grant {
    pub(super) user: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) group: Option<String>,
    pub(super) gid: Option<u32>,
    pub(super) operations: Vec<Operation>,
    pub(super) bucket: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) key: Option<String>,
    pub(super) require_storage_class: Option<String>,
    pub(super) min_retention: Option<Timeout>,
    pub(super) max_size: Option<Length>,
    pub(super) rate: Option<Rate>,
    #[serde(default)]
    pub(super) no_overwrite: bool,
}

/// `rate` of a grant: what all its requests together may take.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests; more get 429.
    pub requests: Option<RequestRate>,
    /// Plaintext in both directions; more is slowed down.
    pub bytes: Option<ByteRate>,
}

const fn auto() -> GcmIv {
    GcmIv::Auto
}
const fn active() -> KeyUse {
    KeyUse::Active
}
const fn sessions() -> usize {
    16
}
const fn call_timeout() -> Timeout {
    Timeout::from_secs(10)
}
const fn yes() -> bool {
    true
}
