//! Another host's catalogue: an export that it stored through Strongroom,
//! read back as any other object, verified to its last byte.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::api::{EXPORT_FORMAT, Error, ErrorKind, ExportEnd, ExportHead, RetireReport};
use crate::catalog::Entry;
use crate::config::Writer;
use crate::engine::Engine;
use crate::get::{self, GetRequest, Wanted};
use crate::store::Place;

/// Longest line, in bytes: a key of 1,024 bytes, escaped, and words.
const MAX_LINE: usize = 1 << 20;

/// What another host's catalogue says.
pub(super) struct Export {
    head: ExportHead,
    pub(super) entries: Vec<Entry>,
}

/// Reads a writer's export.
///
/// # Errors
/// It is not there, does not open, or is not whole.
pub(super) async fn read(engine: &Arc<Engine>, writer: &Writer) -> Result<Export, Error> {
    let mut reading = Reading::default();
    each_line(engine, writer, |line| reading.line(line).map(|()| false)).await?;
    reading.end()
}

/// Whether a writer's catalogue has this message at this place. Read line by
/// line: it may be of any size.
///
/// # Errors
/// It is not there, or does not open.
pub async fn has(
    engine: &Arc<Engine>,
    writer: &Writer,
    place: &Place,
    message_id: &str,
) -> Result<bool, Error> {
    each_line(engine, writer, |line| {
        // The first line and the last are no entries.
        Ok(serde_json::from_slice::<Entry>(line).is_ok_and(|entry| {
            entry.message_id == message_id && entry.bucket == place.bucket && entry.key == place.key
        }))
    })
    .await
}

/// Hands over the lines of a writer's export until `take` has enough, and
/// says whether it had.
async fn each_line(
    engine: &Arc<Engine>,
    writer: &Writer,
    mut take: impl FnMut(&[u8]) -> Result<bool, Error>,
) -> Result<bool, Error> {
    let request = GetRequest {
        place: Place::new(&writer.bucket, &writer.key),
        version_id: None,
        wanted: Wanted::Whole,
        allow_unbound: false,
        allow_uncommitted: false,
        bound_to: None,
        rings: None,
    };
    let (_, mut body) = get::get(engine, request).await?;
    let mut buffer = Vec::new();
    while let Some(bytes) = body.next().await {
        buffer.extend_from_slice(&bytes?);
        let mut begin = 0;
        while let Some(length) = buffer[begin..].iter().position(|byte| *byte == b'\n') {
            if take(&buffer[begin..begin + length])? {
                return Ok(true);
            }
            begin += length + 1;
        }
        buffer.drain(..begin);
        if buffer.len() > MAX_LINE {
            return Err(senseless("a line has no end"));
        }
    }
    if !buffer.is_empty() {
        return Err(senseless("its last line is cut off"));
    }
    Ok(false)
}

/// An export being read.
#[derive(Default)]
struct Reading {
    head: Option<ExportHead>,
    entries: Vec<Entry>,
    ended: bool,
}

impl Reading {
    fn line(&mut self, line: &[u8]) -> Result<(), Error> {
        if self.ended {
            return Err(senseless("it goes on behind its last line"));
        }
        if self.head.is_none() {
            let head: ExportHead =
                serde_json::from_slice(line).map_err(|_| senseless("its first line is none"))?;
            if head.format != EXPORT_FORMAT {
                return Err(senseless("it has another format"));
            }
            self.head = Some(head);
            return Ok(());
        }
        if let Ok(end) = serde_json::from_slice::<ExportEnd>(line) {
            if end.entries != self.entries.len() as u64 {
                return Err(senseless("entries are missing"));
            }
            self.ended = true;
            return Ok(());
        }
        let entry = serde_json::from_slice(line).map_err(|_| senseless("a line is no entry"))?;
        self.entries.push(entry);
        Ok(())
    }

    fn end(self) -> Result<Export, Error> {
        match self.head.filter(|_| self.ended) {
            Some(head) => Ok(Export {
                head,
                entries: self.entries,
            }),
            None => Err(senseless("it is not whole: its last line is missing")),
        }
    }
}

fn senseless(why: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("it is no export of a catalogue: {why}"),
    )
}

impl Export {
    pub(super) fn buckets(&self) -> BTreeSet<String> {
        self.entries.iter().map(|e| e.bucket.clone()).collect()
    }

    /// What its first line has against retiring the key.
    pub(super) fn judge(&self, writer: &Writer, report: &mut RetireReport, max_age: u64) {
        let name = report.key.clone();
        let age = self.head.time.parse().ok().and_then(|time: Timestamp| {
            u64::try_from(Timestamp::now().duration_since(time).as_secs()).ok()
        });
        if age.is_none_or(|age| age > max_age) {
            let why = format!(
                "its catalogue is of {}: it may know of later uses",
                self.head.time
            );
            report.refuse("writer", &writer.name, why);
        }
        if self.head.active.contains(&name) {
            report.refuse("writer", &writer.name, "it wraps under this key");
        }
        for (key, what) in &self.head.dependents {
            if *key == name {
                report.refuse("writer", &writer.name, format!("it has {what}"));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HEAD: &str = r#"{"format":"strongroom/catalogue/1","host":"h","time":"2026-01-01T00:00:00Z","schema":3,"active":["k"],"dependents":[]}"#;
    const ENTRY: &str = r#"{"id":1,"bucket":"b","key":"k","message_id":"00","wrapping_key":"k","created":1,"stored_size":2}"#;

    fn read(lines: &[&str]) -> Result<Export, Error> {
        let mut reading = Reading::default();
        for line in lines {
            reading.line(line.as_bytes())?;
        }
        reading.end()
    }

    #[test]
    fn rule_11_an_export_that_is_not_whole_is_none() {
        let end = r#"{"entries":1}"#;
        assert_eq!(read(&[HEAD, ENTRY, end]).unwrap().entries.len(), 1);
        for lines in [
            &[HEAD, ENTRY][..],
            &[HEAD, end],
            &[HEAD, ENTRY, ENTRY, end],
            &[ENTRY, end],
            &[HEAD, ENTRY, end, ENTRY],
            &[],
        ] {
            assert!(read(lines).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn rule_11_an_old_export_and_one_of_a_host_that_wraps_refuse() {
        let export = read(&[HEAD, ENTRY, r#"{"entries":1}"#]).unwrap();
        let writer = Writer {
            name: "w".into(),
            bucket: "b".into(),
            key: "c".into(),
        };
        let reasons = |key: &str, max_age| {
            let mut report = RetireReport {
                key: key.into(),
                ..RetireReport::default()
            };
            export.judge(&writer, &mut report, max_age);
            report.total_reasons
        };
        assert_eq!(reasons("k", u64::MAX), 1);
        assert_eq!(reasons("other", u64::MAX), 0);
        assert_eq!(reasons("other", 60), 1);
    }
}
