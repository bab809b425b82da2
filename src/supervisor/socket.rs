//! The listening socket and the lock of the state directory: what keeps two
//! agents apart, and clients that may not connect away.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::config::Agent;

use super::SupervisorError;

/// Connections the kernel holds while the server restarts or is busy. Linux
/// cuts it to net.core.somaxconn, 4096 by default.
const BACKLOG: i32 = 1024;

/// Takes the state directory for this agent; the lock goes with the file.
pub(super) fn lock(state_dir: &Path) -> Result<File, SupervisorError> {
    let path = state_dir.join("lock");
    let failed = |error: io::Error| {
        SupervisorError::failed(
            format!("cannot lock {}: {error}", path.display()),
            "the agent's user must be able to write agent.state_dir",
        )
    };
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // The server may write here too: a link it left must not lead us on.
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = (&mut file).take(20).read_to_string(&mut owner);
            return Err(SupervisorError::failed(
                format!(
                    "another agent (process {}) uses {}",
                    owner.trim(),
                    state_dir.display()
                ),
                "stop it first, or give this one its own agent.state_dir and agent.socket",
            ));
        }
        Err(error) => return Err(failed(error.into())),
    }
    // For the message above alone: the lock is what counts.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// The listening socket. Its file goes when the value does.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    /// Path, device and inode of a file that we made.
    file: Option<(PathBuf, u64, u64)>,
}

impl Listener {
    /// Takes the socket that systemd passed, or makes the configured one.
    pub(super) fn open(agent: &Agent) -> Result<Self, SupervisorError> {
        let failed = |error: io::Error| {
            SupervisorError::failed(
                format!("cannot listen on {}: {error}", agent.socket.display()),
                "check agent.socket and the permissions of its directory",
            )
        };
        if let Some(socket) = passed().map_err(failed)? {
            return Ok(Self { socket, file: None });
        }
        let gid = agent.socket_group.as_deref().map(group).transpose()?;
        if let Some(dir) = agent.socket.parent() {
            // 0755 under the usual umask.
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        clear_the_way(&agent.socket)?;
        bind(&agent.socket, agent.socket_mode_bits(), gid).map_err(failed)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Only our own: another agent may have taken the place.
        if let Some((path, device, inode)) = &self.file
            && let Ok(meta) = path.symlink_metadata()
            && (meta.dev(), meta.ino()) == (*device, *inode)
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(socket = %path.display(), %error, "cannot remove the socket");
        }
    }
}

/// The one listening Unix socket that systemd passed (sd_listen_fds(3)).
fn passed() -> io::Result<Option<OwnedFd>> {
    let mut fds = sd_notify::listen_fds()?;
    let Some(fd) = fds.next() else {
        return Ok(None);
    };
    if fds.next().is_some() {
        return Err(io::Error::other("systemd passed more than one socket"));
    }
    #[allow(
        unsafe_code,
        reason = "the descriptor's number comes from the environment"
    )]
    // SAFETY: LISTEN_PID names this process, so systemd opened the descriptor
    // for it; nothing else in this process owns it, and this runs once.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let unix = rustix::net::sockopt::socket_domain(&socket)? == AddressFamily::UNIX;
    if !unix || !rustix::net::sockopt::socket_acceptconn(&socket)? {
        return Err(io::Error::other("systemd passed no listening Unix socket"));
    }
    Ok(Some(socket))
}

/// How long a killed agent's server may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// Removes a dead agent's socket; refuses a live one's, and anything else.
fn clear_the_way(path: &Path) -> Result<(), SupervisorError> {
    let Ok(meta) = path.symlink_metadata() else {
        return Ok(());
    };
    let shown = path.display();
    if !meta.file_type().is_socket() {
        return Err(SupervisorError::failed(
            format!("cannot listen on {shown}: it exists and is not a socket"),
            "move it away, or choose another agent.socket",
        ));
    }
    // A server whose agent was killed may still be on its way out, thread by
    // thread, with the socket open: asked again before it is believed.
    let patience = Instant::now() + DYING;
    let mut answer = UnixStream::connect(path);
    while answer.is_ok() && Instant::now() < patience {
        std::thread::sleep(DYING / 20);
        answer = UnixStream::connect(path);
    }
    match answer {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %shown, "replacing the socket of a dead agent");
            std::fs::remove_file(path).map_err(|error| {
                SupervisorError::failed(
                    format!("cannot remove the stale socket {shown}: {error}"),
                    "remove it by hand",
                )
            })
        }
        Err(error) => Err(SupervisorError::failed(
            format!("cannot tell who listens on {shown}: {error}"),
            "run the agent as the socket's owner, or remove the file by hand",
        )),
        Ok(_) => Err(SupervisorError::failed(
            format!("another agent listens on {shown}"),
            "stop it first, or give this one its own agent.socket and agent.state_dir",
        )),
    }
}

/// Nobody but root can connect before group and mode are as configured, and
/// nobody at all before `listen`.
fn bind(path: &Path, mode: u32, gid: Option<u32>) -> io::Result<Listener> {
    let address = SocketAddrUnix::new(path).map_err(|_| {
        io::Error::other("the path is longer than the 107 bytes that Unix sockets allow")
    })?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let umask = rustix::process::umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(umask);
    bound?;
    let meta = path.symlink_metadata()?;
    // From here on the file goes if anything fails.
    let listener = Listener {
        socket,
        file: Some((path.to_owned(), meta.dev(), meta.ino())),
    };
    if let Some(gid) = gid {
        let gid = rustix::process::Gid::from_raw(gid);
        rustix::fs::chownat(CWD, path, None, Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
    rustix::net::listen(&listener.socket, BACKLOG)?;
    Ok(listener)
}

/// The id of a group in /etc/group, or one written as a number.
fn group(name: &str) -> Result<u32, SupervisorError> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    std::fs::read_to_string("/etc/group")
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        })
        .ok_or_else(|| {
            SupervisorError::configuration(
                format!("agent.socket_group: there is no group {name:?} in /etc/group"),
                format!("create it (groupadd --system {name}), or write the number of a group"),
            )
        })
}
