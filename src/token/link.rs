//! One worker's socket, seen from the server: many calls at once, matched to
//! their replies by id, and never more than two for each of the worker's
//! sessions: the one it works on, and the one that it takes next without
//! waiting for a round trip to here.
//!
//! A call in excess waits here, where its caller can still give up or go to
//! another worker; it has no deadline before it is sent, so that a busy token
//! is not mistaken for a stuck one.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::AbortHandle;

use super::protocol::{Frame, HELLO, TALLY};
use super::tally::{Entry, Tally};
use super::wire::{self, Inbox};

/// The link is gone; what was asked over it may or may not have been done.
#[derive(Debug)]
pub(super) struct Closed;

/// A worker's link. Dropping it closes the socket, and the worker ends.
pub(super) struct Link {
    /// The worker's process id, for status and for the supervisor.
    pub(super) pid: u32,
    socket: Arc<AsyncFd<OwnedFd>>,
    pending: Arc<Pending>,
    /// Two permits a session; none before the hello.
    places: Arc<Semaphore>,
    /// How many sessions the worker has.
    sessions: AtomicUsize,
    next: AtomicU64,
    closed: watch::Receiver<bool>,
    reader: AbortHandle,
}

/// A place for one call: a worker's session that is free, or that will be
/// after the call it works on.
pub(super) struct Lane {
    pub(super) link: Arc<Link>,
    /// Calls that the session finishes first: none or one.
    pub(super) ahead: u32,
    place: OwnedSemaphorePermit,
}

/// Who waits for which reply; `None` once the link is closed.
struct Pending(Mutex<Option<HashMap<u64, Call>>>);

/// A call under way. Its place is taken until the reply comes, whether its
/// caller still waits or not.
struct Call {
    to: oneshot::Sender<Frame>,
    since: Instant,
    _place: Option<OwnedSemaphorePermit>,
}

impl Link {
    /// Takes a worker's socket; the second value is its hello, to be awaited.
    pub(super) fn new(
        socket: OwnedFd,
        pid: u32,
        tally: Arc<Tally>,
    ) -> io::Result<(Arc<Self>, oneshot::Receiver<Frame>)> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        #[allow(
            deprecated,
            reason = "`register` is unsafe for types whose descriptor may change; an OwnedFd's cannot"
        )]
        let socket = Arc::new(AsyncFd::new(socket)?);
        let (hello_to, hello) = oneshot::channel();
        let awaited = Call {
            to: hello_to,
            since: Instant::now(),
            _place: None,
        };
        let calls = HashMap::from([(HELLO, awaited)]);
        let pending = Arc::new(Pending(Mutex::new(Some(calls))));
        let (closing, closed) = watch::channel(false);
        let places = Arc::new(Semaphore::new(0));
        let ends = (Arc::clone(&pending), Arc::clone(&places), closing, tally);
        let reading = tokio::spawn(read(Arc::clone(&socket), ends));
        let link = Self {
            pid,
            socket,
            pending,
            places,
            sessions: AtomicUsize::new(0),
            next: AtomicU64::new(HELLO + 1),
            closed,
            reader: reading.abort_handle(),
        };
        Ok((Arc::new(link), hello))
    }

    /// The worker said hello with this many sessions: calls may begin.
    pub(super) fn admit(&self, sessions: usize) {
        let sessions = sessions.clamp(1, Semaphore::MAX_PERMITS / 2);
        self.sessions.store(sessions, Ordering::Relaxed);
        self.places.add_permits(2 * sessions);
    }

    /// Waits for a place.
    pub(super) async fn lane(self: &Arc<Self>) -> Result<Lane, Closed> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| Closed)?;
        let free = self.places.available_permits();
        Ok(Lane {
            link: Arc::clone(self),
            ahead: u32::from(free < self.sessions.load(Ordering::Relaxed)),
            place,
        })
    }

    /// How long the oldest call has been under way.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let pending = self.pending.lock();
        let calls = pending.as_ref()?.values();
        calls.map(|call| call.since.elapsed()).max()
    }

    /// Whether calls can still be made.
    pub(super) fn is_open(&self) -> bool {
        self.pending.lock().is_some()
    }

    /// Sends a frame from the caller's own task: at once, unless the worker is
    /// so far behind that the socket is full.
    async fn send(&self, frame: &Frame) -> Result<(), Closed> {
        let would_block = |sent: &io::Result<()>| {
            sent.as_ref()
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let mut sent = wire::send(self.socket.get_ref(), frame);
        while would_block(&sent) {
            let mut writable = self.socket.writable().await.map_err(|_| Closed)?;
            sent = match writable.try_io(|socket| wire::send(socket.get_ref(), frame)) {
                Ok(sent) => sent,
                Err(_) => continue,
            };
        }
        // A broken link is the reader's to report.
        sent.map_err(|_| Closed)
    }

    /// Waits until the link is gone.
    pub(super) async fn closed(&self) {
        // An error means that the reader is gone, and the link with it.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }

    /// Closes the link now, for everyone who uses it.
    pub(super) fn close(&self) {
        self.reader.abort();
        // Whoever still holds the link must not keep the worker alive. An
        // error means that it has gone first.
        let _ = rustix::net::shutdown(self.socket.get_ref(), Shutdown::Both);
        self.places.close();
        self.pending.close();
    }
}

impl Lane {
    /// Sends a request and waits for its reply, without a deadline of its
    /// own. Cancel-safe: a dropped call's reply is dropped with it.
    ///
    /// # Errors
    /// The inner error is a request too long for a frame.
    pub(super) async fn call(self, request: &impl Serialize) -> Result<io::Result<Frame>, Closed> {
        let Self { link, place, .. } = self;
        let id = link.next.fetch_add(1, Ordering::Relaxed);
        let frame = match Frame::encode(id, request) {
            Ok(frame) => frame,
            Err(error) => return Ok(Err(error)),
        };
        let (to, reply) = oneshot::channel();
        let call = Call {
            to,
            since: Instant::now(),
            _place: Some(place),
        };
        link.pending.lock().as_mut().ok_or(Closed)?.insert(id, call);
        let unsent = Unsent { link: &link, id };
        link.send(&frame).await?;
        std::mem::forget(unsent);
        reply.await.map(Ok).map_err(|_| Closed)
    }
}

/// A call that the worker has not heard of: dropped, nobody waits for it.
struct Unsent<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if let Some(calls) = self.link.pending.lock().as_mut() {
            calls.remove(&self.id);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Call>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dropping the senders is what tells the waiting calls.
    fn close(&self) {
        self.lock().take();
    }
}

/// What ends with the link: calls under way, calls in wait, whoever watches.
/// What was counted over it stays.
type Ends = (
    Arc<Pending>,
    Arc<Semaphore>,
    watch::Sender<bool>,
    Arc<Tally>,
);

async fn read(socket: Arc<AsyncFd<OwnedFd>>, (pending, places, closing, tally): Ends) {
    let mut inbox = Inbox::new();
    loop {
        match next(&socket, &mut inbox).await {
            Ok(Some(frame)) if frame.id() == TALLY => match frame.decode::<Vec<Entry>>() {
                Ok(entries) => tally.add(&entries),
                Err(error) => tracing::warn!("a worker's counts are unreadable: {error}"),
            },
            Ok(Some(frame)) => {
                let waiting = pending.lock().as_mut().and_then(|w| w.remove(&frame.id()));
                if let Some(call) = waiting {
                    // Its caller may have given up meanwhile.
                    let _ = call.to.send(frame);
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
    places.close();
    closing.send_replace(true);
}

async fn next(socket: &AsyncFd<OwnedFd>, inbox: &mut Inbox) -> io::Result<Option<Frame>> {
    loop {
        let mut readable = socket.readable().await?;
        if let Ok(frame) = readable.try_io(|socket| inbox.recv(socket.get_ref())) {
            return frame;
        }
    }
}
