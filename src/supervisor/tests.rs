//! The real supervisor with stand-ins for server and workers: each process is
//! this test program again, running one of the `#[ignore]`d functions below.
//! What the stand-ins see they append to `log` in the scratch directory.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::Token;
use crate::control::Control;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

const DIR: &str = "STRONGROOM_TEST_DIR";
const TOKEN: &str = "STRONGROOM_TEST_TOKEN";

fn arguments(function: &str) -> [String; 4] {
    let function = format!("supervisor::tests::{function}");
    let flags = ["--ignored", "--exact", "--nocapture"].map(String::from);
    let [a, b, c] = flags;
    [a, b, c, function]
}

fn dir() -> PathBuf {
    std::env::var_os(DIR).unwrap().into()
}

fn note(line: &str) {
    let mut log = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(dir().join("log"))
        .unwrap();
    log.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn start_worker(token: &Token, exe: &Path) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new(exe)
        .args(arguments("as_worker"))
        .env(TOKEN, &token.name)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()?;
    Ok((child, ours.into()))
}

#[test]
#[ignore = "a stand-in"]
fn as_supervisor() {
    crate::log::init("supervisor");
    let launch = Launch {
        exe: std::env::current_exe().unwrap(),
        server: arguments("as_server").map(OsString::from).into(),
        worker: start_worker,
    };
    let result = run_with(&dir().join("strongroom.toml"), launch);
    let code = result.map_or_else(
        |error| {
            eprintln!("{error}\nhint: {}", error.hint);
            error.exit
        },
        |()| 0,
    );
    std::process::exit(code.into());
}

#[test]
#[ignore = "a stand-in"]
fn as_worker() {
    confine::die_with_parent();
    let token = std::env::var(TOKEN).unwrap();
    let pid = std::process::id();
    note(&format!("worker {token} {pid}"));
    if let Ok(code) = std::fs::read_to_string(dir().join(format!("exit-{token}"))) {
        std::process::exit(code.parse().unwrap());
    }
    let link = rustix::stdio::stdin().try_clone_to_owned().unwrap();
    let mut link = UnixStream::from(link);
    link.write_all(&pid.to_le_bytes()).unwrap();
    let _ = link.read_to_end(&mut Vec::new());
    note(&format!("worker-end {token} {pid}"));
    std::process::exit(0);
}

#[test]
#[ignore = "a stand-in"]
fn as_server() {
    confine::die_with_parent();
    let mut control = Control::from_stdin().unwrap();
    let mut links = std::collections::HashMap::new();
    while let Some((message, fd)) = control.recv().unwrap() {
        match message {
            ToServer::Start { config_text, .. } => {
                note(&format!("server {}", std::process::id()));
                for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "CREDENTIALS_DIRECTORY"] {
                    assert!(std::env::var_os(name).is_none(), "{name} was inherited");
                }
                if config_text.contains("# stillborn") {
                    std::process::exit(1);
                }
                let listener = UnixListener::from(fd.unwrap());
                listener.set_nonblocking(false).unwrap();
                std::thread::spawn(move || {
                    for client in listener.incoming() {
                        let _ = write!(client.unwrap(), "{}", std::process::id());
                    }
                });
                control.send(&ToSupervisor::Serving, None).unwrap();
                let status = "ready\nREADY=0".to_owned();
                control
                    .send(&ToSupervisor::Health { status }, None)
                    .unwrap();
                if config_text.contains("# client-reload") {
                    control.send(&ToSupervisor::Reload, None).unwrap();
                }
            }
            ToServer::Worker {
                token,
                pid,
                generation,
            } => {
                let mut link = UnixStream::from(fd.unwrap());
                let mut heard = [0; 4];
                let alive = link.read_exact(&mut heard).is_ok();
                if alive {
                    assert_eq!(u32::from_le_bytes(heard), pid);
                    note(&format!("linked {token} {generation} {pid}"));
                    links.insert(token.clone(), link);
                    if dir().join(format!("stuck-{token}")).exists() && generation == 1 {
                        let reason = "stuck".to_owned();
                        let replace = ToSupervisor::ReplaceWorker {
                            token,
                            generation,
                            reason,
                        };
                        control.send(&replace, None).unwrap();
                    }
                }
            }
            ToServer::WorkerDown { token, health, .. } => note(&format!("down {token} {health}")),
            ToServer::Reload {
                config_text, id, ..
            } => {
                let error = config_text
                    .contains("# refuse")
                    .then(|| "refused".to_owned());
                note(&format!("reload {}", error.is_none()));
                control
                    .send(&ToSupervisor::Reloaded { id, error }, None)
                    .unwrap();
            }
            ToServer::ReloadAnswer { error, .. } => note(&format!("answer {error:?}")),
            ToServer::Stop => {
                note("stop");
                if dir().join("never-stops").exists() {
                    continue;
                }
                std::thread::sleep(Duration::from_millis(100));
                note("server-end");
                std::process::exit(0);
            }
        }
    }
}

/// A running supervisor in a scratch directory.
struct Agent {
    dir: tempfile::TempDir,
    child: Option<Child>,
    environment: Vec<(&'static str, PathBuf)>,
}

impl Agent {
    /// A directory ready for an agent with these tokens.
    fn new(tokens: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agent = Self {
            dir,
            child: None,
            environment: Vec::new(),
        };
        std::fs::write(agent.path("module.so"), "").unwrap();
        for token in tokens {
            agent.write_pin(token, "1234\n");
        }
        agent.configure(tokens, "");
        agent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_pin(&self, token: &str, pin: &str) {
        let path = self.path(&format!("pin-{token}"));
        std::fs::write(&path, pin).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    }

    fn configure(&self, tokens: &[&str], more: &str) {
        let at = self.dir.path().display();
        let mut text = format!(
            "[agent]\nsocket = '{at}/run/s'\nstate_dir = '{at}/state'\nshutdown_grace = '1 s'\n"
        );
        for token in tokens {
            text += &format!(
                "[[token]]\nname = '{token}'\nmodule = '{at}/module.so'\ntoken_label = 'x'\npin_file = '{at}/pin-{token}'\n"
            );
        }
        std::fs::write(self.path("strongroom.toml"), text + more).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(arguments("as_supervisor"))
            .env(DIR, self.dir.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn start(&mut self) {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("stderr"))
            .unwrap();
        self.child = Some(self.command().stderr(log).spawn().unwrap());
    }

    fn run_to_end(&self) -> (i32, String) {
        let Output { status, stderr, .. } = self.command().stderr(Stdio::piped()).output().unwrap();
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let status = until("the supervisor ends", || child.try_wait().unwrap());
        status.code()
    }

    fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait()
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn count(&self, start: &str) -> usize {
        self.log()
            .iter()
            .filter(|line| line.starts_with(start))
            .count()
    }

    /// Waits for the `n`-th line that begins so; its last word as a number.
    fn pid(&self, start: &str, n: usize) -> i32 {
        let start = format!("{start} ");
        until(&start, || {
            let log = self.log();
            let line = log
                .iter()
                .filter(|line| line.starts_with(&start))
                .nth(n - 1)?;
            Some(line.rsplit(' ').next().unwrap().parse().unwrap())
        })
    }

    fn said(&self, words: &str) {
        until(words, || {
            let text = std::fs::read_to_string(self.path("stderr")).unwrap();
            text.contains(words).then_some(())
        });
    }

    /// The process id of the server that answers on the socket.
    fn ask(&self) -> i32 {
        let mut answer = String::new();
        let mut client = UnixStream::connect(self.path("run/s")).unwrap();
        client.read_to_string(&mut answer).unwrap();
        answer.parse().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log: {:#?}", self.log());
            let _ = std::fs::read_to_string(self.path("stderr")).map(|text| eprintln!("{text}"));
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(value) = check() {
            return value;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("timed out: {what}");
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn gone(pid: i32) {
    until(&format!("process {pid} ends"), || {
        // A zombie that its new parent has not reaped yet is gone, too.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let zombie = stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'));
        (zombie || test_kill_process(Pid::from_raw(pid).unwrap()).is_err()).then_some(())
    });
}

#[test]
fn rule_24_what_is_killed_is_started_again_and_linked_anew() {
    let mut agent = Agent::new(&["a", "b"]);
    agent.start();
    let (a, b) = (agent.pid("linked a 1", 1), agent.pid("linked b 1", 1));
    kill(a);
    let a2 = agent.pid("linked a 2", 1);
    let server = agent.pid("server", 1);
    assert_eq!(agent.ask(), server);
    kill(server);
    let server2 = agent.pid("server", 2);
    let a3 = agent.pid("linked a 3", 1);
    let b2 = agent.pid("linked b 2", 1);
    assert_eq!(agent.ask(), server2);
    for pid in [a, a2, b, server] {
        gone(pid);
    }
    assert_eq!(agent.count("down a recovering"), 1);
    let threads = format!("/proc/{}/task", agent.child.as_ref().unwrap().id());
    // One of libtest's own, one of the supervisor.
    assert!(std::fs::read_dir(threads).unwrap().count() <= 2);

    // Nobody outlives the supervisor.
    agent.signal(Signal::KILL);
    for pid in [server2, a3, b2] {
        gone(pid);
    }
}

#[test]
fn rule_22_a_refused_pin_costs_one_start_whatever_restarts() {
    let mut agent = Agent::new(&["a", "b"]);
    std::fs::write(agent.path("exit-a"), "10").unwrap();
    agent.start();
    agent.pid("linked b 1", 1);
    until("locked", || {
        (agent.count("down a locked") == 1).then_some(())
    });
    for restart in 2..5 {
        kill(agent.pid("server", restart - 1));
        agent.pid("linked b", restart);
    }
    agent.signal(Signal::HUP);
    until("reloaded", || {
        (agent.count("reload true") == 1).then_some(())
    });
    until("told again", || {
        (agent.count("down a locked") == 5).then_some(())
    });
    for restart in 1..4 {
        assert_eq!(agent.stop(), Some(0));
        agent.start();
        agent.pid("linked b 1", 1 + restart);
        until("told again", || {
            (agent.count("down a locked") == 5 + restart).then_some(())
        });
    }
    assert_eq!(agent.count("worker a "), 1);

    // Another PIN, and the operator's word that it is the right one.
    std::fs::remove_file(agent.path("exit-a")).unwrap();
    std::fs::remove_file(agent.path("pin-a")).unwrap();
    agent.write_pin("a", "56789\n");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(agent.count("worker a "), 1, "tried without being asked");
    agent.signal(Signal::HUP);
    agent.pid("linked a 1", 1);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_misconfigured_token_waits_and_is_tried_again_on_reload() {
    let mut agent = Agent::new(&["a"]);
    std::fs::write(agent.path("exit-a"), "11").unwrap();
    agent.start();
    until("told", || {
        (agent.count("down a misconfigured") == 1).then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(agent.count("worker a "), 1);
    std::fs::remove_file(agent.path("exit-a")).unwrap();
    agent.signal(Signal::HUP);
    agent.pid("linked a 2", 1);
}

#[test]
fn a_stuck_worker_is_replaced_on_the_servers_word() {
    let mut agent = Agent::new(&["a"]);
    std::fs::write(agent.path("stuck-a"), "").unwrap();
    agent.start();
    let stuck = agent.pid("linked a 1", 1);
    agent.pid("linked a 2", 1);
    gone(stuck);
    assert_eq!(agent.count("worker-end a"), 0, "it was not killed");
}

#[test]
fn sigterm_stops_the_server_first_and_leaves_nothing() {
    let mut agent = Agent::new(&["a"]);
    agent.start();
    agent.pid("linked a 1", 1);
    assert!(
        agent
            .path("run/s")
            .symlink_metadata()
            .unwrap()
            .file_type()
            .is_socket()
    );
    assert_eq!(agent.stop(), Some(0));
    let log = agent.log();
    let at = |start: &str| log.iter().position(|line| line.starts_with(start)).unwrap();
    assert!(at("stop") < at("server-end") && at("server-end") < at("worker-end a"));
    assert!(!agent.path("run/s").exists());
}

#[test]
fn a_server_that_does_not_stop_is_killed_and_that_is_a_failure() {
    let mut agent = Agent::new(&["a"]);
    std::fs::write(agent.path("never-stops"), "").unwrap();
    agent.start();
    agent.pid("linked a 1", 1);
    let server = agent.pid("server", 1);
    agent.signal(Signal::TERM);
    until("stop", || (agent.count("stop") == 1).then_some(()));
    // The second one does not wait for the grace to pass.
    agent.signal(Signal::INT);
    assert_eq!(agent.wait(), Some(1));
    gone(server);
    agent.said("was killed");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut agent = Agent::new(&["a"]);
    std::fs::create_dir(agent.path("run")).unwrap();
    drop(UnixListener::bind(agent.path("run/s")).unwrap());
    agent.start();
    agent.pid("server", 1);
    agent.ask();
    let meta = agent.path("run/s").symlink_metadata().unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o660);
    assert_eq!(
        agent.path("state").metadata().unwrap().permissions().mode() & 0o777,
        0o700
    );

    // A second agent: first on the same state, then on the same socket alone.
    let (code, said) = agent.run_to_end();
    assert!(
        code == 1 && said.contains("another agent (process "),
        "{code} {said}"
    );
    let config = std::fs::read_to_string(agent.path("strongroom.toml")).unwrap();
    std::fs::write(
        agent.path("strongroom.toml"),
        config.replace("/state", "/state2"),
    )
    .unwrap();
    let (code, said) = agent.run_to_end();
    assert!(
        code == 1 && said.contains("another agent listens on "),
        "{code} {said}"
    );
    agent.ask();

    std::fs::write(
        agent.path("strongroom.toml"),
        config.replace("run/s", "module.so"),
    )
    .unwrap();
    assert_eq!(agent.stop(), Some(0));
    let (code, said) = agent.run_to_end();
    assert!(
        code == 1 && said.contains("is not a socket"),
        "{code} {said}"
    );
}

#[test]
fn sighup_refuses_a_bad_file_and_restarts_only_what_changed() {
    let mut agent = Agent::new(&["a", "b"]);
    agent.write_pin("c", "1\n");
    agent.start();
    let (a, b) = (agent.pid("linked a 1", 1), agent.pid("linked b 1", 1));

    let good = std::fs::read_to_string(agent.path("strongroom.toml")).unwrap();
    for (bad, why) in [
        (format!("nonsense = 1\n{good}"), "unknown field `nonsense`"),
        (
            good.replace("/state", "/state2"),
            "agent.state_dir cannot change",
        ),
        (good.replace("module.so", "missing.so"), "missing.so"),
        (format!("{good}# refuse"), "stays: refused"),
    ] {
        std::fs::write(agent.path("strongroom.toml"), bad).unwrap();
        agent.signal(Signal::HUP);
        agent.said(why);
    }
    // The old one stays, also for a new server.
    kill(agent.pid("server", 1));
    let (a2, b2) = (agent.pid("linked a 2", 1), agent.pid("linked b 2", 1));
    assert!(a2 != a && b2 != b);

    agent.configure(&["a", "b", "c"], "sessions = 3\n");
    let text = std::fs::read_to_string(agent.path("strongroom.toml")).unwrap();
    let text = text.replacen("name = 'b'", "name = 'b'\nsessions = 3", 1);
    std::fs::write(agent.path("strongroom.toml"), text).unwrap();
    agent.signal(Signal::HUP);
    agent.pid("linked b 3", 1);
    let c = agent.pid("linked c 1", 1);
    gone(b2);
    agent.configure(&["a"], "");
    agent.signal(Signal::HUP);
    until("c is let go", || {
        (agent.count("reload true") == 2).then_some(())
    });
    assert_eq!(agent.count("linked a "), 2);
    assert!(test_kill_process(Pid::from_raw(a2).unwrap()).is_ok());
    // Its link was dropped with the stand-in server's, at the latest.
    assert_eq!(agent.stop(), Some(0));
    gone(c);
}

#[test]
fn a_clients_reload_is_answered() {
    let mut agent = Agent::new(&["a"]);
    agent.configure(&["a"], "# client-reload");
    agent.start();
    until("answer", || (agent.count("answer None") == 1).then_some(()));
    assert_eq!(agent.count("reload true"), 1);
}

#[test]
fn a_server_that_never_comes_up_ends_the_agent() {
    let agent = Agent::new(&["a"]);
    agent.configure(&["a"], "# stillborn");
    let (code, said) = agent.run_to_end();
    assert!(
        code == 1 && said.contains("the server cannot start (exit code 1)"),
        "{said}"
    );
    assert_eq!(agent.count("server "), 5);
}

#[test]
fn a_bad_set_up_exits_78_and_says_what_to_do() {
    let agent = Agent::new(&["a"]);
    let good = std::fs::read_to_string(agent.path("strongroom.toml")).unwrap();
    let refused = |text: &str, words: &[&str]| {
        std::fs::write(agent.path("strongroom.toml"), text).unwrap();
        let (code, said) = agent.run_to_end();
        assert_eq!(code, 78, "{said}");
        for word in words.iter().chain(&["hint: "]) {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    refused("[agent]\nsocet = 'x'", &["socet", "did you mean `socket`"]);
    refused(
        &good.replace("module.so", "gone.so"),
        &["gone.so", "No such file"],
    );
    refused(&good.replace("pin-a", "pin-z"), &["pin-z", "No such file"]);
    let no_group = good.replace("[agent]", "[agent]\nsocket_group = 'no-such-group'");
    refused(&no_group, &["no-such-group", "groupadd"]);
    let credential = good.lines().filter(|l| !l.starts_with("pin_file"));
    let credential = credential.collect::<Vec<_>>().join("\n") + "\npin_credential = 'pin'";
    refused(&credential, &["CREDENTIALS_DIRECTORY", "LoadCredential"]);
    for dir in ["state", "state/spool"] {
        std::fs::create_dir_all(agent.path(dir)).unwrap();
        std::fs::rename(agent.path("pin-a"), agent.path(dir).join("pin-a")).unwrap();
        refused(
            &good.replace("/pin-a", &format!("/{dir}/pin-a")),
            &["is inside", "state"],
        );
        std::fs::rename(agent.path(dir).join("pin-a"), agent.path("pin-a")).unwrap();
    }
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(agent.path("pin-a"), mode(0o644)).unwrap();
    refused(&good, &["mode 0644", "chmod"]);
    std::fs::set_permissions(agent.path("pin-a"), mode(0o400)).unwrap();
    std::fs::remove_file(agent.path("strongroom.toml")).unwrap();
    let (code, said) = agent.run_to_end();
    assert!(
        code == 78 && said.contains("cannot read the configuration"),
        "{said}"
    );
    assert_eq!(agent.count("server "), 0);
}

#[test]
fn the_service_manager_is_told_and_may_pass_the_socket() {
    let mut agent = Agent::new(&["a"]);
    let manager = UnixDatagram::bind(agent.path("notify")).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let told = |want: &str| {
        let mut buffer = [0; 512];
        loop {
            let n = manager.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if text.lines().any(|line| line.starts_with(want)) {
                return text;
            }
        }
    };
    agent
        .environment
        .push(("NOTIFY_SOCKET", agent.path("notify")));
    agent.environment.push(("WATCHDOG_USEC", "200000".into()));
    let passed = UnixListener::bind(agent.path("passed")).unwrap();
    // LISTEN_PID must be the supervisor's, which only a shell can know before.
    let plain = agent.command();
    let mut shell = Command::new("/bin/sh");
    shell
        .args([
            "-c",
            "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"",
        ])
        .arg(plain.get_program())
        .args(plain.get_args())
        .envs(plain.get_envs().filter_map(|(k, v)| Some((k, v?))))
        .stdin(Stdio::from(OwnedFd::from(passed)))
        .stdout(Stdio::null());
    agent.child = Some(shell.spawn().unwrap());
    told("READY=1");
    assert_eq!(told("STATUS="), "STATUS=ready READY=0\n");
    told("WATCHDOG=1");
    told("WATCHDOG=1");
    let mut answer = String::new();
    let mut client = UnixStream::connect(agent.path("passed")).unwrap();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.parse::<i32>().unwrap(), agent.pid("server", 1));
    agent.signal(Signal::HUP);
    told("RELOADING=1");
    told("READY=1");
    agent.signal(Signal::TERM);
    told("STOPPING=1");
    assert_eq!(agent.wait(), Some(0));
    assert!(
        agent.path("passed").exists(),
        "systemd's socket is not ours to remove"
    );
}
