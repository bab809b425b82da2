//! `strongroom catalog`: what this host knows of what it stored.

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::ui::{self, Ui};
use crate::api::{Error, ExportEnd};

#[derive(Args)]
pub(super) struct CatalogArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write all of it as JSON lines to standard output, for another host's `key retire` and for safe keeping
    Export(ExportArgs),
    /// Take the catalogue as it is for good, after the evidence was found to know a newer one
    Accept,
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
        Action::Accept => accept(ui).await,
    }
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
