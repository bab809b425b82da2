//! Accept, serve, shut down.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};

use super::connection::Connection;
use super::conversation::converse;
use super::descriptor::Inbox;
use super::peer::Peer;
use super::routes;
use super::state::App;

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
    let most = app.max_requests + IDLE_CONNECTIONS;
    let connections = Arc::new(Semaphore::new(most));
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
        let answer =
            move |request| routes::answer(app.clone(), peer.clone(), request, inbox.take());
        let conversation = converse(connection, answer, stop.clone());
        tokio::spawn(async move {
            if let Err(error) = conversation.await {
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
        all(&connections, most).await;
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
    all(&app.permits, app.max_requests).await;
}

/// Resolves when all permits are back. The semaphore is never closed.
async fn all(permits: &Semaphore, most: usize) {
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    let _ = permits.acquire_many(most).await;
}
