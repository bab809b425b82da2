//! Files that change while they are read: whole as they were at one instant,
//! or not stored.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Agent, Hsm, Weed, temp_dir};
use crate::{Archive, is_skipped, lines};

#[test]
fn a_file_is_never_stored_half_old_half_new() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let archive = Archive::new(&agent, weed.bucket("changing"));
    let dir = temp_dir();
    const SIZE: usize = 8 << 20;
    for name in ["appended", "rewritten", "truncated", "still"] {
        fs::write(dir.path().join(name), vec![0_u8; SIZE]).unwrap();
    }
    let stop = AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        scope.spawn(|| {
            let open = |name: &str| {
                let mut options = File::options();
                options.write(true).append(name == "appended");
                options.open(dir.path().join(name)).unwrap()
            };
            let mut appended = open("appended");
            let (rewritten, truncated) = (open("rewritten"), open("truncated"));
            let mut n = 1_u8;
            while !stop.load(Ordering::Relaxed) {
                appended.write_all(&[n]).unwrap();
                // Every block, so that a mixture shows.
                for at in (0..SIZE).step_by(64 << 10) {
                    rewritten.write_all_at(&[n], at as u64).unwrap();
                }
                truncated.set_len((SIZE - usize::from(n)) as u64).unwrap();
                n = n.wrapping_add(1);
            }
        });
        let run = archive.run(dir.path(), &["--json"]);
        stop.store(true, Ordering::Relaxed);
        run
    });
    let events = lines(&run);
    let problems = events.last().unwrap()["problems"].as_u64().unwrap();
    assert!(problems > 0, "nothing changed in time: {events:?}");
    run.fails(1, &["changed while it was read", "hint:"]);
    for entry in archive.manifest() {
        let name = entry.path.to_string();
        if name == "." {
            continue;
        }
        // Its hash is compared: what is stored was read at one instant.
        let content = archive.content(&entry);
        if name == "rewritten" {
            let first = content[0];
            let same = (0..SIZE)
                .step_by(64 << 10)
                .all(|at| content[at] == first || content[at] == first.wrapping_sub(1));
            assert!(same, "{name} is a mixture");
        }
    }
    // Left alone, all of it is stored.
    assert_eq!(archive.summary(dir.path(), &[])["problems"], 0);
    assert_eq!(archive.manifest().len(), 5);
}
