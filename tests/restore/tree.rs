//! Trees come back as they were, and only what is missing is written.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::build::{Build, MTIME, run_at};
use crate::support::*;
use crate::{Setup, WHY, end, names};

/// A tree with one of everything.
fn tree<'a>(setup: &'a Setup) -> (Build<'a>, Vec<u8>) {
    let mut build = Build::new(&setup.agent, &setup.bucket, "host/");
    build.dir(".", 0o755);
    build.dir("a", 0o750);
    build.dir("a/closed", 0o555);
    build.file("a/closed/x", b"in a closed directory");
    build.dir("empty", 0o711);
    build.file("empty-file", b"");
    build.file("a/plain", b"plain")["mode"] = "0600".into();
    build.file("a/attributes", b"with attributes")["xattrs"] =
        json!({ "user.note": data_encoding::BASE64.encode(b"hello") });
    let mut holes = vec![0; 3 << 20];
    holes[1 << 20..(1 << 20) + 5].copy_from_slice(b"hello");
    build.file("holes", &holes)["sparse"] = true.into();
    build.bundle(
        ".strongroom-archive/bundles/b-0.bundle",
        &[
            ("s/1", b"one"),
            ("s/2", b""),
            ("s/3", b"three"),
            ("s/4", b"four"),
        ],
    );
    build.dir("s", 0o755);
    let odd = b"odd/\xff\xfe name";
    build.dir("odd", 0o755);
    build.file_with(odd, ".strongroom-archive/names/x", b"odd", &[]);
    build.entry(
        b"a/link",
        "symlink",
        0o777,
        json!({ "target": "../nowhere/at all" }),
    );
    build.entry(
        b"z-hard",
        "hardlink",
        0o600,
        json!({ "link": { "path": "a/plain" } }),
    );
    build.entry(b"pipe", "fifo", 0o620, json!({}));
    build.entry(b"socket", "socket", 0o700, json!({}));
    (build, holes)
}

#[test]
fn a_tree_comes_back_with_all_that_was_known_of_it() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let setup = Setup::new("tree");
    let (mut build, holes) = tree(&setup);
    build.finish(&run_at("113000"));
    let run = setup.restore(&build.url(), &["--json"]).ok();
    let counts = end(&run);
    assert_eq!(
        (&counts["files"], &counts["failed"]),
        (&json!(10), &json!(0)),
        "{counts}"
    );
    assert_eq!(
        (&counts["links"], &counts["skipped"]),
        (&json!(2), &json!(1)),
        "{counts}"
    );
    let out = setup.out();
    let mode = |name: &str| fs::symlink_metadata(out.join(name)).unwrap().mode() & 0o7777;
    for (name, expected) in [
        ("", 0o755),
        ("a", 0o750),
        ("a/closed", 0o555),
        ("empty", 0o711),
        ("a/plain", 0o600),
        ("s/3", 0o640),
        ("pipe", 0o620),
    ] {
        assert_eq!(mode(name), expected, "{name}");
    }
    for name in [
        "",
        "a",
        "a/closed",
        "a/closed/x",
        "a/link",
        "holes",
        "s/2",
        "s",
        "pipe",
    ] {
        let meta = fs::symlink_metadata(out.join(name)).unwrap();
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (MTIME.0, MTIME.1.into()),
            "{name}"
        );
    }
    for (name, bytes) in [
        ("s/1", &b"one"[..]),
        ("s/2", b""),
        ("s/4", b"four"),
        ("empty-file", b""),
    ] {
        assert_eq!(fs::read(out.join(name)).unwrap(), bytes, "{name}");
    }
    assert_eq!(fs::read(out.join("holes")).unwrap(), holes);
    let blocks = fs::metadata(out.join("holes")).unwrap().blocks();
    assert!(
        blocks * 512 < 1 << 20,
        "{blocks} blocks: the holes were written"
    );
    let odd = out.join(OsStr::from_bytes(b"odd/\xff\xfe name"));
    assert_eq!(fs::read(odd).unwrap(), b"odd");
    let target = fs::read_link(out.join("a/link")).unwrap();
    assert_eq!(target.to_str(), Some("../nowhere/at all"));
    let (first, second) = ("a/plain", "z-hard");
    let inode = |name: &str| fs::metadata(out.join(name)).unwrap().ino();
    assert_eq!(inode(first), inode(second));
    assert!(
        fs::symlink_metadata(out.join("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let note = xattr::get(out.join("a/attributes"), "user.note").unwrap();
    assert_eq!(note.as_deref(), Some(&b"hello"[..]));
    assert!(!out.join("socket").exists());

    // Again: everything is there, and cron hears nothing.
    let again = setup.restore(&build.url(), &["--json"]).ok();
    let counts = end(&again);
    assert_eq!(
        (&counts["files"], &counts["unchanged"]),
        (&json!(0), &json!(13)),
        "{counts}"
    );
    let quiet = setup.restore(&build.url(), &[]).ok();
    assert_eq!((quiet.text().as_str(), quiet.stderr.as_str()), ("", ""));

    // By its content, where somebody took care to keep size and time.
    let file = fs::File::options()
        .write(true)
        .open(out.join("s/3"))
        .unwrap();
    std::io::Write::write_all(&mut &file, b"THREE").unwrap();
    let at = std::time::UNIX_EPOCH + Duration::new(MTIME.0.try_into().unwrap(), MTIME.1);
    file.set_modified(at).unwrap();
    setup.restore(&build.url(), &[]).ok();
    assert_eq!(fs::read(out.join("s/3")).unwrap(), b"THREE");
    setup.restore(&build.url(), &["--checksum"]).ok();
    assert_eq!(fs::read(out.join("s/3")).unwrap(), b"three");
}

#[test]
fn newer_files_are_kept_unless_told() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let setup = Setup::new("newer");
    let mut build = Build::new(&setup.agent, &setup.bucket, "");
    for name in ["newer", "older", "same"] {
        build.file(name, b"archived");
    }
    build.finish(&run_at("113000"));
    let out = setup.out();
    fs::create_dir(&out).unwrap();
    let write = |name: &str, seconds: i64| {
        let file = fs::File::create(out.join(name)).unwrap();
        std::io::Write::write_all(&mut &file, b"here").unwrap();
        let at = std::time::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap());
        file.set_modified(at).unwrap();
    };
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let both = || (read("newer"), read("older"));
    let expect = |newer: &str, older: &str| assert_eq!(both(), (newer.into(), older.into()));
    write("newer", MTIME.0 + 100);
    write("older", MTIME.0 - 100);
    setup.restore(&build.url(), &["--overwrite", "never"]).ok();
    expect("here", "here");
    let dry = setup.restore(&build.url(), &["--dry-run"]).ok();
    assert_eq!(dry.text(), "older\n");
    expect("here", "here");
    let run = setup.restore(&build.url(), &[]).ok();
    assert!(
        run.stderr.contains("1 files here were kept"),
        "{}",
        run.stderr
    );
    expect("here", "archived");
    setup.restore(&build.url(), &["--overwrite", "always"]).ok();
    expect("archived", "archived");
    // A directory in a file's place is nobody's to remove.
    fs::remove_file(out.join("same")).unwrap();
    fs::create_dir(out.join("same")).unwrap();
    let run = setup.restore(&build.url(), &["--overwrite", "always"]);
    run.fails(1, &["a directory of this name is there", "hint:"]);
}

#[test]
fn parts_come_back_alone() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let setup = Setup::new("parts");
    let (mut build, _) = tree(&setup);
    build.finish(&run_at("113000"));
    let restored = |patterns: &[&str]| {
        let _ = fs::remove_dir_all(setup.out());
        let run = setup.restore(&build.url(), patterns);
        (run.code, names(&setup.out()), run.stderr)
    };
    assert_eq!(restored(&["s/3"]).1, ["s", "s/3"]);
    assert_eq!(restored(&["a/closed"]).1, ["a", "a/closed", "a/closed/x"]);
    assert_eq!(restored(&["[13]"]).1, ["s", "s/1", "s/3"]);
    assert_eq!(
        restored(&["s", "--exclude", "4"]).1,
        ["s", "s/1", "s/2", "s/3"]
    );
    // Another name of a file that is not wanted is a file all the same.
    assert_eq!(restored(&["z-hard"]).1, ["z-hard"]);
    assert_eq!(fs::read(setup.out().join("z-hard")).unwrap(), b"plain");
    // The directories above have their own modes.
    restored(&["a/plain"]);
    let mode = fs::metadata(setup.out().join("a"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o750);
    let (code, found, stderr) = restored(&["nothing-like-it"]);
    assert_eq!((code, found.len()), (Some(66), 0), "{stderr}");
    // One file of a bundle: little is asked for.
    let list = setup
        .agent
        .cli(["restore", &build.url(), "--list-files"])
        .ok();
    assert!(
        list.text().contains("-0640            5") && list.text().contains(" s/3\n"),
        "{}",
        list.text()
    );
}

#[test]
fn a_killed_restore_goes_on_and_leaves_nothing_of_its_own() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let setup = Setup::new("killed");
    let mut build = Build::new(&setup.agent, &setup.bucket, "big/");
    let bodies: Vec<Vec<u8>> = (0..6).map(|n| pattern(n + 1, 4 << 20)).collect();
    for (n, body) in bodies.iter().enumerate() {
        build.file(&format!("d/{n}"), body);
    }
    build.finish(&run_at("113000"));
    let out = setup.out();
    let url = build.url();
    for pause in [20, 60, 120, 200] {
        let mut child = setup
            .agent
            .command(["restore", &url, out.to_str().unwrap(), "--jobs", "2"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        // What has a name is whole.
        for (n, body) in bodies.iter().enumerate() {
            if let Ok(found) = fs::read(out.join(format!("d/{n}"))) {
                assert!(found == *body, "a part of {n} was left");
            }
        }
    }
    setup.restore(&url, &[]).ok();
    assert_eq!(names(&out), ["d", "d/0", "d/1", "d/2", "d/3", "d/4", "d/5"]);
    for (n, body) in bodies.iter().enumerate() {
        assert!(fs::read(out.join(format!("d/{n}"))).unwrap() == *body);
    }
}
