//! Rules 6, 7 and 8 of docs/security.md, from a client's side: rollback,
//! permissions that are asked for by name, the reserved prefix.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::hsm::KEY;
use support::readers::{RawKey, Sdk};
use support::{Agent, Hsm, Weed, temp_dir};

#[test]
fn rule_06_an_older_message_than_the_receipts_is_rolled_back() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("rule-06");
    let agent = Agent::start(&hsm, weed, |_| {});
    let (path, url) = (
        format!("/v1/objects/{bucket}/k"),
        format!("s3://{bucket}/k"),
    );
    assert_eq!(agent.http("PUT", &path, &[], b"yesterday").status, 201);
    let yesterday = weed.raw_get(&bucket, "k").unwrap();
    assert_eq!(agent.http("PUT", &path, &[], b"today").status, 201);
    assert_eq!(agent.http("GET", &path, &[], b"").body, b"today");

    weed.raw_put(&bucket, "k", &yesterday);
    let reply = agent.http("GET", &path, &[], b"");
    reply.fails("rolled-back", &["replaced or deleted"]);
    assert!(!reply.text().contains("yesterday"));
    let target = agent.dir().join("out");
    agent
        .cli(["get", &url, target.to_str().unwrap()])
        .fails(65, &["replaced or deleted", "hint: "]);
    assert!(!target.exists());

    // Another writer's newer message is served, and said to be another's.
    let other = Agent::start(&hsm, weed, |_| {});
    assert_eq!(other.http("PUT", &path, &[], b"tomorrow").status, 201);
    let reply = agent.http("GET", &path, &[], b"");
    assert_eq!((reply.status, &reply.body[..]), (200, &b"tomorrow"[..]));
    assert_eq!(reply.header("strongroom-foreign-write"), Some("true"));
}

#[test]
fn rule_06_an_old_version_is_read_where_it_is_asked_for() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.versioned_bucket("rule-06-versions");
    let agent = Agent::start(&hsm, weed, |_| {});
    let path = format!("/v1/objects/{bucket}/k");
    assert_eq!(agent.http("PUT", &path, &[], b"yesterday").status, 201);
    assert_eq!(agent.http("PUT", &path, &[], b"today").status, 201);
    let versions = weed.list_versions(&bucket, "k");
    let old = versions.iter().find(|v| !v.latest).unwrap();
    let reply = agent.http("GET", &format!("{path}?version_id={}", old.id), &[], b"");
    assert_eq!((reply.status, &reply.body[..]), (200, &b"yesterday"[..]));
}

#[test]
fn rule_07_unbound_messages_open_only_by_name() {
    let bytes = [7; 32];
    let (hsm, weed) = (Hsm::with_key(&bytes), Weed::shared());
    let bucket = weed.bucket("rule-07");
    let agent = Agent::start(&hsm, weed, |_| {});
    let dir = temp_dir();
    let (plain, message) = (dir.path().join("plain"), dir.path().join("message"));
    fs::write(&plain, b"from elsewhere").unwrap();
    let key = RawKey::new(KEY, &bytes);
    let get = |name: &str, headers: &[(&str, &str)]| {
        agent.http("GET", &format!("/v1/objects/{bucket}/{name}"), headers, b"")
    };
    let allow = [("Strongroom-Allow-Unbound", "true")];

    Sdk::Python.encrypt(&key, &[("purpose", "test")], 4096, &plain, &message);
    weed.raw_put(&bucket, "unbound", &fs::read(&message).unwrap());
    get("unbound", &[]).fails("unbound", &["no bucket and key", "--allow-unbound"]);
    assert_eq!(get("unbound", &allow).body, b"from elsewhere");
    let url = format!("s3://{bucket}/unbound");
    agent
        .cli(["get", &url, "-"])
        .fails(65, &["--allow-unbound"]);
    let opened = agent.cli(["get", &url, "-", "--allow-unbound"]).ok();
    assert_eq!(opened.stdout, b"from elsewhere");

    // One pair of ours makes all of them binding, permission or not.
    let half = [("strongroom:bucket", bucket.as_str())];
    Sdk::Python.encrypt(&key, &half, 4096, &plain, &message);
    weed.raw_put(&bucket, "half", &fs::read(&message).unwrap());
    get("half", &allow).fails("elsewhere", &[]);
}

#[test]
fn rule_07_uncommitted_messages_open_only_by_name() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("rule-07-v1");
    let agent = Agent::start(&hsm, weed, |_| {});
    // Version 1, suite 0x0178, no context, one EDK of nobody's, one empty frame.
    let mut message = vec![0x01, 0x80, 0x01, 0x78];
    message.extend([9; 16]);
    message.extend([0, 0, 0, 1, 0, 1, b'n', 0, 1, b'k', 0, 1, b'c']);
    message.extend([2, 0, 0, 0, 0, 12, 0, 0, 0x10, 0]);
    message.extend([0; 12 + 16]);
    message.extend([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1]);
    message.extend([0; 12 + 4 + 16]);
    weed.raw_put(&bucket, "v1", &message);
    let path = format!("/v1/objects/{bucket}/v1");
    agent
        .http("GET", &path, &[], b"")
        .fails("uncommitted", &["--allow-uncommitted"]);
    // With permission it is only the key that is missing.
    let allow = [("Strongroom-Allow-Uncommitted", "true")];
    agent.http("GET", &path, &allow, b"").fails("no-key", &[]);
}

#[test]
fn rule_08_the_prefix_of_keyslots_is_out_of_clients_reach() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("rule-08");
    let agent = Agent::start(&hsm, weed, |_| {});
    let slot = ".strongroom/keyslots/0123/0";
    weed.raw_put(&bucket, slot, b"a slot");
    let path = format!("/v1/objects/{bucket}/{slot}");
    for (method, target) in [
        ("PUT", path.clone()),
        ("GET", path.clone()),
        ("DELETE", path.clone()),
        ("GET", format!("{path}?inspect")),
        (
            "GET",
            format!("/v1/objects/{bucket}?prefix=.strongroom/keyslots/"),
        ),
    ] {
        let reply = agent.http(method, &target, &[], b"");
        reply.fails("reserved", &["keyslot"]);
    }
    assert_eq!(agent.http("HEAD", &path, &[], b"").status, 403);
    agent
        .cli_in(["put", "-", &format!("s3://{bucket}/{slot}")], b"mine")
        .fails(77, &["keyslot prefix", "hint: "]);
    assert_eq!(weed.raw_get(&bucket, slot).unwrap(), b"a slot");

    assert_eq!(
        agent
            .http("PUT", &format!("/v1/objects/{bucket}/k"), &[], b"k")
            .status,
        201
    );
    for query in ["", "?delimiter=/", "?prefix=."] {
        let listing = agent.http("GET", &format!("/v1/objects/{bucket}{query}"), &[], b"");
        assert_eq!(listing.status, 200);
        assert!(
            !listing.text().contains("keyslots"),
            "{query}: {}",
            listing.text()
        );
    }
}
