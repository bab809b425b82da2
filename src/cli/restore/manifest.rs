//! A run's manifest at hand: fetched once, read as often as a restore has
//! steps, always as a stream.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use super::select::Selection;
use crate::api;
use crate::cli::failure::{ALTERED, Failure};
use crate::client::Download;
use crate::manifest::{Entry, Head, Kind, Reader, RelPath, RunId};

/// Hard links whose first name is not wanted, at most: they are remembered.
const MAX_PROMOTED: usize = 100_000;

/// A manifest that was found to be sound from its first line to its last.
pub(super) struct Manifest {
    file: Rc<File>,
    run: RunId,
    /// Its first line.
    pub(super) head: Head,
}

/// What a restore will do, as far as the manifest tells.
#[derive(Default)]
pub(super) struct Plan {
    /// Entries that are wanted.
    pub(super) entries: u64,
    /// Bytes of the files among them.
    pub(super) bytes: u64,
    /// First names that are not wanted, and the wanted name that stands in
    /// for each.
    pub(super) promoted: HashMap<RelPath, RelPath>,
}

/// Reads a file from its beginning, whoever else reads it.
pub(super) struct FromStart {
    file: Rc<File>,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Manifest {
    /// Brings a manifest here.
    pub(super) async fn receive(
        mut download: Download,
        mut scratch: File,
        run: RunId,
    ) -> Result<Self, Failure> {
        let what = format!("cannot fetch the manifest of run {run}");
        loop {
            match download.next().await {
                Ok(Some(bytes)) => scratch
                    .write_all(&bytes)
                    .map_err(|error| Failure::io(&what, &error))?,
                Ok(None) => break,
                Err(error) => return Err(Failure::api(&what, &error)),
            }
        }
        let file = Rc::new(scratch);
        let reader = Reader::open(FromStart {
            file: Rc::clone(&file),
            at: 0,
        });
        let head = reader.map_err(|e| unsound(&run, &e))?.head().clone();
        if head.run != run {
            return Err(unsound(&run, &format!("it is of run {}", head.run)));
        }
        Ok(Self { file, run, head })
    }

    /// It must not be used.
    pub(super) fn unsound(&self, why: &str) -> Failure {
        unsound(&self.run, &why)
    }

    /// Goes through all of it before anything is written: it must be sound,
    /// and nothing may lie inside what is no directory.
    pub(super) fn plan(&self, selection: &Selection, deleted: bool) -> Result<Plan, Failure> {
        let mut plan = Plan::default();
        let mut entries = self.entries()?;
        let mut last: Option<Entry> = None;
        while let Some(entry) = entries.next()? {
            // What lies in a directory follows it at once, in this order.
            if let Some(last) = &last
                && last.kind != Kind::Dir
                && entry.path.is_within(&last.path)
            {
                let why = format!("{:?} lies in what is no directory", entry.path);
                return Err(unsound(&self.run, &why));
            }
            if takes(selection, deleted, &entry) {
                plan.entries += 1;
                match &entry.kind {
                    Kind::File(content) => plan.bytes = plan.bytes.saturating_add(content.size),
                    Kind::Hardlink(first) if !selection.takes(first, false) => {
                        if plan.promoted.len() >= MAX_PROMOTED {
                            return Err(Failure::usage(format!(
                                "more than {MAX_PROMOTED} of the wanted hard links are names of files that are not wanted"
                            ))
                            .hint("ask for more, or for less"));
                        }
                        plan.promoted
                            .entry(first.clone())
                            .or_insert_with(|| entry.path.clone());
                    }
                    _ => {}
                }
            }
            last = Some(entry);
        }
        if !entries.reader.end().is_some_and(|end| end.complete) {
            return Err(unsound(
                &self.run,
                &"the run that wrote it was not complete",
            ));
        }
        Ok(plan)
    }

    /// Its entries, once more.
    pub(super) fn entries(&self) -> Result<Entries<'_>, Failure> {
        let source = FromStart {
            file: Rc::clone(&self.file),
            at: 0,
        };
        Ok(Entries {
            reader: Reader::open(source).map_err(|e| unsound(&self.run, &e))?,
            run: &self.run,
        })
    }
}

/// Whether an entry is wanted. What an archive run deleted after it was
/// stored is, unless somebody says otherwise: it is nowhere else.
pub(super) fn takes(selection: &Selection, deleted: bool, entry: &Entry) -> bool {
    (deleted || entry.deleted.is_none()) && selection.takes(&entry.path, entry.kind == Kind::Dir)
}

/// The entries of a manifest, in order.
pub(super) struct Entries<'a> {
    reader: Reader<FromStart>,
    run: &'a RunId,
}

impl Entries<'_> {
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Failure> {
        self.reader
            .next()
            .map_err(|error| unsound(self.run, &error))
    }
}

fn unsound(run: &RunId, why: &dyn std::fmt::Display) -> Failure {
    let why = crate::cli::ui::shown(&why.to_string());
    Failure::new(
        ALTERED,
        format!("the manifest of run {run} cannot be used: {why}"),
    )
    .hint("nothing was written; `strongroom restore --list` names the other runs")
}

/// The message is another one than the one that was to be read.
pub(super) fn another(what: &str) -> api::Error {
    api::Error::new(
        api::ErrorKind::Altered,
        format!("{what} is another message than the one that the archive names"),
    )
    .hint("it was stored again since, in a bucket without versions, or somebody exchanged it; `strongroom inspect` shows what is there")
}
