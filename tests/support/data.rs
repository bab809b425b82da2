//! Test data of any size that is never held: the same seed gives the same
//! bytes, at any offset.

use std::io::{Read, Write};
use std::path::Path;

/// The bytes of one seed, as a reader.
#[derive(Clone, Debug)]
pub struct Pattern {
    seed: u64,
    at: u64,
    end: u64,
}

impl Pattern {
    /// `len` bytes from the start.
    pub fn new(seed: u64, len: u64) -> Self {
        Self::range(seed, 0, len)
    }

    /// The bytes from `start` up to `end`.
    pub fn range(seed: u64, start: u64, end: u64) -> Self {
        Self {
            seed,
            at: start,
            end: end.max(start),
        }
    }
}

/// The eight bytes of block `index` (SplitMix64's output function).
fn block(seed: u64, index: u64) -> [u8; 8] {
    let mut z =
        (seed ^ 0x5EED).wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)).to_le_bytes()
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let n = buffer.len().min(left);
        let mut rest = &mut buffer[..n];
        while !rest.is_empty() {
            let bytes = block(self.seed, self.at / 8);
            let skip = usize::try_from(self.at % 8).unwrap();
            let take = (8 - skip).min(rest.len());
            rest[..take].copy_from_slice(&bytes[skip..skip + take]);
            rest = &mut rest[take..];
            self.at += take as u64;
        }
        Ok(n)
    }
}

/// `len` bytes of a seed in memory, for small sizes.
pub fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Pattern::new(seed, len).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Writes `len` bytes of a seed to a file.
pub fn write_pattern(path: &Path, seed: u64, len: u64) {
    let mut file = std::fs::File::create(path).unwrap();
    std::io::copy(&mut Pattern::new(seed, len), &mut file).unwrap();
}

/// A sink that compares what is written to it with what a reader gives.
pub struct Compare<R> {
    expected: R,
    written: u64,
    difference: Option<u64>,
    buffer: Vec<u8>,
}

impl<R: Read> Compare<R> {
    /// Expects exactly the bytes of `expected`.
    pub fn with(expected: R) -> Self {
        Self {
            expected,
            written: 0,
            difference: None,
            buffer: Vec::new(),
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Asserts that everything written so far was right, even if it broke off.
    #[track_caller]
    pub fn no_difference(&self) {
        assert_eq!(self.difference, None, "the bytes differ at this offset");
    }

    /// Asserts that exactly the expected bytes were written.
    #[track_caller]
    pub fn finish(mut self) {
        self.no_difference();
        let mut rest = [0];
        assert_eq!(
            self.expected.read(&mut rest).unwrap(),
            0,
            "only {} bytes came",
            self.written
        );
    }
}

impl<R: Read> Write for Compare<R> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.buffer.resize(bytes.len(), 0);
        let mut have = 0;
        while have < bytes.len() {
            match self.expected.read(&mut self.buffer[have..])? {
                0 => break,
                n => have += n,
            }
        }
        if self.difference.is_none() && self.buffer[..have] != *bytes {
            let at = self.buffer[..have]
                .iter()
                .zip(bytes)
                .position(|(a, b)| a != b)
                .unwrap_or(have);
            self.difference = Some(self.written + at as u64);
        }
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// SHA-256 of everything a reader gives.
pub fn sha256(mut reader: impl Read) -> Vec<u8> {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => return digest.finish().as_ref().to_vec(),
            n => digest.update(&buffer[..n]),
        }
    }
}

/// Asserts that a file holds exactly these bytes of a seed.
#[track_caller]
pub fn assert_file(path: &Path, seed: u64, len: u64) {
    let mut sink = Compare::with(Pattern::new(seed, len));
    let mut file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    std::io::copy(&mut file, &mut sink).unwrap();
    sink.finish();
}
