//! `strongroom evidence`: the auditor's report, made by the agent; written as
//! JSON and as a page, and checked again later.

mod charts;
mod html;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{ALTERED, Failure};
use super::ui::Ui;
use crate::api::Evidence;
use crate::audit::PublicKey;
use crate::evidence::{self, Period};

#[derive(Args)]
pub(super) struct EvidenceArgs {
    /// From this date or RFC 3339 instant on [default: 30 days before --to]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// To this date or instant, exclusive [default: now]
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Write the report as JSON to this file, or `-` [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the report as an HTML page to this file, or `-`
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Check a report that was written before, instead of making one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to"])]
    check: Option<PathBuf>,
    /// With --check: the public key (PEM) that must have signed it
    #[arg(long, value_name = "FILE", requires = "check")]
    key: Option<PathBuf>,
}

pub(super) async fn run(ui: &Ui, args: EvidenceArgs) -> Result<(), Failure> {
    let evidence = match &args.check {
        Some(file) => check(ui, file, args.key.as_deref())?,
        None => {
            let period =
                Period::parse(args.from.as_deref(), args.to.as_deref()).map_err(Failure::usage)?;
            ui.client()
                .evidence(&period.from, &period.to)
                .await
                .map_err(|error| Failure::api("cannot make the report", &error))?
        }
    };
    if let Some(path) = &args.html {
        write(ui, path, &html::page(&evidence))?;
    }
    if let Some(path) = &args.out {
        write(ui, path, &json(&evidence)?)?;
    } else if args.check.is_none() && args.html.is_none() {
        ui.line(json(&evidence)?.trim_end())?;
    }
    if args.check.is_none() && evidence.note.is_none() {
        ui.note(&format!(
            "the report is not signed: {}",
            evidence.unsigned.as_deref().unwrap_or("no reason is given")
        ));
    }
    Ok(())
}

fn json(evidence: &Evidence) -> Result<String, Failure> {
    serde_json::to_string_pretty(evidence)
        .map(|text| text + "\n")
        .map_err(|error| Failure::new(1, format!("cannot write JSON: {error}")))
}

/// A file appears whole or not at all.
fn write(ui: &Ui, path: &Path, text: &str) -> Result<(), Failure> {
    if path == Path::new("-") {
        return ui.line(text.trim_end());
    }
    let failed =
        |error: &std::io::Error| Failure::io(format!("cannot write {}", path.display()), error);
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".evidence")
        .tempfile_in(dir)
        .map_err(|error| failed(&error))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(|error| failed(&error))?;
    file.persist(path).map_err(|error| failed(&error.error))?;
    ui.done(&format!("wrote {}", path.display()))
}

fn check(ui: &Ui, file: &Path, key: Option<&Path>) -> Result<Evidence, Failure> {
    let cannot =
        |path: &Path, why: &str| Failure::new(1, format!("cannot read {}: {why}", path.display()));
    let text = std::fs::read_to_string(file).map_err(|error| cannot(file, &error.to_string()))?;
    let evidence: Evidence =
        serde_json::from_str(&text).map_err(|error| cannot(file, &error.to_string()))?;
    let pinned = key
        .map(|path| PublicKey::read(path).map_err(|why| cannot(path, &why)))
        .transpose()?;
    match evidence::check(&evidence, pinned.as_ref()) {
        Ok(()) if pinned.is_some() => {
            ui.line("the report is as it was signed, by the key given")?
        }
        Ok(()) => {
            ui.line("the report is as it was signed")?;
            ui.note("whose key signed it is not proven: give the auditor's with --key");
        }
        Err(why) => {
            return Err(Failure::new(
                ALTERED,
                format!("{} is not what was signed: {why}", file.display()),
            ));
        }
    }
    Ok(evidence)
}
