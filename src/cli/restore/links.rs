//! Hard links, FIFOs, devices and symbolic links.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rustix::fs::FileType;

use super::decide::{decide, modified};
use super::manifest::takes;
use super::report::name;
use super::steps::Steps;
use super::tree::Spot;
use crate::cli::failure::{FAILED, Failure};
use crate::manifest::{Entry, Kind, RelPath};

impl Steps<'_> {
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
