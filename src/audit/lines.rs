//! Reading a log's records in their order, without checking them.

use std::io::{self, BufRead as _, Read as _};

use super::disk::MAX_TORN;
use super::verify::Files;

/// Hands over each whole line, without its newline, until `take` says that it
/// has enough. What is longer than any record ends it as well.
///
/// # Errors
/// A file cannot be read.
pub fn each_line(files: &Files, mut take: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut line = Vec::new();
    for (_, content) in &files.segments {
        let mut reader = content.open()?;
        loop {
            line.clear();
            (&mut reader)
                .take(MAX_TORN as u64)
                .read_until(b'\n', &mut line)?;
            let Some(record) = line.strip_suffix(b"\n") else {
                if line.is_empty() {
                    break;
                }
                return Ok(());
            };
            if !take(record) {
                return Ok(());
            }
        }
    }
    Ok(())
}
