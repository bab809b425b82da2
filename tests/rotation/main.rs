//! Rotation without touching data: keyslots, packs, reading through them, and
//! what becomes of slots that somebody else wrote.
//!
//! With STRONGROOM_SOAK=1 at full size, else at one that a continuous
//! integration bears.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod compromised;
mod headers;
mod kills;
mod packs;
mod planted;
mod proxy;
mod replica;
mod rotate;
mod scale;

use std::fs;
use std::sync::mpsc;
use std::thread;

use strongroom::api::{RewrapCounts, RewrapLine};
use support::hsm::{KEY, TOKEN, module};
use support::*;

/// The second token's name and label.
const SECOND: &str = "second";
/// The key that takes over, on the second token.
const NEXT: &str = "archive-2027";

/// Whether at full size.
fn soak() -> bool {
    std::env::var_os("STRONGROOM_SOAK").is_some_and(|v| v == "1")
}

/// One number at full size, another otherwise.
fn sized(full: usize, reduced: usize) -> usize {
    if soak() { full } else { reduced }
}

/// Two tokens: the old key on one, its successor in the ring on the other.
/// `old` has known bytes if given.
fn two_tokens(old: Option<&[u8; 32]>) -> Hsm {
    let hsm = match old {
        Some(bytes) => Hsm::with_key(bytes),
        None => Hsm::new(),
    };
    hsm.add_token(SECOND);
    hsm.create_on(SECOND, &KeySpec::new(NEXT));
    let pin = hsm.dir().join("pin-second");
    hsm.write_pin(&pin, &hsm.pin());
    let text = format!(
        "{}\n[[token]]\nname = {SECOND:?}\nmodule = {:?}\ntoken_label = {SECOND:?}\npin_file = {:?}\nnetwork = false\n\
         \n[[key]]\nname = {NEXT:?}\ntoken = {SECOND:?}\nlabel = {NEXT:?}\nring = {KEY:?}\nuse = \"decrypt\"\n{}",
        hsm.config(),
        module().display().to_string(),
        pin.display().to_string(),
        // Made by C_CreateObject or C_GenerateKey of a test: either will do.
        "",
    );
    fs::write(hsm.config_path(), text).unwrap();
    hsm
}

/// Sets a key's use.
fn set_use(config: &mut DocumentMut, name: &str, usage: &str) {
    let keys = config["key"].as_array_of_tables_mut().unwrap();
    for key in keys.iter_mut() {
        if key["name"].as_str() == Some(name) {
            key["use"] = value(usage);
        }
    }
}

/// The successor wraps from now on, the old key only opens.
fn hand_over(agent: &Agent) {
    agent.reconfigure(|config| {
        set_use(config, KEY, "decrypt");
        set_use(config, NEXT, "active");
    });
    reload(agent);
}

#[track_caller]
fn reload(agent: &Agent) {
    let reply = agent.http("POST", "/v1/reload", &[], b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// The old key's token is gone: out of the configuration, and out of the world.
fn destroy_old(agent: &mut Agent, hsm: &Hsm) {
    agent.reconfigure(|config| {
        let keys = config["key"].as_array_of_tables_mut().unwrap();
        keys.retain(|key| key["name"].as_str() != Some(KEY));
        let tokens = config["token"].as_array_of_tables_mut().unwrap();
        tokens.retain(|token| token["name"].as_str() != Some(TOKEN));
    });
    hsm.destroy(KEY);
    agent.restart();
}

#[track_caller]
fn put(agent: &Agent, bucket: &str, key: &str, headers: &[(&str, &str)], body: &[u8]) {
    let target = format!("/v1/objects/{bucket}/{key}");
    let reply = agent.http("PUT", &target, headers, body);
    assert_eq!(reply.status, 201, "{}", reply.text());
}

fn get(agent: &Agent, bucket: &str, key: &str) -> Reply {
    agent.http("GET", &format!("/v1/objects/{bucket}/{key}"), &[], b"")
}

/// The body of the object with this number.
fn body_of(n: usize) -> Vec<u8> {
    pattern(n as u64 + 1, 100 + (n as u64 * 37) % 5000)
}

/// Stores objects `0..count` under `PREFIX/NUMBER`, several at once.
fn fill(agent: &Agent, bucket: &str, prefix: &str, count: usize, headers: &[(&str, &str)]) {
    thread::scope(|scope| {
        for lane in 0..8 {
            scope.spawn(move || {
                for n in (lane..count).step_by(8) {
                    put(
                        agent,
                        bucket,
                        &format!("{prefix}{n:07}"),
                        headers,
                        &body_of(n),
                    );
                }
            });
        }
    });
}

/// Asserts that all of them read back byte for byte.
#[track_caller]
fn all_read(agent: &Agent, bucket: &str, prefix: &str, count: usize) {
    let (wrong, heard) = mpsc::channel();
    thread::scope(|scope| {
        for lane in 0..8 {
            let wrong = wrong.clone();
            scope.spawn(move || {
                for n in (lane..count).step_by(8) {
                    let reply = get(agent, bucket, &format!("{prefix}{n:07}"));
                    if reply.status != 200 || reply.body != body_of(n) {
                        wrong.send((n, reply.status, reply.text())).unwrap();
                    }
                }
            });
        }
    });
    drop(wrong);
    let wrong: Vec<_> = heard.iter().collect();
    assert!(
        wrong.is_empty(),
        "{} wrong, first {:?}\n{}",
        wrong.len(),
        wrong[0],
        agent.log()
    );
}

/// A run of the command with `--json`: its lines, and its exit code.
fn rewrap(agent: &Agent, place: &str, more: &[&str]) -> (Vec<RewrapLine>, Option<i32>) {
    let mut args = vec!["rewrap", "--json", place];
    args.extend(more);
    let run = agent.cli(&args);
    let lines = run
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    (lines, run.code)
}

/// What a run that went through came to.
#[track_caller]
fn counts(lines: &[RewrapLine]) -> RewrapCounts {
    match lines.last() {
        Some(RewrapLine::End { counts, .. }) => counts.clone(),
        other => panic!("it did not go through: {other:?}\n{lines:?}"),
    }
}

/// A run that must go through and leave nothing undone.
#[track_caller]
fn rewrap_all(agent: &Agent, place: &str, more: &[&str]) -> RewrapCounts {
    let (lines, code) = rewrap(agent, place, more);
    let counts = counts(&lines);
    assert_eq!(
        (counts.failed, code),
        (0, Some(0)),
        "{lines:?}\n{}",
        agent.log()
    );
    counts
}

/// The keyslots and packs in a bucket.
fn slots(weed: &Weed, bucket: &str) -> Vec<String> {
    weed.list(bucket, ".strongroom/keyslots/")
}
