//! Byte ranges: as they are asked for, and as the store answers them.

use super::StoreError;

/// A part of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// From the first to the last byte, both included.
    Span {
        /// First byte.
        start: u64,
        /// Last byte; what lies beyond the object's end is left out.
        end_inclusive: u64,
    },
    /// The last bytes; all, if there are fewer.
    Suffix(u64),
}

impl ByteRange {
    /// From byte `start` to byte `end_inclusive`.
    #[must_use]
    pub const fn new(start: u64, end_inclusive: u64) -> Self {
        Self::Span {
            start,
            end_inclusive,
        }
    }

    /// The last `count` bytes.
    #[must_use]
    pub const fn suffix(count: u64) -> Self {
        Self::Suffix(count)
    }

    pub(super) fn header(self) -> Result<String, StoreError> {
        match self {
            Self::Span {
                start,
                end_inclusive,
            } if start <= end_inclusive => Ok(format!("bytes={start}-{end_inclusive}")),
            Self::Suffix(count) if count > 0 => Ok(format!("bytes=-{count}")),
            _ => Err(StoreError::invalid("an empty range")),
        }
    }

    /// The first byte and the number of bytes that this is of `total`.
    pub(super) fn of(self, total: u64) -> (u64, u64) {
        match self {
            Self::Span {
                start,
                end_inclusive,
            } => (
                start,
                end_inclusive
                    .saturating_add(1)
                    .min(total)
                    .saturating_sub(start),
            ),
            Self::Suffix(count) => (total.saturating_sub(count), count.min(total)),
        }
    }
}

/// `bytes 0-99/1234` (RFC 9110, 14.4).
pub(super) fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, total) = (start.parse().ok()?, end.parse().ok()?, total.parse().ok()?);
    (start <= end && end < total).then_some((start, end, total))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_taken_at_their_word_only_if_they_make_sense() {
        assert_eq!(parse_content_range("bytes 0-99/1234"), Some((0, 99, 1234)));
        for bad in [
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes 0-9/*",
            "bytes */0",
            "0-9/10",
            "bytes a-b/c",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_are_cut_to_the_object() {
        assert_eq!(ByteRange::new(0, 9).of(100), (0, 10));
        assert_eq!(ByteRange::new(95, 200).of(100), (95, 5));
        assert_eq!(ByteRange::suffix(30).of(100), (70, 30));
        assert_eq!(ByteRange::suffix(300).of(100), (0, 100));
        assert_eq!(ByteRange::new(0, u64::MAX).of(100), (0, 100));
        ByteRange::suffix(0).header().unwrap_err();
        ByteRange::new(2, 1).header().unwrap_err();
    }
}
