//! Where an archive's objects lie below its prefix, and the small object that
//! names the newest run.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::Why;
use super::path::RelPath;

/// What an archive's own objects begin with, below its prefix.
pub const OWN: &str = ".strongroom-archive/";
/// Manifests of runs.
pub const RUNS: &str = ".strongroom-archive/runs/";
/// Bundles of small files.
pub const BUNDLES: &str = ".strongroom-archive/bundles/";
/// Files whose path makes no object key.
pub const NAMES: &str = ".strongroom-archive/names/";
/// Names the newest complete run.
pub const LATEST: &str = ".strongroom-archive/latest";
/// The manifest so far of a run in progress, or of one that broke off.
pub const PARTIAL: &str = ".strongroom-archive/partial";
/// Media type of manifests.
pub const MANIFEST_TYPE: &str = "application/vnd.strongroom.manifest";
/// Media type of `latest`.
pub const LATEST_TYPE: &str = "application/json";
/// Bytes of an object key, at most (S3's limit).
pub const MAX_KEY: usize = 1024;
/// What the agent keeps for itself when an archive lies at a bucket's root.
const RESERVED: &str = ".strongroom";
/// Bytes of `latest`, at most. Ours; it is below 2 KiB with the longest key.
const MAX_LATEST: usize = 16 << 10;

/// The name of a run: when it started (UTC), then random digits. Names sort
/// by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    /// A run that starts at an instant.
    #[must_use]
    pub fn new(started: jiff::Timestamp, random: u32) -> Self {
        Self(format!(
            "{}-{random:08x}",
            started.strftime("%Y%m%dT%H%M%SZ")
        ))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RunId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const FORM: &[u8] = b"00000000T000000Z-xxxxxxxx";
        let fits = text.len() == FORM.len()
            && text.bytes().zip(FORM).all(|(byte, form)| match form {
                b'0' => byte.is_ascii_digit(),
                b'x' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
                form => byte == *form,
            });
        if fits {
            Ok(Self(text))
        } else {
            Err("not a run's name")
        }
    }
}

impl From<RunId> for String {
    fn from(run: RunId) -> Self {
        run.0
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A run's manifest, below the prefix.
#[must_use]
pub fn manifest_key(run: &RunId) -> String {
    format!("{RUNS}{run}.manifest")
}

/// A run's n-th bundle, below the prefix.
#[must_use]
pub fn bundle_key(run: &RunId, n: u64) -> String {
    format!("{BUNDLES}{run}-{n}.bundle")
}

/// The key, below `prefix`, of the object that holds the file at a path: the
/// path itself where that is a good key, else a name made from its hash.
///
/// Not good: what is not UTF-8, what makes a key longer than S3 allows, what
/// has a character that the XML of a listing cannot carry, and what lies in
/// the archive's or the agent's own place. (`.`, `..` and empty components,
/// which clients fold, no [`RelPath`] has.)
#[must_use]
pub fn object_key(prefix: &str, path: &RelPath) -> String {
    let good = |text: &&str| {
        let first = text.split('/').next().unwrap_or_default();
        prefix.len() + text.len() <= MAX_KEY
            && !text
                .chars()
                .any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
            && first != OWN.trim_end_matches('/')
            && first != RESERVED
    };
    match path.as_str().filter(good) {
        Some(text) => text.to_owned(),
        None => {
            let hash =
                crate::crypto::digest::digest(&crate::crypto::digest::SHA256, path.as_bytes());
            format!("{NAMES}{}", HEXLOWER.encode(hash.as_ref()))
        }
    }
}

/// `latest`: which run is the newest complete one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latest {
    format: String,
    version: u32,
    /// The run.
    pub run: RunId,
    /// When it began, RFC 3339.
    pub started: String,
    /// When its manifest was stored, RFC 3339.
    pub finished: String,
    /// Its manifest's key below the prefix.
    pub manifest: String,
    /// The manifest's message id, hexadecimal.
    pub message_id: String,
    /// The manifest's version id, in versioned buckets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
}

impl Latest {
    const FORMAT: &str = "strongroom-latest";

    /// For a run whose manifest was stored just now.
    #[must_use]
    pub fn new(
        run: RunId,
        started: jiff::Timestamp,
        message_id: String,
        version_id: Option<String>,
    ) -> Self {
        Self {
            format: Self::FORMAT.to_owned(),
            version: 1,
            manifest: manifest_key(&run),
            run,
            started: started.to_string(),
            finished: jiff::Timestamp::now().to_string(),
            message_id,
            version_id,
        }
    }

    /// As JSON with a line break.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// From an object's bytes.
    ///
    /// # Errors
    /// It is not what [`encode`](Self::encode) writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Why> {
        if bytes.len() > MAX_LATEST {
            return Err(format!("more than {MAX_LATEST} bytes").into());
        }
        let latest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if latest.format != Self::FORMAT || latest.version != 1 {
            return Err(format!("unknown format {:?} {}", latest.format, latest.version).into());
        }
        if latest.manifest != manifest_key(&latest.run) {
            return Err("the manifest's key is not the run's".into());
        }
        Ok(latest)
    }
}
