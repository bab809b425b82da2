//! A run of rewrap, as the agent tells of it.

use bytes::BytesMut;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::wire::{self, encode};
use super::{Client, Upload};
use crate::api::{Error, ErrorKind, RewrapLine, RewrapOptions};

/// Longest line we read, in bytes: a key of 1,024 bytes with every one
/// escaped, and an error's text.
const MAX_LINE: usize = 64 << 10;

/// A run under way; dropping it ends it.
pub struct RewrapRun {
    body: Incoming,
    buffer: BytesMut,
    _connection: wire::Connection,
}

impl Client {
    /// Begins a run; `list` has the versions as lines of
    /// [`RewrapItem`](crate::api::RewrapItem) where `options.source` names one.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn rewrap(&self, options: &RewrapOptions, list: Upload) -> Result<RewrapRun, Error> {
        let mut headers = HeaderMap::new();
        if options.source.is_some() {
            let kind = HeaderValue::from_static("application/x-ndjson");
            headers.insert(CONTENT_TYPE, kind);
        }
        let answer = self
            .send(Method::POST, &path(options), headers, list)
            .await?
            .success()
            .await?;
        let (body, connection) = answer.into_body();
        Ok(RewrapRun {
            body,
            buffer: BytesMut::new(),
            _connection: connection,
        })
    }
}

fn path(options: &RewrapOptions) -> String {
    let mut path = format!(
        "/v1/rewrap?bucket={}&prefix={}",
        encode(&options.bucket),
        encode(&options.prefix)
    );
    let yes = |set: bool| set.then(|| "true".to_owned());
    let rest = [
        ("to", options.to.clone()),
        ("shard", options.shard.clone()),
        ("rate", options.rate.map(|rate| rate.to_string())),
        ("dry_run", yes(options.dry_run)),
        ("pack", yes(options.pack)),
        ("source", options.source.clone()),
    ];
    for (name, value) in rest {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", encode(&value)));
        }
    }
    path
}

impl RewrapRun {
    /// The next line; `None` at the end, which comes after a line that says
    /// how it ended.
    ///
    /// # Errors
    /// The agent is gone, or is of another release.
    pub async fn next(&mut self) -> Result<Option<RewrapLine>, Error> {
        let broken = || Error::new(ErrorKind::AgentAway, "the agent's answer broke off");
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(at + 1);
                let line = serde_json::from_slice(&line).map_err(|error| {
                    Error::new(
                        ErrorKind::Internal,
                        format!("cannot understand the agent's answer: {error}"),
                    )
                    .hint("the agent and this program may be of different releases")
                })?;
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(broken());
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None | Some(Err(_)) => return Err(broken()),
            }
        }
    }
}
