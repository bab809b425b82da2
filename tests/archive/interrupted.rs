//! Runs that are killed: what was acknowledged is not sent again.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::support::{Agent, Hsm, Weed, pattern, temp_dir};
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
        for n in 0..200_u64 {
            fs::write(dir.path().join(format!("{n:03}")), pattern(n, 20_000 + n)).unwrap();
        }
        let url = archive.url();
        let words = ["archive", dir.path().to_str().unwrap(), &url, "--json"];
        let mut told: BTreeSet<String> = BTreeSet::new();
        for kill_after in [10, 25, 40] {
            let mut command = agent.command(words.iter().chain(options));
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
        assert!(stored < 200 - 75 + 1, "{stored}");
        let entries = archive.manifest();
        assert_eq!(entries.len(), 201);
        for entry in entries.iter().skip(1).step_by(20) {
            archive.content(entry);
        }
        assert_eq!(archive.summary(dir.path(), options)["stored"], 0);
    }
}
