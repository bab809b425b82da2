//! The day after the disaster, and before it: `recover`, `key components`,
//! `key import`.
#![allow(clippy::unwrap_used)]

mod import;
mod objects;
#[path = "../support/mod.rs"]
mod support;
mod tokens;
mod typed;
mod whole;

use std::fs;
use std::path::{Path, PathBuf};

use support::process::{Run, run, strongroom};

/// A directory that is not on a disk.
pub fn in_memory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("strongroom-test-")
        .tempdir_in("/dev/shm")
        .unwrap()
}

/// Makes components, and gives their files and the check value of the whole.
#[track_caller]
pub fn components(dir: &Path, count: usize) -> (Vec<PathBuf>, String) {
    let mut command = strongroom();
    command
        .args(["key", "components", "generate", "--json", "--count"])
        .arg(count.to_string())
        .arg("--out-dir")
        .arg(dir);
    let made = run(&mut command, b"").ok().json();
    let files = (1..=count).map(|n| dir.join(format!("component-{n}")));
    (
        files.collect(),
        made["check_value"].as_str().unwrap().to_owned(),
    )
}

/// The digits of a component's file.
pub fn digits(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("component: "));
    line.unwrap().to_owned()
}

/// `strongroom recover FILE -o OUT` with these further arguments.
#[track_caller]
pub fn recover<S: AsRef<std::ffi::OsStr>>(
    file: &Path,
    out: &Path,
    args: impl IntoIterator<Item = S>,
) -> Run {
    let mut command = strongroom();
    command.arg("recover").arg(file).arg("-o").arg(out);
    // No agent, no configuration: there is none to be found.
    command
        .env("STRONGROOM_SOCKET", "/nonexistent/agent.sock")
        .env("STRONGROOM_CONFIG", "/nonexistent/strongroom.toml")
        .args(args);
    run(&mut command, b"")
}

/// `--component-file` for each.
pub fn by_components(files: &[PathBuf]) -> Vec<String> {
    files
        .iter()
        .flat_map(|file| ["--component-file".to_owned(), file.display().to_string()])
        .collect()
}
