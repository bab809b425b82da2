//! The command line: the only code that prints.
//!
//! Rules for every message:
//! - An error is `strongroom: what failed: why`, in lower case, on stderr;
//!   then, where there is something to do about it, `hint: what to do` on a
//!   line of its own. Never a secret, never a backtrace.
//! - Exit codes are the closed table of docs/errors.md; they come from the
//!   error's kind, never from the place where it is printed.
//! - Results go to stdout, everything else to stderr. Success says nothing
//!   unless a person watches (a terminal) or asked (`-v`, `--json`).
//! - Names that come from the store are shown with control characters
//!   escaped: they are the adversary's to choose.

mod agent;
mod archive;
mod args;
mod audit;
mod catalog;
mod completions;
mod components;
mod cp;
mod doctor;
mod edit;
mod evidence;
mod failure;
mod get;
mod grants;
mod hidden;
mod import;
mod inspect;
mod key;
mod ls;
mod man;
mod place;
mod progress;
mod put;
mod queue;
mod recover;
mod restore;
mod rewrap;
mod rm;
mod source;
mod status;
mod target;
mod token;
mod ui;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use args::{Cli, Command};
use failure::Failure;
use ui::Ui;

/// Runs the command that the process's arguments name.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.code())
        }
    }
}

/// Help and version go to stdout and succeed; wrong usage is an error like
/// any other, with clap's explanation.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader such as `head` may have gone away; that is no failure.
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    eprintln!("strongroom: {}", text.trim_end());
    ExitCode::from(failure::USAGE)
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    // clap sees conflicts only on the same side of the command.
    if cli.global.quiet && cli.global.verbose > 0 {
        return Err(Failure::usage("-q and -v contradict each other"));
    }
    let ui = Ui::new(cli.global);
    match cli.command {
        // The agent has runtimes of its own; the rest of these need none.
        Command::Agent(_) => agent::run(&ui),
        Command::Token(args) => token::run(&ui, args),
        Command::Doctor(args) => doctor::run(&ui, &args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Put(args) => block_on(put::run(&ui, args)),
        Command::Get(args) => block_on(get::run(&ui, args)),
        Command::Inspect(args) => block_on(inspect::run(&ui, args)),
        Command::Ls(args) => block_on(ls::run(&ui, args)),
        Command::Rm(args) => block_on(rm::run(&ui, args)),
        Command::Cp(args) => block_on(cp::copy(&ui, args)),
        Command::Mv(args) => block_on(cp::rename(&ui, args)),
        Command::Archive(args) => block_on(archive::run(&ui, *args)),
        Command::Verify(args) => block_on(verify::run(&ui, args)),
        Command::Recover(args) => block_on(recover::run(&ui, args)),
        Command::Restore(args) => block_on(restore::run(&ui, *args)),
        Command::Rewrap(args) => block_on(rewrap::run(&ui, args)),
        Command::Key(args) => block_on(key::run(&ui, args)),
        Command::Catalog(args) => block_on(catalog::run(&ui, args)),
        Command::Audit(args) => block_on(audit::run(&ui, args)),
        Command::Evidence(args) => block_on(evidence::run(&ui, args)),
        Command::Grants(args) => block_on(grants::run(&ui, args)),
        Command::Queue(args) => block_on(queue::run(&ui, args)),
        Command::Status(_) => block_on(status::run(&ui)),
    }
}

/// Runs a command until it is done or a signal ends it. Dropping the command
/// hangs up on the agent and removes what was half written.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start", &error))?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = command => result,
            failure = interrupted() => Err(failure),
        }
    });
    // A thread may wait for a FIFO or a terminal for ever.
    runtime.shutdown_background();
    result
}

async fn interrupted() -> Failure {
    let (Ok(mut int), Ok(mut term), Ok(mut hup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        // Then the system's default ends the process.
        return std::future::pending().await;
    };
    // 128 + the signal's number, as shells report it.
    let code = tokio::select! {
        _ = int.recv() => 130,
        _ = term.recv() => 143,
        _ = hup.recv() => 129,
    };
    Failure::new(code, "interrupted")
}
