//! Reading a manifest, line by line, within bounds.

use std::io::{BufRead as _, BufReader, Read};

use zstd::stream::read::Decoder;

use super::entry::Entry;
use super::path::RelPath;
use super::wire::{Counts, End, FORMAT, Head, Line, VERSION};
use super::{Error, MAX_LINE, MAX_WINDOW_LOG};

/// Reads one manifest.
pub struct Reader<R: Read> {
    lines: BufReader<Decoder<'static, BufReader<R>>>,
    buffer: Vec<u8>,
    line: u64,
    head: Head,
    last: Option<RelPath>,
    counts: Counts,
    end: Option<End>,
}

impl<R: Read> Reader<R> {
    /// Reads the head.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(source: R) -> Result<Self, Error> {
        let mut decoder = Decoder::new(source)?;
        decoder.window_log_max(MAX_WINDOW_LOG)?;
        let mut lines = BufReader::new(decoder);
        let mut buffer = Vec::new();
        let head = match read_line(&mut lines, &mut buffer, 1)? {
            Some(Line::Head(head)) => head,
            Some(_) => return Err(malformed(1, "no head")),
            None => return Err(Error::Unfinished(0)),
        };
        if head.format != FORMAT || head.version != VERSION {
            let why = format!("unknown format {:?} {}", head.format, head.version);
            return Err(malformed(1, &why));
        }
        if !head.prefix.is_empty() && !head.prefix.ends_with('/') {
            return Err(malformed(1, "a prefix that does not end in a slash"));
        }
        Ok(Self {
            lines,
            buffer,
            line: 1,
            head,
            last: None,
            counts: Counts::default(),
            end: None,
        })
    }

    /// The head line.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The end line, once [`next`](Self::next) has returned `None`.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The next entry, later in path order than the last; `None` only behind
    /// an end line that agrees with what came.
    ///
    /// # Errors
    /// [`Error`].
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator cannot fail once and for all"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        if self.end.is_some() {
            return Ok(None);
        }
        let number = self.line + 1;
        let Some(line) = read_line(&mut self.lines, &mut self.buffer, number)? else {
            return Err(Error::Unfinished(self.line));
        };
        self.line = number;
        match line {
            Line::Entry(wire) => {
                let entry = wire.decode().map_err(|why| malformed(number, &why))?;
                if self.last.as_ref().is_some_and(|last| *last >= entry.path) {
                    return Err(malformed(number, "entries are out of order"));
                }
                self.last = Some(entry.path.clone());
                self.counts.add(&entry);
                Ok(Some(entry))
            }
            Line::End(end) => {
                if end.counts != self.counts {
                    return Err(malformed(number, "the counts are not those of the entries"));
                }
                if read_line(&mut self.lines, &mut self.buffer, number + 1)?.is_some() {
                    return Err(malformed(number + 1, "something follows the end"));
                }
                self.end = Some(end);
                Ok(None)
            }
            Line::Head(_) => Err(malformed(number, "a second head")),
        }
    }
}

fn read_line(
    lines: &mut impl std::io::BufRead,
    buffer: &mut Vec<u8>,
    number: u64,
) -> Result<Option<Line>, Error> {
    buffer.clear();
    let bound = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    let read = lines.by_ref().take(bound).read_until(b'\n', buffer)?;
    if read == 0 {
        return Ok(None);
    }
    if buffer.last() != Some(&b'\n') {
        let why = if read == MAX_LINE {
            "too long"
        } else {
            "cut off"
        };
        return Err(malformed(number, why));
    }
    serde_json::from_slice(buffer)
        .map(Some)
        .map_err(|error| malformed(number, &error.to_string()))
}

fn malformed(line: u64, why: &str) -> Error {
    Error::Malformed {
        line,
        why: why.to_owned(),
    }
}
