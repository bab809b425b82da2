//! Archive classes: asking first, "not ready yet", and picking up later.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use strongroom::api::{ArchiveState, Availability};

use crate::build::{Build, run_at};
use crate::support::glacier::{Glacier, Stage};
use crate::support::*;
use crate::{WHY, names};

#[test]
fn what_is_archived_is_asked_for_first_and_picked_up_later() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let glacier = Glacier::before(&weed.store.url);
    let store = Store {
        url: glacier.url.clone(),
        ..weed.store.clone()
    };
    let agent = Agent::start(&hsm, &store, |_| {});
    let bucket = weed.bucket("cold");
    let mut build = Build::new(&agent, &bucket, "h/");
    let deep = [("Strongroom-Storage-Class", "DEEP_ARCHIVE")];
    for name in ["a", "b", "c"] {
        let body = format!("cold {name}");
        build.file_with(name.as_bytes(), name, body.as_bytes(), &deep);
    }
    build.file("warm", b"warm");
    build.entry(b"z", "hardlink", 0o644, json!({ "link": { "path": "c" } }));
    build.finish(&run_at("113000"));
    let dir = temp_dir();
    let out = dir.path().join("out");
    let url = build.url();
    let args = |more: &[&str]| {
        let mut args = vec!["restore".to_owned(), url.clone(), out.display().to_string()];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    };
    let get = |key: &str| agent.http("GET", &format!("/v1/objects/{bucket}/h/{key}"), &[], b"");
    get("a").fails("archived", &["--tier"]);

    // Without leave nothing is asked for, and what can be read comes.
    agent.cli(args(&[])).fails(
        75,
        &["4 files are in objects of an archive class", "--tier"],
    );
    assert_eq!(names(&out), ["warm"]);
    assert_eq!(glacier.count(&Stage::Archived), 3);
    // All are asked for before any is waited for; asking again costs nothing.
    let more = ["--tier", "bulk", "--days", "3"];
    agent
        .cli(args(&more))
        .fails(75, &["4 files are being restored by the store", "--wait"]);
    agent.cli(args(&more)).fails(75, &["being restored"]);
    for name in ["a", "b", "c"] {
        let item = glacier.item(&bucket, &format!("h/{name}")).unwrap();
        assert_eq!(
            (item.stage, item.asked.len()),
            (Stage::Restoring, 1),
            "{name}"
        );
        let asked = &item.asked[0];
        assert!(
            asked.contains("<Days>3</Days>") && asked.contains("<Tier>Bulk</Tier>"),
            "{asked}"
        );
    }
    // Some is ready.
    glacier.ready(1);
    agent.cli(args(&more)).fails(75, &["being restored"]);
    assert_eq!(
        names(&out).len(),
        if out.join("c").exists() { 3 } else { 2 }
    );
    glacier.ready(9);
    agent.cli(args(&more)).ok();
    assert_eq!(names(&out), ["a", "b", "c", "warm", "z"]);
    assert_eq!(fs::read(out.join("z")).unwrap(), b"cold c");

    // The route by itself.
    let ask = |key: &str, query: &str| {
        agent.http(
            "POST",
            &format!("/v1/objects/{bucket}/h/{key}?restore{query}"),
            &[],
            b"",
        )
    };
    let ready: ArchiveState = ask("a", "").parse();
    assert_eq!((ready.state, ready.asked), (Availability::Readable, false));
    assert_eq!(ready.until.as_deref(), Some("2096-12-21T00:00:00Z"));
    assert_eq!(ask("warm", "").status, 200);
    ask("a", "&tier=now").fails("malformed", &["tier"]);
    ask("a", "&days=0").fails("malformed", &["days"]);
    ask("none", "").fails("no-such-object", &[]);
    glacier.archive(&bucket, "h/a", "GLACIER");
    let inspect = agent.cli(["inspect", &format!("{url}a")]).ok();
    for words in [
        "storage class    GLACIER",
        "to be asked for before it can be read",
    ] {
        assert!(inspect.text().contains(words), "{}", inspect.text());
    }
    let reply = ask("a", "&tier=expedited");
    assert_eq!(reply.status, 202);
    let state: ArchiveState = reply.parse();
    assert_eq!((state.state, state.asked), (Availability::Restoring, true));
    let again: ArchiveState = ask("a", "").parse();
    assert_eq!((again.state, again.asked), (Availability::Restoring, false));
    let records = agent
        .cli(["audit", "tail", "-n", "1", "--json"])
        .ok()
        .text();
    assert!(records.contains("\"event\":\"restore\""), "{records}");
}

#[test]
fn waiting_goes_on_until_all_is_there() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let glacier = Glacier::before(&weed.store.url);
    let store = Store {
        url: glacier.url.clone(),
        ..weed.store.clone()
    };
    let agent = Agent::start(&hsm, &store, |_| {});
    let bucket = weed.bucket("cold-wait");
    let mut build = Build::new(&agent, &bucket, "h/");
    build.file("a", b"cold");
    build.finish(&run_at("113000"));
    // A lifecycle rule took all of it, the archive's own objects too.
    for key in weed.list(&bucket, "h/") {
        glacier.archive(&bucket, &key, "GLACIER");
    }
    // And objects that no manifest tells of.
    let body: &[u8] = b"cold too";
    let put = agent.http("PUT", &format!("/v1/objects/{bucket}/plain/d/b"), &[], body);
    assert_eq!(put.status, 201);
    glacier.archive(&bucket, "plain/d/b", "DEEP_ARCHIVE");
    let dir = temp_dir();
    let plain = format!("s3://{bucket}/plain/");
    for (url, file, text) in [(build.url(), "a", &b"cold"[..]), (plain, "d/b", body)] {
        let out = dir.path().join(file.replace('/', "-"));
        let refused = glacier.refused();
        let args = ["restore", &url, out.to_str().unwrap()];
        agent.cli(args).fails(75, &["archive", "--tier"]);
        let mut child = agent
            .command(args)
            .args(["--tier", "standard", "--wait"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let done = process::eventually(Duration::from_secs(120), || {
            glacier.ready(9);
            child.try_wait().unwrap()
        });
        let status = done.unwrap_or_else(|| {
            child.kill().unwrap();
            child.wait().unwrap()
        });
        assert_eq!(status.code(), Some(0), "{url}");
        assert_eq!(fs::read(out.join(file)).unwrap(), text);
        assert!(glacier.refused() > refused);
    }
}
