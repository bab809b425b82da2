//! The progress bar of long transfers, for a person at a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::ui::Ui;

/// A transfer of known length.
const OF_KNOWN_LENGTH: &str =
    "{msg} {bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";
/// How often the progress of a passed file is looked at: as smooth as an eye
/// wants it.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// Shows how far a transfer is; clones drive the same bar. Invisible unless
/// a person watches.
#[derive(Clone)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// For a transfer of `length` bytes, where that is known.
    pub(super) fn start(ui: &Ui, name: &str, length: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden());
        if ui.shows_progress() {
            let form = if length.is_some() {
                OF_KNOWN_LENGTH
            } else {
                "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec} {elapsed}"
            };
            // A constant; were it wrong, the default style would do.
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        Self(bar)
    }

    /// For a number of things, which [`expect`](Self::expect) may tell later.
    pub(super) fn count(ui: &Ui, name: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if ui.shows_progress() {
            if let Ok(style) =
                ProgressStyle::with_template("{msg} {spinner} {pos} {per_sec} {elapsed}")
            {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        Self(bar)
    }

    /// There are about so many in all, and so many are through already.
    pub(super) fn expect(&self, about: Option<u64>, done: u64) {
        if let Some(about) = about {
            let form = "{msg} {bar:24} {pos}/~{len} {per_sec} {eta} left";
            if let Ok(style) = ProgressStyle::with_template(form) {
                self.0.set_style(style);
            }
            self.0.set_length(about);
        }
        self.0.set_position(done);
        self.0.reset_eta();
    }

    /// So many are through.
    pub(super) fn at(&self, done: u64) {
        if self.0.length().is_some_and(|about| done > about) {
            self.0.set_length(done);
        }
        self.0.set_position(done);
    }

    /// So many bytes of so many are through, the latter known only now.
    pub(super) fn of(&self, done: u64, length: u64) {
        if length > 0 && self.0.length().is_none() {
            if let Ok(style) = ProgressStyle::with_template(OF_KNOWN_LENGTH) {
                self.0.set_style(style);
            }
            self.0.set_length(length);
        }
        self.0.set_position(done);
    }

    /// Says something without the bar in its way.
    pub(super) fn aside(&self, say: impl FnOnce()) {
        self.0.suspend(say);
    }

    /// `bytes` more are through.
    pub(super) fn advance(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Counts things whose number nobody knows ahead. Invisible unless a person
/// watches, and gone when dropped.
pub(super) struct Counter(ProgressBar);

impl Counter {
    pub(super) fn start(ui: &Ui, name: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if ui.shows_progress() {
            // A constant; were it wrong, the default style would do.
            if let Ok(style) =
                ProgressStyle::with_template("{msg} {spinner} {pos} {per_sec} {elapsed}")
            {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        Self(bar)
    }

    pub(super) fn set(&self, count: u64) {
        self.0.set_position(count);
    }

    /// Prints something while the bar is out of the way.
    pub(super) fn print<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A bar in place when a command fails would stand in its message's way.
pub(super) struct ClearOnDrop(pub(super) Progress);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish();
    }
}
