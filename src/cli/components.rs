//! `strongroom key components`: make a wrapping key's components, on a machine
//! without network.

use std::fs::{self, File};
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use zeroize::Zeroizing;

use super::failure::{FAILED, Failure};
use super::hidden;
use super::ui::{self, Ui};
use crate::components::{self, CheckValue, Component};

#[derive(Args)]
pub(super) struct ComponentsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make components whose XOR is a new AES-256 key, each for one custodian
    Generate(GenerateArgs),
}

#[derive(Args)]
#[command(
    after_help = "On a terminal each component is shown alone, to its custodian, and taken away again.\nWherever a component goes, it must not be a disk: --out-dir takes a tmpfs, --print a pipe."
)]
struct GenerateArgs {
    /// How many, from 2 to 8
    #[arg(long, default_value_t = 3)]
    count: usize,
    /// Write each to a file of its own in this directory, which must be on a tmpfs
    #[arg(long, value_name = "DIR", conflicts_with = "print")]
    out_dir: Option<PathBuf>,
    /// Write all to standard output, for a printer
    #[arg(long)]
    print: bool,
}

/// What `--json` prints: no component.
#[derive(Serialize)]
struct Made {
    components: Vec<String>,
    check_value: String,
}

pub(super) fn run(ui: &Ui, args: ComponentsArgs) -> Result<(), Failure> {
    let Action::Generate(args) = args.action;
    hidden::harden();
    hidden::note_network(ui);
    let refused = |error: components::Refused| {
        Failure::new(FAILED, format!("cannot make components: {error}"))
    };
    let made = components::generate(args.count).map_err(refused)?;
    let whole = components::check_value(&components::combine(&made).map_err(refused)?);
    match &args.out_dir {
        Some(dir) => write_files(dir, &made, whole)?,
        None if args.print => print(&made, whole)?,
        None => show(&made, whole)?,
    }
    if ui.is_json() && !args.print {
        return ui.json(&Made {
            components: made.iter().map(|c| c.check_value().to_string()).collect(),
            check_value: whole.to_string(),
        });
    }
    Ok(())
}

/// A component's sheet: what `--component-file` reads.
fn sheet(n: usize, all: &[Component], whole: CheckValue) -> Zeroizing<String> {
    let component = &all[n];
    // At its final size: growing would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(1024));
    text.push_str(&format!("component {} of {}\n", n + 1, all.len()));
    text.push_str("component: ");
    text.push_str(&component.text());
    text.push_str(&format!("\ncheck value: {}\n", component.check_value()));
    text.push_str(&format!("check value of the key: {whole}\n"));
    text
}

fn write_files(dir: &Path, made: &[Component], whole: CheckValue) -> Result<(), Failure> {
    let cannot =
        |error: &std::io::Error| Failure::io(format!("cannot write to {}", dir.display()), error);
    let open = File::open(dir).map_err(|error| cannot(&error))?;
    if !hidden::in_memory(&open) {
        return Err(Failure::new(
            FAILED,
            format!(
                "{} is on a disk, where a component must never be",
                dir.display()
            ),
        )
        .hint("name a directory on a tmpfs, such as one below /dev/shm"));
    }
    for n in 0..made.len() {
        let path = dir.join(format!("component-{}", n + 1));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&path)
            .and_then(|mut file| file.write_all(sheet(n, made, whole).as_bytes()));
        written.map_err(|error| cannot(&error))?;
    }
    Ok(())
}

fn print(made: &[Component], whole: CheckValue) -> Result<(), Failure> {
    not_a_disk()?;
    for n in 0..made.len() {
        let text = sheet(n, made, whole);
        // A form feed: each custodian's on a page of its own.
        ui::stdout(|out| {
            if n > 0 {
                out.write_all(b"\x0c")?;
            }
            out.write_all(text.as_bytes())
        })?;
    }
    Ok(())
}

/// Standard output redirected into a file would put components on a disk.
fn not_a_disk() -> Result<(), Failure> {
    use std::os::fd::AsFd as _;
    let out = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|error| Failure::io("cannot look at standard output", &error))?;
    let is_file = out.metadata().is_ok_and(|meta| meta.is_file());
    if is_file && !hidden::in_memory(&out) {
        return Err(Failure::new(
            FAILED,
            "standard output is a file on a disk, where a component must never be",
        )
        .hint("pipe it to a printer, or leave out --print"));
    }
    Ok(())
}

/// One after the other, each alone on the screen.
fn show(made: &[Component], whole: CheckValue) -> Result<(), Failure> {
    const OTHERWISE: &str = "without a terminal, use --out-dir or --print";
    if !std::io::stdout().is_terminal() {
        return Err(Failure::usage("components are shown on a terminal").hint(OTHERWISE));
    }
    for n in 0..made.len() {
        hidden::ask_openly(
            &format!("custodian {} alone at the screen? Enter", n + 1),
            OTHERWISE,
        )?;
        let text = sheet(n, made, whole);
        ui::stdout(|out| out.write_all(text.as_bytes()))?;
        hidden::ask_openly("written down? Enter", OTHERWISE)?;
        // The screen, and what scrolled out of it (ECMA-48 ED; xterm's 3J).
        ui::stdout(|out| out.write_all(b"\x1b[H\x1b[2J\x1b[3J"))?;
    }
    ui::stdout(|out| writeln!(out, "check value of the key: {whole}"))
}
