//! A command's failure: what to say, and the exit code.

use std::io;

use super::ui::shown;
use crate::api;
use crate::config::ConfigError;

/// Exit code: something failed that has no code of its own.
pub(super) const FAILED: u8 = 1;
/// Exit code: wrong usage.
pub(super) const USAGE: u8 = 2;
/// Exit code: altered.
pub(super) const ALTERED: u8 = 65;
/// Exit code: no such object or file.
pub(super) const NO_SUCH: u8 = 66;
/// Exit code: this key does not open this object (`recover`).
pub(super) const WRONG_KEY: u8 = 67;
/// Exit code: already exists.
pub(super) const EXISTS: u8 = 73;
/// Exit code: temporary.
pub(super) const TEMPORARY: u8 = 75;
/// Exit code: not permitted by a grant.
pub(super) const DENIED: u8 = 77;
/// Exit code: configuration.
pub(super) const CONFIG: u8 = 78;
/// Exit code of a process that SIGPIPE ended, as shells report it.
const PIPE: u8 = 141;

/// Why a command ends without having done its work.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    code: u8,
    what: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure with its exit code and `what failed: why`.
    pub(super) fn new(code: u8, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            hint: None,
        }
    }

    /// A command that makes no sense.
    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self::new(USAGE, what)
    }

    /// The system refused; `what` names what failed.
    pub(super) fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound {
            NO_SUCH
        } else {
            FAILED
        };
        Self::new(code, format!("{what}: {}", why(error)))
    }

    /// The agent's error; `what` names what failed.
    pub(super) fn api(what: impl std::fmt::Display, error: &api::Error) -> Self {
        let (kind, detail) = (error.kind, &error.detail);
        // It may quote the store or an object's name: no line breaks and no
        // escapes of theirs on this terminal.
        // What a refused object is accused of stands in the table; the detail
        // is the evidence.
        let why = match kind.status() {
            422 => format!("{}: {}", kind.title(), shown(detail)),
            _ => shown(detail),
        };
        Self::new(kind.exit_code(), format!("{what}: {why}")).hint(error.hint_text())
    }

    /// Whoever read our output went away: nothing to say, as other tools.
    pub(super) fn broken_pipe() -> Self {
        Self::new(PIPE, "")
    }

    /// The command's findings say it all; only the exit code is left.
    pub(super) fn silent(code: u8) -> Self {
        Self::new(code, "")
    }

    /// What to do about it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds to what is said.
    pub(super) fn and(mut self, more: &str) -> Self {
        if !self.what.is_empty() {
            self.what.push_str(more);
        }
        self
    }

    /// The exit code.
    pub(super) fn code(&self) -> u8 {
        self.code
    }

    /// What failed, and what to do about it.
    pub(super) fn parts(&self) -> (&str, Option<&str>) {
        (&self.what, self.hint.as_deref())
    }

    /// Tells it on stderr.
    pub(super) fn report(&self) {
        if self.what.is_empty() {
            return;
        }
        eprintln!("strongroom: {}", self.what);
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }

    /// For tests: message and hint in one.
    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        format!("{} | {}", self.what, self.hint.as_deref().unwrap_or(""))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(CONFIG, error.message).hint(error.hint)
    }
}

/// The system's reason, in our style: lower case, without its number.
pub(super) fn why(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
