//! Verified plaintext, in order, with bounded read-ahead.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::api::{Error, ErrorKind};
use crate::engine::Engine;
use crate::fault::{message_error, store_error};
use crate::message::{Layout, Opener};
use crate::store::{Buffer, ByteRange, Pin, Place, Select};

use super::plan::Chunks;
use super::proof::{Digests, Framed, Proven, digest};

/// The plaintext of an opened object: call [`next`](Self::next) until `None`.
pub struct PlaintextBody {
    ready: VecDeque<Bytes>,
    stream: Option<Stream>,
}

struct Stream {
    engine: Arc<Engine>,
    source: Arc<Source>,
    chunks: Chunks,
    /// What the fetches to come must bring, if they were made before.
    digests: Digests,
    in_flight: VecDeque<Fetching>,
}

/// What each fetch needs; shared by those in flight.
struct Source {
    place: Place,
    pin: Pin,
    opener: Arc<Opener>,
    layout: Layout,
    span: Range<u64>,
}

/// The first fetch of a range, begun while the object's length was still
/// being proved: one round trip less to the first byte. What it brings is out
/// of reach until then.
pub(super) struct Ahead {
    source: Arc<Source>,
    chunks: Chunks,
    first: Fetching,
}

impl Ahead {
    /// Begins it, if there is memory to spare.
    pub(super) fn begin(
        engine: &Arc<Engine>,
        place: &Place,
        pin: &Pin,
        opener: &Arc<Opener>,
        layout: &Layout,
        span: Range<u64>,
    ) -> Option<Self> {
        let mut chunks = Chunks::new(layout, &span, engine.settings.part_size);
        let frames = chunks.peek()?;
        let source = Arc::new(Source {
            place: place.clone(),
            pin: pin.clone(),
            opener: opener.clone(),
            layout: *layout,
            span,
        });
        let bytes = source.stored(&frames);
        let buffer = engine
            .pool
            .try_reserve(to_usize(bytes.end - bytes.start).ok()?)?;
        chunks.advance();
        let (at_work, engine) = (source.clone(), engine.clone());
        let first = Fetching(tokio::spawn(async move {
            at_work.fetch(&engine, frames, buffer, None).await
        }));
        Some(Self {
            source,
            chunks,
            first,
        })
    }
}

/// A fetch that ends when nobody waits for it any more.
struct Fetching(JoinHandle<Result<Vec<Bytes>, Error>>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PlaintextBody {
    pub(super) fn new(engine: Arc<Engine>, place: Place, proven: Proven, span: Range<u64>) -> Self {
        let Framed {
            opener,
            layout,
            pin,
            window,
            digests,
            ahead,
        } = match proven {
            Proven::Framed(framed) => framed,
            Proven::Single { plaintext, .. } => {
                return Self {
                    ready: slice(&plaintext, &span).into_iter().collect(),
                    stream: None,
                };
            }
        };
        if let Some(Ahead {
            source,
            chunks,
            first,
        }) = ahead
        {
            return Self {
                ready: VecDeque::new(),
                stream: Some(Stream {
                    engine,
                    source,
                    chunks,
                    digests,
                    in_flight: VecDeque::from([first]),
                }),
            };
        }
        let mut chunks = Chunks::new(&layout, &span, engine.settings.part_size);
        let source = Arc::new(Source {
            place,
            pin,
            opener,
            layout,
            span,
        });
        let mut in_flight = VecDeque::new();
        if let Some(window) = window
            && let Some(frames) = chunks.take_available(&source.layout, window.len() as u64)
        {
            let source = source.clone();
            in_flight.push_back(Fetching(tokio::spawn(async move {
                source.open(window, 0, frames)
            })));
        }
        Self {
            ready: VecDeque::new(),
            stream: Some(Stream {
                engine,
                source,
                chunks,
                digests,
                in_flight,
            }),
        }
    }

    /// Gets the first verified bytes ready, so that a reader who waits for
    /// them here still learns of an error before he has told anybody that
    /// all is well.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn prime(&mut self) -> Result<(), Error> {
        if self.ready.is_empty()
            && let Some(stream) = &mut self.stream
        {
            match stream.next_chunk().await? {
                Some(chunk) => self.ready = chunk.into(),
                None => self.stream = None,
            }
        }
        Ok(())
    }

    /// The next verified bytes, or `None` at the end.
    ///
    /// # Errors
    /// A frame is not authentic, the object changed, or the store failed.
    /// Nothing more comes after an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(Ok(bytes));
            }
            match self.stream.as_mut()?.next_chunk().await {
                Ok(Some(chunk)) => self.ready = chunk.into(),
                Ok(None) => self.stream = None,
                Err(error) => {
                    self.stream = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl PlaintextBody {
    /// All verified bytes that are at hand, or the next that will be: those of
    /// a fetch. For whoever writes many at once.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_chunk(&mut self) -> Option<Result<Vec<Bytes>, Error>> {
        let first = match self.next().await? {
            Ok(first) => first,
            Err(error) => return Some(Err(error)),
        };
        let mut chunk = vec![first];
        chunk.extend(self.ready.drain(..));
        Some(Ok(chunk))
    }
}

impl Stream {
    async fn next_chunk(&mut self) -> Result<Option<Vec<Bytes>>, Error> {
        self.read_ahead(true).await?;
        let Some(mut fetching) = self.in_flight.pop_front() else {
            return Ok(None);
        };
        let chunk = (&mut fetching.0)
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, "a fetch ended abnormally").log(e))??;
        // Whoever sends this chunk now need not wait for the next one later;
        // but while it is held, no memory is waited for.
        self.read_ahead(false).await?;
        Ok(Some(chunk))
    }

    /// Starts fetches: the first waits its turn for memory if it may, further
    /// ones take only what nobody else is likely to need.
    async fn read_ahead(&mut self, may_wait: bool) -> Result<(), Error> {
        while self.in_flight.len() < self.engine.settings.concurrency {
            let alone = self.in_flight.is_empty();
            let pool = &self.engine.pool;
            if !alone && (pool.waiting() > 0 || pool.in_use() >= pool.budget() / 2) {
                break;
            }
            let Some(frames) = self.chunks.peek() else {
                break;
            };
            let bytes = self.source.stored(&frames);
            let len = to_usize(bytes.end - bytes.start)?;
            let buffer = if alone && may_wait {
                self.engine.reserve_more(len).await?
            } else {
                match pool.try_reserve(len) {
                    Some(buffer) => buffer,
                    None => break,
                }
            };
            self.chunks.advance();
            let expected = self.digests.pop_front();
            let (engine, source) = (self.engine.clone(), self.source.clone());
            self.in_flight.push_back(Fetching(tokio::spawn(async move {
                source.fetch(&engine, frames, buffer, expected).await
            })));
        }
        Ok(())
    }
}

impl Source {
    fn stored(&self, frames: &RangeInclusive<u32>) -> Range<u64> {
        self.layout.frame_span(*frames.start()).start..self.layout.frame_span(*frames.end()).end
    }

    async fn fetch(
        &self,
        engine: &Engine,
        frames: RangeInclusive<u32>,
        mut buffer: Buffer,
        expected: Option<[u8; 32]>,
    ) -> Result<Vec<Bytes>, Error> {
        let bytes = self.stored(&frames);
        let select = Select {
            version_id: self.pin.version_id.clone(),
            range: Some(ByteRange::new(bytes.start, bytes.end - 1)),
            pin: Some(self.pin.clone()),
        };
        engine
            .store
            .fetch(&self.place, select, &mut buffer)
            .await
            .map_err(|e| store_error(&e))?;
        if expected.is_some_and(|expected| expected != digest(buffer.as_slice())) {
            return Err(Error::new(
                ErrorKind::Altered,
                "the store served other bytes when it was read again",
            ));
        }
        self.open(buffer, bytes.start, frames)
    }

    /// Opens `frames` in `buffer`, which holds the object from `offset` on.
    fn open(
        &self,
        mut buffer: Buffer,
        offset: u64,
        frames: RangeInclusive<u32>,
    ) -> Result<Vec<Bytes>, Error> {
        let mut places = Vec::with_capacity((*frames.end() - *frames.start()) as usize + 1);
        for seq in frames {
            let stored = self.layout.frame_span(seq);
            let range = local(&stored, offset, buffer.len())?;
            let start = range.start;
            let plain = self
                .opener
                .open_frame(&self.layout, seq, &mut buffer.as_mut_slice()[range])
                .map_err(|e| message_error(&e))?;
            let mut plain = start + plain.start..start + plain.end;
            // A range request may begin and end inside a frame.
            let covers = self.layout.plaintext_span(seq);
            plain.start += to_usize(self.span.start.saturating_sub(covers.start))?;
            plain.end -= to_usize(covers.end.saturating_sub(self.span.end))?;
            if plain.start < plain.end {
                places.push(plain);
            }
        }
        let bytes = buffer.freeze();
        Ok(places.into_iter().map(|place| bytes.slice(place)).collect())
    }
}

/// Where a stored range lies in a buffer that begins at `offset`.
pub(super) fn local(stored: &Range<u64>, offset: u64, len: usize) -> Result<Range<usize>, Error> {
    let start = to_usize(stored.start.saturating_sub(offset))?;
    let end = to_usize(stored.end.saturating_sub(offset))?;
    if stored.start < offset || end > len || start > end {
        return Err(Error::new(
            ErrorKind::Truncated,
            "the store sent fewer bytes than a frame has",
        ));
    }
    Ok(start..end)
}

pub(super) fn to_usize(value: u64) -> Result<usize, Error> {
    usize::try_from(value).map_err(|_| Error::new(ErrorKind::Internal, "beyond the address space"))
}

fn slice(plaintext: &Bytes, span: &Range<u64>) -> Option<Bytes> {
    let start = usize::try_from(span.start).ok()?;
    let end = usize::try_from(span.end).ok()?;
    (start < end && end <= plaintext.len()).then(|| plaintext.slice(start..end))
}
