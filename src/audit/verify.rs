//! Verification: is this the log that was written, and who says so?
//!
//! Needs the files alone: no agent, no token, no store. The first record that
//! is wrong is named; where a checkpoint disagrees and no single record can
//! be blamed, the first that it may be.

mod report;
mod walk;

pub use report::{Fault, Report, Signatures, Tail, Verdict};

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::note::{Note, ORIGIN_PREFIX, PublicKey, Standing, parse_notes};
use super::record::TreeHead;
use super::segment::{self, CHECKPOINTS};
use walk::Walk;

/// The files of a log.
pub struct Files {
    /// Names and contents of the segments.
    pub segments: Vec<(String, Content)>,
    /// The file of checkpoints.
    pub checkpoints: String,
}

/// A file to be read from its beginning.
pub enum Content {
    /// On a disk.
    File(PathBuf),
    /// In memory.
    Bytes(Vec<u8>),
}

impl Content {
    pub(super) fn open(&self) -> io::Result<Box<dyn BufRead + '_>> {
        Ok(match self {
            Self::File(path) => Box::new(BufReader::with_capacity(1 << 16, File::open(path)?)),
            Self::Bytes(bytes) => Box::new(bytes.as_slice()),
        })
    }
}

impl Files {
    /// Those of a directory.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let segments = segment::list(dir)?.into_iter();
        let segments = segments.map(|s| (s.name(), Content::File(s.path)));
        let checkpoints = match std::fs::read(dir.join(CHECKPOINTS)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            segments: segments.collect(),
            checkpoints,
        })
    }
}

/// Anchored checkpoints, wherever they were fetched from: names and texts.
#[derive(Clone, Debug, Default)]
pub struct AnchorFiles(pub Vec<(String, String)>);

impl AnchorFiles {
    /// A file of checkpoints, or all `*.checkpoint` below a directory.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut found = Vec::new();
        collect(path, true, &mut found)?;
        found.sort();
        Ok(Self(found))
    }
}

fn collect(path: &Path, named: bool, into: &mut Vec<(String, String)>) -> io::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            collect(&entry?.path(), false, into)?;
        }
    } else if named || path.extension().is_some_and(|e| e == "checkpoint") {
        let text = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
        into.push((path.display().to_string(), text));
    }
    Ok(())
}

/// Checks a log against itself, and against what is given of anchor and key.
///
/// # Errors
/// A file cannot be read.
pub fn verify(
    files: &Files,
    anchor: Option<&AnchorFiles>,
    key: Option<&PublicKey>,
) -> io::Result<Report> {
    let mut report = Report {
        anchor_given: anchor.is_some(),
        ..Report::default()
    };
    let local = local_notes(files, &mut report);
    let trusted = check_signatures(&local, key, &mut report);
    // The pinned key's word on which log this is counts more than the log's.
    let named = trusted.first().filter(|_| key.is_some());
    report.origin = match named {
        Some(note) => note.checkpoint.origin.clone(),
        None => origin_of(files)?,
    };
    check_local_origin(&local, &mut report);
    let anchored = match anchor {
        Some(anchor) => anchored_notes(anchor, key, &mut report),
        None => Vec::new(),
    };
    let mut expected = Expected::default();
    for note in &trusted {
        expected.add(note, "the file of checkpoints");
    }
    for (name, note) in &anchored {
        expected.add(note, name);
    }
    let mut walk = Walk::new(&expected, &mut report);
    walk.run(files)?;
    let end = walk.end();
    conclude(&trusted, &anchored, &end, &mut report);
    Ok(report)
}

/// The log's name as its first record has it.
fn origin_of(files: &Files) -> io::Result<String> {
    let Some((_, content)) = files.segments.first() else {
        return Ok(String::new());
    };
    let mut line = Vec::new();
    let mut reader = content.open()?.take(walk::MAX_LINE);
    reader.read_until(b'\n', &mut line)?;
    let outline = segment::Outline::parse(&line);
    Ok(outline
        .and_then(|outline| outline.origin)
        .unwrap_or_default())
}

/// Roots that trees of certain sizes must have, and who says so.
#[derive(Default)]
pub(super) struct Expected(BTreeMap<u64, Vec<Claim>>);

pub(super) struct Claim {
    pub(super) tree: TreeHead,
    pub(super) by: String,
}

impl Expected {
    fn add(&mut self, note: &Note, by: &str) {
        let tree = note.checkpoint.tree;
        self.0.entry(tree.size).or_default().push(Claim {
            tree,
            by: by.to_owned(),
        });
    }

    pub(super) fn at(&self, size: u64) -> &[Claim] {
        self.0.get(&size).map_or(&[], Vec::as_slice)
    }
}

/// The checkpoints in the log's own file.
fn local_notes(files: &Files, report: &mut Report) -> Vec<Note> {
    let parsed = parse_notes(&files.checkpoints);
    let torn = !files.checkpoints.is_empty() && !files.checkpoints.ends_with("\n\n");
    if let Some(line) = parsed.bad_line {
        let at = format!("{CHECKPOINTS}, line {line}");
        match torn {
            true => report.warn(format!("{at}: the last checkpoint is torn")),
            false => report.fail(Fault::elsewhere(at, "this is no checkpoint")),
        }
    }
    let mut last = 0;
    for note in &parsed.notes {
        let size = note.checkpoint.tree.size;
        if size < last {
            let what = format!("a checkpoint over {size} records follows one over {last}");
            report.fail(Fault::elsewhere(CHECKPOINTS.to_owned(), &what));
        }
        last = size;
    }
    report.checkpoints = parsed.notes.len() as u64;
    parsed.notes
}

/// Those checkpoints whose word counts: the pinned key's, or without one all.
fn check_signatures(notes: &[Note], key: Option<&PublicKey>, report: &mut Report) -> Vec<Note> {
    let signed = notes.iter().filter(|note| note.is_signed()).count() as u64;
    report.unsigned = report.checkpoints - signed;
    let Some(key) = key else {
        report.signatures = match signed {
            0 => Signatures::None,
            _ => Signatures::NotPinned,
        };
        return notes.to_vec();
    };
    let mut proven = Vec::new();
    for note in notes.iter().filter(|note| note.is_signed()) {
        let size = note.checkpoint.tree.size;
        match note.check(key) {
            Standing::Proven => proven.push(note.clone()),
            Standing::Unsigned | Standing::Forged => report.fail(Fault::elsewhere(
                CHECKPOINTS.to_owned(),
                &format!("the checkpoint over {size} records is not signed by the pinned key"),
            )),
        }
    }
    report.proven = proven.len() as u64;
    report.signatures = match report.proven {
        0 => Signatures::None,
        _ => Signatures::Proven,
    };
    proven
}

/// Anchored checkpoints of this log.
fn anchored_notes(
    anchor: &AnchorFiles,
    key: Option<&PublicKey>,
    report: &mut Report,
) -> Vec<(String, Note)> {
    let mut found = Vec::new();
    let mut others = 0_u64;
    for (name, text) in &anchor.0 {
        let parsed = parse_notes(text);
        if parsed.bad_line.is_some() {
            report.fail(Fault::elsewhere(name.clone(), "this is no checkpoint"));
        }
        for note in parsed.notes {
            if note.checkpoint.origin != report.origin {
                others += 1;
                continue;
            }
            if key.is_some_and(|key| note.check(key) != Standing::Proven) {
                report.fail(Fault::elsewhere(
                    name.clone(),
                    "the anchored checkpoint is not signed by the pinned key",
                ));
                continue;
            }
            found.push((name.clone(), note));
        }
    }
    if found.is_empty() {
        let what = match others {
            0 => "the anchor holds no checkpoint".to_owned(),
            n => format!(
                "the anchor's {n} checkpoints are all of other logs than {:?}",
                report.origin
            ),
        };
        report.fail(Fault::elsewhere("the anchor".to_owned(), &what));
    } else if others > 0 {
        report.warn(format!("{others} anchored checkpoints are of other logs"));
    }
    report.anchors = found.len() as u64;
    found
}

fn check_local_origin(local: &[Note], report: &mut Report) {
    let origin = report.origin.clone();
    for note in local {
        let theirs = &note.checkpoint.origin;
        if *theirs != origin || !theirs.starts_with(ORIGIN_PREFIX) {
            report.fail(Fault::elsewhere(
                CHECKPOINTS.to_owned(),
                &format!("a checkpoint is of {theirs:?}, and the log is {origin:?}"),
            ));
        }
    }
}

/// What the end of the log is worth.
fn conclude(local: &[Note], anchored: &[(String, Note)], end: &walk::End, report: &mut Report) {
    let largest =
        |notes: &mut dyn Iterator<Item = &Note>| notes.map(|note| note.checkpoint.tree.size).max();
    let covered = largest(&mut local.iter());
    let anchor = largest(&mut anchored.iter().map(|(_, note)| note));
    report.records = end.size;
    report.covered = covered.unwrap_or(0);
    report.anchored = anchor;
    let all = local.iter().chain(anchored.iter().map(|(_, note)| note));
    let last = all.max_by_key(|note| note.checkpoint.tree.size);
    report.stated = last.map_or_else(Vec::new, |note| note.checkpoint.extensions.clone());
    report.open.clone_from(&end.open);
    report.clean_stop = end.stopped;
    for (name, note) in anchored {
        let tree = note.checkpoint.tree;
        if !local.iter().any(|own| own.checkpoint.tree == tree) {
            report.fail(Fault::elsewhere(
                CHECKPOINTS.to_owned(),
                &format!("the anchored checkpoint {name} is missing here"),
            ));
        }
    }
    if !end.complete {
        // How long it should be says nothing about one that was not read.
        return;
    }
    let missing = |size: u64, by: &str| Fault {
        seq: Some(end.size),
        through: Some(size - 1),
        ..Fault::at_end(
            end,
            &format!(
                "{by} covers {size} records, and the log ends after {}",
                end.size
            ),
        )
    };
    if let Some(size) = anchor.filter(|size| *size > end.size) {
        report.fail_first(missing(size, "the anchor"));
    }
    let cut = covered.filter(|size| *size > end.size);
    match (anchor, cut) {
        (None, Some(size)) => report.fail_first(missing(size, "the last checkpoint")),
        (None, None) => {}
        (Some(anchor), cut) => {
            let ends_there = end.size == anchor && end.stopped;
            if !ends_there && anchor <= end.size {
                report.tail = Some(Tail {
                    from: anchor,
                    records: end.size - anchor,
                    missing: cut.map(|size| size - end.size),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
