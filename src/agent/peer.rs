//! Who is at the other end of a connection: the kernel's word, not the
//! client's (SECURITY rule 25).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::OnceLock;

use tokio::net::UnixStream;

use crate::audit::Actor;

/// Most supplementary groups of a process: NGROUPS_MAX (linux/limits.h).
const MAX_GROUPS: usize = 65_536;
/// Room for groups at the first try; most users have fewer.
const USUAL_GROUPS: usize = 64;

/// As whom somebody asks: all that grants look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// An authenticated peer, as it was when it connected.
#[derive(Debug)]
pub(super) struct Peer {
    /// As whom it asks.
    pub(super) subject: Subject,
    /// Its process.
    pub(super) pid: Option<i32>,
    /// What that process called itself: informational, and only if it could
    /// be found out.
    comm: OnceLock<String>,
    /// The process itself: while this is held, `pid` is nobody else's.
    _process: Option<OwnedFd>,
}

impl Peer {
    /// SO_PEERCRED, SO_PEERGROUPS and, where the kernel has it (Linux 6.5),
    /// SO_PEERPIDFD of a connection.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let cred = stream.peer_cred()?;
        Ok(Self {
            subject: Subject {
                uid: cred.uid(),
                gid: cred.gid(),
                groups: groups(stream)?,
            },
            pid: cred.pid(),
            comm: OnceLock::new(),
            _process: pidfd(stream),
        })
    }

    /// Who records say it was.
    pub(super) fn actor(&self) -> Actor {
        Actor {
            uid: self.subject.uid,
            gid: self.subject.gid,
            pid: self.pid,
            comm: self.comm().map(str::to_owned),
        }
    }

    /// Its user.
    pub(super) fn uid(&self) -> u32 {
        self.subject.uid
    }

    /// What its process called itself, if that is known.
    pub(super) fn comm(&self) -> Option<&str> {
        self.comm.get().map(String::as_str)
    }
}

/// The supplementary groups (unix(7) does not tell of it; net/core/sock.c).
fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut room = USUAL_GROUPS;
    loop {
        let mut groups: Vec<libc::gid_t> = vec![0; room];
        let size = size_of_val(groups.as_slice());
        match option(
            stream,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            size,
        ) {
            Ok(len) => {
                groups.truncate(len / size_of::<libc::gid_t>());
                return Ok(groups);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && room < MAX_GROUPS => {
                room = MAX_GROUPS;
            }
            Err(error) => return Err(error),
        }
    }
}

fn pidfd(stream: &UnixStream) -> Option<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let place = std::ptr::from_mut(&mut fd).cast();
    // A kernel without it, or a process that is gone already.
    option(stream, libc::SO_PEERPIDFD, place, size_of_val(&fd)).ok()?;
    #[allow(unsafe_code, reason = "the kernel hands over a descriptor as a number")]
    // SAFETY: the call succeeded, so the kernel has just made this descriptor
    // (close-on-exec) for us alone.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One option of a socket, of at most `size` bytes; how many there are.
fn option(
    stream: &UnixStream,
    name: libc::c_int,
    into: *mut libc::c_void,
    size: usize,
) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(size).unwrap_or(libc::socklen_t::MAX);
    let fd = stream.as_fd().as_raw_fd();
    #[allow(unsafe_code, reason = "rustix does not have these socket options")]
    // SAFETY: `into` has room for `size` bytes, `len` is at most that, and both
    // callers pass plain integers, for which every bit pattern is good.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, into, &raw mut len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(len).unwrap_or(size).min(size))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rule_25_the_kernel_tells_uid_groups_and_process() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&theirs).unwrap();
        assert_eq!(peer.uid(), rustix::process::geteuid().as_raw());
        assert_eq!(peer.subject.gid, rustix::process::getegid().as_raw());
        let own = rustix::process::getgroups().unwrap();
        let own: Vec<u32> = own.into_iter().map(rustix::process::Gid::as_raw).collect();
        assert_eq!(peer.subject.groups, own);
        assert_eq!(peer.pid.map(i32::unsigned_abs), Some(std::process::id()));
    }
}
