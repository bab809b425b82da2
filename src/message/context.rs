//! The encryption context: authenticated, unencrypted key-value pairs that
//! bind a message (and its wrapped keys) to a place.
//!
//! Specification: framework/structures.md#encryption-context and
//! data-format/message-header.md#key-value-pairs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::Error;
use super::limits::MAX_CONTEXT;

/// Pairs with this prefix are written by Strongroom alone.
const OURS: &str = "strongroom:";
/// Pairs with this prefix are reserved by the specification.
const RESERVED: &str = "aws-crypto-";

/// Unique pairs in the order of their keys' UTF-8 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    pairs: BTreeMap<String, String>,
    /// Length of the serialised pairs, without the count.
    serialised: usize,
}

impl Context {
    /// No pairs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether clients may not set this key (SECURITY.md 5).
    #[must_use]
    pub fn is_reserved(key: &str) -> bool {
        key.starts_with(OURS) || key.starts_with(RESERVED)
    }

    /// Adds a pair of Strongroom's own.
    ///
    /// # Errors
    /// [`Error::Context`] for an empty or repeated key and for keys beginning
    /// `aws-crypto-`, which only the format itself sets; [`Error::Limit`] past
    /// 65,535 bytes in a key or value or 32 KiB in all.
    pub fn insert(&mut self, key: &str, value: &str) -> Result<(), Error> {
        if key.is_empty() {
            return Err(Error::Context("a key is empty".to_owned()));
        }
        if key.starts_with(RESERVED) {
            return Err(Error::Context(format!(
                "keys beginning {RESERVED} are reserved"
            )));
        }
        // 2 is the pair count in front, u16.
        if self.serialised + pair_len(key, value) + 2 > MAX_CONTEXT {
            return Err(Error::Limit(format!(
                "the encryption context is longer than {MAX_CONTEXT} bytes"
            )));
        }
        self.add(key, value)
            .then_some(())
            .ok_or_else(|| Error::Context(format!("the key {key:?} is given twice")))
    }

    /// Adds a pair that a client asked for.
    ///
    /// # Errors
    /// As [`insert`](Self::insert), and [`Error::Context`] for every
    /// [reserved](Self::is_reserved) key.
    pub fn insert_from_client(&mut self, key: &str, value: &str) -> Result<(), Error> {
        if Self::is_reserved(key) {
            return Err(Error::Context(format!(
                "clients cannot set {key:?}: keys beginning {OURS} and {RESERVED} are reserved"
            )));
        }
        self.insert(key, value)
    }

    /// False when the key is there already.
    fn add(&mut self, key: &str, value: &str) -> bool {
        match self.pairs.entry(key.to_owned()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(value.to_owned());
                self.serialised += pair_len(key, value);
                true
            }
        }
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.get(key).map(String::as_str)
    }

    /// All pairs, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are no pairs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The serialised pairs: a keyring's AAD, and the header's without its
    /// length. Empty for no pairs.
    #[must_use]
    pub fn aad(&self) -> Vec<u8> {
        if self.pairs.is_empty() {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(2 + self.serialised);
        // No length below exceeds u16: a written context has at most 32 KiB,
        // a parsed one came out of u16 fields. Saturating keeps a mistake
        // here from becoming an ambiguous encoding that still authenticates.
        put_u16(&mut out, self.pairs.len());
        for (key, value) in &self.pairs {
            for text in [key, value] {
                put_u16(&mut out, text.len());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out
    }

    /// Reads the header's `aad` field. Unsorted pairs are taken (some writers
    /// store them so), repeated keys, bad UTF-8 and surplus bytes are not.
    pub(super) fn parse(field: &[u8]) -> Result<Self, Error> {
        let mut context = Self::new();
        if field.is_empty() {
            return Ok(context);
        }
        let (count, mut rest) = split_u16(field)?;
        for _ in 0..count {
            let (key, after_key) = split_text(rest)?;
            let (value, after_value) = split_text(after_key)?;
            rest = after_value;
            if !context.add(key, value) {
                return Err(Error::altered("a context key is stored twice"));
            }
        }
        if count == 0 || !rest.is_empty() {
            return Err(Error::altered(
                "the context's length does not fit its pairs",
            ));
        }
        Ok(context)
    }

    /// The pairs of `self` that `stored` lacks.
    ///
    /// # Errors
    /// [`Error::Context`] when a key has different values in the two.
    pub(super) fn beyond(&self, stored: &Self) -> Result<Self, Error> {
        let mut extra = Self::new();
        for (key, value) in self.iter() {
            match stored.get(key) {
                None => {
                    extra.add(key, value);
                }
                Some(same) if same == value => {}
                Some(_) => {
                    return Err(Error::Context(format!(
                        "the message holds another value for {key:?}"
                    )));
                }
            }
        }
        Ok(extra)
    }

    /// The pairs of both; where a key is in both, the value of `self`.
    pub(super) fn with(&self, more: &Self) -> Self {
        let mut all = self.clone();
        for (key, value) in more.iter() {
            all.add(key, value);
        }
        all
    }
}

/// Serialised length of one pair: two u16 lengths and the texts.
fn pair_len(key: &str, value: &str) -> usize {
    key.len().saturating_add(value.len()).saturating_add(4)
}

fn put_u16(out: &mut Vec<u8>, value: usize) {
    let value = u16::try_from(value).unwrap_or(u16::MAX);
    out.extend_from_slice(&value.to_be_bytes());
}

fn split_u16(bytes: &[u8]) -> Result<(u16, &[u8]), Error> {
    bytes
        .split_first_chunk::<2>()
        .map(|(head, rest)| (u16::from_be_bytes(*head), rest))
        .ok_or_else(|| Error::altered("the context ends inside a pair"))
}

fn split_text(bytes: &[u8]) -> Result<(&str, &[u8]), Error> {
    let (len, rest) = split_u16(bytes)?;
    let (text, rest) = rest
        .split_at_checked(usize::from(len))
        .ok_or_else(|| Error::altered("the context ends inside a pair"))?;
    let text =
        std::str::from_utf8(text).map_err(|_| Error::altered("the context is not UTF-8 text"))?;
    Ok((text, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_serialised_sorted_by_utf8_bytes() {
        let mut context = Context::new();
        assert!(context.aad().is_empty());
        for (k, v) in [("é", "2"), ("b", "1"), ("Z", "")] {
            context.insert(k, v).unwrap();
        }
        assert_eq!(
            context.aad(),
            b"\x00\x03\x00\x01Z\x00\x00\x00\x01b\x00\x011\x00\x02\xc3\xa9\x00\x012"
        );
        assert_eq!(Context::parse(&context.aad()).unwrap(), context);
    }

    #[test]
    fn rule_05_clients_cannot_set_reserved_pairs() {
        let mut context = Context::new();
        for key in ["strongroom:key", "strongroom:x", "aws-crypto-public-key"] {
            let error = context.insert_from_client(key, "v").err().unwrap();
            assert!(matches!(error, Error::Context(_)), "{error}");
        }
        assert!(context.insert("aws-crypto-public-key", "v").is_err());
        context.insert("strongroom:key", "ours").unwrap();
        context.insert_from_client("owner", "theirs").unwrap();
        assert_eq!(context.len(), 2);
    }

    #[test]
    fn repeated_empty_and_oversize_pairs_are_refused() {
        let mut context = Context::new();
        context.insert("a", "1").unwrap();
        assert!(matches!(context.insert("a", "2"), Err(Error::Context(_))));
        assert!(matches!(context.insert("", "2"), Err(Error::Context(_))));
        assert_eq!(context.get("a"), Some("1"));
        // count 2 + (4 + 1 + 1) + (4 + 1 + n) = MAX_CONTEXT fits exactly.
        let n = MAX_CONTEXT - 2 - 6 - 5;
        let over = "x".repeat(n + 1);
        assert!(matches!(context.insert("b", &over), Err(Error::Limit(_))));
        context.insert("b", &over[1..]).unwrap();
        assert_eq!(context.aad().len(), MAX_CONTEXT);
        assert!(matches!(context.insert("c", ""), Err(Error::Limit(_))));
    }

    #[test]
    fn malformed_fields_are_refused() {
        for field in [
            &b"\x00"[..],
            b"\x00\x00",
            b"\x00\x01",
            b"\x00\x01\x00\x01a\x00",
            b"\x00\x01\x00\x01a\x00\x02b",
            b"\x00\x01\x00\x01a\x00\x01bc",
            b"\x00\x01\x00\x01\xff\x00\x01b",
            b"\x00\x02\x00\x01a\x00\x01b\x00\x01a\x00\x01c",
            b"\xff\xff\x00\x01a\x00\x01b",
        ] {
            assert!(Context::parse(field).is_err(), "{field:?}");
        }
    }
}
