//! Restoring: whole trees and parts of them, old states, archive classes, and
//! archives that somebody else made up.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod build;
mod cold;
mod hostile;
mod round_trip;
mod runs;
mod tree;
mod trust;

use std::path::{Path, PathBuf};

use support::*;

/// None of this has to do with the token.
const WHY: &str = "restoring does not touch the token";

/// An agent with its store, and a directory to restore into.
struct Setup {
    agent: Agent,
    _hsm: Hsm,
    bucket: String,
    dir: tempfile::TempDir,
}

impl Setup {
    fn new(name: &str) -> Self {
        Self::with(name, &Weed::shared().store)
    }

    /// With another way to the store.
    fn with(name: &str, store: &Store) -> Self {
        let (hsm, weed) = (Hsm::new(), Weed::shared());
        let bucket = weed.versioned_bucket(name);
        Self {
            agent: Agent::start(&hsm, store, |_| {}),
            _hsm: hsm,
            bucket,
            dir: temp_dir(),
        }
    }

    /// The target.
    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn restore(&self, url: &str, more: &[&str]) -> Run {
        let out = self.out();
        let mut args = vec!["restore", url, out.to_str().unwrap()];
        args.extend(more);
        self.agent.cli(args)
    }
}

/// The names below a directory, in order, the directory's own left out.
fn names(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path.clone());
            }
            let name = path.strip_prefix(dir).unwrap();
            found.push(name.to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// The last line of `--json`.
#[track_caller]
fn end(run: &Run) -> serde_json::Value {
    let text = run.text();
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {text}\n{}", run.stderr))
}
