//! What `archive` stored comes back by `restore` so that rsync finds no
//! difference.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::support::*;
use crate::{Setup, WHY};

/// Files: a hundred thousand at full size.
fn files() -> usize {
    let soak = std::env::var_os("STRONGROOM_SOAK").is_some_and(|v| v == "1");
    if soak { 100_000 } else { 300 }
}

/// A tree of mixed sizes with links, odd names, holes and attributes.
fn plant(root: &Path, count: usize) {
    for n in 0..count {
        let dir = root.join(format!("d{:03}/e{:02}", n / 500, n % 7));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(match n % 50 {
            7 => OsStr::from_bytes(b"\xff not text").to_owned(),
            9 => "line\nbreak and \u{1b}[31m".into(),
            _ => format!("f{n}").into(),
        });
        let size = match n % 100 {
            0 => 0,
            1 => 300_000,
            n => n * 53,
        };
        fs::write(&path, pattern(n as u64, size as u64)).unwrap();
        let mode = [0o644, 0o600, 0o755, 0o444, 0o000][n % 5];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if n % 40 == 3 {
            fs::hard_link(&path, dir.join(format!("hard{n}"))).unwrap();
            symlink("../nowhere", dir.join(format!("soft{n}"))).unwrap();
        }
        if n % 60 == 4 {
            xattr::set(&path, "user.n", n.to_string().as_bytes()).unwrap();
        }
    }
    let holes = fs::File::create(root.join("holes")).unwrap();
    holes.write_all_at(b"x", 5 << 20).unwrap();
    holes.set_len(8 << 20).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o1711)).unwrap();
    let old = UNIX_EPOCH + Duration::new(86_400, 7);
    fs::File::open(root.join("empty"))
        .unwrap()
        .set_modified(old)
        .unwrap();
}

#[test]
fn rsync_finds_no_difference_after_archive_and_restore() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let setup = Setup::new("round-trip");
    let from = setup.dir.path().join("from");
    fs::create_dir(&from).unwrap();
    plant(&from, files());
    let url = format!("s3://{}/tree/", setup.bucket);
    // All of it in bundles, a part of it with an object for each file.
    for (from, more) in [(from.clone(), &["--bundle"][..]), (from.join("d000"), &[])] {
        let url = format!("{url}{}/", more.len());
        let mut args = vec!["archive", from.to_str().unwrap(), &url];
        args.extend(more);
        let begun = Instant::now();
        setup.agent.cli(args).ok();
        let archived = begun.elapsed();
        let _ = fs::remove_dir_all(setup.out());
        let begun = Instant::now();
        setup.restore(&url, &["--exact"]).ok();
        tell(&format!(
            "of {} files {more:?}: archived in {archived:.1?}, restored in {:.1?}",
            files(),
            begun.elapsed()
        ));
        let mut rsync = Command::new("rsync");
        rsync.args(["-aHAXc", "--dry-run", "--delete", "--itemize-changes"]);
        rsync.arg(format!("{}/", from.display())).arg(setup.out());
        let compared = run(&mut rsync, b"").ok();
        assert_eq!(compared.text(), "", "rsync finds differences");
    }
}
