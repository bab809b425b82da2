//! The steps of a restore, each of them once through the manifest: files and
//! directories, then links and nodes, and at last what directories are like.
//! Memory does not grow with the archive.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::Metadata;
use std::io::{self, Read as _};
use std::pin::Pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::Options;
use super::attributes::Attributes;
use super::batch::Batch;
use super::decide::{Decision, decide, modified};
use super::fetch::{Fetcher, Job, Source};
use super::manifest::{Manifest, Plan, takes};
use super::report::{Outcome, name};
use super::select::Selection;
use super::tree::{Spot, Tree};
use crate::cli::failure::{FAILED, Failure};
use crate::cli::ui::shown;
use crate::manifest::{Content, Entry, Kind, RelPath};

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
    pub(super) fn spot(&self, path: &RelPath) -> Option<Option<Spot>> {
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

    pub(super) fn look(&self, path: &RelPath, spot: Option<&Spot>) -> Option<Option<Metadata>> {
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
    pub(super) fn act_on(&self, path: &RelPath, decision: Decision) -> Option<bool> {
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
    let digest = || -> io::Result<crate::crypto::digest::Digest> {
        let mut file = spot.read()?;
        let mut context = crate::crypto::digest::Context::new(&crate::crypto::digest::SHA256);
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
