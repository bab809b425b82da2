//! Places: `s3://BUCKET/KEY`, `-`, and files.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::failure::Failure;
use super::ui::shown;

const SCHEME: &str = "s3://";

/// A bucket and an object key, or the beginning of keys. The key is taken as
/// it stands: nothing is decoded, nothing folded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct S3Url {
    pub(super) bucket: String,
    pub(super) key: String,
}

impl FromStr for S3Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or("a place in the store is written s3://BUCKET/KEY")?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err("the bucket is missing: s3://BUCKET/KEY".into());
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

impl std::fmt::Display for S3Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}/{}", shown(&self.bucket), shown(&self.key))
    }
}

impl S3Url {
    /// This place, if it names one object.
    pub(super) fn object(self) -> Result<Self, Failure> {
        if self.key.is_empty() {
            return Err(Failure::usage(format!(
                "{self} names a bucket: the object's key is missing"
            ))
            .hint("write s3://BUCKET/KEY"));
        }
        Ok(self)
    }

    /// This place or, if it ends like a directory, the one below it that is
    /// named like `source`.
    pub(super) fn object_named_like(self, source: Option<&OsStr>) -> Result<Self, Failure> {
        if !self.key.is_empty() && !self.key.ends_with('/') {
            return Ok(self);
        }
        let Some(name) = source else {
            return Err(
                Failure::usage(format!("{self} has no name for what comes from a pipe"))
                    .hint("write the whole key"),
            );
        };
        let Some(name) = name.to_str() else {
            return Err(Failure::usage(format!(
                "{name:?} is not UTF-8, as the keys of objects are"
            ))
            .hint("write the whole key"));
        };
        Ok(Self {
            key: format!("{}{name}", self.key),
            bucket: self.bucket,
        })
    }

    /// The part of the key after its last slash.
    pub(super) fn last_component(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }
}

/// Where `cp` and `mv` take from and bring to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the store.
    S3(S3Url),
    /// A local path; `-` is a standard stream.
    Local(PathBuf),
}

impl Place {
    pub(super) fn parse(text: OsString) -> Result<Self, Failure> {
        match text.to_str() {
            Some(url) if url.starts_with(SCHEME) => url
                .parse()
                .map(Self::S3)
                .map_err(|why: String| Failure::usage(format!("{}: {why}", shown(url)))),
            _ => Ok(Self::Local(text.into())),
        }
    }
}

/// Whether a path stands for standard input or output.
pub(super) fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// A repeatable `k=v` option.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".into()),
    }
}

/// A range of bytes, as the value of the header `Range`.
pub(super) fn range(text: &str) -> Result<String, String> {
    const FORM: &str =
        "write 0-99 for the first hundred bytes, 100- for all but these, -100 for the last hundred";
    let (first, last) = text.split_once('-').ok_or(FORM)?;
    let number = |digits: &str| -> Result<Option<u64>, String> {
        if digits.is_empty() {
            return Ok(None);
        }
        // `parse` would also take a sign.
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(FORM.into());
        }
        digits.parse().map(Some).map_err(|_| FORM.into())
    };
    match (number(first)?, number(last)?) {
        (None, None) => Err(FORM.into()),
        (None, Some(0)) => Err("the last 0 bytes of an object are nothing".into()),
        (Some(first), Some(last)) if first > last => Err("the range ends before it begins".into()),
        _ => Ok(format!("bytes={text}")),
    }
}

/// An instant for Object Lock: RFC 3339, or a date, which means its midnight
/// in UTC.
pub(super) fn instant(text: &str) -> Result<String, String> {
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Ok(instant.to_string());
    }
    if text.parse::<jiff::civil::Date>().is_ok() {
        return Ok(format!("{text}T00:00:00Z"));
    }
    Err("write a date such as 2033-12-31, or an instant such as 2033-12-31T23:59:59Z".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn url(text: &str) -> S3Url {
        text.parse().unwrap()
    }

    #[test]
    fn a_key_is_taken_as_it_stands() {
        let odd = url("s3://b/a//../%2F ü?x#y");
        assert_eq!(odd.bucket, "b");
        assert_eq!(odd.key, "a//../%2F ü?x#y");
        assert_eq!(url("s3://b").key, "");
        assert_eq!(url("s3://b//x").key, "/x");
        for wrong in ["b/k", "s3:/b/k", "s3://", "s3:///k", "S3://b/k"] {
            assert!(wrong.parse::<S3Url>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_key_like_a_directory_takes_the_sources_name() {
        let named = |to: &str| {
            url(to)
                .object_named_like(Some(OsStr::new("a.dump")))
                .unwrap()
                .key
        };
        assert_eq!(named("s3://b/db/"), "db/a.dump");
        assert_eq!(named("s3://b"), "a.dump");
        assert_eq!(named("s3://b/db"), "db");
        assert!(url("s3://b/db/").object_named_like(None).is_err());
        assert!(url("s3://b/").object().is_err());
    }

    #[test]
    fn ranges_are_checked_before_they_are_sent() {
        for fine in ["0-99", "100-", "-100", "5-5", "0-18446744073709551615"] {
            assert_eq!(range(fine).unwrap(), format!("bytes={fine}"));
        }
        for wrong in ["", "-", "5", "9-5", "a-b", "-0", "+1-2", "1-2,4-5", "1--2"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_date_means_its_midnight_in_utc() {
        assert_eq!(instant("2033-12-31").unwrap(), "2033-12-31T00:00:00Z");
        assert_eq!(
            instant("2033-12-31T23:00:00+01:00").unwrap(),
            "2033-12-31T22:00:00Z"
        );
        assert!(instant("next year").is_err());
    }

    #[test]
    fn pairs_need_a_name() {
        assert_eq!(pair("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert_eq!(pair("a=").unwrap(), ("a".into(), String::new()));
        assert!(pair("=b").is_err());
        assert!(pair("a").is_err());
    }

    #[test]
    fn cp_tells_places_in_the_store_from_files() {
        assert!(matches!(
            Place::parse("s3://b/k".into()).unwrap(),
            Place::S3(_)
        ));
        assert!(matches!(
            Place::parse("./s3://b".into()).unwrap(),
            Place::Local(_)
        ));
        assert!(Place::parse("s3://".into()).is_err());
    }
}
