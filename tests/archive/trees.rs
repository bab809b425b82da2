//! Whole trees: everything is in the manifest, a second run stores nothing,
//! and what changed is stored.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Instant;

use strongroom::manifest::{Entry, Kind, NAMES};

use crate::support::{Agent, Hsm, Weed, temp_dir};
use crate::{Archive, is_skipped, soak, support, tree};

#[test]
fn a_tree_is_stored_whole_and_once() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let archive = Archive::new(&agent, weed.bucket("tree"));
    let dir = temp_dir();
    let root = dir.path().join("tree");
    let count = if soak() { 100_000 } else { 160 };
    tree::make(&root, count);

    let began = Instant::now();
    let first = archive.summary(&root, &[]);
    let took = began.elapsed();
    assert_eq!(first["problems"], 0, "{first}");
    let entries = archive.manifest();
    let found: BTreeSet<&[u8]> = entries
        .iter()
        .map(|entry| entry.path.as_bytes())
        .filter(|path| !path.is_empty())
        .collect();
    let there = tree::paths(&root);
    let there: BTreeSet<&[u8]> = there
        .iter()
        .map(|path| path.strip_prefix(&root).unwrap().as_os_str().as_bytes())
        .collect();
    assert!(
        found == there,
        "{:?}",
        found.symmetric_difference(&there).collect::<Vec<_>>()
    );
    assert!(entries[0].path.is_root());
    assert_eq!(first["entries"], entries.len());

    let began = Instant::now();
    let second = archive.summary(&root, &[]);
    let again = began.elapsed();
    assert_eq!(
        (&second["stored"], &second["stored_bytes"]),
        (&0.into(), &0.into())
    );
    assert_eq!(second["entries"], first["entries"]);
    support::tell(&format!(
        "archive of {} entries: first run {took:.1?}, second {again:.1?}",
        entries.len()
    ));
    if soak() {
        assert!(again < took / 20, "{again:?} after {took:?}");
    }
    let (before, after) = (entries, archive.manifest());
    assert!(before == after, "the second manifest says otherwise");

    // Content, and what is kept beside it.
    let entry = |path: &[u8]| {
        let found = after.iter().find(|entry| entry.path.as_bytes() == path);
        found.unwrap().clone()
    };
    for name in tree::names() {
        let entry = entry(&name);
        match &entry.kind {
            Kind::File(content) => {
                assert_eq!(archive.content(&entry), name, "{entry:?}");
                let plain = std::str::from_utf8(&name).is_ok_and(|text| {
                    !text.chars().any(char::is_control) && !text.starts_with(".strongroom")
                });
                assert_eq!(content.at.key.starts_with(NAMES), !plain, "{entry:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    let kind = |path: &[u8]| entry(path).kind;
    assert_eq!(
        kind(b"absolute link"),
        Kind::Symlink(b"/etc/passwd".to_vec())
    );
    assert_eq!(kind(b"dangling"), Kind::Symlink(b"gone \xff\n".to_vec()));
    assert_eq!(kind(b"fifo"), Kind::Fifo);
    assert_eq!(kind(b"sock"), Kind::Socket);
    let hard = Kind::Hardlink(strongroom::manifest::RelPath::new("-leading").unwrap());
    assert_eq!(
        (kind(b"z hard"), kind(b"sub/other hard")),
        (hard.clone(), hard)
    );
    let Kind::File(sparse) = kind(b"sparse") else {
        panic!()
    };
    assert!(sparse.sparse && sparse.size == 5 << 20);
    let first_name = entry(b"-leading");
    assert_eq!(first_name.mode, 0o4755);
    let timed = entry(b"sub/a.b");
    assert_eq!(
        (timed.mtime.seconds, timed.mtime.nanoseconds),
        (-86_400, 123_456_789)
    );
    if xattr::get(root.join("sub/a.b"), "user.note")
        .ok()
        .flatten()
        .is_some()
    {
        assert_eq!(
            timed.xattrs[1],
            ("user.note".to_owned(), b"n\0\xff".to_vec())
        );
    }
    changes_are_stored(&archive, &root);
}

/// What changed, and nothing else, is sent.
fn changes_are_stored(archive: &Archive<'_>, root: &std::path::Path) {
    let stored = |options: &[&str]| -> BTreeSet<String> {
        let events = archive.events(root, options);
        let stored = events.iter().filter(|event| event["event"] == "stored");
        stored
            .map(|event| event["path"].as_str().unwrap().to_owned())
            .collect()
    };
    fs::write(root.join("sub/a"), b"other").unwrap();
    fs::write(root.join("d00/new"), b"new").unwrap();
    fs::remove_file(root.join("sub/a!")).unwrap();
    // Only the inode changes: read, compared, and not sent.
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(root.join("...."), mode(0o600)).unwrap_or(());
    fs::set_permissions(root.join("..."), mode(0o600)).unwrap();
    assert_eq!(
        stored(&[]),
        BTreeSet::from(["d00/new".to_owned(), "sub/a".to_owned()])
    );
    assert_eq!(archive.entry(b"...").mode, 0o600);
    assert_eq!(archive.content(&archive.entry(b"sub/a")), b"other");
    let gone = |entry: &Entry| entry.path.as_bytes() == b"sub/a!";
    assert!(!archive.manifest().iter().any(gone));

    // Changed behind the times' back: only contents tell.
    let path = root.join("d00/new");
    let before = fs::metadata(&path).unwrap();
    fs::write(&path, b"NEW").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(
        stored(&[]),
        BTreeSet::from(["d00/new".to_owned()]),
        "the ctime told"
    );
    assert_eq!(stored(&["--checksum"]), BTreeSet::new());

    // A catalogue that knows nothing: --full.
    let full = archive.summary(root, &["--full", "--include", "*.b"]);
    assert_eq!(full["stored"], 1, "{full}");
}

#[test]
fn what_is_left_out_is_left_out() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let archive = Archive::new(&agent, weed.bucket("choose"));
    let dir = temp_dir();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for root in [&one, &two] {
        fs::create_dir_all(root.join("cache")).unwrap();
        for name in ["keep.txt", "drop.tmp", "cache/x", ".git", ".gitignore"] {
            fs::write(root.join(name), name).unwrap();
        }
        fs::write(root.join(".gitignore"), "keep.txt\n").unwrap();
    }
    fs::write(one.join(".strongroomignore"), "/cache/\n").unwrap();
    let url = archive.url();
    let words = [
        "archive",
        one.to_str().unwrap(),
        two.to_str().unwrap(),
        &url,
        "--exclude",
        "*.tmp",
    ];

    let dry = agent.cli(words.iter().chain(&["--dry-run"])).ok();
    assert!(
        dry.text().contains("would store one/keep.txt"),
        "{}",
        dry.text()
    );
    assert_eq!(weed.list(&archive.bucket, ""), Vec::<String>::new());

    agent.cli(words).ok();
    let entries = archive.manifest();
    let paths: Vec<String> = entries.iter().map(|entry| entry.path.to_string()).collect();
    assert_eq!(
        paths,
        [
            "one",
            "one/.git",
            "one/.gitignore",
            "one/.strongroomignore",
            "one/keep.txt",
            "two",
            "two/.git",
            "two/.gitignore",
            "two/cache",
            "two/cache/x",
            "two/keep.txt"
        ]
    );
    let twins = [
        "archive",
        one.to_str().unwrap(),
        one.to_str().unwrap(),
        &url,
    ];
    agent.cli(twins).fails(2, &["same name", "hint:"]);
    let young = archive.summary(&two, &["--min-age", "1h"]);
    assert_eq!(
        (&young["stored"], &young["left"]),
        (&0.into(), &5.into()),
        "{young}"
    );
}
