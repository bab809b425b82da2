//! Objects of several parts: an alteration far behind the beginning, and an
//! object that is replaced while somebody reads it.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use support::tamper::{Anatomy, failure, read, refused, refused_by_cli, stored};
use support::{Agent, Hsm, Weed, pattern, temp_dir, value};

/// Bytes of one MiB.
const MIB: usize = 1 << 20;

fn agent_with_small_parts(hsm: &Hsm, weed: &Weed, concurrency: i64) -> Agent {
    Agent::start(hsm, weed, |config| {
        config["s3"]["part_size"] = value("5 MiB");
        config["s3"]["upload_concurrency"] = value(concurrency);
    })
}

#[test]
fn rule_03_alterations_in_later_parts_end_the_body_before_them() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent_with_small_parts(&hsm, weed, 4);
    let bucket = weed.bucket("large");
    let plain = pattern(20, 20 * MIB as u64);
    let raw = stored(&agent, weed, &bucket, "k", &plain);
    let anatomy = Anatomy::of(&raw);
    let frames = anatomy.frames();
    assert_eq!(frames, 80);
    let frame = |n: usize| anatomy.frame(n);
    let flip = |n: usize, at: usize| {
        let mut bytes = raw.clone();
        bytes[frame(n).start + at] ^= 0x10;
        bytes
    };
    let without = |n: usize| [&raw[..frame(n).start], &raw[frame(n).end..]].concat();
    let swapped = |a: usize, b: usize| {
        let mut bytes = raw.clone();
        bytes[frame(a)].copy_from_slice(&raw[frame(b)]);
        bytes[frame(b)].copy_from_slice(&raw[frame(a)]);
        bytes
    };
    // The altered object, and the frames that may come before it is noticed.
    let cases: Vec<(String, Vec<u8>, usize)> = [
        ("the first frame's text".to_owned(), flip(0, 1000), 0),
        (
            "the tag of a frame of the first part".to_owned(),
            flip(7, 16 + (256 << 10)),
            7,
        ),
        (
            "the text of a frame in the middle".to_owned(),
            flip(40, 70_000),
            40,
        ),
        (
            "the head of a frame in the middle".to_owned(),
            flip(41, 3),
            41,
        ),
        (
            "the last frame but one".to_owned(),
            flip(frames - 2, 5000),
            frames - 2,
        ),
        (
            "the final frame's text".to_owned(),
            flip(frames - 1, 5000),
            0,
        ),
        (
            "the final frame's length".to_owned(),
            flip(frames - 1, 22),
            0,
        ),
        (
            "frames of different parts swapped".to_owned(),
            swapped(10, 60),
            10,
        ),
        (
            "a frame of the last part dropped".to_owned(),
            without(frames - 3),
            0,
        ),
        ("cut at a part".to_owned(), raw[..15 * MIB].to_vec(), 0),
        (
            "cut behind a frame".to_owned(),
            raw[..frame(frames - 2).end].to_vec(),
            0,
        ),
        ("a byte appended".to_owned(), [&raw[..], b"\0"].concat(), 0),
        (
            "a frame appended".to_owned(),
            [&raw[..], &raw[frame(30)]].concat(),
            0,
        ),
    ]
    .into();
    let dir = temp_dir();
    let mut delivered = 0;
    for (what, bytes, intact) in &cases {
        weed.raw_put(&bucket, "k", bytes);
        let reply = read(&agent, &bucket, "k");
        let verified = &plain[..anatomy.verified_before(*intact)];
        refused(&agent, what, &reply, verified);
        delivered += if reply.status == 200 {
            reply.body.len()
        } else {
            0
        };
        refused_by_cli(&agent, what, &bucket, "k", dir.path());
    }
    println!(
        "{} altered large objects refused twice; {delivered} bytes of true frames came before",
        cases.len()
    );
    let status: strongroom::api::Status = agent.http("GET", "/v1/status", &[], b"").parse();
    assert_eq!(status.memory_in_use, 0);
}

/// A read that takes its first bytes, lets `meanwhile` happen, and reads on.
fn interrupted(
    agent: &Agent,
    target: &str,
    first: usize,
    meanwhile: impl FnOnce(),
) -> support::Reply {
    let mut stream: UnixStream = agent.connect();
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut reader = BufReader::with_capacity(4096, stream);
    let mut body = Vec::new();
    let mut meanwhile = Some(meanwhile);
    let mut sink = Paused {
        body: &mut body,
        at: first,
        then: &mut || {
            if let Some(happen) = meanwhile.take() {
                happen();
            }
        },
    };
    let mut reply = support::http::read_reply(&mut reader, "GET", &mut sink).unwrap();
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest);
    assert!(rest.is_empty());
    reply.body = body;
    reply
}

struct Paused<'a> {
    body: &'a mut Vec<u8>,
    at: usize,
    then: &'a mut dyn FnMut(),
}

impl Write for Paused<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.body.extend_from_slice(bytes);
        if self.body.len() >= self.at {
            (self.then)();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_object_replaced_during_a_read_is_never_a_mixture() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent_with_small_parts(&hsm, weed, 1);
    let bucket = weed.bucket("replaced");
    let (old, new) = (pattern(1, 48 * MIB as u64), pattern(2, 48 * MIB as u64));
    for (what, replace) in [("overwritten", true), ("deleted", false)] {
        stored(&agent, weed, &bucket, "k", &old);
        let target = format!("/v1/objects/{bucket}/k");
        let reply = interrupted(&agent, &target, MIB, || {
            if replace {
                stored(&agent, weed, &bucket, "k", &new);
            } else {
                weed.raw_delete(&bucket, "k");
            }
        });
        assert_eq!(reply.status, 200);
        assert!(
            !reply.complete,
            "{what}: it was read to its end from nowhere"
        );
        assert!(old.starts_with(&reply.body), "{what}: a mixture");
        let problem = failure(&agent, &reply);
        println!(
            "{what} during a read: {} of {} bytes, then {}",
            reply.body.len(),
            old.len(),
            problem.kind
        );
        if replace {
            assert_eq!(problem.kind, "urn:strongroom:error:conflict");
            assert_eq!(read(&agent, &bucket, "k").body, new);
        }
    }
}

#[test]
fn with_versioning_a_read_ends_with_the_version_it_began_with() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent_with_small_parts(&hsm, weed, 1);
    let bucket = weed.versioned_bucket("versions");
    let (old, new) = (pattern(1, 48 * MIB as u64), pattern(2, 48 * MIB as u64));
    stored(&agent, weed, &bucket, "k", &old);
    let target = format!("/v1/objects/{bucket}/k");
    let reply = interrupted(&agent, &target, MIB, || {
        stored(&agent, weed, &bucket, "k", &new);
    });
    assert!(reply.complete && reply.body == old);
    assert_eq!(read(&agent, &bucket, "k").body, new);
    // The old version is there for whoever asks for it, and only then.
    let versions = weed.list_versions(&bucket, "k");
    let first = versions.iter().find(|v| !v.latest).expect("two versions");
    let asked = agent.http(
        "GET",
        &format!("{target}?version_id={}", first.id),
        &[],
        b"",
    );
    assert!(asked.complete && asked.body == old);
    println!(
        "a read across a new version: {} bytes of the old one",
        reply.body.len()
    );
}
