//! `strongroom token`: set up a token through PKCS#11, and list what a
//! module offers.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use zeroize::Zeroizing;

use super::failure::{FAILED, Failure, why};
use super::ui::{Ui, shown};
use crate::admin::{self, InitTarget, TokenEntry};
use crate::config::Config;
use crate::secret::Pin;

#[derive(Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Initialise an empty token: its label, security officer's PIN and user PIN
    Init(InitArgs),
    /// List the tokens of a module, or of every configured module
    List {
        /// The PKCS#11 library
        #[arg(long, value_name = "PATH")]
        module: Option<PathBuf>,
    },
}

#[derive(Args)]
#[command(after_help = "PINs are asked for on the terminal, twice, unless files name them.")]
struct InitArgs {
    /// The PKCS#11 library
    #[arg(long, value_name = "PATH")]
    module: PathBuf,
    /// The token's new label
    #[arg(long)]
    label: String,
    /// The token's serial number, where the module has several empty ones
    #[arg(long)]
    serial: Option<String>,
    /// A file (mode 0400) with the security officer's PIN
    #[arg(long, value_name = "FILE")]
    so_pin_file: Option<PathBuf>,
    /// A file (mode 0400) with the user PIN
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

pub(super) fn run(ui: &Ui, args: TokenArgs) -> Result<(), Failure> {
    match args.action {
        Action::Init(args) => init(ui, &args),
        Action::List { module } => list(ui, module),
    }
}

fn init(ui: &Ui, args: &InitArgs) -> Result<(), Failure> {
    let so_pin = pin(args.so_pin_file.as_deref(), "security officer's PIN")?;
    let user_pin = pin(args.pin_file.as_deref(), "user PIN")?;
    let entry = admin::init_token(
        &args.module,
        &args
            .serial
            .clone()
            .map_or(InitTarget::Free, InitTarget::Serial),
        &args.label,
        &so_pin,
        &user_pin,
    )
    .map_err(|error| Failure::api("cannot initialise the token", &error))?;
    if ui.is_json() {
        return ui.json(&entry);
    }
    ui.done(&format!(
        "initialised token {} with serial {}",
        shown(entry.label.trim_end()),
        shown(entry.serial.trim_end())
    ))
}

/// A PIN from its file, or typed twice.
fn pin(file: Option<&Path>, what: &str) -> Result<Pin, Failure> {
    if let Some(file) = file {
        return Pin::from_file(file)
            .map_err(|error| Failure::new(FAILED, format!("no {what}: {error}")));
    }
    let ask = |prompt: String| {
        rpassword::prompt_password(prompt)
            .map(Zeroizing::new)
            .map_err(|error| {
                Failure::new(
                    FAILED,
                    format!("cannot ask for the {what}: {}", why(&error)),
                )
                .hint("without a terminal, name files with --so-pin-file and --pin-file")
            })
    };
    let first = ask(format!("new {what}: "))?;
    let second = ask(format!("new {what}, again: "))?;
    if *first != *second {
        return Err(Failure::new(FAILED, format!("the two {what}s differ")));
    }
    if first.is_empty() {
        return Err(Failure::new(FAILED, format!("the {what} is empty")));
    }
    Ok(Pin::new(first))
}

/// A line of `token list --json`.
#[derive(Serialize)]
struct Listed<'a> {
    module: &'a Path,
    #[serde(flatten)]
    entry: &'a TokenEntry,
}

fn list(ui: &Ui, module: Option<PathBuf>) -> Result<(), Failure> {
    let modules = match module {
        Some(module) => vec![module],
        None => {
            let config = Config::load(&ui.config())
                .map_err(|error| Failure::from(error).and("; --module PATH needs none"))?;
            let mut modules: Vec<PathBuf> = config.tokens.into_iter().map(|t| t.module).collect();
            modules.sort();
            modules.dedup();
            modules
        }
    };
    for module in &modules {
        let entries = admin::list_tokens(module).map_err(|error| {
            Failure::api(
                format_args!("cannot list the tokens of {}", module.display()),
                &error,
            )
        })?;
        for entry in &entries {
            if ui.is_json() {
                ui.json(&Listed { module, entry })?;
            } else {
                ui.line(&line(entry))?;
            }
        }
        if entries.is_empty() {
            ui.note(&format!("{} has no token", module.display()));
        }
    }
    Ok(())
}

fn line(entry: &TokenEntry) -> String {
    let mut line = format!("slot {:#x}: ", entry.slot);
    if entry.initialized {
        line.push_str(&format!("label {:?}, ", entry.label.trim_end()));
    } else {
        line.push_str("empty, ");
    }
    line.push_str(&format!(
        "serial {:?}, {} {}",
        entry.serial.trim_end(),
        shown(entry.manufacturer.trim_end()),
        shown(entry.model.trim_end())
    ));
    if entry.initialized && !entry.user_pin_set {
        line.push_str(", no user PIN set");
    }
    if entry.aes_gcm == Some(false) {
        line.push_str(", without AES-GCM: cannot hold a wrapping key");
    }
    line
}
