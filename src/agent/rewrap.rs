//! `POST /v1/rewrap`: a run, told in lines of JSON for as long as the client
//! listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::StreamExt as _;
use http::{HeaderMap, Response, header as std_header};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::api::{Error, ErrorKind, RewrapItem, RewrapLine, RewrapOptions};
use crate::audit::Kind;
use crate::rotate::{self, Items, Records, Request, check_item};

use super::conversation::RequestBody;
use super::objects::Granted;
use super::reply::{self, Body};
use super::request::{self, Query, malformed};

/// Lines that wait for a slow client: after them the run waits too.
const LINES: usize = 256;
/// Longest line of a list, in bytes: a key of 1,024 bytes with every one
/// escaped, and a version id of as many.
const MAX_LINE: usize = 16 << 10;
/// The media type of both bodies.
const LINES_OF_JSON: &str = "application/x-ndjson";

/// What the query asks for.
pub(super) fn options(query: &Query) -> Result<RewrapOptions, Error> {
    query.allow(&[
        "bucket", "prefix", "to", "shard", "rate", "dry_run", "pack", "source",
    ])?;
    let flag = |name: &str| match query.value(name).as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(malformed(format!(
            "{name} is {other:?}; it must be true or false"
        ))),
    };
    let rate = query.value("rate").map(|text| {
        text.parse()
            .map_err(|_| malformed(format!("rate is {text:?}; it is objects a second")))
    });
    Ok(RewrapOptions {
        bucket: query
            .value("bucket")
            .ok_or_else(|| malformed("the query names no bucket"))?,
        prefix: query.value("prefix").unwrap_or_default(),
        to: query.value("to"),
        shard: query.value("shard"),
        rate: rate.transpose()?,
        dry_run: flag("dry_run")?,
        pack: flag("pack")?,
        source: query.value("source"),
    })
}

pub(super) async fn answer(
    granted: Granted,
    options: RewrapOptions,
    headers: &HeaderMap,
    body: RequestBody,
) -> Result<Response<Body>, Error> {
    let listed = request::text(headers, "content-type")?.as_deref() == Some(LINES_OF_JSON);
    if listed != options.source.is_some() {
        return Err(malformed(
            "a list of versions is a body of type application/x-ndjson, and has a name in `source`",
        ));
    }
    let items = listed.then(|| items(body, options.prefix.clone()));
    granted.app.check_ready()?;
    let bucket = options.bucket.clone();
    let request = Request {
        options,
        rings: granted.rights.rings.clone(),
        items,
    };
    let engine = granted.app.engine.clone();
    rotate::check(&engine, &request)?;
    let (lines, told) = mpsc::channel::<RewrapLine>(LINES);
    granted.timer.streams();
    // A task of its own: it ends in order when the client goes away.
    let run = async move {
        let granted = Arc::new(granted);
        let records = records(granted.clone(), bucket);
        rotate::rewrap(engine, request, records, lines).await;
        granted.timer.finish(Ok(()));
    };
    tokio::spawn(run.instrument(tracing::Span::current()));
    let frames = futures_util::stream::unfold(told, |mut told| async move {
        let line = told.recv().await?;
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(text))), told))
    });
    let mut response = Response::new(reply::stream(frames));
    reply::set(&mut response, std_header::CONTENT_TYPE, LINES_OF_JSON);
    Ok(response)
}

/// Each part of the run has records of its own, named after the request.
fn records(granted: Arc<Granted>, bucket: String) -> Records {
    let number = AtomicU64::new(0);
    Arc::new(move || {
        let mut op = granted.op(Kind::Rewrap, &bucket, None);
        let n = number.fetch_add(1, Ordering::Relaxed);
        op.event().op = Some(format!("{}.{n}", granted.request_id));
        op
    })
}

/// The lines of a list as they arrive.
fn items(body: RequestBody, prefix: String) -> Items {
    let state = (body, BytesMut::new(), false);
    futures_util::stream::unfold(Some(state), move |state| {
        let prefix = prefix.clone();
        async move {
            let mut state = state?;
            loop {
                let (body, buffer, ended) = &mut state;
                if let Some(line) = take_line(buffer, *ended) {
                    let item = parse(&line, &prefix);
                    let next = item.is_ok().then_some(state);
                    return Some((item, next));
                }
                if *ended {
                    return None;
                }
                if buffer.len() > MAX_LINE {
                    return Some((Err(malformed("a line of the list is too long")), None));
                }
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Some(data) = frame.data_ref() {
                            buffer.extend_from_slice(data);
                        }
                    }
                    None => *ended = true,
                    Some(Err(error)) => {
                        let error =
                            Error::new(ErrorKind::Incomplete, "the list broke off").log(error);
                        return Some((Err(error), None));
                    }
                }
            }
        }
    })
    .boxed()
}

fn take_line(buffer: &mut BytesMut, ended: bool) -> Option<Bytes> {
    loop {
        let line = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = buffer.split_to(at).freeze();
                buffer.advance(1);
                line
            }
            None if ended && !buffer.is_empty() => buffer.split().freeze(),
            None => return None,
        };
        if !line.trim_ascii().is_empty() {
            return Some(line);
        }
    }
}

fn parse(line: &[u8], prefix: &str) -> Result<RewrapItem, Error> {
    let item: RewrapItem = serde_json::from_slice(line)
        .map_err(|e| malformed(format!("a line of the list is not a version's JSON: {e}")))?;
    check_item(&item, prefix)?;
    Ok(item)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_one_by_one_and_the_last_at_the_end() {
        let mut buffer = BytesMut::from(&b"a\n\n b\nc"[..]);
        assert_eq!(take_line(&mut buffer, false).unwrap(), "a");
        assert_eq!(take_line(&mut buffer, false).unwrap(), " b");
        assert_eq!(take_line(&mut buffer, false), None);
        assert_eq!(take_line(&mut buffer, true).unwrap(), "c");
        assert_eq!(take_line(&mut buffer, true), None);
    }

    #[test]
    fn an_item_beyond_the_granted_prefix_is_refused() {
        parse(br#"{"key":"db/1","version_id":"v"}"#, "db/").unwrap();
        let error = parse(br#"{"key":"etc/1"}"#, "db/").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Forbidden);
        assert_eq!(parse(b"{", "").unwrap_err().kind, ErrorKind::Malformed);
    }
}
