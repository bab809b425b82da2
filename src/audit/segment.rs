//! The log's files: segments of JSON lines, and the checkpoints beside them.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::record::{Kind, Phase};
use super::tree::Hash;

/// Every signed checkpoint, in the log's directory.
pub(super) const CHECKPOINTS: &str = "checkpoints";

/// What a segment's name is made of; its first record's number, zero-padded,
/// stands in between, so that names sort as the records do.
const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";
/// Digits of the largest number there is.
const DIGITS: usize = 20;

/// A segment file's name.
pub(super) fn name(first: u64) -> String {
    format!("{PREFIX}{first:0DIGITS$}{SUFFIX}")
}

/// The number of its first record, if this is a segment's name.
pub(super) fn first_seq(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let number = digits.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

/// A segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) path: PathBuf,
}

impl Segment {
    pub(super) fn in_dir(dir: &Path, first: u64) -> Self {
        Self {
            first,
            path: dir.join(name(first)),
        }
    }

    pub(super) fn name(&self) -> String {
        name(self.first)
    }
}

/// The segments of a log, in order.
pub(super) fn list(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(first) = entry.file_name().to_str().and_then(first_seq) {
            found.push(Segment {
                first,
                path: entry.path(),
            });
        }
    }
    found.sort_by_key(|segment| segment.first);
    Ok(found)
}

/// What checking a line needs of it.
#[derive(Debug, Deserialize)]
pub(super) struct Outline {
    pub(super) seq: u64,
    #[serde(default)]
    pub(super) prev: Option<Hash>,
    pub(super) time: String,
    pub(super) monotonic_ns: u64,
    pub(super) boot_id: String,
    pub(super) host: String,
    pub(super) event: Kind,
    #[serde(default)]
    pub(super) phase: Option<Phase>,
    #[serde(default)]
    pub(super) op: Option<String>,
    #[serde(default)]
    pub(super) begin: Option<u64>,
    #[serde(default)]
    pub(super) origin: Option<String>,
    #[serde(default)]
    pub(super) peaks: Option<Vec<Hash>>,
    #[serde(default)]
    pub(super) open: Option<Vec<u64>>,
}

impl Outline {
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// Whole lines, and whether something without a newline follows them.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = Text<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == bytes.len() {
            return None;
        }
        let rest = &bytes[at..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = Text {
            at,
            text: &rest[..end.unwrap_or(rest.len())],
            whole: end.is_some(),
        };
        at += line.text.len() + usize::from(line.whole);
        Some(line)
    })
}

/// A line of a segment.
pub(super) struct Text<'a> {
    /// Where it begins.
    pub(super) at: usize,
    /// Without its newline.
    pub(super) text: &'a [u8],
    /// Whether it has one.
    pub(super) whole: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_numbers_and_are_read_back() {
        assert_eq!(name(42), "audit-00000000000000000042.jsonl");
        assert_eq!(first_seq(&name(42)), Some(42));
        assert_eq!(first_seq(&name(u64::MAX)), Some(u64::MAX));
        for other in ["audit-42.jsonl", "checkpoints", "audit-.jsonl", "x"] {
            assert_eq!(first_seq(other), None, "{other}");
        }
        assert!(name(9) < name(10));
    }

    #[test]
    fn a_torn_line_is_told_from_a_whole_one() {
        let found: Vec<_> = lines(b"a\n\nbc").map(|l| (l.at, l.text, l.whole)).collect();
        assert_eq!(
            found,
            [(0, &b"a"[..], true), (2, b"", true), (3, b"bc", false)]
        );
    }
}
