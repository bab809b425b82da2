//! Knowing that it is all still there: `verify` at its levels against somebody
//! with access to the bucket, and the catalogue that it depends on.
//!
//! With STRONGROOM_SOAK=1 a hundred of each attack, else as many as a
//! continuous integration bears.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod clean;
mod lineage;
mod rebuild;

use std::collections::BTreeMap;

use serde_json::Value;
use strongroom::api::VerifySummary;
use support::*;

/// One number at full size, another otherwise.
fn sized(full: usize, reduced: usize) -> usize {
    match std::env::var_os("STRONGROOM_SOAK").is_some_and(|v| v == "1") {
        true => full,
        false => reduced,
    }
}

/// What a run of `verify` told.
struct Verified {
    run: Run,
    /// Result by place: `KEY`, or `KEY@VERSION`.
    found: BTreeMap<String, String>,
    sum: Option<VerifySummary>,
}

impl Verified {
    /// How many of a result.
    fn count(&self, word: &str) -> usize {
        self.found.values().filter(|found| *found == word).count()
    }

    fn code(&self) -> i32 {
        self.run.code.unwrap()
    }

    /// Asserts that these are the findings, and no other.
    #[track_caller]
    fn is(&self, expected: &BTreeMap<String, String>) {
        assert_eq!(self.found, *expected, "{}", self.run.text());
        assert_eq!(self.code(), if expected.is_empty() { 0 } else { 65 });
    }
}

/// Runs `strongroom verify --json`.
#[track_caller]
fn verify(agent: &Agent, place: &str, options: &[&str]) -> Verified {
    let mut args = vec!["--json", "verify", place];
    args.extend(options);
    let run = agent.cli(args);
    let mut found = BTreeMap::new();
    let mut sum = None;
    for line in run.text().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        match value["result"].as_str() {
            Some(result) => {
                let key = value["key"].as_str().unwrap();
                let name = match value["version_id"].as_str() {
                    Some(version) => format!("{key}@{version}"),
                    None => key.to_owned(),
                };
                let before = found.insert(name, result.to_owned());
                assert_eq!(before, None, "{line}");
            }
            None => sum = Some(serde_json::from_value(value).unwrap()),
        }
    }
    Verified { run, found, sum }
}

#[track_caller]
fn put(agent: &Agent, bucket: &str, key: &str, text: &[u8]) {
    let target = format!("/v1/objects/{bucket}/{key}");
    let reply = agent.http("PUT", &target, &[], text);
    assert_eq!(reply.status, 201, "{}", reply.text());
}

/// Stored bytes with their metadata, as somebody with access has them.
struct Copy {
    bytes: Vec<u8>,
    metadata: Vec<(String, String)>,
}

impl Copy {
    #[track_caller]
    fn of(bucket: &str, key: &str) -> Self {
        let weed = Weed::shared();
        let metadata = weed.raw_head(bucket, key).metadata.unwrap_or_default();
        Self {
            bytes: weed.raw_get(bucket, key).unwrap(),
            metadata: metadata.into_iter().collect(),
        }
    }

    #[track_caller]
    fn put(&self, bucket: &str, key: &str) {
        Weed::shared().raw_put_with(bucket, key, &self.bytes, &self.metadata);
    }
}
