//! Confinement cannot be undone, so each test runs its steps in a child: this
//! test program again, with one of the `#[ignore]`d functions below.

#![allow(clippy::unwrap_used)]

use super::*;
use std::io::ErrorKind::PermissionDenied;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

/// Names the scratch directory to the child.
const DIR: &str = "STRONGROOM_TEST_DIR";

/// Runs one of the functions below in a child, and shows what it said if it
/// failed.
fn in_a_child(function: &str, dir: &Path) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture"])
        .arg(format!("confine::tests::{function}"))
        .env(DIR, dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "nothing ran: {said}");
    if let Some(line) = said.lines().find(|line| line.starts_with("SKIPPED")) {
        println!("{function}: {line}");
    }
}

fn scratch() -> PathBuf {
    std::env::var_os(DIR).unwrap().into()
}

fn server_paths(dir: &Path) -> ServerPaths {
    ServerPaths {
        state_dir: dir.join("state"),
        spool_dir: dir.join("spool"),
        extra_read: vec![dir.join("extra")],
        config_path: dir.join("strongroom.toml"),
        denied: vec![dir.join("pin"), dir.join("module.so")],
        ..ServerPaths::default()
    }
}

fn populated() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for sub in ["state", "spool", "other"] {
        std::fs::create_dir(dir.path().join(sub)).unwrap();
    }
    for file in ["pin", "module.so", "strongroom.toml", "extra"] {
        std::fs::write(dir.path().join(file), file).unwrap();
    }
    dir
}

#[test]
fn rule_24_no_thread_of_a_confined_server_reaches_pin_module_or_shell() {
    in_a_child("confined_server", populated().path());
}

#[test]
#[ignore = "the child of rule_24_no_thread_of_a_confined_server_…"]
fn confined_server() {
    let dir = scratch();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let confinement = confine_thread(&server_paths(&dir)).unwrap();
    if !confinement.to_string().starts_with("landlock(abi ") {
        println!("SKIPPED: {confinement}");
        return;
    }
    assert!(confinement.is_complete(), "{confinement}");
    assert!(confinement.to_string().ends_with(")+seccomp"));

    let address = tcp.local_addr().unwrap();
    let attempt = |who: &str| {
        let denied = |result: std::io::Result<()>, what: &str| {
            assert_eq!(
                result.map_err(|e| e.kind()),
                Err(PermissionDenied),
                "{who}: {what}"
            );
        };
        for file in ["pin", "module.so", "strongroom.toml"] {
            denied(std::fs::read(dir.join(file)).map(drop), file);
        }
        denied(std::fs::read("/etc/passwd").map(drop), "read /etc/passwd");
        denied(std::fs::read_dir("/").map(drop), "list /");
        denied(std::fs::write(dir.join("other/x"), "x"), "write elsewhere");
        denied(
            std::fs::rename(dir.join("state"), dir.join("other/state")),
            "rename the state directory",
        );
        denied(Command::new("/bin/sh").spawn().map(drop), "exec a shell");
        let own = dir.join(format!("state/{who}"));
        std::fs::write(&own, "x").unwrap();
        denied(
            Command::new(&own).spawn().map(drop),
            "exec a file of its own",
        );
        std::fs::rename(&own, dir.join(format!("state/{who}.2"))).unwrap();
        std::fs::write(dir.join(format!("spool/{who}")), "x").unwrap();
        assert_eq!(std::fs::read(dir.join("extra")).unwrap(), b"extra");
        std::fs::read("/etc/hosts").unwrap();
        TcpStream::connect(address).unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap();
    };
    attempt("first");
    std::thread::scope(|scope| {
        for who in ["second", "third"] {
            scope.spawn(move || attempt(who));
        }
    });
    // seccomp by itself, where landlock has no say.
    #[allow(deprecated, reason = "it is refused, and so changes nothing")]
    let unshared = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWUSER);
    // Without the filter it would be EINVAL: this process has several threads.
    assert_eq!(unshared, Err(rustix::io::Errno::PERM));
    let parent = rustix::process::getppid().unwrap();
    assert_eq!(
        rustix::process::kill_process(parent, rustix::process::Signal::CONT),
        Err(rustix::io::Errno::PERM),
        "it can signal processes outside"
    );
}

#[test]
fn rule_24_a_server_with_running_threads_is_not_confined_by_halves() {
    std::thread::scope(|scope| {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || wait.recv());
        let error = confine_server(&server_paths(Path::new("/nonexistent"))).unwrap_err();
        assert!(
            matches!(error, ConfineError::Threads(n) if n > 1),
            "{error}"
        );
        drop(stop);
    });
}

#[test]
fn rule_24_a_pin_inside_an_allowed_directory_stops_the_server() {
    in_a_child("pin_in_state", populated().path());
}

#[test]
#[ignore = "the child of rule_24_a_pin_inside_…"]
fn pin_in_state() {
    let dir = scratch();
    let mut paths = server_paths(&dir);
    let pin = dir.join("state/pin");
    std::fs::write(&pin, "1234").unwrap();
    paths.denied = vec![pin.clone()];
    match confine_thread(&paths) {
        Err(ConfineError::Reachable(path)) => assert_eq!(path, pin),
        Ok(confinement) if confinement.landlock.is_err() => println!("SKIPPED: {confinement}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn rule_24_a_worker_without_network_cannot_connect_even_to_loopback() {
    in_a_child("worker_without_network", Path::new("/"));
}

#[test]
#[ignore = "the child of rule_24_a_worker_without_network_…"]
fn worker_without_network() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    TcpStream::connect(address).unwrap();
    // As a module could keep one from before.
    let early = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    deny_network().unwrap();
    let refused = |result: std::io::Result<()>| {
        assert_eq!(result.map_err(|e| e.kind()), Err(PermissionDenied));
    };
    refused(TcpStream::connect(address).map(drop));
    refused(TcpListener::bind("127.0.0.1:0").map(drop));
    refused(UdpSocket::bind("127.0.0.1:0").map(drop));
    std::thread::spawn(move || TcpStream::connect(address).map(drop))
        .join()
        .map(refused)
        .unwrap();
    // Landlock, on kernels that have it for TCP (6.7).
    if let Err(error) = rustix::net::connect(&early, &address) {
        assert_eq!(error, rustix::io::Errno::ACCESS);
    }
    UnixStream::pair().unwrap();
}

#[test]
fn rule_24_a_hardened_process_leaves_no_core_and_admits_no_debugger() {
    in_a_child("hardened", Path::new("/"));
}

#[test]
#[ignore = "the child of rule_24_a_hardened_process_…"]
fn hardened() {
    let _ = harden_process();
    assert_eq!(
        rustix::process::dumpable_behavior().unwrap(),
        DumpableBehavior::NotDumpable
    );
    assert_eq!(rustix::process::getrlimit(Resource::Core).maximum, Some(0));
    assert!(rustix::thread::no_new_privs().unwrap());
    // Locking must not make later allocations fail.
    let big = vec![1_u8; 64 << 20];
    assert_eq!(big[big.len() - 1], 1);
}
