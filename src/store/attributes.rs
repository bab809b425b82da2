//! What S3 keeps beside an object, checked before anything is sent.

use std::collections::HashMap;

use aws_sdk_s3::types::{ObjectLockLegalHoldStatus, ObjectLockMode, StorageClass};
use aws_smithy_types::DateTime;
use serde::{Deserialize, Serialize};

use super::StoreError;

/// User metadata with the message id, hexadecimal: an object that has moved
/// to an archive class can be HEADed and not read.
pub const METADATA_MESSAGE_ID: &str = "strongroom-message-id";
/// User metadata with the message's header, base64, where it fits.
pub const METADATA_HEADER: &str = "strongroom-header";
/// User metadata of one object, in bytes, names and values together (S3 User
/// Guide, "Working with object metadata").
pub const METADATA_LIMIT: usize = 2048;

/// Tags of one object, and the longest key and value in characters (S3 User
/// Guide, "Categorizing your objects using tags").
const MAX_TAGS: usize = 10;
const MAX_TAG_KEY: usize = 128;
const MAX_TAG_VALUE: usize = 256;

/// What S3 keeps beside an object. [`Attributes::check`] before use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// The storage class, by S3's name.
    pub storage_class: Option<String>,
    /// Object Lock retains the object until this RFC 3339 instant.
    pub retain_until: Option<String>,
    /// `GOVERNANCE` or `COMPLIANCE`; goes with `retain_until`.
    pub retention_mode: Option<String>,
    /// Object Lock's legal hold: `ON` or `OFF`.
    pub legal_hold: Option<String>,
    /// Tags, URL-encoded (`a=1&b=2`).
    pub tags: Option<String>,
    /// User metadata: names without `x-amz-meta-`, values in ASCII.
    pub metadata: Vec<(String, String)>,
    /// Fail with [`StoreError::Exists`] rather than replace an object.
    pub if_none_match: bool,
}

impl Attributes {
    /// Refuses what S3 would refuse, with words of our own.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] names the attribute and what is wrong with it.
    pub fn check(&self) -> Result<(), StoreError> {
        let invalid = |message: String| Err(StoreError::Invalid { message });
        if let Some(text) = &self.content_type
            && (text.is_empty() || !is_visible(text))
        {
            return invalid(format!("{text:?} is not a content type"));
        }
        if let Some(class) = &self.storage_class
            && (class.is_empty()
                || class.len() > 64
                || !class
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'))
        {
            return invalid(format!(
                "{class:?} is not a storage class; S3's are {}",
                StorageClass::values().join(", ")
            ));
        }
        if self.retain_until.is_some() != self.retention_mode.is_some() {
            return invalid("retention needs both an instant and a mode".into());
        }
        if let Some(text) = &self.retain_until
            && parse_instant(text)? <= jiff::Timestamp::now()
        {
            return invalid(format!("the retention date {text} is in the past"));
        }
        if let Some(mode) = self.retention_mode.as_deref()
            && !matches!(mode, "GOVERNANCE" | "COMPLIANCE")
        {
            return invalid(format!(
                "the retention mode {mode:?} must be GOVERNANCE or COMPLIANCE"
            ));
        }
        if let Some(hold) = self.legal_hold.as_deref()
            && !matches!(hold, "ON" | "OFF")
        {
            return invalid(format!("the legal hold {hold:?} must be ON or OFF"));
        }
        if let Some(tags) = &self.tags {
            check_tags(tags)?;
        }
        self.check_metadata()
    }

    /// Bytes of user metadata as S3 counts them.
    #[must_use]
    pub fn metadata_size(&self) -> usize {
        self.metadata.iter().map(|(k, v)| k.len() + v.len()).sum()
    }

    fn check_metadata(&self) -> Result<(), StoreError> {
        for (i, (name, value)) in self.metadata.iter().enumerate() {
            let name_fine = !name.is_empty()
                && name.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_')
                });
            if !name_fine || self.metadata[..i].iter().any(|(other, _)| other == name) {
                return Err(StoreError::invalid(format!(
                    "the metadata name {name:?} is malformed or given twice"
                )));
            }
            if !is_visible(value) || value.trim() != value {
                return Err(StoreError::invalid(format!(
                    "the metadata value of {name:?} is not plain ASCII"
                )));
            }
        }
        let size = self.metadata_size();
        if size > METADATA_LIMIT {
            return Err(StoreError::invalid(format!(
                "user metadata of {size} bytes; S3 allows {METADATA_LIMIT}"
            )));
        }
        Ok(())
    }

    /// Only what protects an object from deletion: a keyslot must live as
    /// long as its object (SECURITY rule 8).
    pub(super) fn retention_only(&self) -> Self {
        Self {
            retain_until: self.retain_until.clone(),
            retention_mode: self.retention_mode.clone(),
            legal_hold: self.legal_hold.clone(),
            ..Self::default()
        }
    }

    /// Our message id among the metadata.
    pub(super) fn message_id(&self) -> Option<&str> {
        self.metadata
            .iter()
            .find(|(name, _)| name == METADATA_MESSAGE_ID)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn metadata_map(&self) -> Option<HashMap<String, String>> {
        (!self.metadata.is_empty()).then(|| self.metadata.iter().cloned().collect())
    }

    pub(super) fn class(&self) -> Option<StorageClass> {
        self.storage_class.as_deref().map(StorageClass::from)
    }

    pub(super) fn lock_mode(&self) -> Option<ObjectLockMode> {
        self.retention_mode.as_deref().map(ObjectLockMode::from)
    }

    pub(super) fn lock_until(&self) -> Result<Option<DateTime>, StoreError> {
        let Some(text) = &self.retain_until else {
            return Ok(None);
        };
        Ok(Some(DateTime::from_secs(parse_instant(text)?.as_second())))
    }

    pub(super) fn hold(&self) -> Option<ObjectLockLegalHoldStatus> {
        self.legal_hold
            .as_deref()
            .map(ObjectLockLegalHoldStatus::from)
    }

    pub(super) fn condition(&self) -> Option<String> {
        self.if_none_match.then(|| "*".to_owned())
    }
}

fn parse_instant(text: &str) -> Result<jiff::Timestamp, StoreError> {
    text.parse().map_err(|_| {
        StoreError::invalid(format!(
            "{text:?} is not an instant such as 2031-01-01T00:00:00Z"
        ))
    })
}

fn is_visible(text: &str) -> bool {
    text.len() <= METADATA_LIMIT && text.bytes().all(|b| matches!(b, b' '..=b'~'))
}

fn check_tags(tags: &str) -> Result<(), StoreError> {
    let invalid = |why: &str| {
        Err(StoreError::invalid(format!(
            "the tags {tags:?} are not URL-encoded pairs such as a=1&b=2: {why}"
        )))
    };
    let decoded_len = |part: &str| {
        let plain = part.replace('+', " ");
        percent_encoding::percent_decode_str(&plain)
            .decode_utf8()
            .ok()
            .map(|text| text.chars().count())
    };
    if !is_visible(tags) || tags.contains(' ') {
        return invalid("a character that must be percent-encoded");
    }
    let pairs: Vec<_> = tags.split('&').collect();
    if pairs.len() > MAX_TAGS {
        return invalid("more than 10");
    }
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=') else {
            return invalid("a pair without '='");
        };
        match (decoded_len(name), decoded_len(value)) {
            (Some(1..=MAX_TAG_KEY), Some(0..=MAX_TAG_VALUE)) => {}
            _ => return invalid("an empty or too long part, or one that is not UTF-8"),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Attributes)) -> Result<(), StoreError> {
        let mut attributes = Attributes::default();
        change(&mut attributes);
        attributes.check()
    }

    #[test]
    fn good_attributes_pass() {
        Attributes::default().check().unwrap();
        with(|a| {
            a.content_type = Some("application/x-tar; charset=binary".into());
            a.storage_class = Some("DEEP_ARCHIVE".into());
            a.retain_until = Some("2999-01-01T00:00:00+01:00".into());
            a.retention_mode = Some("COMPLIANCE".into());
            a.legal_hold = Some("ON".into());
            a.tags = Some("team=db&note=a%20b&empty=".into());
            a.metadata = vec![(METADATA_MESSAGE_ID.into(), "00ff".into())];
        })
        .unwrap();
    }

    #[test]
    fn bad_attributes_are_named() {
        type Case = (&'static str, fn(&mut Attributes));
        let cases: &[Case] = &[
            ("content type", |a| a.content_type = Some("a\r\nb".into())),
            ("storage class", |a| {
                a.storage_class = Some("glacier".into())
            }),
            ("both", |a| {
                a.retain_until = Some("2999-01-01T00:00:00Z".into())
            }),
            ("instant", |a| {
                a.retain_until = Some("tomorrow".into());
                a.retention_mode = Some("GOVERNANCE".into());
            }),
            ("past", |a| {
                a.retain_until = Some("1999-01-01T00:00:00Z".into());
                a.retention_mode = Some("GOVERNANCE".into());
            }),
            ("retention mode", |a| {
                a.retain_until = Some("2999-01-01T00:00:00Z".into());
                a.retention_mode = Some("governance".into());
            }),
            ("legal hold", |a| a.legal_hold = Some("yes".into())),
            ("tags", |a| a.tags = Some("a".into())),
            ("tags", |a| a.tags = Some("a=b c".into())),
            ("more than 10", |a| a.tags = Some(["a=1"; 11].join("&"))),
            ("metadata name", |a| {
                a.metadata = vec![("A".into(), "1".into())]
            }),
            ("twice", |a| {
                a.metadata = vec![("a".into(), "1".into()), ("a".into(), "2".into())];
            }),
            ("metadata value", |a| {
                a.metadata = vec![("a".into(), "\u{e9}".into())]
            }),
            ("S3 allows 2048", |a| {
                a.metadata = vec![("a".into(), "x".repeat(2048))]
            }),
        ];
        for (words, change) in cases {
            let error = with(change).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
