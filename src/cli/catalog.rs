//! `strongroom catalog`: what this host knows of what it stored.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::failure::{ALTERED, CONFIG, EXISTS, FAILED, Failure};
use super::place::S3Url;
use super::put::{self, StoreArgs};
use super::ui::{self, Ui, shown};
use crate::api::{Error, ExportEnd, RebuildLine, RebuildRequest};
use crate::catalog::{Catalog, CatalogError};
use crate::config::Config;

#[derive(Args)]
pub(super) struct CatalogArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write all of it as JSON lines to standard output, for another host's `key retire` and for safe keeping
    Export(ExportArgs),
    /// Store a copy of it through Strongroom itself, while it is in use
    Backup(BackupArgs),
    /// Put a copy back, with the agent stopped
    Restore(RestoreArgs),
    /// Remember what a bucket has, after the catalogue was lost
    Rebuild(RebuildArgs),
    /// Take the catalogue as it is for good, after the evidence was found to know a newer one
    Accept,
}

#[derive(Args)]
struct BackupArgs {
    /// Where to store it
    #[arg(value_name = "s3://BUCKET/KEY")]
    place: S3Url,
    #[command(flatten)]
    options: StoreArgs,
}

#[derive(Args)]
struct RestoreArgs {
    /// The copy, as `strongroom get` or `strongroom recover` wrote it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Also if the catalogue that is there knows more
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct RebuildArgs {
    /// Where to look
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    place: S3Url,
    /// Believe headers that no token opened: one token call less for each version
    #[arg(long)]
    unverified: bool,
}

#[derive(Args)]
struct ExportArgs {
    /// `-`, standard output: `strongroom put --from-command` stores it
    #[arg(value_name = "-", default_value = "-", value_parser = ["-"])]
    to: String,
}

pub(super) async fn run(ui: &Ui, args: CatalogArgs) -> Result<(), Failure> {
    match args.action {
        Action::Export(ExportArgs { to: _ }) => export(ui).await,
        Action::Backup(args) => backup(ui, args).await,
        Action::Restore(args) => restore(ui, &args),
        Action::Rebuild(args) => rebuild(ui, args).await,
        Action::Accept => accept(ui).await,
    }
}

async fn backup(ui: &Ui, args: BackupArgs) -> Result<(), Failure> {
    let place = args.place.object()?;
    let what = format!("cannot store the catalogue at {place}");
    let client = ui.client();
    let options = args.options.options();
    let stored = client.backup_catalog(&place.bucket, &place.key, &options);
    let receipt = stored.await.map_err(|e| Failure::api(&what, &e))?;
    put::report(ui, &receipt)
}

fn restore(ui: &Ui, args: &RestoreArgs) -> Result<(), Failure> {
    let path = ui.config();
    let config = Config::load(&path)
        .map_err(|error| Failure::new(CONFIG, format!("cannot restore: {}", error.message)))?;
    let socket = ui.socket(Some(&config.agent.socket));
    if UnixStream::connect(&socket).is_ok() {
        return Err(Failure::new(
            FAILED,
            "cannot restore: the agent runs, and uses the catalogue",
        )
        .hint("stop it first: systemctl stop strongroom"));
    }
    let restored = Catalog::restore(&config.agent.state_dir, &args.file, args.force);
    let restored = restored.map_err(|error| {
        let code = match &error {
            CatalogError::NewerThere { .. } => EXISTS,
            CatalogError::Corrupt { .. } | CatalogError::NotOurs { .. } => ALTERED,
            _ => FAILED,
        };
        Failure::new(code, format!("cannot restore: {error}")).hint(error.hint())
    })?;
    if ui.is_json() {
        return ui.json(&serde_json::json!({
            "changes": restored.changes,
            "receipts": restored.receipts,
            "replaced_changes": restored.replaced,
            "kept": restored.kept,
        }));
    }
    ui.line(&format!(
        "restored a catalogue of {} receipts after {} changes",
        restored.receipts, restored.changes
    ))?;
    if let Some(kept) = &restored.kept {
        ui.line(&format!(
            "the one that was there is {}",
            shown(&kept.display().to_string())
        ))?;
    }
    ui.line("lost: every receipt and deletion since the copy was made, the counts of wraps (rotate the keys), uploads and queued objects under way")?;
    ui.line("then: start the agent, `strongroom catalog rebuild` for each bucket, `strongroom verify`, and `strongroom catalog accept` if that is right")
}

async fn rebuild(ui: &Ui, args: RebuildArgs) -> Result<(), Failure> {
    let place = &args.place;
    let what = format!("cannot rebuild the catalogue from {place}");
    let failed = |error: &Error| Failure::api(&what, error);
    let request = RebuildRequest {
        bucket: place.bucket.clone(),
        prefix: place.key.clone(),
        unverified: args.unverified,
    };
    let lines = ui.client().rebuild_catalog(&request).await;
    let mut lines = lines.map_err(|e| failed(&e))?;
    let bar = ui.counter(&place.to_string());
    let mut summary = None;
    while let Some(line) = lines.next().await.map_err(|e| failed(&e))? {
        match line {
            RebuildLine::Progress { listed } => bar.set(listed),
            RebuildLine::Object(object) if ui.is_json() => ui.json(&object)?,
            RebuildLine::Object(object) => {
                let at = shown(&format!("s3://{}/{}", object.bucket, object.key));
                let text = format!("{}: {at}: {}", object.result, shown(&object.detail));
                bar.print(|| ui.line(&text))?;
            }
            RebuildLine::Problem(problem) => return Err(failed(&problem.into())),
            RebuildLine::Summary(sum) => summary = Some(sum),
        }
    }
    bar.finish();
    let sum = summary
        .ok_or_else(|| Failure::new(FAILED, format!("{what}: the agent's answer broke off")))?;
    if ui.is_json() {
        return ui.json(&sum);
    }
    ui.line(&format!(
        "{place}: {} versions, {} remembered as first seen now, {} known, {} not remembered",
        sum.listed, sum.recorded, sum.known, sum.refused
    ))?;
    ui.line("a bucket does not tell: what was deleted or rolled back before now, checksums that its store keeps to itself, and what other buckets have")
}

async fn accept(ui: &Ui) -> Result<(), Failure> {
    let accepted = ui.client().accept_catalog().await;
    let accepted = accepted.map_err(|e| Failure::api("cannot accept the catalogue", &e))?;
    if ui.is_json() {
        return ui.json(&accepted);
    }
    match accepted["accepted"].as_str() {
        Some(why) => ui.line(&format!("accepted, although {why}")),
        None => ui.done("nothing was known against the catalogue"),
    }
}

async fn export(ui: &Ui) -> Result<(), Failure> {
    let failed = |error: &Error| Failure::api("cannot export the catalogue", error);
    let mut lines = ui.client().catalog().await.map_err(|e| failed(&e))?;
    let mut last = None;
    while let Some(line) = lines.next_line().await.map_err(|e| failed(&e))? {
        if let Some(before) = last.replace(line) {
            write(&before)?;
        }
    }
    // Without its last line it is not whole, and is not made to look so.
    let whole = last.filter(|line| serde_json::from_slice::<ExportEnd>(line).is_ok());
    match whole {
        Some(line) => write(&line),
        None => Err(Failure::new(
            1,
            "cannot export the catalogue: the agent's answer broke off",
        )
        .hint("`strongroom status` says how the agent is")),
    }
}

fn write(line: &[u8]) -> Result<(), Failure> {
    ui::stdout(|out| {
        out.write_all(line)?;
        out.write_all(b"\n")
    })
}
