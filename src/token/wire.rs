//! The socket between a server and its worker: packets (SOCK_SEQPACKET), so
//! that a frame is written and read whole, in one system call each, by any
//! number of threads without a lock. On both ends the thread that has the work
//! is the one that the kernel wakes: no thread reads, or writes, for others.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zeroize::Zeroizing;

use crate::wipe::wipe;

use super::protocol::{Frame, HEAD, MAX_FRAME};

/// Two connected sockets: ours, and the worker's.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for end in [&ours, &theirs] {
        // A packet must fit the send buffer whole; room for two lets another
        // follow the longest. The kernel doubles the value, so that its own
        // bookkeeping fits too (socket(7)).
        sockopt::set_socket_send_buffer_size(end, 2 * MAX_FRAME)?;
    }
    Ok((ours, theirs))
}

/// Sends one frame, whole or not at all.
///
/// # Errors
/// The other end is gone; or, without blocking, the buffer is full.
pub(super) fn send(socket: impl AsFd, frame: &Frame) -> io::Result<()> {
    loop {
        // NOSIGNAL: a dead peer is an error to handle, not a SIGPIPE.
        match rustix::net::send(&socket, frame.as_bytes(), SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// Where frames arrive, whatever their length; wiped behind each.
pub(super) struct Inbox(Zeroizing<Vec<u8>>);

impl Inbox {
    pub(super) fn new() -> Self {
        Self(Zeroizing::new(vec![0; MAX_FRAME]))
    }

    /// Takes one frame; `None` once the other end is gone, and everything
    /// that it sent has been taken.
    ///
    /// # Errors
    /// Not a frame; or, without blocking or within the socket's time limit,
    /// there is none.
    pub(super) fn recv(&mut self, socket: impl AsFd) -> io::Result<Option<Frame>> {
        loop {
            let room = &mut self.0[..];
            let (len, sent) = match rustix::net::recv(&socket, room, RecvFlags::TRUNC) {
                Ok(got) => got,
                // The kernel says once that the other end left packets of ours
                // unread, before it gives out those that it sent.
                Err(Errno::INTR | Errno::CONNRESET) => continue,
                Err(error) => return Err(error.into()),
            };
            if sent == 0 {
                return Ok(None);
            }
            let whole = (HEAD..=MAX_FRAME).contains(&sent);
            let frame = whole.then(|| Frame::received(&self.0[..len]));
            wipe(&mut self.0[..len]);
            let odd = || io::Error::other("a frame of impossible length");
            return frame.ok_or_else(odd).map(Some);
        }
    }
}

/// Limits how long [`Inbox::recv`] waits on this socket.
pub(super) fn limit_waiting(socket: impl AsFd, limit: Option<Duration>) -> io::Result<()> {
    Ok(sockopt::set_socket_timeout(socket, Timeout::Recv, limit)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::token::protocol::Reply;

    #[test]
    fn the_longest_frame_arrives_whole_and_the_next_one_after_it() {
        let (ours, theirs) = pair().unwrap();
        // A reply's head is an id, a variant and a length of three bytes.
        let long = vec![7; MAX_FRAME - HEAD - 4];
        let sent = Frame::encode(1, &Reply::Random(&long)).unwrap();
        assert_eq!(sent.as_bytes().len(), MAX_FRAME);
        send(&ours, &sent).unwrap();
        send(&ours, &Frame::encode(2, &Reply::Done).unwrap()).unwrap();
        let mut inbox = Inbox::new();
        let first = inbox.recv(&theirs).unwrap().unwrap();
        assert_eq!(first.as_bytes(), sent.as_bytes());
        assert_eq!(inbox.recv(&theirs).unwrap().unwrap().id(), 2);
        assert!(inbox.0.iter().all(|byte| *byte == 0), "bytes left behind");
    }

    #[test]
    fn lengths_are_checked_before_a_frame_is_made() {
        let (ours, theirs) = pair().unwrap();
        let mut inbox = Inbox::new();
        for len in [1, HEAD - 1, MAX_FRAME + 1] {
            rustix::net::send(&ours, &vec![0; len], SendFlags::empty()).unwrap();
            assert!(inbox.recv(&theirs).is_err(), "{len}");
        }
    }

    #[test]
    fn what_was_sent_before_the_end_arrives_and_the_end_is_no_error() {
        let (ours, theirs) = pair().unwrap();
        let frame = |id| Frame::encode(id, &Reply::Done).unwrap();
        // Unread when they leave: the kernel tells of that first.
        send(&ours, &frame(1)).unwrap();
        send(&theirs, &frame(2)).unwrap();
        drop(theirs);
        let mut inbox = Inbox::new();
        assert_eq!(inbox.recv(&ours).unwrap().unwrap().id(), 2);
        assert!(inbox.recv(&ours).unwrap().is_none());
        assert!(send(&ours, &frame(3)).is_err());
    }

    #[test]
    fn nothing_is_waited_for_beyond_the_limit() {
        let (ours, _theirs) = pair().unwrap();
        limit_waiting(&ours, Some(Duration::from_millis(10))).unwrap();
        let error = Inbox::new().recv(&ours).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
