//! Manifests and bundles that somebody made up who may write, or who has the
//! key: nothing outside the target, nothing privileged, bounded memory.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};

use serde_json::{Value, json};
use strongroom::manifest::RunId;

use crate::build::{Build, end, of, run_at};
use crate::support::*;
use crate::{Setup, WHY, names};

/// A manifest of these lines.
fn packed(lines: &[Value]) -> Vec<u8> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line).unwrap();
        text.push(b'\n');
    }
    zstd::bulk::compress(&text, 3).unwrap()
}

/// A directory that no restore may touch, beside the target.
struct Outside {
    setup: Setup,
    run: RunId,
}

impl Outside {
    fn new(name: &str) -> Self {
        let setup = Setup::new(name);
        let outside = setup.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), b"untouched").unwrap();
        Self {
            setup,
            run: run_at("113000"),
        }
    }

    /// Asserts that nothing but the target has changed.
    #[track_caller]
    fn is_untouched(&self, what: &str) {
        let dir = self.setup.dir.path();
        let beside: Vec<_> = names(dir)
            .into_iter()
            .filter(|name| *name != "out" && !name.starts_with("out/"))
            .collect();
        assert_eq!(beside, ["outside", "outside/victim"], "{what}");
        let victim = dir.join("outside/victim");
        assert_eq!(fs::read(&victim).unwrap(), b"untouched", "{what}");
        assert_eq!(fs::metadata(&victim).unwrap().nlink(), 1, "{what}");
    }

    /// A fresh target.
    fn clear(&self) {
        let _ = fs::remove_dir_all(self.setup.out());
        fs::create_dir(self.setup.out()).unwrap();
    }
}

#[test]
fn rule_16_a_manifest_that_names_places_outside_is_refused_whole() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let outside = Outside::new("hostile-names");
    let setup = &outside.setup;
    let mut build = Build::new(&setup.agent, &setup.bucket, "h/");
    let receipt = build.put("data", b"payload", &[]);
    let file = of("data", b"payload", &receipt);
    let absolute = setup.dir.path().join("outside/planted");
    let absolute = absolute.to_str().unwrap();
    let long = "x".repeat(300);
    let deep = "d/".repeat(2100);
    let names: Vec<(&str, &[u8])> = vec![
        ("parent", b"../outside/planted"),
        ("parent inside", b"a/../../outside/planted"),
        ("absolute", absolute.as_bytes()),
        ("empty component", b"a//b"),
        ("dot", b"a/./b"),
        ("NUL", b"a\0b"),
        ("long name", long.as_bytes()),
        ("long path", deep.as_bytes()),
        ("nothing", b""),
    ];
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    let with = |build: &Build<'_>, entries: &[Value]| {
        let mut lines = vec![build.head(&run_at("113000"))];
        lines.extend(entries.iter().map(|entry| json!({ "entry": entry })));
        lines.push(end(entries));
        packed(&lines)
    };
    let one = |build: &mut Build<'_>, path: &[u8], kind: &str, more: &Value| {
        build.entries.clear();
        build.entry(path, kind, 0o644, more.clone()).clone()
    };
    for (what, path) in names {
        let entry = one(&mut build, path, "file", &file);
        cases.push((what.to_owned(), with(&build, &[entry])));
    }
    let good = one(&mut build, b"a", "file", &file);
    let twice = [good.clone(), good.clone()];
    cases.push(("twice".into(), with(&build, &twice)));
    let later = one(&mut build, b"b", "file", &file);
    cases.push(("unsorted".into(), with(&build, &[later, good.clone()])));
    let link = one(
        &mut build,
        b"l",
        "symlink",
        &json!({ "target": "../outside" }),
    );
    let through = one(&mut build, b"l/planted", "file", &file);
    cases.push(("through a link".into(), with(&build, &[link, through])));
    let below = one(&mut build, b"a/b", "file", &file);
    cases.push(("below a file".into(), with(&build, &[good.clone(), below])));
    let hard = json!({ "link": { "path": "../outside/victim" } });
    let hard = one(&mut build, b"z", "hardlink", &hard);
    cases.push((
        "hard link outside".into(),
        with(&build, &[good.clone(), hard]),
    ));
    let mut huge = good.clone();
    huge["bundle"] = json!({ "key": "data", "message_id": receipt.message_id, "offset": u64::MAX });
    huge.as_object_mut().unwrap().remove("object");
    cases.push(("huge offset".into(), with(&build, &[huge])));
    let mut key = good.clone();
    key["object"]["key"] = "/data".into();
    cases.push(("absolute key".into(), with(&build, &[key])));
    let mut mode = good.clone();
    mode["mode"] = "107777".into();
    cases.push(("mode".into(), with(&build, &[mode])));
    let head = build.head(&outside.run);
    let entry = json!({ "entry": good });
    cases.push(("no end".into(), packed(&[head.clone(), entry.clone()])));
    let mut short = end(&[]);
    cases.push((
        "wrong counts".into(),
        packed(&[head.clone(), entry.clone(), short.clone()]),
    ));
    short = end(std::slice::from_ref(&good));
    short["end"]["complete"] = false.into();
    cases.push((
        "incomplete".into(),
        packed(&[head.clone(), entry.clone(), short]),
    ));
    let other = json!({ "head": { "format": "strongroom-manifest", "version": 1, "run": "20261122T000000Z-00000000",
        "started": "", "host": "", "roots": [], "bucket": "", "prefix": "h/", "program": "" }});
    cases.push(("another run's".into(), packed(&[other, end(&[])])));
    let mut elsewhere = head.clone();
    elsewhere["head"]["prefix"] = "other/".into();
    cases.push(("another prefix".into(), packed(&[elsewhere, end(&[])])));
    cases.push(("no zstd".into(), b"{\"head\":{}}".to_vec()));

    assert!(cases.len() > 20);
    for (what, manifest) in cases {
        outside.clear();
        build.store(&outside.run, &manifest);
        let run = setup.restore(&build.url(), &["--overwrite", "always", "--exact"]);
        assert_eq!(run.code, Some(65), "{what}: {}", run.stderr);
        let text = &run.stderr;
        assert!(
            text.contains("cannot be used") && text.contains("\nhint: "),
            "{what}: {text}"
        );
        assert_eq!(names_of(&setup.out()), [""; 0], "{what}");
        outside.is_untouched(&what);
    }
}

fn names_of(dir: &std::path::Path) -> Vec<String> {
    names(dir)
}

#[test]
fn rule_16_links_that_are_there_already_lead_nowhere() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let outside = Outside::new("hostile-links");
    let setup = &outside.setup;
    let mut build = Build::new(&setup.agent, &setup.bucket, "h/");
    build.dir("d", 0o755);
    build.file("d/planted", b"payload");
    build.file("file", b"payload");
    build.entry(
        b"x-hard",
        "hardlink",
        0o644,
        json!({ "link": { "path": "d/planted" } }),
    );
    build.dir("other", 0o755);
    build.file("other/good", b"good");
    // Stays a link, and nothing is written through it later either.
    build.entry(b"s", "symlink", 0o777, json!({ "target": "../outside" }));
    build.finish(&outside.run);
    outside.clear();
    let out = setup.out();
    symlink("../outside", out.join("d")).unwrap();
    symlink("../outside/victim", out.join("file")).unwrap();
    let run = setup.restore(&build.url(), &["--overwrite", "always"]);
    run.fails(
        1,
        &[
            "cannot restore d/planted: a link or a file is in a directory's place",
            "hint:",
        ],
    );
    outside.is_untouched("links in the way");
    // The link was replaced, and not what it pointed to; the rest came back.
    assert!(fs::symlink_metadata(out.join("file")).unwrap().is_file());
    assert_eq!(fs::read(out.join("other/good")).unwrap(), b"good");
    assert_eq!(
        fs::read_link(out.join("s")).unwrap().to_str(),
        Some("../outside")
    );
}

#[test]
fn rule_16_nothing_privileged_comes_back_unasked() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let outside = Outside::new("hostile-rights");
    let setup = &outside.setup;
    let mut build = Build::new(&setup.agent, &setup.bucket, "h/");
    let suid = build.file("suid", b"#!/bin/sh\n");
    suid["mode"] = "6755".into();
    suid["uid"] = 12345.into();
    suid["gid"] = 54321.into();
    // VFS_CAP_REVISION_2 with CAP_SETUID effective and permitted.
    let mut capability = vec![1, 0, 0, 2];
    capability.extend([0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    suid["xattrs"] = json!({
        "security.capability": data_encoding::BASE64.encode(&capability),
        "trusted.x": data_encoding::BASE64.encode(b"x"),
    });
    build.dir("sticky", 0o3777)["uid"] = 12345.into();
    build.entry(b"null", "char", 0o666, json!({ "rdev": 259 }));
    build.entry(b"disk", "block", 0o666, json!({ "rdev": 2048 }));
    build.finish(&outside.run);
    let me = rustix::process::geteuid().as_raw();
    let out = setup.out();
    let stat = |name: &str| fs::symlink_metadata(out.join(name)).unwrap();
    let run = setup.restore(&build.url(), &["--json"]).ok();
    assert_eq!(crate::end(&run)["skipped"], json!(2), "{}", run.text());
    assert_eq!(
        (stat("suid").mode() & 0o7777, stat("suid").uid()),
        (0o755, me)
    );
    assert_eq!(
        (stat("sticky").mode() & 0o7777, stat("sticky").uid()),
        (0o777, me)
    );
    let attributes: Vec<_> = xattr::list(out.join("suid")).unwrap().collect();
    assert!(
        !attributes.iter().any(|name| {
            let name = name.to_string_lossy();
            name.starts_with("security.capability") || name.starts_with("trusted.")
        }),
        "{attributes:?}"
    );
    assert_eq!(names(&out), ["sticky", "suid"]);
    if me != 0 {
        return;
    }
    // On request, and by root, all of it does.
    outside.clear();
    let more = ["--owner", "--special-modes", "--numeric-ids"];
    setup.restore(&build.url(), &more).ok();
    assert_eq!(
        (stat("suid").mode() & 0o7777, stat("suid").uid()),
        (0o6755, 12345)
    );
    assert_eq!(
        (stat("suid").gid(), stat("sticky").mode() & 0o7777),
        (54321, 0o3777)
    );
}

#[test]
fn rule_16_bombs_and_lies_cost_little() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let outside = Outside::new("hostile-sizes");
    let setup = &outside.setup;
    let mut build = Build::new(&setup.agent, &setup.bucket, "h/");
    let head = serde_json::to_vec(&build.head(&outside.run)).unwrap();
    // A gibibyte of one line, in some hundred KiB.
    let mut line = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    line.write_all(&head).unwrap();
    line.write_all(b"\n{\"entry\":{\"path\":\"").unwrap();
    let block = vec![b'a'; 1 << 20];
    for _ in 0..1024 {
        line.write_all(&block).unwrap();
    }
    let line = line.finish().unwrap();
    assert!(line.len() < 1 << 20);
    // A frame that wants a window of 1 GiB.
    let mut window = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    window.window_log(30).unwrap();
    window.long_distance_matching(true).unwrap();
    window.write_all(&head).unwrap();
    let window = window.finish().unwrap();
    for (what, manifest) in [("line", &line), ("window", &window)] {
        build.store(&outside.run, manifest);
        outside.clear();
        let out = setup.out();
        let url = build.url();
        // Address space and all: what a greedy reader would take.
        let script = format!(
            "ulimit -v 1500000; exec strongroom restore {url} {}",
            out.display()
        );
        let run = setup.agent.bash(&script);
        assert_eq!(run.code, Some(65), "{what}: {}", run.stderr);
        assert!(
            run.stderr.contains("cannot be used"),
            "{what}: {}",
            run.stderr
        );
        outside.is_untouched(what);
    }
    // A bundle's offsets point behind its end, or at another's bytes.
    build.bundle("bundle", &[("one", b"first"), ("two", b"second")]);
    build.entries[0]["bundle"]["offset"] = (1_u64 << 40).into();
    build.file("good", b"good");
    build.finish(&outside.run);
    outside.clear();
    let run = setup.restore(&build.url(), &[]);
    assert_ne!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(names(&setup.out()), ["good", "two"], "{}", run.stderr);
    build.entries.clear();
    build.bundle("bundle", &[("one", b"first"), ("two", b"second")]);
    build.entries[0]["bundle"]["offset"] = 5.into();
    build.finish(&outside.run);
    outside.clear();
    let run = setup.restore(&build.url(), &[]);
    run.fails(65, &["its SHA-256 is not the one in the manifest"]);
    assert_eq!(names(&setup.out()), ["two"]);
    // An object that was exchanged for another message of the same place.
    build.entries.clear();
    build.file("one", b"first");
    build.entries[0]["object"]["message_id"] = "0".repeat(64).into();
    build.finish(&outside.run);
    outside.clear();
    setup
        .restore(&build.url(), &[])
        .fails(65, &["is another message"]);
    assert_eq!(names_of(&setup.out()), [""; 0]);
}
