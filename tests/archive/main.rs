//! `strongroom archive`: what it stores, skips, leaves alone and deletes.
#![allow(clippy::unwrap_used)]

mod bundles;
mod changing;
mod cron;
mod delete;
mod interrupted;
mod restored;
mod tree;
mod trees;

#[path = "../support/mod.rs"]
mod support;

use std::io::Cursor;
use std::path::Path;

use strongroom::manifest::{Entry, Kind, LATEST, Latest, Reader, RelPath};
use support::{Agent, Run, TokenKind};

/// The tests are about files and objects.
fn is_skipped() -> bool {
    !TokenKind::SoftHsm.is_only("an archive is the same under any token")
}

/// An archive's place, and the agent that stores it.
struct Archive<'a> {
    agent: &'a Agent,
    bucket: String,
    prefix: &'static str,
}

impl<'a> Archive<'a> {
    fn new(agent: &'a Agent, bucket: impl Into<String>) -> Self {
        Self {
            agent,
            bucket: bucket.into(),
            prefix: "host/",
        }
    }

    fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }

    /// Runs `strongroom archive DIR URL` with these options.
    #[track_caller]
    fn run(&self, dir: &Path, options: &[&str]) -> Run {
        let url = self.url();
        let words = ["archive", dir.to_str().unwrap(), &url];
        self.agent.cli(words.iter().chain(options))
    }

    /// The same; its JSON lines, the summary last.
    #[track_caller]
    fn events(&self, dir: &Path, options: &[&str]) -> Vec<serde_json::Value> {
        let run = self.run(dir, &[&["--json"], options].concat());
        lines(&run.ok())
    }

    /// The summary of a run that succeeds.
    #[track_caller]
    fn summary(&self, dir: &Path, options: &[&str]) -> serde_json::Value {
        self.events(dir, options).pop().unwrap()
    }

    /// An object of the archive, decrypted.
    #[track_caller]
    fn read(&self, key: &str) -> Vec<u8> {
        let url = format!("{}{key}", self.url());
        self.agent.cli(["get", &url, "-"]).ok().stdout
    }

    /// The newest complete manifest.
    #[track_caller]
    fn manifest(&self) -> Vec<Entry> {
        let latest = Latest::decode(&self.read(LATEST)).unwrap();
        let bytes = self.read(&latest.manifest);
        let mut reader = Reader::open(Cursor::new(bytes)).unwrap();
        assert_eq!(reader.head().run, latest.run);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next().unwrap() {
            entries.push(entry);
        }
        assert!(reader.end().unwrap().complete);
        entries
    }

    /// An entry of it.
    #[track_caller]
    fn entry(&self, path: &[u8]) -> Entry {
        let path = RelPath::new(path).unwrap();
        let entries = self.manifest();
        let found = entries.into_iter().find(|entry| entry.path == path);
        found.unwrap_or_else(|| panic!("no {path}"))
    }

    /// The content that an entry's file has in the store.
    #[track_caller]
    fn content(&self, entry: &Entry) -> Vec<u8> {
        let Kind::File(content) = &entry.kind else {
            panic!("{entry:?} is no file")
        };
        let url = format!("{}{}", self.url(), content.at.key);
        let bytes = match content.at.offset {
            None => self.agent.cli(["get", &url, "-"]).ok().stdout,
            Some(_) if content.size == 0 => Vec::new(),
            Some(offset) => {
                let range = format!("{offset}-{}", offset + content.size - 1);
                let words = ["get", url.as_str(), "-", "--range", &range];
                self.agent.cli(words).ok().stdout
            }
        };
        assert_eq!(bytes.len() as u64, content.size);
        let mut reader = bytes.as_slice();
        assert_eq!(support::data::sha256(&mut reader), content.sha256);
        bytes
    }
}

/// The JSON lines of a run.
fn lines(run: &Run) -> Vec<serde_json::Value> {
    let text = run.text();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// Whether the tests run at full size.
fn soak() -> bool {
    std::env::var_os("STRONGROOM_SOAK").is_some()
}
