//! `strongroom archive`: stores what changed in directories since the last
//! run, and writes down all there is.
//!
//! A walk in sorted order is merged with the last run's manifest, so memory
//! stays flat; files are stored several at once, and their entries written in
//! order. The files come first, then the manifest, then `latest`, which names
//! it: whatever breaks a run off leaves the last complete one in force, and
//! what was acknowledged is not sent again (docs/archive.md, docs/cron.md).

mod content;
mod entries;
mod known;
mod lock;
mod options;
mod pack;
mod record;
mod remove;
mod report;
mod run;
mod store;
mod walk;

pub(super) use options::ArchiveArgs;

use super::failure::Failure;
use super::ui::Ui;

pub(super) async fn run(ui: &Ui, args: ArchiveArgs) -> Result<(), Failure> {
    let plan = options::Plan::new(args)?;
    run::archive(ui, plan).await
}
