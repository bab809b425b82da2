//! What is sent: a part in memory or in the spool, summed once and streamed
//! as often as the SDK retries it.

use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use http_body::{Frame, SizeHint};
use tokio::task::JoinHandle;

use super::checksum::{Hasher, Sum};
use super::{SpoolFile, Store, StoreError};
use crate::config::Checksum;

/// Bytes handed to the connection at a time. Small enough that the SDK's
/// watch over stalled uploads sees progress on slow links, large enough that
/// a fast one does not notice.
const CHUNK: usize = 128 << 10;
/// Bytes read from the spool at a time.
const READ: usize = 256 << 10;

/// The ciphertext of one part, or of a whole object.
#[derive(Debug)]
pub enum PartBody {
    /// In memory; its reservation ends with the last clone.
    Memory(Bytes),
    /// In memory, and summed already.
    Summed(Bytes, Sum),
    /// On disk.
    Spooled(SpoolFile),
}

/// The checksum of a part in memory, computed frame by frame as they are
/// sealed: what lies in the processor's cache is not fetched from memory a
/// second time.
pub struct Running {
    hasher: Hasher,
    at: usize,
}

impl Running {
    /// Sums what was added to the part, whose first bytes `sealed` are.
    pub fn up_to(&mut self, sealed: &[u8]) {
        self.hasher
            .update(sealed.get(self.at..).unwrap_or_default());
        self.at = sealed.len();
    }

    /// The whole part, with its sum.
    #[must_use]
    pub fn finish(mut self, part: Bytes) -> PartBody {
        self.up_to(&part);
        let sum = self.hasher.finish(part.len() as u64);
        PartBody::Summed(part, sum)
    }
}

impl Store {
    /// Begins a part's checksum; `None` where it is too slow to be computed
    /// on the way (SHA-256).
    #[must_use]
    pub fn running(&self) -> Option<Running> {
        let (kind, signed) = (self.inner.checksum, self.inner.signed);
        is_quick(kind, signed).then(|| Running {
            hasher: Hasher::new(kind, signed),
            at: 0,
        })
    }
}

fn is_quick(kind: Checksum, signed: bool) -> bool {
    !signed && kind != Checksum::Sha256
}

/// A [`PartBody`] that the retries of its sending share.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Memory(Bytes, Option<Sum>),
    Spooled(Arc<SpoolFile>),
}

impl From<PartBody> for Body {
    fn from(body: PartBody) -> Self {
        match body {
            PartBody::Memory(bytes) => Self::Memory(bytes, None),
            PartBody::Summed(bytes, sum) => Self::Memory(bytes, Some(sum)),
            PartBody::Spooled(file) => Self::Spooled(Arc::new(file)),
        }
    }
}

impl Body {
    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes, _) => bytes.len() as u64,
            Self::Spooled(file) => file.len(),
        }
    }

    /// The checksum over all bytes, computed off the runtime's threads where
    /// that takes long.
    pub(super) async fn sum(&self, kind: Checksum, signed: bool) -> Result<Sum, StoreError> {
        let hasher = Hasher::new(kind, signed);
        match self {
            Self::Memory(_, Some(sum)) => Ok(sum.clone()),
            Self::Memory(bytes, None) => {
                if is_quick(kind, signed) || bytes.len() < CHUNK {
                    return Ok(sum_slice(hasher, bytes));
                }
                let bytes = bytes.clone();
                off_thread(move || Ok(sum_slice(hasher, &bytes))).await
            }
            Self::Spooled(file) => {
                let file = file.clone();
                off_thread(move || sum_file(hasher, &file)).await
            }
        }
    }

    /// A body that the SDK can send again.
    pub(super) fn stream(&self) -> SdkBody {
        if self.len() == 0 {
            return SdkBody::from(Bytes::new());
        }
        let body = self.clone();
        SdkBody::retryable(move || {
            let left = body.len();
            let source = match body.clone() {
                Self::Memory(bytes, _) => Source::Memory(bytes),
                Self::Spooled(file) => Source::Spooled {
                    file,
                    reading: None,
                },
            };
            SdkBody::from_body_1_x(PartStream { source, left })
        })
    }
}

fn sum_slice(mut hasher: Hasher, bytes: &[u8]) -> Sum {
    hasher.update(bytes);
    hasher.finish(bytes.len() as u64)
}

fn sum_file(mut hasher: Hasher, file: &SpoolFile) -> Result<Sum, StoreError> {
    let spool = |message: String| StoreError::Spool { message };
    let mut written = Digest::new(CrcAlgorithm::Crc64Nvme);
    let mut chunk = vec![0; READ];
    let mut at = 0;
    while at < file.len() {
        let n = file
            .file()
            .read_at(&mut chunk, at)
            .map_err(|e| spool(format!("a spooled part cannot be read: {e}")))?;
        if n == 0 {
            return Err(spool(
                "a spooled part is shorter than what was written".into(),
            ));
        }
        hasher.update(&chunk[..n]);
        written.update(&chunk[..n]);
        at += n as u64;
    }
    if written.finalize() != file.crc64() {
        return Err(spool("a spooled part is not what was written".into()));
    }
    Ok(hasher.finish(at))
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| StoreError::Spool {
            message: format!("summing a part was interrupted: {e}"),
        })?
}

/// One sending of a part.
struct PartStream {
    source: Source,
    /// Bytes still to come.
    left: u64,
}

enum Source {
    Memory(Bytes),
    Spooled {
        file: Arc<SpoolFile>,
        reading: Option<JoinHandle<std::io::Result<Bytes>>>,
    },
}

impl http_body::Body for PartStream {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let this = &mut *self;
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let chunk = match &mut this.source {
            Source::Memory(bytes) => bytes.split_to(bytes.len().min(CHUNK)),
            Source::Spooled { file, reading } => {
                let task = reading.get_or_insert_with(|| {
                    let at = file.len() - this.left;
                    let file = file.clone();
                    tokio::task::spawn_blocking(move || read_chunk(&file, at))
                });
                let done = ready!(Pin::new(task).poll(cx));
                *reading = None;
                match done.map_err(std::io::Error::other).and_then(|r| r) {
                    Ok(bytes) => bytes,
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
        };
        this.left = this.left.saturating_sub(chunk.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn read_chunk(file: &SpoolFile, at: u64) -> std::io::Result<Bytes> {
    let len = usize::try_from(file.len() - at).unwrap_or(READ).min(READ);
    let mut chunk = vec![0; len];
    file.file().read_exact_at(&mut chunk, at)?;
    Ok(chunk.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aws_sdk_s3::primitives::ByteStream;

    use super::*;
    use crate::store::Spool;

    #[tokio::test]
    async fn memory_and_spool_send_and_sum_alike() {
        let dir = tempfile::tempdir().unwrap();
        let data: Bytes = (0..300_001_u32).flat_map(u32::to_be_bytes).collect();
        let mut file = Spool::new(dir.path(), 1 << 30).create().unwrap();
        file.append(data.slice(..70_000)).await.unwrap();
        file.append(data.slice(70_000..)).await.unwrap();
        for body in [PartBody::Memory(data.clone()), PartBody::Spooled(file)] {
            let body = Body::from(body);
            for kind in [Checksum::Crc64nvme, Checksum::Sha256] {
                let ours = body.sum(kind, true).await.unwrap();
                let theirs = sum_slice(Hasher::new(kind, true), &data);
                assert_eq!(ours.told(), theirs.told());
                assert_eq!(ours.payload_hash(), theirs.payload_hash());
            }
            let first = body.stream();
            // What the SDK does before each attempt.
            let again = first.try_clone().unwrap();
            for attempt in [first, again] {
                let sent = ByteStream::new(attempt).collect().await.unwrap();
                assert_eq!(sent.into_bytes(), data);
            }
        }
    }

    #[tokio::test]
    async fn a_spool_that_lost_or_changed_bytes_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 1 << 20);
        let mut changed = spool.create().unwrap();
        changed
            .append(Bytes::from_static(&[7; 1000]))
            .await
            .unwrap();
        changed.file().write_all_at(b"8", 500).unwrap();
        let mut short = spool.create().unwrap();
        short.append(Bytes::from_static(&[7; 1000])).await.unwrap();
        short.file().set_len(999).unwrap();
        for file in [changed, short] {
            let error = Body::from(PartBody::Spooled(file))
                .sum(Checksum::Sha256, false)
                .await
                .unwrap_err();
            assert!(matches!(error, StoreError::Spool { .. }), "{error}");
        }
    }
}
