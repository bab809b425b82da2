//! Reading a header that may not be complete yet.

use super::error::Error;
use super::limits::MAX_HEADER;

/// Why reading stopped.
pub(super) enum Stop {
    /// So far it is a header; it goes on behind the bytes at hand.
    NeedMore,
    /// It is none that we take.
    Refused(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// A position in the bytes at hand. Hands out slices of them and allocates
/// nothing; a length that leads past [`MAX_HEADER`] is refused at once, not
/// when the bytes have arrived.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How much was read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// All that was read.
    pub(super) fn consumed(&self) -> &'a [u8] {
        &self.bytes[..self.at]
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Stop> {
        let end = self
            .at
            .checked_add(len)
            .filter(|&end| end <= MAX_HEADER)
            .ok_or_else(|| Error::Limit(format!("the header is longer than {MAX_HEADER} bytes")))?;
        let field = self.bytes.get(self.at..end).ok_or(Stop::NeedMore)?;
        self.at = end;
        Ok(field)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        self.take(N)?.try_into().map_err(|_| Stop::NeedMore)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Stop> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Stop> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Stop> {
        self.array().map(u32::from_be_bytes)
    }

    /// A field with its u16 length in front.
    pub(super) fn counted(&mut self) -> Result<&'a [u8], Stop> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }
}
