//! The walk along the records, from the first to the last.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _};

use super::super::record::{Kind, Phase};
use super::super::segment::{self, Outline};
use super::super::tree::{Hash, Range};
use super::super::{ORIGIN_PREFIX, disk};
use super::{Expected, Fault, Files, Report};

/// Longest line, in bytes: more cannot be one record.
pub(super) const MAX_LINE: u64 = disk::MAX_TORN as u64;

/// Where the walk ended.
#[derive(Clone, Debug, Default)]
pub(super) struct End {
    /// Whether every record was read.
    pub(super) complete: bool,
    /// Records that follow one another.
    pub(super) size: u64,
    /// The file that holds the last, and how many lines it has.
    pub(super) file: String,
    pub(super) lines: u64,
    pub(super) open: Vec<u64>,
    pub(super) stopped: bool,
}

/// A place in the log.
#[derive(Clone, Debug, Default)]
struct Place {
    file: String,
    line: u64,
    seq: u64,
}

pub(super) struct Walk<'a> {
    expected: &'a Expected,
    report: &'a mut Report,
    tree: Range,
    place: Place,
    origin: String,
    host: String,
    last: Option<Hash>,
    boot: (String, u64),
    /// Begins without an end: the operation by number.
    open: BTreeMap<u64, String>,
    /// The last two kinds of record.
    kinds: [Option<Kind>; 2],
    /// Up to where a checkpoint has agreed, and the place that follows.
    agreed: Place,
    /// A record whose `prev` is not the hash of the one before: either may be
    /// the wrong one, and the next tells which.
    doubt: Option<[Place; 2]>,
    blamed: bool,
    /// A checkpoint does not agree; whether one record can be blamed for it
    /// is seen from the next.
    disagrees: Option<(Place, u64, String)>,
    /// Where the last record is.
    before: Place,
    time: Option<[String; 2]>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(expected: &'a Expected, report: &'a mut Report) -> Self {
        Self {
            expected,
            report,
            tree: Range::default(),
            place: Place::default(),
            origin: String::new(),
            host: String::new(),
            last: None,
            boot: (String::new(), 0),
            open: BTreeMap::new(),
            kinds: [None; 2],
            agreed: Place::default(),
            doubt: None,
            blamed: false,
            disagrees: None,
            before: Place::default(),
            time: None,
        }
    }

    /// Goes on until the end or the first fault.
    pub(super) fn run(&mut self, files: &Files) -> io::Result<()> {
        self.report.segments = files.segments.len() as u64;
        for (at, (name, content)) in files.segments.iter().enumerate() {
            let last = at + 1 == files.segments.len();
            self.place.file.clone_from(name);
            self.place.line = 0;
            let mut reader = content.open()?;
            if !self.segment(&mut reader, last)? {
                break;
            }
        }
        if let Some([first, second]) = self.doubt.take() {
            self.blame(
                &first,
                Some(second.seq),
                "it is not the record that the next one follows",
            );
        }
        if let Some((first, last, what)) = self.disagrees.take() {
            self.blame(&first, Some(last), &what);
        }
        self.report.time.clone_from(&self.time);
        Ok(())
    }

    pub(super) fn end(&self) -> End {
        End {
            complete: !self.blamed,
            size: self.tree.size(),
            file: self.place.file.clone(),
            lines: self.place.line,
            open: self.open.keys().copied().collect(),
            stopped: self.kinds == [Some(Kind::Stop), Some(Kind::Checkpoint)],
        }
    }

    /// One file; false after a fault.
    fn segment(&mut self, mut reader: &mut dyn BufRead, last: bool) -> io::Result<bool> {
        let first = segment::first_seq(&self.place.file);
        if first != Some(self.tree.size()) {
            self.place.line = 1;
            let what = format!(
                "the file begins with another record than {}, which comes next: a file is missing, or this one is none of this log",
                self.tree.size()
            );
            self.fault(&what);
            return Ok(false);
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(true);
            }
            self.place.seq = self.tree.size();
            self.place.line += 1;
            if line.pop() != Some(b'\n') {
                self.place.line -= 1;
                if last {
                    // What a crash, or this very moment, leaves: nobody was
                    // told that it is durable.
                    let file = &self.place.file;
                    self.report
                        .warnings
                        .push(format!("{file} ends inside a line"));
                    return Ok(true);
                }
                self.place.line += 1;
                self.fault("the file ends inside a line, and another follows");
                return Ok(false);
            }
            if let Err(what) = self.record(&line) {
                self.fault(&what);
                return Ok(false);
            }
            if self.blamed {
                return Ok(false);
            }
            self.before = self.place.clone();
        }
    }

    fn record(&mut self, line: &[u8]) -> Result<(), String> {
        let seq = self.tree.size();
        let Some(outline) = Outline::parse(line) else {
            return Err("this is no record".to_owned());
        };
        if outline.seq != seq {
            return Err(match outline.seq > seq {
                true => format!(
                    "record {} stands where {seq} must: {seq} is missing",
                    outline.seq
                ),
                false => format!("record {} stands where {seq} must", outline.seq),
            });
        }
        if let Some((first, last, what)) = self.disagrees.take() {
            let before = self.before.clone();
            match outline.prev == self.last {
                true => self.blame(&first, Some(last), &what),
                false => self.blame(
                    &before,
                    None,
                    "it is not the record that the next one follows",
                ),
            }
            return Ok(());
        }
        self.belongs(&outline)?;
        let leaf = Hash::leaf(line);
        if let Some([first, second]) = self.doubt.take() {
            match outline.prev == self.last {
                true => self.blame(
                    &first,
                    None,
                    "it is not the record that the next one follows",
                ),
                false => self.blame(
                    &second,
                    None,
                    "it follows another record, and is followed by one that knows it otherwise",
                ),
            }
            return Ok(());
        }
        if outline.prev != self.last {
            self.doubt = Some([self.before.clone(), self.place.clone()]);
        } else {
            self.content(&outline, seq)?;
        }
        self.tree.push(leaf);
        self.last = Some(leaf);
        self.kinds = [self.kinds[1], Some(outline.event)];
        let first = self
            .time
            .take()
            .map_or(outline.time.clone(), |[first, _]| first);
        self.time = Some([first, outline.time]);
        if self.doubt.is_none() {
            self.compare();
        }
        Ok(())
    }

    /// Whose record it is; the first of all tells whose the log is.
    fn belongs(&mut self, outline: &Outline) -> Result<(), String> {
        let origin = outline.origin.as_deref();
        if self.origin.is_empty() {
            let log = origin.and_then(|origin| origin.strip_prefix(ORIGIN_PREFIX));
            let log = log.ok_or("the file does not begin as a file of a log does")?;
            if origin != Some(&self.report.origin) {
                let own = &self.report.origin;
                return Err(format!(
                    "it is of another log than the checkpoints, {own:?}"
                ));
            }
            let host = log.rsplit_once('/').map_or(log, |(host, _)| host);
            self.host = host.to_owned();
            self.origin = format!("{ORIGIN_PREFIX}{log}");
        }
        if outline.host != self.host || origin.is_some_and(|origin| origin != self.origin) {
            return Err(format!(
                "it is of host {:?}, or of another log than {:?}",
                outline.host, self.origin
            ));
        }
        Ok(())
    }

    /// What a record says must fit what came before it.
    fn content(&mut self, outline: &Outline, seq: u64) -> Result<(), String> {
        if self.place.line == 1 {
            self.opening(outline)?;
        }
        if outline.boot_id == self.boot.0 && outline.monotonic_ns < self.boot.1 {
            return Err("it is older than the record before it".to_owned());
        }
        self.boot = (outline.boot_id.clone(), outline.monotonic_ns);
        match (outline.phase, &outline.op) {
            (Some(Phase::Begin), Some(op)) => {
                self.open.insert(seq, op.clone());
            }
            (Some(Phase::End), op) => self.ended(outline.begin, op.as_deref())?,
            (None, op) if outline.begin.is_some() => self.ended(outline.begin, op.as_deref())?,
            _ => {}
        }
        Ok(())
    }

    fn ended(&mut self, begin: Option<u64>, op: Option<&str>) -> Result<(), String> {
        let begun = begin.and_then(|begin| self.open.remove(&begin));
        match begun.as_deref() == op && op.is_some() {
            true => Ok(()),
            false => {
                Err("it ends an operation that has no begin, or has an end already".to_owned())
            }
        }
    }

    /// The first record of a file.
    fn opening(&mut self, outline: &Outline) -> Result<(), String> {
        let open: Vec<u64> = self.open.keys().copied().collect();
        let same = outline.event == Kind::Segment
            && outline.origin.is_some()
            && outline.peaks.as_deref() == Some(self.tree.peaks())
            && outline.open.as_deref() == Some(&open[..]);
        match same {
            true => Ok(()),
            false => Err("the file does not go on where the one before it ends".to_owned()),
        }
    }

    /// Holds the tree so far against the checkpoints over just so much.
    fn compare(&mut self) {
        let claims = self.expected.at(self.tree.size());
        if claims.is_empty() {
            return;
        }
        let root = self.tree.root();
        if let Some(claim) = claims.iter().find(|claim| claim.tree.root != root) {
            let what = format!(
                "the records up to here are not those of the checkpoint over {} in {}",
                claim.tree.size, claim.by
            );
            let mut first = self.agreed.clone();
            if first.file.is_empty() {
                first = Place {
                    file: segment::name(0),
                    line: 1,
                    seq: 0,
                };
            }
            self.disagrees = Some((first, self.tree.size() - 1, what));
            return;
        }
        self.agreed = Place {
            file: self.place.file.clone(),
            line: self.place.line + 1,
            seq: self.tree.size(),
        };
    }

    fn fault(&mut self, what: &str) {
        let place = self.place.clone();
        let place = Place {
            seq: self.tree.size(),
            ..place
        };
        self.doubt = None;
        if let Some((first, last, what)) = self.disagrees.take() {
            self.blame(&first, Some(last), &what);
            return;
        }
        self.blame(&place, None, what);
    }

    fn blame(&mut self, place: &Place, through: Option<u64>, what: &str) {
        self.blamed = true;
        self.report.fail_first(Fault {
            file: place.file.clone(),
            line: Some(place.line),
            seq: Some(place.seq),
            through,
            what: what.to_owned(),
        });
    }
}
