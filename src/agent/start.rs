//! The server process: from the supervisor's first message to the last
//! request.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::api::{Error, ErrorKind};
use crate::audit::{Audit, Event, Identity, Kind};
use crate::catalog::Catalog;
use crate::config::{Anchor, Config};
use crate::confine::{self, Confinement, ServerPaths};
use crate::control::{AsyncControl, Control, HEARTBEAT, ToServer, ToSupervisor};
use crate::crypto;
use crate::engine::{Engine, Settings};
use crate::keyring::Keyring;
use crate::recipient::PublicKey;
use crate::store::{Limits, Place, Pool, Spool, Store};
use crate::token::{Health, Stuck};

use super::audit::{self, Checkpoints, Watch};
use super::idle::Idle;
use super::keys::{Needless, Reminders};
use super::metrics::{self, Metrics};
use super::policy::{Policies, Policy};
use super::queue;
use super::reply::Failures;
use super::serve;
use super::state::{App, ReloadRequest};

/// How often the supervisor is told of a change of health.
const HEALTH_TICK: Duration = Duration::from_millis(500);

/// `strongroom server`, started by the supervisor alone.
#[must_use]
pub fn server_main() -> ExitCode {
    crate::log::init("server");
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(
                detail = error.detail,
                hint = error.hint_text(),
                log = error.log,
                "the server cannot go on"
            );
            ExitCode::FAILURE
        }
    }
}

fn fatal(what: &str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::new(ErrorKind::Internal, format!("{what}: {e}"))
}

fn run() -> Result<(), Error> {
    crypto::check().map_err(|why| Error::new(ErrorKind::Misconfigured, why))?;
    confine::die_with_parent();
    let code = confine::harden_process();
    confine::ignore_termination();
    raise_descriptor_limit();
    let mut control = Control::from_stdin().map_err(fatal("no control channel"))?;
    let first = control
        .recv()
        .map_err(fatal("the control channel failed"))?;
    let Some((
        ToServer::Start {
            config_path,
            config_text,
            principals,
            public_keys,
            supervisor_pid,
        },
        Some(listener),
    )) = first
    else {
        return Err(Error::new(
            ErrorKind::Internal,
            "the supervisor did not say Start",
        ));
    };
    let config = Config::parse(&config_text, Path::new(&config_path))
        .map_err(|e| Error::new(ErrorKind::Misconfigured, e.message))?;
    let spool_dir = spool_dir(&config);
    std::fs::create_dir_all(&spool_dir).map_err(fatal("the spool directory"))?;
    let extra_write = beyond_state(&config)?;
    let collectors = config.metrics.listen.map(|address| {
        metrics::bind(address).map_err(|error| {
            Error::new(
                ErrorKind::Misconfigured,
                format!("metrics.listen: cannot listen on {address}: {error}"),
            )
            .hint("choose a port that is free")
        })
    });
    let collectors = collectors.transpose()?;
    let identity = Identity::of_this_host();
    let start = audit::configured(Kind::Start, &config_text);

    // From here on nothing but state, spool and trust anchors can be opened;
    // it must come before the first further thread (SECURITY rule 24).
    let confinement = confine::confine_server(&ServerPaths {
        state_dir: config.agent.state_dir.clone(),
        spool_dir: spool_dir.clone(),
        ca_bundle: config.s3.ca_bundle.clone(),
        extra_write,
        extra_read: Vec::new(),
        config_path: config.path.clone(),
        denied: denied(&config),
    })
    .map_err(|e| Error::new(ErrorKind::Misconfigured, e.to_string()))?;
    tracing::info!(%confinement, "confined");

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(fatal("the runtime"))?;
    runtime.block_on(async {
        let listener = listen(listener)?;
        let control = control.into_async().map_err(fatal("the control channel"))?;
        let (audit, unended) = Audit::start(audit::settings(&config), identity.clone(), start)
            .map_err(fatal("the audit log's writer"))?;
        let public_keys =
            parsed(&public_keys).map_err(|why| Error::new(ErrorKind::Misconfigured, why))?;
        let server = Server::build(
            config,
            &principals,
            public_keys,
            spool_dir,
            &confinement,
            supervisor_pid,
            audit,
        )
        .await?;
        if let Some(collectors) = collectors {
            tokio::spawn(metrics::serve(collectors, Arc::clone(&server.app)));
        }
        tokio::spawn(audit::resolve(server.app.clone(), unended));
        let engine = &server.app.engine;
        crate::put::queue::adopt(engine).await?;
        tokio::spawn(crate::put::sweep(Arc::clone(engine)));
        let records = queue::records(server.app.audit.clone());
        tokio::spawn(crate::put::queue::drain(Arc::clone(engine), records));
        let checkpoints = Checkpoints::new(server.app.clone(), &server.config, identity);
        server
            .run(listener, control, checkpoints, Idle::new(code))
            .await
    })
}

/// Connections and requests take more descriptors than the usual soft limit
/// of 1,024, which exists for programs that use select(2). Best effort.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on descriptors stays as it is");
    }
}

/// The agent's own user.
fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn listen(listener: OwnedFd) -> Result<UnixListener, Error> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener
        .set_nonblocking(true)
        .map_err(fatal("the listening socket"))?;
    UnixListener::from_std(listener).map_err(fatal("the listening socket"))
}

fn spool_dir(config: &Config) -> PathBuf {
    config
        .spool
        .dir
        .clone()
        .unwrap_or_else(|| config.agent.state_dir.join("spool"))
}

/// Directories of the audit log that lie outside the state directory.
fn beyond_state(config: &Config) -> Result<Vec<PathBuf>, Error> {
    let mut dirs = vec![config.audit_dir()];
    if let Some(Anchor::Dir(dir)) = &config.audit.anchor {
        dirs.push(dir.clone());
    }
    dirs.retain(|dir| !dir.starts_with(&config.agent.state_dir));
    for dir in &dirs {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(fatal("a directory of the audit log"))?;
    }
    Ok(dirs)
}

/// The public keys of RSA recipients, as the supervisor read them.
fn parsed(public_keys: &[Vec<u8>]) -> Result<Vec<PublicKey>, String> {
    let keys = public_keys.iter().map(|der| PublicKey::from_der(der));
    keys.collect::<Result<_, _>>()
        .map_err(|error| format!("a recipient's public key: {error}"))
}

/// What the server must not be able to open.
fn denied(config: &Config) -> Vec<PathBuf> {
    let pins = config.tokens.iter().filter_map(|t| t.pin_file.clone());
    let modules = config.tokens.iter().map(|t| t.module.clone());
    pins.chain(modules).collect()
}

/// The server with the ends of everything that reports to it.
struct Server {
    app: Arc<App>,
    grace: Duration,
    cancel: watch::Sender<bool>,
    stuck: mpsc::Receiver<Stuck>,
    reloads: mpsc::Receiver<ReloadRequest>,
    config: Config,
    /// Clients waiting for the supervisor's `ReloadAnswer`, in order.
    waiting: Vec<oneshot::Sender<Result<(), Error>>>,
    /// The current worker of each token: process id and generation.
    workers: HashMap<String, (u32, u64)>,
    /// Tokens and keys as the audit log has them.
    watch: Watch,
    /// Keys whose time has come, as the log was told.
    reminders: Reminders,
}

impl Server {
    async fn build(
        config: Config,
        principals: &[u32],
        public_keys: Vec<PublicKey>,
        spool_dir: PathBuf,
        confinement: &Confinement,
        supervisor_pid: u32,
        audit: Audit,
    ) -> Result<Self, Error> {
        let catalog = Catalog::open(&config.agent.state_dir)?;
        // Before the first upload of this process.
        catalog.orphan_uploads()?;
        let limits = Limits::default();
        let store = Store::connect(&config.s3, limits)
            .await
            .map_err(|e| Error::new(ErrorKind::Misconfigured, e.to_string()))?;
        let budget = config.agent.memory_budget.bytes();
        let (stuck_tx, stuck) = mpsc::channel(64);
        let (reload_tx, reloads) = mpsc::channel(16);
        let (cancel, cancelled) = watch::channel(false);
        let engine = Engine::new(
            Keyring::new(&config, public_keys, catalog.clone(), stuck_tx),
            store,
            catalog,
            Pool::new(config.part_buffers()),
            Spool::new(spool_dir, config.spool.max.bytes()),
            Settings::new(&config, limits),
            cancelled,
        );
        let app = Arc::new(App {
            engine,
            metrics: Metrics::new(),
            audit,
            denials: audit::Denials::default(),
            audit_dir: config.audit_dir(),
            anchors: match &config.audit.anchor {
                Some(Anchor::S3 { bucket, prefix }) => vec![Place::new(bucket, prefix)],
                Some(Anchor::Dir(_)) | None => Vec::new(),
            },
            audit_key: config
                .checkpoint_token()
                .and_then(|token| Some((token.name.clone(), config.audit.checkpoint_key.clone()?))),
            checkpoints: Mutex::default(),
            policy: Policies::new(Policy::new(&config, principals, own_uid())),
            writers: RwLock::new(config.writers.clone()),
            needless: Needless::default(),
            permits: Arc::new(Semaphore::new(config.agent.max_requests)),
            max_requests: config.agent.max_requests,
            begun: AtomicU64::new(0),
            failures: Failures::default(),
            confinement: confinement.to_string(),
            confined: confinement.is_complete(),
            supervisor_pid,
            memory_budget: budget,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            reloads: reload_tx,
        });
        Ok(Self {
            app,
            grace: config.agent.shutdown_grace.duration(),
            cancel,
            stuck,
            reloads,
            config,
            waiting: Vec::new(),
            workers: HashMap::new(),
            watch: Watch::default(),
            reminders: Reminders::default(),
        })
    }

    async fn run(
        mut self,
        listener: UnixListener,
        mut control: AsyncControl,
        checkpoints: Checkpoints,
        mut idle: Idle,
    ) -> Result<(), Error> {
        let (stop, stopped) = watch::channel(false);
        let (close, closing) = watch::channel(false);
        let checkpoints = tokio::spawn(checkpoints.run(closing));
        let cancel = self.cancel.clone();
        let mut serving = tokio::spawn(serve::serve(
            listener,
            self.app.clone(),
            stopped,
            cancel,
            self.grace,
        ));
        control
            .send(&ToSupervisor::Serving, None)
            .await
            .map_err(fatal("the control channel"))?;
        let mut tick = tokio::time::interval(HEALTH_TICK);
        let mut told = ("", Instant::now());
        loop {
            let out = tokio::select! {
                done = &mut serving => {
                    self.record_changes();
                    for event in self.app.denials.due(true) {
                        self.app.audit.send(event);
                    }
                    // The last checkpoint covers this record.
                    self.app.audit.send(Event::new(Kind::Stop));
                    close.send_replace(true);
                    let _ = checkpoints.await;
                    self.app.audit.close().await;
                    return done.map_err(|e| Error::new(ErrorKind::Internal, "the listener ended abnormally").log(e));
                }
                message = control.recv() => match message.map_err(fatal("the control channel"))? {
                    // The supervisor is gone, and this process with it soon.
                    None => return Ok(()),
                    Some((ToServer::Stop, _)) => {
                        stop.send_replace(true);
                        None
                    }
                    Some((message, fd)) => {
                        let down = matches!(message, ToServer::WorkerDown { .. });
                        let answer = self.obey(message, fd);
                        if down {
                            // The next worker may be there before the next tick.
                            self.record_changes();
                        }
                        answer
                    }
                },
                Some(stuck) = self.stuck.recv() => self.replace(&stuck),
                Some(answer) = self.reloads.recv() => {
                    self.waiting.push(answer);
                    Some(ToSupervisor::Reload)
                }
                _ = tick.tick() => {
                    self.record_changes();
                    idle.look(self.app.at_rest());
                    let now = self.app.health();
                    (now != told.0 || told.1.elapsed() >= HEARTBEAT).then(|| {
                        told = (now, Instant::now());
                        ToSupervisor::Health { status: now.to_owned() }
                    })
                }
            };
            if let Some(message) = out {
                control
                    .send(&message, None)
                    .await
                    .map_err(fatal("the control channel"))?;
            }
        }
    }

    fn obey(&mut self, message: ToServer, fd: Option<OwnedFd>) -> Option<ToSupervisor> {
        let keyring = &self.app.engine.keyring;
        match message {
            ToServer::Worker {
                token,
                pid,
                generation,
            } => {
                let (Some(handle), Some(fd)) = (keyring.token(&token), fd) else {
                    tracing::error!(token, "a worker for a token that is not configured");
                    return None;
                };
                self.workers.insert(token, (pid, generation));
                handle.attach(fd, pid);
                None
            }
            ToServer::WorkerDown {
                token,
                health,
                detail,
                hint,
            } => {
                if let Some(handle) = keyring.token(&token) {
                    if health == "replaced" {
                        handle.detach(detail);
                        return None;
                    }
                    let health = match health.as_str() {
                        "locked" => Health::Locked,
                        "misconfigured" => Health::Misconfigured,
                        _ => Health::Recovering,
                    };
                    handle.down(health, detail, Some(hint).filter(|h| !h.is_empty()));
                }
                None
            }
            ToServer::Reload {
                config_text,
                principals,
                public_keys,
                id,
            } => {
                let error = self.reload(&config_text, &principals, &public_keys).err();
                Some(ToSupervisor::Reloaded { id, error })
            }
            ToServer::ReloadAnswer { error, hint } => {
                let outcome =
                    match error {
                        None => Ok(()),
                        Some(detail) => Err(Error::new(ErrorKind::Misconfigured, detail)
                            .hint(hint.unwrap_or_default())),
                    };
                if !self.waiting.is_empty() {
                    // A client that left does not want its answer.
                    let _ = self.waiting.remove(0).send(outcome);
                }
                None
            }
            ToServer::Start { .. } | ToServer::Stop => None,
        }
    }

    /// Keys, tokens and grants change at once; what shapes the process needs a
    /// restart.
    fn reload(
        &mut self,
        text: &str,
        principals: &[u32],
        public_keys: &[Vec<u8>],
    ) -> Result<(), String> {
        let config = Config::parse(text, &self.config.path).map_err(|e| e.message)?;
        let public_keys = parsed(public_keys)?;
        self.app.engine.keyring.update(&config, public_keys);
        self.app
            .policy
            .replace(Policy::new(&config, principals, own_uid()));
        let mut writers = self
            .app
            .writers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        writers.clone_from(&config.writers);
        drop(writers);
        let fixed = |c: &Config| {
            format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                c.agent, c.s3, c.message, c.spool, c.keyslots, c.audit, c.metrics, c.bucket_aliases
            )
        };
        if fixed(&config) != fixed(&self.config) {
            tracing::warn!(
                "[agent], [s3], [message], [spool], [keyslots], [[bucket_alias]] and [audit] take effect at the next start"
            );
        }
        self.config = config;
        self.app.audit.send(audit::configured(Kind::Config, text));
        self.record_changes();
        tracing::info!("reloaded");
        Ok(())
    }

    fn record_changes(&mut self) {
        let keyring = &self.app.engine.keyring;
        let keys = keyring.keys();
        self.reminders.look(&keys);
        for event in self.watch.look(&keyring.token_status(), &keys) {
            self.app.audit.send(event);
        }
        for event in self.app.denials.due(false) {
            self.app.audit.send(event);
        }
    }

    fn replace(&self, stuck: &Stuck) -> Option<ToSupervisor> {
        let (pid, generation) = *self.workers.get(&stuck.token)?;
        if pid != stuck.pid {
            // That worker has been replaced already.
            return None;
        }
        Some(ToSupervisor::ReplaceWorker {
            token: stuck.token.clone(),
            generation,
            reason: stuck.reason.clone(),
        })
    }
}
