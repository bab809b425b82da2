#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
//! Ten thousand ways to alter a log, each of them noticed and placed.

use std::path::Path;

use super::super::disk::Disk;
use super::super::note::tests::TestKey;
use super::super::record::{Event, Head, Kind, Phase, join};
use super::super::segment::Outline;
use super::super::tree::{Hash, Range};
use super::super::{Checkpoint, Identity, Note, Record, TreeHead};
use super::*;

const MUTATIONS: u64 = 10_000;
const THREADS: u64 = 4;

/// A log as bytes: what an attacker has.
#[derive(Clone)]
struct Log {
    segments: Vec<(String, Vec<u8>)>,
    notes: Vec<Note>,
}

impl Log {
    fn files(&self) -> Files {
        let segments = self.segments.iter();
        Files {
            segments: segments
                .map(|(name, bytes)| (name.clone(), Content::Bytes(bytes.clone())))
                .collect(),
            checkpoints: self.notes.iter().map(Note::entry).collect(),
        }
    }

    fn lines(&self) -> Vec<Vec<Vec<u8>>> {
        let split = |bytes: &Vec<u8>| {
            let lines = bytes.split_inclusive(|b| *b == b'\n');
            lines.map(<[u8]>::to_vec).collect()
        };
        self.segments.iter().map(|(_, b)| split(b)).collect()
    }

    fn set(&mut self, lines: &[Vec<Vec<u8>>]) {
        for ((_, bytes), lines) in self.segments.iter_mut().zip(lines) {
            *bytes = lines.concat();
        }
    }

    /// Segment and line of a record.
    fn place(&self, seq: u64) -> (usize, usize) {
        let firsts = self
            .segments
            .iter()
            .map(|(n, _)| segment::first_seq(n).unwrap());
        let at = firsts.clone().take_while(|first| *first <= seq).count() - 1;
        (at, (seq - firsts.collect::<Vec<_>>()[at]) as usize)
    }
}

/// What an auditor holds.
struct Auditor {
    anchor: AnchorFiles,
    key: PublicKey,
    anchored: u64,
}

impl Auditor {
    fn look(&self, log: &Log) -> Report {
        verify(&log.files(), Some(&self.anchor), Some(&self.key)).unwrap()
    }
}

fn identity(host: &str) -> Identity {
    Identity {
        host: host.into(),
        boot_id: "boot".into(),
    }
}

/// A log of some 80 records in several files, with a checkpoint every 10; all
/// but the last two of them are anchored.
fn make(host: &str, signer: &TestKey) -> (Log, Auditor) {
    let dir = tempfile::tempdir().unwrap();
    let identity = identity(host);
    let (mut disk, _) = Disk::open(dir.path(), 5000, &identity).unwrap();
    let mut notes = Vec::new();
    for op in 0..26 {
        for phase in [Phase::Begin, Phase::End] {
            let mut event = Event::new(Kind::Put);
            event.phase = Some(phase);
            event.op = Some(format!("{op:016x}"));
            event.bucket = Some("bucket".into());
            event.key = Some(format!("key-{op}"));
            disk.append(&identity, &[&event]).unwrap();
        }
        if op % 5 == 4 {
            disk.append(&identity, &[&Event::new(Kind::Checkpoint)])
                .unwrap();
            let checkpoint = Checkpoint {
                origin: disk.origin().to_owned(),
                tree: disk.head(),
                extensions: vec![format!("host {host}")],
            };
            let signed = signer.sign_now(checkpoint.text().as_bytes());
            notes.push(Note::signed(checkpoint, &signed));
        }
    }
    drop(disk);
    let files = Files::of(dir.path()).unwrap();
    let read = |content: &Content| match content {
        Content::File(path) => std::fs::read(path).unwrap(),
        Content::Bytes(bytes) => bytes.clone(),
    };
    let segments: Vec<_> = files
        .segments
        .iter()
        .map(|(n, c)| (n.clone(), read(c)))
        .collect();
    assert!(segments.len() > 3);
    let anchored = &notes[..notes.len() - 2];
    let auditor = Auditor {
        anchor: AnchorFiles(
            anchored
                .iter()
                .map(|note| (super::super::anchor_name(&note.checkpoint), note.text()))
                .collect(),
        ),
        key: signer.public(),
        anchored: anchored.last().unwrap().checkpoint.tree.size,
    };
    (Log { segments, notes }, auditor)
}

/// A fixed sequence of numbers: a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Writes history anew from record `from` on, consistent in itself: every
/// hash, every file's beginning. `change` edits that record.
fn rewrite(log: &Log, from: u64, change: impl Fn(&mut Event)) -> (Log, Vec<TreeHead>) {
    let mut new = log.clone();
    let (mut tree, mut prev) = (Range::default(), None);
    let mut heads = Vec::new();
    for (_, bytes) in &mut new.segments {
        let mut text = Vec::new();
        for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let record: Record = serde_json::from_slice(line).unwrap();
            let (mut head, mut event): (Head, Event) = (record.head, record.event);
            let seq = head.seq;
            let mut line = line.to_vec();
            if seq >= from {
                if seq == from {
                    change(&mut event);
                }
                if event.event == Kind::Segment {
                    event.peaks = Some(tree.peaks().to_vec());
                }
                head.prev = prev;
                line = join(&head, &event).unwrap();
            }
            let leaf = Hash::leaf(&line);
            tree.push(leaf);
            prev = Some(leaf);
            heads.push(TreeHead {
                size: tree.size(),
                root: tree.root(),
            });
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        *bytes = text;
    }
    (new, heads)
}

/// Checkpoints over a rewritten log.
fn resign(log: &mut Log, heads: &[TreeHead], signer: Option<&TestKey>) {
    for note in &mut log.notes {
        let mut checkpoint = note.checkpoint.clone();
        checkpoint.tree = heads[checkpoint.tree.size as usize - 1];
        *note = match signer {
            Some(signer) => {
                let signed = signer.sign_now(checkpoint.text().as_bytes());
                Note::signed(checkpoint, &signed)
            }
            None => Note::unsigned(checkpoint),
        };
    }
}

/// One alteration at or before the last anchored record: what was done, and
/// the first record that is not what it was.
fn mutate(dice: &mut Dice, log: &mut Log, other: &Log, anchored: u64) -> (&'static str, u64) {
    let seq = dice.below(anchored);
    let (file, line) = log.place(seq);
    let mut lines = log.lines();
    let first_of_file = seq - line as u64;
    match dice.below(12) {
        0 => {
            let text = &mut lines[file][line];
            let at = dice.below(text.len() as u64) as usize;
            text[at] ^= 1 << dice.below(8);
            log.set(&lines);
            ("a flipped bit", seq)
        }
        1 => {
            let text = &mut lines[file][line];
            let at = dice.below(text.len() as u64) as usize;
            text.insert(at, b' ' + dice.below(90) as u8);
            log.set(&lines);
            ("an inserted byte", seq)
        }
        2 => {
            let count = 1 + dice.below(3) as usize;
            let end = (line + count).min(lines[file].len());
            lines[file].drain(line..end);
            log.set(&lines);
            ("deleted records", seq)
        }
        3 => {
            let mut next = line + 1 + dice.below(4) as usize;
            if next >= lines[file].len() {
                next = lines[file].len() - 1;
            }
            if next == line {
                lines[file].remove(line);
            } else {
                lines[file].swap(line, next);
            }
            log.set(&lines);
            ("reordered records", seq)
        }
        4 => {
            let copy = lines[file][line].clone();
            lines[file].insert(line + 1, copy);
            log.set(&lines);
            ("a repeated record", seq + 1)
        }
        5 => {
            // Its files need not break off where ours do.
            let (its_file, its_line) = other.place(seq);
            lines[file][line] = other.lines()[its_file][its_line].clone();
            log.set(&lines);
            ("a record of another host", seq)
        }
        6 => {
            let (its_file, _) = other.place(first_of_file);
            log.segments[file].1.clone_from(&other.segments[its_file].1);
            ("a file of another host", first_of_file)
        }
        7 => {
            log.segments.remove(file);
            ("a missing file", first_of_file)
        }
        8 => {
            let keep: usize = lines[file][..line].concat().len();
            let cut = keep + dice.below(lines[file][line].len() as u64) as usize;
            log.segments[file].1.truncate(cut);
            log.segments.truncate(file + 1);
            ("a log cut short", seq)
        }
        9 => {
            let keep: usize = lines[file][..line].concat().len();
            log.segments[file].1.truncate(keep);
            ("a file cut short", seq)
        }
        kind => {
            // The origin and what opens a file are checked in themselves.
            let (new, heads) = rewrite(log, seq, |event| {
                event.detail = Some("nothing happened here".into());
            });
            *log = new;
            match kind {
                10 => resign(log, &heads, Some(&TestKey::new(66))),
                _ => resign(log, &heads, None),
            }
            ("history rewritten and signed anew", seq)
        }
    }
}

#[test]
fn rule_29_ten_thousand_alterations_are_all_noticed_and_placed() {
    let signer = TestKey::new(1);
    let (log, auditor) = make("here", &signer);
    let (other, _) = make("there", &signer);
    let clean = auditor.look(&log);
    assert_eq!(clean.fault, None);
    assert_eq!(clean.verdict(), Verdict::UnanchoredTail);
    let (log, other, auditor) = (&log, &other, &auditor);
    let part = move |seed: u64| {
        let mut dice = Dice(seed);
        for round in 0..MUTATIONS / THREADS {
            alter_one(&mut dice, round, log, other, auditor);
        }
    };
    std::thread::scope(|scope| {
        for seed in 0..THREADS {
            scope.spawn(move || part(seed));
        }
    });
}

fn alter_one(dice: &mut Dice, round: u64, log: &Log, other: &Log, auditor: &Auditor) {
    let mut altered = log.clone();
    let (what, seq) = mutate(dice, &mut altered, other, auditor.anchored);
    let report = auditor.look(&altered);
    assert_eq!(
        report.verdict(),
        Verdict::Altered,
        "round {round}: {what} at {seq}"
    );
    assert!(!report.is_fine());
    let fault = report.fault.unwrap();
    let named = fault.seq.unwrap()..=fault.through.or(fault.seq).unwrap();
    assert!(
        named.contains(&seq),
        "round {round}: {what} at {seq}: {fault}"
    );
    // Only what was rewritten as a whole cannot be placed more exactly.
    let exact = fault.through.is_none() || what == "a log cut short";
    assert!(
        exact || what.contains("rewritten"),
        "round {round}: {what}: {fault}"
    );
}

#[test]
fn rule_29_a_cut_behind_the_anchor_is_an_unanchored_tail() {
    let (log, auditor) = make("here", &TestKey::new(1));
    let records: u64 = log.lines().iter().map(|l| l.len() as u64).sum();
    let covered = log.notes.last().unwrap().checkpoint.tree.size;
    for keep in auditor.anchored..=records {
        let mut cut = log.clone();
        if keep < records {
            let (file, line) = cut.place(keep);
            let bytes = cut.lines()[file][..line].concat().len();
            cut.segments[file].1.truncate(bytes);
            cut.segments.truncate(file + 1);
        }
        let report = auditor.look(&cut);
        assert_eq!(report.verdict(), Verdict::UnanchoredTail, "{keep}");
        let tail = report.tail.clone().unwrap();
        assert_eq!(
            (tail.from, tail.records),
            (auditor.anchored, keep - auditor.anchored)
        );
        // This host's own checkpoints may tell how much is missing.
        assert_eq!(tail.missing, covered.checked_sub(keep).filter(|n| *n > 0));
        assert_eq!(report.is_fine(), tail.missing.is_none());
        // They can be cut too: then nobody knows, and it says so.
        cut.notes.retain(|note| note.checkpoint.tree.size <= keep);
        let report = auditor.look(&cut);
        assert_eq!(report.verdict(), Verdict::UnanchoredTail, "{keep}");
    }
}

#[test]
fn checkpoints_that_were_altered_are_faults_of_their_own() {
    let signer = TestKey::new(1);
    let (log, auditor) = make("here", &signer);
    let mut gone = log.clone();
    gone.notes.remove(1);
    let report = auditor.look(&gone);
    assert!(report.fault.unwrap().what.contains("is missing here"));
    let mut swapped = log.clone();
    swapped.notes.swap(0, 1);
    assert!(
        auditor
            .look(&swapped)
            .fault
            .unwrap()
            .what
            .contains("follows one over")
    );
    let files = Files {
        checkpoints: log.files().checkpoints.replacen('\n', "\nx", 1),
        ..log.files()
    };
    let report = verify(&files, Some(&auditor.anchor), Some(&auditor.key)).unwrap();
    assert_eq!(report.fault.unwrap().file, "checkpoints, line 1");

    // Another host's, or none at all, is no anchor of this log.
    let (_, other) = make("there", &signer);
    let report = verify(&log.files(), Some(&other.anchor), Some(&auditor.key)).unwrap();
    assert!(report.fault.unwrap().what.contains("of other logs"));
    let report = verify(&log.files(), Some(&AnchorFiles::default()), None).unwrap();
    assert!(report.fault.unwrap().what.contains("holds no checkpoint"));
}

#[test]
fn without_anchor_or_key_it_says_what_is_not_proven() {
    let (log, auditor) = make("here", &TestKey::new(1));
    let report = verify(&log.files(), None, Some(&auditor.key)).unwrap();
    assert_eq!(report.verdict(), Verdict::NotProven);
    assert_eq!(report.signatures, Signatures::Proven);
    let report = verify(&log.files(), Some(&auditor.anchor), None).unwrap();
    assert_eq!(report.verdict(), Verdict::NotProven);
    assert_eq!(report.signatures, Signatures::NotPinned);
    let mut cut = log.clone();
    cut.segments.truncate(2);
    let report = verify(&cut.files(), None, None).unwrap();
    assert_eq!(report.verdict(), Verdict::Altered);
}

#[test]
fn a_log_that_ended_well_is_verified_to_its_end() {
    let signer = TestKey::new(1);
    let dir = tempfile::tempdir().unwrap();
    let identity = identity("here");
    let (mut disk, _) = Disk::open(dir.path(), 1 << 20, &identity).unwrap();
    for kind in [Kind::Start, Kind::Stop, Kind::Checkpoint] {
        disk.append(&identity, &[&Event::new(kind)]).unwrap();
    }
    let checkpoint = Checkpoint {
        origin: disk.origin().to_owned(),
        tree: disk.head(),
        extensions: Vec::new(),
    };
    let signed = signer.sign_now(checkpoint.text().as_bytes());
    let note = Note::signed(checkpoint, &signed);
    disk.keep(&note).unwrap();
    let files = Files::of(dir.path()).unwrap();
    let anchor = AnchorFiles(vec![("a".into(), note.text())]);
    let report = verify(&files, Some(&anchor), Some(&signer.public())).unwrap();
    assert_eq!(report.verdict(), Verdict::Verified, "{report:?}");
    assert!(report.clean_stop && report.tail.is_none());
    assert!(Files::of(Path::new("/nowhere")).is_err());
    assert!(Outline::parse(b"{}").is_none());
}
