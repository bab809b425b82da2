//! Objects of every size, from files and from pipes whose length nobody
//! knows, within a memory budget that does not depend on any of them.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::process::eventually;
use support::{Agent, Body, Compare, Hsm, Pattern, Weed, temp_dir, value, write_pattern};

/// Bytes of one KiB, MiB and GiB.
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What the agent may take beyond `memory_budget`, in bytes: the issue's own
/// allowance for code, stacks, connections and SQLite.
const BEYOND: u64 = 64 * MIB;

/// The largest object: 6 GiB with STRONGROOM_SOAK=1, else what a continuous
/// integration run has time for.
fn largest() -> u64 {
    let soak = std::env::var_os("STRONGROOM_SOAK").is_some_and(|v| v == "1");
    if soak { 6 * GIB } else { GIB }
}

fn agent(hsm: &Hsm, weed: &Weed, budget: &str) -> Agent {
    Agent::start(hsm, weed, |config| {
        config["agent"]["memory_budget"] = value(budget);
    })
}

fn status(agent: &Agent) -> strongroom::api::Status {
    agent.http("GET", "/v1/status", &[], b"").parse()
}

fn target(bucket: &str, key: &str) -> String {
    format!("/v1/objects/{bucket}/{key}")
}

/// Fetches an object and compares it on the fly.
#[track_caller]
fn verify(agent: &Agent, bucket: &str, key: &str, seed: u64, size: u64) {
    let mut sink = Compare::with(Pattern::new(seed, size));
    let reply = agent.stream("GET", &target(bucket, key), &[], Body::None, &mut sink);
    assert_eq!((reply.status, reply.complete), (200, true), "{key}");
    assert_eq!(reply.content_length(), Some(size), "{key}");
    sink.finish();
}

/// Asserts that the server never had more resident than its budget and the
/// allowance; prints what it had.
#[track_caller]
fn within_budget(agent: &Agent, what: &str) {
    let status = status(agent);
    let peak = agent.server().peak_memory();
    println!(
        "{what}: the server's peak memory was {} MiB of a budget of {} MiB",
        peak / MIB,
        status.memory_budget / MIB
    );
    assert!(peak < status.memory_budget + BEYOND, "{what}: {peak} bytes");
    assert_eq!(status.memory_in_use, 0, "{what}");
}

#[test]
fn every_size_comes_back_from_a_file_and_from_a_pipe() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent(&hsm, weed, "256 MiB");
    let bucket = weed.bucket("sizes");
    let (frame, part) = (256 * KIB, 8 * MIB);
    // A part ends with the frame that reaches its size: 32 frames of 256 KiB
    // and their overhead, less the header.
    let sizes = [
        0,
        1,
        15,
        16,
        17,
        4095,
        4096,
        65_535,
        65_536,
        65_537,
        frame - 1,
        frame,
        frame + 1,
        2 * frame,
        3 * frame + 17,
        part - frame,
        part - frame + 1,
        part - 1,
        part,
        part + 1,
        part + frame,
        2 * part,
        2 * part + frame - 1,
        40 * MIB,
        100 * MIB + 1,
    ];
    let dir = temp_dir();
    let path = dir.path().join("source").display().to_string();
    for (seed, size) in (1..).zip(sizes) {
        write_pattern(path.as_ref(), seed, size);
        let (file, pipe) = (format!("file/{size}"), format!("pipe/{size}"));
        agent
            .cli(["put", &path, &format!("s3://{bucket}/{file}")])
            .ok();
        let mut source = Pattern::new(seed, size);
        agent
            .cli_reading(["put", "-", &format!("s3://{bucket}/{pipe}")], &mut source)
            .ok();
        for key in [&file, &pipe] {
            verify(&agent, &bucket, key, seed, size);
            let head = agent.http("HEAD", &target(&bucket, key), &[], b"");
            assert_eq!(head.content_length(), Some(size), "{key}");
        }
    }
    // By the command line, to a file and to a pipe.
    let (seed, size) = (sizes.len() as u64, sizes[sizes.len() - 1]);
    let url = format!("s3://{bucket}/file/{size}");
    agent.cli(["get", &url, &path]).ok();
    support::data::assert_file(path.as_ref(), seed, size);
    let run = agent.cli(["get", &url, "-"]).ok();
    let mut sink = Compare::with(Pattern::new(seed, size));
    std::io::copy(&mut &run.stdout[..], &mut sink).unwrap();
    sink.finish();
    assert_eq!(weed.list_uploads(&bucket), []);
    println!("{} sizes, each from a file and from a pipe", sizes.len());
    within_budget(&agent, "sizes to 100 MiB");
}

/// A body that is read from a pattern, announced or in chunks.
fn put_pattern(agent: &Agent, bucket: &str, key: &str, seed: u64, size: u64, announced: bool) {
    let mut source = Pattern::new(seed, size);
    let body = if announced {
        Body::Sized(size, &mut source)
    } else {
        Body::Chunked(&mut source)
    };
    let began = Instant::now();
    let reply = agent.request("PUT", &target(bucket, key), &[], body);
    assert_eq!(reply.status, 201, "{}", reply.text());
    let receipt: strongroom::api::Receipt = reply.parse();
    assert_eq!(receipt.plaintext_size, size);
    println!("{key}: {} MiB in {:?}", size / MIB, began.elapsed());
}

#[test]
fn the_largest_announced_object_fits_the_default_budget() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent(&hsm, weed, "256 MiB");
    let bucket = weed.bucket("largest-announced");
    put_pattern(&agent, &bucket, "announced", 11, largest(), true);
    within_budget(&agent, "its put");
    verify(&agent, &bucket, "announced", 11, largest());
    within_budget(&agent, "its get");
    weed.raw_delete(&bucket, "announced");
}

#[test]
fn the_largest_unannounced_object_fits_a_small_budget() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent(&hsm, weed, "48 MiB");
    let bucket = weed.bucket("largest-pipe");
    let mut source = Pattern::new(12, largest());
    let began = Instant::now();
    agent
        .cli_reading(["put", "-", &format!("s3://{bucket}/pipe")], &mut source)
        .ok();
    println!("pipe: {} MiB in {:?}", largest() / MIB, began.elapsed());
    within_budget(&agent, "its put");
    verify(&agent, &bucket, "pipe", 12, largest());
    within_budget(&agent, "its get");
    weed.raw_delete(&bucket, "pipe");
}

/// How many clients come at once.
const CLIENTS: u64 = 40;

#[test]
fn forty_clients_at_once_all_succeed_in_a_small_budget() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent(&hsm, weed, "48 MiB");
    let bucket = weed.bucket("forty");
    // Half of them longer than a part, of each half one half announced.
    let size = |n: u64| {
        if n.is_multiple_of(2) {
            12 * MIB + n
        } else {
            300 * KIB + n
        }
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..CLIENTS {
            let (agent, bucket) = (&agent, &bucket);
            scope.spawn(move || {
                put_pattern(agent, bucket, &format!("{n}"), n, size(n), n % 4 < 2);
            });
        }
    });
    println!("{CLIENTS} puts at once in {:?}", began.elapsed());
    within_budget(&agent, "40 puts");
    let began = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..CLIENTS {
            let (agent, bucket) = (&agent, &bucket);
            scope.spawn(move || verify(agent, bucket, &format!("{n}"), n, size(n)));
        }
    });
    let took = began.elapsed();
    println!("{CLIENTS} gets at once in {took:?}");
    // Nobody waited for memory that somebody else held while he waited too.
    assert!(took < Duration::from_secs(50), "{took:?}");
    within_budget(&agent, "40 gets");
}

/// Gives its bytes at once and then nothing more, until it is told to end.
struct Stalled<'a> {
    first: Pattern,
    over: &'a AtomicUsize,
}

impl Read for Stalled<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.first.read(buffer)?;
        if n > 0 {
            return Ok(n);
        }
        while self.over.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(0)
    }
}

#[test]
fn clients_that_stall_hold_one_part_each_and_no_more() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent(&hsm, weed, "48 MiB");
    let bucket = weed.bucket("stalled");
    let over = AtomicUsize::new(0);
    let part = 8 * MIB + 256 * KIB + 64 * KIB + 8 * KIB;
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (agent, bucket, over) = (&agent, &bucket, &over);
            scope.spawn(move || {
                let first = Pattern::new(n, 20 * MIB);
                let mut source = Stalled { first, over };
                let body = Body::Chunked(&mut source);
                let key = format!("stalled-{n}");
                let reply = agent.request("PUT", &target(bucket, &key), &[], body);
                assert_eq!(reply.status, 201, "{}", reply.text());
            });
        }
        let held = eventually(Duration::from_secs(20), || {
            let now = status(&agent);
            (now.requests == 3 && now.memory_in_use <= 3 * part).then_some(now.memory_in_use)
        });
        let held = held.unwrap_or_else(|| {
            over.store(1, Ordering::Relaxed);
            panic!("three stalled clients hold {:?}", status(&agent))
        });
        // The others go on meanwhile.
        for n in 0..4 {
            put_pattern(
                &agent,
                &bucket,
                &format!("other-{n}"),
                n,
                20 * MIB,
                n % 2 == 0,
            );
            verify(&agent, &bucket, &format!("other-{n}"), n, 20 * MIB);
        }
        over.store(1, Ordering::Relaxed);
        println!(
            "three stalled clients held {} KiB; 8 requests passed them",
            held / KIB
        );
    });
    for n in 0..3 {
        verify(&agent, &bucket, &format!("stalled-{n}"), n, 20 * MIB);
    }
    within_budget(&agent, "stalled clients");
}

#[test]
fn clients_that_do_not_read_are_cut_off_when_others_wait() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent(&hsm, weed, "48 MiB");
    let bucket = weed.bucket("unread");
    put_pattern(&agent, &bucket, "k", 1, 40 * MIB, true);
    let head = format!("GET {} HTTP/1.1\r\nHost: s\r\n\r\n", target(&bucket, "k"));
    let idle: Vec<_> = (0..8)
        .map(|_| {
            let mut client = agent.connect();
            client.write_all(head.as_bytes()).unwrap();
            client
        })
        .collect();
    // Part buffers have 36 MiB of it: no further part of 8 MiB finds room.
    let full = eventually(Duration::from_secs(20), || {
        (status(&agent).memory_in_use > 28 * MIB).then_some(())
    });
    assert!(full.is_some(), "{:?}", status(&agent));
    let most = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        status(&agent).memory_in_use
    });
    let most = most.max().unwrap();
    assert!(most <= 36 * MIB, "{most}");
    let began = Instant::now();
    put_pattern(&agent, &bucket, "other", 2, 20 * MIB, false);
    let waited = began.elapsed();
    verify(&agent, &bucket, "other", 2, 20 * MIB);
    drop(idle);
    println!("8 clients that did not read: a put went through in {waited:?}");
    let given_back = eventually(Duration::from_secs(10), || {
        (status(&agent).memory_in_use == 0).then_some(())
    });
    assert!(given_back.is_some(), "{:?}", status(&agent));
    within_budget(&agent, "clients that do not read");
}
