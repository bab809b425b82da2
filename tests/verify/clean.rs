//! Where nothing is wrong, nothing is found: also while objects come and go.
//! And what a verification leaves behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::*;

/// Names in an order that is not every store's.
fn name(i: usize) -> String {
    match i % 5 {
        0 => format!("a/{i}"),
        1 => format!("a-{i}/x"),
        2 => format!("a.{i}"),
        3 => format!("b/%C3%A9/{i}"),
        _ => format!("b%20{i}"),
    }
}

#[test]
fn five_hundred_good_objects_have_no_finding_at_any_level() {
    if !TokenKind::SoftHsm.is_only("the token has no part in it") {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = &Agent::start(&hsm, weed, |_| {});
    for bucket in [
        weed.bucket("clean"),
        weed.versioned_bucket("clean-versions"),
    ] {
        let bucket = &bucket;
        // Five hundred in both together, or in each.
        let objects = sized(500, 250);
        thread::scope(|scope| {
            for shard in 0..4 {
                scope.spawn(move || {
                    for i in (shard..objects).step_by(4) {
                        put(agent, bucket, &name(i), format!("{i}").as_bytes());
                        if i % 20 == 0 {
                            put(agent, bucket, &name(i), b"again");
                        }
                        if i % 50 == 49 {
                            let target = format!("/v1/objects/{bucket}/{}", name(i));
                            assert_eq!(agent.http("DELETE", &target, &[], b"").status, 204);
                        }
                    }
                });
            }
        });
        // A keyslot is nobody's object.
        weed.raw_put(bucket, ".strongroom/keyslots/x", b"x");
        for level in ["list", "head", "read"] {
            let place = format!("s3://{bucket}/");
            let verified = verify(agent, &place, &["--level", level]);
            verified.is(&BTreeMap::new());
            let sum = verified.sum.unwrap();
            // Of every fifty one was deleted, and of every twenty one replaced:
            // versions that are there still.
            let older = match bucket.starts_with("clean-v") {
                true => objects / 50 + objects.div_ceil(20),
                false => 0,
            };
            let all = u64::try_from(objects - objects / 50 + older).unwrap();
            assert_eq!((sum.listed, sum.good), (all, all), "{level}");
            let looked = if level == "list" { 0 } else { sum.listed };
            assert_eq!(sum.checked, looked);
        }
        let part = verify(
            agent,
            &format!("s3://{bucket}/a/"),
            &["--level", "head", "--sample", "30%"],
        );
        part.is(&BTreeMap::new());
        let sum = part.sum.unwrap();
        assert!(sum.checked < sum.listed, "{sum:?}");
    }
    agent
        .cli(["verify", "s3://clean-0/", "--sample", "1%"])
        .fails(2, &["--level head"]);
    let nothing = agent
        .cli(["verify", &format!("s3://{}/", weed.bucket("empty"))])
        .ok();
    assert_eq!(
        nothing.text() + &nothing.stderr,
        "",
        "silent when all is well"
    );
}

#[test]
fn what_is_stored_and_deleted_meanwhile_is_no_finding() {
    if !TokenKind::SoftHsm.is_only("the token has no part in it") {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = &Agent::start(&hsm, weed, |_| {});
    for bucket in [weed.bucket("busy"), weed.versioned_bucket("busy-versions")] {
        let bucket = &bucket;
        for i in 0..60 {
            put(agent, bucket, &format!("k{i}"), b"before");
        }
        let done = &AtomicBool::new(false);
        thread::scope(|scope| {
            for writer in 0..3 {
                scope.spawn(move || {
                    let mut n = writer;
                    while !done.load(Ordering::Relaxed) {
                        let target = format!("/v1/objects/{bucket}/k{}", n % 80);
                        match n % 4 {
                            0 => assert_eq!(agent.http("DELETE", &target, &[], b"").status, 204),
                            _ => assert_eq!(agent.http("PUT", &target, &[], b"x").status, 201),
                        }
                        n += 3;
                        // Versions pile up otherwise, and are all read.
                        thread::sleep(Duration::from_millis(20));
                    }
                });
            }
            let verified = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for round in 0..sized(100, 6) {
                    let level = ["list", "head", "read"][round % 3];
                    let place = format!("s3://{bucket}/");
                    verify(agent, &place, &["--level", level]).is(&BTreeMap::new());
                }
            }));
            done.store(true, Ordering::Relaxed);
            verified.unwrap();
        });
    }
}

#[test]
fn a_verification_is_on_record_with_a_digest_that_anybody_can_compute() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = &weed.bucket("recorded");
    let agent = Agent::start(&hsm, weed, |_| {});
    for key in ["good", "gone"] {
        put(&agent, bucket, key, b"x");
    }
    weed.raw_delete(bucket, "gone");
    weed.raw_put(bucket, "extra", b"x");
    let place = &format!("s3://{bucket}/");
    let verified = verify(&agent, place, &[]);
    let sum = verified.sum.clone().unwrap();
    assert_eq!((sum.bad, sum.good, sum.listed), (2, 1, 2));
    let text = verified.run.text();
    let mut lines = Sha256::new();
    for line in text.lines().filter(|line| line.contains("\"result\"")) {
        lines.update(line);
        lines.update(b"\n");
    }
    let digest = data_encoding::HEXLOWER.encode(&lines.finalize());
    assert_eq!(sum.digest.as_deref(), Some(digest.as_str()));

    let words = agent
        .cli(["verify", place])
        .fails(65, &["1 extra, 1 missing", "hint: docs/verify.md"]);
    assert!(words.text().contains("missing: s3://"), "{}", words.text());
    let allowed = verify(&agent, place, &["--allow-extra"]);
    assert_eq!(allowed.found.len(), 1);
    assert_eq!(allowed.sum.unwrap().extra, 1);

    let evidence = agent.cli(["evidence"]).ok().json();
    let runs = evidence["report"]["verifications"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    assert_eq!(runs[0]["found"]["digest"], digest.as_str());
    assert_eq!(runs[0]["found"]["findings"]["missing"], 1);
    assert_eq!(runs[0]["subject"], place.as_str());

    // The store away: nothing is claimed.
    let (other, away) = (Hsm::new(), Store::at("http://127.0.0.1:9"));
    let lost = Agent::start(&other, &away, |_| {});
    lost.cli(["verify", place]).fails(75, &["cannot verify"]);
}
