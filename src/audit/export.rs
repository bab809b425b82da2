//! Reading the log for others: its last records, and a span of them with a
//! proof for each.

use std::io::{self, BufRead as _};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::note::{Note, PublicKey, Standing, parse_notes};
use super::segment::{self, Outline};
use super::tree::{Hash, Leaves, root_from_proof};
use super::verify::Files;

/// A record with the proof that it is in the tree of the export's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Its number: the leaf's index.
    pub seq: u64,
    /// Its line, byte for byte and without the newline: the leaf.
    pub record: String,
    /// The audit path (RFC 6962, section 2.1.1), Base64; absent where no
    /// checkpoint covers the record yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proof: Option<Vec<Hash>>,
}

/// One line of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// The first: the checkpoint against which all proofs are.
    Checkpoint {
        /// A signed note.
        checkpoint: String,
    },
    /// A record.
    Record(Proof),
}

/// Hands out every record that was written from `from` on and before `to`:
/// first the newest checkpoint, then the records.
///
/// # Errors
/// A file cannot be read, or `each` fails.
pub fn export(
    files: &Files,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    each: &mut dyn FnMut(Line) -> io::Result<()>,
) -> io::Result<()> {
    let mut leaves = Leaves::default();
    let mut wanted = Vec::new();
    for (_, content) in &files.segments {
        for line in content.open()?.split(b'\n') {
            let line = line?;
            let Some(outline) = Outline::parse(&line) else {
                // Torn, or wrong: `verify` tells which. No proof is beyond it.
                continue;
            };
            let seq = leaves.len() as u64;
            leaves.push(Hash::leaf(&line));
            let time: Option<Timestamp> = outline.time.parse().ok();
            let within = time.is_some_and(|time| {
                from.is_none_or(|from| time >= from) && to.is_none_or(|to| time < to)
            });
            if within {
                wanted.push((seq, String::from_utf8_lossy(&line).into_owned()));
            }
        }
    }
    let note = parse_notes(&files.checkpoints).notes.pop();
    let size = note.as_ref().map_or(0, |note| note.checkpoint.tree.size);
    if let Some(note) = note {
        let checkpoint = note.text();
        each(Line::Checkpoint { checkpoint })?;
    }
    for (seq, record) in wanted {
        let proof = usize::try_from(seq).ok().zip(usize::try_from(size).ok());
        let proof = proof.and_then(|(index, size)| leaves.proof(index, size));
        each(Line::Record(Proof { seq, record, proof }))?;
    }
    Ok(())
}

/// What checking an export found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The log's name.
    pub origin: String,
    /// Records that the checkpoint covers.
    pub size: u64,
    /// Records that are proven to be in its tree.
    pub proven: u64,
    /// Records that no checkpoint covered yet.
    pub uncovered: u64,
    /// Whether the pinned key signed the checkpoint.
    pub signed: bool,
    /// The first line, from 1, that is not what it claims, and why.
    pub fault: Option<(u64, String)>,
}

/// Checks each record of an export against its checkpoint.
#[must_use]
pub fn check_export(text: &str, key: Option<&PublicKey>) -> Exported {
    let mut found = Exported::default();
    let mut note: Option<Note> = None;
    for (line, number) in text.lines().zip(1..) {
        if let Err(why) = check_line(line, key, &mut note, &mut found) {
            found.fault = Some((number, why));
            break;
        }
    }
    found
}

fn check_line(
    line: &str,
    key: Option<&PublicKey>,
    note: &mut Option<Note>,
    found: &mut Exported,
) -> Result<(), String> {
    let line: Line =
        serde_json::from_str(line).map_err(|e| format!("no line of an export: {e}"))?;
    let proof = match (line, &*note) {
        (Line::Checkpoint { checkpoint }, None) => {
            let read = parse_notes(&checkpoint).notes.pop();
            let read = read.ok_or("it holds no checkpoint")?;
            if let Some(key) = key {
                if read.check(key) != Standing::Proven {
                    return Err("the checkpoint is not signed by the pinned key".to_owned());
                }
                found.signed = true;
            }
            found.origin.clone_from(&read.checkpoint.origin);
            found.size = read.checkpoint.tree.size;
            *note = Some(read);
            return Ok(());
        }
        (Line::Checkpoint { .. }, Some(_)) => return Err("a second checkpoint".to_owned()),
        (Line::Record(proof), _) => proof,
    };
    let outline = Outline::parse(proof.record.as_bytes()).ok_or("it holds no record")?;
    if outline.seq != proof.seq {
        return Err(format!(
            "record {} is exported as {}",
            outline.seq, proof.seq
        ));
    }
    let (Some(path), Some(note)) = (proof.proof, note) else {
        found.uncovered += 1;
        return Ok(());
    };
    let tree = note.checkpoint.tree;
    let leaf = Hash::leaf(proof.record.as_bytes());
    if root_from_proof(leaf, proof.seq, tree.size, &path) != Some(tree.root) {
        return Err(format!(
            "record {} is not in the checkpoint's tree",
            proof.seq
        ));
    }
    found.proven += 1;
    Ok(())
}

/// The last `count` whole lines of a log, or those behind record `after`.
///
/// # Errors
/// A file cannot be read.
pub fn tail(dir: &Path, count: usize, after: Option<u64>) -> io::Result<Vec<(u64, String)>> {
    let mut found: Vec<(u64, String)> = Vec::new();
    for segment in segment::list(dir)?.into_iter().rev() {
        let bytes = std::fs::read(&segment.path)?;
        let lines = segment::lines(&bytes).zip(segment.first..);
        let mut here: Vec<(u64, String)> = lines
            .filter(|(line, seq)| line.whole && after.is_none_or(|after| *seq > after))
            .map(|(line, seq)| (seq, String::from_utf8_lossy(line.text).into_owned()))
            .collect();
        here.append(&mut found);
        found = here;
        let enough = match after {
            Some(after) => segment.first <= after + 1,
            None => found.len() >= count,
        };
        if enough {
            break;
        }
    }
    if after.is_none() {
        found.drain(..found.len().saturating_sub(count));
    }
    Ok(found)
}
