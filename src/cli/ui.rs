//! Printing: results to stdout, notes to stderr, both by the global options.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::Global;
use super::failure::Failure;
use super::progress::Counter;
use crate::client::Client;

/// The agent's socket unless told otherwise.
const DEFAULT_SOCKET: &str = "/run/strongroom/agent.sock";
/// The configuration unless told otherwise.
const DEFAULT_CONFIG: &str = "/etc/strongroom/strongroom.toml";

/// The global options, and what they mean for output.
pub(super) struct Ui {
    global: Global,
}

impl Ui {
    pub(super) fn new(global: Global) -> Self {
        Self { global }
    }

    pub(super) fn is_json(&self) -> bool {
        self.global.json
    }

    pub(super) fn is_verbose(&self) -> bool {
        self.global.verbose > 0
    }

    /// Whether a person at a terminal wants to see how long work goes on.
    pub(super) fn shows_progress(&self) -> bool {
        !self.global.quiet && !self.global.json && std::io::stderr().is_terminal()
    }

    /// Counts what was looked at, for a person who watches.
    pub(super) fn counter(&self, name: &str) -> Counter {
        Counter::start(self, name)
    }

    /// The configuration's path.
    pub(super) fn config(&self) -> PathBuf {
        given(self.global.config.as_ref()).unwrap_or_else(|| DEFAULT_CONFIG.into())
    }

    /// The socket's path, where `fallback` is the configuration's.
    pub(super) fn socket(&self, fallback: Option<&Path>) -> PathBuf {
        given(self.global.socket.as_ref())
            .or_else(|| fallback.map(Path::to_owned))
            .unwrap_or_else(|| DEFAULT_SOCKET.into())
    }

    /// A client of the agent.
    pub(super) fn client(&self) -> Client {
        Client::new(&self.socket(None))
    }

    /// A line of the command's result.
    pub(super) fn line(&self, text: &str) -> Result<(), Failure> {
        stdout(|out| writeln!(out, "{text}"))
    }

    /// One JSON value on a line of its own.
    pub(super) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::new(1, format!("cannot write JSON: {error}")))?;
        self.line(&text)
    }

    /// What was done, told to a person who watches or asked.
    pub(super) fn done(&self, text: &str) -> Result<(), Failure> {
        let watched = std::io::stdout().is_terminal() && !self.global.quiet;
        if self.is_verbose() || watched {
            self.line(text)?;
        }
        Ok(())
    }

    /// Something worth knowing that is no failure.
    pub(super) fn note(&self, text: &str) {
        if !self.global.quiet {
            eprintln!("strongroom: {text}");
        }
    }
}

/// An empty variable of the environment counts as unset.
fn given(path: Option<&PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty()).cloned()
}

/// Writes to stdout; a reader that went away ends the command quietly.
pub(super) fn stdout(
    write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    write(&mut out)
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::broken_pipe(),
            _ => Failure::io("cannot write to standard output", &error),
        })
}

/// A name for people: control characters escaped, the rest as it is.
pub(super) fn shown(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

/// A number of bytes for people, such as `1.2 MiB`.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_write_to_the_terminal() {
        assert_eq!(shown("ü/ordinary name"), "ü/ordinary name");
        assert_eq!(shown("a\x1b]0;x\x07\nb"), "a\\u{1b}]0;x\\u{7}\\nb");
        assert_eq!(shown("\u{9b}31m"), "\\u{9b}31m");
    }
}
