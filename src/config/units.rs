//! Sizes, durations and hints: the small types of the configuration.

use std::num::NonZeroU32;
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

/// A name, or a list of names: never empty, none twice.
pub(super) fn one_or_more<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a name, or a list of names")]
    enum Written {
        One(String),
        More(Vec<String>),
    }
    let names = match Written::deserialize(deserializer)? {
        Written::One(name) => vec![name],
        Written::More(names) => names,
    };
    if names.is_empty() {
        return Err(de::Error::custom("an empty list of names"));
    }
    if let Some((_, twice)) = names
        .iter()
        .enumerate()
        .find(|(i, name)| names[..*i].contains(name))
    {
        return Err(de::Error::custom(format!("{twice:?} is named twice")));
    }
    Ok(names)
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

/// How often, written `"100/s"`, `"6000/min"` or `"1000/h"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRate {
    /// So many; also how many may come at once.
    pub count: NonZeroU32,
    /// In this time.
    pub per: Duration,
}

impl RequestRate {
    /// More is no limit, and would be counted in less than microseconds.
    const MOST: u32 = 1_000_000;
}

impl std::fmt::Display for RequestRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "min",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl<'de> Deserialize<'de> for RequestRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || {
            let (count, unit) = text.split_once('/')?;
            let count: NonZeroU32 = count.trim().parse().ok()?;
            let seconds = match unit.trim() {
                "s" => 1,
                "min" => 60,
                "h" => 3600,
                _ => return None,
            };
            (count.get() <= Self::MOST).then_some(Self {
                count,
                per: Duration::from_secs(seconds),
            })
        };
        parse().ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is not a rate of requests, of at most 1000000, such as \"100/s\", \"600/min\" or \"1000/h\""
            ))
        })
    }
}

/// Bytes a second, written `"50 MiB/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRate(NonZeroU32);

impl ByteRate {
    /// Least, what a request that holds memory must move while others wait
    /// for it (docs/limits.md, 408): a slower grant would only produce that.
    const LEAST: u64 = 64 << 10;
    /// More is no limit, and would be counted in a few nanoseconds.
    const MOST: u64 = 16 << 30;

    /// In KiB a second.
    #[must_use]
    pub const fn kib(self) -> NonZeroU32 {
        self.0
    }
}

impl std::fmt::Display for ByteRate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/s", Length(u64::from(self.0.get()) << 10))
    }
}

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = text
            .strip_suffix("/s")
            .and_then(|length| length.trim().parse::<bytesize::ByteSize>().ok())
            .ok_or_else(|| {
                de::Error::custom(format!(
                    "{text:?} is not a rate of bytes such as \"50 MiB/s\""
                ))
            })?;
        u32::try_from(bytes.0 >> 10)
            .ok()
            .and_then(NonZeroU32::new)
            .filter(|_| (Self::LEAST..=Self::MOST).contains(&bytes.0))
            .map(Self)
            .ok_or_else(|| {
                de::Error::custom(format!(
                    "a rate of {text:?}; it must be from 64 KiB/s to 16 GiB/s"
                ))
            })
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

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" (or "unknown
/// variant") into a hint that names the nearest known word.
pub(super) fn nearest_hint(message: &str) -> Option<String> {
    let (what, rest) = ["field", "variant"].iter().find_map(|what| {
        let (_, rest) = message.split_once(&format!("unknown {what} `"))?;
        Some((*what, rest))
    })?;
    let (unknown, expected) = rest.split_once('`')?;
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let what = if what == "field" { "keys" } else { "words" };
    Some(
        nearest(unknown, known.iter().copied())
            .unwrap_or_else(|| format!("known {what} here: {}", known.join(", "))),
    )
}

/// "did you mean", if one of the known names is near.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|name| (strsim::jaro_winkler(unknown, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.7)
        .map(|(_, name)| format!("did you mean `{name}`?"))
}
