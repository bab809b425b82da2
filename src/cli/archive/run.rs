//! A run from start to finish.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::sync::Semaphore;

use super::content::Pace;
use super::entries::{self, Names};
use super::known::Known;
use super::lock::Lock;
use super::options::Plan;
use super::pack::Packer;
use super::record::Recorder;
use super::remove;
use super::report::Report;
use super::store::{self, Outcome, Shared};
use super::walk::{self, Found, Step};
use crate::cli::failure::{FAILED, Failure};
use crate::cli::ui::Ui;
use crate::manifest::{Entry, Head, Kind, RelPath, RunId};

/// Things found and not yet written down, at most: they wait for what came
/// before them. Ours: some 16 MiB.
const MAX_PENDING: usize = 16_384;
/// Files with several names that are watched for their other names, at most;
/// beyond, each name is stored as a file of its own. Ours: some 100 MiB.
const MAX_LINKS: usize = 500_000;

pub(super) async fn archive(ui: &Ui, plan: Plan) -> Result<(), Failure> {
    let roots = walk::roots(&plan)?;
    // Held to the end; a dry run changes nothing that another could mind.
    let lock = if plan.dry_run {
        None
    } else {
        Some(Lock::take(&plan, &ui.socket(None))?)
    };
    let (journal, killed) = match &lock {
        Some(lock) => {
            let (journal, entries) = lock.journal(&plan);
            (Some(journal), entries)
        }
        None => (None, Vec::new()),
    };
    let started = jiff::Timestamp::now();
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| Failure::new(FAILED, error.to_string()))?;
    let run = RunId::new(started, u32::from_be_bytes(random));
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let head = Head::new(
        run.clone(),
        started,
        host,
        walk::described(&roots),
        plan.bucket.clone(),
        plan.prefix.clone(),
    );
    let client = ui.client();
    let known = if plan.full {
        Known::nothing()
    } else {
        Known::fetch(&client, &plan, &head, killed).await?
    };
    let mut report = Report::new(ui, &plan, run.to_string());
    let recorder = Recorder::new(&head, started, known.carried_file()?, plan.checkpoint)?;
    let steps = walk::start(&plan, &roots)?;
    let shared = Arc::new(Shared {
        client,
        run,
        names: Names::default(),
        pace: plan.bytes_per_second.map(|rate| Arc::new(Pace::new(rate))),
        permits: Semaphore::new(plan.jobs),
        journal,
        plan,
    });
    let packer =
        (shared.plan.bundle_max.is_some() && !shared.plan.dry_run).then(|| Packer::start(&shared));
    let mut merge = Merge {
        ui,
        shared: Arc::clone(&shared),
        known,
        packer,
        recorder,
        report: &mut report,
        pending: FuturesOrdered::new(),
        links: HashMap::new(),
        lost: HashMap::new(),
        unreadable: None,
        previous: HashMap::new(),
    };
    merge.all(steps).await?;
    let recorder = merge.recorder;
    let counts = recorder.counts();
    if !shared.plan.dry_run {
        let manifest = recorder.finish(&shared).await?;
        if shared.plan.delete_after {
            remove::remove(ui, &shared, &roots, &manifest, &mut report).await?;
        }
    }
    report.end(ui, &shared.plan, counts)
}

type Pending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The walk, merged with what is known, on its way into the manifest.
struct Merge<'a> {
    ui: &'a Ui,
    shared: Arc<Shared>,
    known: Known,
    packer: Option<Packer>,
    recorder: Recorder,
    report: &'a mut Report,
    /// What is being done, in path order.
    pending: FuturesOrdered<Pending>,
    /// First names of files that have more, by device and inode.
    links: HashMap<(u64, u64), (RelPath, u64)>,
    /// Files that did not make it into the manifest, and whether that is a
    /// failure.
    lost: HashMap<RelPath, bool>,
    /// A directory that could not be read: what is known below it stays.
    unreadable: Option<RelPath>,
    /// How an earlier run found what is pending: kept if it cannot be stored.
    previous: HashMap<RelPath, Entry>,
}

impl Merge<'_> {
    async fn all(&mut self, mut steps: tokio::sync::mpsc::Receiver<Step>) -> Result<(), Failure> {
        loop {
            if self.pending.len() >= MAX_PENDING {
                if let Some(packer) = &self.packer {
                    packer.flush().await;
                }
                while self.pending.len() >= MAX_PENDING / 2 {
                    self.one_done().await?;
                }
            }
            tokio::select! {
                biased;
                Some(outcome) = self.pending.next(), if !self.pending.is_empty() => {
                    self.done(outcome).await?;
                }
                step = steps.recv() => match step {
                    Some(Step::Found(found)) => self.found(found).await?,
                    Some(Step::Problem(path, failure)) => self.problem(path, failure)?,
                    None => break,
                }
            }
        }
        self.passed(None)?;
        if let Some(packer) = self.packer.take() {
            packer.flush().await;
        }
        while !self.pending.is_empty() {
            self.one_done().await?;
        }
        Ok(())
    }

    async fn one_done(&mut self) -> Result<(), Failure> {
        match self.pending.next().await {
            Some(outcome) => self.done(outcome).await,
            None => Ok(()),
        }
    }

    /// What lies before `path` in earlier manifests and was not found now:
    /// deleted here meanwhile, by the user (and so from this manifest), or by
    /// a run that had stored it (and so it stays).
    fn passed(&mut self, path: Option<&RelPath>) -> Result<Vec<Entry>, Failure> {
        while let Some(entries) = self.known.next_until(path)? {
            let Some(newest) = entries.first() else {
                continue;
            };
            if path == Some(&newest.path) {
                return Ok(entries);
            }
            let unread = self.unreadable.as_ref();
            if newest.deleted.is_some() {
                self.push_ready(Outcome::Kept(Box::new(newest.clone())));
            } else if unread.is_some_and(|directory| newest.path.is_within(directory)) {
                let entry = newest.clone();
                self.push_ready(stale(entry, "its directory could not be read"));
            }
        }
        Ok(Vec::new())
    }

    fn push_ready(&mut self, outcome: Outcome) {
        self.pending
            .push_back(Box::pin(std::future::ready(outcome)));
    }

    fn problem(&mut self, path: Option<RelPath>, failure: Failure) -> Result<(), Failure> {
        self.report.problem(self.ui, &failure)?;
        if let Some(path) = path {
            // A directory itself was found before; anything else was not.
            let known = self.passed(Some(&path))?;
            if let Some(newest) = known.into_iter().next() {
                self.push_ready(stale(newest, "it could not be looked at"));
            }
            self.unreadable = Some(path);
        }
        Ok(())
    }

    async fn found(&mut self, found: Found) -> Result<(), Failure> {
        let known = self.passed(Some(&found.path))?;
        // An earlier run's word counts only as long as it was about this.
        let live = known
            .iter()
            .find(|entry| entries::is_unchanged(&found, entry));
        let kind = found.meta.file_type();
        if !kind.is_file() {
            let outcome = match live {
                Some(entry) => {
                    let mut entry = entry.clone();
                    entry.deleted = None;
                    Outcome::Kept(Box::new(entry))
                }
                None => {
                    self.spawn(store::describe(Arc::clone(&self.shared), found));
                    return Ok(());
                }
            };
            self.push_ready(outcome);
            return Ok(());
        }
        if let Some(first) = self.other_name(&found) {
            let entry = entries::hardlink(&found, first, &self.shared.names);
            self.push_ready(Outcome::Kept(Box::new(entry)));
            return Ok(());
        }
        let plan = &self.shared.plan;
        if let Some(entry) = live
            && !plan.checksum
        {
            let outcome = self.shared.keep(&found, entry);
            self.push_ready(outcome);
            return Ok(());
        }
        if let Some(previous) = known
            .iter()
            .find(|entry| matches!(entry.kind, Kind::File(_)))
        {
            self.previous.insert(found.path.clone(), previous.clone());
        }
        if plan.min_age.is_some_and(|age| is_young(&found, age)) {
            let outcome = Outcome::Later(found.path, "it changed too lately");
            self.push_ready(outcome);
            return Ok(());
        }
        let before = known
            .into_iter()
            .find(|entry| entries::may_be_same(&found, entry));
        if plan.dry_run {
            return self.would(&found, before);
        }
        match &self.packer {
            Some(packer) if plan.bundle_max.is_some_and(|most| found.meta.len() <= most) => {
                let stored = packer.add(found, before).await;
                self.pending.push_back(Box::pin(stored));
            }
            _ => self.spawn(store::file(Arc::clone(&self.shared), found, before)),
        }
        Ok(())
    }

    fn would(&mut self, found: &Found, before: Option<Entry>) -> Result<(), Failure> {
        self.previous.remove(&found.path);
        if before.is_none() {
            let bytes = found.meta.len();
            self.report.would_store(self.ui, &found.path, bytes)?;
        }
        self.push_ready(Outcome::Gone(found.path.clone()));
        Ok(())
    }

    fn spawn(&mut self, work: impl Future<Output = Outcome> + Send + 'static) {
        let task = tokio::spawn(work);
        self.pending.push_back(Box::pin(async move {
            task.await.unwrap_or_else(|_| {
                Outcome::Stop(Failure::new(FAILED, "a file's task ended abnormally"))
            })
        }));
    }

    /// The name under which a file with several came first.
    fn other_name(&mut self, found: &Found) -> Option<RelPath> {
        let names = found.meta.nlink();
        if names < 2 {
            return None;
        }
        let id = (found.meta.dev(), found.meta.ino());
        if let Some((first, left)) = self.links.get_mut(&id) {
            let first = first.clone();
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.links.remove(&id);
            }
            return Some(first);
        }
        if self.links.len() < MAX_LINKS {
            self.links.insert(id, (found.path.clone(), names - 1));
        }
        None
    }

    async fn done(&mut self, outcome: Outcome) -> Result<(), Failure> {
        match outcome {
            Outcome::Kept(entry) => {
                let first = match &entry.kind {
                    Kind::Hardlink(first) => self.lost.get(first),
                    _ => None,
                };
                if first == Some(&false) {
                    let why = "it is another name of a file that was left";
                    return self.report.left(self.ui, &entry.path, why);
                }
                if first.is_some() {
                    let failure = Failure::new(
                        FAILED,
                        format!(
                            "cannot archive {}: it is another name of a file that could not be stored",
                            crate::cli::ui::shown(&entry.path.to_string())
                        ),
                    );
                    return self.report.problem(self.ui, &failure);
                }
                self.record(&entry, false)?;
            }
            Outcome::Stored(entry) => {
                self.report.stored(self.ui, &entry)?;
                self.record(&entry, true)?;
                if let Some(journal) = &self.shared.journal {
                    journal.recorded(&entry.path);
                }
            }
            Outcome::Later(path, why) => {
                self.report.left(self.ui, &path, why)?;
                self.keep_previous(path, why, false)?;
            }
            Outcome::Problem(path, failure) => {
                self.report.problem(self.ui, &failure)?;
                let (why, _) = failure.parts();
                self.keep_previous(path, why, true)?;
            }
            Outcome::Gone(path) => {
                self.previous.remove(&path);
                self.lose(path, false);
            }
            Outcome::Stop(failure) => return Err(failure),
        }
        if self.shared.plan.dry_run {
            return Ok(());
        }
        self.recorder.checkpoint(&self.shared).await
    }

    fn record(&mut self, entry: &Entry, is_new: bool) -> Result<(), Failure> {
        self.previous.remove(&entry.path);
        self.recorder.entry(entry, is_new)?;
        self.report.at(self.recorder.counts());
        Ok(())
    }

    /// What may come as another name of it has no content to refer to.
    fn lose(&mut self, path: RelPath, is_failure: bool) {
        if self.lost.len() < MAX_LINKS {
            self.lost.insert(path, is_failure);
        }
    }

    /// The entry of an earlier run, where this one could not store the file.
    fn keep_previous(&mut self, path: RelPath, why: &str, is_failure: bool) -> Result<(), Failure> {
        match self.previous.remove(&path) {
            Some(mut entry) => {
                entry.deleted = None;
                // Bounded as the manifest's reader wants it.
                entry.stale = Some(why.chars().take(200).collect());
                self.recorder.entry(&entry, false)
            }
            None => {
                self.lose(path, is_failure);
                Ok(())
            }
        }
    }
}

/// How an earlier run found it.
fn stale(mut entry: Entry, why: &str) -> Outcome {
    entry.stale = Some(why.to_owned());
    Outcome::Kept(Box::new(entry))
}

/// Whether a file changed within `age`, by what no user can set.
fn is_young(found: &Found, age: Duration) -> bool {
    let Some(then) = u64::try_from(found.meta.ctime())
        .ok()
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
    else {
        return false;
    };
    // A clock that was set back makes no file young for ever.
    SystemTime::now()
        .duration_since(then)
        .is_ok_and(|passed| passed < age)
}
