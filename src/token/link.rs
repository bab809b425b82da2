//! One worker's socket, seen from the server: many calls at once, matched to
//! their replies by id.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::protocol::{Frame, HELLO};

/// The link is gone; what was asked over it may or may not have been done.
#[derive(Debug)]
pub(super) struct Closed;

/// A worker's link. Dropping it closes the socket, and the worker ends.
pub(super) struct Link {
    /// The worker's process id, for status and for the supervisor.
    pub(super) pid: u32,
    outgoing: mpsc::UnboundedSender<Frame>,
    pending: Arc<Pending>,
    next: AtomicU64,
    closed: watch::Receiver<bool>,
    tasks: [AbortHandle; 2],
}

/// Who waits for which reply; `None` once the link is closed.
struct Pending(Mutex<Option<HashMap<u64, oneshot::Sender<Frame>>>>);

/// Forgets a call when its caller does: a late reply is dropped.
struct Waiting<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Link {
    /// Takes a worker's socket; the second value is its hello, to be awaited.
    pub(super) fn new(
        stream: StdStream,
        pid: u32,
    ) -> io::Result<(Arc<Self>, oneshot::Receiver<Frame>)> {
        stream.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(stream)?.into_split();
        let (hello_to, hello) = oneshot::channel();
        let pending = Arc::new(Pending(Mutex::new(Some(HashMap::from([(
            HELLO, hello_to,
        )])))));
        let (outgoing, frames) = mpsc::unbounded_channel();
        let (closing, closed) = watch::channel(false);
        let reading = tokio::spawn(read(reader, Arc::clone(&pending), closing));
        let writing = tokio::spawn(write(writer, frames));
        let link = Self {
            pid,
            outgoing,
            pending,
            next: AtomicU64::new(HELLO + 1),
            closed,
            tasks: [reading.abort_handle(), writing.abort_handle()],
        };
        Ok((Arc::new(link), hello))
    }

    /// Sends a request and waits for its reply, without a deadline of its
    /// own. Cancel-safe: a dropped call's reply is dropped with it.
    ///
    /// # Errors
    /// The inner error is a request too long for a frame.
    pub(super) async fn call(&self, request: &impl Serialize) -> Result<io::Result<Frame>, Closed> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = match Frame::encode(id, request) {
            Ok(frame) => frame,
            Err(error) => return Ok(Err(error)),
        };
        let (to, reply) = oneshot::channel();
        self.pending.lock().as_mut().ok_or(Closed)?.insert(id, to);
        let _waiting = Waiting {
            pending: &self.pending,
            id,
        };
        self.outgoing.send(frame).map_err(|_| Closed)?;
        reply.await.map(Ok).map_err(|_| Closed)
    }

    /// Whether calls can still be made.
    pub(super) fn is_open(&self) -> bool {
        self.pending.lock().is_some()
    }

    /// Waits until the link is gone.
    pub(super) async fn closed(&self) {
        // An error means that the reader is gone, and the link with it.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }

    /// Closes the link now, for everyone who uses it.
    pub(super) fn close(&self) {
        for task in &self.tasks {
            task.abort();
        }
        self.pending.close();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Frame>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dropping the senders is what tells the waiting calls.
    fn close(&self) {
        self.lock().take();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.pending.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

async fn read(mut socket: OwnedReadHalf, pending: Arc<Pending>, closing: watch::Sender<bool>) {
    loop {
        match Frame::read_async(&mut socket).await {
            Ok(Some(frame)) => {
                let waiting = pending.lock().as_mut().and_then(|w| w.remove(&frame.id()));
                if let Some(to) = waiting {
                    // Its caller may have given up meanwhile.
                    let _ = to.send(frame);
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!("a worker's link broke: {error}");
                break;
            }
        }
    }
    pending.close();
    closing.send_replace(true);
}

/// A task of its own, because a caller that gives up in the middle of a write
/// would leave half a frame on the link.
async fn write(mut socket: OwnedWriteHalf, mut frames: mpsc::UnboundedReceiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        // A broken link is the reader's to report.
        if socket.write_all(frame.as_bytes()).await.is_err() {
            return;
        }
    }
}
