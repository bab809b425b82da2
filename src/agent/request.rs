//! Paths, queries and headers: untrusted text into places and options.

use http::HeaderMap;
use percent_encoding::percent_decode;

use crate::api::{Error, ErrorKind, Operation, header};
use crate::get::Wanted;
use crate::store::{Attributes, Place};

use super::policy::{Ask, PutFacts};

/// Longest object key, in bytes of UTF-8 (S3 User Guide, "Naming objects").
const MAX_KEY: usize = 1024;
/// Longest bucket name; 63 today, 255 for old ones in us-east-1.
const MAX_BUCKET: usize = 255;
/// Objects' routes begin so.
const OBJECTS: &str = "/v1/objects/";

/// What an object route names: a bucket, and a key unless it is a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) bucket: String,
    pub(super) key: Option<String>,
}

impl Target {
    /// Parses a raw path; `None` if it is not an objects' route.
    pub(super) fn parse(path: &str) -> Option<Result<Self, Error>> {
        let rest = path.strip_prefix(OBJECTS)?;
        let (bucket, key) = match rest.split_once('/') {
            Some((bucket, key)) => (bucket, Some(key)),
            None => (rest, None),
        };
        Some(Self::new(bucket, key))
    }

    fn new(bucket: &str, key: Option<&str>) -> Result<Self, Error> {
        let bucket = decode(bucket, "bucket")?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if !(3..=MAX_BUCKET).contains(&bucket.len()) || !bucket.bytes().all(plain) {
            return Err(malformed(format!(
                "{bucket:?} is no bucket name: 3 to 255 letters, digits, '-', '.' and '_'"
            )));
        }
        let key = key.map(check_key).transpose()?.flatten();
        Ok(Self { bucket, key })
    }

    /// The place of an object's route.
    pub(super) fn place(self) -> Result<Place, Error> {
        match self.key {
            Some(key) => Ok(Place::new(self.bucket, key)),
            None => Err(malformed("the path names a bucket and no key")),
        }
    }
}

fn check_key(raw: &str) -> Result<Option<String>, Error> {
    if raw.is_empty() {
        return Ok(None);
    }
    let key = decode(raw, "key")?;
    if key.len() > MAX_KEY {
        return Err(malformed(format!(
            "the key has {} bytes; S3 allows {MAX_KEY}",
            key.len()
        )));
    }
    if key.contains('\0') {
        return Err(malformed("the key contains a NUL byte"));
    }
    Ok(Some(key))
}

fn decode(raw: &str, what: &str) -> Result<String, Error> {
    String::from_utf8(percent_decode(raw.as_bytes()).collect())
        .map_err(|_| malformed(format!("the {what} is not UTF-8 after percent-decoding")))
}

/// A parsed query string.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, Error> {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                // Form encoding, which curl -G and every library speak.
                let value = value.replace('+', " ");
                Ok((decode(name, "query")?, decode(&value, "query")?))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self(pairs))
    }

    /// Unknown parameters are errors: a misspelt `version_id` must not read
    /// the current version.
    pub(super) fn allow(&self, known: &[&str]) -> Result<(), Error> {
        match self
            .0
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            Some((name, _)) => Err(malformed(format!("unknown query parameter {name:?}"))),
            None => Ok(()),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    pub(super) fn value(&self, name: &str) -> Option<String> {
        self.0
            .iter()
            .find(|(n, v)| n == name && !v.is_empty())
            .map(|(_, v)| v.clone())
    }
}

/// One header's text.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Result<Option<String>, Error> {
    headers
        .get(name)
        .map(|value| {
            std::str::from_utf8(value.as_bytes())
                .map(|text| text.trim().to_owned())
                .map_err(|_| malformed(format!("the header {name} is not UTF-8")))
        })
        .transpose()
}

/// A header that is `true` or `false`.
pub(super) fn flag(headers: &HeaderMap, name: &str) -> Result<bool, Error> {
    match text(headers, name)?.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(malformed(format!(
            "{name} is {other:?}; it must be true or false"
        ))),
    }
}

/// The client's pairs for the encryption context.
pub(super) fn context(headers: &HeaderMap) -> Result<Vec<(String, String)>, Error> {
    headers
        .get_all(header::CONTEXT)
        .iter()
        .map(|value| {
            let text = std::str::from_utf8(value.as_bytes())
                .map_err(|_| malformed("Strongroom-Context is not UTF-8"))?;
            match text.trim().split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
                _ => Err(malformed(format!(
                    "Strongroom-Context is {text:?}; it must be key=value"
                ))),
            }
        })
        .collect()
}

/// What S3 is to keep beside an object.
pub(super) fn attributes(headers: &HeaderMap) -> Result<Attributes, Error> {
    let if_none_match = match text(headers, "if-none-match")?.as_deref() {
        None => false,
        Some("*") => true,
        Some(other) => {
            return Err(malformed(format!(
                "If-None-Match is {other:?}; only * is supported"
            )));
        }
    };
    if headers.contains_key("if-match") {
        return Err(malformed("If-Match is not supported"));
    }
    Ok(Attributes {
        content_type: text(headers, "content-type")?,
        storage_class: text(headers, header::STORAGE_CLASS)?,
        retain_until: text(headers, header::RETAIN_UNTIL)?,
        retention_mode: text(headers, header::RETENTION_MODE)?,
        legal_hold: text(headers, header::LEGAL_HOLD)?,
        tags: text(headers, header::TAGS)?,
        metadata: Vec::new(),
        if_none_match,
    })
}

/// The `Range` header. A unit other than bytes and several ranges at once
/// are ignored, as RFC 9110 section 14.2 allows; nonsense is an error, so
/// that nobody gets the whole object who asked for a part of it.
pub(super) fn range(headers: &HeaderMap) -> Result<Wanted, Error> {
    let Some(text) = text(headers, "range")? else {
        return Ok(Wanted::Whole);
    };
    let Some(spec) = text.strip_prefix("bytes=") else {
        return Ok(Wanted::Whole);
    };
    if spec.contains(',') {
        return Ok(Wanted::Whole);
    }
    let nonsense = || {
        malformed(format!(
            "Range is {text:?}; bytes=FIRST-LAST, FIRST- or -COUNT"
        ))
    };
    let (first, last) = spec.split_once('-').ok_or_else(nonsense)?;
    let number = |digits: &str| -> Result<u64, Error> {
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(nonsense());
        }
        // Longer than any object is the same as the end of the largest.
        Ok(digits.parse().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", count) => Ok(Wanted::Suffix(number(count)?)),
        (first, "") => Ok(Wanted::Span(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(nonsense());
            }
            Ok(Wanted::Span(first, Some(last)))
        }
    }
}

/// Plaintext bytes of a passed file, if one is announced.
pub(super) fn descriptor(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let Some(text) = text(headers, header::DESCRIPTOR)? else {
        return Ok(None);
    };
    let length = text.parse().ok();
    let length = length.filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    length.map(Some).ok_or_else(|| {
        malformed(format!(
            "Strongroom-Descriptor is {text:?}; it must be the number of bytes to read"
        ))
    })
}

/// Plaintext bytes of a body that declares them, or of a passed file; hyper
/// has checked a body's form.
pub(super) fn length(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    if let Some(length) = descriptor(headers)? {
        return Ok(Some(length));
    }
    Ok(text(headers, "content-length")?.and_then(|n| n.parse().ok()))
}

/// What a request on objects asks for, in the words of grants.
pub(super) fn ask(
    operation: Operation,
    target: &Target,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Ask, Error> {
    let key = match operation {
        Operation::List => query.value("prefix").unwrap_or_default(),
        _ => target.key.clone().unwrap_or_default(),
    };
    let mut ask = Ask::at(operation, &target.bucket, &key);
    match operation {
        Operation::Put => {
            ask.ring = text(headers, header::KEY)?;
            ask.put = Some(PutFacts {
                storage_class: text(headers, header::STORAGE_CLASS)?,
                retain_until: text(headers, header::RETAIN_UNTIL)?,
                length: length(headers)?,
            });
        }
        Operation::Get | Operation::Head => {
            ask.held = bound_to(headers)?;
            for (name, operation) in [
                (header::ALLOW_UNBOUND, Operation::GetUnbound),
                (header::ALLOW_UNCOMMITTED, Operation::GetUncommitted),
            ] {
                if flag(headers, name)? {
                    ask.also.push(operation);
                }
            }
        }
        _ => {}
    }
    Ok(ask)
}

/// `s3://BUCKET/KEY` in `Strongroom-Bound-To`.
pub(super) fn bound_to(headers: &HeaderMap) -> Result<Option<Place>, Error> {
    let Some(text) = text(headers, header::BOUND_TO)? else {
        return Ok(None);
    };
    text.strip_prefix("s3://")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty())
        .map(|(bucket, key)| Some(Place::new(bucket, key)))
        .ok_or_else(|| {
            malformed(format!(
                "Strongroom-Bound-To is {text:?}; it must be s3://BUCKET/KEY"
            ))
        })
}

pub(super) fn malformed(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Malformed, detail)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(path: &str) -> String {
        Target::parse(path).unwrap().unwrap().key.unwrap()
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(name, value.parse().unwrap());
        map
    }

    #[test]
    fn keys_are_decoded_exactly_once() {
        assert_eq!(key("/v1/objects/bkt/db/2026.dump"), "db/2026.dump");
        assert_eq!(key("/v1/objects/bkt/a%2Fb"), "a/b");
        assert_eq!(key("/v1/objects/bkt/a%252Fb"), "a%2Fb");
        assert_eq!(key("/v1/objects/bkt//x//y/../z"), "/x//y/../z");
        assert_eq!(key("/v1/objects/bkt/a+b%20c"), "a+b c");
        assert_eq!(
            key(&format!("/v1/objects/bkt/{}", "k".repeat(1024))).len(),
            1024
        );
    }

    #[test]
    fn bad_keys_and_buckets_are_named() {
        for (path, word) in [
            (
                format!("/v1/objects/bkt/{}", "k".repeat(1025)),
                "1025 bytes",
            ),
            ("/v1/objects/bkt/a%00b".to_owned(), "NUL"),
            ("/v1/objects/bkt/%FF".to_owned(), "UTF-8"),
            ("/v1/objects/b/k".to_owned(), "bucket name"),
            ("/v1/objects/b%2Fkt/k".to_owned(), "bucket name"),
            ("/v1/objects/".to_owned(), "bucket name"),
        ] {
            let error = Target::parse(&path).unwrap().unwrap_err();
            assert!(error.detail.contains(word), "{path}: {}", error.detail);
        }
        assert!(Target::parse("/v1/status").is_none());
        assert_eq!(
            Target::parse("/v1/objects/bkt/").unwrap().unwrap().key,
            None
        );
    }

    #[test]
    fn ranges_parse_or_are_refused() {
        let parse = |text: &str| range(&headers("range", text));
        assert_eq!(parse("bytes=0-99").unwrap(), Wanted::Span(0, Some(99)));
        assert_eq!(parse("bytes=100-").unwrap(), Wanted::Span(100, None));
        assert_eq!(parse("bytes=-5").unwrap(), Wanted::Suffix(5));
        assert_eq!(parse("bytes=0-1,4-5").unwrap(), Wanted::Whole);
        assert_eq!(parse("lines=1-2").unwrap(), Wanted::Whole);
        for bad in ["bytes=5-3", "bytes=a-b", "bytes=-", "bytes=1", "bytes=+1-2"] {
            assert_eq!(parse(bad).unwrap_err().kind, ErrorKind::Malformed, "{bad}");
        }
    }

    #[test]
    fn flags_and_context_are_strict() {
        assert!(
            flag(
                &headers(header::ALLOW_UNBOUND, "true"),
                header::ALLOW_UNBOUND
            )
            .unwrap()
        );
        assert!(
            flag(
                &headers(header::ALLOW_UNBOUND, "yes"),
                header::ALLOW_UNBOUND
            )
            .is_err()
        );
        assert_eq!(
            context(&headers(header::CONTEXT, "a=b=c")).unwrap(),
            [("a".to_owned(), "b=c".to_owned())]
        );
        assert!(context(&headers(header::CONTEXT, "novalue")).is_err());
    }

    #[test]
    fn unknown_query_parameters_are_refused() {
        let query = Query::parse(Some("prefix=a%2Fb+c&delimiter=/")).unwrap();
        assert_eq!(query.value("prefix").unwrap(), "a/b c");
        assert!(
            query
                .allow(&["prefix"])
                .unwrap_err()
                .detail
                .contains("delimiter")
        );
        query.allow(&["prefix", "delimiter"]).unwrap();
    }
}
