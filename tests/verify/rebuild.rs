//! A catalogue that is copied, put back, damaged, lost and rebuilt.

use std::fs;
use std::path::Path;

use super::lineage::{FILES, start};
use super::*;

fn lose(agent: &Agent) {
    for file in FILES {
        let _ = fs::remove_file(agent.state_dir().join(file));
    }
}

fn restore(agent: &Agent, file: &Path, more: &[&str]) -> Run {
    let file = file.to_str().unwrap();
    agent.cli([&["catalog", "restore", file], more].concat())
}

#[test]
fn a_backup_is_an_object_like_any_other_and_is_put_back_with_what_it_knew() {
    if !TokenKind::SoftHsm.is_only("the token has no part in it") {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = &weed.bucket("backup");
    let place = &format!("s3://{bucket}/");
    let mut agent = Agent::start(&hsm, weed, |_| {});
    put(&agent, bucket, "before", b"x");
    let at = format!("{place}catalogues/monday");
    let run = agent.cli(["catalog", "backup", &at]).ok();
    assert_eq!(run.text() + &run.stderr, "", "silent under cron");
    put(&agent, bucket, "after", b"x");
    verify(&agent, place, &["--level", "read"]).is(&BTreeMap::new());
    // Nothing of the copy is left beside it, and none of it is in the clear.
    let spool = agent.state_dir().join("spool");
    assert_eq!(fs::read_dir(spool).unwrap().count(), 0);
    let stored = weed.raw_get(bucket, "catalogues/monday").unwrap();
    assert!(!stored.windows(6).any(|window| window == b"SQLite"));

    let file = agent.dir().join("copy");
    agent
        .cli(["get".as_ref(), at.as_ref(), file.as_os_str()])
        .ok();
    restore(&agent, &file, &[]).fails(1, &["the agent runs", "hint: stop it first"]);
    agent.stop();
    restore(&agent, &file, &[]).fails(73, &["3 changes, and this copy 1", "--force"]);
    // Whatever is no whole catalogue is refused, and nothing is touched.
    let whole = fs::read(&file).unwrap();
    let bad = agent.dir().join("bad");
    for damaged in [
        b"no database".to_vec(),
        whole[..whole.len() / 2].to_vec(),
        {
            let mut page = whole.clone();
            page[8192..12288].fill(0x5a);
            page
        },
    ] {
        fs::write(&bad, damaged).unwrap();
        restore(&agent, &bad, &["--force"]).fails(65, &["is damaged", "hint: "]);
    }
    start(&mut agent);
    verify(&agent, place, &[]).is(&BTreeMap::new());
    agent.stop();

    let told = restore(&agent, &file, &["--force"]).ok().text();
    assert!(
        told.contains("1 receipts") && told.contains("lost: "),
        "{told}"
    );
    start(&mut agent);
    let red = verify(&agent, place, &[]);
    assert_eq!(red.count("catalogue-rolled-back"), 1);
    assert_eq!(red.count("extra"), 2);
    let key = agent.cli(["--json", "key", "show", "archive"]).ok().json();
    assert_eq!(key["wraps_complete"], false, "{key}");
    agent.cli(["catalog", "rebuild", place]).ok();
    agent.cli(["catalog", "accept"]).ok();
    verify(&agent, place, &["--level", "read"]).is(&BTreeMap::new());
}

#[test]
fn rule_15_a_rebuilt_catalogue_says_first_seen_and_detects_from_then_on() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    for bucket in [
        weed.bucket("rebuilt"),
        weed.versioned_bucket("rebuilt-versions"),
    ] {
        let bucket = &bucket;
        let versioned = bucket.starts_with("rebuilt-v");
        let place = &format!("s3://{bucket}/");
        let mut agent = Agent::start(&hsm, weed, |_| {});
        for i in 0..10 {
            put(&agent, bucket, &format!("k{i}"), &pattern(i, i * 1000));
        }
        put(&agent, bucket, "k1", b"second");
        put(&agent, bucket, "theirs", b"x");
        put(&agent, bucket, "moved", b"x");
        let moved = Copy::of(bucket, "moved");
        agent.cli(["rm", &format!("{place}moved")]).ok();
        agent.stop();
        lose(&agent);
        start(&mut agent);
        moved.put(bucket, "elsewhere");
        weed.raw_put(bucket, "theirs", b"no message");

        assert_eq!(verify(&agent, place, &[]).count("catalogue-rolled-back"), 1);
        let told = agent.cli(["catalog", "rebuild", place]).ok().text();
        assert!(told.contains("elsewhere: s3://"), "{told}");
        assert!(told.contains("not-a-message: s3://"), "{told}");
        let versions = if versioned { 15 } else { 12 };
        let recorded = if versioned { 13 } else { 10 };
        let line =
            format!("{versions} versions, {recorded} remembered as first seen now, 0 known, 2 not");
        assert!(told.contains(&line), "{told}");
        let again = agent
            .cli(["--json", "catalog", "rebuild", place])
            .ok()
            .text();
        assert!(again.contains("\"recorded\":0"), "{again}");

        agent.cli(["catalog", "accept"]).ok();
        let after = verify(&agent, place, &["--level", "read"]);
        let expected = [("elsewhere", "swapped"), ("theirs", "extra")];
        after.is(&expected.map(|(k, w)| (k.to_owned(), w.to_owned())).into());
        let inspected = agent
            .cli(["--json", "inspect", &format!("{place}k1")])
            .ok()
            .json();
        let words = inspected["catalogue"].as_str().unwrap();
        assert!(words.starts_with("current, first seen on 20"), "{words}");
        let got = agent.cli(["get", &format!("{place}k1"), "-"]).ok();
        assert_eq!(got.stdout, b"second");

        // From now on: what was seen is what is expected.
        let old = Copy::of(bucket, "k2");
        put(&agent, bucket, "k2", b"newer");
        old.put(bucket, "k2");
        weed.raw_delete(bucket, "k3");
        let gone = if versioned { "deleted" } else { "missing" };
        let after = verify(&agent, place, &["--allow-extra", "--level", "head"]);
        let expected = [
            ("elsewhere", "swapped"),
            ("k2", "rolled-back"),
            ("k3", gone),
        ];
        after.is(&expected.map(|(k, w)| (k.to_owned(), w.to_owned())).into());
    }
}
