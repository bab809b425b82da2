//! The control channel between supervisor and server.
//!
//! A `SOCK_SEQPACKET` pair: one message a packet, with at most one descriptor
//! beside it (`SCM_RIGHTS`). Both ends are the same executable, so the
//! encoding (postcard) carries no version. The channel's end is its death
//! notice: whoever reads end-of-file knows that the other process is gone.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::unix::AsyncFd;

/// Longest packet, in bytes. The configuration's text is the only long thing
/// that travels here, and a thousand grants take about 150 KiB.
pub const MAX_PACKET: usize = 256 << 10;

/// Longest configuration text, in bytes: a packet less room for the rest of
/// its message: a path of at most 4096 bytes, a few numbers, at most 15 public
/// keys of 600 bytes, and the ids of the grants. An id takes at most 5 bytes
/// (postcard), and the text of a grant at least 48: `[[grant]]`, `uid=`,
/// `operations=[""]`, `bucket=""`.
pub const MAX_CONFIG: usize = MAX_PACKET - (42 << 10);

/// How often the server gives a sign of life when nothing changes.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// What the supervisor tells the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// Always first, once; the listening socket comes with it.
    Start {
        /// Where the configuration was read from; error texts name it.
        config_path: String,
        /// Its text, already validated; the server cannot open the file.
        config_text: String,
        /// The uid or gid that each grant is for, in the text's order; the
        /// server cannot look up names.
        principals: Vec<u32>,
        /// The public keys of RSA recipients (DER), in the configuration's
        /// order; the server cannot open their files.
        public_keys: Vec<Vec<u8>>,
        /// For status.
        supervisor_pid: u32,
    },
    /// A token worker was started; its link comes with it, and replaces the
    /// token's former one.
    Worker {
        /// The token's configured name.
        token: String,
        /// The worker's process id.
        pid: u32,
        /// Counts the workers of this token since the supervisor started.
        generation: u64,
    },
    /// A token has no worker now.
    WorkerDown {
        /// The token's configured name.
        token: String,
        /// `locked`, `misconfigured` or `recovering`; or `replaced`: it runs,
        /// and is to be let go.
        health: String,
        /// Why.
        detail: String,
        /// What to do about it.
        hint: String,
    },
    /// Use this configuration from now on; answered with
    /// [`ToSupervisor::Reloaded`].
    Reload {
        /// The new text, already validated.
        config_text: String,
        /// As in [`ToServer::Start`].
        principals: Vec<u32>,
        /// As in [`ToServer::Start`].
        public_keys: Vec<Vec<u8>>,
        /// Comes back in the answer.
        id: u64,
    },
    /// How the reload that a client asked for ended: `None` is success.
    ReloadAnswer {
        /// What failed and why.
        error: Option<String>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// Stop accepting, finish what runs, end.
    Stop,
}

/// What the server tells the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// Requests are being accepted.
    Serving,
    /// A sign of life, at least every [`HEARTBEAT`], with one line for
    /// `systemctl status`.
    Health {
        /// Such as `ready` or `degraded: token primary is recovering`.
        status: String,
    },
    /// A worker is stuck: kill it and start another.
    ReplaceWorker {
        /// The token's configured name.
        token: String,
        /// The worker that is meant; a newer one is left alone.
        generation: u64,
        /// For the log.
        reason: String,
    },
    /// A client asked for `POST /v1/reload`; answered with
    /// [`ToServer::ReloadAnswer`].
    Reload,
    /// The answer to [`ToServer::Reload`]: `None` is success, anything else
    /// means that the server still uses the old configuration.
    Reloaded {
        /// The id of the request.
        id: u64,
        /// Why it was refused.
        error: Option<String>,
    },
}

/// One end of the channel, blocking. Without type arguments: the server's.
#[derive(Debug)]
pub struct Control<Out = ToSupervisor, In = ToServer> {
    socket: OwnedFd,
    types: PhantomData<fn(Out) -> In>,
}

/// One end of the channel inside a runtime. Without type arguments: the
/// server's.
#[derive(Debug)]
pub struct AsyncControl<Out = ToSupervisor, In = ToServer> {
    socket: AsyncFd<OwnedFd>,
    types: PhantomData<fn(Out) -> In>,
}

/// The supervisor's end.
pub type SupervisorControl = Control<ToServer, ToSupervisor>;

impl SupervisorControl {
    /// A new channel: the supervisor's end, and the server's, which becomes
    /// its standard input.
    ///
    /// # Errors
    /// No descriptor or memory is left.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        for end in [&ours, &theirs] {
            // A packet must fit the send buffer whole. The kernel doubles the
            // value, so that its own bookkeeping fits too (socket(7)).
            rustix::net::sockopt::set_socket_send_buffer_size(end, MAX_PACKET)?;
        }
        Ok((Self::new(ours), theirs))
    }
}

impl Control {
    /// The server's end, which it finds as its standard input; `/dev/null`
    /// takes its place there.
    ///
    /// # Errors
    /// Standard input is something else: a user started `strongroom server`.
    pub fn from_stdin() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        if rustix::net::sockopt::socket_type(stdin).ok() != Some(SocketType::SEQPACKET) {
            return Err(io::Error::other(
                "standard input is not a control socket: only `strongroom agent` starts this process",
            ));
        }
        let socket = stdin.try_clone_to_owned()?;
        let null = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        Ok(Self::new(socket))
    }
}

impl<Out: Serialize, In: DeserializeOwned> Control<Out, In> {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            types: PhantomData,
        }
    }

    /// Sends one message with at most one descriptor.
    ///
    /// # Errors
    /// The other end is gone, or the message is longer than [`MAX_PACKET`].
    pub fn send(&self, message: &Out, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(self.socket.as_fd(), &encode(message)?, fd)
    }

    /// Waits for one message; `None` when the other end is gone.
    ///
    /// # Errors
    /// A packet that is too long, has too many descriptors, or is garbage.
    pub fn recv(&mut self) -> io::Result<Option<(In, Option<OwnedFd>)>> {
        recv(self.socket.as_fd())
    }

    /// Hands the socket to the current tokio runtime.
    ///
    /// # Errors
    /// There is no runtime, or it has no I/O driver.
    pub fn into_async(self) -> io::Result<AsyncControl<Out, In>> {
        rustix::io::ioctl_fionbio(&self.socket, true)?;
        #[allow(
            deprecated,
            reason = "`register` is unsafe for types whose descriptor may change; an OwnedFd's cannot"
        )]
        let socket = AsyncFd::new(self.socket)?;
        Ok(AsyncControl {
            socket,
            types: PhantomData,
        })
    }
}

impl<Out: Serialize, In: DeserializeOwned> AsyncControl<Out, In> {
    /// Sends one message with at most one descriptor. Packets of concurrent
    /// senders do not mix.
    ///
    /// # Errors
    /// The other end is gone, or the message is longer than [`MAX_PACKET`].
    pub async fn send(&self, message: &Out, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let packet = encode(message)?;
        loop {
            let mut guard = self.socket.writable().await?;
            if let Ok(result) = guard.try_io(|socket| send(socket.as_fd(), &packet, fd)) {
                return result;
            }
        }
    }

    /// Waits for one message; `None` when the other end is gone. Nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    /// A packet that is too long, has too many descriptors, or is garbage.
    pub async fn recv(&mut self) -> io::Result<Option<(In, Option<OwnedFd>)>> {
        loop {
            let mut guard = self.socket.readable().await?;
            if let Ok(result) = guard.try_io(|socket| recv(socket.as_fd())) {
                return result;
            }
        }
    }
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let packet = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if packet.len() > MAX_PACKET {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a control message of {} bytes is over the limit of {MAX_PACKET}",
                packet.len()
            ),
        ));
    }
    Ok(packet)
}

fn send(socket: BorrowedFd<'_>, packet: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !beside.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(io::Error::other("no room for a descriptor"));
    }
    // NOSIGNAL: a dead peer is an error to handle, not a SIGPIPE.
    let flags = SendFlags::NOSIGNAL;
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut beside, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(drop).map_err(Into::into),
        }
    }
}

fn recv<In: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(In, Option<OwnedFd>)>> {
    let mut packet = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        let mut iov = [IoSliceMut::new(&mut packet)];
        match rustix::net::recvmsg(socket, &mut iov, &mut beside, flags) {
            Err(rustix::io::Errno::INTR) => {}
            // The other end died with packets of ours unread.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            result => break result?,
        }
    };
    // All descriptors first: on every way out, those not returned get closed.
    // (Alignment leaves room for more than the one that was asked for.)
    let mut fds: Vec<OwnedFd> = beside
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let fd = fds.pop();
    if got.bytes == 0 {
        return Ok(None);
    }
    let cut = got
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if cut || !fds.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a control message was too long or had too many descriptors",
        ));
    }
    let message = postcard::from_bytes(&packet[..got.bytes])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, fd)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Read as _;

    type Server = Control<ToSupervisor, ToServer>;

    fn pair() -> (SupervisorControl, Server) {
        let (supervisor, server) = SupervisorControl::pair().unwrap();
        (supervisor, Server::new(server))
    }

    #[test]
    fn messages_arrive_whole_and_in_order_with_their_descriptor() {
        let (supervisor, mut server) = pair();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let start = ToServer::Start {
            config_path: "/etc/x".into(),
            config_text: "x".repeat(MAX_CONFIG),
            principals: vec![u32::MAX; MAX_CONFIG / 48],
            public_keys: vec![vec![7; 600]; 15],
            supervisor_pid: 7,
        };
        supervisor.send(&start, Some(theirs.as_fd())).unwrap();
        drop(theirs);
        supervisor.send(&ToServer::Stop, None).unwrap();

        let (message, fd) = server.recv().unwrap().unwrap();
        assert_eq!(message, start);
        let fd = fd.unwrap();
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let (message, none) = server.recv().unwrap().unwrap();
        assert_eq!((message, none.is_none()), (ToServer::Stop, true));

        // It is the very descriptor: closing it ends our side of the pair.
        drop(fd);
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
        drop(supervisor);
        assert!(server.recv().unwrap().is_none());
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_sender() {
        let (supervisor, _server) = pair();
        let text = "x".repeat(MAX_PACKET);
        let error = supervisor
            .send(
                &ToServer::Reload {
                    config_text: text,
                    principals: Vec::new(),
                    public_keys: Vec::new(),
                    id: 1,
                },
                None,
            )
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_second_descriptor_or_garbage_is_an_error_and_leaks_nothing() {
        let (supervisor, mut server) = pair();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let fds = [theirs.as_fd(); 3];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&fds)));
        let packet = encode(&ToServer::Stop).unwrap();
        rustix::net::sendmsg(
            &supervisor.socket,
            &[IoSlice::new(&packet)],
            &mut beside,
            SendFlags::empty(),
        )
        .unwrap();
        drop(theirs);
        assert!(server.recv().is_err());
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0, "a descriptor leaked");

        send(supervisor.socket.as_fd(), &[0xff; 9], None).unwrap();
        let error = server.recv().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_asynchronous_end_speaks_the_same_language() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let (mut supervisor, server) = pair();
        runtime.block_on(async {
            let mut server = server.into_async().unwrap();
            server.send(&ToSupervisor::Serving, None).await.unwrap();
            supervisor.send(&ToServer::Stop, None).unwrap();
            assert_eq!(server.recv().await.unwrap().unwrap().0, ToServer::Stop);
        });
        assert_eq!(supervisor.recv().unwrap().unwrap().0, ToSupervisor::Serving);
    }
}
