//! What a verification found, in one place for people, JSON and exit codes.

use serde::Serialize;

use super::walk::End;

/// The one word for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every record is covered by an anchored checkpoint that the pinned key
    /// signed, and the agent had stopped.
    Verified,
    /// So are those up to the last anchored checkpoint; nothing but this host
    /// speaks for what came after it.
    UnanchoredTail,
    /// The log agrees with itself. Without anchor, or without pinned key,
    /// that is no proof against the operator.
    NotProven,
    /// It is not the log that was written.
    Altered,
}

/// What the signatures of checkpoints prove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signatures {
    /// They are the pinned key's.
    Proven,
    /// There are some, and no key was given to hold them against.
    NotPinned,
    /// There are none: checkpoints are a self-check.
    #[default]
    None,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Which file.
    pub file: String,
    /// Which line of it, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The first record that is wrong, or missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The last record that it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl Fault {
    pub(super) fn elsewhere(file: String, what: &str) -> Self {
        Self {
            file,
            what: what.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn at_end(end: &End, what: &str) -> Self {
        Self {
            file: end.file.clone(),
            line: Some(end.lines + 1),
            what: what.to_owned(),
            ..Self::default()
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        match (self.seq, self.through) {
            (Some(seq), Some(last)) if last > seq => write!(f, ", records {seq} to {last}")?,
            (Some(seq), _) => write!(f, ", record {seq}")?,
            (None, _) => {}
        }
        write!(f, ": {}", self.what)
    }
}

/// What lies behind the last anchored checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tail {
    /// Its first record.
    pub from: u64,
    /// Records that are here.
    pub records: u64,
    /// Records that this host's own checkpoints know of and that are not
    /// here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
}

/// What a verification found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The log's name.
    pub origin: String,
    /// Files of records.
    pub segments: u64,
    /// Records that follow one another from the first.
    pub records: u64,
    /// When the first and the last were written.
    pub time: Option<[String; 2]>,
    /// Checkpoints in the log's own file, and how many the pinned key signed
    /// and nobody did.
    pub checkpoints: u64,
    /// Signed by the pinned key.
    pub proven: u64,
    /// Signed by nobody.
    pub unsigned: u64,
    /// What their signatures prove.
    pub signatures: Signatures,
    /// Records that the last of them covers.
    pub covered: u64,
    /// What the last of them, local or anchored, says besides: its extension
    /// lines, as `catalog 42 HASH`.
    pub stated: Vec<String>,
    /// Whether an anchor was given.
    pub anchor_given: bool,
    /// Checkpoints of this log in it.
    pub anchors: u64,
    /// Records that the last of them covers.
    pub anchored: Option<u64>,
    /// What lies behind it.
    #[serde(rename = "unanchored_tail")]
    pub tail: Option<Tail>,
    /// Begins without an end: an agent that runs has some; one that stopped
    /// by force resolves them at its next start.
    pub open: Vec<u64>,
    /// Whether the last thing that happened was a clean stop.
    pub clean_stop: bool,
    /// The first thing that is wrong.
    pub fault: Option<Fault>,
    /// Further ones.
    pub further: Vec<Fault>,
    /// What is worth knowing and no fault.
    pub warnings: Vec<String>,
}

impl Report {
    /// The one word.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.fault.is_some() {
            return Verdict::Altered;
        }
        if self.anchored.is_none() || self.signatures != Signatures::Proven {
            return Verdict::NotProven;
        }
        match self.tail {
            Some(_) => Verdict::UnanchoredTail,
            None => Verdict::Verified,
        }
    }

    /// Whether nothing is known to be wrong or missing.
    #[must_use]
    pub fn is_fine(&self) -> bool {
        let cut = self
            .tail
            .as_ref()
            .is_some_and(|tail| tail.missing.is_some());
        self.fault.is_none() && !cut
    }

    pub(super) fn fail(&mut self, fault: Fault) {
        match self.fault {
            None => self.fault = Some(fault),
            Some(_) => self.further.push(fault),
        }
    }

    /// A fault that tells more of the records than those of other files do.
    pub(super) fn fail_first(&mut self, fault: Fault) {
        match &self.fault {
            Some(first) if first.seq.is_some() => self.further.push(fault),
            _ => self.further.extend(self.fault.replace(fault)),
        }
    }

    pub(super) fn warn(&mut self, what: String) {
        self.warnings.push(what);
    }
}
