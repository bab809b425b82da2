//! Files that do not hold still: nothing is stored of them.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use super::support::null_store::{Fault, Op};
use super::support::process::eventually;
use super::support::write_pattern;
use super::{PART, Rig};

/// Makes the store slow with parts, so that a file is read for a while.
pub(super) fn slow(rig: &Rig, by: Duration) {
    rig.store.inject(Op::Part, 1, 1000, Fault::Slow(by));
}

/// Waits for the first part.
pub(super) fn under_way(rig: &Rig) {
    let begun = eventually(Duration::from_secs(30), || {
        (rig.store.count(Op::Part) > 0).then_some(())
    });
    assert!(begun.is_some(), "no part was sent");
}

/// What somebody does to the file meanwhile.
type Change = fn(&Path);

#[test]
fn rule_26_a_file_that_changes_while_it_is_read_is_not_stored() {
    let changes: [(&str, Change); 5] = [
        ("shrunk", |path| set_len(path, 3 * PART)),
        ("grown", |path| set_len(path, 7 * PART)),
        ("written to, where it was not read yet", |path| {
            write(path, 6 * PART - 9)
        }),
        ("written to, where it was", |path| write(path, 9)),
        ("made somebody else's to write", |path| {
            let mode = std::fs::Permissions::from_mode(0o666);
            std::fs::set_permissions(path, mode).unwrap();
        }),
    ];
    for (what, change) in changes {
        let Some(rig) = Rig::new() else { return };
        let path = rig.path("file");
        write_pattern(&path, 1, 6 * PART);
        slow(&rig, Duration::from_millis(300));
        let file = std::fs::File::open(&path).unwrap();
        std::thread::scope(|scope| {
            let put = scope.spawn(|| rig.put("k", &file, 6 * PART));
            under_way(&rig);
            change(&path);
            let problem = put
                .join()
                .unwrap()
                .fails("incomplete", &["changed while it was read"]);
            println!("{what}: {}", problem.detail);
        });
        rig.is_empty("k");
    }
}

fn set_len(path: &Path, len: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

fn write(path: &Path, at: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"other", at).unwrap();
}
