//! Secrets that people bring: typed where nobody reads them, or from a file
//! that is not on a disk.
//!
//! None of them is ever an argument or a variable of the environment, which
//! other processes and the shell's history would have.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::failure::{FAILED, Failure, USAGE, why};
use super::ui::Ui;
use crate::components::{CheckValue, Component};
use crate::confine;
use crate::secret::Pin;

/// Longest file with a component or a passphrase, in bytes.
const MAX_FILE: usize = 4096;
/// Attempts at typing a component before the command gives up.
const ATTEMPTS: usize = 3;
/// `f_type` of file systems whose files are memory (statfs(2)).
const IN_MEMORY: [i64; 2] = [
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
];

/// Before the first secret: no core file, no debugger, no swap.
pub(super) fn harden() {
    let _ = confine::harden_process();
}

/// Asks on the terminal, without echo.
pub(super) fn ask(prompt: &str, otherwise: &str) -> Result<Zeroizing<String>, Failure> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|error| {
            Failure::new(
                FAILED,
                format!("cannot ask on the terminal: {}", why(&error)),
            )
            .hint(otherwise)
        })
}

/// Asks on the terminal for what may be seen.
pub(super) fn ask_openly(prompt: &str, otherwise: &str) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::new(USAGE, format!("cannot ask for {prompt}: no terminal")).hint(otherwise),
        );
    }
    eprint!("{prompt}: ");
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|error| Failure::io("cannot read the answer", &error))?;
    Ok(line.trim().to_owned())
}

/// A passphrase's file: one line, its owner's alone, as with PINs.
pub(super) fn passphrase_file(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let pin = Pin::from_file(path).map_err(|error| {
        // The same rules for the same kind of file, by another name.
        let text = error
            .to_string()
            .replace("the PIN file", "the passphrase file");
        Failure::new(FAILED, text)
    })?;
    Ok(Zeroizing::new(pin.expose().to_owned()))
}

/// One custodian's component, typed: the component itself unseen, then its
/// check value.
pub(super) fn component(whose: &str) -> Result<Component, Failure> {
    const FILES: &str = "without a terminal, name files with --component-file, not on a disk";
    for _ in 0..ATTEMPTS {
        let typed = ask(&format!("component of {whose}: "), FILES)?;
        let component = match Component::parse(&typed) {
            Ok(component) => component,
            Err(error) => {
                eprintln!("strongroom: {error}");
                continue;
            }
        };
        let check = ask_openly(&format!("its check value, as {whose} has it"), FILES)?;
        match check.parse::<CheckValue>() {
            Ok(value) if value == component.check_value() => return Ok(component),
            Ok(_) => eprintln!(
                "strongroom: this is not the component of that check value: is it mistyped?"
            ),
            Err(error) => eprintln!("strongroom: {error}"),
        }
    }
    Err(Failure::new(
        FAILED,
        format!("no component of {whose} after {ATTEMPTS} attempts"),
    ))
}

/// A component from a file as `components generate` writes it: a pipe, or on
/// a file system in memory.
pub(super) fn component_file(path: &Path) -> Result<Component, Failure> {
    let shown = path.display();
    let cannot = |error: &std::io::Error| Failure::io(format!("cannot read {shown}"), error);
    let mut file = File::open(path).map_err(|error| cannot(&error))?;
    let meta = file.metadata().map_err(|error| cannot(&error))?;
    if meta.is_file() && !in_memory(&file) {
        return Err(Failure::new(
            FAILED,
            format!("{shown} is on a disk, where a component must never be"),
        )
        .hint("destroy that component, and make new ones; bring them by hand, by a pipe, or on a tmpfs"));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
    file.by_ref()
        .take(MAX_FILE as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| cannot(&error))?;
    let refused = |what: &str| Failure::new(FAILED, format!("{shown}: {what}"));
    let text = std::str::from_utf8(&text).map_err(|_| refused("it is not text"))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(name))
            .map(str::trim)
            .ok_or_else(|| refused(&format!("it has no line {name:?}")))
    };
    let component =
        Component::parse(field("component:")?).map_err(|error| refused(&error.to_string()))?;
    let check = field("check value:")?
        .parse::<CheckValue>()
        .map_err(&refused)?;
    if check != component.check_value() {
        return Err(refused("the component is not the one of that check value"));
    }
    Ok(component)
}

/// Whether a file's content is in memory alone.
#[allow(
    clippy::useless_conversion,
    reason = "f_type is narrower on some machines"
)]
pub(super) fn in_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| IN_MEMORY.contains(&i64::from(fs.f_type)))
}

/// Says that a machine which should have none has a network.
pub(super) fn note_network(ui: &Ui) {
    let Ok(interfaces) = std::fs::read_dir("/sys/class/net") else {
        return;
    };
    let up: Vec<String> = interfaces
        .flatten()
        .filter(|entry| {
            let state = std::fs::read_to_string(entry.path().join("operstate"));
            state.is_ok_and(|state| state.trim() == "up")
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if !up.is_empty() {
        ui.note(&format!(
            "this machine has a network ({}); components belong on one without",
            up.join(", ")
        ));
    }
}
