//! One client's connection: request after request over one socket, and
//! nothing of a request's body in memory once its answer is out.
//!
//! hyper keeps the buffer that it read a body into for the next request:
//! plaintext would lie there for as long as a client holds its connection. So
//! hyper's connection ends with the upload that it carried (its buffers are
//! overwritten as they are freed, `wipe`), and another is made over the same
//! socket. It is told to end when the answer's head is written, so that
//! nothing behind the body is taken for a request: a client that sends more
//! before it has its answer, or whose body was not read to its end, is hung
//! up on.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{Method, Request, Response};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::watch;

use crate::api::Error;

use super::connection::Connection;
use super::reply::{self, Body};

/// How long a client may take to send a request's head, and how long a
/// connection may idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest request head, in bytes, and the connection's read buffer: a
/// 1,024-byte key percent-encoded threefold and 8 KiB of context fit well.
const HEAD_LIMIT: usize = 64 << 10;

/// Serves a connection until its client has gone, or `stop` becomes true and
/// the request in progress has been answered.
pub(super) async fn converse<A, F>(
    connection: Connection,
    answer: A,
    mut stop: watch::Receiver<bool>,
) -> hyper::Result<()>
where
    A: Fn(Request<RequestBody>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let exchange = Arc::new(Exchange::default());
    let mut stopping = false;
    let mut line = Line {
        connection,
        exchange: Arc::clone(&exchange),
    };
    loop {
        let service = service_fn(|request| exchange.serve(request, &answer));
        let mut http = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(TokioIo::new(line), service);
        let mut last = false;
        let ended = loop {
            let work = std::future::poll_fn(|cx| {
                let mut work = http.poll_without_shutdown(cx);
                if exchange.is_at(HEAD) {
                    last = true;
                    Pin::new(&mut http).graceful_shutdown();
                    exchange.stage.store(LAST, Ordering::Relaxed);
                    work = http.poll_without_shutdown(cx);
                }
                // It ends without waiting for room in the socket; asked again
                // it goes on writing.
                match work {
                    Poll::Ready(Ok(())) if last && !exchange.is_at(SENT) => Poll::Pending,
                    work => work,
                }
            });
            tokio::select! {
                biased;
                ended = work => break ended,
                _ = stop.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    Pin::new(&mut http).graceful_shutdown();
                }
            }
        };
        let parts = http.into_parts();
        line = parts.io.into_inner();
        ended?;
        if stopping || !last || !parts.read_buf.is_empty() {
            // A client that has gone first is no failure.
            let _ = line.shutdown().await;
            return Ok(());
        }
        exchange.stage.store(OTHER, Ordering::Relaxed);
    }
}

/// How far the answer to an upload has come.
#[derive(Default)]
struct Exchange {
    stage: AtomicU8,
}

/// There is none; its head is with hyper; hyper knows that it is the last; all
/// of it is with hyper; it is in the socket.
const OTHER: u8 = 0;
const HEAD: u8 = 1;
const LAST: u8 = 2;
const WHOLE: u8 = 3;
const SENT: u8 = 4;

impl Exchange {
    fn is_at(&self, stage: u8) -> bool {
        self.stage.load(Ordering::Relaxed) == stage
    }

    /// Everything that hyper had to write is in the socket.
    fn flushed(&self) {
        if self.is_at(WHOLE) {
            self.stage.store(SENT, Ordering::Relaxed);
        }
    }

    fn serve<A, F>(
        self: &Arc<Self>,
        request: Request<Incoming>,
        answer: &A,
    ) -> Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Infallible>> + Send>>
    where
        A: Fn(Request<RequestBody>) -> F,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let this = Arc::clone(self);
        let uploads = matches!(*request.method(), Method::PUT | Method::PATCH);
        let ended = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let answer = answer(request.map(|incoming| RequestBody {
            incoming,
            ended: Arc::clone(&ended),
        }));
        Box::pin(async move {
            let mut response = answer.await;
            let whole = ended.load(Ordering::Acquire) && !response.body().is_end_stream();
            if uploads && !whole {
                reply::set(&mut response, CONNECTION, "close");
            }
            let exchange = (uploads && whole).then_some(this);
            Ok(response.map(|body| AnswerBody { body, exchange }))
        })
    }
}

/// An answer's body; an upload's waits, when its head is written, until hyper
/// has been told that no other follows it.
struct AnswerBody {
    body: Body,
    exchange: Option<Arc<Exchange>>,
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(exchange) = &self.exchange
            && matches!(exchange.stage.load(Ordering::Relaxed), OTHER | HEAD)
        {
            // Whoever drives hyper looks at this when hyper returns.
            exchange.stage.store(HEAD, Ordering::Relaxed);
            return Poll::Pending;
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let (Some(exchange), true) = (&self.exchange, frame.is_ready()) {
            exchange.stage.store(WHOLE, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body, which notes that it has been read to its end.
pub(super) struct RequestBody {
    incoming: Incoming,
    ended: Arc<AtomicBool>,
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        let ended = match &frame {
            Poll::Pending | Poll::Ready(Some(Err(_))) => false,
            Poll::Ready(Some(Ok(_))) => self.incoming.is_end_stream(),
            Poll::Ready(None) => true,
        };
        if ended {
            self.ended.store(true, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// The socket as hyper has it.
struct Line {
    connection: Connection,
    exchange: Arc<Exchange>,
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    /// hyper asks for this once its own buffer is empty.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.connection).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.exchange.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
