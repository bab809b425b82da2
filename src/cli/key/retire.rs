//! `strongroom key disable` and `key retire`: a key that is to be used no
//! more. Neither destroys it: that is the operator's to do, later, in the
//! token.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use jiff::Zoned;

use super::edits;
use super::rotate::take_over;
use crate::api::{Error, RetireLine, RetireReport, RetireRequest};
use crate::cli::edit::Change;
use crate::cli::failure::{FAILED, Failure, NO_SUCH};
use crate::cli::ui::{Ui, shown};
use crate::client::Client;
use crate::config::Config;

/// Reasons that a person is shown; `--json` has more.
const SHOWN: usize = 20;

#[derive(Args)]
pub(super) struct DisableArgs {
    /// The key's configured name
    name: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Args)]
pub(super) struct RetireArgs {
    /// The key's configured name
    name: String,
    /// Look at everything, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Look at this bucket too (repeatable)
    #[arg(long = "bucket", value_name = "BUCKET")]
    buckets: Vec<String>,
    /// How old another writer's exported catalogue may be
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    max_age: Duration,
}

/// Stops a key at once.
pub(super) async fn disable(ui: &Ui, args: &DisableArgs) -> Result<(), Failure> {
    let path = ui.config();
    let config = Config::load(&path)?;
    let Some(key) = config.keys.iter().find(|key| key.name == args.name) else {
        return Err(no_such(&config, &args.name));
    };
    let then = match key.is_active() {
        true => format!(
            "nothing can be stored in ring {:?}, and nothing that only this key opens can be read",
            key.ring()
        ),
        false => "nothing that only this key opens can be read".to_owned(),
    };
    if !args.yes {
        confirm(&args.name, &then)?;
    }
    let comment = format!("disabled {}", today());
    let edit = |text: &str| edits::disabled(text, &args.name, &comment);
    let change = Change::prepare_with(&path, edit)?;
    let client = Client::new(&ui.socket(Some(&config.agent.socket)));
    let running = take_over(&client, &change, &path, None).await?;
    if ui.is_json() {
        return ui.json(&serde_json::json!({ "name": args.name, "use": "disabled" }));
    }
    let agent = if running {
        ""
    } else {
        "; the agent was not running"
    };
    ui.done(&format!("key {} is disabled: {then}{agent}", args.name))
}

fn no_such(config: &Config, name: &str) -> Failure {
    let known: Vec<&str> = config.keys.iter().map(|key| key.name.as_str()).collect();
    Failure::new(
        NO_SUCH,
        format!("no wrapping key is configured as {name:?}"),
    )
    .hint(format!("configured: {}", known.join(", ")))
}

/// Asks a person to type the key's name.
fn confirm(name: &str, then: &str) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(
            Failure::usage(format!("disabling {name}: {then}")).hint("add --yes if that is meant")
        );
    }
    eprint!("{then}\ntype the key's name to disable it: ");
    let _ = std::io::stderr().flush();
    let mut typed = String::new();
    let read = stdin.lock().read_line(&mut typed);
    match read {
        Ok(_) if typed.trim() == name => Ok(()),
        _ => Err(Failure::new(
            FAILED,
            "that is not its name: nothing was changed",
        )),
    }
}

/// Looks at everything, and disables the key if nothing is left.
pub(super) async fn run(ui: &Ui, args: RetireArgs) -> Result<(), Failure> {
    let path = ui.config();
    let config = Config::load(&path)?;
    if !config.keys.iter().any(|key| key.name == args.name) {
        return Err(no_such(&config, &args.name));
    }
    let client = Client::new(&ui.socket(Some(&config.agent.socket)));
    let bucket = |name: &String| {
        let name = name.strip_prefix("s3://").unwrap_or(name);
        name.trim_end_matches('/').to_owned()
    };
    let request = RetireRequest {
        key: args.name.clone(),
        buckets: args.buckets.iter().map(bucket).collect(),
        max_age_seconds: Some(args.max_age.as_secs()),
        done: false,
    };
    let report = ask(ui, &client, &request).await?;
    if ui.is_json() {
        ui.json(&report)?;
    }
    if !report.may_retire {
        return Err(refused(ui, &report)?);
    }
    if !ui.is_json() {
        ui.line(&scope(&report))?;
    }
    if args.dry_run {
        return Ok(());
    }
    let comment = format!(
        "retired {}: nothing was found that only this key opens",
        today()
    );
    let edit = |text: &str| edits::disabled(text, &args.name, &comment);
    let change = Change::prepare_with(&path, edit)?;
    take_over(&client, &change, &path, None).await?;
    let done = RetireRequest {
        done: true,
        ..request
    };
    ask(ui, &client, &done).await?;
    ui.done(&format!(
        "key {} is retired: it neither wraps nor opens. The token still holds it; destroy it there when nobody has missed it for a while",
        args.name
    ))
}

async fn ask(ui: &Ui, client: &Client, request: &RetireRequest) -> Result<RetireReport, Failure> {
    let failed = |error: &Error| Failure::api(format!("cannot retire {}", request.key), error);
    let mut lines = client.retire(request).await.map_err(|e| failed(&e))?;
    let bar = ui.counter(&format!("versions looked at for {}", request.key));
    while let Some(line) = lines.next().await.map_err(|e| failed(&e))? {
        match line {
            RetireLine::Progress { versions } => bar.set(versions),
            RetireLine::Problem(problem) => return Err(failed(&problem.into())),
            RetireLine::Report(report) => return Ok(report),
        }
    }
    Err(Failure::new(
        FAILED,
        format!(
            "cannot retire {}: the agent's answer broke off",
            request.key
        ),
    ))
}

fn refused(ui: &Ui, report: &RetireReport) -> Result<Failure, Failure> {
    if !ui.is_json() {
        for reason in report.reasons.iter().take(SHOWN) {
            ui.line(&format!(
                "{}: {}: {}",
                reason.kind,
                shown(&reason.subject),
                shown(&reason.why)
            ))?;
        }
        ui.line(&scope(report))?;
    }
    Ok(Failure::new(
        FAILED,
        format!(
            "key {} cannot be retired: {} reasons",
            report.key, report.total_reasons
        ),
    )
    .hint("docs/keys.md says what each reason asks for; nothing was changed"))
}

/// What was looked at: what the answer holds for, and no more.
fn scope(report: &RetireReport) -> String {
    let mut text = format!(
        "looked at: {} versions in {}; {} entries of this host's catalogue; other writers: {}",
        report.versions,
        listed(&report.buckets),
        report.catalogue,
        listed(&report.writers),
    );
    for (key, count) in &report.opened_by {
        text.push_str(&format!("\n{count} were opened by {key}"));
    }
    text.push_str(&format!(
        "\n{} need this key not, {} are no messages",
        report.independent, report.no_messages
    ));
    text
}

fn listed(names: &[String]) -> String {
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

fn today() -> String {
    Zoned::now().strftime("%Y-%m-%d").to_string()
}
