//! Responses: JSON, problems, streams, and the record of failures that a
//! broken body can no longer tell.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header as std_header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde::Serialize;

use crate::api::{Error, ErrorKind, Problem, header};

/// A response's body.
pub(super) type Body = UnsyncBoxBody<Bytes, Error>;

/// Seconds a client waits before it tries again, where nothing better is known.
const RETRY_AFTER: u64 = 2;

/// Failures kept for `GET /v1/requests/{id}`: enough for every request that
/// may be in progress, a few times over.
const KEPT_FAILURES: usize = 1024;

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(super) fn stream(
    frames: impl futures_util::Stream<Item = Result<Frame<Bytes>, Error>> + Send + 'static,
) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Result<Response<Body>, Error> {
    let bytes = serde_json::to_vec(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "a reply could not be written").log(e))?;
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    set(&mut response, std_header::CONTENT_TYPE, "application/json");
    Ok(response)
}

pub(super) fn problem(error: &Error, request_id: &str) -> Response<Body> {
    let bytes = serde_json::to_vec(&error.problem(request_id)).unwrap_or_default();
    let mut response = Response::new(full(bytes));
    *response.status_mut() =
        StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    set(
        &mut response,
        std_header::CONTENT_TYPE,
        "application/problem+json",
    );
    if matches!(error.kind.status(), 429 | 503) {
        // Whole seconds, and never too early.
        let known = error.retry_after.map(|wait| wait.as_secs() + 1);
        let seconds = known.unwrap_or(RETRY_AFTER).to_string();
        set(&mut response, std_header::RETRY_AFTER, &seconds);
    }
    response
}

/// Sets a header whose value we wrote ourselves or got from S3; a value that
/// HTTP cannot carry is left out.
pub(super) fn set(
    response: &mut Response<Body>,
    name: impl http::header::IntoHeaderName,
    value: &str,
) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Why recent requests failed, by request id and by the user whose they were.
#[derive(Default)]
pub(super) struct Failures(Mutex<VecDeque<(u32, Problem)>>);

impl Failures {
    pub(super) fn record(&self, uid: u32, problem: Problem) {
        let mut kept = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if kept.len() == KEPT_FAILURES {
            kept.pop_front();
        }
        kept.push_back((uid, problem));
    }

    /// Of one user's requests; of anybody's without one.
    pub(super) fn find(&self, request_id: &str, of: Option<u32>) -> Option<Problem> {
        let kept = self.0.lock().unwrap_or_else(|e| e.into_inner());
        kept.iter()
            .rev()
            .find(|(uid, problem)| {
                problem.request_id == request_id && of.is_none_or(|of| of == *uid)
            })
            .map(|(_, problem)| problem.clone())
    }
}

/// A fresh request id: 64 random bits, hexadecimal.
pub(super) fn request_id() -> String {
    let mut bytes = [0; 8];
    // Only a label: all zeros is ugly, not unsafe.
    let _ = getrandom::fill(&mut bytes);
    data_encoding::HEXLOWER.encode(&bytes)
}

/// Marks a response with its request's id.
pub(super) fn mark(mut response: Response<Body>, request_id: &str) -> Response<Body> {
    set(&mut response, header::REQUEST_ID, request_id);
    response
}
