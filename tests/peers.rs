//! Who may use the agent's socket, as other users of the host find out. Only
//! root can be somebody else; as another user these tests say that they were
//! skipped.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use support::process::{self, eventually, run, signal, tree};
use support::tamper::{read, stored};
use support::{Agent, Hsm, Weed, temp_dir, value};

/// A user and a group that no system has.
const STRANGER: u32 = 12_345;

/// The command as another user, who may belong to the socket's group.
fn as_user(command: &Command, uid: u32, gid: u32) -> Command {
    let mut other = Command::new("setpriv");
    other
        .args([
            format!("--reuid={uid}"),
            format!("--regid={gid}"),
            "--clear-groups".into(),
        ])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, setting) in command.get_envs() {
        if let Some(setting) = setting {
            other.env(name, setting);
        }
    }
    other.current_dir("/");
    other
}

/// A copy of the binary where every user can run it.
fn public_binary(dir: &Path) -> PathBuf {
    let copy = dir.join("strongroom");
    process::install(env!("CARGO_BIN_EXE_strongroom"), &copy);
    open_to_all(dir);
    copy
}

fn open_to_all(dir: &Path) {
    std::fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: only root can be somebody else");
    }
    root
}

/// The same command line with another program.
fn with_program(command: &Command, program: &Path) -> Command {
    let mut other = Command::new(program);
    other.args(command.get_args());
    for (name, setting) in command.get_envs() {
        if let Some(setting) = setting {
            other.env(name, setting);
        }
    }
    other
}

#[test]
fn only_the_agents_user_and_root_are_served() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |config| {
        if rustix::process::geteuid().is_root() {
            config["agent"]["socket_group"] = value(STRANGER.to_string());
        }
    });
    let meta = std::fs::symlink_metadata(agent.socket()).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o660);
    if !is_root() {
        return;
    }
    assert_eq!(meta.gid(), STRANGER);
    open_to_all(agent.dir());
    let bucket = weed.bucket("peers");
    let url = format!("s3://{bucket}/k");
    stored(&agent, weed, &bucket, "k", b"for root alone");
    let dir = temp_dir();
    let binary = public_binary(dir.path());
    let cli = |args: &[&str], uid, gid| {
        let command = with_program(&agent.command(args), &binary);
        run(&mut as_user(&command, uid, gid), b"plaintext")
    };
    let mut refused = 0;
    // 65534 is whoever the kernel cannot name.
    for uid in [STRANGER, 65_534] {
        for args in [
            &["put", "-", &url][..],
            &["get", &url, "-"],
            &["ls", &format!("s3://{bucket}")],
            &["rm", &url],
            &["inspect", &url],
            &["status"],
            &["key", "list"],
        ] {
            let run = cli(args, uid, STRANGER).fails(77, &["has no grant for", "hint: "]);
            assert!(run.stdout.is_empty(), "{args:?}");
            refused += 1;
        }
        let curl = |more: &[&str]| {
            let mut command = Command::new("curl");
            command.args([
                "--silent",
                "--write-out",
                "%{http_code}",
                "--output",
                "/dev/null",
            ]);
            command.arg("--unix-socket").arg(agent.socket()).args(more);
            command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
            run(&mut as_user(&command, uid, STRANGER), b"").ok().text()
        };
        let object = format!("http://s/v1/objects/{bucket}/k");
        assert_eq!(curl(&[&object]), "403");
        assert_eq!(curl(&["--head", &object]), "403");
        assert_eq!(curl(&["-X", "DELETE", &object]), "403");
        assert_eq!(curl(&["--data-binary", "x", "-X", "PUT", &object]), "403");
        assert_eq!(curl(&["-X", "POST", "http://s/v1/reload"]), "403");
        assert_eq!(curl(&["http://s/v1/requests/0"]), "403");
        assert_eq!(curl(&["http://s/v1/health"]), "200");
        refused += 6;
    }
    // Outside the group the socket itself is closed.
    let run = cli(&["get", &url, "-"], STRANGER + 1, STRANGER + 1);
    assert!(
        run.code != Some(0) && run.stderr.contains("no permission"),
        "{}",
        run.stderr
    );
    assert_eq!(read(&agent, &bucket, "k").body, b"for root alone");
    println!("{} requests of others refused", refused + 1);
}

fn give(path: &Path, uid: u32) {
    rustix::fs::chown(
        path,
        Some(rustix::process::Uid::from_raw(uid)),
        Some(rustix::process::Gid::from_raw(uid)),
    )
    .unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap().flatten() {
            give(&entry.path(), uid);
        }
    }
}

#[test]
fn an_agent_of_an_ordinary_user_is_as_closed() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("ordinary");
    let agent = Agent::prepare(&hsm, weed, |_| {});
    let dir = temp_dir();
    let binary = public_binary(dir.path());
    give(hsm.dir(), STRANGER);
    give(agent.dir(), STRANGER);
    let command = with_program(&agent.command(["agent"]), &binary);
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut child = as_user(&command, STRANGER, STRANGER)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let ready = eventually(Duration::from_secs(20), || {
        (agent.try_status()?.health == "ready").then_some(())
    });
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let all = tree(child.id());
    let outcome = std::panic::catch_unwind(|| {
        assert!(ready.is_some(), "{log}");
        assert_eq!(all.len(), 3, "{all:?}");
        for process in &all {
            // The kernel gives root what lies in /proc of a process that may
            // not be dumped (proc(5)); of others the owner has it.
            let owner = std::fs::metadata(format!("/proc/{}/environ", process.pid))
                .unwrap()
                .uid();
            assert_eq!(owner, 0, "it can be dumped: {process:?}");
            let status = String::from_utf8_lossy(&process.proc("status")).into_owned();
            assert!(
                status.contains(&format!("Uid:\t{STRANGER}\t{STRANGER}")),
                "{status}"
            );
        }
        let confinement = agent.try_status().unwrap().confinement;
        assert!(confinement.contains("landlock") && confinement.contains("+seccomp"));
        open_to_all(agent.dir());
        // Root and the user himself are served.
        let url = format!("s3://{bucket}/k");
        let cli = with_program(&agent.command(["put", "-", &url]), &binary);
        run(&mut as_user(&cli, STRANGER, STRANGER), b"his own").ok();
        assert_eq!(read(&agent, &bucket, "k").body, b"his own");
        println!("3 processes of uid {STRANGER}: none can be dumped; {confinement}");
    });
    signal(child.id(), Signal::TERM);
    let ended = support::process::wait(&mut child, Duration::from_secs(20));
    if ended.is_none() {
        for process in all {
            signal(process.pid, Signal::KILL);
        }
        let _ = child.wait();
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    assert_eq!(ended.and_then(|s| s.code()), Some(0), "{log}");
}
