//! Manifests: what is written is read, and what is hostile is refused.
#![allow(clippy::unwrap_used)]

use super::wire::Line;
use super::*;

fn path(bytes: &[u8]) -> RelPath {
    RelPath::new(bytes).unwrap()
}

fn entry(name: &[u8], kind: Kind) -> Entry {
    Entry {
        path: path(name),
        kind,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        user: Some("backup".into()),
        group: None,
        mtime: Time {
            seconds: -1,
            nanoseconds: 999_999_999,
        },
        ctime: Time::default(),
        dev: 1,
        ino: 2,
        xattrs: Vec::new(),
        stale: None,
        deleted: None,
    }
}

fn file(name: &[u8], offset: Option<u64>) -> Entry {
    let key = object_key("p/", &path(name));
    entry(
        name,
        Kind::File(Content {
            size: 5,
            sha256: [7; 32],
            sparse: true,
            at: StoredAt {
                key,
                message_id: "ab".into(),
                version_id: None,
                offset,
            },
        }),
    )
}

fn head() -> Head {
    let run = RunId::new("2026-11-22T11:30:00Z".parse().unwrap(), 0x1a2b_3c4d);
    let started = "2026-11-22T11:30:00Z".parse().unwrap();
    let roots = vec![Root {
        path: "/srv".into(),
        name: ".".into(),
    }];
    Head::new(run, started, "h".into(), roots, "b".into(), "p/".into())
}

fn all(bytes: &[u8]) -> Result<(Vec<Entry>, End), Error> {
    let mut reader = Reader::open(bytes)?;
    assert_eq!(*reader.head(), head());
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    Ok((entries, reader.end().unwrap().clone()))
}

/// A manifest with these lines between head and end.
fn lines(lines: &[&str], end: &str) -> Vec<u8> {
    let mut text = serde_json::to_string(&Line::Head(head())).unwrap();
    for line in lines {
        text.push('\n');
        text.push_str(line);
    }
    text.push('\n');
    text.push_str(end);
    zstd::bulk::compress(text.as_bytes(), 1).unwrap()
}

const END_OF_ONE: &str =
    "{\"end\":{\"complete\":true,\"counts\":{\"entries\":1,\"files\":0,\"bytes\":0}}}\n";

#[test]
fn every_kind_of_entry_survives() {
    let mut root = entry(b"x", Kind::Dir);
    root.path = RelPath::root();
    root.xattrs = vec![
        ("user.note".into(), vec![0, 255]),
        ("user.z".into(), vec![]),
    ];
    let mut stale = file(b"a/stale", None);
    stale.stale = Some("it changed while it was read".into());
    stale.deleted = Some("20260101T000000Z-00000000".into());
    let entries = [
        root,
        entry(b"a", Kind::Dir),
        file(b"a/b", None),
        file(b"a/bundled", Some(1 << 40)),
        entry(b"a/link", Kind::Hardlink(path(b"a/b"))),
        entry(b"a/odd", Kind::Symlink(b"../\xff\n".to_vec())),
        stale,
        entry(b"a/text", Kind::Symlink(b"/etc/passwd".to_vec())),
        entry(b"a.b", Kind::Fifo),
        entry(b"b\n", Kind::Socket),
        entry(b"c", Kind::Char(0x0501)),
        entry(b"d", Kind::Block(u64::MAX)),
        file(b"e\xff", None),
    ];
    let mut writer = Writer::new(Vec::new(), &head()).unwrap();
    for entry in &entries {
        writer.entry(entry).unwrap();
    }
    let (read, end) = all(&writer.finish(true).unwrap()).unwrap();
    assert_eq!(read, entries);
    assert!(end.complete);
    assert_eq!(
        (end.counts.entries, end.counts.files, end.counts.bytes),
        (13, 4, 20)
    );
}

#[test]
fn the_order_is_that_of_a_sorted_walk() {
    let mut paths: Vec<RelPath> = ["b", "a.b", "a/z", "a", "a/b/c", "a!", "a/b"]
        .iter()
        .map(|text| path(text.as_bytes()))
        .chain([RelPath::root()])
        .collect();
    paths.sort();
    let sorted: Vec<String> = paths.iter().map(ToString::to_string).collect();
    assert_eq!(sorted, [".", "a", "a/b", "a/b/c", "a/z", "a!", "a.b", "b"]);

    let mut writer = Writer::new(Vec::new(), &head()).unwrap();
    writer.entry(&entry(b"a.b", Kind::Dir)).unwrap();
    assert!(writer.entry(&entry(b"a/b", Kind::Dir)).is_err());
    assert!(writer.entry(&entry(b"a.b", Kind::Dir)).is_err(), "twice");
}

#[test]
fn a_manifest_so_far_reads_as_what_it_is() {
    let mut writer = Writer::new(Vec::new(), &head()).unwrap();
    writer.entry(&file(b"a", None)).unwrap();
    let mut so_far = writer.pause().unwrap().clone();
    assert!(matches!(all(&so_far), Err(Error::Unfinished(2))));
    let last = writer.last().cloned();
    let rest = Writer::resume(Vec::new(), last, writer.counts()).unwrap();
    so_far.extend(rest.finish(false).unwrap());
    let (entries, end) = all(&so_far).unwrap();
    assert_eq!(entries, [file(b"a", None)]);
    assert!(!end.complete);

    writer.entry(&file(b"b", None)).unwrap();
    let (entries, end) = all(&writer.finish(true).unwrap()).unwrap();
    assert_eq!(entries.len(), 2);
    assert!(end.complete);
}

#[test]
fn rule_16_a_manifest_cut_short_is_refused() {
    let mut writer = Writer::new(Vec::new(), &head()).unwrap();
    for n in 0..50 {
        writer
            .entry(&file(format!("f{n:02}").as_bytes(), None))
            .unwrap();
    }
    let whole = writer.finish(true).unwrap();
    assert!(all(&whole).is_ok());
    for length in 0..whole.len() {
        assert!(all(&whole[..length]).is_err(), "{length} bytes");
    }
    let plain = zstd::bulk::decompress(&whole, 1 << 20).unwrap();
    for end in (0..plain.len()).filter(|at| plain[*at] == b'\n') {
        let cut = zstd::bulk::compress(&plain[..end], 1).unwrap();
        assert!(all(&cut).is_err(), "{end} bytes of text");
    }
}

#[test]
fn rule_16_hostile_entries_are_refused() {
    let dir = |path: &str| {
        format!("{{\"entry\":{{\"path\":{path},\"type\":\"dir\",\"mode\":\"0755\"}}}}")
    };
    assert!(all(&lines(&[&dir("\"fine\"")], END_OF_ONE)).is_ok());
    assert!(all(&lines(&[&dir("\".\"")], END_OF_ONE)).is_ok());
    for bad in [
        "\"../a\"",
        "\"a/../b\"",
        "\"a/..\"",
        "\"./a\"",
        "\"/etc/passwd\"",
        "\"a//b\"",
        "\"a/\"",
        "\"\"",
        "\"a\\u0000b\"",
        "null",
        "7",
        "\"..\"",
    ] {
        assert!(all(&lines(&[&dir(bad)], END_OF_ONE)).is_err(), "{bad}");
    }
    let long = format!("\"{}\"", ["x".repeat(200).as_str(); 21].join("/"));
    assert!(
        all(&lines(&[&dir(&long)], END_OF_ONE)).is_err(),
        "beyond PATH_MAX"
    );
    let name = format!("\"{}\"", "x".repeat(256));
    assert!(
        all(&lines(&[&dir(&name)], END_OF_ONE)).is_err(),
        "beyond NAME_MAX"
    );

    let stored = "{\"key\":\"k\",\"message_id\":\"m\"}";
    let hash = "0".repeat(64);
    let end = "{\"end\":{\"complete\":true,\"counts\":{\"entries\":1,\"files\":1,\"bytes\":5}}}\n";
    let fine = format!(
        "{{\"entry\":{{\"path\":\"a\",\"type\":\"file\",\"mode\":\"4755\",\"size\":5,\"sha256\":\"{hash}\",\"object\":{stored}}}}}"
    );
    assert!(all(&lines(&[&fine], end)).is_ok());
    for (from, to) in [
        ("\"4755\"", "\"104755\""),
        ("\"4755\"", "\"rwx\""),
        ("\"key\":\"k\"", "\"key\":\"/k\""),
        ("\"key\":\"k\"", "\"key\":\"\""),
        ("\"message_id\":\"m\"", "\"message_id\":\"m\",\"offset\":3"),
        ("\"object\":", "\"bundle\":"),
        ("\"size\":5", "\"size\":-5"),
        ("\"type\":\"file\"", "\"type\":\"door\""),
        ("\"type\":\"file\"", "\"type\":\"hardlink\""),
        (
            "\"type\":\"file\"",
            "\"type\":\"hardlink\",\"link\":{\"path\":\"b\"}",
        ),
        (
            "\"type\":\"file\"",
            "\"type\":\"hardlink\",\"link\":{\"path\":\"../a\"}",
        ),
        ("\"type\":\"file\"", "\"type\":\"symlink\",\"target\":\"\""),
        (
            "\"type\":\"file\"",
            "\"type\":\"symlink\",\"target\":\"a\\u0000\"",
        ),
        ("\"type\":\"file\"", "\"type\":\"block\""),
        ("\"path\":\"a\"", "\"path\":\"a\",\"path_b64\":\"/w==\""),
        ("\"path\":\"a\"", "\"path_b64\":\"YQ==\""),
        ("\"path\":\"a\"", "\"path_b64\":\"?\""),
        ("\"size\":5", "\"size\":5,\"mtime\":[0,1000000000]"),
        ("\"size\":5", "\"size\":5,\"xattrs\":{\"\":\"\"}"),
        ("\"size\":5", "\"size\":5,\"xattrs\":{\"user.a\":\"?\"}"),
    ] {
        let bad = fine.replacen(from, to, 1);
        assert_ne!(bad, fine, "{from}");
        assert!(all(&lines(&[&bad], end)).is_err(), "{to}");
    }
    let huge = fine.replace("\"object\":", "\"bundle\":").replace(
        "\"message_id\":\"m\"",
        "\"message_id\":\"m\",\"offset\":18446744073709551615",
    );
    assert!(all(&lines(&[&huge], end)).is_err());
}

#[test]
fn rule_16_order_counts_and_lengths_are_checked() {
    let dir = |name: &str| {
        format!("{{\"entry\":{{\"path\":\"{name}\",\"type\":\"dir\",\"mode\":\"0755\"}}}}")
    };
    let end = |entries: u64| {
        format!(
            "{{\"end\":{{\"complete\":true,\"counts\":{{\"entries\":{entries},\"files\":0,\"bytes\":0}}}}}}\n"
        )
    };
    assert!(all(&lines(&[&dir("a"), &dir("a/b")], &end(2))).is_ok());
    assert!(all(&lines(&[&dir("a"), &dir("a/b")], &end(3))).is_err());
    assert!(all(&lines(&[&dir("b"), &dir("a")], &end(2))).is_err());
    assert!(all(&lines(&[&dir("a"), &dir("a")], &end(2))).is_err());
    assert!(all(&lines(&[&dir("a")], &(end(1) + &dir("b") + "\n"))).is_err());
    let second = serde_json::to_string(&Line::Head(head())).unwrap();
    assert!(all(&lines(&[&second], &end(0))).is_err());
    // A line without end, of two hundred compressed bytes a mebibyte.
    let wide = format!("\"{}", " ".repeat(64 << 20));
    assert!(matches!(
        all(&lines(&[&wide], "")),
        Err(Error::Malformed { line: 2, .. })
    ));
}

#[test]
fn a_path_that_makes_no_key_gets_a_name() {
    let named = |prefix: &str, bytes: &[u8]| object_key(prefix, &path(bytes)).starts_with(NAMES);
    for plain in [
        "a",
        "a/b c",
        "-x",
        "ü/日",
        "a.strongroom-archive/x",
        "x/.strongroom-archive",
    ] {
        assert_eq!(object_key("p/", &path(plain.as_bytes())), plain);
    }
    let deep = ["d".repeat(200).as_str(); 5].join("/");
    assert!(!named(&"p".repeat(1024 - deep.len()), deep.as_bytes()));
    assert!(named(&"p".repeat(1025 - deep.len()), deep.as_bytes()));
    for odd in [
        &b"\xff"[..],
        b"a\nb",
        b"a\x1b",
        b"\x7f",
        b".strongroom-archive/latest",
        b".strongroom-archive",
        b".strongroom/keyslots/x",
        "\u{ffff}".as_bytes(),
    ] {
        assert!(named("p/", odd), "{odd:?}");
    }
    assert_eq!(
        object_key("", &path(b"\xff")),
        ".strongroom-archive/names/a8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89"
    );
}

#[test]
fn runs_sort_by_time_and_latest_names_its_own_manifest() {
    let early = RunId::new("2026-11-22T11:30:00Z".parse().unwrap(), u32::MAX);
    let late = RunId::new("2026-11-22T11:30:01Z".parse().unwrap(), 0);
    assert!(early < late);
    assert_eq!(early.as_str(), "20261122T113000Z-ffffffff");
    for bad in [
        "",
        "20261122T113000Z-FFFFFFFF",
        "20261122T113000Z-ffffffff/",
        "../../../../../../../../x",
    ] {
        assert!(RunId::try_from(bad.to_owned()).is_err(), "{bad}");
    }
    let latest = Latest::new(late, jiff::Timestamp::now(), "ab".into(), Some("v1".into()));
    let bytes = latest.encode();
    assert_eq!(Latest::decode(&bytes).unwrap(), latest);
    let text = String::from_utf8(bytes).unwrap();
    for (from, to) in [
        ("strongroom-latest", "other"),
        ("\"version\": 1", "\"version\": 2"),
        ("runs/2026", "runs/2025"),
        ("runs/", "../runs/"),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text);
        assert!(Latest::decode(bad.as_bytes()).is_err(), "{to}");
    }
}

#[test]
fn paths_know_their_directories() {
    assert_eq!(path(b"a/b/c").parent(), Some(path(b"a/b")));
    assert_eq!(path(b"a").parent(), Some(RelPath::root()));
    assert_eq!(RelPath::root().parent(), None);
    assert!(path(b"a/b").is_within(&path(b"a")));
    assert!(path(b"a").is_within(&path(b"a")));
    assert!(path(b"a").is_within(&RelPath::root()));
    assert!(!path(b"ab").is_within(&path(b"a")));
    assert_eq!(RelPath::root().join(b"x").unwrap(), path(b"x"));
    assert!(path(b"a").join(b"..").is_err());
    assert!(path(b"a").join(b"b/c").is_err());
    assert_eq!(path(b"a/b").components().count(), 2);
}
