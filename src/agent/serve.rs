//! Accept, serve, shut down.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use http::header::CONNECTION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};

use super::connection::Connection;
use super::descriptor::Inbox;
use super::peer::Peer;
use super::reply;
use super::routes;
use super::state::App;

/// How long a client may take to send a request's head, and how long a
/// connection may idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest request head, in bytes, and the connection's read buffer: a
/// 1,024-byte key percent-encoded threefold and 8 KiB of context fit well.
const HEAD_LIMIT: usize = 64 << 10;
/// Connections beyond requests in progress: idle ones are cheap, but each
/// holds a descriptor.
const IDLE_CONNECTIONS: usize = 1024;
/// How long aborted uploads may take to be aborted at the store after
/// `shutdown_grace` ran out. The supervisor kills the server 5 s after it.
const ABORT_GRACE: Duration = Duration::from_secs(4);

/// Serves until `stop` becomes true and everything that ran has ended, or
/// `grace` has; then `cancel` is set, so that uploads abort.
pub(super) async fn serve(
    listener: UnixListener,
    app: Arc<App>,
    mut stop: watch::Receiver<bool>,
    cancel: watch::Sender<bool>,
    grace: Duration,
) {
    let connections = Arc::new(Semaphore::new(app.max_requests + IDLE_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        // A full house leaves newcomers in the kernel's backlog.
        let accept = async {
            // The semaphore is never closed.
            let slot = connections.clone().acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others must end first.
                tracing::error!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = match Peer::of(&stream) {
            Ok(peer) => Arc::new(peer),
            Err(error) => {
                tracing::error!(%error, "a peer could not be identified");
                continue;
            }
        };
        let inbox = Inbox::default();
        let connection = Connection::new(stream, app.engine.pool.clone(), inbox.clone());
        let app = app.clone();
        let (uid, pid) = (peer.uid(), peer.pid);
        let service = service_fn(move |request| {
            let (app, peer, passed) = (app.clone(), peer.clone(), inbox.take());
            async move {
                // hyper keeps the buffer it read a body into for the next
                // request: plaintext would lie there for as long as a client
                // holds its connection.
                let last = matches!(*request.method(), Method::PUT | Method::PATCH);
                let mut response = routes::answer(app, peer, request, passed).await;
                if last {
                    reply::set(&mut response, CONNECTION, "close");
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(TokioIo::new(connection), service);
        let watched = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = watched.await {
                tracing::debug!(%error, uid, pid, "a connection broke");
            }
            drop(slot);
        });
    }
    drop(listener);
    app.stopping.store(true, Ordering::Relaxed);
    tracing::info!(
        grace_seconds = grace.as_secs(),
        "stopping: running requests may finish"
    );
    let finish = async {
        graceful.shutdown().await;
        idle(&app).await;
    };
    if tokio::time::timeout(grace, finish).await.is_err() {
        tracing::warn!("shutdown_grace is over: aborting what still runs");
        cancel.send_replace(true);
        if tokio::time::timeout(ABORT_GRACE, idle(&app)).await.is_err() {
            tracing::error!(
                "some requests did not end in time; their uploads may be left in the store"
            );
        }
    }
}

/// Resolves when no request is in progress: uploads outlive connections.
async fn idle(app: &App) {
    let all = u32::try_from(app.max_requests).unwrap_or(u32::MAX);
    // The semaphore is never closed.
    let _ = app.permits.acquire_many(all).await;
}
