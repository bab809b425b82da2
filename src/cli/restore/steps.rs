//! The steps of a restore, each of them once through the manifest: files and
//! directories, then links and nodes, and at last what directories are like.
//! Memory does not grow with the archive.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::Metadata;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::pin::Pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustix::fs::FileType;

use super::attributes::Attributes;
use super::fetch::{Fetcher, Job, Source};
use super::manifest::{Manifest, Plan, takes};
use super::report::{Outcome, name};
use super::select::Selection;
use super::tree::{Spot, Tree};
use super::{Options, Overwrite};
use crate::cli::failure::{FAILED, Failure};
use crate::cli::ui::shown;
use crate::manifest::{Content, Entry, Kind, MAX_XATTRS, RelPath, Time};

/// Bytes of a bundle fetched in one request, at most: enough to make the
/// request's cost small, and little to send again.
const BATCH: u64 = 8 << 20;
/// Files in one request, at most: so many targets are open to be written.
const BATCH_FILES: usize = 4096;
/// Bytes between two wanted files of a bundle that are fetched for nothing
/// rather than by another request.
const GAP: u64 = 64 << 10;

/// One restore under way.
pub(super) struct Steps<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) selection: &'a Selection,
    pub(super) plan: &'a Plan,
    pub(super) options: &'a Options,
    /// `None` in a dry run whose target is not there.
    pub(super) tree: &'a RefCell<Option<Tree>>,
    pub(super) attributes: &'a RefCell<Attributes>,
    pub(super) outcome: &'a Outcome<'a>,
    pub(super) fetcher: &'a Fetcher<'a>,
    /// Directories above what is wanted that were not there.
    pub(super) made: RefCell<HashSet<RelPath>>,
}

/// What becomes of something that is to be at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is made; whether in place of something.
    Write {
        /// Something is there.
        replace: bool,
    },
    /// It is there already.
    Same,
    /// What is there stays.
    Keep,
    /// A directory is in the way.
    Blocked,
}

/// Decides by what is there; `same` says whether that is it already.
pub(super) fn decide(
    there: Option<&Metadata>,
    mtime: Time,
    overwrite: Overwrite,
    same: impl FnOnce(&Metadata) -> bool,
) -> Decision {
    let Some(there) = there else {
        return Decision::Write { replace: false };
    };
    if there.is_dir() {
        return Decision::Blocked;
    }
    if same(there) {
        return Decision::Same;
    }
    match overwrite {
        Overwrite::Never => Decision::Keep,
        Overwrite::Older if modified(there) > mtime => Decision::Keep,
        Overwrite::Older | Overwrite::Always => Decision::Write { replace: true },
    }
}

/// When something here was last changed.
pub(super) fn modified(meta: &Metadata) -> Time {
    Time {
        seconds: meta.mtime(),
        nanoseconds: u32::try_from(meta.mtime_nsec()).unwrap_or_default(),
    }
}

impl Steps<'_> {
    /// Directories and files.
    pub(super) async fn files(&self, checksum: bool) -> Result<(), Failure> {
        let mut running: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + '_>>> =
            FuturesUnordered::new();
        let mut batch = Batch::default();
        // Directories on the way to the current entry that were not needed yet.
        let mut above: Vec<RelPath> = Vec::new();
        let mut entries = self.manifest.entries()?;
        while let Some(entry) = entries.next()? {
            if self.outcome.is_stopped() {
                break;
            }
            above.retain(|dir| entry.path.is_within(dir));
            let wanted = takes(self.selection, self.options.deleted, &entry);
            let stand_in = self.plan.promoted.get(&entry.path);
            if entry.kind == Kind::Dir && !wanted {
                above.push(entry.path);
                continue;
            }
            if !wanted && stand_in.is_none() {
                continue;
            }
            if wanted {
                for dir in above.drain(..) {
                    self.directory(dir, false);
                }
            }
            match &entry.kind {
                Kind::Dir => self.directory(entry.path.clone(), true),
                Kind::File(content) => {
                    let mut jobs = Vec::new();
                    if wanted {
                        jobs.extend(self.job(&entry.path, &entry, content, checksum));
                    } else if let Some(path) = stand_in {
                        jobs.extend(self.job(path, &entry, content, checksum));
                    }
                    for job in jobs {
                        if let Some(full) = batch.add(job) {
                            running.push(Box::pin(self.fetcher.fetch(full)));
                        }
                    }
                }
                _ => {}
            }
            while running.len() >= self.options.jobs {
                running.next().await;
            }
        }
        let last = batch.take();
        if !last.is_empty() && !self.outcome.is_stopped() {
            running.push(Box::pin(self.fetcher.fetch(last)));
        }
        while running.next().await.is_some() {}
        Ok(())
    }

    /// Makes a directory, for its own sake or for something in it.
    fn directory(&self, path: RelPath, wanted: bool) {
        let mut tree = self.tree.borrow_mut();
        let Some(tree) = tree.as_mut().filter(|_| !self.options.dry_run) else {
            return;
        };
        match tree.make_dir(&path, wanted) {
            Ok((_, made)) => {
                if made && !wanted {
                    self.made.borrow_mut().insert(path);
                }
            }
            Err(error) => {
                let path = name(&path);
                let what = format!("cannot make the directory {path}");
                self.outcome.failed(&path, &blocked(what, &error));
            }
        }
    }

    /// What there is to do for a file.
    fn job(&self, path: &RelPath, entry: &Entry, content: &Content, checksum: bool) -> Option<Job> {
        if let Some(why) = &entry.stale {
            let why = format!("as an earlier run found it: {}", shown(why));
            self.outcome.told("stale", &name(path), &why);
        }
        let spot = self.spot(path)?;
        let there = self.look(path, spot.as_ref())?;
        let same = |meta: &Metadata| {
            meta.is_file()
                && meta.len() == content.size
                && modified(meta) == entry.mtime
                && (!checksum || spot.as_ref().is_some_and(|spot| has(spot, &content.sha256)))
        };
        let decision = decide(there.as_ref(), entry.mtime, self.options.overwrite, same);
        let replace = self.act_on(path, decision)?;
        let Some(spot) = spot.filter(|_| !self.options.dry_run) else {
            self.outcome.add(|counts| {
                counts.files += 1;
                counts.bytes = counts.bytes.saturating_add(content.size);
            });
            self.outcome.done(&name(path), true);
            return None;
        };
        Some(Job {
            path: path.clone(),
            spot,
            replace,
            mtime: entry.mtime,
            size: Some(content.size),
            sha256: Some(content.sha256),
            sparse: content.sparse,
            at: Source {
                key: self.fetcher.archive.key(&content.at.key),
                version_id: content.at.version_id.clone(),
                message_id: Some(content.at.message_id.clone()),
                offset: content.at.offset,
            },
            entry: Some(entry.clone()),
        })
    }

    /// Where an entry is to be: `Some(None)` where a dry run finds no
    /// directory, `None` where that failed and was told.
    fn spot(&self, path: &RelPath) -> Option<Option<Spot>> {
        let mut tree = self.tree.borrow_mut();
        let Some(tree) = tree.as_mut() else {
            return Some(None);
        };
        let spot = match self.options.dry_run {
            true => tree.existing_spot(path),
            false => tree.spot(path),
        };
        match spot {
            Ok(spot) => Some(Some(spot)),
            Err(error) if self.options.dry_run && error.kind() == io::ErrorKind::NotFound => {
                Some(None)
            }
            Err(error) => {
                let path = name(path);
                let what = format!("cannot restore {path}");
                self.outcome.failed(&path, &blocked(what, &error));
                None
            }
        }
    }

    fn look(&self, path: &RelPath, spot: Option<&Spot>) -> Option<Option<Metadata>> {
        match spot.map_or(Ok(None), Spot::look) {
            Ok(there) => Some(there),
            Err(error) => {
                let path = name(path);
                let failure = Failure::io(format!("cannot restore {path}"), &error);
                self.outcome.failed(&path, &failure);
                None
            }
        }
    }

    /// Counts a decision; `Some(replace)` if something is to be made.
    fn act_on(&self, path: &RelPath, decision: Decision) -> Option<bool> {
        match decision {
            Decision::Write { replace } => return Some(replace),
            Decision::Same => self.outcome.add(|counts| counts.unchanged += 1),
            Decision::Keep => {
                self.outcome.add(|counts| counts.kept += 1);
                self.outcome.told(
                    "kept",
                    &name(path),
                    "kept: what is here is newer, or not to be replaced",
                );
            }
            Decision::Blocked => {
                let path = name(path);
                let what = format!("cannot restore {path}: a directory of this name is there");
                let failure = Failure::new(FAILED, what).hint("move it out of the way");
                self.outcome.failed(&path, &failure);
            }
        }
        None
    }

    /// Hard links, FIFOs, devices and symbolic links: after all files, so
    /// that nothing was ever written while a link of the archive was there.
    pub(super) fn links(&self) -> Result<(), Failure> {
        let mut entries = self.manifest.entries()?;
        while let Some(entry) = entries.next()? {
            if self.outcome.is_stopped() {
                break;
            }
            let is_late = !matches!(entry.kind, Kind::Dir | Kind::File(_));
            if is_late && takes(self.selection, self.options.deleted, &entry) {
                self.late(&entry);
            }
        }
        Ok(())
    }

    fn late(&self, entry: &Entry) {
        let path = &entry.path;
        let device = match &entry.kind {
            Kind::Socket => {
                return self.skip(
                    path,
                    "left out: a socket is made by the program that serves it",
                );
            }
            Kind::Char(number) => Some((FileType::CharacterDevice, *number)),
            Kind::Block(number) => Some((FileType::BlockDevice, *number)),
            Kind::Fifo => Some((FileType::Fifo, 0)),
            _ => None,
        };
        let wishes = self.attributes.borrow().wishes();
        if device.is_some_and(|(kind, _)| kind != FileType::Fifo) && !wishes.devices {
            return self.skip(path, "left out: a device (--devices makes it)");
        }
        let Some(spot) = self.spot(path) else { return };
        let Some(there) = self.look(path, spot.as_ref()) else {
            return;
        };
        if let Kind::Hardlink(first) = &entry.kind {
            return self.hard_link(entry, first, spot, there);
        }
        let same = |meta: &Metadata| match &entry.kind {
            Kind::Symlink(target) => {
                meta.is_symlink()
                    && spot
                        .as_ref()
                        .and_then(|spot| spot.read_link().ok())
                        .is_some_and(|found| found == *target)
            }
            Kind::Fifo => meta.file_type().is_fifo(),
            Kind::Char(number) => meta.file_type().is_char_device() && meta.rdev() == *number,
            Kind::Block(number) => meta.file_type().is_block_device() && meta.rdev() == *number,
            _ => false,
        };
        let decision = decide(there.as_ref(), entry.mtime, self.options.overwrite, same);
        let Some(replace) = self.act_on(path, decision) else {
            return;
        };
        let made = spot
            .filter(|_| !self.options.dry_run)
            .map_or(Ok(()), |spot| {
                let mut attributes = self.attributes.borrow_mut();
                match (&entry.kind, device) {
                    (Kind::Symlink(target), _) => spot.symlink(target, replace, |dir, name| {
                        attributes.set_link(dir, name, entry)
                    }),
                    (_, Some((kind, number))) => spot.node(kind, number, replace, |dir, name| {
                        attributes.set_node(dir, name, entry)
                    }),
                    _ => Ok(()),
                }
            });
        self.note_late(path, made, device.is_some());
    }

    fn note_late(&self, path: &RelPath, made: io::Result<()>, is_node: bool) {
        match made {
            Ok(()) => {
                self.outcome.add(|counts| match is_node {
                    true => counts.nodes += 1,
                    false => counts.links += 1,
                });
                self.outcome.done(&name(path), self.options.dry_run);
            }
            Err(error) => {
                let path = name(path);
                let failure = Failure::io(format!("cannot restore {path}"), &error);
                self.outcome.failed(&path, &failure);
            }
        }
    }

    fn skip(&self, path: &RelPath, why: &str) {
        self.outcome.add(|counts| counts.skipped += 1);
        self.outcome.told("skipped", &name(path), why);
    }

    /// Another name of a file that was restored: nothing else may get one.
    fn hard_link(
        &self,
        entry: &Entry,
        first: &RelPath,
        spot: Option<Spot>,
        there: Option<Metadata>,
    ) {
        let path = &entry.path;
        // The name that stands in for one that is not wanted is the file.
        let stand_in = self.plan.promoted.get(first);
        if stand_in == Some(path) {
            return;
        }
        let first = stand_in.unwrap_or(first);
        let dry_run = || {
            self.outcome.add(|counts| counts.links += 1);
            self.outcome.done(&name(path), true);
        };
        let (Some(spot), false) = (spot, self.options.dry_run && there.is_none()) else {
            return dry_run();
        };
        let failed = |failure: &Failure| self.outcome.failed(&name(path), failure);
        let first_spot = match self
            .tree
            .borrow_mut()
            .as_mut()
            .map(|t| t.existing_spot(first))
        {
            Some(Ok(spot)) => spot,
            _ => return failed(&no_first(path, first)),
        };
        let restored = match first_spot.look() {
            // Its mtime is the entry's: both are one inode.
            Ok(Some(meta))
                if meta.is_file()
                    && (modified(&meta) == entry.mtime
                        || there.as_ref().is_some_and(|there| is_one(there, &meta))) =>
            {
                meta
            }
            Ok(None) if self.outcome.counts().archived > 0 => {
                // It comes when its first name does.
                return self.outcome.add(|counts| counts.archived += 1);
            }
            _ => return failed(&no_first(path, first)),
        };
        let same = |meta: &Metadata| is_one(meta, &restored);
        let decision = decide(there.as_ref(), entry.mtime, self.options.overwrite, same);
        let Some(replace) = self.act_on(path, decision) else {
            return;
        };
        match self.options.dry_run {
            true => dry_run(),
            false => self.note_late(path, spot.hard_link(&first_spot, replace), false),
        }
    }

    /// Modes, owners and times of directories, the inner ones first: a
    /// directory may be closed to its owner, and all that was made in it has
    /// changed its time.
    pub(super) fn directories(&self) -> Result<(), Failure> {
        if self.options.dry_run {
            return Ok(());
        }
        let mut open: Vec<Entry> = Vec::new();
        let mut entries = self.manifest.entries()?;
        while let Some(entry) = entries.next()? {
            self.close(&mut open, Some(&entry.path));
            let wanted = takes(self.selection, self.options.deleted, &entry)
                || self.made.borrow().contains(&entry.path);
            if entry.kind == Kind::Dir && wanted {
                open.push(entry);
            }
        }
        self.close(&mut open, None);
        Ok(())
    }

    /// Is done with the directories that the path does not lie in.
    fn close(&self, open: &mut Vec<Entry>, path: Option<&RelPath>) {
        while let Some(dir) = open.pop_if(|dir| path.is_none_or(|path| !path.is_within(&dir.path)))
        {
            let set = match self
                .tree
                .borrow_mut()
                .as_mut()
                .map(|tree| tree.dir(&dir.path))
            {
                Some(Ok(fd)) => self.attributes.borrow_mut().set(&*fd, &dir),
                // That it could not be made was told.
                _ => continue,
            };
            match set {
                Ok(()) => self.outcome.add(|counts| counts.directories += 1),
                Err(error) => {
                    let path = name(&dir.path);
                    let failure = Failure::io(format!("cannot restore {path}"), &error);
                    self.outcome.failed(&path, &failure);
                }
            }
        }
    }
}

/// Whether both are the same file.
fn is_one(a: &Metadata, b: &Metadata) -> bool {
    a.dev() == b.dev() && a.ino() == b.ino()
}

fn no_first(path: &RelPath, first: &RelPath) -> Failure {
    Failure::new(
        FAILED,
        format!(
            "cannot restore {}: it is another name of {}, which is not there as it was archived",
            name(path),
            name(first)
        ),
    )
    .hint("restore that one first; --overwrite always replaces what is in its place")
}

fn blocked(what: String, error: &io::Error) -> Failure {
    let failure = Failure::io(what, error);
    match error.kind() {
        io::ErrorKind::Other => {
            failure.hint("nothing is written through links: move it out of the way, or restore into another directory")
        }
        _ => failure,
    }
}

/// Whether a file here has this SHA-256.
fn has(spot: &Spot, sha256: &[u8; 32]) -> bool {
    let digest = || -> io::Result<ring::digest::Digest> {
        let mut file = spot.read()?;
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(context.finish()),
                n => context.update(&buffer[..n]),
            }
        }
    };
    digest().is_ok_and(|digest| digest.as_ref() == sha256)
}

/// Files of one bundle that are fetched together.
#[derive(Default)]
struct Batch {
    jobs: Vec<Job>,
    /// Bytes of their extended attributes, which wait in memory.
    attributes: usize,
}

impl Batch {
    /// Adds a job; what has to be fetched before it, or without it.
    fn add(&mut self, job: Job) -> Option<Vec<Job>> {
        if job.at.offset.is_none() {
            return Some(vec![job]);
        }
        let attributes: usize = job
            .entry
            .iter()
            .flat_map(|entry| &entry.xattrs)
            .map(|(_, value)| value.len())
            .sum();
        if self.takes(&job, attributes) {
            self.jobs.push(job);
            self.attributes += attributes;
            return None;
        }
        let full = std::mem::replace(&mut self.jobs, vec![job]);
        self.attributes = attributes;
        (!full.is_empty()).then_some(full)
    }

    fn takes(&self, job: &Job, attributes: usize) -> bool {
        let (Some(first), Some(last)) = (self.jobs.first(), self.jobs.last()) else {
            return true;
        };
        let begin = |job: &Job| job.at.offset.unwrap_or(0);
        let end = |job: &Job| begin(job).saturating_add(job.size.unwrap_or(0));
        self.jobs.len() < BATCH_FILES
            && self.attributes + attributes <= MAX_XATTRS
            && first.at.shares_object(&job.at)
            && begin(job) >= end(last)
            && begin(job) - end(last) <= GAP
            && end(job) - begin(first) <= BATCH
    }

    fn take(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }
}
