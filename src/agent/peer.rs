//! Who is at the other end of a connection.

use tokio::net::UnixStream;

use crate::api::{Error, ErrorKind};
use crate::audit::Actor;

/// The uid that stands for users of another user namespace (SECURITY rule
/// 25): it could be anybody, so it is nobody.
const OVERFLOW_UID: u32 = 65_534;

/// An authenticated peer: the kernel's word on who connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: Option<i32>,
}

impl Peer {
    /// SO_PEERCRED of a connection.
    pub(super) fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let cred = stream.peer_cred()?;
        Ok(Self {
            uid: cred.uid(),
            gid: cred.gid(),
            pid: cred.pid(),
        })
    }

    /// Who records say it was.
    pub(super) fn actor(&self) -> Actor {
        Actor {
            uid: self.uid,
            gid: self.gid,
            pid: self.pid,
            comm: None,
        }
    }

    /// Until grants exist, root and the agent's own user may do everything
    /// and nobody else anything.
    pub(super) fn authorise(self, operation: &str) -> Result<(), Error> {
        let own = rustix::process::geteuid().as_raw();
        if self.uid != OVERFLOW_UID && (self.uid == 0 || self.uid == own) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Forbidden,
            format!("uid {} may not {operation}", self.uid),
        )
        .hint("in this release only root and the agent's own user may use it"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_agents_user_pass() {
        let peer = |uid| Peer {
            uid,
            gid: 0,
            pid: None,
        };
        let own = rustix::process::geteuid().as_raw();
        peer(0).authorise("put").unwrap();
        peer(own).authorise("put").unwrap();
        for uid in [own + 1, OVERFLOW_UID] {
            let error = peer(uid).authorise("put").unwrap_err();
            assert_eq!(error.kind, ErrorKind::Forbidden);
            assert!(error.detail.contains("may not put"), "{}", error.detail);
        }
    }
}
