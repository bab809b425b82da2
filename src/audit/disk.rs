//! The log as the writer has it open: where it ends, what it amounts to, and
//! how it is brought back to that after a failure or a crash.
//!
//! The rule of this file: nothing is written behind bytes that are not known
//! to be on the disk. After any error the segment is opened anew, read back
//! without the page cache's word for it, compared with what was
//! acknowledged, and cut to that length.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{Advice, FlockOperation};

use super::note::{Note, parse_notes};
use super::record::{self, Event, Head, Kind, Phase, Record, TreeHead};
use super::segment::{self, CHECKPOINTS, Outline, Segment};
use super::tree::{Hash, Range};
use super::{Identity, ORIGIN_PREFIX};

/// The most that a crash may have torn, in bytes: one batch and the largest
/// record beyond it. More than that was not torn, it was damaged.
pub(super) const MAX_TORN: usize = 2 << 20;
/// How much of the end of the checkpoints' file is read at a start, in bytes:
/// enough for the last of them.
const NOTES_TAIL: u64 = 64 << 10;

/// Why the log cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// The system refuses: it may do so no longer later.
    #[error("{what}: {error}")]
    Io {
        what: String,
        #[source]
        error: io::Error,
    },
    /// What is there is not what was written.
    #[error("{0}")]
    Damaged(String),
}

fn io(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> DiskError {
    move |error| DiskError::Io {
        what: what.to_string(),
        error,
    }
}

/// An operation that began, as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its begin's number.
    pub seq: u64,
    /// What it was to do.
    pub event: Event,
}

/// What an opened log tells.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// Begins of former processes without an end.
    pub(super) open: Vec<Begun>,
    /// Bytes of a torn batch that were cut off.
    pub(super) cut: u64,
    /// The last checkpoint in the file.
    pub(super) last: Option<Note>,
}

/// The open log.
pub(super) struct Disk {
    dir: PathBuf,
    /// Locked for as long as this lives: one writer a log.
    _lock: File,
    /// Absent after an error, until it was opened and compared again.
    file: Option<File>,
    /// The medium has failed before: the next write is read back from it.
    doubted: bool,
    segment: Segment,
    /// Bytes of the segment that are on the disk.
    good: u64,
    /// The UTC day of its first record.
    day: String,
    origin: String,
    /// The tree before the segment's first record, and after its last.
    start: Range,
    tree: Range,
    prev: Option<Hash>,
    /// Begins without an end: number by operation.
    open: BTreeMap<String, u64>,
    notes_good: u64,
    rotate: u64,
    /// So many flushes fail, as of a medium with bad blocks.
    #[cfg(test)]
    pub(super) failing: u32,
}

impl Disk {
    /// Opens the log, or begins one.
    pub(super) fn open(
        dir: &Path,
        rotate: u64,
        identity: &Identity,
    ) -> Result<(Self, Opening), DiskError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io(format!("cannot make {}", dir.display())))?;
        let lock = File::open(dir).map_err(io(format!("cannot open {}", dir.display())))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| io("another process writes this log")(e.into()))?;
        let mut opening = Opening::default();
        let (notes_good, last) = read_last_note(dir)?;
        opening.last = last;
        let mut disk = Self {
            dir: dir.to_owned(),
            _lock: lock,
            file: None,
            doubted: false,
            segment: Segment::in_dir(dir, 0),
            good: 0,
            day: String::new(),
            origin: String::new(),
            start: Range::default(),
            tree: Range::default(),
            prev: None,
            open: BTreeMap::new(),
            notes_good,
            rotate,
            #[cfg(test)]
            failing: 0,
        };
        let mut segments = segment::list(dir).map_err(io("cannot list the log"))?;
        let (mut begun, mut empty) = (BTreeSet::new(), Vec::new());
        while let Some(last) = segments.pop() {
            match disk.load(&last, &mut opening)? {
                Some(open) => {
                    begun = open;
                    break;
                }
                None => empty.push(last),
            }
        }
        if disk.good == 0 {
            disk.origin = identity.fresh_origin();
        }
        disk.check_against(opening.last.as_ref())?;
        // Nothing was touched so far: what is refused stays as evidence.
        for segment in empty {
            std::fs::remove_file(&segment.path)
                .map_err(io(format!("cannot remove {}", segment.name())))?;
            disk.sync_dir()?;
        }
        if disk.good > 0 {
            // Makes sure, and cuts off what is torn.
            disk.reopen()?;
        }
        opening.open = disk.read_open(&begun)?;
        for begun in &opening.open {
            let op = begun.event.op.clone().unwrap_or_default();
            disk.open.insert(op, begun.seq);
        }
        Ok((disk, opening))
    }

    /// How many records, and the root over them.
    pub(super) fn head(&self) -> TreeHead {
        TreeHead {
            size: self.tree.size(),
            root: self.tree.root(),
        }
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Takes over the last segment and returns the begins without an end;
    /// nothing if it never got a first record.
    fn load(
        &mut self,
        segment: &Segment,
        opening: &mut Opening,
    ) -> Result<Option<BTreeSet<u64>>, DiskError> {
        let name = segment.name();
        let bytes = std::fs::read(&segment.path).map_err(io(format!("cannot read {name}")))?;
        let mut reading = Reading::default();
        let good = reading.read(&name, segment.first, &bytes)?;
        let torn = bytes.len() - good;
        if torn > MAX_TORN {
            return Err(damaged(format!(
                "{name}: line {} is no record that follows the one before",
                reading.lines + 1
            )));
        }
        opening.cut += torn as u64;
        if good == 0 {
            // A new segment's first write never ended.
            return Ok(None);
        }
        self.segment = segment.clone();
        self.good = good as u64;
        self.start = reading.start;
        self.tree = reading.tree;
        self.prev = reading.prev;
        self.origin = reading.origin;
        self.day = reading.day;
        Ok(Some(reading.open))
    }

    /// A log that is shorter than its last checkpoint, or another one than
    /// that says, is not continued: it is evidence.
    fn check_against(&self, last: Option<&Note>) -> Result<(), DiskError> {
        let Some(note) = last else { return Ok(()) };
        let TreeHead { size, root } = note.checkpoint.tree;
        let now = self.tree.size();
        if note.checkpoint.origin != self.origin {
            return Err(damaged(format!(
                "the last checkpoint is of {}, and the log is {}",
                note.checkpoint.origin, self.origin
            )));
        }
        if size > now {
            return Err(damaged(format!(
                "the last checkpoint is over {size} records, and the log has {now}"
            )));
        }
        if size <= self.start.size() {
            return Ok(());
        }
        let bytes = std::fs::read(&self.segment.path).map_err(io("cannot read the log"))?;
        let mut tree = self.start.clone();
        for line in segment::lines(&bytes) {
            if tree.size() == size {
                break;
            }
            tree.push(Hash::leaf(line.text));
        }
        if tree.root() == root {
            return Ok(());
        }
        Err(damaged(format!(
            "the log's first {size} records are not those of its last checkpoint"
        )))
    }

    /// The begins that nobody ended, with what they say.
    fn read_open(&self, wanted: &BTreeSet<u64>) -> Result<Vec<Begun>, DiskError> {
        let segments = segment::list(&self.dir).map_err(io("cannot list the log"))?;
        let mut found = Vec::new();
        for (at, segment) in segments.iter().enumerate() {
            let end = segments.get(at + 1).map_or(u64::MAX, |next| next.first);
            if wanted.range(segment.first..end).next().is_none() {
                continue;
            }
            let bytes = std::fs::read(&segment.path)
                .map_err(io(format!("cannot read {}", segment.name())))?;
            for (line, seq) in segment::lines(&bytes).zip(segment.first..) {
                if wanted.contains(&seq) {
                    let record: Record = serde_json::from_slice(line.text)
                        .map_err(|e| damaged(format!("record {seq} cannot be read: {e}")))?;
                    let event = record.event;
                    found.push(Begun { seq, event });
                }
            }
        }
        Ok(found)
    }

    /// Writes records, all or none, and returns only when they are on the
    /// disk. The reply has one tree for each event.
    pub(super) fn append(
        &mut self,
        identity: &Identity,
        events: &[&Event],
    ) -> Result<Vec<TreeHead>, DiskError> {
        let now = Timestamp::now();
        let day = now.strftime("%Y-%m-%d").to_string();
        if self.good == 0 || self.good >= self.rotate || self.day != day {
            self.rotate(identity, now, day)?;
        }
        let mut batch = self.batch();
        let mut heads = Vec::with_capacity(events.len());
        for event in events {
            heads.push(batch.push(identity, now, (*event).clone())?);
        }
        self.reopen_unless_open()?;
        self.write(&batch.bytes)?;
        self.settle(batch);
        Ok(heads)
    }

    fn batch(&self) -> Batch {
        Batch {
            tree: self.tree.clone(),
            prev: self.prev,
            open: self.open.clone(),
            bytes: Vec::new(),
        }
    }

    fn settle(&mut self, batch: Batch) {
        self.tree = batch.tree;
        self.prev = batch.prev;
        self.open = batch.open;
    }

    /// Goes on in a new file.
    fn rotate(
        &mut self,
        identity: &Identity,
        now: Timestamp,
        day: String,
    ) -> Result<(), DiskError> {
        let mut event = Event::new(Kind::Segment);
        event.origin = Some(self.origin.clone());
        event.peaks = Some(self.tree.peaks().to_vec());
        let mut open: Vec<u64> = self.open.values().copied().collect();
        open.sort_unstable();
        event.open = Some(open);
        let mut batch = self.batch();
        batch.push(identity, now, event)?;
        // What the old file holds is known good before anything follows it.
        if self.good > 0 {
            self.reopen_unless_open()?;
        }
        let segment = Segment::in_dir(&self.dir, self.tree.size());
        let name = segment.name();
        // One that is there already is an attempt of ours that failed: the
        // records before it end just here.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&segment.path)
            .map_err(io(format!("cannot make {name}")))?;
        let written = file
            .write_all_at(&batch.bytes, 0)
            .and_then(|()| file.sync_all())
            .map_err(io(format!("cannot write {name}")))
            .and_then(|()| self.sync_dir());
        if let Err(error) = written {
            let _ = std::fs::remove_file(&segment.path);
            return Err(error);
        }
        self.file = Some(file);
        self.segment = segment;
        self.good = batch.bytes.len() as u64;
        self.day = day;
        self.start = self.tree.clone();
        self.settle(batch);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let name = self.segment.name();
        let Some(file) = self.file.take() else {
            return Err(damaged("the log is not open".to_owned()));
        };
        // A segment that was moved away would swallow records unseen.
        let there = std::fs::metadata(&self.segment.path);
        let here = file.metadata();
        match (there, here) {
            (Ok(there), Ok(here)) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => {}
            (Err(error), _) | (_, Err(error)) => {
                return Err(io(format!("{name} is not where it was"))(error));
            }
            _ => return Err(damaged(format!("{name} is another file than it was"))),
        }
        file.write_all_at(bytes, self.good)
            .map_err(io(format!("cannot write {name}")))?;
        self.flush(&file)
            .map_err(io(format!("cannot make {name} durable")))?;
        if self.doubted {
            // One that has lost data before may say that it has this, too.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            let mut there = vec![0; bytes.len()];
            file.read_exact_at(&mut there, self.good)
                .map_err(io(format!("cannot read {name} back")))?;
            if there != bytes {
                let error = io::Error::other("it is not what was written");
                return Err(io(format!("cannot make {name} durable"))(error));
            }
            self.doubted = false;
        }
        self.good += bytes.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    #[cfg(not(test))]
    fn flush(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    #[cfg(test)]
    fn flush(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()?;
        match self.failing.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                self.failing = left;
                Err(rustix::io::Errno::IO.into())
            }
        }
    }

    fn reopen_unless_open(&mut self) -> Result<(), DiskError> {
        match self.file {
            Some(_) => Ok(()),
            None => self.reopen(),
        }
    }

    /// Opens the segment anew, compares what it holds with what was
    /// acknowledged, and cuts off what was not.
    fn reopen(&mut self) -> Result<(), DiskError> {
        let name = self.segment.name();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.segment.path)
            .map_err(io(format!("cannot open {name}")))?;
        // After a failed fsync the kernel may call pages clean that never
        // reached the disk: they are dropped, and read from there.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        let good = usize::try_from(self.good).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(good);
        file.by_ref()
            .take(self.good)
            .read_to_end(&mut bytes)
            .map_err(io(format!("cannot read {name}")))?;
        let mut tree = self.start.clone();
        for line in segment::lines(&bytes) {
            tree.push(Hash::leaf(line.text));
        }
        if bytes.len() != good || tree != self.tree {
            return Err(damaged(format!(
                "{name} is not what was written: it lost or changed acknowledged records"
            )));
        }
        let len = file
            .seek(SeekFrom::End(0))
            .map_err(io(format!("cannot read {name}")))?;
        if len > self.good {
            file.set_len(self.good)
                .and_then(|()| file.sync_all())
                .map_err(io(format!("cannot cut {name}")))?;
        }
        self.file = Some(file);
        self.doubted = true;
        Ok(())
    }

    /// Appends a checkpoint to its file.
    pub(super) fn keep(&mut self, note: &Note) -> Result<(), DiskError> {
        let path = self.dir.join(CHECKPOINTS);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("cannot open the checkpoints"))?;
        let entry = note.entry();
        let written = file
            .set_len(self.notes_good)
            .and_then(|()| file.write_all_at(entry.as_bytes(), self.notes_good))
            .and_then(|()| file.sync_all());
        written.map_err(io("cannot write the checkpoint"))?;
        if self.notes_good == 0 {
            self.sync_dir()?;
        }
        self.notes_good += entry.len() as u64;
        Ok(())
    }

    fn sync_dir(&self) -> Result<(), DiskError> {
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io("cannot make the log's directory durable"))
    }
}

fn damaged(what: String) -> DiskError {
    DiskError::Damaged(what)
}

/// Lines to be written together.
struct Batch {
    tree: Range,
    prev: Option<Hash>,
    open: BTreeMap<String, u64>,
    bytes: Vec<u8>,
}

impl Batch {
    fn push(
        &mut self,
        identity: &Identity,
        now: Timestamp,
        mut event: Event,
    ) -> Result<TreeHead, DiskError> {
        let seq = self.tree.size();
        if let Some(op) = &event.op {
            match (event.phase, event.event) {
                (Some(Phase::Begin), _) => {
                    self.open.insert(op.clone(), seq);
                }
                (Some(Phase::End), _) | (None, Kind::Resolved) => {
                    event.begin = self.open.remove(op);
                    if event.begin.is_none() {
                        // Its begin was refused: then this is all there is.
                        event.phase = None;
                    }
                }
                _ => {}
            }
        }
        let head = Head {
            seq,
            prev: self.prev,
            time: format!("{now:.6}"),
            monotonic_ns: monotonic_ns(),
            boot_id: identity.boot_id.clone(),
            host: identity.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let line = record::join(&head, &event)
            .map_err(|e| damaged(format!("a record cannot be written: {e}")))?;
        let leaf = Hash::leaf(&line);
        self.bytes.extend_from_slice(&line);
        self.bytes.push(b'\n');
        self.tree.push(leaf);
        self.prev = Some(leaf);
        Ok(TreeHead {
            size: self.tree.size(),
            root: self.tree.root(),
        })
    }
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The last segment as it is found at a start.
#[derive(Default)]
struct Reading {
    start: Range,
    tree: Range,
    prev: Option<Hash>,
    /// The numbers of begins without an end.
    open: BTreeSet<u64>,
    origin: String,
    day: String,
    lines: usize,
}

impl Reading {
    /// How many bytes are whole records, each the one that must follow.
    fn read(&mut self, name: &str, first: u64, bytes: &[u8]) -> Result<usize, DiskError> {
        let mut good = 0;
        for line in segment::lines(bytes).filter(|line| line.whole) {
            let Some(outline) = Outline::parse(line.text) else {
                break;
            };
            if self.lines == 0 {
                self.begin(name, first, &outline)?;
            } else if outline.seq != self.tree.size() || outline.prev != self.prev {
                break;
            }
            match (outline.phase, outline.begin) {
                (Some(Phase::Begin), _) => {
                    self.open.insert(outline.seq);
                }
                (_, Some(begin)) => {
                    self.open.remove(&begin);
                }
                _ => {}
            }
            let leaf = Hash::leaf(line.text);
            self.tree.push(leaf);
            self.prev = Some(leaf);
            self.lines += 1;
            good = line.at + line.text.len() + 1;
        }
        Ok(good)
    }

    fn begin(&mut self, name: &str, first: u64, outline: &Outline) -> Result<(), DiskError> {
        let start = (outline.seq == first && outline.event == Kind::Segment)
            .then(|| Range::resume(first, outline.peaks.clone()?))
            .flatten();
        let (Some(start), Some(origin)) = (start, outline.origin.clone()) else {
            return Err(damaged(format!("{name} does not begin as a segment does")));
        };
        if !origin.starts_with(ORIGIN_PREFIX) {
            return Err(damaged(format!("{name} is of no log of ours: {origin:?}")));
        }
        (self.start, self.tree, self.origin) = (start.clone(), start, origin);
        self.day = outline.time.chars().take(10).collect();
        self.open = outline.open.iter().flatten().copied().collect();
        Ok(())
    }
}

/// Where the checkpoints' file ends well, and the last of them.
fn read_last_note(dir: &Path) -> Result<(u64, Option<Note>), DiskError> {
    let fail = "cannot read the checkpoints";
    let mut file = match File::open(dir.join(CHECKPOINTS)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, None)),
        Err(error) => return Err(io(fail)(error)),
    };
    let len = file.seek(SeekFrom::End(0)).map_err(io(fail))?;
    let from = len.saturating_sub(NOTES_TAIL);
    file.seek(SeekFrom::Start(from)).map_err(io(fail))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io(fail))?;
    let text = String::from_utf8_lossy(&bytes);
    // The tail may begin inside a checkpoint: the next one begins with a line
    // that no other line begins like.
    let starts: Vec<usize> = text
        .match_indices(ORIGIN_PREFIX)
        .map(|(at, _)| at)
        .filter(|at| *at == 0 || text[..*at].ends_with("\n\n"))
        .collect();
    let Some(start) = starts.first() else {
        return match bytes.is_empty() {
            true => Ok((0, None)),
            false => Err(damaged("the file of checkpoints holds none".to_owned())),
        };
    };
    let mut notes = parse_notes(&text[*start..]);
    let mut good = start + notes.good;
    if !text[..good].ends_with("\n\n") {
        // Torn before its last newline: it was never acknowledged.
        if let Some(torn) = notes.notes.pop() {
            good -= torn.text().len();
        }
    }
    if text.len() - good > MAX_TORN {
        return Err(damaged("the file of checkpoints is damaged".to_owned()));
    }
    Ok((from + good as u64, notes.notes.pop()))
}
