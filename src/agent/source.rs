//! A request's body as plaintext to seal, with limits on the client's pace.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::{Instant, timeout_at};

use crate::api::{Error, ErrorKind};
use crate::put::Plaintext;
use crate::store::Pool;

use super::conversation::RequestBody;
use super::policy::{self, Meter};

/// How long a client may pause while nobody waits for the memory it holds:
/// a database dump may think for minutes before its first byte.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// How long it may pause, or stay below [`STARVING_RATE`], while others wait.
pub(super) const STARVING_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes a second below which a client that others wait for is too slow.
pub(super) const STARVING_RATE: u64 = 64 << 10;

/// A body being read. Ends well only with its declared last byte or its
/// terminating chunk: a killed client never looks like a finished one.
pub(super) struct HttpSource {
    body: RequestBody,
    chunk: Bytes,
    ended: bool,
    pool: Pool,
    /// Closed once the client's connection is gone.
    client: oneshot::Receiver<()>,
    /// How long we have waited for the client, all in all: not how long it
    /// has waited for us, for memory or for the store.
    waited: Duration,
    received: u64,
    /// Bytes that the grant allows, if it says how many.
    most: Option<u64>,
    meter: Meter,
}

impl HttpSource {
    pub(super) fn new(
        body: RequestBody,
        pool: Pool,
        client: oneshot::Receiver<()>,
        most: Option<u64>,
        meter: Meter,
    ) -> Self {
        Self {
            body,
            chunk: Bytes::new(),
            ended: false,
            pool,
            client,
            waited: Duration::ZERO,
            received: 0,
            most,
            meter,
        }
    }

    /// Makes `chunk` non-empty or notes the end.
    async fn advance(&mut self) -> Result<(), Error> {
        let paused = Instant::now();
        while self.chunk.is_empty() && !self.ended {
            let frame =
                match timeout_at(Instant::now() + STARVING_PATIENCE, self.body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) if self.pool.waiting() == 0 && paused.elapsed() < PATIENCE => continue,
                    Err(_) => return Err(too_slow("no byte of the body arrived in time")),
                };
            match frame {
                // However a connection may die in a chunked body, the end of
                // the body counts only while its client is there.
                None if self.client.try_recv() == Err(TryRecvError::Closed) => {
                    return Err(incomplete());
                }
                None => self.ended = true,
                Some(Ok(frame)) => {
                    // Trailers carry nothing that we use.
                    if let Ok(data) = frame.into_data() {
                        self.received += data.len() as u64;
                        if let Some(most) = self.most
                            && self.received > most
                        {
                            return Err(policy::too_large(most));
                        }
                        self.chunk = data;
                    }
                }
                Some(Err(error)) => {
                    return Err(incomplete().log(error));
                }
            }
        }
        self.waited += paused.elapsed();
        self.check_pace()?;
        self.meter.pass(self.chunk.len()).await
    }

    fn check_pace(&self) -> Result<(), Error> {
        let least = self.waited.as_secs().saturating_mul(STARVING_RATE);
        if self.waited > STARVING_PATIENCE
            && self.received < least
            && !self.ended
            && self.pool.waiting() > 0
        {
            return Err(too_slow(
                "the body came at less than 64 KiB/s while other requests waited for memory",
            ));
        }
        Ok(())
    }
}

fn incomplete() -> Error {
    Error::new(
        ErrorKind::Incomplete,
        "the connection ended before the body did",
    )
}

fn too_slow(detail: &str) -> Error {
    Error::new(ErrorKind::TooSlow, detail)
}

impl Plaintext for HttpSource {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        if self.chunk.is_empty() {
            self.advance().await?;
        }
        let count = self.chunk.len().min(into.len());
        into[..count].copy_from_slice(&self.chunk[..count]);
        self.chunk.advance(count);
        Ok(count)
    }

    async fn ended(&mut self) -> Result<bool, Error> {
        if self.chunk.is_empty() {
            self.advance().await?;
        }
        Ok(self.chunk.is_empty())
    }
}
