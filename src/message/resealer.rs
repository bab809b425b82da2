//! Going on with a message that was begun: the frames of a resumed upload.
//!
//! A nonce must never seal two different frames (docs/security.md, rules 2
//! and 12). Whoever seals under a data key that was used before therefore
//! fixes the message's length first, which fixes the frame that is final, and
//! brings the tag of every frame that may have been sent. A frame with
//! another tag is wiped before anybody sees it: equal tags under one key,
//! nonce and AAD mean an equal frame.

use subtle::ConstantTimeEq as _;
use zeroize::Zeroize as _;

use super::cipher::{BodyKey, TAG_LEN};
use super::error::Error;
use super::frame::{self, FINAL_HEAD, FRAME_HEAD, Kind};
use super::id::MessageId;
use super::opener::Opener;
use super::suite::Suite;

/// Seals the frames of a message whose header is verified, from a certain one
/// on, in order.
pub struct Resealer {
    key: BodyKey,
    message_id: MessageId,
    frame_length: u32,
    /// The final frame's number.
    last: u32,
    /// Its plaintext, in bytes.
    last_len: usize,
    /// The next frame's number; beyond `last` at the end.
    next: u32,
}

impl Resealer {
    /// Bytes of a frame's tag.
    pub const TAG_LEN: usize = TAG_LEN;

    /// Frames of a message of `length` plaintext bytes: one that ends on a
    /// frame's boundary ends in a full frame.
    ///
    /// # Errors
    /// [`Error::Limit`] beyond 2^32 - 2 frames.
    pub fn frames(length: u64, frame_length: u32) -> Result<u32, Error> {
        let frames = length.div_ceil(u64::from(frame_length.max(1))).max(1);
        u32::try_from(frames)
            .ok()
            .filter(|&frames| frames < u32::MAX)
            .ok_or_else(|| Error::Limit("2^32 - 1 frames".to_owned()))
    }

    /// Of a message of ours with `length` plaintext bytes, from frame `next`
    /// on; consumes the only other use of the key.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a message that we would not write, or a frame
    /// that it has not.
    pub fn new(opener: Opener, length: u64, next: u32) -> Result<Self, Error> {
        let (header, key) = opener.into_parts();
        if header.suite().id != Suite::WRITTEN.id || !header.is_framed() {
            return Err(Error::Misuse("a message that we do not write"));
        }
        let frame_length = header.frame_length();
        let last = Self::frames(length, frame_length)?;
        let before = u64::from(last - 1) * u64::from(frame_length);
        let last_len = usize::try_from(length - before)
            .map_err(|_| Error::Misuse("a frame beyond the address space"))?;
        if !(1..=last).contains(&next) {
            return Err(Error::Misuse("the message has no such frame"));
        }
        Ok(Self {
            key,
            message_id: header.message_id(),
            frame_length,
            last,
            last_len,
            next,
        })
    }

    /// The number of the next frame; `None` after the final one.
    #[must_use]
    pub fn next(&self) -> Option<u32> {
        (self.next <= self.last).then_some(self.next)
    }

    /// Whether the next frame is the final one.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.next == self.last
    }

    /// Plaintext bytes of the next frame.
    #[must_use]
    pub fn text_len(&self) -> usize {
        if self.is_final() {
            self.last_len
        } else {
            self.frame_length as usize
        }
    }

    /// Bytes before the text of the next frame.
    #[must_use]
    pub fn head_len(&self) -> usize {
        if self.is_final() {
            FINAL_HEAD
        } else {
            FRAME_HEAD
        }
    }

    /// Seals the next frame in place: room for its head, its text, room for
    /// its tag. `sent` is the tag it had when it was sent; `None` only for a
    /// frame that never was. Returns the tag.
    ///
    /// # Errors
    /// [`Error::Differs`]: this is another text, and the slice is wiped.
    /// [`Error::Misuse`] for a slice of another length, or after the final
    /// frame.
    pub fn seal(
        &mut self,
        frame: &mut [u8],
        sent: Option<&[u8; TAG_LEN]>,
    ) -> Result<[u8; TAG_LEN], Error> {
        let seq = self
            .next()
            .ok_or(Error::Misuse("a frame after the final one"))?;
        if frame.len() != self.head_len() + self.text_len() + TAG_LEN {
            return Err(Error::Misuse("a frame's length is fixed"));
        }
        let kind = if self.is_final() {
            Kind::Final
        } else {
            Kind::Regular
        };
        // Counted first, as a sealer does. The final number is below 2^32 - 1.
        self.next = seq + 1;
        let sealed = frame::seal(&self.key, &self.message_id, kind, seq, frame);
        let tag = match (sealed, frame.last_chunk::<TAG_LEN>()) {
            (Ok(()), Some(tag)) => *tag,
            (Err(error), _) => {
                frame.zeroize();
                return Err(error);
            }
            (Ok(()), None) => return Err(Error::Misuse("a frame has a tag")),
        };
        match sent {
            Some(sent) if !bool::from(sent.ct_eq(&tag)) => {
                frame.zeroize();
                Err(Error::Differs(seq))
            }
            _ => Ok(tag),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::message::{Context, DataKey, Draft, Edk, Header, Parsed, Permit, Sealer};
    use crate::secret::Secret32;

    const F: usize = 4096;

    /// A message of `length` bytes with its frames' tags, and what resumes it.
    fn begun(length: usize) -> (Vec<[u8; 16]>, impl Fn(u64, u32) -> Resealer) {
        let random = Secret32::from_slice(&[7; 32]).unwrap();
        let mut draft = Draft::new(DataKey::fresh(&random).unwrap(), Context::new(), 4096).unwrap();
        let copy = Secret32::from_slice(draft.data_key().expose()).unwrap();
        draft
            .add_edk(Edk::raw_aes("k", &[0; 12], &[0; 48]).unwrap())
            .unwrap();
        let (header, mut sealer) = draft.seal().unwrap();
        let text = vec![5_u8; length];
        let frames = Resealer::frames(length as u64, 4096).unwrap();
        let mut tags = Vec::new();
        let mut chunks = text.chunks(F);
        for _ in 1..frames {
            let mut frame = vec![0; Sealer::FRAME_HEAD + F + 16];
            frame[Sealer::FRAME_HEAD..Sealer::FRAME_HEAD + F]
                .copy_from_slice(chunks.next().unwrap());
            sealer.seal_frame(&mut frame).unwrap();
            tags.push(*frame.last_chunk().unwrap());
        }
        let last = chunks.next().unwrap_or_default();
        let mut frame = vec![0; Sealer::FINAL_HEAD + last.len() + 16];
        frame[Sealer::FINAL_HEAD..][..last.len()].copy_from_slice(last);
        sealer.seal_final(&mut frame).unwrap();
        tags.push(*frame.last_chunk().unwrap());
        let header = header.to_vec();
        let resume = move |length, next| {
            let Parsed::Header(header) = Header::parse(&header, Permit::default()).unwrap() else {
                panic!("a whole header");
            };
            let key = DataKey::unwrapped(Secret32::from_slice(copy.expose()).unwrap());
            let opener = header.verify(key, &Context::new()).unwrap();
            Resealer::new(opener, length, next).unwrap()
        };
        (tags, resume)
    }

    fn frame(sealer: &Resealer, fill: u8) -> Vec<u8> {
        let (head, text) = (sealer.head_len(), sealer.text_len());
        let mut frame = vec![0; head + text + 16];
        frame[head..head + text].fill(fill);
        frame
    }

    #[test]
    fn rule_12_the_same_text_gives_the_same_frames() {
        for length in [0, 1, F - 1, F, F + 1, 2 * F, 3 * F + 5] {
            let (tags, resume) = begun(length);
            for first in 1..=tags.len() {
                let mut sealer = resume(length as u64, u32::try_from(first).unwrap());
                for tag in &tags[first - 1..] {
                    let mut frame = frame(&sealer, 5);
                    assert_eq!(sealer.seal(&mut frame, Some(tag)).unwrap(), *tag);
                }
                assert!(sealer.next().is_none());
            }
        }
    }

    #[test]
    fn rule_12_another_text_is_wiped_and_never_seen() {
        let (tags, resume) = begun(2 * F);
        let mut sealer = resume(2 * F as u64, 1);
        let mut other = frame(&sealer, 6);
        let error = sealer.seal(&mut other, Some(&tags[0])).unwrap_err();
        assert!(matches!(error, Error::Differs(1)));
        assert!(other.iter().all(|&byte| byte == 0));
    }

    /// Rule 2's own case: a file that ended on a boundary, and grew.
    #[test]
    fn rule_12_a_final_frame_never_becomes_a_regular_one() {
        let (tags, resume) = begun(2 * F);
        let mut sealer = resume(2 * F as u64 + 1, 2);
        assert!(!sealer.is_final());
        let mut grown = frame(&sealer, 5);
        let error = sealer.seal(&mut grown, Some(&tags[1])).unwrap_err();
        assert!(matches!(error, Error::Differs(2)));
        assert!(grown.iter().all(|&byte| byte == 0));
    }
}
