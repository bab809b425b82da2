//! Which frames are fetched together.

use std::ops::{Range, RangeInclusive};

use crate::message::Layout;

/// Frames that one ranged GET fetches: as many as fit `part_size`, at least
/// one, in order, covering exactly the plaintext `span`.
pub(super) struct Chunks {
    next: u32,
    last: u32,
    per_chunk: u32,
}

impl Chunks {
    pub(super) fn new(layout: &Layout, span: &Range<u64>, part_size: u64) -> Self {
        if span.is_empty() {
            return Self {
                next: 1,
                last: 0,
                per_chunk: 1,
            };
        }
        let frames = layout.frames_covering(span.clone());
        let stored = layout.frame_span(*frames.start());
        let frame = (stored.end - stored.start).max(1);
        Self {
            next: *frames.start(),
            last: *frames.end(),
            per_chunk: u32::try_from(part_size / frame).unwrap_or(u32::MAX).max(1),
        }
    }

    /// Those frames of the next chunk that lie wholly in the first
    /// `available` bytes of the object: they need no fetching.
    pub(super) fn take_available(
        &mut self,
        layout: &Layout,
        available: u64,
    ) -> Option<RangeInclusive<u32>> {
        let first = self.next;
        while self.next <= self.last && layout.frame_span(self.next).end <= available {
            self.next += 1;
        }
        (self.next > first).then(|| first..=self.next - 1)
    }

    /// The frames of the next chunk, if any is left.
    pub(super) fn peek(&self) -> Option<RangeInclusive<u32>> {
        if self.next > self.last {
            return None;
        }
        let last = self.next.saturating_add(self.per_chunk - 1).min(self.last);
        Some(self.next..=last)
    }

    /// Goes on past the chunk that `peek` showed.
    pub(super) fn advance(&mut self) {
        if let Some(frames) = self.peek() {
            // Sequence numbers end at 2^32 - 1, which is then past the last.
            match frames.end().checked_add(1) {
                Some(next) => self.next = next,
                None => self.last = 0,
            }
        }
    }
}
