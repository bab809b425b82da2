//! Answers that come line by line: one JSON value each, while the work goes
//! on. A client that leaves ends the work.

use std::future::Future;

use bytes::Bytes;
use http::{Response, header as std_header};
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::api::Error;

use super::reply::{self, Body};

/// Lines that wait for a slow client before the work waits with them.
const AHEAD: usize = 64;

/// An answer of the lines that `work` sends; it goes on in a task of its own.
pub(super) fn answer<T, F>(work: impl FnOnce(mpsc::Sender<T>) -> F) -> Response<Body>
where
    T: Serialize + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    use tracing::Instrument as _;
    let (sender, lines) = mpsc::channel(AHEAD);
    tokio::spawn(work(sender).instrument(tracing::Span::current()));
    let frames = futures_util::stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((frame(&line), lines))
    });
    let mut response = Response::new(reply::stream(frames));
    reply::set(
        &mut response,
        std_header::CONTENT_TYPE,
        "application/x-ndjson",
    );
    response
}

fn frame(line: &impl Serialize) -> Result<Frame<Bytes>, Error> {
    let mut bytes = serde_json::to_vec(line).map_err(|error| {
        Error::new(
            crate::api::ErrorKind::Internal,
            "a line could not be written",
        )
        .log(error)
    })?;
    bytes.push(b'\n');
    Ok(Frame::data(bytes.into()))
}
