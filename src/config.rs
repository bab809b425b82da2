//! The validated configuration (`/etc/strongroom/strongroom.toml`).
//!
//! [`Config::parse`] is the only way to a [`Config`]: a value of that type has
//! passed every check that needs no token, no network and no other file.
//! Unknown keys are errors that name the nearest known one; settings whose
//! feature this release does not have are errors, never ignored.

mod grammar;
mod grants;
mod names;
mod recipients;
mod units;

pub use grammar::{
    Agent, Anchor, Audit, AuditAlso, BucketAlias, Checksum, GcmIv, Key, KeyUse, Keyslots, Message,
    Metrics, PayloadSigning, Rate, S3, Spool, Token,
};
pub use grants::{Grant, OVERFLOW_ID, Who};
pub use recipients::{Holder, MAX_RECIPIENTS, Recipient, Recipients, Writer};
pub use units::{ByteRate, Length, RequestRate, Timeout, WrapLimit};

use std::path::{Path, PathBuf};

/// Smallest part S3 accepts for all but the last, in bytes (S3 User Guide,
/// "Amazon S3 multipart upload limits").
const MIN_PART_SIZE: u64 = 5 << 20;
/// Largest part S3 accepts, in bytes (same source).
const MAX_PART_SIZE: u64 = 5 << 30;
/// Frame lengths we write, in bytes: below 4 KiB the 32 bytes a frame costs
/// stop being negligible; above 16 MiB other readers' memory does.
const FRAME_LENGTH: std::ops::RangeInclusive<u64> = (4 << 10)..=(16 << 20);
/// Sizes of a file of audit records, in bytes: below 64 KiB a busy agent makes
/// several a second; above 1 GiB a start, which reads the last, takes seconds.
const ROTATE: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 30);
/// Bytes that a request in progress holds beside its parts: two buffers of its
/// connection, its state and that of its request to the store. 256 uploads at
/// once were seen to take 66 MiB beside 256 MiB of parts.
const BESIDE_PARTS: u64 = 256 << 10;

/// A configuration that passed every check which needs nothing but its text.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it was read from; error texts name it.
    pub path: PathBuf,
    /// `[agent]`.
    pub agent: Agent,
    /// `[s3]`.
    pub s3: S3,
    /// `[message]`.
    pub message: Message,
    /// `[spool]`.
    pub spool: Spool,
    /// `[keyslots]`.
    pub keyslots: Keyslots,
    /// `[audit]`.
    pub audit: Audit,
    /// `[metrics]`.
    pub metrics: Metrics,
    /// `[[token]]`, at least one.
    pub tokens: Vec<Token>,
    /// `[[key]]`, possibly none on a host that is being set up.
    pub keys: Vec<Key>,
    /// `[recipients]` and `[[recipient]]`: who else holds every data key.
    pub recipients: Recipients,
    /// `[[writer]]`: other hosts that wrap under keys of ours.
    pub writers: Vec<Writer>,
    /// `[[bucket_alias]]`: buckets with replicas of others' objects.
    pub bucket_aliases: Vec<BucketAlias>,
    /// `[[grant]]`, in the file's order.
    pub grants: Vec<Grant>,
}

/// A configuration that was refused: what is wrong, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// What is wrong, with the file's name and the place in it.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// Whether the file was not there at all.
    pub missing: bool,
}

impl ConfigError {
    fn new(path: &Path, message: impl std::fmt::Display, hint: impl Into<String>) -> Self {
        Self {
            message: format!("{}: {message}", path.display()),
            hint: hint.into(),
            missing: false,
        }
    }
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or [`Config::parse`] refuses it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            message: format!("cannot read the configuration {}: {error}", path.display()),
            hint: "name another file with --config or STRONGROOM_CONFIG; softhsm/setup makes a ready one for trying out".into(),
            missing: error.kind() == std::io::ErrorKind::NotFound,
        })?;
        Self::parse(&text, path)
    }

    /// Checks a configuration's text; `path` only appears in error texts.
    ///
    /// # Errors
    /// Syntax, an unknown key, a wrong type, a value outside its limits, a
    /// contradiction between settings.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: grammar::File = toml::from_str(text).map_err(|error| {
            let hint = units::nearest_hint(error.message()).unwrap_or_else(|| {
                "docs/configuration.md lists every setting with its type".into()
            });
            ConfigError::new(path, error.to_string().trim_end(), hint)
        })?;
        let refused = |(message, hint): (String, String)| ConfigError::new(path, message, hint);
        let grants = grants::from_file(file.grant, text).map_err(refused)?;
        let recipients =
            Recipients::from_file(file.recipients, file.recipient, &file.key).map_err(refused)?;
        let writers = recipients::writers(file.writer).map_err(refused)?;
        let config = Self {
            path: path.to_owned(),
            agent: file.agent,
            s3: file.s3,
            message: file.message,
            spool: file.spool,
            keyslots: file.keyslots,
            audit: file.audit,
            metrics: file.metrics,
            tokens: file.token,
            keys: file.key,
            recipients,
            writers,
            bucket_aliases: file.bucket_alias,
            grants,
        };
        config.check().map_err(refused)?;
        Ok(config)
    }

    /// The ring a request without `Strongroom-Key` uses: the only ring, or
    /// none when there are several. Recipients' rings wrap beside it.
    #[must_use]
    pub fn default_ring(&self) -> Option<&str> {
        let wraps = |key: &&Key| key.is_active() && !self.recipients.has_ring(key.ring());
        let mut rings = self.keys.iter().filter(wraps).map(Key::ring);
        let first = rings.next()?;
        rings.all(|r| r == first).then_some(first)
    }

    /// Bytes of `memory_budget` that part buffers may have: what is left of it
    /// by what requests in progress hold beside them, which is given a quarter
    /// of it at most.
    #[must_use]
    pub fn part_buffers(&self) -> u64 {
        let budget = self.agent.memory_budget.bytes();
        let requests = self.agent.max_requests as u64;
        let beside = requests.saturating_mul(BESIDE_PARTS).min(budget / 4);
        (budget - beside).max(self.least_part_buffers())
    }

    /// One request must always be able to hold one part: the part, the frame
    /// that may overlap its end, and the header.
    fn least_part_buffers(&self) -> u64 {
        self.s3.part_size.bytes() + self.message.frame_length.bytes() + (1 << 20)
    }

    /// Where the audit log is kept.
    #[must_use]
    pub fn audit_dir(&self) -> PathBuf {
        let default = || self.agent.state_dir.join("audit");
        self.audit.dir.clone().unwrap_or_else(default)
    }

    /// The token whose key signs checkpoints, if any does.
    #[must_use]
    pub fn checkpoint_token(&self) -> Option<&Token> {
        self.audit.checkpoint_key.as_ref()?;
        match &self.audit.checkpoint_token {
            Some(name) => self.tokens.iter().find(|token| token.name == *name),
            None => self.tokens.first(),
        }
    }

    fn check(&self) -> Result<(), (String, String)> {
        self.check_limits()?;
        self.check_audit()?;
        self.check_metrics()?;
        self.check_s3()?;
        self.check_aliases()?;
        self.check_tokens()?;
        self.check_keys()?;
        self.check_grants()
    }

    fn check_limits(&self) -> Result<(), (String, String)> {
        let part = self.s3.part_size.bytes();
        if !(MIN_PART_SIZE..=MAX_PART_SIZE).contains(&part) {
            return err(
                format!(
                    "s3.part_size is {}; S3 takes parts from 5 MiB to 5 GiB",
                    self.s3.part_size
                ),
                "leave it out for the default of 8 MiB",
            );
        }
        let frame = self.message.frame_length.bytes();
        if !FRAME_LENGTH.contains(&frame) {
            return err(
                format!(
                    "message.frame_length is {}; it must be from 4 KiB to 16 MiB",
                    self.message.frame_length
                ),
                "leave it out for the default of 256 KiB",
            );
        }
        let least = self.least_part_buffers();
        if self.agent.memory_budget.bytes() < least {
            return err(
                format!(
                    "agent.memory_budget is {}; one part of {} needs at least {}",
                    self.agent.memory_budget,
                    self.s3.part_size,
                    Length::from_bytes(least)
                ),
                "raise agent.memory_budget, or lower s3.part_size",
            );
        }
        if self.agent.max_requests == 0 || self.agent.max_requests > 65_536 {
            return err(
                "agent.max_requests must be from 1 to 65536",
                "leave it out for the default of 256",
            );
        }
        if self.s3.upload_concurrency == 0 || self.s3.upload_concurrency > 256 {
            return err(
                "s3.upload_concurrency must be from 1 to 256",
                "leave it out for the default of 8",
            );
        }
        if u32::from_str_radix(&self.agent.socket_mode, 8).is_err()
            || self.agent.socket_mode.len() > 4
        {
            return err(
                format!(
                    "agent.socket_mode is {:?}; it must be an octal mode such as \"0660\"",
                    self.agent.socket_mode
                ),
                "write it as a string of octal digits",
            );
        }
        if self.agent.socket_mode_bits() & 0o002 != 0 {
            return err(
                "agent.socket_mode lets every local user connect",
                "use \"0660\" with agent.socket_group",
            );
        }
        Ok(())
    }

    /// Aliases of one bucket would leave open what is expected of its objects,
    /// and one of an alias where its receipts are.
    fn check_aliases(&self) -> Result<(), (String, String)> {
        for (n, alias) in self.bucket_aliases.iter().enumerate() {
            let BucketAlias { bucket, holds } = alias;
            if bucket.is_empty() || holds.is_empty() || bucket == holds {
                return err(
                    format!("[[bucket_alias]] of {bucket:?} holds {holds:?}"),
                    "name two buckets: the replica, and the one that its objects were written for",
                );
            }
            let earlier = &self.bucket_aliases[..n];
            if earlier.iter().any(|other| other.bucket == *bucket) {
                return err(
                    format!("two [[bucket_alias]] are of {bucket:?}"),
                    "a bucket holds the replicas of one other",
                );
            }
            if self
                .bucket_aliases
                .iter()
                .any(|other| other.bucket == *holds)
            {
                return err(
                    format!(
                        "[[bucket_alias]] of {bucket:?} holds {holds:?}, which is an alias itself"
                    ),
                    "name the bucket that the objects were written for",
                );
            }
        }
        Ok(())
    }

    fn check_audit(&self) -> Result<(), (String, String)> {
        let audit = &self.audit;
        if !ROTATE.contains(&audit.rotate.bytes()) {
            return err(
                format!(
                    "audit.rotate is {}; it must be from 64 KiB to 1 GiB",
                    audit.rotate
                ),
                "leave it out for the default of 64 MiB",
            );
        }
        if audit.dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            return err("audit.dir is not an absolute path", "write the whole path");
        }
        let Some(key) = &audit.checkpoint_key else {
            return match (&audit.checkpoint_token, &audit.anchor) {
                (None, None) => Ok(()),
                _ => err(
                    "audit.checkpoint_token and audit.anchor need audit.checkpoint_key",
                    "an unsigned checkpoint proves nothing to anybody: `strongroom key generate` can make a signing key",
                ),
            };
        };
        match &audit.checkpoint_token {
            None if self.tokens.len() > 1 => err(
                format!("audit.checkpoint_key {key:?} needs audit.checkpoint_token"),
                "several tokens are configured: name the one that holds it",
            ),
            Some(name) if !self.tokens.iter().any(|token| token.name == *name) => err(
                format!("audit.checkpoint_token is {name:?}, which is not configured"),
                "name one of the [[token]]",
            ),
            _ => Ok(()),
        }
    }

    fn check_metrics(&self) -> Result<(), (String, String)> {
        match self.metrics.listen {
            Some(address) if !address.ip().is_loopback() => err(
                format!("metrics.listen is {address}: metrics are not for the network"),
                "use a loopback address such as \"127.0.0.1:9187\"; a proxy can add TLS and a password",
            ),
            Some(address) if address.port() == 0 => err(
                "metrics.listen has the port 0, which nobody could find",
                "choose a port, such as 9187",
            ),
            _ => Ok(()),
        }
    }

    fn check_s3(&self) -> Result<(), (String, String)> {
        if let Some(url) = &self.s3.endpoint_url {
            let plain = url.strip_prefix("http://");
            if plain.is_none() && !url.starts_with("https://") {
                return err(
                    format!("s3.endpoint_url is {url:?}; it must begin with https:// or http://"),
                    "write the whole URL, with its scheme",
                );
            }
            if let Some(rest) = plain
                && !units::is_loopback(rest)
                && !self.s3.allow_http
            {
                return err(
                    format!("s3.endpoint_url is {url:?}: plain http beyond this host"),
                    "use https, or set s3.allow_http = true if the network path is protected by other means",
                );
            }
        }
        if self.s3.sse_kms_key_id.is_some() && self.s3.sse.as_deref() != Some("aws:kms") {
            return err(
                "s3.sse_kms_key_id needs s3.sse = \"aws:kms\"",
                "set both, or neither",
            );
        }
        if let Some(sse) = self.s3.sse.as_deref()
            && !matches!(sse, "AES256" | "aws:kms")
        {
            return err(
                format!("s3.sse is {sse:?}; it must be \"AES256\" or \"aws:kms\""),
                "leave it out unless the bucket's policy demands it",
            );
        }
        let prefix = &self.keyslots.prefix;
        if prefix.is_empty() || prefix.starts_with('/') || !prefix.ends_with('/') {
            return err(
                format!(
                    "keyslots.prefix is {prefix:?}; it must be non-empty, not begin with a slash, and end with one"
                ),
                "leave it out for the default \".strongroom/keyslots/\"",
            );
        }
        Ok(())
    }

    fn check_tokens(&self) -> Result<(), (String, String)> {
        if self.tokens.is_empty() {
            return err(
                "no [[token]] is configured",
                "add a [[token]] with name, module, token_label and pin_file",
            );
        }
        for (i, token) in self.tokens.iter().enumerate() {
            let name = &token.name;
            check_name("token", name)?;
            if self.tokens[..i].iter().any(|other| other.name == *name) {
                return err(
                    format!("two [[token]] are named {name:?}"),
                    "give each its own name",
                );
            }
            if !token.module.is_absolute() {
                return err(
                    format!(
                        "token {name:?}: module {:?} is not an absolute path",
                        token.module
                    ),
                    "write the whole path of the PKCS#11 library",
                );
            }
            if token.token_label.is_none() && token.serial.is_none() {
                return err(
                    format!("token {name:?} has neither token_label nor serial"),
                    "`strongroom token list --module PATH` shows both",
                );
            }
            match (&token.pin_file, &token.pin_credential) {
                (Some(_), Some(_)) => {
                    return err(
                        format!("token {name:?} has both pin_file and pin_credential"),
                        "keep one",
                    );
                }
                (None, None) => {
                    return err(
                        format!("token {name:?} has neither pin_file nor pin_credential"),
                        "put the PIN in a file of mode 0400 and name it in pin_file",
                    );
                }
                _ => {}
            }
            if token.sessions == 0 || token.sessions > 1024 {
                return err(
                    format!("token {name:?}: sessions must be from 1 to 1024"),
                    "leave it out for the default of 16",
                );
            }
        }
        Ok(())
    }

    fn check_keys(&self) -> Result<(), (String, String)> {
        for (i, key) in self.keys.iter().enumerate() {
            let name = &key.name;
            check_name("key", name)?;
            if name.bytes().all(|b| b.is_ascii_digit()) {
                return err(
                    format!("key {name:?}: a name of digits alone is reserved for header slots"),
                    "add a letter to it",
                );
            }
            if self.keys[..i].iter().any(|other| other.name == *name) {
                return err(
                    format!("two [[key]] are named {name:?}"),
                    "a key's name is its name in every object it wraps: unique and permanent",
                );
            }
            let missing = |name: &&String| !self.tokens.iter().any(|t| t.name == **name);
            if let Some(unknown) = key.tokens.iter().find(missing) {
                return err(
                    format!("key {name:?} names token {unknown:?}, which is not configured"),
                    format!(
                        "configured tokens: {}",
                        self.tokens
                            .iter()
                            .map(|t| t.name.as_str())
                            .collect::<Vec<_>>()
                            .join(", ")
                    ),
                );
            }
            if key.is_active()
                && self.keys[..i]
                    .iter()
                    .any(|other| other.is_active() && other.ring() == key.ring())
            {
                return err(
                    format!("two keys of ring {:?} are active", key.ring()),
                    "exactly one key of a ring wraps new objects; set the others to use = \"decrypt\"",
                );
            }
            self.check_successor(key)?;
        }
        Ok(())
    }

    /// A successor is at hand everywhere before it takes over; the chain of
    /// successors ends.
    fn check_successor(&self, key: &Key) -> Result<(), (String, String)> {
        let find = |name: &str| self.keys.iter().find(|other| other.name == name);
        let Some(name) = &key.successor else {
            return Ok(());
        };
        let fault = |what: String, hint: &str| err(format!("key {:?}: {what}", key.name), hint);
        let Some(successor) = find(name) else {
            return fault(
                format!("its successor {name:?} is not configured"),
                "configure the successor with use = \"decrypt\": it becomes active by itself",
            );
        };
        if successor.ring() != key.ring() {
            return fault(
                format!(
                    "its successor {name:?} is of ring {:?}, not of {:?}",
                    successor.ring(),
                    key.ring()
                ),
                "give both keys the same `ring`",
            );
        }
        if !successor.opens() {
            return fault(
                format!("its successor {name:?} is disabled"),
                "set use = \"decrypt\" for the successor: it becomes active by itself",
            );
        }
        let mut next = Some(successor);
        for _ in &self.keys {
            next = next.and_then(|key| find(key.successor.as_deref()?));
        }
        if next.is_some() {
            return fault(
                format!("its successor {name:?} leads back to a key that was used up before"),
                "the last of a chain of successors has none",
            );
        }
        Ok(())
    }
}

fn err<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, (String, String)> {
    Err((message.into(), hint.into()))
}

/// Names go into EDKs, keyslot names, metrics labels and log lines.
fn check_name(what: &str, name: &str) -> Result<(), (String, String)> {
    let fine = (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !name.starts_with('.');
    if fine {
        return Ok(());
    }
    err(
        format!(
            "{what} name {name:?} must be 1 to 128 letters, digits, '-', '_' or '.', and not begin with '.'"
        ),
        "rename it",
    )
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
