//! Runs that are killed: what was acknowledged is not sent again.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Cursor};
use std::process::Stdio;
use std::time::Duration;

use strongroom::manifest::{PARTIAL, Reader};

use crate::support::process::eventually;
use crate::support::{Agent, Hsm, Weed, pattern, temp_dir, value};
use crate::{Archive, is_skipped};

#[test]
fn a_killed_run_is_taken_up_where_it_was() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    for options in [&[][..], &["--bundle", "--bundle-max", "1KiB"]] {
        let archive = Archive::new(&agent, weed.bucket("killed"));
        let dir = temp_dir();
        for n in 0..120_u64 {
            fs::write(dir.path().join(format!("{n:03}")), pattern(n, 20_000 + n)).unwrap();
        }
        let url = archive.url();
        // So slow that what is killed is in the middle of it.
        let slowly = ["--bwlimit", "400KiB"];
        let words = ["archive", dir.path().to_str().unwrap(), &url, "--json"];
        let mut told: BTreeSet<String> = BTreeSet::new();
        for kill_after in [10, 25, 40] {
            let mut command = agent.command(words.iter().chain(options).chain(&slowly));
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            for line in lines.take(kill_after) {
                let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                assert_eq!(event["event"], "stored", "{event}");
                let path = event["path"].as_str().unwrap().to_owned();
                assert!(!told.contains(&path), "{path} was sent again");
                told.insert(path);
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(
            weed.list(&archive.bucket, "host/.strongroom-archive/latest")
                .is_empty()
        );
        let events = archive.events(dir.path(), options);
        for event in events.iter().filter(|event| event["event"] == "stored") {
            let path = event["path"].as_str().unwrap();
            assert!(!told.contains(path), "{path} was sent again");
        }
        let stored = events.last().unwrap()["stored"].as_u64().unwrap();
        assert!(stored < 120 - 75 + 1, "{stored}");
        let entries = archive.manifest();
        assert_eq!(entries.len(), 121);
        for entry in entries.iter().skip(1).step_by(20) {
            archive.content(entry);
        }
        assert_eq!(archive.summary(dir.path(), options)["stored"], 0);
    }
}

/// The host is lost with its journal: the manifest so far is in the store, and
/// a run that breaks off before it has come as far takes nothing from it.
#[test]
fn a_lost_host_begins_at_the_last_checkpoint() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let archive = Archive::new(&agent, weed.bucket("lost"));
    let (dir, locks) = (temp_dir(), temp_dir());
    for n in 0..60_u64 {
        fs::write(dir.path().join(format!("{n:03}")), pattern(n, 3000)).unwrap();
    }
    let url = archive.url();
    let mut known = 0;
    for (run, lines) in [(0, 45), (1, 5)] {
        // Another lock file each: no journal of an earlier run.
        let lock = locks.path().join(format!("{run}"));
        let words = ["archive", dir.path().to_str().unwrap(), &url, "--json"];
        let more = [
            "--checkpoint",
            "1ms",
            "--jobs",
            "1",
            "--bwlimit",
            "100KiB",
            "--lock",
            lock.to_str().unwrap(),
        ];
        let mut command = agent.command(words.iter().chain(&more));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .take(lines);
        assert!(lines.map(Result::unwrap).count() > 0);
        child.kill().unwrap();
        child.wait().unwrap();
        let partial = Reader::open(Cursor::new(archive.read(PARTIAL)));
        let files = files(partial.unwrap());
        assert!(
            files > 0 && files >= known && files < 60,
            "{files} after {known}"
        );
        known = files;
    }
    assert_eq!(archive.summary(dir.path(), &[])["stored"], 60 - known);
    assert_eq!(archive.manifest().len(), 61);
    for entry in archive.manifest().iter().skip(1).step_by(7) {
        archive.content(entry);
    }
}

/// Files of a manifest of a run that broke off.
fn files(mut manifest: Reader<Cursor<Vec<u8>>>) -> u64 {
    while manifest.next().unwrap().is_some() {}
    let end = manifest.end().unwrap();
    assert!(!end.complete);
    end.counts.files
}

#[test]
fn a_large_file_goes_on_where_a_killed_run_was() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |config| {
        config["s3"]["part_size"] = value("5 MiB");
        config["s3"]["upload_concurrency"] = value(1);
    });
    let archive = Archive::new(&agent, weed.bucket("large"));
    let dir = temp_dir();
    const SIZE: u64 = 48 << 20;
    fs::write(dir.path().join("large"), pattern(5, SIZE)).unwrap();
    let url = archive.url();
    let words = ["archive", dir.path().to_str().unwrap(), &url, "--bwlimit"];
    let mut child = agent
        .command(words.iter().chain(&["8MiB/s"]))
        .spawn()
        .unwrap();
    let uploads = |path: &str| {
        agent
            .http("GET", &format!("/v1/uploads{path}"), &[], b"")
            .json()
    };
    let offset = || {
        let id = uploads("")[0]["id"].as_str()?.to_owned();
        uploads(&format!("/{id}"))["offset"].as_u64()
    };
    let enough = |offset: &u64| *offset >= 10 << 20;
    let began = eventually(Duration::from_secs(60), || offset().filter(enough));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(began.is_some(), "{}", uploads(""));
    let before = received(&agent);
    assert_eq!(archive.summary(dir.path(), &[])["stored"], 1);
    // 10 MiB need not be sent again; the manifest is small.
    let sent = received(&agent) - before;
    assert!(sent <= SIZE - (9 << 20), "{sent} bytes of {SIZE}");
    assert_eq!(uploads(""), serde_json::json!([]));
    assert!(archive.content(&archive.entry(b"large")) == pattern(5, SIZE));
}

/// Plaintext bytes that the agent had from its clients.
fn received(agent: &Agent) -> u64 {
    let text = agent.http("GET", "/v1/metrics", &[], b"").text();
    let line = text
        .lines()
        .find(|line| line.starts_with("strongroom_plaintext_bytes_total{direction=\"in\"}"));
    line.unwrap()
        .split(' ')
        .next_back()
        .unwrap()
        .parse()
        .unwrap()
}
