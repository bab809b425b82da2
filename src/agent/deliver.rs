//! A get's plaintext into a file that the client passed open (SECURITY rule
//! 26): what is verified is written where it belongs, with none of it on the
//! socket.
//!
//! The answer comes when all of it is written, so that a failure at the last
//! frame is still a whole answer. Until then the file is nobody's: the command
//! line passes one without a name, and gives it its name afterwards.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use tokio::time::timeout;

use crate::api::{Error, ErrorKind};
use crate::get::PlaintextBody;

use super::descriptor::{Passed, refused};
use super::policy::Meter;

/// How long writing what one part holds may take, in all: others may wait for
/// the memory.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file to be written, from its end on.
pub(super) struct TargetFile {
    file: Arc<Passed>,
    at: u64,
}

impl TargetFile {
    pub(super) fn new(file: Passed, at: u64) -> Self {
        let file = Arc::new(file);
        Self { file, at }
    }

    /// Writes all of `body`, so many bytes; tells `released` how much has
    /// gone out.
    pub(super) async fn take(
        mut self,
        body: &mut PlaintextBody,
        total: u64,
        meter: &mut Meter,
        released: &mut u64,
    ) -> Result<(), Error> {
        let end = self.at + total;
        while let Some(verified) = body.next_chunk().await {
            let verified = verified?;
            let bytes: usize = verified.iter().map(Bytes::len).sum();
            meter.pass(bytes).await?;
            let (file, at) = (self.file.clone(), self.at);
            // Given up, it goes on until the file system answers. What was
            // written is overwritten in memory there, and not on a thread
            // that serves others.
            let first = *released == 0;
            let work = tokio::task::spawn_blocking(move || {
                if first {
                    // Tells the client how much is to come.
                    rustix::fs::ftruncate(&file, end)?;
                }
                write(&file, verified, at)
            });
            timeout(PATIENCE, work)
                .await
                .map_err(|_| {
                    Error::new(
                        ErrorKind::TooSlow,
                        "the passed file's file system did not answer in time",
                    )
                })?
                .map_err(|e| Error::new(ErrorKind::Internal, "writing ended abnormally").log(e))?
                .map_err(|error| {
                    refused(format!("it cannot be written: {}", io::Error::from(error)))
                })?;
            self.at += bytes as u64;
            *released += bytes as u64;
        }
        Ok(())
    }
}

fn write(file: &Passed, verified: Vec<Bytes>, mut at: u64) -> Result<(), Errno> {
    for frame in verified {
        let mut left = &frame[..];
        while !left.is_empty() {
            match rustix::io::pwrite(file, left, at) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => {
                    left = &left[count..];
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    // Shared with the client, who sees by it how far we are.
    let _ = rustix::fs::seek(file, SeekFrom::Start(at));
    Ok(())
}
