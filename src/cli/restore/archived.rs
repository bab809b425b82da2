//! Objects in archive classes: asking the store for them, and waiting.

use std::time::Duration;

use clap::ValueEnum;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::choose::Archive;
use super::manifest::{Manifest, Plan, takes};
use super::select::Selection;
use crate::api::{self, Availability, Error, ErrorKind};
use crate::cli::failure::{Failure, TEMPORARY};
use crate::cli::ui::Ui;
use crate::client::{Download, GetOptions};
use crate::manifest::Kind;

/// Between the first look at what was asked for and the next; doubles.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// At most: retrieval takes minutes to days.
const SELDOM: Duration = Duration::from_secs(600);

/// How soon archived objects are to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Tier {
    /// Cheapest: 5 to 48 hours
    Bulk,
    /// 3 to 12 hours
    Standard,
    /// Minutes; not for DEEP_ARCHIVE
    Expedited,
}

impl From<Tier> for api::Tier {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Bulk => Self::Bulk,
            Tier::Standard => Self::Standard,
            Tier::Expedited => Self::Expedited,
        }
    }
}

/// Whether and how archived objects are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    pub(super) tier: Option<Tier>,
    pub(super) days: Option<u16>,
    pub(super) wait: bool,
    pub(super) jobs: usize,
}

/// An object that is to be read: its key, and its version.
pub(super) type Wanted = (String, Option<String>);

/// Intervals that grow.
pub(super) struct Patience(Duration);

impl Patience {
    pub(super) fn new() -> Self {
        Self(FIRST_LOOK)
    }

    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(SELDOM);
    }
}

impl Asking {
    /// Begins to read one of an archive's own objects, which may itself be
    /// archived: then it is asked for first.
    pub(super) async fn get(
        &self,
        archive: &Archive,
        below: &str,
        options: &GetOptions,
    ) -> Result<Result<Download, Error>, Failure> {
        let key = archive.key(below);
        let mut patience = Patience::new();
        let mut asked = false;
        loop {
            let error = match archive.client.get(&archive.bucket, &key, options).await {
                Err(error) if error.kind == ErrorKind::Archived => error,
                other => return Ok(other),
            };
            let Some(tier) = self.tier else {
                return Ok(Err(error));
            };
            if !asked {
                let version = options.version_id.as_deref();
                let client = &archive.client;
                let ask = client.ask_for(&archive.bucket, &key, version, tier.into(), self.days);
                if let Err(error) = ask.await {
                    return Ok(Err(error));
                }
                asked = true;
            }
            if !self.wait {
                return Err(Failure::new(
                    TEMPORARY,
                    format!("{} is being restored by the store", archive.place(below)),
                )
                .hint("give the same command again later, or add --wait"));
            }
            patience.wait().await;
        }
    }

    /// Asks for every archived object that a manifest names and a restore
    /// needs, before it waits for any.
    pub(super) async fn ask_all(
        &self,
        ui: &Ui,
        archive: &Archive,
        manifest: &Manifest,
        selection: &Selection,
        plan: &Plan,
        deleted: bool,
    ) -> Result<(), Failure> {
        if self.tier.is_none() {
            return Ok(());
        }
        let mut entries = manifest.entries()?;
        let mut last: Option<Wanted> = None;
        let objects = async || -> Result<Option<Vec<Wanted>>, Failure> {
            while let Some(entry) = entries.next()? {
                let Kind::File(content) = &entry.kind else {
                    continue;
                };
                if !takes(selection, deleted, &entry) && !plan.promoted.contains_key(&entry.path) {
                    continue;
                }
                // The files of a bundle stand together, mostly.
                let object = (archive.key(&content.at.key), content.at.version_id.clone());
                if last.as_ref() != Some(&object) {
                    last = Some(object.clone());
                    return Ok(Some(vec![object]));
                }
            }
            Ok(None)
        };
        self.ask(ui, archive, objects).await
    }

    /// Asks for those of these objects that are archived; the others are left
    /// alone.
    pub(super) async fn ask(
        &self,
        ui: &Ui,
        archive: &Archive,
        mut objects: impl AsyncFnMut() -> Result<Option<Vec<Wanted>>, Failure>,
    ) -> Result<(), Failure> {
        let Some(tier) = self.tier else {
            return Ok(());
        };
        let counter = ui.counter("asking");
        let mut running = FuturesUnordered::new();
        let (mut looked, mut asked, mut under_way) = (0_u64, 0_u64, 0_u64);
        let mut note = |state: Result<api::ArchiveState, Error>| -> Result<(), Failure> {
            let state = match state {
                Ok(state) => state,
                // The restore itself says what is missing.
                Err(error) if error.kind == ErrorKind::NoSuchObject => return Ok(()),
                Err(error) => {
                    let what = format!("cannot ask for what is archived in {}", archive.url());
                    return Err(Failure::api(what, &error));
                }
            };
            looked += 1;
            asked += u64::from(state.asked);
            under_way += u64::from(state.state == Availability::Restoring);
            counter.set(looked);
            Ok(())
        };
        while let Some(some) = objects().await? {
            for (key, version) in some {
                while running.len() >= self.jobs {
                    if let Some(state) = running.next().await {
                        note(state)?;
                    }
                }
                running.push(async move {
                    let client = &archive.client;
                    let version = version.as_deref();
                    let ask =
                        client.ask_for(&archive.bucket, &key, version, tier.into(), self.days);
                    ask.await
                });
            }
        }
        while let Some(state) = running.next().await {
            note(state)?;
        }
        counter.finish();
        if !ui.is_json() && ui.is_verbose() {
            ui.note(&format!(
                "{looked} objects looked at, {asked} asked for now, {under_way} not readable yet"
            ));
        }
        Ok(())
    }
}
