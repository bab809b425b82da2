//! What a process gives up before it works: core dumps, new privileges, the
//! file system, the network (SECURITY.md 24).
//!
//! Landlock and seccomp bind the calling thread and what it starts later; a
//! thread that already runs stays free. Everything here therefore happens
//! before the first one, and [`confine_server`] refuses otherwise.

mod calls;
mod code;
mod files;

use std::fmt;
use std::io;
use std::path::PathBuf;

use landlock::{ABI, Access as _, AccessNet, CompatLevel, Compatible as _, RulesetAttr as _};
use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::CapabilitySet;

use crate::wipe;

pub use self::code::Code;

/// The newest landlock version whose rights we handle (Linux 6.12); older
/// kernels enforce what they know. Version 9 would also cut us off from
/// nscd's and the journal's sockets.
const LANDLOCK: ABI = ABI::V6;

/// Makes the kernel kill this process when its parent dies. Call it first:
/// a parent that died before is not noticed here, but by the end of file on
/// the link to it.
pub fn die_with_parent() {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::warn!(%error, "this process will not end with its parent by itself");
    }
}

/// No core files, no debugger of the same user, no set-uid programs. Best
/// effort: what fails is logged.
pub fn refuse_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let steps = [
        (
            "forbid core dumps and debuggers",
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
        ),
        (
            "limit core files to 0 bytes",
            rustix::process::setrlimit(Resource::Core, none),
        ),
        (
            "give up new privileges",
            rustix::thread::set_no_new_privs(true),
        ),
    ];
    for (what, result) in steps {
        if let Err(error) = result {
            tracing::warn!(%error, "cannot {what}");
        }
    }
}

/// [`refuse_dumps`], and keeps this process's memory out of swap, all but its
/// code. Best effort: what fails is logged.
pub fn harden_process() -> Code {
    let code = Code::of_this_process();
    refuse_dumps();
    // Locked pages cannot be given back later.
    wipe::give_back();
    lock_memory();
    code.unlock();
    code
}

fn lock_memory() {
    // With a finite limit MCL_FUTURE succeeds now and lets a later allocation
    // fail (mlockall(2)): then rather not at all.
    let unlimited = rustix::process::getrlimit(Resource::Memlock)
        .current
        .is_none();
    let privileged = rustix::thread::capabilities(None)
        .is_ok_and(|caps| caps.effective.contains(CapabilitySet::IPC_LOCK));
    if !unlimited && !privileged {
        tracing::info!("memory is not locked: RLIMIT_MEMLOCK is finite (LimitMEMLOCK=infinity)");
        return;
    }
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = rustix::mm::mlockall(flags) {
        tracing::warn!(%error, "cannot lock memory");
    }
}

/// Leaves the end of this process to whoever started it: SIGTERM and SIGINT
/// do nothing. A service manager may send them to all processes at once, and
/// requests that may finish need this one.
#[allow(unsafe_code, reason = "rustix leaves signal dispositions alone")]
pub fn ignore_termination() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: `SIG_IGN` runs no code of ours; nothing else in these
        // processes handles the two signals.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Takes the network from this process: sockets other than Unix and netlink
/// (which libusb needs) by seccomp, TCP also by landlock where the kernel has
/// it. Call it before the first thread.
///
/// # Errors
/// seccomp is not available: the network stays reachable.
pub fn deny_network() -> io::Result<()> {
    // A second fence, for sockets that were there before: best effort.
    let landlock = landlock::Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessNet::from_all(LANDLOCK))
        .and_then(landlock::Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    if let Err(error) = landlock {
        tracing::warn!(%error, "landlock cannot deny the network; seccomp alone does");
    }
    calls::deny_network().map_err(io::Error::other)
}

/// What the server may still reach, and what it must not.
#[derive(Clone, Debug, Default)]
pub struct ServerPaths {
    /// Read and write below it.
    pub state_dir: PathBuf,
    /// Read and write below it.
    pub spool_dir: PathBuf,
    /// Further directories to read and write below.
    pub extra_write: Vec<PathBuf>,
    /// Trust anchors, read.
    pub ca_bundle: Option<PathBuf>,
    /// Further files and directories to read.
    pub extra_read: Vec<PathBuf>,
    /// Must be out of reach afterwards.
    pub config_path: PathBuf,
    /// PIN files and modules: must be out of reach afterwards too.
    pub denied: Vec<PathBuf>,
}

/// How a process is confined; `Display` is what status tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    landlock: Result<String, String>,
    seccomp: Result<(), String>,
}

impl Confinement {
    /// Whether every part is in force.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.landlock.is_ok() && self.seccomp.is_ok()
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.landlock {
            Ok(version) => write!(f, "landlock({version})")?,
            Err(why) => write!(f, "no landlock ({why})")?,
        }
        match &self.seccomp {
            Ok(()) => write!(f, "+seccomp"),
            Err(why) => write!(f, ", no seccomp ({why})"),
        }
    }
}

/// Why the server must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A thread runs already and would stay unconfined.
    #[error("cannot confine the server: {0} threads run already")]
    Threads(usize),
    /// A directory that the server needs cannot be opened.
    #[error("cannot confine the server: {path}: {source}", path = path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel has landlock and refused the rules.
    #[error("cannot confine the server: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// A PIN, a module or the configuration lies below an allowed path.
    #[error(
        "the confined server could still open {path}: move it out of the state, spool and certificate directories",
        path = .0.display()
    )]
    Reachable(PathBuf),
}

/// Confines the server: files by landlock, system calls by seccomp. A kernel
/// without them is logged, and told by the result.
///
/// # Errors
/// See [`ConfineError`]: the server must end.
pub fn confine_server(paths: &ServerPaths) -> Result<Confinement, ConfineError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(ConfineError::Threads(threads));
    }
    confine_thread(paths)
}

/// [`confine_server`] for this thread and those it starts from now on.
fn confine_thread(paths: &ServerPaths) -> Result<Confinement, ConfineError> {
    for file in files::profiles_with_credential_process() {
        tracing::warn!(
            file = %file.display(),
            "credential_process is set, but the confined server cannot start programs: use another source of AWS credentials"
        );
    }
    let landlock = files::confine(paths)?;
    let seccomp = calls::confine();
    if landlock.is_ok() {
        for path in paths.denied.iter().chain([&paths.config_path]) {
            if files::reachable(path) {
                return Err(ConfineError::Reachable(path.clone()));
            }
        }
    }
    let confinement = Confinement { landlock, seccomp };
    if !confinement.is_complete() {
        tracing::warn!(%confinement, "the server is not fully confined");
    }
    Ok(confinement)
}

#[cfg(test)]
#[path = "confine/tests.rs"]
mod tests;
