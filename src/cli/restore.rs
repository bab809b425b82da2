//! `strongroom restore`: an archive's tree, or a part of it, back on a disk.

mod archived;
mod attributes;
mod batch;
mod choose;
mod decide;
mod fetch;
mod links;
mod manifest;
mod plain;
mod report;
mod select;
mod steps;
mod tree;

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::failure::{Failure, NO_SUCH};
use super::place::S3Url;
use super::progress::{ClearOnDrop, Progress};
use super::ui::{Ui, shown};
use crate::manifest::{Entry, Kind, RunId};
use archived::{Asking, Patience, Tier};
use attributes::{Attributes, Wishes};
use choose::{Archive, Found, When};
use fetch::Fetcher;
use manifest::{Manifest, takes};
use plain::Plain;
use report::Outcome;
use select::Selection;
use steps::Steps;
use tree::Tree;

#[derive(Args)]
#[command(
    after_help = "Files that are there with the same size and time are left alone, and newer ones are kept: a\nrestore that was interrupted goes on when the same command is given again. Each file appears\nwhole or not at all. Owners, set-uid bits, capabilities and devices come back on request only."
)]
pub(super) struct RestoreArgs {
    /// The archive
    #[arg(value_name = "s3://BUCKET/PREFIX/")]
    from: S3Url,
    /// The directory to restore into; it is made if it is not there
    #[arg(value_name = "DIR", required_unless_present_any = ["list", "list_files"])]
    to: Option<PathBuf>,
    /// Only these: paths (with all below them), or patterns as in .gitignore
    #[arg(value_name = "PATTERN")]
    patterns: Vec<OsString>,
    /// Leave these out
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// The state that this run stored [default: the newest complete run's]
    #[arg(long, value_name = "RUN", conflicts_with = "at", value_parser = run_id)]
    run: Option<RunId>,
    /// The state of the newest run that began at or before this time
    #[arg(long, value_name = "TIME", value_parser = choose::instant)]
    at: Option<jiff::Timestamp>,
    /// List the runs, and restore nothing
    #[arg(long, conflicts_with_all = ["list_files", "to"])]
    list: bool,
    /// List the files of a run, or those that match, and restore nothing
    #[arg(long)]
    list_files: bool,
    /// What becomes of files that are there and differ
    #[arg(long, value_name = "WHICH", value_enum, default_value = "older")]
    overwrite: Overwrite,
    /// Compare files that are there by their SHA-256, not by size and time alone
    #[arg(long)]
    checksum: bool,
    /// Leave out what `archive --delete-after` deleted
    #[arg(long)]
    without_deleted: bool,
    /// Owners, groups and access control lists, by name where this host knows the name
    #[arg(long)]
    owner: bool,
    /// Owners by number
    #[arg(long)]
    numeric_ids: bool,
    /// Set-uid, set-gid and sticky bits
    #[arg(long)]
    special_modes: bool,
    /// Capabilities, security labels and other attributes that only root may set
    #[arg(long)]
    privileged_xattrs: bool,
    /// Device nodes
    #[arg(long)]
    devices: bool,
    /// Exactly as it was: --owner, --special-modes, --privileged-xattrs and --devices
    #[arg(long)]
    exact: bool,
    /// No extended attributes
    #[arg(long)]
    no_xattrs: bool,
    /// Ask the store for objects in archive classes, at this speed; it charges for that
    #[arg(long, value_name = "TIER", value_enum)]
    tier: Option<Tier>,
    /// How long what was asked for stays readable [default: 7]
    #[arg(long, value_name = "N", requires = "tier", value_parser = clap::value_parser!(u16).range(1..=365))]
    days: Option<u16>,
    /// Wait until everything that was asked for is there
    #[arg(long, requires = "tier")]
    wait: bool,
    /// Believe a manifest that no catalogue here knows; whoever has the key may have written it
    #[arg(long)]
    trust_manifest: bool,
    /// Files or bundles fetched at the same time
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Say what would be restored
    #[arg(long)]
    dry_run: bool,
}

/// Which files that are there are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Overwrite {
    /// None
    Never,
    /// Those that are not newer than the archived ones
    #[default]
    Older,
    /// All that differ
    Always,
}

/// What the steps of a restore go by.
pub(super) struct Options {
    overwrite: Overwrite,
    /// What an archive run deleted after it was stored, too.
    deleted: bool,
    jobs: usize,
    dry_run: bool,
}

fn run_id(text: &str) -> Result<RunId, String> {
    RunId::try_from(text.to_owned())
        .map_err(|_| "a run is named like 20261122T113000Z-1a2b3c4d; --list shows them".to_owned())
}

pub(super) async fn run(ui: &Ui, args: RestoreArgs) -> Result<(), Failure> {
    let mut prefix = args.from.key.clone();
    if !prefix.is_empty() && !prefix.ends_with('/') {
        prefix.push('/');
    }
    let archive = Archive {
        client: ui.client(),
        bucket: args.from.bucket.clone(),
        prefix,
        trust: args.trust_manifest,
    };
    if args.list {
        return archive.list(ui).await;
    }
    let asking = Asking {
        tier: args.tier.filter(|_| !args.dry_run),
        days: args.days,
        wait: args.wait,
        jobs: args.jobs.into(),
    };
    let when = match (&args.run, args.at) {
        (Some(run), _) => When::Run(run.clone()),
        (None, Some(at)) => When::At(at),
        (None, None) => When::Latest,
    };
    let mut patterns = args.patterns.clone();
    // What is listed goes nowhere: all that follows are patterns.
    let to = match &args.to {
        Some(first) if args.list_files => {
            patterns.push(first.clone().into_os_string());
            None
        }
        to => to.as_ref(),
    };
    let selection = Selection::new(&patterns, &args.exclude)?;
    let found = archive.find(when, &asking).await?;
    let mut tree = match to {
        Some(path) if !args.dry_run || path.is_dir() => Some(Tree::open(path)?),
        _ => None,
    };
    match found {
        Some(Found { run, manifest }) => {
            let scratch = match &mut tree {
                Some(tree) if !args.dry_run => tree.scratch(),
                _ => tempfile::tempfile(),
            };
            let scratch = scratch.map_err(|e| Failure::io("cannot make a temporary file", &e))?;
            let manifest = Manifest::receive(manifest, scratch, run.clone()).await?;
            if manifest.head.prefix != archive.prefix {
                let why = format!(
                    "it is of s3://{}/{}",
                    manifest.head.bucket, manifest.head.prefix
                );
                return Err(manifest.unsound(&why));
            }
            let job = Restore {
                ui,
                args: &args,
                archive: &archive,
                asking: &asking,
                selection: &selection,
            };
            match args.list_files {
                true => job.list_files(&manifest),
                false => job.by_manifest(tree, &manifest, &run).await,
            }
        }
        None if args.list_files => Err(Failure::new(
            NO_SUCH,
            format!("{}: no run of an archive is there", archive.url()),
        )
        .hint("`strongroom ls --recursive` lists objects")),
        None => {
            let job = Restore {
                ui,
                args: &args,
                archive: &archive,
                asking: &asking,
                selection: &selection,
            };
            job.by_listing(tree).await
        }
    }
}

/// One restore, as it was asked for.
struct Restore<'a> {
    ui: &'a Ui,
    args: &'a RestoreArgs,
    archive: &'a Archive,
    asking: &'a Asking,
    selection: &'a Selection,
}

/// A line of `--list-files --json`.
#[derive(Serialize)]
struct Listed<'a> {
    path: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    mtime: String,
}

impl Restore<'_> {
    fn options(&self) -> Options {
        Options {
            overwrite: self.args.overwrite,
            deleted: !self.args.without_deleted,
            jobs: self.args.jobs.into(),
            dry_run: self.args.dry_run,
        }
    }

    fn wishes(&self) -> Wishes {
        let Self { args, .. } = self;
        Wishes {
            owner: args.owner || args.exact,
            numeric: args.numeric_ids,
            special_modes: args.special_modes || args.exact,
            privileged_xattrs: args.privileged_xattrs || args.exact,
            xattrs: !args.no_xattrs,
            devices: args.devices || args.exact,
        }
    }

    async fn by_manifest(
        &self,
        tree: Option<Tree>,
        manifest: &Manifest,
        run: &RunId,
    ) -> Result<(), Failure> {
        let options = self.options();
        let plan = manifest.plan(self.selection, options.deleted)?;
        if plan.entries == 0 && !self.selection.is_all() {
            return Err(
                Failure::new(NO_SUCH, format!("run {run} has nothing that was asked for"))
                    .hint("--list-files shows what it has"),
            );
        }
        let asking = self.asking;
        asking
            .ask_all(
                self.ui,
                self.archive,
                manifest,
                self.selection,
                &plan,
                options.deleted,
            )
            .await?;
        let outcome = Outcome::new(self.ui);
        let attributes = RefCell::new(Attributes::new(self.wishes()));
        let progress = Progress::start(self.ui, run.as_str(), Some(plan.bytes));
        let _clear = ClearOnDrop(progress.clone());
        let tree = RefCell::new(tree);
        let fetcher = Fetcher {
            archive: self.archive,
            attributes: &attributes,
            outcome: &outcome,
            progress: &progress,
            umask: umask(),
            names: options.dry_run,
        };
        let steps = Steps {
            manifest,
            selection: self.selection,
            plan: &plan,
            options: &options,
            tree: &tree,
            attributes: &attributes,
            outcome: &outcome,
            fetcher: &fetcher,
            made: RefCell::new(HashSet::new()),
        };
        steps.files(self.args.checksum).await?;
        let mut patience = Patience::new();
        while asking.wait && outcome.counts().archived > 0 && !outcome.is_stopped() {
            patience.wait().await;
            let before = outcome.counts();
            outcome.look_again();
            steps.files(false).await?;
            // What this run wrote was not there already.
            outcome.add(|counts| {
                counts.unchanged = counts.unchanged.saturating_sub(before.files);
            });
        }
        steps.links()?;
        steps.directories()?;
        sync(tree.borrow().as_ref(), options.dry_run)?;
        progress.finish();
        outcome.conclude(Some(run.as_str()), options.dry_run, asking.tier.is_some())
    }

    /// Objects that no manifest tells of: their bytes and their names.
    async fn by_listing(&self, mut tree: Option<Tree>) -> Result<(), Failure> {
        let options = self.options();
        let outcome = Outcome::new(self.ui);
        let attributes = RefCell::new(Attributes::new(self.wishes()));
        let progress = Progress::start(self.ui, &self.archive.url().to_string(), None);
        let _clear = ClearOnDrop(progress.clone());
        let fetcher = Fetcher {
            archive: self.archive,
            attributes: &attributes,
            outcome: &outcome,
            progress: &progress,
            umask: umask(),
            names: options.dry_run,
        };
        let plain = Plain {
            archive: self.archive,
            selection: self.selection,
            options: &options,
            outcome: &outcome,
            fetcher: &fetcher,
        };
        plain.ask_all(self.ui, self.asking, self.args.at).await?;
        plain.run(&mut tree, self.args.at).await?;
        let mut patience = Patience::new();
        while self.asking.wait && outcome.counts().archived > 0 && !outcome.is_stopped() {
            patience.wait().await;
            let before = outcome.counts();
            outcome.look_again();
            plain.run(&mut tree, self.args.at).await?;
            // What this run wrote was not there already.
            outcome.add(|counts| {
                counts.unchanged = counts.unchanged.saturating_sub(before.files);
            });
        }
        sync(tree.as_ref(), options.dry_run)?;
        progress.finish();
        self.ui.note(&format!(
            "{} has no manifest: files have their objects' names and times; what else there was is not known",
            self.archive.url()
        ));
        outcome.conclude(None, options.dry_run, self.asking.tier.is_some())
    }

    fn list_files(&self, manifest: &Manifest) -> Result<(), Failure> {
        let options = self.options();
        manifest.plan(self.selection, options.deleted)?;
        let mut entries = manifest.entries()?;
        while let Some(entry) = entries.next()? {
            if takes(self.selection, options.deleted, &entry) {
                self.list_file(&entry)?;
            }
        }
        Ok(())
    }

    fn list_file(&self, entry: &Entry) -> Result<(), Failure> {
        let (kind, letter) = match &entry.kind {
            Kind::File(_) => ("file", '-'),
            Kind::Dir => ("dir", 'd'),
            Kind::Symlink(_) => ("symlink", 'l'),
            Kind::Hardlink(_) => ("hardlink", 'h'),
            Kind::Fifo => ("fifo", 'p'),
            Kind::Socket => ("socket", 's'),
            Kind::Char(_) => ("char", 'c'),
            Kind::Block(_) => ("block", 'b'),
        };
        let size = match &entry.kind {
            Kind::File(content) => Some(content.size),
            _ => None,
        };
        let mtime = jiff::Timestamp::from_second(entry.mtime.seconds).unwrap_or_default();
        let path = entry.path.to_string();
        if self.ui.is_json() {
            return self.ui.json(&Listed {
                path: &path,
                kind,
                mode: format!("{:04o}", entry.mode),
                size,
                mtime: mtime.to_string(),
            });
        }
        let size = size.map(|size| size.to_string()).unwrap_or_default();
        self.ui.line(&format!(
            "{letter}{:04o} {size:>12} {mtime} {}",
            entry.mode,
            shown(&path)
        ))
    }
}

/// All files at once: one by one it would take longer than to fetch them.
fn sync(tree: Option<&Tree>, dry_run: bool) -> Result<(), Failure> {
    match tree.filter(|_| !dry_run) {
        Some(tree) => tree
            .sync()
            .map_err(|error| Failure::io("what was restored may not be durable", &error)),
        None => Ok(()),
    }
}

/// The process's umask, which can only be read by setting it.
fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    mask.as_raw_mode()
}
