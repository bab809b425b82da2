//! Clients that put and get objects of random sizes until they are told to
//! stop, and know what they were promised.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::http::{Body, Reply, send};
use crate::support::{Pattern, pattern};

/// Sizes: mostly of one part, some of several (parts have 5 MiB).
const SMALL: u64 = 64 << 10;
const LARGE: u64 = 7 << 20;

/// An acknowledged object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) key: String,
    pub(crate) seed: u64,
    pub(crate) len: u64,
}

/// What one client saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) acknowledged: Vec<Object>,
    pub(crate) read: usize,
    pub(crate) refused_puts: usize,
    pub(crate) refused_gets: usize,
    /// The longest that an answer took.
    pub(crate) longest: Duration,
    /// Whatever should not have been.
    pub(crate) wrong: Vec<String>,
}

/// SplitMix64, so that a run can be repeated.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

/// One client.
pub(crate) struct Client {
    pub(crate) socket: PathBuf,
    pub(crate) bucket: String,
    pub(crate) number: u64,
    /// Whether to read as well.
    pub(crate) reads: bool,
}

impl Client {
    pub(crate) fn run(&self, stop: &AtomicBool) -> Seen {
        let mut seen = Seen::default();
        let mut random = Random(self.number);
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            if self.reads && random.below(2) == 0 && !seen.acknowledged.is_empty() {
                let nth = random.below(seen.acknowledged.len() as u64);
                let object = seen.acknowledged[usize::try_from(nth).unwrap()].clone();
                self.get(&object, &mut seen);
            } else {
                count += 1;
                let most = if random.below(20) == 0 { LARGE } else { SMALL };
                let object = Object {
                    key: format!("{}/{count}", self.number),
                    seed: self.number << 32 | count,
                    len: random.below(most),
                };
                self.put(object, &mut seen);
            }
        }
        seen
    }

    fn put(&self, object: Object, seen: &mut Seen) {
        let mut body = Pattern::new(object.seed, object.len);
        let target = format!("/v1/objects/{}/{}", self.bucket, object.key);
        let body = Body::Sized(object.len, &mut body);
        match self.send("PUT", &target, body, &mut std::io::sink(), seen) {
            Some(reply) if reply.status == 201 => seen.acknowledged.push(object),
            Some(_) => seen.refused_puts += 1,
            None => {}
        }
    }

    fn get(&self, object: &Object, seen: &mut Seen) {
        let target = format!("/v1/objects/{}/{}", self.bucket, object.key);
        let mut body = Vec::new();
        match self.send("GET", &target, Body::None, &mut body, seen) {
            Some(reply) if reply.status == 200 => {
                seen.read += 1;
                if !reply.complete || !same(object, &body) {
                    seen.wrong.push(format!("{object:?} came back otherwise"));
                }
            }
            Some(_) => seen.refused_gets += 1,
            None => {}
        }
    }

    /// An answer that is a success or a 503 which says when to come back.
    fn send(
        &self,
        method: &str,
        target: &str,
        body: Body<'_>,
        sink: &mut dyn std::io::Write,
        seen: &mut Seen,
    ) -> Option<Reply> {
        let began = Instant::now();
        let reply = send(&self.socket, method, target, &[], body, sink);
        seen.longest = seen.longest.max(began.elapsed());
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                seen.wrong.push(format!("{method} {target}: {error}"));
                return None;
            }
        };
        let good = match reply.status {
            200 | 201 => true,
            503 => reply.header("retry-after").is_some(),
            _ => false,
        };
        if !good {
            let status = reply.status;
            seen.wrong.push(format!("{method} {target}: {status}"));
        }
        Some(reply)
    }
}

/// Whether these are the object's bytes.
pub(crate) fn same(object: &Object, bytes: &[u8]) -> bool {
    bytes == pattern(object.seed, object.len)
}
