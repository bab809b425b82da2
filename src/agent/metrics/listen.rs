//! `[metrics] listen`: a loopback port with the metrics on it and nothing else.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::agent::reply::{self, Body};
use crate::agent::state::App;

/// Collectors at once; there is one, as a rule.
const CONNECTIONS: usize = 16;
/// How long a collector may take for a request's head, or idle.
const PATIENCE: Duration = Duration::from_secs(60);
/// The pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes the port: before the process confines itself.
pub(in crate::agent) fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let listener = StdListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers until the process ends.
pub(in crate::agent) async fn serve(listener: StdListener, app: Arc<App>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "no metrics on metrics.listen"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let place = Arc::clone(&places).acquire_owned().await.ok();
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a collector's connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let app = Arc::clone(&app);
        let service = service_fn(move |request| {
            let response = answer(&app, &request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // A collector that hangs up is nobody's loss.
            let _ = connection.await;
            drop(place);
        });
    }
}

fn answer(app: &Arc<App>, request: &Request<Incoming>) -> Response<Body> {
    let metrics = matches!(request.uri().path(), "/metrics" | "/v1/metrics");
    if *request.method() != Method::GET || !metrics {
        let mut response = Response::new(reply::full("only GET /metrics is here\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    super::answer(app, request.headers())
        .unwrap_or_else(|error| reply::problem(&error, &reply::request_id()))
}
