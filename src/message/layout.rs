//! Where each frame of a message stands: computed, never searched.
//!
//! With header length H, object length L and frame length F:
//! `q, r = divmod(L - H - 40, F + 32)`; frames 1 to q are regular, frame
//! q + 1 is final and holds r bytes.

use std::ops::{Range, RangeInclusive};

use super::cipher::TAG_LEN;
use super::error::Error;
use super::frame::{FINAL_HEAD, FRAME_HEAD};
use super::header::Header;
use super::id::MessageId;

/// Bytes that a regular frame adds to its text.
const FRAME_EXTRA: u64 = (FRAME_HEAD + TAG_LEN) as u64;
/// Bytes that the final frame adds to its text.
const FINAL_EXTRA: u64 = (FINAL_HEAD + TAG_LEN) as u64;

/// The geometry of one framed message.
///
/// It rests on the object's length as the store told it, until the final frame
/// has been opened (or, in a signed message, the walk has ended): a false
/// length makes that fail. Serves only the message it was computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    message_id: MessageId,
    /// The header's tag, which no other header of this message id has.
    header_tag: [u8; TAG_LEN],
    header_len: u64,
    frame_length: u64,
    frames: u32,
    plaintext_len: u64,
    /// Whether a footer signature over all of it was verified.
    signature_verified: bool,
}

impl Layout {
    /// The only geometry that an unsigned object of `object_len` bytes can have.
    pub(super) fn of_object(header: &Header, object_len: u64) -> Result<Self, Error> {
        let header_len = header.len() as u64;
        let frame_length = u64::from(header.frame_length());
        let too_short = || Error::Truncated(format!("{object_len} bytes hold no whole message"));
        let room = object_len
            .checked_sub(header_len)
            .and_then(|body| body.checked_sub(FINAL_EXTRA))
            .ok_or_else(too_short)?;
        let regular = room / (frame_length + FRAME_EXTRA);
        let rest = room % (frame_length + FRAME_EXTRA);
        if rest > frame_length {
            return Err(Error::Truncated(format!(
                "an object of {object_len} bytes ends inside a frame"
            )));
        }
        let frames = u32::try_from(regular + 1)
            .map_err(|_| Error::Limit("more than 2^32 - 1 frames".to_owned()))?;
        Ok(Self::new(header, frames, rest, false))
    }

    /// The geometry that a walk found and a signature confirmed.
    pub(super) fn of_walk(header: &Header, frames: u32, final_len: u64) -> Self {
        Self::new(header, frames, final_len, true)
    }

    fn new(header: &Header, frames: u32, final_len: u64, signature_verified: bool) -> Self {
        let frame_length = u64::from(header.frame_length());
        Self {
            message_id: header.message_id(),
            header_tag: *header.tag(),
            header_len: header.len() as u64,
            frame_length,
            frames,
            // Below 2^32 frames of at most 2^24 bytes: no overflow.
            plaintext_len: u64::from(frames.saturating_sub(1)) * frame_length + final_len,
            signature_verified,
        }
    }

    /// Whether it was computed for this message and, where the message is
    /// signed, after its signature.
    pub(super) fn serves(&self, header: &Header) -> bool {
        self.message_id == header.message_id()
            && self.header_tag == *header.tag()
            && self.signature_verified == header.is_signed()
    }

    /// Plaintext of the whole message, in bytes.
    #[must_use]
    pub fn plaintext_len(&self) -> u64 {
        self.plaintext_len
    }

    /// Number of frames, the final one included; at least 1.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Sequence number of the final frame.
    #[must_use]
    pub fn final_frame(&self) -> u32 {
        self.frames
    }

    /// The bytes of the object that hold frame `seq`, head and tag included.
    /// Frames are numbered from 1; empty for a number that the message lacks.
    #[must_use]
    pub fn frame_span(&self, seq: u32) -> Range<u64> {
        let text = self.plaintext_span(seq);
        let Some(before) = self.frames_before(seq) else {
            return 0..0;
        };
        let start = self.header_len + before * (self.frame_length + FRAME_EXTRA);
        let extra = if seq == self.frames {
            FINAL_EXTRA
        } else {
            FRAME_EXTRA
        };
        start..start + (text.end - text.start) + extra
    }

    /// The bytes of the plaintext that frame `seq` holds; empty for a number
    /// that the message lacks.
    #[must_use]
    pub fn plaintext_span(&self, seq: u32) -> Range<u64> {
        let Some(before) = self.frames_before(seq) else {
            return 0..0;
        };
        let start = before * self.frame_length;
        let end = if seq == self.frames {
            self.plaintext_len
        } else {
            start + self.frame_length
        };
        start..end
    }

    /// The frames that hold a range of plaintext bytes; the range's end may lie
    /// behind the plaintext's. An empty inclusive range where there is nothing
    /// to read.
    #[must_use]
    #[allow(
        clippy::reversed_empty_ranges,
        reason = "1..=0 is the empty range of frames"
    )]
    pub fn frames_covering(&self, plaintext: Range<u64>) -> RangeInclusive<u32> {
        let end = plaintext.end.min(self.plaintext_len);
        if plaintext.start >= end {
            return 1..=0;
        }
        self.frame_holding(plaintext.start)..=self.frame_holding(end - 1)
    }

    /// Regular frames before frame `seq`, if there is such a frame.
    fn frames_before(&self, seq: u32) -> Option<u64> {
        (1..=self.frames).contains(&seq).then(|| u64::from(seq) - 1)
    }

    fn frame_holding(&self, offset: u64) -> u32 {
        let before = offset / self.frame_length.max(1);
        u32::try_from(before)
            .ok()
            .and_then(|before| before.checked_add(1))
            .map_or(self.frames, |seq| seq.min(self.frames))
    }
}
