//! Sizes, durations and hints: the small types of the configuration.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A length in bytes, written `"8 MiB"` or as a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Length(u64);

impl Length {
    /// From a number of bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// As a number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for Length {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytesize::ByteSize::deserialize(deserializer).map(|size| Self(size.0))
    }
}

/// How often this host may wrap under a key, written `"2^31"` or as a plain
/// number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WrapLimit(u64);

impl WrapLimit {
    /// Least, one block of the count (SECURITY.md 19); most, what AES-GCM with
    /// random IVs bears under one key (NIST SP 800-38D, 8.3), on a host alone.
    const BOUNDS: std::ops::RangeInclusive<u64> = (1 << 16)..=(1 << 32);

    /// As a number.
    #[must_use]
    pub const fn wraps(self) -> u64 {
        self.0
    }
}

/// Half of what the key bears: two hosts may share it unconfigured.
impl Default for WrapLimit {
    fn default() -> Self {
        Self(1 << 31)
    }
}

impl<'de> Deserialize<'de> for WrapLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of wraps such as \"2^31\" or 1000000")]
        enum Written {
            Number(u64),
            Text(String),
        }
        let wraps = match Written::deserialize(deserializer)? {
            Written::Number(number) => number,
            Written::Text(text) => match text.strip_prefix("2^") {
                Some(power) => power.parse().ok().and_then(|p| 1_u64.checked_shl(p)),
                None => text.parse().ok(),
            }
            .ok_or_else(|| {
                de::Error::custom(format!(
                    "wrap_limit {text:?} is not a number of wraps such as \"2^31\""
                ))
            })?,
        };
        if !Self::BOUNDS.contains(&wraps) {
            return Err(de::Error::custom(format!(
                "wrap_limit is {wraps}; it must be from 65536 to 2^32"
            )));
        }
        Ok(Self(wraps))
    }
}

/// A span of time, written `"10 s"` or `"2m 30s"`; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timeout(Duration);

impl Timeout {
    /// From whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// As the standard library's type.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let span = humantime::parse_duration(&text).map_err(|e| {
            de::Error::custom(format!("{text:?} is not a duration such as \"10 s\": {e}"))
        })?;
        if span.is_zero() {
            return Err(de::Error::custom("a duration of zero"));
        }
        Ok(Self(span))
    }
}

/// Whether the authority at the start of `rest` (a URL without its scheme)
/// is this host's loopback. Names other than `localhost` are not looked up.
pub(super) fn is_loopback(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // Userinfo could make `127.0.0.1@evil` look local.
    if authority.contains('@') {
        return false;
    }
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a hint
/// that names the nearest known key.
pub(super) fn nearest_hint(message: &str) -> Option<String> {
    let rest = message.split_once("unknown field `")?.1;
    let (unknown, expected) = rest.split_once('`')?;
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let best = known
        .iter()
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.7);
    Some(match best {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None => format!("known keys here: {}", known.join(", ")),
    })
}
