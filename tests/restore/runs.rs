//! Which state comes back: the newest run, a named one, that of an instant;
//! and objects of which no manifest tells.

use std::fs;
use std::time::Duration;

use serde_json::json;
use strongroom::manifest::manifest_key;

use crate::build::{Build, run_at};
use crate::support::glacier::Glacier;
use crate::support::*;
use crate::{Setup, WHY, names};

#[test]
fn an_old_state_comes_back_as_it_was() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let setup = Setup::new("at");
    // Three runs: a file changes, another is deleted, a third appears.
    let run = |time: &str, files: &[(&str, &str)]| {
        let mut build = Build::new(&setup.agent, &setup.bucket, "h/");
        for (path, text) in files {
            build.file(path, text.as_bytes());
        }
        build.finish(&run_at(time));
        build.url()
    };
    run("010000", &[("a", "first"), ("gone", "still there")]);
    run("020000", &[("a", "second"), ("new", "new")]);
    let url = run("030000", &[("a", "third"), ("new", "newer")]);
    let state = |more: &[&str]| {
        let _ = fs::remove_dir_all(setup.out());
        setup.restore(&url, more).ok();
        let read = |name: &str| fs::read_to_string(setup.out().join(name)).ok();
        (read("a"), read("gone"), read("new"))
    };
    let is = |a: &str, gone: Option<&str>, new: Option<&str>| {
        (
            Some(a.to_owned()),
            gone.map(str::to_owned),
            new.map(str::to_owned),
        )
    };
    let first = is("first", Some("still there"), None);
    let second = is("second", None, Some("new"));
    let third = is("third", None, Some("newer"));
    assert_eq!(state(&[]), third);
    assert_eq!(state(&["--at", "2026-11-22T01:00:00Z"]), first);
    assert_eq!(state(&["--at", "2026-11-22T01:59:59Z"]), first);
    assert_eq!(state(&["--at", "2026-11-22T02:30:00Z"]), second);
    assert_eq!(state(&["--at", "2026-11-24T00:00:00Z"]), third);
    assert_eq!(state(&["--run", run_at("020000").as_str()]), second);
    let early = setup.restore(&url, &["--at", "2026-11-22T00:59:59Z"]);
    early.fails(
        66,
        &[
            "no run began at or before",
            "the oldest is 20261122T010000Z-0123abcd",
        ],
    );
    setup
        .restore(&url, &["--run", "20261122T040000Z-00000000"])
        .fails(66, &["hint:"]);
    setup
        .restore(&url, &["--run", "latest"])
        .fails(2, &["--list"]);

    let list = setup.agent.cli(["restore", "--list", "--json", &url]).ok();
    let runs: Vec<serde_json::Value> = list
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(runs.len(), 3);
    assert_eq!(runs[1]["started"], json!("2026-11-22T02:00:00Z"));

    // A file whose version is gone is named; the others come back.
    let versions = Weed::shared().list_versions(&setup.bucket, "h/a");
    let oldest = versions.last().unwrap();
    Weed::shared().raw_delete_version(&setup.bucket, "h/a", &oldest.id);
    let _ = fs::remove_dir_all(setup.out());
    let run = setup.restore(&url, &["--at", "2026-11-22T01:00:00Z"]);
    run.fails(
        66,
        &["cannot restore a:", "1 entries could not be restored"],
    );
    assert_eq!(names(&setup.out()), ["gone"]);
}

#[test]
fn rule_16_a_latest_that_was_rolled_back_or_removed_is_noticed() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let setup = Setup::new("latest");
    let weed = Weed::shared();
    let mut build = Build::new(&setup.agent, &setup.bucket, "h/");
    let latest = "h/.strongroom-archive/latest";
    build.file("a", b"first");
    build.finish(&run_at("010000"));
    let old = weed.raw_get(&setup.bucket, latest).unwrap();
    build.entries.clear();
    build.file("a", b"second");
    build.finish(&run_at("020000"));
    weed.raw_put(&setup.bucket, latest, &old);
    let run = setup.restore(&build.url(), &[]);
    run.fails(65, &["an older version was served as current", "hint:"]);
    weed.raw_delete(&setup.bucket, latest);
    let run = setup.restore(&build.url(), &[]);
    run.fails(
        66,
        &["there are runs, and nothing that names the newest", "--run"],
    );
    assert!(names(&setup.out()).is_empty());
    // An older manifest in the place of the one that `latest` names.
    let manifest = |time: &str| format!("h/{}", manifest_key(&run_at(time)));
    let first = weed.raw_get(&setup.bucket, &manifest("010000")).unwrap();
    weed.raw_put(&setup.bucket, &manifest("020000"), &first);
    let run = setup.restore(&build.url(), &["--run", run_at("020000").as_str()]);
    run.fails(65, &["the object belongs elsewhere"]);
    // The manifest itself, of a run that is named, may be read all the same.
    setup
        .restore(&build.url(), &["--run", run_at("010000").as_str()])
        .ok();
    assert_eq!(fs::read(setup.out().join("a")).unwrap(), b"first");
}

#[test]
fn objects_without_a_manifest_become_files() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let weed = Weed::shared();
    let relay = Glacier::before(&weed.store.url);
    let store = Store {
        url: relay.url.clone(),
        ..weed.store.clone()
    };
    let setup = Setup::with("plain", &store);
    let build = Build::new(&setup.agent, &setup.bucket, "p/");
    build.put("a/b", b"first", &[]);
    build.put("gone", b"gone later", &[]);
    std::thread::sleep(Duration::from_millis(1100));
    let between = jiff::Timestamp::now();
    std::thread::sleep(Duration::from_millis(1100));
    build.put("a/b", b"second", &[]);
    build.put("new", b"new", &[]);
    // The store may list what it likes.
    let odd = ["../out-of-it", "x//y", "/absolute", "a/../../z", "a/./b"];
    for odd in odd {
        relay.list(&format!("p/{odd}"));
    }
    let target = format!("/v1/objects/{}/p%2Fgone", setup.bucket);
    assert_eq!(setup.agent.http("DELETE", &target, &[], b"").status, 204);

    let run = setup.restore(&build.url(), &[]);
    let run = run.fails(1, &["has no manifest", "entries could not be restored"]);
    for odd in odd {
        assert!(run.stderr.contains(odd), "{odd}: {}", run.stderr);
    }
    assert_eq!(names(&setup.out()), ["a", "a/b", "new"]);
    assert_eq!(
        names(setup.dir.path()),
        ["out", "out/a", "out/a/b", "out/new"]
    );
    assert_eq!(fs::read(setup.out().join("a/b")).unwrap(), b"second");

    let _ = fs::remove_dir_all(setup.out());
    let at = between.to_string();
    setup.restore(&build.url(), &["--at", &at]).ok();
    assert_eq!(names(&setup.out()), ["a", "a/b", "gone"]);
    assert_eq!(fs::read(setup.out().join("a/b")).unwrap(), b"first");
    setup
        .restore("s3://plain-nothing-0/x/", &[])
        .fails(66, &["hint:"]);
}

#[test]
fn versions_are_listed_page_by_page() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let setup = Setup::new("versions");
    let build = Build::new(&setup.agent, &setup.bucket, "");
    let first = build.put("v", b"1", &[]);
    let second = build.put("v", b"2", &[]);
    build.put(".other", b"1", &[]);
    let target = format!("/v1/objects/{}?versions&prefix=v", setup.bucket);
    let page: strongroom::api::VersionList = setup.agent.http("GET", &target, &[], b"").parse();
    let ids: Vec<_> = page.versions.iter().map(|v| v.version_id.clone()).collect();
    assert_eq!(ids, [second.version_id, first.version_id]);
    assert!(page.versions[0].is_latest && page.continuation.is_none());
    let bad = format!("{target}&continuation=nonsense");
    setup
        .agent
        .http("GET", &bad, &[], b"")
        .fails("malformed", &["continuation"]);
    let reserved = format!(
        "/v1/objects/{}?versions&prefix=.strongroom/keyslots/",
        setup.bucket
    );
    setup
        .agent
        .http("GET", &reserved, &[], b"")
        .fails("reserved", &[]);
}
