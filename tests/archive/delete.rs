//! `--delete-after`: what is deleted here is stored, and can be read.

use std::fs;
use std::path::Path;

use strongroom::manifest::Entry;

use crate::support::null_store::NullStore;
use crate::support::{Agent, Hsm, Store, Weed, pattern, temp_dir};
use crate::{Archive, is_skipped};

fn files(dir: &Path) -> usize {
    crate::tree::paths(dir)
        .iter()
        .filter(|path| path.is_file())
        .count()
}

#[test]
fn what_was_read_back_is_deleted_and_stays_in_the_archive() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    for options in [&["--delete-after"][..], &["--delete-after", "--bundle"]] {
        let archive = Archive::new(&agent, weed.bucket("delete"));
        let dir = temp_dir();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["a", "sub/b", "empty", "twice"] {
            let size = if name == "empty" { 0 } else { 5000 };
            fs::write(dir.path().join(name), pattern(9, size)).unwrap();
        }
        fs::hard_link(dir.path().join("twice"), dir.path().join("sub/twice")).unwrap();
        // Stored by an earlier run, deleted by this one.
        archive.summary(dir.path(), &["--include", "a"]);
        let summary = archive.summary(dir.path(), options);
        assert_eq!(summary["deleted"], 3, "{summary}");
        // A file with two names is never deleted, nor a directory.
        assert_eq!(files(dir.path()), 2);
        assert!(dir.path().join("sub").is_dir());

        for _ in 0..2 {
            let again = archive.summary(dir.path(), options);
            assert_eq!(
                (&again["stored"], &again["deleted"]),
                (&0.into(), &0.into())
            );
            for name in ["a", "sub/b", "empty"] {
                let entry: Entry = archive.entry(name.as_bytes());
                assert!(entry.deleted.is_some(), "{entry:?}");
                let size = if name == "empty" { 0 } else { 5000 };
                assert_eq!(archive.content(&entry), pattern(9, size));
            }
        }
        // Something new at its place ends that.
        fs::write(dir.path().join("a"), b"again").unwrap();
        archive.summary(dir.path(), &[]);
        let entry = archive.entry(b"a");
        assert_eq!(entry.deleted, None);
        assert_eq!(archive.content(&entry), b"again");
    }
}

#[test]
fn a_store_that_acknowledges_and_loses_deletes_nothing() {
    if is_skipped() {
        return;
    }
    let hsm = Hsm::new();
    // It keeps no byte: what it answers was never written.
    let store = NullStore::start_with(0, true);
    let agent = Agent::start(&hsm, Store::at(store.endpoint()), |_| {});
    let archive = Archive::new(&agent, "lossy");
    let dir = temp_dir();
    for name in ["a", "b", "c"] {
        fs::write(dir.path().join(name), pattern(3, 10_000)).unwrap();
    }
    for options in [
        &["--delete-after", "--full"][..],
        &["--delete-after", "--full", "--bundle"],
    ] {
        let run = archive.run(dir.path(), options);
        run.fails(1, &["did not delete", "cannot read back", "hint:"]);
        assert_eq!(files(dir.path()), 3);
    }
}
