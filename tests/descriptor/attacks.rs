//! Passing what is no file, too much of it, or at the wrong time.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::support::process::eventually;
use super::support::{self, write_pattern};
use super::{Rig, head, pass, target};

#[test]
fn rule_26_what_is_no_local_regular_file_is_refused() {
    let Some(rig) = Rig::new() else { return };
    let before = rig.descriptors();
    let regular = rig.path("regular");
    write_pattern(&regular, 1, 1000);
    let fifo = rig.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let open = |path: &std::path::Path, flags: OFlags| -> OwnedFd {
        rustix::fs::open(path, flags, Mode::empty()).unwrap()
    };
    let (socket, _other) = UnixStream::pair().unwrap();
    let path = std::path::Path::new;
    let attempts: Vec<(&str, OwnedFd)> = vec![
        ("a FIFO", open(&fifo, OFlags::RDWR)),
        ("a directory", open(rig.dir.path(), OFlags::RDONLY)),
        ("a socket", socket.into()),
        ("a device", open(path("/dev/zero"), OFlags::RDONLY)),
        ("procfs", open(path("/proc/self/status"), OFlags::RDONLY)),
        (
            "procfs, our memory",
            open(path("/proc/self/mem"), OFlags::RDWR),
        ),
        (
            "sysfs",
            open(
                path("/sys/kernel/mm/transparent_hugepage/enabled"),
                OFlags::RDONLY,
            ),
        ),
        ("not for reading", open(&regular, OFlags::WRONLY)),
        ("only a place", open(&regular, OFlags::PATH)),
        (
            "an event",
            rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
        ),
    ];
    for (what, fd) in &attempts {
        let size = if *what == "only a place" { 1000 } else { 0 };
        let reply = rig.put("none", fd, size);
        println!("{what}: {}", reply.fails("descriptor-refused", &[]).detail);
    }
    drop(attempts);
    // Where the file system has it (tmpfs does not).
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&regular);
    if let Ok(direct) = direct {
        rig.put("none", &direct, 1000)
            .fails("descriptor-refused", &["O_DIRECT"]);
    }
    rig.is_empty("none");
    closed(&rig, before);
}

#[test]
fn rule_26_one_descriptor_belongs_to_one_request() {
    let Some(rig) = Rig::new() else { return };
    let before = rig.descriptors();
    let (a, b) = (rig.file(1, 1000), rig.file(2, 1000));
    let (one, two) = ([a.as_fd()], [a.as_fd(), b.as_fd()]);
    let many = [a.as_fd(); 8];
    let length = ("Strongroom-Descriptor", "1000");
    let ask = |method: &str, target: &str, headers: &[(&str, &str)], beside: &[_]| {
        rig.request(method, target, headers, beside)
    };
    let put = |headers: &[(&str, &str)], beside: &[_]| ask("PUT", &target("k"), headers, beside);

    put(&[length], &two).fails("malformed", &["more than one"]);
    put(&[length], &many).fails("malformed", &["more than one"]);
    put(&[], &two).fails("malformed", &["more than one"]);
    put(&[], &one).fails("malformed", &["does not announce"]);
    put(&[length], &[]).fails("descriptor-refused", &["none came"]);
    for text in ["", "x", "-1", "+1000", "1000.0", "99999999999999999999"] {
        let header = ("Strongroom-Descriptor", text);
        put(&[header], &one).fails("malformed", &[]);
    }
    put(&[("Strongroom-Descriptor", "999")], &one).fails("incomplete", &["999", "1000"]);
    put(&[length, ("Content-Length", "5")], &one).fails("malformed", &["a descriptor and a body"]);
    put(&[length, ("Strongroom-Queue", "true")], &one).fails("descriptor-refused", &["plain"]);
    for (method, target) in [
        ("GET", "/v1/status"),
        ("DELETE", "/v1/objects/bucket/k"),
        ("GET", "/v1/objects/bucket/k?inspect"),
        ("POST", "/v1/uploads/x"),
    ] {
        ask(method, target, &[length], &one).fails("descriptor-refused", &["plain"]);
        ask(method, target, &[], &one).fails("malformed", &["does not announce"]);
    }

    // Behind the first byte nothing is received: the kernel closes it.
    let stream = rig.agent.connect();
    let text = head("PUT", &target("k"), &[length]);
    pass(&stream, &text[..9], &[]);
    std::thread::sleep(Duration::from_millis(300));
    pass(&stream, &text[9..], &one);
    let mut reader = BufReader::new(&stream);
    let mut body = Vec::new();
    let reply = support::http::read_reply(&mut reader, "PUT", &mut body).unwrap();
    let reply = support::Reply { body, ..reply };
    reply.fails("descriptor-refused", &["none came"]);

    // A second request on the connection has no part in the first one's.
    let stream = rig.agent.connect();
    let first = "GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n";
    pass(&stream, first, &[]);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let health = support::http::read_reply(&mut reader, "GET", &mut Vec::new()).unwrap();
    assert_eq!(health.status, 200);
    pass(&stream, &text, &one);
    let mut body = Vec::new();
    let reply = support::http::read_reply(&mut reader, "PUT", &mut body).unwrap();
    support::Reply { body, ..reply }.fails("descriptor-refused", &["none came"]);
    drop((stream, reader));

    rig.is_empty("k");
    closed(&rig, before);
}

#[test]
fn rule_26_a_flood_of_descriptors_leaves_the_socket_to_everybody() {
    let Some(rig) = Rig::new() else { return };
    let before = rig.descriptors();
    let file = rig.file(1, 2000);
    // More than the agent takes, each in a head that does not end.
    let flood: Vec<UnixStream> = (0..100)
        .map(|_| {
            let stream = rig.agent.connect();
            pass(&stream, "PUT /v1", &[file.as_fd()]);
            stream
        })
        .collect();
    let path = rig.path("large");
    write_pattern(&path, 3, 1 << 20);
    let path = path.display().to_string();
    rig.agent.cli(["put", &path, "s3://bucket/large"]).ok();
    assert!(rig.read("large") == support::pattern(3, 1 << 20));
    assert!(rig.descriptors() < before + 100 + 64 + 10);
    drop(flood);
    closed(&rig, before);
}

/// That the server has no more descriptors open than before, but for idle
/// connections to the store.
#[track_caller]
fn closed(rig: &Rig, before: usize) {
    let idle = 4;
    let left = eventually(Duration::from_secs(30), || {
        (rig.descriptors() <= before + idle).then_some(())
    });
    assert!(left.is_some(), "{before} before, {} now", rig.descriptors());
}

#[test]
fn rule_26_a_client_that_goes_away_ends_its_put() {
    let Some(rig) = Rig::new() else { return };
    let len = 6 * super::PART;
    let file: File = rig.file(1, len);
    super::changes::slow(&rig, Duration::from_millis(400));
    let length = len.to_string();
    let stream = rig.agent.connect();
    let text = head("PUT", &target("k"), &[("Strongroom-Descriptor", &length)]);
    pass(&stream, &text, &[file.as_fd()]);
    super::changes::under_way(&rig);
    (&stream).flush().unwrap();
    drop(stream);
    rig.is_empty("k");
}
