//! The agent's processes as the system sees them: who has the PIN, who has
//! the PKCS#11 module, who is confined, and what happens when one of them
//! dies. As root this looks into every process; as another user tests that
//! need root say so.

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use strongroom::api::Status;
use support::process::{Process, eventually, run, signal, tree};
use support::tamper::{read, stored};
use support::{Agent, Body, Hsm, Weed, pattern, strongroom, temp_dir, value};

/// Part of the module's path, as it stands in `/proc/PID/maps`.
const MODULE: &str = "libsofthsm2";
/// A user and a group that no system has.
const STRANGER: u32 = 12_345;

/// Whether the process has the PKCS#11 module in its memory.
#[track_caller]
fn has_module(process: &Process) -> bool {
    let maps = String::from_utf8_lossy(&process.proc("maps")).into_owned();
    assert!(
        !process.runs() || !maps.is_empty(),
        "cannot look into {process:?}"
    );
    maps.contains(MODULE)
}

fn try_status(agent: &Agent) -> Option<Status> {
    let mut body = Vec::new();
    let socket = agent.socket();
    let reply =
        support::http::send(&socket, "GET", "/v1/status", &[], Body::None, &mut body).ok()?;
    (reply.status == 200).then(|| serde_json::from_slice(&body).unwrap())
}

/// Looks at the command line and environment of every process again and again.
struct Watch {
    stop: AtomicBool,
    rounds: AtomicUsize,
    workers: AtomicUsize,
}

impl Watch {
    /// Runs `work` while watching; returns where a secret was seen.
    fn during(secrets: &[String], work: impl FnOnce()) -> (BTreeSet<String>, Self) {
        let watch = Self {
            stop: AtomicBool::new(false),
            rounds: AtomicUsize::new(0),
            workers: AtomicUsize::new(0),
        };
        let seen = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch.look(secrets));
            work();
            watch.stop.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        (seen, watch)
    }

    fn look(&self, secrets: &[String]) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        while !self.stop.load(Ordering::Relaxed) {
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let dir = entry.path();
                for file in ["cmdline", "environ"] {
                    let bytes = std::fs::read(dir.join(file)).unwrap_or_default();
                    let has = |secret: &str| {
                        bytes
                            .windows(secret.len())
                            .any(|piece| piece == secret.as_bytes())
                    };
                    if secrets.iter().any(|secret| has(secret)) {
                        seen.insert(format!("{file} of {}", entry.file_name().display()));
                    }
                    if file == "cmdline" && has("token-worker") {
                        self.workers.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        seen
    }
}

#[test]
fn the_pin_is_in_no_command_line_and_no_environment() {
    let weed = Weed::shared();
    let bucket = weed.bucket("pin");
    let hsm = Hsm::bare();
    let so_pin = std::fs::read_to_string(hsm.so_pin_file()).unwrap();
    let secrets = [hsm.pin(), so_pin];
    // The watch can see: here is one who is careless.
    let (seen, _) = Watch::during(&secrets, || {
        let mut careless = Command::new("sleep");
        careless.arg("0.5").env("PIN", &secrets[0]);
        assert!(careless.status().unwrap().success());
    });
    assert_eq!(seen.len(), 1, "{seen:?}");

    let (seen, watch) = Watch::during(&secrets, || {
        let init = [
            "token",
            "init",
            "--label",
            support::hsm::TOKEN_LABEL,
            "--module",
        ];
        let mut command = hsm.command();
        command.args(init).arg(support::hsm::module());
        command.arg("--so-pin-file").arg(hsm.so_pin_file());
        command.arg("--pin-file").arg(hsm.pin_file());
        run(&mut command, b"").ok();
        let mut command = hsm.command();
        command.args([
            "key",
            "generate",
            support::hsm::KEY,
            "--token",
            support::hsm::TOKEN,
        ]);
        command.arg("--config").arg(hsm.config_path());
        run(&mut command, b"").ok();
        let mut agent = Agent::start(&hsm, weed, |_| {});
        stored(&agent, weed, &bucket, "k", b"plain");
        for worker in agent.workers() {
            signal(worker.pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(500));
        agent.cli(["status"]).ok();
        agent.cli(["key", "list"]).ok();
        agent.restart();
        agent.stop();
    });
    let (rounds, workers) = (watch.rounds.into_inner(), watch.workers.into_inner());
    println!("{rounds} looks at all processes, {workers} at token workers: {seen:?}");
    assert!(seen.is_empty(), "{seen:?}");
    assert!(workers > 3, "too quick to be seen");
}

#[test]
fn rule_24_the_module_is_in_token_workers_only() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let bucket = weed.bucket("module");
    stored(&agent, weed, &bucket, "k", &pattern(1, 100_000));
    read(&agent, &bucket, "k");
    // A command in the middle of its work.
    let mut put = agent
        .command(["put", "-", &format!("s3://{bucket}/slow")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let busy = eventually(Duration::from_secs(10), || {
        (try_status(&agent)?.requests > 0).then_some(())
    });
    assert!(busy.is_some());
    let workers: Vec<u32> = agent.workers().iter().map(|p| p.pid).collect();
    let all = agent.processes();
    assert_eq!((workers.len(), all.len()), (1, 3), "{all:#?}");
    for process in all.iter().chain(&tree(put.id())) {
        assert_eq!(
            has_module(process),
            workers.contains(&process.pid),
            "{process:?}"
        );
    }
    drop(put.stdin.take());
    assert!(put.wait().unwrap().success());

    // Commands that work on tokens themselves do it in a worker too.
    let (with, without) = (AtomicUsize::new(0), AtomicUsize::new(0));
    for args in [
        vec!["token", "list", "--module"],
        vec![
            "key",
            "generate",
            "another",
            "--token",
            support::hsm::TOKEN,
            "--config",
        ],
    ] {
        let last = match args[0] {
            "token" => support::hsm::module(),
            _ => hsm.config_path(),
        };
        let mut command = hsm.command();
        let mut child = command
            .args(&args)
            .arg(last)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none() {
            for process in tree(child.id()) {
                let maps = process.proc("maps");
                let is_worker = process.args.iter().any(|a| a == "token-worker");
                if String::from_utf8_lossy(&maps).contains(MODULE) {
                    assert!(is_worker && process.pid != child.id(), "{process:?}");
                    with.fetch_add(1, Ordering::Relaxed);
                } else {
                    without.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        assert!(child.wait().unwrap().success(), "{args:?}");
    }
    println!(
        "3 processes of the agent and 1 client: module in 1; commands: {with:?} looks at a worker with it, {without:?} at processes without"
    );
    assert!(with.into_inner() > 0);
}

/// One field of `/proc/PID/task/TID/status` for every thread.
#[track_caller]
fn of_threads(process: &Process, field: &str) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.pid)).unwrap();
    threads
        .flatten()
        .map(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|l| l.strip_prefix(field));
            line.unwrap_or("gone").trim().to_owned()
        })
        .filter(|value| value != "gone")
        .collect()
}

#[test]
fn rule_24_every_thread_of_the_server_is_confined() {
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
    let seccomp = of_threads(&server, "Seccomp:");
    let privileges = of_threads(&server, "NoNewPrivs:");
    println!(
        "{} threads of the server: Seccomp {seccomp:?}",
        seccomp.len()
    );
    assert!(seccomp.len() > 2);
    assert!(seccomp.iter().all(|mode| mode == "2"), "{seccomp:?}");
    assert!(privileges.iter().all(|on| on == "1"), "{privileges:?}");
    let status = try_status(&agent).unwrap();
    println!("confinement as status tells it: {}", status.confinement);
    assert!(
        status.confinement.contains("seccomp"),
        "{}",
        status.confinement
    );
    assert!(
        status.confinement.contains("landlock"),
        "{}",
        status.confinement
    );
    // None of its descriptors is the PIN, the configuration or the module.
    for fd in std::fs::read_dir(format!("/proc/{}/fd", server.pid))
        .unwrap()
        .flatten()
    {
        let target = std::fs::read_link(fd.path()).unwrap_or_default();
        for secret in [hsm.pin_file(), agent.config_path(), support::hsm::module()] {
            assert_ne!(target, secret);
        }
    }
    // Threads of the others too have given up new privileges and core files.
    for process in agent.processes() {
        assert!(
            of_threads(&process, "NoNewPrivs:")
                .iter()
                .all(|on| on == "1"),
            "{process:?}"
        );
        let limits = String::from_utf8_lossy(&process.proc("limits")).into_owned();
        let core = limits
            .lines()
            .find(|l| l.starts_with("Max core file size"))
            .unwrap();
        let numbers: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(numbers, ["0", "0"], "{process:?}");
    }
}

#[test]
fn rule_24_a_pin_within_the_servers_reach_is_refused() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = Agent::prepare(&hsm, weed, |_| {});
    std::fs::create_dir(agent.state_dir()).unwrap();
    std::fs::set_permissions(agent.state_dir(), PermissionsExt::from_mode(0o700)).unwrap();
    let inside = agent.state_dir().join("pin");
    hsm.write_pin(&inside, &hsm.pin());
    agent.reconfigure(|config| {
        let tokens = config["token"].as_array_of_tables_mut().unwrap();
        tokens.get_mut(0).unwrap()["pin_file"] = value(inside.display().to_string());
    });
    agent.launch();
    let failed = agent
        .await_ready()
        .expect_err("it serves with the PIN in reach");
    println!("exit {:?}", failed.code);
    assert!(matches!(failed.code, Some(1 | 78)), "{failed:?}");
    assert!(
        failed.log.contains(&inside.display().to_string()),
        "{}",
        failed.log
    );
}

#[test]
fn rule_27_the_workers_environment_is_an_allow_list() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let worker = agent.workers().remove(0);
    let environ = worker.proc("environ");
    let names: BTreeSet<String> = environ
        .split(|b| *b == 0)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            String::from_utf8_lossy(pair)
                .split('=')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    println!("the worker's environment: {names:?}");
    let expected = ["HOME", "SOFTHSM2_CONF", "TMPDIR"].map(str::to_owned);
    assert!(names.contains("SOFTHSM2_CONF") && names.is_subset(&expected.into()));
    // The supervisor does have more, so the list is not empty by chance.
    let supervisor = agent.processes().remove(0).proc("environ");
    assert!(String::from_utf8_lossy(&supervisor).contains("AWS_SECRET_ACCESS_KEY="));
}

/// Puts and gets until it works, at most five seconds.
#[track_caller]
fn works_again(agent: &Agent, bucket: &str) -> Duration {
    let began = Instant::now();
    let done = eventually(Duration::from_secs(5), || {
        let put = agent.cli_in(["put", "-", &format!("s3://{bucket}/again")], b"again");
        match put.code {
            Some(0) => Some(()),
            Some(75) => None,
            _ => panic!("{:?}: {}", put.code, put.stderr),
        }
    });
    assert!(done.is_some(), "no put within 5 s:\n{}", agent.log());
    let took = began.elapsed();
    assert_eq!(read(agent, bucket, "again").body, b"again");
    took
}

#[test]
fn a_killed_worker_is_replaced() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let bucket = weed.bucket("worker");
    let server = agent.server().pid;
    for round in 1..=3 {
        let before = agent.workers().remove(0);
        signal(before.pid, Signal::KILL);
        let took = works_again(&agent, &bucket);
        let after = agent.workers().remove(0);
        assert_ne!(before.pid, after.pid);
        assert_eq!(after.parent, agent.pid(), "the supervisor started it");
        assert_eq!(agent.server().pid, server, "the server stayed");
        println!("worker killed, round {round}: a put worked {took:?} later");
    }
}

#[test]
fn a_killed_server_is_replaced_and_the_socket_stays() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let bucket = weed.bucket("server");
    let inode = std::fs::metadata(agent.socket()).unwrap().ino();
    for round in 1..=3 {
        let before = agent.server();
        signal(before.pid, Signal::KILL);
        let gone = eventually(Duration::from_secs(5), || (!before.runs()).then_some(()));
        assert!(gone.is_some());
        // In between: nobody is refused, the kernel holds the connection.
        let health = agent.http("GET", "/v1/health", &[], b"");
        assert_eq!(health.status, 200);
        let took = works_again(&agent, &bucket);
        assert_ne!(agent.server().pid, before.pid);
        assert_eq!(of_threads(&agent.server(), "Seccomp:")[0], "2");
        assert_eq!(std::fs::metadata(agent.socket()).unwrap().ino(), inode);
        println!("server killed, round {round}: a put worked {took:?} later");
    }
    assert_eq!(agent.workers().len(), 1);
}

#[test]
fn a_killed_supervisor_takes_all_others_with_it() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = Agent::start(&hsm, weed, |_| {});
    let all = agent.processes();
    assert_eq!(all.len(), 3);
    signal(agent.pid(), Signal::KILL);
    // Asserts that none of them outlives it.
    assert_eq!(agent.wait_exit(Duration::from_secs(5)), None);
    // Its socket file is still there, and does not keep the next one out.
    assert!(agent.socket().exists());
    agent.launch();
    agent.await_ready().unwrap();
    println!("3 processes ended with the supervisor; the stale socket was replaced");
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let first = Agent::start(&hsm, weed, |_| {});
    let same = first.cli(["agent"]).fails(1, &["another agent", "hint: "]);
    assert!(same.stderr.contains("state_dir"), "{}", same.stderr);

    let path = |path: PathBuf| value(path.display().to_string());
    for (setting, theirs, word) in [
        ("socket", first.socket(), "another agent listens"),
        ("state_dir", first.state_dir(), "another agent (process"),
    ] {
        let other = Agent::prepare(&hsm, weed, |config| {
            config["agent"][setting] = path(theirs.clone());
        });
        let refused = other.cli(["agent"]).fails(1, &[word, "hint: "]);
        assert!(
            refused.stderr.contains(&theirs.display().to_string()),
            "{}",
            refused.stderr
        );
    }
    // What is no socket is nobody's to remove.
    let other = Agent::prepare(&hsm, weed, |_| {});
    std::fs::write(other.socket(), "precious").unwrap();
    other.cli(["agent"]).fails(1, &["not a socket", "hint: "]);
    assert_eq!(std::fs::read(other.socket()).unwrap(), b"precious");
    assert_eq!(first.http("GET", "/v1/ready", &[], b"").status, 200);
    println!("4 second agents refused");
}

#[test]
fn rule_22_a_wrong_pin_costs_one_attempt_and_a_restart_none() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let pin = hsm.pin();
    hsm.write_pin(&hsm.pin_file(), "000000000000");
    let mut agent = Agent::prepare(&hsm, weed, |_| {});
    agent.launch();
    let locked = |agent: &Agent| {
        let status = eventually(Duration::from_secs(20), || {
            try_status(agent).filter(|s| s.health == "locked")
        });
        let status = status.unwrap_or_else(|| panic!("not locked:\n{}", agent.log()));
        assert!(
            status.tokens[0]
                .hint
                .as_ref()
                .is_some_and(|h| !h.is_empty()),
            "{status:?}"
        );
    };
    let attempts = |agent: &Agent| agent.log().matches("token worker started").count();
    locked(&agent);
    // Longer than any back-off's first steps.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(attempts(&agent), 1, "{}", agent.log());
    assert_eq!(agent.workers().len(), 0);
    let latch = agent
        .state_dir()
        .join(format!("pin-latch-{}", support::hsm::TOKEN));
    assert!(latch.exists());
    agent
        .cli_in(["put", "-", "s3://bucket/k"], b"x")
        .fails(75, &["PIN", "hint: "]);
    agent
        .http("GET", "/v1/ready", &[], b"")
        .fails("token-locked", &["PIN"]);
    for _ in 0..2 {
        agent.stop();
        agent.launch();
        locked(&agent);
    }
    assert_eq!(
        attempts(&agent),
        1,
        "restarts tried again:\n{}",
        agent.log()
    );

    // The right PIN, and a reload.
    hsm.write_pin(&hsm.pin_file(), &pin);
    agent.signal(Signal::HUP);
    agent.await_ready().unwrap();
    assert_eq!(attempts(&agent), 2);
    println!("a wrong PIN: 1 attempt, 2 restarts: none, the right one: ready");
}

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
    std::fs::copy(env!("CARGO_BIN_EXE_strongroom"), &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    open_to_all(dir);
    copy
}

fn open_to_all(dir: &Path) {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
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
            let run = cli(args, uid, STRANGER).fails(77, &["may not", "hint: "]);
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
        run.code != Some(0) && run.stderr.contains("ermission denied"),
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
        (try_status(&agent)?.health == "ready").then_some(())
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
        let confinement = try_status(&agent).unwrap().confinement;
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

#[test]
fn strongroom_help_does_not_show_the_agents_own_processes() {
    let help = run(strongroom().arg("--help"), b"").ok().text();
    for hidden in ["token-worker", "server"] {
        assert!(
            !help.lines().any(|l| l.trim_start().starts_with(hidden)),
            "{help}"
        );
        // Started by hand they say that they are not for that, and end.
        let run = run(strongroom().arg(hidden), b"");
        assert!(run.code != Some(0), "{hidden}");
    }
}
