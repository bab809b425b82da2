//! A client's connection, with a limit on how long it may take nothing.
//!
//! A type of our own also because a descriptor may come beside the first byte
//! (SCM_RIGHTS), and only the code that reads the socket can receive it.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::store::Pool;

use super::descriptor::{self, Inbox};
use super::source::{PATIENCE, STARVING_PATIENCE};

/// A connection. A client that does not read holds verified plaintext in
/// part buffers: it is given as long as one that does not write.
pub(super) struct Connection {
    stream: UnixStream,
    pool: Pool,
    stall: Option<Stall>,
    /// Until the first byte has come.
    inbox: Option<Inbox>,
}

/// The client takes nothing now.
struct Stall {
    since: Instant,
    /// When it is looked at again.
    look: Pin<Box<Sleep>>,
}

impl Connection {
    /// `inbox` gets what is passed beside the first byte.
    pub(super) fn new(stream: UnixStream, pool: Pool, inbox: Inbox) -> Self {
        Self {
            stream,
            pool,
            stall: None,
            inbox: Some(inbox),
        }
    }

    /// The first bytes.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        inbox: &Inbox,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let stream = &self.stream;
            let into = buf.initialize_unfilled();
            let received = stream.try_io(Interest::READABLE, || {
                descriptor::receive(stream.as_fd(), into, inbox)
            });
            match received {
                Ok(bytes) => {
                    buf.advance(bytes);
                    self.inbox = None;
                    return Poll::Ready(Ok(()));
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Pending, or an error once the client's time is up.
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let stall = self.stall.get_or_insert_with(|| Stall {
            since: Instant::now(),
            look: Box::pin(sleep(STARVING_PATIENCE)),
        });
        while stall.look.as_mut().poll(cx).is_ready() {
            if self.pool.waiting() > 0 || stall.since.elapsed() >= PATIENCE {
                tracing::warn!("a client took no byte in time, and is cut off");
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            stall
                .look
                .as_mut()
                .reset(Instant::now() + STARVING_PATIENCE);
        }
        Poll::Pending
    }
}

/// Nothing came, or a signal did: it is tried again.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.inbox.clone() {
            Some(inbox) => self.poll_receive(cx, buf, &inbox),
            None => Pin::new(&mut self.stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
