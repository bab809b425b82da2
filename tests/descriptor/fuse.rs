//! A file whose file system is a program of the attacker's, which never
//! answers: FUSE, spoken by hand (include/uapi/linux/fuse.h). Needs root.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::support::process::eventually;
use super::support::write_pattern;
use super::{Rig, head, pass, target};

/// Requests that are never answered: FUSE_READ, FUSE_STATFS, FUSE_FLUSH.
const HELD: [u32; 3] = [15, 17, 25];

/// A mounted file system of one file, `file`, which can be opened, and then
/// does not answer.
struct Mounted {
    path: PathBuf,
    /// Requests that wait for an answer.
    held: Arc<AtomicUsize>,
}

impl Mounted {
    #[allow(unsafe_code, reason = "mount has no safe form here")]
    fn on(path: &Path) -> Option<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.ok()?;
        let text = |text: &[u8]| CString::new(text).unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let (at, kind) = (text(path.as_os_str().as_bytes()), text(b"fuse"));
        let options = text(options.as_bytes());
        // SAFETY: four strings that live until the call returns.
        let mounted = unsafe {
            libc::mount(
                kind.as_ptr(),
                at.as_ptr(),
                kind.as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        if mounted != 0 {
            return None;
        }
        let held = Arc::new(AtomicUsize::new(0));
        let count = held.clone();
        std::thread::spawn(move || serve(device, &count));
        let path = path.to_owned();
        Some(Self { path, held })
    }
}

#[allow(unsafe_code, reason = "umount has no safe form here")]
impl Drop for Mounted {
    fn drop(&mut self) {
        let at = CString::new(self.path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a string that lives until the call returns. By force, all
        // that waits gets an error.
        unsafe {
            libc::umount2(at.as_ptr(), libc::MNT_FORCE);
            libc::umount2(at.as_ptr(), libc::MNT_DETACH);
        }
    }
}

fn serve(mut device: File, held: &AtomicUsize) {
    let mut request = vec![0; 1 << 20];
    while let Ok(n) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let unique: [u8; 8] = request[8..16].try_into().unwrap();
        assert!(n >= 40);
        let opcode = word(4);
        let root = u64::from_ne_bytes(request[16..24].try_into().unwrap()) == 1;
        let (error, body) = match opcode {
            // FORGET, INTERRUPT, BATCH_FORGET have no answer.
            2 | 36 | 42 => continue,
            _ if HELD.contains(&opcode) => {
                held.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            // INIT: version 7.31, 128 KiB writes.
            26 => (
                0,
                words(&[7, 31, 1 << 16, 0, 0, 1 << 17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ),
            // LOOKUP, GETATTR, OPEN.
            1 => (
                0,
                [words(&[2, 0, 0, 0, 60, 0, 60, 0, 0, 0]), attributes(false)].concat(),
            ),
            3 => (0, [words(&[60, 0, 0, 0]), attributes(root)].concat()),
            14 | 27 => (0, words(&[0, 0, 0, 0])),
            18 | 29 => (0, Vec::new()),
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).unwrap();
        let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique].concat();
        let _ = device.write(&[head, body].concat());
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The root, a directory, or the file, of 1 MiB.
fn attributes(root: bool) -> Vec<u8> {
    let (inode, mode) = if root { (1, 0o040_755) } else { (2, 0o100_644) };
    let size = if root { 0 } else { 1 << 20 };
    let mut all = words(&[inode, 0, size, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    all.extend(words(&[mode, 1, 0, 0, 0, 4096, 0]));
    all
}

#[test]
fn rule_26_a_file_system_that_never_answers_holds_up_nobody() {
    let Some(rig) = Rig::new() else { return };
    let at = rig.path("mounted");
    std::fs::create_dir(&at).unwrap();
    let Some(mounted) = Mounted::on(&at) else {
        println!("skipped: FUSE cannot be mounted here (it takes root and /dev/fuse)");
        return;
    };
    let before = rig.descriptors();
    let file = File::open(at.join("file")).unwrap();
    let length = (1 << 20).to_string();
    // More than the server has threads for its clients.
    let streams: Vec<_> = (0..8)
        .map(|_| {
            let stream = rig.agent.connect();
            let text = head("PUT", &target("k"), &[("Strongroom-Descriptor", &length)]);
            pass(&stream, &text, &[file.as_fd()]);
            stream
        })
        .collect();
    let asked = eventually(Duration::from_secs(20), || {
        (mounted.held.load(Ordering::Relaxed) >= 8).then_some(())
    });
    assert!(asked.is_some(), "the file system was not asked");
    // Others are served as ever, files of theirs included.
    let begun = Instant::now();
    let path = rig.path("other");
    write_pattern(&path, 3, 1 << 20);
    let path = path.display().to_string();
    rig.agent.cli(["put", &path, "s3://bucket/other"]).ok();
    assert!(begun.elapsed() < Duration::from_secs(8), "held up");
    for stream in &streams {
        let mut reader = std::io::BufReader::new(stream);
        let mut body = Vec::new();
        let reply = super::support::http::read_reply(&mut reader, "PUT", &mut body).unwrap();
        let reply = super::support::Reply { body, ..reply };
        reply.fails("descriptor-refused", &["did not answer in time"]);
    }
    drop(streams);
    // Our own close of it waits as well: the file system ends first.
    drop(mounted);
    drop(file);
    let closed = eventually(Duration::from_secs(30), || {
        (rig.descriptors() <= before + 4).then_some(())
    });
    assert!(
        closed.is_some(),
        "{before} before, {} now",
        rig.descriptors()
    );
}
