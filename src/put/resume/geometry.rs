//! Which frames are in which part: fixed before the first is sealed.

use crate::api::{Error, ErrorKind};
use crate::catalog::Journal;
use crate::engine::Engine;
use crate::fault::message_error;
use crate::message::{Resealer, Sealer};
use crate::store::PartPlan;

/// Bytes around a regular frame's plaintext.
const FRAME_OVERHEAD: u64 = (Sealer::FRAME_HEAD + Sealer::TAG_LEN) as u64;
/// By how much the final frame is longer.
const FINAL_MORE: u64 = (Sealer::FINAL_HEAD - Sealer::FRAME_HEAD) as u64;

/// The first part has the header and `first_frames` frames, every other one
/// `part_frames`, the last what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    length: u64,
    frame_length: u32,
    pub(super) first_frames: u32,
    pub(super) part_frames: u32,
    /// In all: the final one's number.
    pub(super) frames: u32,
}

impl Geometry {
    /// Of a new upload.
    pub(super) fn new(engine: &Engine, length: u64, header: usize) -> Result<Self, Error> {
        let settings = &engine.settings;
        let frame_length = settings.frame_length;
        let frames = Resealer::frames(length, frame_length).map_err(|e| message_error(&e))?;
        let frame = u64::from(frame_length) + FRAME_OVERHEAD;
        let header = header as u64;
        let total = length
            .saturating_add(u64::from(frames) * FRAME_OVERHEAD)
            .saturating_add(FINAL_MORE + header);
        let too_large = |why: String| Error::new(ErrorKind::TooLarge, why);
        let plan = PartPlan::known(total, settings.part_size, frame, settings.limits)
            .map_err(|e| too_large(e.to_string()))?;
        let size = plan.target(1);
        let in_part = |bytes: u64| {
            let frames = u32::try_from(bytes.div_ceil(frame).max(1));
            frames.map_err(|_| too_large(format!("parts of {size} bytes have too many frames")))
        };
        let part_frames = in_part(size)?;
        let mut first_frames = in_part(size.saturating_sub(header))?;
        let first = header + u64::from(first_frames) * frame + FINAL_MORE;
        if first > settings.limits.max_part && first_frames > 1 {
            first_frames -= 1;
        }
        Ok(Self {
            length,
            frame_length,
            first_frames,
            part_frames,
            frames,
        })
    }

    /// Of one in the journal.
    pub(super) fn of(journal: &Journal) -> Self {
        Self {
            length: journal.length,
            frame_length: journal.frame_length,
            first_frames: journal.first_frames.max(1),
            part_frames: journal.part_frames.max(1),
            frames: journal.frames,
        }
    }

    /// Whether a new upload would be the same, with what is configured now.
    pub(super) fn fits(&self, engine: &Engine, journal: &Journal) -> bool {
        let settings = &engine.settings;
        settings.part_size == journal.part_size
            && settings.frame_length == journal.frame_length
            && settings.checksum == journal.checksum
            && Self::new(engine, journal.length, journal.header.len()).is_ok_and(|new| new == *self)
    }

    /// Parts in all.
    pub(super) fn parts(&self) -> u32 {
        let behind = self.frames.saturating_sub(self.first_frames);
        1 + behind.div_ceil(self.part_frames)
    }

    /// The first and last frame of a part, from 1; `None` behind the last.
    pub(super) fn span(&self, number: u32) -> Option<(u32, u32)> {
        let first = self.first_of(number)?;
        let last = self.first_of(number + 1)? - 1;
        (first <= self.frames).then(|| (first, last.min(self.frames)))
    }

    /// Plaintext bytes before a part; all of them behind the last.
    pub(super) fn offset_of(&self, number: u32) -> u64 {
        match self.span(number) {
            Some((first, _)) => u64::from(first - 1) * u64::from(self.frame_length),
            None => self.length,
        }
    }

    /// Bytes of every part but the first and the last.
    pub(super) fn part_bytes(&self) -> u64 {
        let frame = u64::from(self.frame_length) + FRAME_OVERHEAD;
        u64::from(self.part_frames.max(self.first_frames)) * frame
    }

    fn first_of(&self, number: u32) -> Option<u32> {
        match number {
            0 => None,
            1 => Some(1),
            _ => (number - 2)
                .checked_mul(self.part_frames)?
                .checked_add(self.first_frames)?
                .checked_add(1),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn geometry(length: u64) -> Geometry {
        Geometry {
            length,
            frame_length: 100,
            first_frames: 3,
            part_frames: 4,
            frames: Resealer::frames(length, 100).unwrap(),
        }
    }

    #[test]
    fn rule_12_parts_have_every_frame_once() {
        for length in [0, 1, 99, 100, 101, 300, 301, 700, 701, 5000, 5001] {
            let geometry = geometry(length);
            let mut next = 1;
            for number in 1..=geometry.parts() {
                let (first, last) = geometry.span(number).unwrap();
                assert_eq!(first, next, "{length}: part {number}");
                assert_eq!(geometry.offset_of(number), u64::from(first - 1) * 100);
                next = last + 1;
            }
            assert_eq!(next, geometry.frames + 1, "{length}");
            assert_eq!(geometry.span(geometry.parts() + 1), None);
            assert_eq!(geometry.offset_of(geometry.parts() + 1), length);
        }
        assert_eq!(geometry(300).parts(), 1);
        assert_eq!(geometry(301).parts(), 2);
        assert_eq!(geometry(300).frames, 3, "the final frame is full");
    }
}
