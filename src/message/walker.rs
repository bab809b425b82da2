//! The first pass over a signed message: every frame and the signature are
//! verified before any plaintext may leave (SECURITY.md 3).

use zeroize::{Zeroize as _, Zeroizing};

use super::cipher::TAG_LEN;
use super::error::Error;
use super::frame::{FINAL_HEAD, FINAL_MARK, FRAME_HEAD, Kind};
use super::layout::Layout;
use super::opener::{Opener, signature_in, signature_len};
use super::signature::Verifier;

/// Takes everything behind a signed message's header, in order, in pieces of
/// any size; holds at most one frame. Plaintext does not leave it.
pub struct Walker<'a> {
    opener: &'a Opener,
    verifier: Verifier,
    /// The unit being collected: a frame, or the footer.
    unit: Zeroizing<Vec<u8>>,
    /// Sequence number of the frame being collected.
    seq: u32,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Frames,
    /// Behind the final frame, which had this much text.
    Footer {
        final_len: u64,
    },
    /// Something was refused: so is the rest.
    Failed,
}

/// Proof that a message's signature and every one of its frames verified.
///
/// It speaks of the bytes that were walked. A second read of the object gets
/// frames that authenticate under the data key, as in any message; so pin it
/// to the same version.
#[derive(Debug)]
pub struct Signed(Layout);

impl Signed {
    /// The layout with which the frames can now be opened.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.0
    }
}

impl<'a> Walker<'a> {
    pub(super) fn new(opener: &'a Opener, verifier: Verifier) -> Self {
        Self {
            opener,
            verifier,
            unit: Zeroizing::default(),
            seq: 1,
            stage: Stage::Frames,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Error::Altered`] or [`Error::Limit`] as soon as a frame or the footer
    /// cannot be right; the walk is over then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let pushed = self.try_push(bytes);
        if pushed.is_err() {
            self.stage = Stage::Failed;
            self.unit.zeroize();
        }
        pushed
    }

    /// Ends the walk: there are no more bytes.
    ///
    /// # Errors
    /// [`Error::Truncated`] before the end of the footer, [`Error::Altered`]
    /// for a bad signature or bytes behind it, [`Error::Misuse`] after
    /// [`push`](Self::push) failed.
    pub fn finish(self) -> Result<Signed, Error> {
        match self.stage {
            Stage::Frames => Err(Error::Truncated(format!(
                "it ends at or in frame {}, before the final one",
                self.seq
            ))),
            Stage::Failed => Err(Error::Misuse("the walk has failed")),
            Stage::Footer { final_len } => {
                self.verifier.finish(signature_in(&self.unit)?)?;
                let layout = Layout::of_walk(self.opener.header(), self.seq, final_len);
                Ok(Signed(layout))
            }
        }
    }

    fn try_push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            // Never 0: a complete unit was closed when it became so, but for
            // the footer, behind which nothing may follow.
            let missing = self.unit_len()?.saturating_sub(self.unit.len());
            if missing == 0 {
                return Err(match self.stage {
                    Stage::Failed => Error::Misuse("the walk has failed"),
                    _ => Error::altered("bytes follow the footer"),
                });
            }
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.unit.extend_from_slice(now);
            bytes = later;
            if self.unit.len() == self.unit_len()? && matches!(self.stage, Stage::Frames) {
                self.close_frame()?;
            }
        }
        Ok(())
    }

    /// How long the present unit is, as far as its bytes at hand tell.
    fn unit_len(&self) -> Result<usize, Error> {
        let frame_length = self.opener.header().frame_length() as usize;
        match self.stage {
            Stage::Failed => Ok(0),
            Stage::Footer { .. } => match self.unit.first_chunk::<2>() {
                Some(len) => Ok(2 + signature_len(*len)?),
                None => Ok(2),
            },
            Stage::Frames => match self.unit.first_chunk::<4>() {
                None => Ok(4),
                Some(&FINAL_MARK) => match self.final_len_field() {
                    None => Ok(FINAL_HEAD),
                    Some(len) if len as usize > frame_length => Err(Error::Altered(format!(
                        "frame {}: longer than a frame",
                        self.seq
                    ))),
                    Some(len) => Ok(FINAL_HEAD + len as usize + TAG_LEN),
                },
                Some(_) => Ok(FRAME_HEAD + frame_length + TAG_LEN),
            },
        }
    }

    /// The final frame's length field, once its head is at hand.
    fn final_len_field(&self) -> Option<u32> {
        let head = self.unit.first_chunk::<FINAL_HEAD>()?;
        head.last_chunk::<4>().copied().map(u32::from_be_bytes)
    }

    fn close_frame(&mut self) -> Result<(), Error> {
        self.verifier.update(&self.unit);
        let is_final = self.unit.starts_with(&FINAL_MARK);
        let kind = if is_final { Kind::Final } else { Kind::Regular };
        let text = self.opener.open_at(kind, self.seq, &mut self.unit)?;
        // Plaintext now: gone before anything else happens.
        self.unit.zeroize();
        if is_final {
            self.stage = Stage::Footer {
                final_len: text.len() as u64,
            };
        } else {
            self.seq = self
                .seq
                .checked_add(1)
                .ok_or_else(|| Error::Limit("more than 2^32 - 1 frames".to_owned()))?;
        }
        Ok(())
    }
}
