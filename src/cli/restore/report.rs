//! What a restore came to: counts, what is said on the way, the exit code.

use std::cell::RefCell;
use std::collections::HashSet;

use serde::Serialize;

use crate::cli::failure::{ALTERED, FAILED, Failure, TEMPORARY};
use crate::cli::ui::{Ui, shown, size};

/// Entries that are named one by one; the rest is counted.
const TOLD: usize = 1000;

/// How much was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Files that were written.
    pub(super) files: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Directories that were made or given their attributes.
    pub(super) directories: u64,
    /// Symbolic and hard links.
    pub(super) links: u64,
    /// FIFOs and devices.
    pub(super) nodes: u64,
    /// Files and links that were there already.
    pub(super) unchanged: u64,
    /// What is newer here, or was not to be replaced.
    pub(super) kept: u64,
    /// Sockets, and devices that nobody asked for.
    pub(super) skipped: u64,
    /// Files in objects that cannot be read yet.
    pub(super) archived: u64,
    /// What could not be restored.
    pub(super) failed: u64,
}

/// Counts and failures of a run, shared by what is at work.
pub(super) struct Outcome<'a> {
    ui: &'a Ui,
    counts: RefCell<Counts>,
    /// The exit code of what failed so far.
    code: RefCell<Option<u8>>,
    /// What was named as failed.
    told: RefCell<HashSet<String>>,
    /// Ends the run: nothing more can be restored.
    fatal: RefCell<Option<Failure>>,
}

/// What `--json` says of one entry.
#[derive(Serialize)]
struct Event<'a> {
    event: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// The last line of `--json`.
#[derive(Serialize)]
struct End<'a> {
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
    dry_run: bool,
    #[serde(flatten)]
    counts: Counts,
}

impl<'a> Outcome<'a> {
    pub(super) fn new(ui: &'a Ui) -> Self {
        Self {
            ui,
            counts: RefCell::default(),
            code: RefCell::default(),
            told: RefCell::default(),
            fatal: RefCell::default(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.borrow().clone()
    }

    /// Counts something.
    pub(super) fn add(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.counts.borrow_mut());
    }

    /// Everything is looked at once more: what is there by now was written
    /// before, and what fails again is not told again.
    pub(super) fn look_again(&self) {
        *self.code.borrow_mut() = None;
        self.add(|counts| {
            *counts = Counts {
                files: counts.files,
                bytes: counts.bytes,
                ..Counts::default()
            };
        });
    }

    /// An entry could not be restored; the others go on.
    pub(super) fn failed(&self, path: &str, failure: &Failure) {
        self.add(|counts| counts.failed += 1);
        let code = failure.code();
        {
            // Alterations before all else; then what all have in common.
            let mut common = self.code.borrow_mut();
            *common = Some(match *common {
                None => code,
                Some(before) if before == code => code,
                Some(ALTERED) => ALTERED,
                Some(_) if code == ALTERED => ALTERED,
                Some(_) => FAILED,
            });
        }
        let mut told = self.told.borrow_mut();
        if told.len() >= TOLD || !told.insert(path.to_owned()) {
            return;
        }
        if self.ui.is_json() {
            self.event("failed", path, Some(failure.parts().0));
        } else {
            failure.report();
        }
    }

    /// Something that a person may want to know of an entry.
    pub(super) fn told(&self, event: &str, path: &str, detail: &str) {
        if self.ui.is_json() {
            self.event(event, path, Some(detail));
        } else if self.ui.is_verbose() {
            self.ui.note(&format!("{path}: {detail}"));
        }
    }

    /// Under `-v`, `--dry-run` and `--json`: an entry that was restored.
    pub(super) fn done(&self, path: &str, always: bool) {
        if self.ui.is_json() {
            self.event("restored", path, None);
        } else if always || self.ui.is_verbose() {
            // A reader that went away is told at the end.
            let _ = self.ui.line(path);
        }
    }

    fn event(&self, event: &str, path: &str, detail: Option<&str>) {
        let _ = self.ui.json(&Event {
            event,
            path,
            detail,
        });
    }

    /// Nothing more can be restored; the first reason counts.
    pub(super) fn stop(&self, failure: Failure) {
        self.fatal.borrow_mut().get_or_insert(failure);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.fatal.borrow().is_some()
    }

    /// The end: what was done, and the failure that it comes to.
    pub(super) fn conclude(
        &self,
        run: Option<&str>,
        dry_run: bool,
        asked: bool,
    ) -> Result<(), Failure> {
        let counts = self.counts();
        if self.ui.is_json() {
            self.ui.json(&End {
                event: "end",
                run,
                dry_run,
                counts: counts.clone(),
            })?;
        } else {
            let done = match dry_run {
                true => "would restore",
                false => "restored",
            };
            self.ui.done(&format!(
                "{done} {} files ({}), {} directories, {} links{}; {} were there already",
                counts.files,
                size(counts.bytes),
                counts.directories,
                counts.links,
                match counts.nodes {
                    0 => String::new(),
                    nodes => format!(", {nodes} FIFOs and devices"),
                },
                counts.unchanged
            ))?;
            if counts.kept > 0 {
                self.ui.note(&format!(
                    "{} files here were kept: they are newer than the archived ones, or were not to be replaced (-v names them; --overwrite always replaces them)",
                    counts.kept
                ));
            }
            if counts.skipped > 0 && self.ui.is_verbose() {
                self.ui.note(&format!(
                    "{} sockets and devices were left out",
                    counts.skipped
                ));
            }
        }
        if let Some(fatal) = self.fatal.borrow_mut().take() {
            return Err(fatal);
        }
        if counts.failed > 0 {
            let code = self.code.borrow().unwrap_or(FAILED);
            let failure = Failure::new(
                code,
                format!("{} entries could not be restored", counts.failed),
            );
            return Err(failure.hint(
                "each was named; the same command goes on with what is missing when that is mended",
            ));
        }
        match (counts.archived, asked) {
            (0, _) => Ok(()),
            (n, true) => Err(Failure::new(
                TEMPORARY,
                format!("{n} files are being restored by the store"),
            )
            .hint("give the same command again later, or add --wait")),
            (n, false) => Err(Failure::new(
                TEMPORARY,
                format!("{n} files are in objects of an archive class"),
            )
            .hint(
                "--tier bulk, standard or expedited asks the store for them; it charges for that",
            )),
        }
    }
}

/// A path for people.
pub(super) fn name(path: &crate::manifest::RelPath) -> String {
    shown(&path.to_string())
}
