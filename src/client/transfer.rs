//! Bodies: what is sent with a put, and what a get receives.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::{Client, ObjectInfo, object_info, wire};
use crate::api::{Error, ErrorKind};

/// How often, and how long apart, the agent is asked why a transfer broke:
/// it may hang up a moment before it has written down the reason.
const ASK: (usize, Duration) = (5, Duration::from_millis(40));

/// The body of a request.
pub struct Upload {
    pub(super) length: Option<u64>,
    pub(super) body: UnsyncBoxBody<Bytes, io::Error>,
    /// In place of a body: an open file, and how much of it is to be read.
    pub(super) file: Option<(OwnedFd, u64)>,
}

impl Upload {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self::from_bytes(Bytes::new())
    }

    /// A body that is at hand.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self {
            length: Some(bytes.len() as u64),
            body: Full::new(bytes)
                .map_err(|never| match never {})
                .boxed_unsync(),
            file: None,
        }
    }

    /// A body that comes through a channel, of a known length or chunked.
    ///
    /// An `Err`, or an end before the known length, breaks the connection, so
    /// that the agent never takes the body for whole. Of a known length the
    /// last byte ends the body: whoever still has doubts holds it back.
    #[must_use]
    pub fn from_channel(
        mut chunks: mpsc::Receiver<io::Result<Bytes>>,
        length: Option<u64>,
    ) -> Self {
        let stream = futures_util::stream::poll_fn(move |cx| chunks.poll_recv(cx));
        let frames = futures_util::StreamExt::map(stream, |chunk| chunk.map(Frame::data));
        Self {
            length,
            body: StreamBody::new(frames).boxed_unsync(),
            file: None,
        }
    }

    /// No body: the agent reads the file itself, `length` bytes from its
    /// position to its end, and moves the position on as it does. It stores
    /// nothing if the file changes meanwhile.
    ///
    /// An agent may refuse ([`ErrorKind::DescriptorRefused`]), for the file
    /// system's sake most likely: the bytes must then be sent.
    ///
    /// # Errors
    /// The system's: no descriptor is free.
    pub fn from_file(file: &File, length: u64) -> io::Result<Self> {
        Ok(Self {
            file: Some((file.as_fd().try_clone_to_owned()?, length)),
            ..Self::empty()
        })
    }
}

/// An object on its way to us. Every byte it yields was authenticated by the
/// agent; that all of them came is known only when [`Download::next`] has
/// returned `None`.
pub struct Download {
    client: Client,
    /// What the answer's headers say.
    pub info: ObjectInfo,
    request_id: Option<String>,
    body: hyper::body::Incoming,
    received: u64,
    _connection: wire::Connection,
}

impl Download {
    pub(super) fn new(client: Client, answer: wire::Answer) -> Self {
        let info = object_info(answer.headers());
        let request_id = answer.request_id().map(str::to_owned);
        let (body, connection) = answer.into_body();
        Self {
            client,
            info,
            request_id,
            body,
            received: 0,
            _connection: connection,
        }
    }

    /// The next bytes; `None` once all that `info.length` promised have come.
    ///
    /// # Errors
    /// The transfer broke: with the agent's reason where it can still be
    /// asked, else as temporary.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.received += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
                None if self.received == self.info.length => return Ok(None),
                None | Some(Err(_)) => return Err(self.reason().await),
            }
        }
    }

    async fn reason(&self) -> Error {
        for _ in 0..ASK.0 {
            if let Some(error) = self.client.failure_of(self.request_id.as_deref()).await {
                return error;
            }
            tokio::time::sleep(ASK.1).await;
        }
        Error::new(
            ErrorKind::StoreAway,
            format!(
                "the transfer broke after {} of {} bytes",
                self.received, self.info.length
            ),
        )
        .hint("the agent was stopped or lost the store; the same command may succeed later")
    }
}
