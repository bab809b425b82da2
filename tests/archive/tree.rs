//! Trees with everything in them that a file system allows.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, Timespec, Timestamps, UTIME_OMIT, utimensat};

use crate::support::pattern;

/// Makes a tree of `count` files of mixed sizes in 50 directories or so,
/// beside [`odd`] ones.
pub(crate) fn make(root: &Path, count: u32) {
    fs::create_dir_all(root).unwrap();
    for n in 0..count {
        let dir = root.join(format!("d{:02}/e{}", n % 17, n % 3));
        if n < 51 {
            fs::create_dir_all(&dir).unwrap();
        }
        // Mostly small, some beyond a part, some empty.
        let size = match n % 100 {
            0 => 0,
            1 => 300_000,
            2 => 70_000,
            _ => u64::from(n % 5) * 700 + 1,
        };
        fs::write(dir.join(format!("file {n}")), pattern(u64::from(n), size)).unwrap();
    }
    odd(root);
}

/// Names, kinds and times that are easily got wrong.
pub(crate) fn odd(root: &Path) {
    let at = |name: &[u8]| root.join(OsStr::from_bytes(name));
    let long = [b'n'; 255];
    for name in names().iter().chain([&long.to_vec()]) {
        let path = at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let mut deep = root.join("deep");
    for n in 0..40 {
        deep = deep.join(format!("{n:-<60}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("end"), b"deep").unwrap();

    symlink("/etc/passwd", at(b"absolute link")).unwrap();
    symlink(OsStr::from_bytes(b"gone \xff\n"), at(b"dangling")).unwrap();
    symlink(".", at(b"loop")).unwrap();
    fs::hard_link(at(b"-leading"), at(b"z hard")).unwrap();
    fs::hard_link(at(b"-leading"), at(b"sub/other hard")).unwrap();
    rustix::fs::mknodat(CWD, at(b"fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at(b"sock")).unwrap());

    let sparse = File::create(at(b"sparse")).unwrap();
    sparse.write_all_at(b"x", 3 << 20).unwrap();
    sparse.set_len(5 << 20).unwrap();

    fs::create_dir(at(b"empty dir")).unwrap();
    fs::set_permissions(at(b"empty dir"), fs::Permissions::from_mode(0o1750)).unwrap();
    fs::set_permissions(at(b"-leading"), fs::Permissions::from_mode(0o4755)).unwrap();
    // Before 1970, and not on a second.
    let then = Timespec {
        tv_sec: -86_400,
        tv_nsec: 123_456_789,
    };
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: then,
    };
    utimensat(CWD, at(b"sub/a.b"), &times, rustix::fs::AtFlags::empty()).unwrap();
    utimensat(CWD, at(b"empty dir"), &times, rustix::fs::AtFlags::empty()).unwrap();
    for (name, value) in [("user.note", &b"n\0\xff"[..]), ("user.empty", b"")] {
        for path in [at(b"sub/a.b"), at(b"sub")] {
            match xattr::set(&path, name, value) {
                Ok(()) => {}
                // A file system without them.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
}

/// Names of files in a tree's root, or `sub`.
pub(crate) fn names() -> Vec<Vec<u8>> {
    [
        &b"-leading"[..],
        b"--delete",
        b"not utf-8 \xff\xfe",
        b"line\nfeed",
        b"tab\t\x1b[31m",
        b" ",
        b"%2e%2e",
        b"a\\b",
        b"\xc3\xbc \xe6\x97\xa5",
        b"sub/a",
        b"sub/a.b",
        b"sub/a!",
        b"sub/\xff",
        b".hidden",
        b"...",
        b".strongroom-archive/latest",
        b".strongroom/keyslots/x",
        b"*?[]{}'\"$`",
    ]
    .map(<[u8]>::to_vec)
    .to_vec()
}

/// Every path below a directory.
pub(crate) fn paths(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all
}
