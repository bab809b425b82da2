//! `strongroom agent`: the single-threaded supervisor (SECURITY.md 24).
//!
//! It holds no client data, loads no PKCS#11 module and reads no PIN. It owns
//! the listening socket and the state directory's lock, starts the server and
//! one worker per token, hands the workers' links to the server, and starts
//! again whatever ends. The confined server cannot do that: its children
//! would inherit its confinement.

mod backoff;
mod preflight;
mod server;
mod socket;
mod systemd;
mod workers;

use std::ffi::OsString;
use std::fs::File;
use std::future::pending;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::confine::{self, Code};
use crate::control::{ToServer, ToSupervisor};
use crate::token::Latches;

use preflight::Loaded;
use server::Server;
use socket::Listener;
use systemd::Manager;
use workers::Workers;

/// What the server may take beyond `shutdown_grace` to abort the uploads of
/// requests that did not finish.
const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How often it is looked whether the last workers have ended.
const LEAVING_TICK: Duration = Duration::from_millis(20);
/// How long the server may take to answer a reload. It builds everything
/// anew, but calls neither token nor store.
const RELOAD: Duration = Duration::from_secs(10);

/// Why the agent ended, or did not start.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SupervisorError {
    /// What failed and why.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// The exit code: 78 for the configuration, else 1.
    pub exit: u8,
}

impl SupervisorError {
    fn configuration(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
            exit: 78,
        }
    }

    fn failed(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
            exit: 1,
        }
    }

    fn system(what: &str) -> impl Fn(io::Error) -> Self {
        move |error| Self::failed(format!("{what}: {error}"), "free descriptors or memory")
    }
}

/// What the processes are made of; other parts in tests.
#[derive(Clone, Debug)]
struct Launch {
    exe: PathBuf,
    server: Vec<OsString>,
    worker: workers::Spawn,
}

impl Default for Launch {
    fn default() -> Self {
        Self {
            // The same file even while a newer one is being installed.
            exe: "/proc/self/exe".into(),
            server: vec!["server".into()],
            worker: crate::token::spawn,
        }
    }
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration is refused, another agent runs, the server cannot start,
/// or it had to be killed at the end.
pub fn run(config_path: &Path) -> Result<(), SupervisorError> {
    crate::log::init("supervisor");
    confine::refuse_dumps();
    run_with(config_path, Launch::default())
}

/// Runs a token worker (`strongroom token-worker`) until its link ends.
#[must_use]
pub fn token_worker_main() -> ExitCode {
    crate::log::init("token-worker");
    crate::token::worker::main()
}

fn run_with(config_path: &Path, launch: Launch) -> Result<(), SupervisorError> {
    let loaded = preflight::load(config_path)?;
    let config = &loaded.config;
    let state_dir = &config.agent.state_dir;
    preflight::create_state_dir(state_dir).map_err(|error| {
        SupervisorError::failed(
            format!("cannot create {}: {error}", state_dir.display()),
            "the agent's user must be able to write agent.state_dir",
        )
    })?;
    let lock = socket::lock(state_dir)?;
    let listener = Listener::open(&config.agent)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(SupervisorError::system("cannot start"))?;
    let workers = Workers::new(
        launch.worker,
        launch.exe.clone(),
        Latches::new(state_dir),
        &config.tokens,
    );
    let supervisor = Supervisor {
        server: Server::new(launch.exe, launch.server),
        workers,
        manager: Manager::new(),
        listener: Some(listener),
        _lock: lock,
        loaded,
        reload: None,
        reload_ids: 0,
        again: None,
        stopping: None,
        code: Code::of_this_process(),
    };
    runtime.block_on(supervisor.run())
}

struct Supervisor {
    server: Server,
    workers: Workers,
    manager: Manager,
    /// Gone once we stop.
    listener: Option<Listener>,
    _lock: File,
    loaded: Loaded,
    reload: Option<Reload>,
    reload_ids: u64,
    /// A reload that was asked for while another was running: by how many
    /// clients.
    again: Option<usize>,
    /// When the server is killed.
    stopping: Option<Instant>,
    /// Let go once the server serves: what follows is little.
    code: Code,
}

/// A new configuration that the server is looking at.
struct Reload {
    id: u64,
    loaded: Loaded,
    deadline: Instant,
    /// Clients that wait for the answer.
    clients: usize,
}

impl Supervisor {
    async fn run(mut self) -> Result<(), SupervisorError> {
        let cannot = SupervisorError::system("cannot receive signals");
        let mut child = signal(SignalKind::child()).map_err(&cannot)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(&cannot)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(&cannot)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(&cannot)?;
        loop {
            let now = Instant::now();
            if self.tend(now).await? {
                return Ok(());
            }
            let wake = self.wake(now);
            tokio::select! {
                _ = child.recv() => {}
                _ = terminate.recv() => self.stop(),
                _ = interrupt.recv() => self.stop(),
                _ = hangup.recv() => self.reload(0),
                message = self.server.recv() => self.obey(message),
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Does whatever is due; true when all is over.
    async fn tend(&mut self, now: Instant) -> Result<bool, SupervisorError> {
        if let Some(status) = self.server.reap() {
            self.workers.server_ended(now);
            self.refuse_reload("the server ended meanwhile", "see the agent's log");
            if self.stopping.is_none()
                && let Err(error) = self.server.ended(status, now)
            {
                self.workers_leave().await;
                return Err(error);
            }
        }
        if self.server.mute_at().is_some_and(|at| at <= now) {
            self.server.kill("it gives no sign of life");
        }
        self.workers.reap(now);
        self.workers.kill_overdue(now);
        if let Some(deadline) = self.stopping {
            if self.server.runs() {
                if now >= deadline {
                    self.server.kill("it did not stop in time");
                }
            } else if self.workers.gone() {
                return if self.server.killed() {
                    Err(SupervisorError::failed(
                        "the server did not stop in time and was killed",
                        "raise agent.shutdown_grace; interrupted uploads are aborted at the next start",
                    ))
                } else {
                    tracing::info!("stopped");
                    Ok(true)
                };
            }
            return Ok(self.flush().await);
        }
        if self.server.due(now)
            && let Some(listener) = &self.listener
        {
            let start = ToServer::Start {
                config_path: self.loaded.config.path.display().to_string(),
                config_text: self.loaded.text.clone(),
                principals: self.loaded.principals.clone(),
                public_keys: self.loaded.public_keys.clone(),
                supervisor_pid: std::process::id(),
            };
            if self.server.start(&start, listener.as_fd(), now).await {
                self.workers.server_started(now);
            }
        }
        // Not before it serves: one that cannot start on this host would cost
        // a login each time it tries.
        if self.server.is_serving() {
            self.workers.start_due(now);
        }
        if self.reload.as_ref().is_some_and(|r| r.deadline <= now) {
            self.refuse_reload("the server did not answer", "see the agent's log");
        }
        Ok(self.flush().await)
    }

    /// Lets the workers end by themselves: their links have. One may be
    /// logging in, and a soft token that is killed while it writes its own
    /// files may not come back.
    async fn workers_leave(&mut self) {
        while !self.workers.gone() {
            tokio::time::sleep(LEAVING_TICK).await;
            let now = Instant::now();
            self.workers.reap(now);
            self.workers.kill_overdue(now);
        }
    }

    /// Tells the server what it must know. Always false, for the caller.
    async fn flush(&mut self) -> bool {
        for (message, fd) in self.workers.outbox.drain(..) {
            self.server
                .send(&message, fd.as_ref().map(|fd| fd.as_fd()))
                .await;
        }
        for message in std::mem::take(&mut self.server.outbox) {
            self.server.send(&message, None).await;
        }
        false
    }

    /// When something is due next.
    fn wake(&mut self, now: Instant) -> Option<Instant> {
        let stopping = self.stopping.is_some();
        [
            self.manager.alive(now, self.server.is_well(now)),
            self.workers.next(self.server.is_serving() && !stopping),
            self.server.next(stopping),
            self.server.mute_at(),
            self.reload.as_ref().map(|reload| reload.deadline),
            self.stopping
                .filter(|_| self.server.runs() && !self.server.killed()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn obey(&mut self, message: ToSupervisor) {
        match message {
            ToSupervisor::Serving => {
                self.server.serves();
                tracing::info!(socket = %self.loaded.config.agent.socket.display(), "serving");
                if self.stopping.is_none() {
                    self.manager.ready();
                    self.code.let_go();
                }
            }
            ToSupervisor::Health { status } => {
                // One line: more would be commands to the service manager.
                let line = status.replace(|c: char| c.is_control(), " ");
                self.manager.status(&line);
            }
            ToSupervisor::ReplaceWorker {
                token,
                generation,
                reason,
            } => self
                .workers
                .replace(&token, generation, &reason, Instant::now()),
            ToSupervisor::Reload => self.reload(1),
            ToSupervisor::Reloaded { id, error } => {
                let Some(reload) = self.reload.take_if(|reload| reload.id == id) else {
                    return;
                };
                match error {
                    None => self.apply(reload.loaded, reload.clients),
                    Some(error) => {
                        let error = SupervisorError::configuration(
                            error,
                            "correct the file, then reload again",
                        );
                        self.answer(Err(&error), reload.clients);
                    }
                }
            }
        }
    }

    /// Reads the configuration again, for a signal or for `clients`.
    fn reload(&mut self, clients: usize) {
        if self.stopping.is_some() {
            return;
        }
        if self.reload.is_some() {
            *self.again.get_or_insert(0) += clients;
            return;
        }
        self.manager.reloading();
        let old = &self.loaded.config;
        let loaded = preflight::load(&old.path)
            .and_then(|new| preflight::check_unchanged(old, &new.config).map(|()| new));
        match loaded {
            Err(error) => self.answer(Err(&error), clients),
            Ok(loaded) if !self.server.runs() => self.apply(loaded, clients),
            Ok(loaded) => {
                self.reload_ids += 1;
                let id = self.reload_ids;
                self.server.outbox.push(ToServer::Reload {
                    config_text: loaded.text.clone(),
                    principals: loaded.principals.clone(),
                    public_keys: loaded.public_keys.clone(),
                    id,
                });
                let deadline = Instant::now() + RELOAD;
                self.reload = Some(Reload {
                    id,
                    loaded,
                    deadline,
                    clients,
                });
            }
        }
    }

    fn apply(&mut self, loaded: Loaded, clients: usize) {
        self.workers
            .reconfigure(&loaded.config.tokens, Instant::now());
        self.loaded = loaded;
        self.answer(Ok(()), clients);
    }

    fn refuse_reload(&mut self, why: &str, hint: &str) {
        if let Some(reload) = self.reload.take() {
            let error = SupervisorError::failed(why, hint);
            self.answer(Err(&error), reload.clients);
        }
    }

    /// Ends a reload: log, service manager, the clients that asked.
    fn answer(&mut self, result: Result<(), &SupervisorError>, clients: usize) {
        match result {
            Ok(()) => tracing::info!("configuration reloaded"),
            Err(error) => tracing::error!(
                hint = error.hint,
                "the new configuration is refused, the old one stays: {error}"
            ),
        }
        self.manager.ready();
        let answer = ToServer::ReloadAnswer {
            error: result.err().map(ToString::to_string),
            hint: result.err().map(|error| error.hint.clone()),
        };
        self.server
            .outbox
            .extend(std::iter::repeat_n(answer, clients));
        if let Some(clients) = self.again.take() {
            self.reload(clients);
        }
    }

    /// Ends in order; a second signal ends at once.
    fn stop(&mut self) {
        let now = Instant::now();
        if self.stopping.is_some() {
            self.stopping = Some(now);
            return;
        }
        tracing::info!("stopping");
        self.manager.stopping();
        // New clients learn at once that nobody is there.
        self.listener = None;
        self.reload = None;
        self.server.outbox.push(ToServer::Stop);
        let grace = self.loaded.config.agent.shutdown_grace.duration() + STOP_MARGIN;
        self.stopping = Some(now + grace);
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

#[cfg(test)]
#[path = "supervisor/tests.rs"]
mod tests;
