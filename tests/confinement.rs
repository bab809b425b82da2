//! The units that are shipped, and what the confined server can do: tried by
//! each of its threads. As root.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use support::launch::{self, How};
use support::process::{eventually, of_threads, run, signal};
use support::tamper::{read, stored};
use support::*;

/// Nobody's, and not the overflow user's.
const UID: u32 = 64_123;
/// What `systemd-analyze security` may find at most.
const EXPOSURE: f64 = 1.5;

fn unit() -> PathBuf {
    root().join("packaging/systemd/strongroom.service")
}

fn systemd_analyze(args: &[&str]) -> Run {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        lacking("systemd-analyze");
    }
    run(Command::new("systemd-analyze").args(args), b"")
}

#[test]
fn the_units_exposure_is_small() {
    let said = systemd_analyze(&[
        "security",
        "--offline=true",
        "--no-pager",
        unit().to_str().unwrap(),
    ]);
    let said = said.ok().text();
    let line = said
        .lines()
        .find(|line| line.contains("Overall exposure level"))
        .unwrap();
    let exposure: f64 = line
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap();
    let marks: Vec<&str> = said.lines().filter(|line| line.starts_with('✗')).collect();
    println!("{}\n{line}", marks.join("\n"));
    tell(&format!(
        "systemd-analyze security --offline=true: exposure {exposure}"
    ));
    assert!(exposure <= EXPOSURE, "{said}");
    // The one that would break peer credentials.
    assert!(
        launch::section(&unit(), "Service")
            .iter()
            .all(|(key, _)| key != "PrivateUsers")
    );
}

#[test]
fn the_agent_works_under_the_units_restrictions() {
    let unit = unit();
    let mut not_here = Vec::new();
    for (key, _) in launch::section(&unit, "Service") {
        let known = launch::UNIT.iter().find(|(name, _)| *name == key);
        let (name, how) = known.unwrap_or_else(|| panic!("{key}= is in the unit, but not tried"));
        if let How::NotHere(why) = how {
            not_here.push(format!("{name} ({why})"));
        }
    }
    println!("not applied here: {}", not_here.join(", "));

    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("unit");
    let mut agent = Agent::prepare(&hsm, weed, |config| {
        let token = &mut config["token"].as_array_of_tables_mut().unwrap();
        let token = token.get_mut(0).unwrap();
        token.remove("pin_file");
        token["pin_credential"] = value("pin");
        // Out of whatever home it was built in.
        let module = hsm.dir().join("module.so");
        fs::copy(hsm::module(), &module).unwrap();
        fs::set_permissions(&module, fs::Permissions::from_mode(0o755)).unwrap();
        token["module"] = value(module.display().to_string());
    });
    let credentials = temp_dir();
    let (state, tokens) = (agent.state_dir(), hsm.dir().join("tokens"));
    fs::create_dir(&state).unwrap();
    fs::copy(hsm.pin_file(), credentials.path().join("pin")).unwrap();
    let own = Some(UID);
    for (path, mode) in [
        (&state, 0o700),
        (&tokens, 0o700),
        (&credentials.path().join("pin"), 0o400),
        (&credentials.path().to_owned(), 0o500),
    ] {
        chown_all(path);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(path, own, own).unwrap();
    }
    for path in [agent.dir(), hsm.dir()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    let listener = UnixListener::bind(agent.socket()).unwrap();
    let manager = UnixDatagram::bind(agent.dir().join("notify")).unwrap();
    fs::set_permissions(
        agent.dir().join("notify"),
        fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();

    let inner = agent.command(["agent"]);
    let job = launch::Job {
        program: vec![inner.get_program().into(), "agent".into()],
        uid: UID,
        writable: vec![state.clone(), tokens],
        readable: vec![
            agent.dir().into(),
            hsm.dir().into(),
            credentials.path().into(),
        ],
        unit: unit.clone(),
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "support::launch::child", "--nocapture"])
        .env_clear()
        .envs(
            inner
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env(launch::JOB, serde_json::to_string(&job).unwrap())
        .env("HOME", &state)
        .env("CREDENTIALS_DIRECTORY", credentials.path())
        .env("NOTIFY_SOCKET", agent.dir().join("notify"))
        .env("WATCHDOG_USEC", "4000000")
        .env("LISTEN_FDS", "1");
    pass_as_three(&mut command, &listener);
    agent.launch_as(command);
    if let Err(failed) = agent.await_ready() {
        panic!("exit {:?}:\n{}", failed.code, failed.log);
    }
    drop(listener);

    // What the restrictions are, by the kernel's account.
    let check = |agent: &Agent| {
        for process in agent.processes() {
            for (field, wanted) in [
                ("CapEff:", "0000000000000000"),
                ("CapBnd:", "0000000000000000"),
                ("NoNewPrivs:", "1"),
                ("Seccomp:", "2"),
            ] {
                let found = of_threads(&process, field);
                assert!(
                    !found.is_empty() && found.iter().all(|value| value == wanted),
                    "{field} {found:?} of {process:?}"
                );
            }
            let uid = of_threads(&process, "Uid:");
            assert!(
                uid.iter()
                    .all(|uid| uid.split_whitespace().all(|id| id == UID.to_string())),
                "{uid:?}"
            );
        }
    };
    check(&agent);
    let status = agent.try_status().unwrap();
    assert!(
        status.confinement.starts_with("landlock(") && status.confinement.ends_with("+seccomp"),
        "{}",
        status.confinement
    );
    let limited = agent.log().contains("stays as it is");
    assert!(
        limited || !agent.log().contains("memory is not locked"),
        "{}",
        agent.log()
    );
    let plain = pattern(1, 12 << 20);
    stored(&agent, weed, &bucket, "k", &plain);
    assert_eq!(read(&agent, &bucket, "k").body, plain);

    // Either is started again under the same restrictions.
    let worker = agent.workers()[0].pid;
    signal(worker, Signal::KILL);
    works_again(&agent, &bucket, &plain);
    assert_ne!(agent.workers()[0].pid, worker);
    let server = agent.server().pid;
    signal(server, Signal::KILL);
    works_again(&agent, &bucket, &plain);
    assert_ne!(agent.server().pid, server);
    stored(&agent, weed, &bucket, "again", &plain);
    check(&agent);

    // The service manager was told, and kept being told.
    let mut heard = String::new();
    let told = eventually(Duration::from_secs(20), || {
        let mut datagram = [0; 4096];
        let len = manager.recv(&mut datagram).unwrap();
        heard += &String::from_utf8_lossy(&datagram[..len]);
        (heard.contains("READY=1") && heard.matches("WATCHDOG=1").count() > 2).then_some(())
    });
    assert!(told.is_some(), "{heard}");

    // SIGTERM to all of them at once, as by another KillMode, harms nobody.
    for process in agent.processes().iter().skip(1) {
        signal(process.pid, Signal::TERM);
    }
    assert_eq!(read(&agent, &bucket, "k").body, plain);
    agent.stop();
    println!(
        "put, get, and restarts of worker and server as uid {UID} with {} system calls",
        launch::allowed_calls(&unit).len()
    );
}

#[track_caller]
fn works_again(agent: &Agent, bucket: &str, plain: &[u8]) {
    let back = eventually(Duration::from_secs(30), || {
        let mut body = Vec::new();
        let target = format!("/v1/objects/{bucket}/k");
        let reply = http::send(&agent.socket(), "GET", &target, &[], Body::None, &mut body).ok()?;
        (reply.status == 200 && body == plain).then_some(())
    });
    assert!(back.is_some(), "{}", agent.log());
}

fn chown_all(path: &Path) {
    std::os::unix::fs::chown(path, Some(UID), Some(UID)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            chown_all(&entry.unwrap().path());
        }
    }
}

/// Passes a socket as systemd does: as descriptor 3.
#[allow(unsafe_code, reason = "between fork and exec")]
fn pass_as_three(command: &mut Command, listener: &UnixListener) {
    use std::os::unix::process::CommandExt as _;
    let fd = listener.as_raw_fd();
    // SAFETY: dup2 and fcntl are async-signal-safe, and nothing else is done.
    unsafe {
        command.pre_exec(move || {
            let moved = if fd == 3 {
                libc::fcntl(fd, libc::F_SETFD, 0)
            } else {
                libc::dup2(fd, 3)
            };
            if moved < 0 {
                Err(std::io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
}

#[test]
fn rule_24_a_crash_leaves_no_core_file() {
    let (hsm, null) = (Hsm::new(), null_store::NullStore::start());
    let mut agent = Agent::start(&hsm, Store::at(null.endpoint()), |_| {});
    let cores = |dir: &Path| -> Vec<_> {
        let entries = fs::read_dir(dir).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("core")).collect()
    };
    // Where cores go, and whether they would be seen there.
    let elsewhere = temp_dir();
    let mut crash = Command::new("sh");
    crash.current_dir(elsewhere.path());
    crash.args(["-c", "ulimit -c unlimited; kill -SEGV $$"]);
    let _ = crash.status().unwrap();
    let seen = !cores(elsewhere.path()).is_empty();
    println!("an ordinary crash leaves a core file here: {seen}");

    for _ in 0..2 {
        let processes = agent.processes();
        let child = processes.last().unwrap();
        signal(child.pid, Signal::ABORT);
        let gone = eventually(Duration::from_secs(10), || (!child.runs()).then_some(()));
        assert!(gone.is_some(), "{child:?}");
        assert_eq!(cores(agent.dir()), [""; 0], "{:?}", child.args);
    }
    signal(agent.pid(), Signal::ABORT);
    assert_eq!(agent.wait_exit(Duration::from_secs(20)), None);
    assert_eq!(cores(agent.dir()), [""; 0]);
    assert_eq!(cores(&agent.state_dir()), [""; 0]);
}

/// Each thread tries what a server that was taken over would.
#[cfg(target_arch = "x86_64")]
#[test]
fn rule_24_no_thread_of_the_server_reaches_module_pin_or_shell() {
    use support::inject::Held;

    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let bucket = weed.bucket("threads");
    // Work that makes it start all the threads it ever has.
    std::thread::scope(|scope| {
        for n in 0..16 {
            let (agent, bucket) = (&agent, &bucket);
            scope.spawn(move || {
                stored(agent, weed, bucket, &format!("{n}"), &pattern(n, 3 << 20));
                read(agent, bucket, &format!("{n}"));
            });
        }
    });
    let server = agent.server();
    let landlock = landlock_version(&agent);
    let outside = temp_dir();
    let (write, create) = (libc::O_WRONLY, libc::O_WRONLY | libc::O_CREAT);
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", server.pid))
        .unwrap()
        .flatten()
    {
        let tid = task.file_name().to_str().unwrap().parse().unwrap();
        let held = Held::stop(server.pid, tid);
        let denied = [libc::EACCES, libc::EPERM];
        let refuse = |what: &str, result: Result<(), i32>| {
            let error = result.expect_err(&format!("thread {tid}: {what} succeeded"));
            assert!(
                denied.contains(&error),
                "thread {tid}: {what}: error {error}"
            );
        };
        for (what, path, flags) in [
            ("the module", hsm::module(), libc::O_RDONLY),
            ("the PIN", hsm.pin_file(), libc::O_RDONLY),
            ("the token's files", hsm.conf(), libc::O_RDONLY),
            ("the configuration", agent.config_path(), libc::O_RDONLY),
            ("the log", agent.dir().join("log"), write),
            ("/etc/shadow", "/etc/shadow".into(), libc::O_RDONLY),
            (
                "the supervisor's memory",
                format!("/proc/{}/mem", agent.pid()).into(),
                libc::O_RDONLY,
            ),
            ("a new file outside", outside.path().join("new"), create),
            (
                "a new file in /tmp",
                "/tmp/strongroom-test-escape".into(),
                create,
            ),
        ] {
            refuse(what, held.open(&path, flags));
        }
        refuse(
            "mkdir outside",
            held.on_path(libc::SYS_mkdir, &outside.path().join("dir"), 0o700),
        );
        refuse(
            "unlink of the socket",
            held.on_path(libc::SYS_unlink, &agent.socket(), 0),
        );
        for shell in ["/bin/sh", "/proc/self/exe"] {
            refuse(shell, held.exec(Path::new(shell)));
        }
        let pid = u64::from(agent.pid());
        let kill = held.call(libc::SYS_kill, [pid, 0, 0, 0, 0, 0]);
        let attach = held.call(
            libc::SYS_ptrace,
            [u64::from(libc::PTRACE_ATTACH), pid, 0, 0, 0, 0],
        );
        let space = held.call(
            libc::SYS_unshare,
            [u64::from(libc::CLONE_NEWUSER.unsigned_abs()), 0, 0, 0, 0, 0],
        );
        assert_eq!(
            [attach, space],
            [-i64::from(libc::EPERM); 2],
            "thread {tid}"
        );
        // Landlock keeps signals in from its sixth version on (Linux 6.12).
        if landlock >= 6 {
            assert_eq!(kill, -i64::from(libc::EPERM), "thread {tid}");
        }
        // And what it may do works, or all of this says nothing.
        held.open(&agent.state_dir().join("tried"), create).unwrap();
        held.open(Path::new("/etc/hosts"), libc::O_RDONLY).unwrap();
        threads += 1;
    }
    assert!(threads > 2);
    println!("{threads} threads: 9 paths, 2 programs, 5 other calls each");
    // None the worse for it.
    assert_eq!(read(&agent, &bucket, "3").body, pattern(3, 3 << 20));
    assert_eq!(agent.server().pid, server.pid);
}

#[cfg(target_arch = "x86_64")]
fn landlock_version(agent: &Agent) -> u32 {
    let confinement = agent.try_status().unwrap().confinement;
    let abi = confinement.strip_prefix("landlock(abi ").unwrap();
    abi.split(')').next().unwrap().parse().unwrap()
}
