//! There and back: what rsync says of the difference between a tree and its
//! restored copy is nothing.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::support::{Agent, Hsm, Weed, lacking, run, temp_dir};
use crate::{Archive, is_skipped, soak, support, tree};

/// Asserts that nothing differs: content, times, modes, owners, links, access
/// lists, attributes.
#[track_caller]
fn no_difference(from: &Path, to: &Path) {
    let slash = |path: &Path| format!("{}/", path.display());
    let mut rsync = Command::new("rsync");
    rsync
        .args(["-aHAXc", "--dry-run", "--itemize-changes", "--delete"])
        // Nobody listens at a restored socket: it is in the manifest, and not
        // made again.
        .arg("--exclude=/sock")
        .args([slash(from), slash(to)]);
    if Command::new("rsync").arg("--version").output().is_err() {
        lacking("rsync");
    }
    let difference = run(&mut rsync, b"").ok();
    assert_eq!(difference.text(), "", "{}", difference.stderr);
}

#[test]
fn rsync_finds_no_difference_in_what_was_restored() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let dir = temp_dir();
    let root = dir.path().join("tree");
    let count = if soak() { 100_000 } else { 1000 };
    tree::make(&root, count);
    // One object each, too, where there is time for it.
    let ways = [&["--bundle"][..], &[]];
    for options in &ways[..if soak() { 2 } else { 1 }] {
        let archive = Archive::new(&agent, weed.bucket("there-and-back"));
        let began = Instant::now();
        archive.summary(&root, options);
        let first = began.elapsed();
        let began = Instant::now();
        let second = archive.summary(&root, options);
        let again = began.elapsed();
        assert_eq!(
            (&second["stored"], &second["stored_bytes"]),
            (&0.into(), &0.into())
        );
        let copy = dir.path().join("copy");
        let began = Instant::now();
        let url = archive.url();
        agent
            .cli(["restore", &url, copy.to_str().unwrap(), "--exact"])
            .ok();
        support::tell(&format!(
            "tree of {} entries, archive {options:?}: {first:.1?}, nothing new {again:.1?}, restored in {:.1?}",
            second["entries"],
            began.elapsed()
        ));
        // In bundles the first run is so fast that the walk itself is more.
        if soak() && options.is_empty() {
            assert!(again < first / 20, "{again:?} after {first:?}");
        }
        no_difference(&root, &copy);
        no_difference(&copy, &root);
        let blocks = |root: &Path| fs::metadata(root.join("sparse")).unwrap().blocks();
        assert!(blocks(&copy) * 512 < 1 << 20, "{} blocks", blocks(&copy));
        fs::remove_dir_all(copy).unwrap();
    }
}
