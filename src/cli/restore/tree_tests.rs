#![allow(clippy::unwrap_used)]
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn path(text: &str) -> RelPath {
    RelPath::new(text).unwrap()
}

struct Target {
    dir: tempfile::TempDir,
    tree: Tree,
}

fn target() -> Target {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::open(&dir.path().join("in")).unwrap();
    Target { dir, tree }
}

impl Target {
    fn write(&mut self, at: &str, bytes: &[u8], replace: bool) -> io::Result<()> {
        let new = self.tree.spot(&path(at))?.begin()?;
        new.file().write_all(bytes)?;
        new.put(replace)
    }

    fn read(&self, at: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join("in").join(at)).unwrap()
    }
}

#[test]
fn a_file_appears_whole_and_replaces_only_what_it_may() {
    let mut target = target();
    target.write("a/b/c", b"first", false).unwrap();
    assert_eq!(target.read("a/b/c"), b"first");
    let again = target.write("a/b/c", b"second", false).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    target.write("a/b/c", b"third", true).unwrap();
    assert_eq!(target.read("a/b/c"), b"third");
    // What is given up leaves nothing, and neither does what is replaced.
    drop(target.tree.spot(&path("a/b/d")).unwrap().begin().unwrap());
    let names = std::fs::read_dir(target.dir.path().join("in/a/b")).unwrap();
    assert_eq!(names.count(), 1);
}

#[test]
fn rule_16_no_symbolic_link_is_followed_on_the_way() {
    let mut target = target();
    let outside = target.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let inside = target.dir.path().join("in");
    symlink(&outside, inside.join("link")).unwrap();
    symlink("/proc/self/cwd", inside.join("magic")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    for at in ["link/x", "magic/x", "up/x", "link/deeper/x"] {
        target.write(at, b"x", true).unwrap_err();
        target.tree.make_dir(&path(at), true).unwrap_err();
    }
    // The link itself is replaced, not what it names.
    std::fs::write(outside.join("kept"), b"kept").unwrap();
    symlink(outside.join("kept"), inside.join("file")).unwrap();
    target.write("file", b"new", true).unwrap();
    assert_eq!(target.read("file"), b"new");
    assert_eq!(std::fs::read(outside.join("kept")).unwrap(), b"kept");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn rule_16_a_link_that_is_put_in_the_way_later_is_not_followed_either() {
    let mut target = target();
    target.write("d/a", b"a", false).unwrap();
    target.write("other", b"x", false).unwrap();
    let inside = target.dir.path().join("in");
    let outside = target.dir.path().join("outside");
    std::fs::rename(inside.join("d"), &outside).unwrap();
    symlink(&outside, inside.join("d")).unwrap();
    target.tree.last = None;
    target.write("d/b", b"b", false).unwrap_err();
    assert!(!outside.join("b").exists());
}

#[test]
fn what_a_killed_restore_left_is_swept_and_nothing_else() {
    let mut target = target();
    let inside = target.dir.path().join("in");
    std::fs::create_dir(inside.join("d")).unwrap();
    let kept = [
        ".strongroom-restore-",
        ".strongroom-restore-0123456789abcdeX",
        ".strongroom-restore-0123456789abcdef0",
        "x",
    ];
    for name in kept {
        std::fs::write(inside.join("d").join(name), b"").unwrap();
    }
    std::fs::write(inside.join("d/.strongroom-restore-0123456789abcdef"), b"").unwrap();
    target.tree.make_dir(&path("d"), true).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(inside.join("d"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, kept);
}

#[test]
fn only_one_restore_writes_into_a_directory() {
    let target = target();
    let again = Tree::open(&target.dir.path().join("in"));
    assert_eq!(again.err().unwrap().code(), TEMPORARY);
}

#[test]
fn links_and_nodes_take_their_places() {
    let mut target = target();
    target.write("a", b"a", false).unwrap();
    let first = target.tree.existing_spot(&path("a")).unwrap();
    for (at, replace) in [("b", false), ("b", true)] {
        let spot = target.tree.spot(&path(at)).unwrap();
        spot.hard_link(&first, replace).unwrap();
    }
    let spot = target.tree.spot(&path("s")).unwrap();
    spot.symlink(b"../../nowhere", false, |_, _| Ok(()))
        .unwrap();
    assert_eq!(spot.read_link().unwrap(), b"../../nowhere");
    let spot = target.tree.spot(&path("p")).unwrap();
    spot.node(FileType::Fifo, 0, false, |_, _| Ok(())).unwrap();
    assert!(!spot.look().unwrap().unwrap().is_file());
    // A failure leaves no temporary name.
    spot.symlink(b"x", true, |_, _| Err(io::Error::other("no")))
        .unwrap_err();
    let inside = target.dir.path().join("in");
    assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 4);
    let mode = std::fs::metadata(inside.join("a")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
}
