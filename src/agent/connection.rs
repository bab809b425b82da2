//! A client's connection, with a limit on how long it may take nothing.
//!
//! A type of our own, because a descriptor may later arrive beside a request
//! (SCM_RIGHTS), and only the code that reads the socket can receive it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::store::Pool;

use super::source::{PATIENCE, STARVING_PATIENCE};

/// A connection. A client that does not read holds verified plaintext in
/// part buffers: it is given as long as one that does not write.
pub(super) struct Connection {
    stream: UnixStream,
    pool: Pool,
    stall: Option<Stall>,
}

/// The client takes nothing now.
struct Stall {
    since: Instant,
    /// When it is looked at again.
    look: Pin<Box<Sleep>>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, pool: Pool) -> Self {
        Self {
            stream,
            pool,
            stall: None,
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

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
