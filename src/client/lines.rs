//! Answers that come line by line.

use std::marker::PhantomData;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;

use super::wire;
use crate::api::{Error, ErrorKind};

/// Longest line, in bytes: an object's key of 1,024 bytes, escaped, and words.
const MAX_LINE: usize = 1 << 20;

/// JSON values on their way to us, one a line. Dropping it ends the agent's
/// work.
pub struct Lines<T> {
    body: hyper::body::Incoming,
    buffer: BytesMut,
    ended: bool,
    values: PhantomData<fn() -> T>,
    _connection: wire::Connection,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(answer: wire::Answer) -> Self {
        let (body, connection) = answer.into_body();
        Self {
            body,
            buffer: BytesMut::new(),
            ended: false,
            values: PhantomData,
            _connection: connection,
        }
    }

    /// The next value; `None` at the answer's end.
    ///
    /// # Errors
    /// The connection broke, or a line makes no sense.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        let line = self.next_line().await?;
        line.map(|line| parse(&line)).transpose()
    }

    /// The next line as it came, without its end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next_line(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return Ok(Some(line.freeze()));
            }
            if self.ended {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(broken()),
                };
            }
            if self.buffer.len() > MAX_LINE {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "the agent's line has no end",
                ));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) => return Err(broken()),
                None => self.ended = true,
            }
        }
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::AgentAway, "the agent's answer broke off")
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(line).map_err(|error| {
        Error::new(
            ErrorKind::Internal,
            format!("cannot understand the agent's answer: {error}"),
        )
        .hint("the agent and this program may be of different releases")
    })
}
