//! Reading 1 MiB out of the middle of 1 GiB, from a store that takes its time.

use std::cell::RefCell;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::measure::Spread;
use super::rig::Rig;
use super::section::{Aim, Section, short};
use super::store::Store;
use super::support::shim::{C_Decrypt, Shim};
use super::support::{TokenKind, http};
use super::{BUCKET, GIB, Options};

/// Bytes asked for.
const LEN: u64 = 1 << 20;
/// What the store adds to each answer: a region's round trip, and so much that
/// everything else is little beside it.
const ROUND_TRIP: Duration = Duration::from_millis(20);
/// Reads, each at another place.
const READS: u64 = 20;

/// Notes when the first byte came.
struct First(Option<Instant>);

impl Write for First {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.get_or_insert_with(Instant::now);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn run(store: &RefCell<Store>, _: &Options) -> Section {
    let shim = Shim::new(&TokenKind::SoftHsm.module());
    let rig = Rig::start(&store.borrow().http, |config| shim.configure(config));
    let target = format!("/v1/objects/{BUCKET}/ranges");
    store.borrow_mut().keep(usize::MAX);
    let mut zeros = std::io::Read::take(std::io::repeat(0), GIB);
    let put = rig
        .agent
        .request("PUT", &target, &[], http::Body::Sized(GIB, &mut zeros));
    assert_eq!(put.status, 201, "{}", put.text());
    store.borrow_mut().keep(0);
    store.borrow_mut().latency(ROUND_TRIP);
    let (mut requests, mut fetched, mut first, mut unwraps) = (vec![], vec![], vec![], vec![]);
    for read in 0..READS {
        // Nowhere near the beginning of a part or a frame.
        let start = (2 * read + 1) * (GIB / (2 * READS + 1)) + 12_345;
        let range = format!("bytes={start}-{}", start + LEN - 1);
        let before = shim.buffered(C_Decrypt);
        store.borrow_mut().count();
        let (begun, mut sink) = (Instant::now(), First(None));
        let mut stream = rig.agent.connect();
        write!(
            stream,
            "GET {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nRange: {range}\r\n\r\n"
        )
        .unwrap();
        let reply = http::read_reply(&mut BufReader::new(stream), "GET", &mut sink).unwrap();
        assert_eq!((reply.status, reply.received), (206, LEN), "{range}");
        let counted = store.borrow_mut().count();
        requests.push(counted.requests as f64);
        fetched.push(counted.sent as f64 / f64::from(1 << 20));
        first.push((sink.0.unwrap() - begun).as_secs_f64() * 1e3);
        unwraps.push((shim.buffered(C_Decrypt) - before) as f64);
    }
    // What that comes to from here, connection and timers included.
    let round_trip = Spread::of((0..READS).map(|_| head(&store.borrow().http)));
    store.borrow_mut().latency(Duration::ZERO);
    // The first read makes the connection to the store.
    let of = |values: &[f64]| Spread::of(values.iter().copied());
    let (requests, fetched, first) = (of(&requests), of(&fetched), of(&first));
    let round_trips = first.median / round_trip.median;
    let text = format!(
        "| S3 requests | MiB fetched | time to the first byte, ms | in the store's round trips ({:.1} ms) | token calls |\n|---|---|---|---|---|\n| {requests:.0} | {fetched:.2} | {first:.1} | {} | {:.0} |\n",
        round_trip.median,
        short(round_trips),
        of(&unwraps)
    );
    eprintln!("{text}");
    let what = |what| format!("1 MiB out of 1 GiB, {what}");
    Section {
        title: "A range",
        text,
        aims: vec![
            Aim::at_most(what("S3 requests"), 3.0, requests.most, ""),
            Aim::at_most(what("fetched"), 2.0, fetched.most, " MiB"),
            Aim::at_most(
                what("time to the first byte, round trips of the store (and one token call)"),
                3.0,
                round_trips,
                "",
            ),
        ],
    }
}

/// Milliseconds of a request to the store that needs nothing but its answer,
/// on a connection that is there.
fn head(endpoint: &str) -> f64 {
    let stream = TcpStream::connect(endpoint.strip_prefix("http://").unwrap()).unwrap();
    let begun = Instant::now();
    write!(
        &stream,
        "HEAD /{BUCKET}/ranges HTTP/1.1\r\nHost: store\r\n\r\n"
    )
    .unwrap();
    let mut sink = std::io::sink();
    let reply = http::read_reply(&mut BufReader::new(&stream), "HEAD", &mut sink).unwrap();
    assert_eq!(reply.status, 200);
    begun.elapsed().as_secs_f64() * 1e3
}
