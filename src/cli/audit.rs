//! `strongroom audit`: verify the log, look at its end, export a span of it.
//! All of it reads files; no agent is needed.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::failure::{ALTERED, Failure};
use super::ui::{Ui, shown, stdout};
use crate::audit::{
    self, AnchorFiles, Event, Files, Phase, PublicKey, Record, Report, Signatures, Verdict,
};
use crate::config::Config;

/// How often `tail -f` looks.
const FOLLOW: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Check that the log is the one that was written
    Verify(VerifyArgs),
    /// Show the last records
    Tail(TailArgs),
    /// Write records with proofs that they are in the log
    Export(ExportArgs),
}

#[derive(Args)]
struct Dir {
    /// The log's directory, or a copy of it [default: the configuration's]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Args)]
#[command(
    after_help = "Without --anchor the log is not proven against the operator of this host; without\n--key its signatures are not proven to be the auditor's key's. Fetch the anchored\ncheckpoints with credentials of your own:\n  aws s3 cp --recursive s3://BUCKET/PREFIX/ DIR"
)]
struct VerifyArgs {
    #[command(flatten)]
    dir: Dir,
    /// Anchored checkpoints: a file, or a directory that they were fetched to
    #[arg(long, value_name = "FILE|DIR")]
    anchor: Option<String>,
    /// The audit key's public half (PEM), from a source that you trust
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Check this export instead of the log
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dir", "anchor"])]
    export: Option<PathBuf>,
}

#[derive(Args)]
struct TailArgs {
    #[command(flatten)]
    dir: Dir,
    /// How many
    #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
    lines: usize,
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
}

#[derive(Args)]
struct ExportArgs {
    #[command(flatten)]
    dir: Dir,
    /// From this day or instant on (2026-01-31, or RFC 3339) [default: the beginning]
    #[arg(long, value_name = "TIME", value_parser = instant)]
    from: Option<Timestamp>,
    /// Up to and without this day or instant [default: the end]
    #[arg(long, value_name = "TIME", value_parser = instant)]
    to: Option<Timestamp>,
    /// Where to [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) async fn run(ui: &Ui, args: AuditArgs) -> Result<(), Failure> {
    match args.action {
        Action::Verify(args) => match &args.export {
            Some(export) => verify_export(ui, export, args.key.as_deref()),
            None => verify(ui, &args),
        },
        Action::Tail(args) => tail(ui, &args).await,
        Action::Export(args) => export(ui, &args),
    }
}

impl Dir {
    fn path(&self, ui: &Ui) -> Result<PathBuf, Failure> {
        match &self.dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(Config::load(&ui.config())?.audit_dir()),
        }
    }

    fn files(&self, ui: &Ui) -> Result<Files, Failure> {
        let dir = self.path(ui)?;
        Files::of(&dir).map_err(|error| unreadable(&dir, &error))
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::io(format!("cannot read {}", path.display()), error)
}

fn pinned(path: Option<&Path>) -> Result<Option<PublicKey>, Failure> {
    let read = |path: &Path| {
        PublicKey::read(path)
            .map_err(|why| Failure::usage(format!("cannot use the key {}: {why}", path.display())))
    };
    path.map(read).transpose()
}

fn verify(ui: &Ui, args: &VerifyArgs) -> Result<(), Failure> {
    let key = pinned(args.key.as_deref())?;
    let anchor = match args.anchor.as_deref() {
        None => None,
        Some(url) if url.starts_with("s3://") => {
            return Err(Failure::usage(format!(
                "--anchor {url}: an anchor that this host fetches proves nothing against this host"
            ))
            .hint(format!(
                "with credentials of your own: `aws s3 cp --recursive {url} DIR`, then --anchor DIR"
            )));
        }
        Some(path) => {
            let path = Path::new(path);
            let read = AnchorFiles::read(path);
            Some(read.map_err(|error| unreadable(path, &error))?)
        }
    };
    let files = args.dir.files(ui)?;
    let report = audit::verify(&files, anchor.as_ref(), key.as_ref())
        .map_err(|error| Failure::io("cannot read the log", &error))?;
    if ui.is_json() {
        ui.json(&Told::of(&report))?;
    } else {
        ui.line(&text(&report))?;
    }
    match report.is_fine() {
        true => Ok(()),
        // The text above says it all.
        false => Err(Failure::silent(ALTERED)),
    }
}

/// A report with its one word.
#[derive(serde::Serialize)]
struct Told<'a> {
    verdict: Verdict,
    fine: bool,
    #[serde(flatten)]
    report: &'a Report,
}

impl<'a> Told<'a> {
    fn of(report: &'a Report) -> Self {
        Self {
            verdict: report.verdict(),
            fine: report.is_fine(),
            report,
        }
    }
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| lines.push(format!("{name:<11} {text}"));
    line(
        "verdict",
        match report.verdict() {
            Verdict::Verified => "verified: every record, up to a clean stop".to_owned(),
            Verdict::UnanchoredTail => "unanchored tail: verified up to the anchor; nothing but this host speaks for what follows".to_owned(),
            Verdict::NotProven => "consistent in itself, and not proven against the operator".to_owned(),
            Verdict::Altered => "ALTERED: this is not the log that was written".to_owned(),
        },
    );
    if let Some(fault) = &report.fault {
        line("fault", shown(&fault.to_string()));
    }
    for fault in &report.further {
        line("also", shown(&fault.to_string()));
    }
    line("log", shown(&report.origin));
    let span = report.time.as_ref();
    let span = span.map_or_else(String::new, |[a, b]| {
        format!(", {} to {}", shown(a), shown(b))
    });
    line(
        "records",
        format!("{} in {} files{span}", report.records, report.segments),
    );
    line(
        "checkpoints",
        format!(
            "{}, the last over {} records; {}",
            report.checkpoints,
            report.covered,
            match report.signatures {
                Signatures::Proven => "signed by the pinned key",
                Signatures::NotPinned =>
                    "signed, but not proven to be by the auditor's key: give it with --key",
                Signatures::None => "unsigned: a self-check only",
            }
        ),
    );
    if !report.stated.is_empty() {
        line("it states", shown(&report.stated.join("; ")));
    }
    line(
        "anchor",
        match (report.anchor_given, report.anchored) {
            (false, _) => "none given: not proven against the operator".to_owned(),
            (true, None) => "holds nothing of this log".to_owned(),
            (true, Some(size)) => {
                format!(
                    "{} checkpoints, the last over {size} records",
                    report.anchors
                )
            }
        },
    );
    if let Some(tail) = &report.tail {
        let missing = tail.missing.map_or_else(String::new, |n| {
            format!(" and {n} MISSING that this host's own checkpoints know of")
        });
        line(
            "tail",
            format!(
                "unanchored tail: {} records from {} on{missing}; more may have been cut off",
                tail.records, tail.from
            ),
        );
    }
    if !report.open.is_empty() {
        line(
            "open",
            format!("{} operations without an end", report.open.len()),
        );
    }
    for warning in &report.warnings {
        line("note", shown(warning));
    }
    lines.join("\n")
}

fn verify_export(ui: &Ui, path: &Path, key: Option<&Path>) -> Result<(), Failure> {
    let key = pinned(key)?;
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    let found = audit::check_export(&text, key.as_ref());
    if ui.is_json() {
        ui.json(&found)?;
    } else {
        let signed = match found.signed {
            true => "signed by the pinned key",
            false => "not proven to be signed by the auditor's key: give it with --key",
        };
        ui.line(&format!(
            "{}\n{} records are in the tree of {} records; {} are not covered yet; the checkpoint is {signed}",
            shown(&found.origin),
            found.proven, found.size, found.uncovered
        ))?;
    }
    match found.fault {
        None => Ok(()),
        Some((line, why)) => Err(Failure::new(
            ALTERED,
            format!("the export is altered: line {line}: {}", shown(&why)),
        )),
    }
}

async fn tail(ui: &Ui, args: &TailArgs) -> Result<(), Failure> {
    let dir = args.dir.path(ui)?;
    let mut after = None;
    loop {
        let lines = audit::tail(&dir, args.lines, after).map_err(|e| unreadable(&dir, &e))?;
        for (seq, line) in lines {
            after = Some(seq);
            match ui.is_json() {
                true => ui.line(&line)?,
                false => ui.line(&human(&line))?,
            }
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW).await;
    }
}

/// A record in one line.
fn human(line: &str) -> String {
    let Ok(Record { head, event }) = serde_json::from_str::<Record>(line) else {
        return shown(line);
    };
    let kind = word(&event.event);
    let phase = match event.phase {
        Some(Phase::Begin) => " begins",
        Some(Phase::End) => " ends",
        None => "",
    };
    let mut text = format!("{} {} {kind}{phase}", head.seq, head.time);
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!(" {name}{}", shown(&value)));
        }
    };
    let Event {
        peer, bucket, key, ..
    } = event;
    add("uid=", peer.map(|peer| peer.uid.to_string()));
    add(
        "",
        bucket.map(|b| format!("s3://{b}/{}", key.unwrap_or_default())),
    );
    add("token=", event.token);
    add("key=", event.wrapping_key);
    add("state=", event.state);
    add("result=", event.result);
    add(
        "",
        event.verified.map(|found| {
            let [listed, good, bad] = [found.listed, found.good, found.bad];
            format!(
                "level={} listed={listed} good={good} bad={bad}",
                found.level
            )
        }),
    );
    add("TAMPER", event.tamper.then(String::new));
    add("", event.detail);
    text
}

/// A kind's word in the log.
fn word(kind: &audit::Kind) -> String {
    let text = serde_json::to_string(kind).unwrap_or_default();
    text.trim_matches('"').to_owned()
}

fn export(ui: &Ui, args: &ExportArgs) -> Result<(), Failure> {
    let files = args.dir.files(ui)?;
    let write = |out: &mut dyn io::Write| {
        audit::export(&files, args.from, args.to, &mut |line| {
            serde_json::to_writer(&mut *out, &line)?;
            out.write_all(b"\n")
        })
    };
    match &args.out {
        None => stdout(|out| write(out)),
        Some(path) => {
            let fail =
                |error: io::Error| Failure::io(format!("cannot write {}", path.display()), &error);
            let mut out = io::BufWriter::new(std::fs::File::create(path).map_err(fail)?);
            write(&mut out).and_then(|()| out.flush()).map_err(fail)
        }
    }
}

/// A day in UTC, or an instant.
fn instant(text: &str) -> Result<Timestamp, String> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Ok(instant);
    }
    let day = text.parse::<Date>();
    let day = day.and_then(|day| day.to_zoned(TimeZone::UTC));
    day.map(|day| day.timestamp())
        .map_err(|_| "neither a day such as 2026-01-31 nor an RFC 3339 instant".to_owned())
}
