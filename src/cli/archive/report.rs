//! What a run did: events as JSON lines, a summary for people, a report to be
//! mailed.

use std::fmt::Write as _;
use std::time::Instant;

use serde::Serialize;

use super::options::Plan;
use crate::cli::failure::{FAILED, Failure};
use crate::cli::progress::Counter;
use crate::cli::ui::{Ui, shown, size};
use crate::manifest::{Counts, Entry, Kind, RelPath};

/// Problems that are told one by one, at most: a report is to be read.
const MAX_PROBLEMS: u64 = 100;

/// Counts what a run does.
pub(super) struct Report {
    progress: Counter,
    begun: Instant,
    summary: Summary,
    problems: Vec<String>,
}

#[derive(Default, Serialize)]
struct Summary {
    event: &'static str,
    run: String,
    place: String,
    entries: u64,
    files: u64,
    bytes: u64,
    stored: u64,
    stored_bytes: u64,
    left: u64,
    deleted: u64,
    problems: u64,
    seconds: f64,
    dry_run: bool,
}

/// A path of a JSON line: text, bytes that are not UTF-8 replaced.
#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

impl Report {
    pub(super) fn new(ui: &Ui, plan: &Plan, run: String) -> Self {
        Self {
            progress: ui.counter("archiving"),
            begun: Instant::now(),
            summary: Summary {
                event: "summary",
                run,
                place: plan.place().to_string(),
                dry_run: plan.dry_run,
                ..Summary::default()
            },
            problems: Vec::new(),
        }
    }

    /// So many entries are written down.
    pub(super) fn at(&self, counts: Counts) {
        self.progress.set(counts.entries);
    }

    /// A file was stored.
    pub(super) fn stored(&mut self, ui: &Ui, entry: &Entry) -> Result<(), Failure> {
        let bytes = match &entry.kind {
            Kind::File(content) => content.size,
            _ => 0,
        };
        self.summary.stored += 1;
        self.summary.stored_bytes += bytes;
        self.event(ui, "stored", &entry.path, Some(bytes), None)
    }

    /// A file would be stored.
    pub(super) fn would_store(
        &mut self,
        ui: &Ui,
        path: &RelPath,
        bytes: u64,
    ) -> Result<(), Failure> {
        self.summary.stored += 1;
        self.summary.stored_bytes += bytes;
        if ui.is_json() {
            return self.event(ui, "would-store", path, Some(bytes), None);
        }
        let line = format!("would store {} ({})", shown(&path.to_string()), size(bytes));
        self.progress.print(|| ui.line(&line))
    }

    /// A file was left to the next run.
    pub(super) fn left(&mut self, ui: &Ui, path: &RelPath, why: &str) -> Result<(), Failure> {
        self.summary.left += 1;
        self.event(ui, "left", path, None, Some(why))
    }

    /// A file was deleted here.
    pub(super) fn deleted(&mut self, ui: &Ui, entry: &Entry) -> Result<(), Failure> {
        self.summary.deleted += 1;
        self.event(ui, "deleted", &entry.path, None, None)
    }

    /// Something is not archived as it is now.
    pub(super) fn problem(&mut self, ui: &Ui, failure: &Failure) -> Result<(), Failure> {
        self.summary.problems += 1;
        if self.summary.problems > MAX_PROBLEMS {
            return Ok(());
        }
        self.progress.print(|| failure.report());
        let (what, hint) = failure.parts();
        self.problems.push(what.to_owned());
        if ui.is_json() {
            ui.json(&serde_json::json!({ "event": "problem", "why": what, "hint": hint }))?;
        }
        Ok(())
    }

    fn event(
        &self,
        ui: &Ui,
        event: &'static str,
        path: &RelPath,
        bytes: Option<u64>,
        why: Option<&str>,
    ) -> Result<(), Failure> {
        if ui.is_json() {
            return ui.json(&Event {
                event,
                path: path.to_string(),
                size: bytes,
                why,
            });
        }
        if ui.is_verbose() {
            let path = shown(&path.to_string());
            let line = match why {
                Some(why) => format!("{event} {path}: {why}"),
                None => format!("{event} {path}"),
            };
            return self.progress.print(|| ui.line(&line));
        }
        Ok(())
    }

    /// Tells how the run went.
    pub(super) fn end(mut self, ui: &Ui, plan: &Plan, counts: Counts) -> Result<(), Failure> {
        self.progress.finish();
        self.summary.entries = counts.entries;
        self.summary.files = counts.files;
        self.summary.bytes = counts.bytes;
        self.summary.seconds = self.begun.elapsed().as_secs_f64();
        if let Some(path) = &plan.report {
            let text = self.text(plan);
            if path.as_os_str() == "-" {
                ui.line(text.trim_end())?;
            } else {
                std::fs::write(path, text).map_err(|error| {
                    Failure::io(format!("cannot write {}", path.display()), &error)
                })?;
            }
        }
        if ui.is_json() {
            ui.json(&self.summary)?;
        } else {
            ui.done(&self.line())?;
        }
        if self.summary.problems > MAX_PROBLEMS {
            ui.note(&format!(
                "and {} more problems",
                self.summary.problems - MAX_PROBLEMS
            ));
        }
        if self.summary.problems > 0 {
            return Err(Failure::silent(FAILED));
        }
        Ok(())
    }

    fn line(&self) -> String {
        let sum = &self.summary;
        let mut line = format!(
            "{} {}: {} of {} files, {} of {}",
            if sum.dry_run {
                "would archive to"
            } else {
                "archived to"
            },
            sum.place,
            sum.stored,
            sum.files,
            size(sum.stored_bytes),
            size(sum.bytes)
        );
        for (count, what) in [
            (sum.left, "left to a later run"),
            (sum.deleted, "deleted here"),
            (sum.problems, "problems"),
        ] {
            if count > 0 {
                let _ = write!(line, "; {count} {what}");
            }
        }
        line
    }

    /// At most a screen of text, however much was done.
    fn text(&self, plan: &Plan) -> String {
        let sum = &self.summary;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<12}{value}");
        };
        line("archive", sum.place.clone());
        line("run", sum.run.clone());
        for dir in &plan.dirs {
            line("from", shown(&dir.display().to_string()));
        }
        line(
            "in all",
            format!("{} files, {}", sum.files, size(sum.bytes)),
        );
        if sum.stored == 0 {
            line("stored", "nothing new".to_owned());
        } else {
            let rate = sum.stored_bytes as f64 / sum.seconds.max(0.001);
            line(
                "stored",
                format!(
                    "{} files, {}, {} bytes a second",
                    sum.stored,
                    size(sum.stored_bytes),
                    rate.round()
                ),
            );
        }
        for (count, name, what) in [
            (sum.left, "left", "files that changed too lately"),
            (sum.deleted, "deleted", "files here, each read back first"),
        ] {
            if count > 0 {
                line(name, format!("{count} {what}"));
            }
        }
        line("took", format!("{:.0} s", sum.seconds));
        line(
            "problems",
            if sum.problems == 0 {
                "none".to_owned()
            } else {
                sum.problems.to_string()
            },
        );
        for problem in &self.problems {
            let _ = writeln!(text, "  {problem}");
        }
        text
    }
}
