//! Proving an object's length, or the whole of it, before its first byte.
//!
//! Framed, unsigned: the final frame, at its computed place, is opened first;
//! the provider cannot have cut or extended the object then. Signed: all of
//! it is read and verified once before it is read again for release.
//! Not framed: held in memory until its one tag is verified. Opened by a
//! compromised key: all of it is compared with this host's receipt first.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::api::{Error, ErrorKind, Receipt};
use crate::engine::Engine;
use crate::fault::{message_error, store_error};
use crate::message::{Layout, Opener};
use crate::store::{Buffer, ByteRange, Pin, Place, Select};

use super::body::{Ahead, local, to_usize};
use super::plan::Chunks;
use super::{GetRequest, Wanted, Window, resolve};

/// The longest non-framed body, in bytes: it is held in memory until it is
/// verified (SECURITY rule 3), with its IV, length and tag.
/// Signed ones end in a footer of at most 2 + 2^8 bytes more.
const MAX_SINGLE: u64 = (16 << 20) + 12 + 8 + 16 + 258;

/// An object whose length, at least, is proved.
pub(super) enum Proven {
    /// Frames still to be opened, at places that are now certain.
    Framed(Framed),
    /// Verified as a whole.
    Single {
        /// All of it.
        plaintext: Bytes,
        /// What was read.
        pin: Pin,
    },
}

/// A framed message of proved geometry.
pub(super) struct Framed {
    pub(super) opener: Arc<Opener>,
    pub(super) layout: Layout,
    pub(super) pin: Pin,
    /// The beginning of the object, if frames in it are still sealed.
    pub(super) window: Option<Buffer>,
    /// What each fetch must bring, where frames alone prove nothing.
    pub(super) digests: Digests,
    /// The first fetch of the body, if it was begun before the proof.
    pub(super) ahead: Option<Ahead>,
}

/// SHA-256 of what each fetch of the body brought in the first pass, in
/// order; empty where there was none. 32 bytes for each `part_size`.
pub(super) type Digests = VecDeque<[u8; 32]>;

/// The digest that such a fetch is known by.
pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(
        crate::crypto::digest::digest(&crate::crypto::digest::SHA256, bytes).as_ref(),
    );
    out
}

impl Proven {
    pub(super) fn plaintext_len(&self) -> u64 {
        match self {
            Self::Framed(framed) => framed.layout.plaintext_len(),
            Self::Single { plaintext, .. } => plaintext.len() as u64,
        }
    }

    pub(super) fn pin(&self) -> &Pin {
        match self {
            Self::Framed(framed) => &framed.pin,
            Self::Single { pin, .. } => pin,
        }
    }
}

pub(super) async fn prove(
    engine: &Arc<Engine>,
    request: &GetRequest,
    window: Window,
    opener: Arc<Opener>,
    vouched: Option<Receipt>,
) -> Result<Proven, Error> {
    let reader = Reader {
        engine,
        place: &request.place,
        pin: window.pin.clone(),
        total: window.total,
    };
    if let Some(receipt) = vouched {
        drop(window);
        return reader.vouched(opener, &receipt).await;
    }
    if !opener.header().is_framed() {
        return reader.single(window, &opener).await;
    }
    if opener.header().is_signed() {
        drop(window);
        return reader.signed(opener).await;
    }
    reader.framed(window, opener, request.wanted).await
}

fn forged() -> Error {
    Error::new(
        ErrorKind::Altered,
        "only a compromised key opens it, and it is not what this agent stored: its size, version or checksum is not the receipt's",
    )
}

struct Reader<'a> {
    engine: &'a Arc<Engine>,
    place: &'a Place,
    pin: Pin,
    total: u64,
}

impl Reader<'_> {
    async fn framed(
        self,
        window: Window,
        opener: Arc<Opener>,
        wanted: Wanted,
    ) -> Result<Proven, Error> {
        let layout = opener.layout(self.total).map_err(|e| message_error(&e))?;
        let stored = layout.frame_span(layout.final_frame());
        let ahead = self.ahead(&window, &opener, &layout, wanted);
        let (mut last, window) = match self.beside(stored.end - stored.start)? {
            Some(mut copy) if stored.end <= window.len() => {
                // A copy: the window's own frame stays sealed for the body.
                let range = local(&stored, 0, window.buffer.len())?;
                copy.extend_from_slice(&window.bytes()[range]);
                (copy, Some(window.buffer))
            }
            Some(mut empty) => {
                self.fill(&mut empty, stored.start, stored.end).await?;
                (empty, Some(window.buffer))
            }
            None => {
                drop(window);
                (self.fetch(stored.start, stored.end).await?, None)
            }
        };
        opener
            .open_frame(&layout, layout.final_frame(), last.as_mut_slice())
            .map_err(|e| message_error(&e))?;
        Ok(Proven::Framed(Framed {
            opener,
            layout,
            pin: self.pin,
            window,
            digests: Digests::new(),
            ahead,
        }))
    }

    /// For a range that does not begin in the window: its first fetch. A range
    /// that is not in the object is told of when its length is proved.
    fn ahead(
        &self,
        window: &Window,
        opener: &Arc<Opener>,
        layout: &Layout,
        wanted: Wanted,
    ) -> Option<Ahead> {
        if !matches!(wanted, Wanted::Span(..) | Wanted::Suffix(..)) {
            return None;
        }
        let span = resolve(wanted, layout.plaintext_len()).ok()?;
        let first = *layout.frames_covering(span.clone()).start();
        if layout.frame_span(first).end <= window.len() {
            return None;
        }
        Ahead::begin(self.engine, self.place, &self.pin, opener, layout, span)
    }

    /// Two passes for an object that only a compromised key opens: whoever
    /// has that key can make frames as good as ours, so the ciphertext itself
    /// is compared with this host's receipt. What the second pass reads must
    /// be what the first one read: the store may serve each its own.
    async fn vouched(self, opener: Arc<Opener>, receipt: &Receipt) -> Result<Proven, Error> {
        let layout = opener.layout(self.total).map_err(|e| message_error(&e))?;
        let same_tag = match (&receipt.etag, &self.pin.etag) {
            (Some(ours), Some(theirs)) => ours.trim_matches('"') == theirs.trim_matches('"'),
            (ours, _) => ours.is_none(),
        };
        let same_version =
            receipt.version_id.is_none() || receipt.version_id == self.pin.version_id;
        if receipt.stored_size != self.total || !same_tag || !same_version {
            return Err(forged());
        }
        let store = &self.engine.store;
        let compare = store.compare(self.place, &self.pin, &receipt.checksum);
        let mut compare = compare.await.map_err(|e| store_error(&e))?;
        compare.update(opener.header().bytes());
        let all = 0..layout.plaintext_len();
        let mut chunks = Chunks::new(&layout, &all, self.engine.settings.part_size);
        let mut digests = Digests::new();
        let mut at = opener.header().len() as u64;
        while let Some(frames) = chunks.peek() {
            let end = layout.frame_span(*frames.end()).end;
            let chunk = self.fetch(at, end).await?;
            compare.update(chunk.as_slice());
            digests.push_back(digest(chunk.as_slice()));
            at = end;
            chunks.advance();
        }
        // An empty plaintext's only frame is no part of the body.
        if at < self.total {
            compare.update(self.fetch(at, self.total).await?.as_slice());
        }
        if !compare.finish() {
            return Err(forged());
        }
        Ok(Proven::Framed(Framed {
            opener,
            layout,
            pin: self.pin,
            window: None,
            digests,
            ahead: None,
        }))
    }

    async fn single(self, window: Window, opener: &Opener) -> Result<Proven, Error> {
        let start = opener.header().len() as u64;
        let body = self.total.saturating_sub(start);
        if body > MAX_SINGLE {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "its body is one block of more than 16 MiB, which cannot be verified before it is released",
            ));
        }
        let beside = match window.is_whole() {
            true => self.beside(body)?,
            false => None,
        };
        let mut buffer = if let Some(mut copy) = beside {
            copy.extend_from_slice(&window.bytes()[opener.header().len()..]);
            copy
        } else {
            drop(window);
            self.fetch(start, self.total).await?
        };
        let plain = opener
            .open_single(buffer.as_mut_slice())
            .map_err(|e| message_error(&e))?;
        Ok(Proven::Single {
            plaintext: buffer.freeze().slice(plain),
            pin: self.pin,
        })
    }

    /// Two passes: all of it is verified, signature last, and only then is
    /// the same version read again, each frame verified again, for release.
    async fn signed(self, opener: Arc<Opener>) -> Result<Proven, Error> {
        let mut walker = opener.walk().map_err(|e| message_error(&e))?;
        let mut at = opener.header().len() as u64;
        while at < self.total {
            let end = (at + self.engine.settings.part_size).min(self.total);
            let chunk = self.fetch(at, end).await?;
            walker
                .push(chunk.as_slice())
                .map_err(|e| message_error(&e))?;
            at = end;
        }
        let layout = walker.finish().map_err(|e| message_error(&e))?.layout();
        Ok(Proven::Framed(Framed {
            opener,
            layout,
            pin: self.pin,
            window: None,
            digests: Digests::new(),
            ahead: None,
        }))
    }

    /// Memory beside the window, if some is free now: nobody may wait for
    /// memory while he holds some. Without it the window is given up, and
    /// fetched again when its turn comes.
    fn beside(&self, len: u64) -> Result<Option<Buffer>, Error> {
        Ok(self.engine.pool.try_reserve(to_usize(len)?))
    }

    async fn fetch(&self, start: u64, end: u64) -> Result<Buffer, Error> {
        let len = to_usize(end.saturating_sub(start))?;
        let mut buffer = self.engine.reserve(len).await?;
        self.fill(&mut buffer, start, end).await?;
        Ok(buffer)
    }

    async fn fill(&self, buffer: &mut Buffer, start: u64, end: u64) -> Result<(), Error> {
        if end <= start {
            return Ok(());
        }
        let select = Select {
            version_id: self.pin.version_id.clone(),
            range: Some(ByteRange::new(start, end - 1)),
            pin: Some(self.pin.clone()),
        };
        self.engine
            .store
            .fetch(self.place, select, buffer)
            .await
            .map_err(|e| store_error(&e))?;
        Ok(())
    }
}
