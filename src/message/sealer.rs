//! Sealing a message's frames, in order, each once.

use super::cipher::{BodyKey, TAG_LEN};
use super::error::Error;
use super::frame::{self, FINAL_HEAD, FRAME_HEAD, Kind};
use super::id::MessageId;

/// Seals the frames of one message. Made by [`Draft::seal`](super::Draft::seal)
/// alone, and not `Clone`: a sequence number, which is the nonce, is used once.
///
/// Nothing comes after the final frame:
///
/// ```compile_fail,E0382
/// # fn f(mut sealer: strongroom::message::Sealer, buf: &mut [u8]) {
/// let finished = sealer.seal_final(buf);
/// let again = sealer.seal_frame(buf);
/// # }
/// ```
pub struct Sealer {
    key: BodyKey,
    message_id: MessageId,
    frame_length: u32,
    /// Frames sealed so far, each full.
    sealed: u32,
}

/// What a whole message came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Plaintext, in bytes.
    pub plaintext_len: u64,
    /// Frames, the final one included.
    pub frames: u32,
}

impl Sealer {
    /// Bytes before the text of a regular frame.
    pub const FRAME_HEAD: usize = FRAME_HEAD;
    /// Bytes before the text of the final frame.
    pub const FINAL_HEAD: usize = FINAL_HEAD;
    /// Bytes behind the text of every frame.
    pub const TAG_LEN: usize = TAG_LEN;

    pub(super) fn new(key: BodyKey, message_id: MessageId, frame_length: u32) -> Self {
        Self {
            key,
            message_id,
            frame_length,
            sealed: 0,
        }
    }

    /// Plaintext bytes in each frame but the final one.
    #[must_use]
    pub fn frame_length(&self) -> usize {
        self.frame_length as usize
    }

    /// Seals the next regular frame in place. `frame` is 16 bytes of room, one
    /// frame length of plaintext, 16 bytes of room.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a slice of another length; [`Error::Limit`] after
    /// 2^32 - 2 frames. Neither seals anything.
    pub fn seal_frame(&mut self, frame: &mut [u8]) -> Result<(), Error> {
        if frame.len() != FRAME_HEAD + self.frame_length() + TAG_LEN {
            return Err(Error::Misuse("a regular frame is full"));
        }
        let seq = self.next_seq()?;
        // The final frame needs a number too, and FFFFFFFF would read as its
        // marker in a regular one.
        if seq == u32::MAX {
            return Err(Error::Limit("2^32 - 1 frames".to_owned()));
        }
        // Counted first: whatever happens below, this number is not used again.
        self.sealed = seq;
        frame::seal(&self.key, &self.message_id, Kind::Regular, seq, frame)
    }

    /// Seals the final frame in place and ends the message. `frame` is 24 bytes
    /// of room, at most one frame length of plaintext (none is fine), 16 bytes
    /// of room.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a slice too short or too long.
    pub fn seal_final(self, frame: &mut [u8]) -> Result<Finished, Error> {
        let text_len = frame
            .len()
            .checked_sub(FINAL_HEAD + TAG_LEN)
            .filter(|&len| len <= self.frame_length())
            .ok_or(Error::Misuse("a final frame holds 0 to frame-length bytes"))?;
        let seq = self.next_seq()?;
        frame::seal(&self.key, &self.message_id, Kind::Final, seq, frame)?;
        Ok(Finished {
            // Below 2^32 frames of 2^24 bytes: no overflow.
            plaintext_len: u64::from(self.sealed) * u64::from(self.frame_length) + text_len as u64,
            frames: seq,
        })
    }

    fn next_seq(&self) -> Result<u32, Error> {
        self.sealed
            .checked_add(1)
            .ok_or_else(|| Error::Limit("2^32 - 1 frames".to_owned()))
    }

    /// As if `sealed` frames had been sealed.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, sealed: u32) {
        self.sealed = sealed;
    }
}
