#![allow(clippy::unwrap_used)]
//! The writer and its files: what is acknowledged is there, whatever befalls.

use std::fs;
use std::path::Path;

use super::disk::{Disk, DiskError};
use super::*;
use crate::api::Operation;

fn identity() -> Identity {
    Identity {
        host: "here".into(),
        boot_id: "boot".into(),
    }
}

fn actor() -> Actor {
    Actor {
        uid: 7,
        gid: 8,
        pid: Some(9),
        comm: None,
    }
}

fn event(phase: Option<Phase>, op: &str) -> Event {
    let mut event = Event::new(Kind::Put);
    event.phase = phase;
    event.op = Some(op.into());
    event
}

fn open(dir: &Path) -> (Disk, super::disk::Opening) {
    Disk::open(dir, 1 << 20, &identity()).unwrap()
}

fn refusal(dir: &Path) -> String {
    match Disk::open(dir, 1 << 20, &identity()) {
        Err(DiskError::Damaged(why)) => why,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it opened"),
    }
}

/// All records, in order.
fn records(dir: &Path) -> Vec<Record> {
    let mut found = Vec::new();
    for segment in segment::list(dir).unwrap() {
        for line in fs::read_to_string(segment.path).unwrap().lines() {
            found.push(serde_json::from_str(line).unwrap());
        }
    }
    found
}

fn only_segment(dir: &Path) -> std::path::PathBuf {
    let mut segments = segment::list(dir).unwrap();
    assert_eq!(segments.len(), 1);
    segments.remove(0).path
}

#[test]
fn a_log_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, opening) = open(dir.path());
    assert!(opening.open.is_empty() && opening.last.is_none());
    let origin = disk.origin().to_owned();
    let (begin, end) = (event(Some(Phase::Begin), "a"), event(Some(Phase::End), "a"));
    let other = event(Some(Phase::Begin), "b");
    let heads = disk.append(&identity(), &[&begin, &other, &end]).unwrap();
    assert_eq!(heads.last(), Some(&disk.head()));
    drop(disk);

    let (mut disk, opening) = open(dir.path());
    assert_eq!((disk.head(), disk.origin()), (heads[2], origin.as_str()));
    assert_eq!(opening.open.len(), 1);
    assert_eq!(opening.open[0].event.op.as_deref(), Some("b"));
    let mut resolved = Event::new(Kind::Resolved);
    resolved.op = Some("b".into());
    disk.append(&identity(), &[&resolved]).unwrap();
    drop(disk);
    assert!(open(dir.path()).1.open.is_empty());

    let all = records(dir.path());
    let seqs: Vec<u64> = all.iter().map(|record| record.head.seq).collect();
    assert_eq!(seqs, [0, 1, 2, 3, 4]);
    let begins: Vec<_> = all.iter().map(|record| record.event.begin).collect();
    assert_eq!(begins, [None, None, None, Some(1), Some(2)]);
}

#[test]
fn a_full_segment_is_followed_by_another_that_knows_the_tree_and_what_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, _) = Disk::open(dir.path(), 2000, &identity()).unwrap();
    // Not in the order of their names.
    for op in ["z", "early", "a"] {
        disk.append(&identity(), &[&event(Some(Phase::Begin), op)])
            .unwrap();
    }
    for _ in 0..30 {
        disk.append(&identity(), &[&Event::new(Kind::Token)])
            .unwrap();
    }
    let head = disk.head();
    drop(disk);
    assert!(segment::list(dir.path()).unwrap().len() > 3);
    let mut whole = Range::default();
    for segment in segment::list(dir.path()).unwrap() {
        assert_eq!(whole.size(), segment.first);
        for line in fs::read_to_string(segment.path).unwrap().lines() {
            whole.push(Hash::leaf(line.as_bytes()));
        }
    }
    assert_eq!((whole.size(), whole.root()), (head.size, head.root));
    let report = verify(&Files::of(dir.path()).unwrap(), None, None).unwrap();
    assert_eq!(report.fault, None);
    assert_eq!(report.open, [1, 2, 3]);

    let (mut disk, opening) = Disk::open(dir.path(), 2000, &identity()).unwrap();
    assert_eq!(disk.head(), head);
    let ops: Vec<_> = opening.open.iter().map(|o| o.event.op.as_deref()).collect();
    assert_eq!(ops, [Some("z"), Some("early"), Some("a")]);
    for op in ["early", "a", "z"] {
        disk.append(&identity(), &[&event(Some(Phase::End), op)])
            .unwrap();
    }
    drop(disk);
    assert!(
        Disk::open(dir.path(), 2000, &identity())
            .unwrap()
            .1
            .open
            .is_empty()
    );
}

#[test]
fn what_a_crash_tore_is_cut_off_wherever_it_tore() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, _) = open(dir.path());
    disk.append(&identity(), &[&Event::new(Kind::Start)])
        .unwrap();
    let head = disk.head();
    let path = only_segment(dir.path());
    let acknowledged = fs::read(&path).unwrap();
    disk.append(
        &identity(),
        &[&Event::new(Kind::Token), &Event::new(Kind::Token)],
    )
    .unwrap();
    drop(disk);
    let all = fs::read(&path).unwrap();
    for cut in acknowledged.len()..all.len() {
        fs::write(&path, &all[..cut]).unwrap();
        let (disk, opening) = open(dir.path());
        let kept = fs::read(&path).unwrap();
        assert!(all.starts_with(&kept) && kept.ends_with(b"\n"));
        assert!(kept.starts_with(&acknowledged));
        assert_eq!(opening.cut, (cut - kept.len()) as u64);
        assert!(disk.head().size >= head.size);
    }
    // Blocks of zeros, where the file grew and its blocks were never written.
    let mut zeros = acknowledged.clone();
    zeros.resize(all.len(), 0);
    fs::write(&path, &zeros).unwrap();
    assert_eq!(open(dir.path()).0.head(), head);
    assert_eq!(fs::read(&path).unwrap(), acknowledged);
}

#[test]
fn the_first_write_of_a_segment_may_tear_too() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, _) = Disk::open(dir.path(), 600, &identity()).unwrap();
    for _ in 0..3 {
        disk.append(&identity(), &[&Event::new(Kind::Token)])
            .unwrap();
    }
    drop(disk);
    let segments = segment::list(dir.path()).unwrap();
    let last = segments.last().unwrap();
    fs::write(&last.path, b"{\"seq\":").unwrap();
    let (disk, opening) = open(dir.path());
    assert_eq!((opening.cut, disk.head().size), (7, last.first));
    assert!(!last.path.exists());
}

#[test]
fn a_log_that_is_not_what_was_written_is_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, _) = open(dir.path());
    for _ in 0..5 {
        disk.append(&identity(), &[&Event::new(Kind::Token)])
            .unwrap();
    }
    let checkpoint = Checkpoint {
        origin: disk.origin().to_owned(),
        tree: disk.head(),
        extensions: Vec::new(),
    };
    disk.keep(&Note::unsigned(checkpoint)).unwrap();
    drop(disk);
    assert_eq!(open(dir.path()).1.last.unwrap().checkpoint.tree.size, 6);
    let path = only_segment(dir.path());
    let text = fs::read_to_string(&path).unwrap();

    let cut = text.trim_end().rfind('\n').unwrap() + 1;
    fs::write(&path, &text[..cut]).unwrap();
    assert!(refusal(dir.path()).contains("over 6 records, and the log has 5"));

    // A whole other history, well-formed in itself.
    let elsewhere = tempfile::tempdir().unwrap();
    let (mut disk, _) = open(elsewhere.path());
    for _ in 0..9 {
        disk.append(&identity(), &[&Event::new(Kind::Key)]).unwrap();
    }
    drop(disk);
    fs::copy(only_segment(elsewhere.path()), &path).unwrap();
    assert!(refusal(dir.path()).contains("the last checkpoint is of"));
    fs::write(&path, "x".repeat(3 << 20)).unwrap();
    assert!(refusal(dir.path()).contains("line 1"));
    fs::write(&path, &text).unwrap();
    open(dir.path());
}

#[test]
fn a_flush_that_fails_leaves_nothing_behind_and_the_next_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut disk, _) = open(dir.path());
    disk.append(&identity(), &[&Event::new(Kind::Start)])
        .unwrap();
    let head = disk.head();
    let path = only_segment(dir.path());
    let acknowledged = fs::read(&path).unwrap();
    disk.failing = 84;
    for n in 0..84 {
        let long = Event::new(Kind::Token).detail("x".repeat(100 - n));
        let error = disk.append(&identity(), &[&long, &long]).unwrap_err();
        assert!(matches!(error, DiskError::Io { .. }), "{error}");
        assert_eq!(disk.head(), head);
    }
    // The page cache holds what was never acknowledged.
    assert!(fs::read(&path).unwrap().len() > acknowledged.len());
    disk.append(&identity(), &[&Event::new(Kind::Key)]).unwrap();
    let text = fs::read(&path).unwrap();
    assert!(text.starts_with(&acknowledged));
    assert_eq!(records(dir.path()).len(), 3);

    // What was acknowledged and is gone is not glossed over.
    disk.failing = 1;
    disk.append(&identity(), &[&Event::new(Kind::Key)])
        .unwrap_err();
    let mut lost = text.clone();
    lost[20] ^= 1;
    fs::write(&path, &lost).unwrap();
    let error = disk
        .append(&identity(), &[&Event::new(Kind::Key)])
        .unwrap_err();
    assert!(matches!(error, DiskError::Damaged(_)), "{error}");
    fs::write(&path, &text).unwrap();
    disk.append(&identity(), &[&Event::new(Kind::Key)]).unwrap();
    drop(disk);
    assert_eq!(open(dir.path()).0.head().size, 4);
}

#[test]
fn one_log_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let (_disk, _) = open(dir.path());
    let second = Disk::open(dir.path(), 1 << 20, &identity());
    assert!(
        second
            .err()
            .unwrap()
            .to_string()
            .contains("another process")
    );
}

fn start(dir: &Path) -> (Audit, Unended) {
    let settings = Settings {
        dir: dir.to_owned(),
        rotate: 1 << 20,
        also: None,
    };
    Audit::start(settings, identity(), Event::new(Kind::Start)).unwrap()
}

#[tokio::test]
async fn rule_28_an_operation_has_a_begin_and_an_end_whatever_becomes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, unended) = start(dir.path());
    assert!(unended.await.unwrap().is_empty());
    let mut op = audit.op(Operation::Put.into(), actor(), "done");
    op.begin().await.unwrap();
    assert_eq!(records(dir.path()).len(), 3, "durable on return");
    op.finish(Ok(())).await.unwrap();
    let mut op = audit.op(Kind::Get, actor(), "dropped");
    op.begin().await.unwrap();
    drop(op);
    let op = audit.op(Kind::Get, actor(), "never-began");
    let altered = Error::new(ErrorKind::Altered, "it was");
    let error = op.finish::<()>(Err(altered)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Altered);
    audit.close().await;
    let said: Vec<_> = records(dir.path())
        .into_iter()
        .skip(2)
        .map(|record| {
            let event = record.event;
            (event.op.unwrap(), event.phase, event.result, event.tamper)
        })
        .collect();
    let line = |op: &str, phase, result: Option<&str>, tamper| {
        (op.to_owned(), phase, result.map(str::to_owned), tamper)
    };
    assert_eq!(
        said,
        [
            line("done", Some(Phase::Begin), None, false),
            line("done", Some(Phase::End), Some("ok"), false),
            line("dropped", Some(Phase::Begin), None, false),
            line("dropped", Some(Phase::End), Some("abandoned"), false),
            line("never-began", None, Some("altered"), true),
        ]
    );
}

#[tokio::test]
async fn while_it_cannot_be_written_nothing_begins_and_afterwards_what_happened_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let (audit, _unended) = start(&log);
    let mut op = audit.op(Kind::Put, actor(), "before");
    op.begin().await.unwrap();
    // As if the medium were gone.
    let aside = dir.path().join("aside");
    fs::rename(&log, &aside).unwrap();
    let error = op.finish(Ok(())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AuditFailed);
    assert_eq!(audit.check().unwrap_err().kind, ErrorKind::AuditFailed);
    let mut refused = audit.op(Kind::Get, actor(), "meanwhile");
    assert_eq!(
        refused.begin().await.unwrap_err().kind,
        ErrorKind::AuditFailed
    );
    drop(refused);
    fs::rename(&aside, &log).unwrap();
    for _ in 0..100 {
        if audit.check().is_ok() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    audit.check().unwrap();
    audit.close().await;
    let events: Vec<Event> = records(&log).into_iter().map(|r| r.event).collect();
    let told: Vec<_> = events
        .iter()
        .skip(2)
        .map(|e| {
            (
                e.event,
                e.phase,
                e.phase == Some(Phase::End) && e.occurred.is_some(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (Kind::Put, Some(Phase::Begin), false),
            (Kind::Outage, None, false),
            (Kind::Put, Some(Phase::End), true),
            // It never began: a single record.
            (Kind::Get, None, false),
        ]
    );
    assert_eq!(events[4].begin, Some(2));
    assert_eq!(events[4].result.as_deref(), Some("ok"));
}

#[tokio::test]
async fn many_records_share_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let (audit, _unended) = start(dir.path());
    let writes = (0..2000).map(|i| {
        let audit = audit.clone();
        async move { audit.write(event(None, &i.to_string())).await.unwrap() }
    });
    let heads = futures_util::future::join_all(writes).await;
    let mut sizes: Vec<u64> = heads.iter().map(|head| head.size).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, (3..=2002).collect::<Vec<_>>());
    audit.close().await;
    assert_eq!(records(dir.path()).len(), 2002);
    drop(open(dir.path()));
}
