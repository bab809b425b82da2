//! Writing a manifest: entries come in order, and go out compressed.

use std::io::Write;

use zstd::stream::write::Encoder;

use super::entry::Entry;
use super::path::RelPath;
use super::wire::{Counts, End, Head, Line, WireEntry};
use super::{Error, MAX_LINE};

/// zstd's own default: beyond it, time grows faster than size shrinks.
const LEVEL: i32 = 3;

/// Writes one manifest.
///
/// The stream may consist of several zstd frames ([`pause`](Self::pause)):
/// so much of it can be stored while the run goes on.
pub struct Writer<W: Write> {
    out: Option<Encoder<'static, W>>,
    last: Option<RelPath>,
    counts: Counts,
    lines: u64,
}

impl<W: Write> Writer<W> {
    /// Begins with the head line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(out: W, head: &Head) -> Result<Self, Error> {
        let mut writer = Self {
            out: Some(Encoder::new(out, LEVEL)?),
            last: None,
            counts: Counts::default(),
            lines: 0,
        };
        writer.line(&Line::Head(head.clone()))?;
        Ok(writer)
    }

    /// Goes on behind what another writer [paused](Self::pause) at: a zstd
    /// frame of its own, without a head.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resume(out: W, last: Option<RelPath>, counts: Counts) -> Result<Self, Error> {
        Ok(Self {
            out: Some(Encoder::new(out, LEVEL)?),
            last,
            counts,
            lines: counts.entries + 1,
        })
    }

    /// The next entry, which must come after the last in path order.
    ///
    /// # Errors
    /// [`Error::Malformed`] out of order or too long, [`Error::Io`].
    pub fn entry(&mut self, entry: &Entry) -> Result<(), Error> {
        if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
            return Err(self.malformed("entries are out of order"));
        }
        self.line(&Line::Entry(Box::new(WireEntry::encode(entry))))?;
        self.last = Some(entry.path.clone());
        self.counts.add(entry);
        Ok(())
    }

    /// What was written so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Ends the zstd frame, so that everything so far stands in the output,
    /// and begins another. With what a [resumed](Self::resume) writer ends
    /// behind them, the bytes so far are a manifest of their own.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pause(&mut self) -> Result<&mut W, Error> {
        let out = self.encoder()?.finish()?;
        Ok(self.out.insert(Encoder::new(out, LEVEL)?).get_mut())
    }

    /// The path of the last entry.
    #[must_use]
    pub fn last(&self) -> Option<&RelPath> {
        self.last.as_ref()
    }

    /// The end line; the output is complete, and so was the run, or not.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self, complete: bool) -> Result<W, Error> {
        let end = End {
            complete,
            counts: self.counts,
        };
        self.line(&Line::End(end))?;
        Ok(self.encoder()?.finish()?)
    }

    fn encoder(&mut self) -> Result<Encoder<'static, W>, Error> {
        self.out
            .take()
            .ok_or_else(|| std::io::Error::other("writing failed before").into())
    }

    fn line(&mut self, line: &Line) -> Result<(), Error> {
        let mut text = serde_json::to_vec(line).map_err(std::io::Error::from)?;
        text.push(b'\n');
        if text.len() > MAX_LINE {
            return Err(self.malformed("an entry is too long"));
        }
        self.lines += 1;
        let Some(out) = &mut self.out else {
            return Err(std::io::Error::other("writing failed before").into());
        };
        Ok(out.write_all(&text)?)
    }

    fn malformed(&self, why: &str) -> Error {
        Error::Malformed {
            line: self.lines + 1,
            why: why.to_owned(),
        }
    }
}
