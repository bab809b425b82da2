//! Bad input gets a clear error, and nothing is lost or left behind: every
//! test checks the exit code or status *and* the words.
//!
//! `store`: buckets, credentials, endpoints; `names`: object keys; `files`:
//! sources and targets of the command line; `requests`: what no client should
//! send. A second agent on the same socket is in `processes.rs`, set-ups that
//! are wrong in `bad_setup.rs`.
#![allow(clippy::unwrap_used)]

mod files;
mod names;
mod requests;
mod store;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::null_store::{NullStore, Op};
use support::process::eventually;
use support::*;

/// A user id that nobody has.
const STRANGER: u32 = 4711;

/// An agent before a store that keeps a record of what it is asked.
struct Rig {
    null: NullStore,
    agent: Agent,
    dir: tempfile::TempDir,
    _hsm: Hsm,
}

impl Rig {
    #[track_caller]
    fn new() -> Self {
        Self::before(NullStore::start())
    }

    #[track_caller]
    fn before(null: NullStore) -> Self {
        let hsm = Hsm::new();
        Self {
            agent: Agent::start(&hsm, Store::at(null.endpoint()), |_| {}),
            null,
            dir: temp_dir(),
            _hsm: hsm,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self, key: &str) -> String {
        format!("s3://bucket/{key}")
    }

    fn target(&self, key: &str) -> String {
        format!("/v1/objects/bucket/{key}")
    }

    #[track_caller]
    fn put(&self, key: &str, body: &[u8]) {
        let reply = self.agent.http("PUT", &self.target(key), &[], body);
        assert_eq!(reply.status, 201, "{}", reply.text());
    }

    #[track_caller]
    fn read(&self, key: &str) -> Vec<u8> {
        let reply = self.agent.http("GET", &self.target(key), &[], b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.complete);
        reply.body
    }

    /// Asserts that the store was not asked for anything since there were
    /// `before` requests.
    #[track_caller]
    fn nothing_sent_since(&self, before: usize) {
        let all = self.null.requests();
        assert!(all.len() == before, "sent: {:#?}", &all[before..]);
    }

    /// Asserts that there is no object and soon no upload, that requests have
    /// ended and given their memory back.
    #[track_caller]
    fn nothing_left(&self) {
        assert_eq!(self.null.keys(), [""; 0]);
        assert_eq!(self.null.count(Op::Complete), 0);
        let idle = || {
            let status: strongroom::api::Status =
                self.agent.http("GET", "/v1/status", &[], b"").parse();
            (self.null.open_uploads() == 0 && status.requests == 0 && status.memory_in_use == 0)
                .then_some(())
        };
        let idle = eventually(Duration::from_secs(20), idle);
        assert!(idle.is_some(), "uploads: {}", self.null.open_uploads());
    }

    /// Asserts that the agent still does its work.
    #[track_caller]
    fn still_works(&self) {
        self.put("still-works", b"well");
        assert_eq!(self.read("still-works"), b"well");
        let gone = self
            .agent
            .http("DELETE", &self.target("still-works"), &[], b"");
        assert_eq!(gone.status, 204);
        let log = self.agent.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// What is in a directory, hidden files too.
#[track_caller]
fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The command as a user whom permissions apply to: root is somebody else,
/// with a copy of the binary in `dir`, which everybody may enter.
fn unprivileged(command: &Command, dir: &Path) -> Command {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode;
    let mut other = Command::new(command.get_program());
    if rustix::process::geteuid().is_root() {
        let copy = dir.join("strongroom");
        process::install(command.get_program(), &copy);
        std::fs::set_permissions(dir, mode(0o755)).unwrap();
        other = Command::new("setpriv");
        other
            .args([
                format!("--reuid={STRANGER}"),
                format!("--regid={STRANGER}"),
                "--clear-groups".into(),
            ])
            .arg(copy);
    }
    other.args(command.get_args()).env_clear();
    for (name, setting) in command.get_envs() {
        if let Some(setting) = setting {
            other.env(name, setting);
        }
    }
    other
}
