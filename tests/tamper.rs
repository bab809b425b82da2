//! An object of three frames, altered in every way that its storage provider
//! could think of: no read may deliver a byte that was not verified.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::tamper::{
    Anatomy, FINAL_HEAD, FRAME_HEAD, TAG, read, refused, refused_by_cli, stored,
};
use support::{Agent, Hsm, Weed, alias, pattern, temp_dir, value};

/// Plaintext bytes of a frame in these tests, the least we write.
const FRAME: usize = 4096;
/// Objects that are altered side by side.
const LANES: usize = 4;
/// Every so many cases are tried by the command line too.
const CLI_EVERY: usize = 40;
/// Every so many cases also as a read of a range.
const RANGE_EVERY: usize = 8;

/// One alteration, as a function of the intact object.
struct Case {
    what: String,
    bytes: Vec<u8>,
    /// Frames before the first that is not what and where it was; 0 also
    /// where header or length are wrong, since they are proved first.
    intact: usize,
}

fn small_frames(hsm: &Hsm, weed: &Weed) -> Agent {
    Agent::start(hsm, weed, |config| {
        config["message"]["frame_length"] = value("4 KiB");
    })
}

/// Every bit of the header and of the frames' heads and tags, and one bit in
/// every 64 bytes of the rest.
fn flips(raw: &[u8]) -> Vec<Case> {
    let anatomy = Anatomy::of(raw);
    let last = anatomy.frames() - 1;
    let mut every_bit = Vec::from([Range {
        start: 0,
        end: anatomy.header,
    }]);
    for n in 0..=last {
        let frame = anatomy.frame(n);
        let head = if n == last { FINAL_HEAD } else { FRAME_HEAD };
        every_bit.push(frame.start..frame.start + head);
        every_bit.push(frame.end - TAG..frame.end);
    }
    let mut cases = Vec::new();
    for offset in 0..raw.len() {
        let bits = if every_bit.iter().any(|range| range.contains(&offset)) {
            0..8
        } else if offset % 64 == 0 {
            let bit = (offset / 64) % 8;
            bit..bit + 1
        } else {
            continue;
        };
        for bit in bits {
            let mut bytes = raw.to_vec();
            bytes[offset] ^= 1 << bit;
            let intact = match anatomy.frame_at(offset) {
                Some(frame) if frame != last => frame,
                _ => 0,
            };
            cases.push(Case {
                what: format!("bit {bit} of byte {offset}"),
                bytes,
                intact,
            });
        }
    }
    cases
}

/// Every length at the boundaries of header, frames, their heads and tags,
/// and one byte to either side of it.
fn truncations(raw: &[u8]) -> Vec<Case> {
    let anatomy = Anatomy::of(raw);
    let mut lengths = vec![0, 1, 2, anatomy.header];
    for n in 0..anatomy.frames() {
        let frame = anatomy.frame(n);
        let regular = frame.start + FRAME_HEAD + FRAME + TAG;
        lengths.extend([
            frame.start,
            frame.start + FRAME_HEAD,
            frame.start + FINAL_HEAD,
        ]);
        // What would be a whole message if the cut frame counted as final.
        lengths.extend([
            frame.start + FINAL_HEAD + TAG,
            frame.end - TAG,
            frame.end,
            regular,
        ]);
    }
    let around = lengths
        .into_iter()
        .flat_map(|n| [n.saturating_sub(1), n, n + 1]);
    let mut lengths: Vec<usize> = around.filter(|n| *n < raw.len()).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let cut = |n: usize| Case {
        what: format!("cut to {n} bytes"),
        bytes: raw[..n].to_vec(),
        intact: 0,
    };
    lengths.into_iter().map(cut).collect()
}

/// Frames swapped, dropped, repeated, and bytes that do not belong there.
fn rearrangements(raw: &[u8]) -> Vec<Case> {
    let anatomy = Anatomy::of(raw);
    let header = &raw[..anatomy.header];
    let frame = |n: usize| &raw[anatomy.frame(n)];
    let mut cases = Vec::new();
    let mut add = |what: &str, pieces: &[&[u8]], intact: usize| {
        cases.push(Case {
            what: what.to_owned(),
            bytes: pieces.concat(),
            intact,
        });
    };
    let (a, b, z) = (frame(0), frame(1), frame(2));
    add("frames 1 and 2 swapped", &[header, b, a, z], 0);
    add("frames 2 and 3 swapped", &[header, a, z, b], 0);
    add("frames 1 and 3 swapped", &[header, z, b, a], 0);
    add("the first frame dropped", &[header, b, z], 0);
    add("the middle frame dropped", &[header, a, z], 0);
    add("the last frame dropped", &[header, a, b], 0);
    add("all but the last frame dropped", &[header, z], 0);
    add("all frames dropped", &[header], 0);
    add("frame 1 in place of frame 2", &[header, a, a, z], 1);
    add("frame 2 in place of frame 1", &[header, b, b, z], 0);
    add("frame 1 repeated", &[header, a, a, b, z], 0);
    add("frame 2 repeated", &[header, a, b, b, z], 0);
    add("the last frame repeated", &[header, a, b, z, z], 0);
    add("the header repeated", &[header, header, a, b, z], 0);
    add("a byte appended", &[raw, b"\0"], 0);
    add("15 bytes appended", &[raw, &[0; 15]], 0);
    add("a frame appended", &[raw, b], 0);
    add(
        "an empty frame's length appended",
        &[raw, &[0; FRAME_HEAD + TAG]],
        0,
    );
    add(
        "the length of a frame appended",
        &[raw, &[0; FRAME_HEAD + FRAME + TAG]],
        0,
    );
    add("the whole message appended", &[raw, raw], 0);
    add("a byte before it", &[b"\x02", raw], 0);
    add("a byte behind the header", &[header, b"\0", a, b, z], 0);
    add("zeros throughout", &[&vec![0; raw.len()]], 0);
    add(
        "a zeroed body",
        &[header, &vec![0; raw.len() - header.len()]],
        0,
    );
    cases
}

#[test]
fn rule_03_every_alteration_of_a_small_object_is_refused() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = small_frames(&hsm, weed);
    let bucket = weed.bucket("tamper");
    let plain = pattern(4, 3 * FRAME as u64);
    let cases = AtomicUsize::new(0);
    let (by_cli, by_range) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let kinds: Mutex<BTreeMap<String, usize>> = Mutex::default();
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (agent, bucket, plain) = (&agent, bucket.as_str(), &plain);
            let (cases, by_cli, by_range, kinds) = (&cases, &by_cli, &by_range, &kinds);
            scope.spawn(move || {
                let key = format!("victim-{lane}");
                let raw = stored(agent, weed, bucket, &key, plain);
                assert_eq!(Anatomy::of(&raw).frames(), 3);
                let all = [flips(&raw), truncations(&raw), rearrangements(&raw)];
                let dir = temp_dir();
                for (n, case) in all.iter().flatten().enumerate() {
                    if n % LANES != lane {
                        continue;
                    }
                    weed.raw_put(bucket, &key, &case.bytes);
                    let reply = read(agent, bucket, &key);
                    let verified = &plain[..case.intact * FRAME];
                    // All of it is one part, and nothing is said before that is
                    // verified.
                    assert_eq!(reply.status, 422, "{}", case.what);
                    let slug = refused(agent, &case.what, &reply, verified);
                    *kinds.lock().unwrap().entry(slug).or_default() += 1;
                    cases.fetch_add(1, Ordering::Relaxed);
                    if (n / LANES).is_multiple_of(CLI_EVERY) {
                        refused_by_cli(agent, &case.what, bucket, &key, dir.path());
                        by_cli.fetch_add(1, Ordering::Relaxed);
                    }
                    if (n / LANES).is_multiple_of(RANGE_EVERY) {
                        ranges(agent, bucket, &key, case, plain);
                        by_range.fetch_add(3, Ordering::Relaxed);
                    }
                }
                // The test itself is sound: the intact object still opens.
                weed.raw_put(bucket, &key, &raw);
                let reply = read(agent, bucket, &key);
                assert!(reply.status == 200 && reply.complete && reply.body == *plain);
            });
        }
    });
    let kinds = kinds.into_inner().unwrap();
    println!(
        "{} alterations refused ({kinds:?}), {} of them by the command line, {} ranged reads",
        cases.load(Ordering::Relaxed),
        by_cli.load(Ordering::Relaxed),
        by_range.load(Ordering::Relaxed),
    );
    assert!(cases.into_inner() > 2_000);
    let status: strongroom::api::Status = agent.http("GET", "/v1/status", &[], b"").parse();
    assert_eq!(status.memory_in_use, 0);
}

/// A range of an untouched frame may still be served, if header and final
/// frame are the writer's; anything else is refused.
fn ranges(agent: &Agent, bucket: &str, key: &str, case: &Case, plain: &[u8]) {
    for n in 0..3 {
        let span = n * FRAME + 10..(n + 1) * FRAME - 10;
        let range = format!("bytes={}-{}", span.start, span.end - 1);
        let reply = agent.http(
            "GET",
            &format!("/v1/objects/{bucket}/{key}"),
            &[("Range", &range)],
            b"",
        );
        if reply.status == 206 && reply.complete {
            assert_eq!(reply.body, plain[span], "{}: range of frame {n}", case.what);
            let whole = format!("bytes {}/{}", &range[6..], plain.len());
            assert_eq!(
                reply.header("content-range"),
                Some(whole.as_str()),
                "{}",
                case.what
            );
        } else {
            refused(agent, &case.what, &reply, &[]);
        }
    }
}

#[test]
fn rule_03_a_range_needs_its_own_frames_the_header_and_the_final_frame() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = small_frames(&hsm, weed);
    let bucket = weed.bucket("tamper-range");
    let plain = pattern(5, 3 * FRAME as u64 - 1000);
    let raw = stored(&agent, weed, &bucket, "k", &plain);
    let anatomy = Anatomy::of(&raw);
    let get = |from: usize, to: usize| {
        let range = format!("bytes={from}-{}", to - 1);
        agent.http(
            "GET",
            &format!("/v1/objects/{bucket}/k"),
            &[("Range", &range)],
            b"",
        )
    };
    // Altered place; which of the three frames may still be had.
    let places = [
        (anatomy.header - 1, [false, false, false]),
        (anatomy.frame(0).start + 100, [false, true, true]),
        (anatomy.frame(1).start + 100, [true, false, true]),
        (anatomy.frame(2).start + 100, [false, false, false]),
    ];
    let mut served = 0;
    for (offset, allowed) in places {
        let mut bytes = raw.clone();
        bytes[offset] ^= 1;
        weed.raw_put(&bucket, "k", &bytes);
        for (n, allowed) in allowed.into_iter().enumerate() {
            let end = ((n + 1) * FRAME).min(plain.len());
            let reply = get(n * FRAME, end);
            if allowed {
                assert_eq!(reply.status, 206, "{}", reply.text());
                assert!(reply.complete && reply.body == plain[n * FRAME..end]);
                served += 1;
            } else {
                refused(&agent, &format!("byte {offset}, frame {n}"), &reply, &[]);
            }
        }
        // Across the boundary of a good frame and a bad one.
        let reply = get(FRAME - 5, FRAME + 5);
        refused(
            &agent,
            &format!("byte {offset}, across"),
            &reply,
            &plain[FRAME - 5..FRAME],
        );
    }
    println!("12 ranges of altered objects: {served} of untouched frames served, the rest refused");
}

#[test]
fn rule_05_06_an_object_of_another_place_or_time_is_refused() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = small_frames(&hsm, weed);
    // The same keys without the catalogue: it can judge the message alone.
    let stranger = small_frames(&hsm, weed);
    let (here, there) = (weed.bucket("here"), weed.bucket("there"));
    let old = stored(&agent, weed, &here, "k", &pattern(1, 9000));
    let other = stored(&agent, weed, &here, "other", &pattern(2, 9000));
    let away = stored(&agent, weed, &there, "k", &pattern(3, 9000));
    let now = stored(&agent, weed, &here, "k", &pattern(4, 9000));
    let (head, cut) = (Anatomy::of(&now).header, Anatomy::of(&old).header);
    let other_cut = Anatomy::of(&other).header;
    let dir = temp_dir();
    let cases: [(&str, Vec<u8>, &str, Option<&str>); 7] = [
        (
            "another object",
            other.clone(),
            "elsewhere",
            Some("elsewhere"),
        ),
        (
            "the same key of another bucket",
            away,
            "elsewhere",
            Some("elsewhere"),
        ),
        ("an older version", old.clone(), "rolled-back", None),
        (
            "another object's header",
            [&other[..other_cut], &now[head..]].concat(),
            "elsewhere",
            Some("elsewhere"),
        ),
        (
            "another object's body",
            [&now[..head], &other[other_cut..]].concat(),
            "altered",
            Some("altered"),
        ),
        (
            "an older version's header",
            [&old[..cut], &now[head..]].concat(),
            "rolled-back",
            Some("altered"),
        ),
        (
            "an older version's body",
            [&now[..head], &old[cut..]].concat(),
            "altered",
            Some("altered"),
        ),
    ];
    for (what, bytes, expected, without_catalogue) in &cases {
        weed.raw_put(&here, "k", bytes);
        let slug = refused(&agent, what, &read(&agent, &here, "k"), &[]);
        assert_eq!(slug, *expected, "{what}");
        refused_by_cli(&agent, what, &here, "k", dir.path());
        let reply = read(&stranger, &here, "k");
        match without_catalogue {
            Some(expected) => {
                assert_eq!(refused(&stranger, what, &reply, &[]), *expected, "{what}")
            }
            // It opens, and nobody here can know better.
            None => assert!(reply.complete && reply.body == pattern(1, 9000), "{what}"),
        }
        for (method, headers) in [("HEAD", None), ("GET", Some(("Range", "bytes=0-9")))] {
            let target = format!("/v1/objects/{here}/k");
            let reply = agent.http(method, &target, headers.as_slice(), b"");
            let may_open = *what == "an older version's body" || *what == "another object's body";
            assert!(
                may_open || reply.status == 422,
                "{what}: {method}: {}",
                reply.status
            );
        }
    }
    println!("{} misplaced or outdated objects refused", cases.len());
}

#[test]
fn rule_05_06_a_replica_is_read_under_its_own_name_as_what_it_replicates() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (home, replica) = (weed.bucket("home"), weed.versioned_bucket("replica"));
    let agent = Agent::start(&hsm, weed, |config| {
        config["message"]["frame_length"] = value("4 KiB");
        alias(config, &replica, &home);
    });
    let old = stored(&agent, weed, &home, "k", &pattern(1, 9000));
    let other = stored(&agent, weed, &home, "other", &pattern(2, 9000));
    let now = stored(&agent, weed, &home, "k", &pattern(3, 9000));
    weed.raw_put(&replica, "k", &now);
    let reply = read(&agent, &replica, "k");
    assert!(reply.complete && reply.body == pattern(3, 9000));
    assert_eq!(reply.header("strongroom-standing"), Some("current"));
    let range = [("Range", "bytes=5000-5003")];
    let target = format!("/v1/objects/{replica}/k");
    let reply = agent.http("GET", &target, &range, b"");
    assert_eq!(reply.body, pattern(3, 9000)[5000..5004]);
    let inspected = agent.http("GET", &format!("{target}?inspect"), &[], b"");
    assert_eq!(inspected.status, 200, "{}", inspected.text());

    // What the other bucket has elsewhere, or had before.
    for (bytes, expected) in [(&other, "elsewhere"), (&old, "rolled-back")] {
        weed.raw_put(&replica, "k", bytes);
        let reply = read(&agent, &replica, "k");
        assert_eq!(refused(&agent, expected, &reply, &[]), expected);
    }
    read(&agent, &replica, "k").fails("rolled-back", &["a replica may be behind"]);
    let versions = weed.list_versions(&replica, "k");
    let version = versions.iter().find(|version| version.latest).unwrap();
    let target = format!("{target}?version_id={}", version.id);
    let reply = agent.http("GET", &target, &[], b"");
    assert_eq!(reply.body, pattern(1, 9000));
    assert_eq!(reply.header("strongroom-standing"), Some("superseded"));

    // Nothing is written there, and the home's objects do not hear of it.
    let reply = agent.http("PUT", &format!("/v1/objects/{replica}/new"), &[], b"x");
    reply.fails(
        "forbidden",
        &["holds replicas of", "let the store replicate it"],
    );
    assert_eq!(weed.raw_get(&replica, "new"), None);
    assert_eq!(read(&agent, &home, "k").body, pattern(3, 9000));
    // What is said to be a copy of another object is not held against this
    // one's record, whether it is older or newer.
    let late = stored(&agent, weed, &home, "late", &pattern(4, 9000));
    let target = format!("/v1/objects/{replica}/k");
    for (key, bytes, seed) in [("other", &other, 2), ("late", &late, 4)] {
        weed.raw_put(&replica, "k", bytes);
        let bound_to = format!("s3://{home}/{key}");
        let bound_to = [("Strongroom-Bound-To", bound_to.as_str())];
        let reply = agent.http("GET", &target, &bound_to, b"");
        assert_eq!(reply.body, pattern(seed, 9000), "{key}: {}", reply.text());
        assert_eq!(read(&agent, &home, "k").body, pattern(3, 9000));
    }

    // Without the alias it is just an object of another place.
    let stranger = small_frames(&hsm, weed);
    let slug = refused(&stranger, "no alias", &read(&stranger, &replica, "k"), &[]);
    assert_eq!(slug, "elsewhere");
}

#[test]
fn rule_06_a_deleted_object_that_comes_back_is_refused() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = small_frames(&hsm, weed);
    let bucket = weed.bucket("undead");
    let raw = stored(&agent, weed, &bucket, "k", &pattern(1, 5000));
    assert_eq!(
        agent
            .http("DELETE", &format!("/v1/objects/{bucket}/k"), &[], b"")
            .status,
        204
    );
    read(&agent, &bucket, "k").fails("no-such-object", &[]);
    weed.raw_put(&bucket, "k", &raw);
    let dir = temp_dir();
    for _ in 0..2 {
        let slug = refused(&agent, "undead", &read(&agent, &bucket, "k"), &[]);
        assert_eq!(slug, "rolled-back");
        refused_by_cli(&agent, "undead", &bucket, "k", dir.path());
        // What the catalogue knows outlives the agent.
        agent.restart();
    }
    // A new object at the same place is none of that.
    stored(&agent, weed, &bucket, "k", &pattern(2, 5000));
    assert_eq!(read(&agent, &bucket, "k").body, pattern(2, 5000));
    weed.raw_put(&bucket, "k", &raw);
    let slug = refused(&agent, "undead again", &read(&agent, &bucket, "k"), &[]);
    assert_eq!(slug, "rolled-back");
}

#[test]
fn an_existing_file_outlives_a_refused_read() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = small_frames(&hsm, weed);
    let bucket = weed.bucket("keep");
    let mut raw = stored(&agent, weed, &bucket, "k", &pattern(1, 9000));
    let end = raw.len();
    raw[end - 1] ^= 1;
    weed.raw_put(&bucket, "k", &raw);
    let dir = temp_dir();
    let target = dir.path().join("target");
    std::fs::write(&target, "what was there before").unwrap();
    let url = format!("s3://{bucket}/k");
    agent
        .cli(["get", &url, &target.display().to_string()])
        .fails(65, &["altered", "hint: "]);
    assert_eq!(std::fs::read(&target).unwrap(), b"what was there before");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // A stream gets nothing that was not verified either.
    let run = agent.cli(["get", &url, "-"]).fails(65, &["altered"]);
    assert!(run.stdout.is_empty());
    println!("1 existing file kept, 1 stream left empty");
}
