//! The real agent on a socket in a temporary directory.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use toml_edit::{DocumentMut, Item, Table, value};

use super::data::pattern;
use super::http::{self, Body, Reply};
use super::memory::{Needles, PIECE};
use super::process::{Process, Run, eventually, run, run_reading, signal, tree, wait};
use super::weed::{REGION, Store};
use super::{Hsm, TokenKind, temp_dir};

/// How long a start may take (a debug build on a busy machine).
const START: Duration = Duration::from_secs(20);
/// How long a stop may take: more than the shutdown grace that tests set.
const STOP: Duration = Duration::from_secs(30);

/// The variable of the log's level.
const LEVEL: &str = "STRONGROOM_LOG";
/// Patterns of test data that are looked for, and bytes of each: whoever leaks
/// plaintext leaks the beginning of a frame or a body.
const PATTERNS: u64 = 32;
const PATTERN_LEN: u64 = 64;

/// A running agent: supervisor, server and token workers.
pub struct Agent {
    child: Option<Child>,
    dir: tempfile::TempDir,
    token_kind: TokenKind,
    token_conf: PathBuf,
    store: Store,
    variables: Vec<(String, String)>,
    /// What must be in none of its files when it ends.
    secrets: Needles,
}

/// An agent that ended instead of getting ready.
#[derive(Debug)]
pub struct Failed {
    /// Its exit code; `None` if it had to be killed.
    pub code: Option<i32>,
    /// All it wrote.
    pub log: String,
}

impl Agent {
    /// Starts an agent and waits until it is ready. `change` edits the
    /// configuration: `|config| config["s3"]["part_size"] = value("5 MiB")`.
    #[track_caller]
    pub fn start(
        hsm: &Hsm,
        store: impl Into<Store>,
        change: impl FnOnce(&mut DocumentMut),
    ) -> Self {
        match Self::try_start(hsm, store, change) {
            Ok(agent) => agent,
            Err(failed) => panic!(
                "the agent did not get ready (exit {:?}):\n{}",
                failed.code, failed.log
            ),
        }
    }

    /// Starts an agent that may refuse to.
    #[track_caller]
    pub fn try_start(
        hsm: &Hsm,
        store: impl Into<Store>,
        change: impl FnOnce(&mut DocumentMut),
    ) -> Result<Self, Failed> {
        let mut agent = Self::prepare(hsm, store, change);
        agent.launch();
        agent.await_ready()?;
        Ok(agent)
    }

    /// Writes the configuration of an agent and starts nothing: for commands
    /// that need none, and for agents that never get ready (see
    /// [`Self::launch`]).
    #[track_caller]
    pub fn prepare(
        hsm: &Hsm,
        store: impl Into<Store>,
        change: impl FnOnce(&mut DocumentMut),
    ) -> Self {
        let agent = Self {
            child: None,
            dir: temp_dir(),
            token_kind: hsm.kind(),
            token_conf: hsm.conf(),
            store: store.into(),
            variables: Vec::new(),
            secrets: secrets(hsm),
        };
        let mut config: DocumentMut = hsm.config().parse().unwrap();
        for name in ["agent", "s3", "message", "spool", "keyslots"] {
            if !config.contains_key(name) {
                config[name] = Item::Table(Table::new());
            }
        }
        let path = |name: &str| value(agent.dir.path().join(name).display().to_string());
        config["agent"]["socket"] = path("agent.sock");
        config["agent"]["state_dir"] = path("state");
        config["agent"]["shutdown_grace"] = value("10 s");
        config["s3"]["region"] = value(REGION);
        config["s3"]["endpoint_url"] = value(agent.store.url.as_str());
        config["s3"]["force_path_style"] = value(true);
        change(&mut config);
        fs::write(agent.config_path(), config.to_string()).unwrap();
        agent
    }

    /// Sets a variable in the environment of what is started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the process without waiting for anything.
    pub fn launch(&mut self) {
        let mut command = self.bare_command();
        command.arg("agent");
        self.launch_as(command);
    }

    /// The same, started by this command.
    pub fn launch_as(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "it runs already");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        // At the most talkative level, so that every test is one of what is not
        // said, too.
        if !self.variables.iter().any(|(name, _)| name == LEVEL) {
            command.env(LEVEL, "trace");
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until `/v1/ready` answers 200, or the process ends.
    pub fn await_ready(&mut self) -> Result<(), Failed> {
        let socket = self.socket();
        let child = self.child.as_mut().unwrap();
        let outcome = eventually(START, || {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(Err(status));
            }
            let ready = http::send(
                &socket,
                "GET",
                "/v1/ready",
                &[],
                Body::None,
                &mut std::io::sink(),
            );
            matches!(ready, Ok(reply) if reply.status == 200).then_some(Ok(()))
        });
        let code = match outcome {
            Some(Ok(())) => return Ok(()),
            Some(Err(status)) => {
                self.child = None;
                status.code()
            }
            None => {
                self.kill();
                None
            }
        };
        Err(Failed {
            code,
            log: self.log(),
        })
    }

    /// Edits the configuration file; the running agent is not told.
    pub fn reconfigure(&self, change: impl FnOnce(&mut DocumentMut)) {
        let text = fs::read_to_string(self.config_path()).unwrap();
        let mut config: DocumentMut = text.parse().unwrap();
        change(&mut config);
        fs::write(self.config_path(), config.to_string()).unwrap();
    }

    /// SIGTERM; asserts that it ends with code 0 and leaves no process.
    #[track_caller]
    pub fn stop(&mut self) {
        assert_eq!(self.terminate(), Some(0), "{}", self.log());
    }

    /// SIGTERM; the exit code, `None` if a signal ended it or had to.
    #[track_caller]
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.wait_exit(STOP)
    }

    /// Waits for the agent to end by itself and asserts that no process of its
    /// tree outlives it.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> Option<i32> {
        let processes = self.processes();
        let mut child = self.child.take().unwrap();
        let Some(status) = wait(&mut child, limit) else {
            self.child = Some(child);
            self.kill();
            panic!("the agent did not stop in {limit:?}:\n{}", self.log());
        };
        for process in &processes {
            let gone = eventually(Duration::from_secs(5), || (!process.runs()).then_some(()));
            assert!(gone.is_some(), "{process:?} outlived the agent");
        }
        status.code()
    }

    /// SIGTERM, then a new start with the same configuration and state.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.launch();
        self.await_ready()
            .unwrap_or_else(|failed| panic!("no restart:\n{}", failed.log));
    }

    /// SIGKILL to the whole tree.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // The supervisor first: it would start new ones.
        for process in tree(child.id()) {
            signal(process.pid, rustix::process::Signal::KILL);
        }
        let _ = child.wait();
    }

    /// Sends a signal to the supervisor.
    pub fn signal(&self, which: rustix::process::Signal) {
        signal(self.pid(), which);
    }

    /// The supervisor's process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent runs").id()
    }

    /// Supervisor, server and workers, in this order.
    pub fn processes(&self) -> Vec<Process> {
        tree(self.pid())
    }

    /// The process that talks to clients and S3.
    #[track_caller]
    pub fn server(&self) -> Process {
        let status: strongroom::api::Status = self.http("GET", "/v1/status", &[], b"").parse();
        let all = self.processes();
        let server = all.into_iter().find(|p| p.pid == status.server_pid);
        server.expect("a server in the agent's tree")
    }

    /// `GET /v1/status`, if there is somebody to answer it.
    pub fn try_status(&self) -> Option<strongroom::api::Status> {
        let mut body = Vec::new();
        let socket = self.socket();
        let reply = http::send(&socket, "GET", "/v1/status", &[], Body::None, &mut body).ok()?;
        (reply.status == 200).then(|| serde_json::from_slice(&body).ok())?
    }

    /// The token workers.
    pub fn workers(&self) -> Vec<Process> {
        let all = self.processes();
        all.into_iter()
            .filter(|p| p.args.iter().any(|a| a == "token-worker"))
            .collect()
    }

    /// The peak resident memory of all its processes together, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.processes().iter().map(Process::peak_memory).sum()
    }

    /// All it logged so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its directory: configuration, socket, state and log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// The state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("strongroom.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn bare_command(&self) -> Command {
        let mut command = super::strongroom();
        command
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("STRONGROOM_SOCKET", self.socket())
            .env("STRONGROOM_CONFIG", self.config_path())
            .env(self.token_kind.variable(), &self.token_conf)
            .env("AWS_ACCESS_KEY_ID", &self.store.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.store.secret_key)
            // The instance's role would be asked for where there is none.
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(self.variables.iter().cloned());
        command
    }

    /// The binary with this agent's socket, configuration and credentials, in
    /// this agent's directory.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.bare_command();
        command.args(args);
        command
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn cli<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        run(&mut self.command(args), b"")
    }

    /// Runs a command with these bytes as standard input.
    #[track_caller]
    pub fn cli_in<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Run {
        run(&mut self.command(args), stdin)
    }

    /// Runs a command whose standard input is what `stdin` reads.
    #[track_caller]
    pub fn cli_reading<S: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: &mut (dyn Read + Send),
    ) -> Run {
        run_reading(&mut self.command(args), stdin)
    }

    /// Runs a bash script in this agent's directory, with `strongroom` first in
    /// PATH: for README examples, pipes and process substitution.
    #[track_caller]
    pub fn bash(&self, script: &str) -> Run {
        let strongroom = self.bare_command();
        let bin = Path::new(strongroom.get_program()).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .env_clear()
            .envs(strongroom.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .env("PATH", path)
            .current_dir(self.dir.path());
        run(&mut command, b"")
    }

    /// One request with a small body; the reply's body is kept. An empty body
    /// is sent as none, except with PUT and POST.
    #[track_caller]
    pub fn http(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let body = if body.is_empty() && !matches!(method, "PUT" | "POST") {
            Body::None
        } else {
            Body::Bytes(body)
        };
        self.request(method, target, headers, body)
    }

    /// One request with any body; the reply's body is kept.
    #[track_caller]
    pub fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Body<'_>,
    ) -> Reply {
        let mut kept = Vec::new();
        let mut reply = self.stream(method, target, headers, body, &mut kept);
        reply.body = kept;
        reply
    }

    /// One request with any body; the reply's body goes to `sink`.
    #[track_caller]
    pub fn stream(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Body<'_>,
        sink: &mut dyn Write,
    ) -> Reply {
        http::send(&self.socket(), method, target, headers, body, sink)
            .unwrap_or_else(|e| panic!("{method} {target}: {e}"))
    }

    /// A raw connection.
    pub fn connect(&self) -> UnixStream {
        http::connect(&self.socket()).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let talk = |line: &&str| {
                line.contains("\"level\":\"TRACE\"") || line.contains("\"level\":\"DEBUG\"")
            };
            let log = self.log();
            let (left_out, told): (Vec<_>, Vec<_>) = log.lines().partition(talk);
            eprintln!(
                "--- the agent's log, without {} lines of TRACE and DEBUG ---\n{}\n---",
                left_out.len(),
                told.join("\n")
            );
            return;
        }
        // Audit log, catalogue, spool, latches. What else is in the directory
        // is the test's own.
        for path in [self.log_path(), self.state_dir(), self.config_path()] {
            let found = self.secrets.in_files(&path);
            assert!(found.is_empty(), "secrets in the agent's files: {found:?}");
        }
    }
}

/// The PIN, and the data that tests store.
fn secrets(hsm: &Hsm) -> Needles {
    let mut needles = Needles::new();
    // A test of wrong PINs may have written a short one.
    let pin = hsm.pin();
    if pin.len() >= PIECE {
        needles.add_written("PIN", pin.as_bytes());
    }
    for seed in 0..PATTERNS {
        needles.add("test data", &pattern(seed, PATTERN_LEN));
    }
    needles
}
