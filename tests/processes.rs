//! The agent's processes as the system sees them: who has the PIN, who has
//! the PKCS#11 module, who is confined. As root this looks into every process.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use support::process::{Process, eventually, of_threads, run, signal, tree};
use support::tamper::{read, stored};
use support::{Agent, Hsm, TokenKind, Weed, pattern, strongroom, value};

/// Whether the process has the PKCS#11 module in its memory.
#[track_caller]
fn has_module(process: &Process) -> bool {
    let maps = String::from_utf8_lossy(&process.proc("maps")).into_owned();
    assert!(
        !process.runs() || !maps.is_empty(),
        "cannot look into {process:?}"
    );
    maps.contains(TokenKind::chosen().mapped())
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
fn rule_24_the_pin_is_in_no_command_line_and_no_environment() {
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
        (agent.try_status()?.requests > 0).then_some(())
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
                if String::from_utf8_lossy(&maps).contains(TokenKind::chosen().mapped()) {
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
    let status = agent.try_status().unwrap();
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
    std::fs::set_permissions(agent.state_dir(), Permissions::from_mode(0o700)).unwrap();
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
    // Elsewhere no test leaves a PIN there.
    std::fs::remove_file(&inside).unwrap();
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
    let conf = hsm.kind().variable();
    let expected = ["HOME", conf, "TMPDIR", "STRONGROOM_LOG"].map(str::to_owned);
    assert!(names.contains(conf) && names.is_subset(&expected.into()));
    // The supervisor does have more, so the list is not empty by chance.
    let supervisor = agent.processes().remove(0).proc("environ");
    assert!(String::from_utf8_lossy(&supervisor).contains("AWS_SECRET_ACCESS_KEY="));
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
