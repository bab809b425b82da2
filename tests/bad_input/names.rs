//! Object keys: right on the wire whatever they are made of, or refused
//! before anything is sent.

use strongroom::api::{Inspection, ListPage, Receipt};

use super::support::null_store::Op;
use super::{Rig, entries};

/// Keys that some layer between client and store might fold, decode or cut.
const KEYS: [&str; 19] = [
    "plain/2026.dump",
    "..",
    ".",
    "a/../b",
    "./a/.",
    "../../etc/passwd",
    "a//b",
    "//",
    "/lead",
    "trail/",
    "a%2Fb",
    "%2e%2e/%252F",
    "a b",
    " ",
    "a+b",
    "a?b#c&d=e",
    "\u{fc}\u{4e2d}\u{1f600}",
    "a\tb\nc\\",
    "~-_.!*'()<>\"|",
];

/// 1,024 bytes of UTF-8, which are 342 characters.
fn longest() -> String {
    let key = "\u{4e2d}".repeat(341) + "k";
    assert_eq!(key.len(), 1024);
    key
}

/// All but RFC 3986's unreserved characters percent-encoded; `/` too unless
/// `slashes` stay.
fn encoded(key: &str, slashes: bool) -> String {
    let mut text = String::new();
    for b in key.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(b));
            }
            b'/' if slashes => text.push('/'),
            _ => text += &format!("%{b:02X}"),
        }
    }
    text
}

/// Asserts that put, get, head and delete of this key, and no other, reached
/// the store since there were `before` requests.
#[track_caller]
fn on_the_wire(rig: &Rig, key: &str, before: usize) {
    let path = format!("/bucket/{}", encoded(key, true));
    let requests = &rig.null.requests()[before..];
    for op in [Op::Put, Op::Get, Op::Head, Op::Delete] {
        // Inspecting an object looks for its keyslots, too.
        let of: Vec<_> = requests
            .iter()
            .filter(|r| r.op == op && !r.target.contains("/.strongroom/keyslots/"))
            .collect();
        assert!(!of.is_empty(), "{key:?}: no {op:?}");
        for request in of {
            let sent = request.target.split('?').next();
            assert_eq!(sent, Some(path.as_str()), "{op:?} of {key:?}");
        }
    }
    assert_eq!(rig.null.keys(), [""; 0], "{key:?} is not deleted");
}

#[test]
fn every_key_is_right_on_the_wire_by_http() {
    let rig = Rig::new();
    let longest = longest();
    for key in KEYS.into_iter().chain([longest.as_str()]) {
        let target = rig.target(&encoded(key, false));
        let before = rig.null.requests().len();
        let reply = rig.agent.http("PUT", &target, &[], b"by http");
        assert_eq!(reply.status, 201, "{key:?}: {}", reply.text());
        assert_eq!(reply.parse::<Receipt>().key, key);
        assert!(
            rig.null.object(&format!("bucket/{key}")).is_some(),
            "{key:?}"
        );
        let head = rig.agent.http("HEAD", &target, &[], b"");
        assert_eq!(
            (head.status, head.content_length()),
            (200, Some(7)),
            "{key:?}"
        );
        assert_eq!(rig.agent.http("GET", &target, &[], b"").body, b"by http");
        let inspect = rig
            .agent
            .http("GET", &format!("{target}?inspect"), &[], b"");
        assert_eq!(inspect.parse::<Inspection>().key, key);
        let list = format!("/v1/objects/bucket?prefix={}", encoded(key, false));
        let page: ListPage = rig.agent.http("GET", &list, &[], b"").parse();
        assert_eq!(page.objects[0].key, key);
        assert_eq!(page.objects[0].plaintext_size, Some(7), "{key:?}");
        assert_eq!(rig.agent.http("DELETE", &target, &[], b"").status, 204);
        on_the_wire(&rig, key, before);
    }
    // Clients that do not encode slashes and dots get what they wrote.
    for key in [
        "a/../b",
        "a//b",
        "../../etc/passwd",
        "/lead",
        "trail/",
        "./a/.",
    ] {
        rig.put(key, b"raw");
        assert_eq!(rig.null.keys(), [format!("bucket/{key}")]);
        assert_eq!(rig.read(key), b"raw");
        assert_eq!(
            rig.agent.http("DELETE", &rig.target(key), &[], b"").status,
            204
        );
    }
}

#[test]
fn every_key_is_right_on_the_wire_by_the_command_line() {
    let rig = Rig::new();
    let longest = longest();
    for key in KEYS.into_iter().chain([longest.as_str()]) {
        // A key like a directory takes the source's name (see below).
        if key.ends_with('/') {
            continue;
        }
        let (url, before) = (rig.url(key), rig.null.requests().len());
        rig.agent.cli_in(["put", "-", &url], b"by cli").ok();
        assert!(
            rig.null.object(&format!("bucket/{key}")).is_some(),
            "{key:?}"
        );
        assert_eq!(rig.agent.cli(["get", &url, "-"]).ok().stdout, b"by cli");
        let inspect = rig.agent.cli(["inspect", "--json", &url]).ok().json();
        assert_eq!(inspect["key"], key);
        let listed = rig.agent.cli(["ls", "--json", "-r", &url]).ok().json();
        assert_eq!(listed["key"], key);
        rig.agent.cli(["rm", &url]).ok();
        on_the_wire(&rig, key, before);
    }
    let file = rig.path("name of file");
    std::fs::write(&file, b"x").unwrap();
    let url = rig.url("trail//");
    rig.agent.cli(["put", file.to_str().unwrap(), &url]).ok();
    assert_eq!(rig.null.keys(), ["bucket/trail//name of file"]);
    // What ends in no name cannot name a file here.
    rig.put("up/%2E%2E", b"x");
    let dir = format!("{}/", rig.path("").display());
    let run = rig.agent.cli(["get", &rig.url("up/.."), &dir]);
    run.fails(2, &["names no file", "hint: write the whole path"]);
    assert_eq!(entries(rig.dir.path()), ["name of file"]);
}

#[test]
fn keys_beyond_s3s_limits_are_refused_before_anything_is_sent() {
    let rig = Rig::new();
    let before = rig.null.requests().len();
    let (long, wide) = ("k".repeat(1025), "\u{4e2d}".repeat(342));
    for (raw, word) in [
        (long.as_str(), "the key has 1025 bytes; S3 allows 1024"),
        (&encoded(&wide, false), "the key has 1026 bytes"),
        ("a%00b", "the key contains a NUL byte"),
        ("%FF", "the key is not UTF-8"),
    ] {
        let target = rig.target(raw);
        for (method, target) in [
            ("PUT", target.clone()),
            ("GET", target.clone()),
            ("DELETE", target.clone()),
            ("GET", format!("{target}?inspect")),
        ] {
            let reply = rig.agent.http(method, &target, &[], b"");
            reply.fails("malformed", &[word, "docs/api.md"]);
        }
        assert_eq!(rig.agent.http("HEAD", &target, &[], b"").status, 400);
    }
    for (target, word) in [
        ("/v1/objects/b/k", "\"b\" is no bucket name"),
        ("/v1/objects/a%2Fb/k", "\"a/b\" is no bucket name"),
        ("/v1/objects/a%20b/k", "\"a b\" is no bucket name"),
        ("/v1/objects//k", "\"\" is no bucket name"),
    ] {
        let reply = rig.agent.http("PUT", target, &[], b"x");
        reply.fails("malformed", &[word]);
    }
    let out = rig.path("out").display().to_string();
    for (key, word) in [(&long, "1025 bytes"), (&wide, "1026 bytes")] {
        let url = rig.url(key);
        for args in [
            &["put", "-", &url][..],
            &["get", &url, &out],
            &["inspect", &url],
            &["rm", &url],
        ] {
            rig.agent.cli_in(args, b"x").fails(2, &[word, "hint: "]);
        }
    }
    for (args, word) in [
        (
            &["put", "-", "bucket/k"][..],
            "a place in the store is written s3://BUCKET/KEY",
        ),
        (&["put", "-", "s3:///k"], "the bucket is missing"),
        (
            &["put", "-", "s3://bucket"],
            "has no name for what comes from a pipe",
        ),
        (
            &["get", "s3://bucket", "out"],
            "the object's key is missing",
        ),
        (&["rm", "s3://bucket/"], "the object's key is missing"),
        (&["put", "-", "s3://b/k"], "is no bucket name"),
    ] {
        rig.agent.cli_in(args, b"x").fails(2, &[word]);
    }
    rig.nothing_sent_since(before);
    rig.nothing_left();
    assert_eq!(entries(rig.dir.path()), [""; 0]);
}

#[test]
fn the_prefix_of_keyslots_is_refused_before_anything_is_sent() {
    let rig = Rig::new();
    rig.put("mine", b"mine");
    let before = rig.null.requests().len();
    for key in [".strongroom/keyslots/", ".strongroom/keyslots/00/0"] {
        let url = rig.url(key);
        let mine = rig.url("mine");
        let out = rig.path("out").display().to_string();
        for args in [
            &["put", out.as_str(), &url][..],
            &["get", &url, &out],
            &["inspect", &url],
            &["rm", &url],
            &["rm", "-r", &url],
            &["ls", &url],
            &["cp", &url, &out],
        ] {
            if args[0] == "put" {
                std::fs::write(&out, b"x").unwrap();
            }
            let run = rig.agent.cli(args);
            run.fails(
                77,
                &[
                    "under the keyslot prefix \".strongroom/keyslots/\"",
                    "hint: choose a key outside",
                ],
            );
            let _ = std::fs::remove_file(&out);
        }
        for method in ["PUT", "GET", "DELETE"] {
            let reply = rig.agent.http(method, &rig.target(key), &[], b"");
            reply.fails("reserved", &["keyslot prefix"]);
            // However it is written.
            let reply = rig
                .agent
                .http(method, &rig.target(&encoded(key, false)), &[], b"");
            reply.fails("reserved", &["keyslot prefix"]);
        }
        assert_eq!(
            rig.agent.http("HEAD", &rig.target(key), &[], b"").status,
            403
        );
        let inspect = rig
            .agent
            .http("GET", &format!("{}?inspect", rig.target(key)), &[], b"");
        inspect.fails("reserved", &["keyslot prefix"]);
        let list = rig
            .agent
            .http("GET", &format!("/v1/objects/bucket?prefix={key}"), &[], b"");
        list.fails("reserved", &["keyslot prefix"]);
        // As a copy's target too; the source may be read for it.
        let sent = rig.null.count(Op::Put);
        if !key.ends_with('/') {
            let run = rig.agent.cli(["cp", &mine, &url]);
            run.fails(77, &["keyslot prefix"]);
        }
        assert_eq!(rig.null.count(Op::Put), sent);
    }
    let others = &rig.null.requests()[before..];
    assert!(
        others.iter().all(|r| r.target.starts_with("/bucket/mine")),
        "{others:#?}"
    );
}
