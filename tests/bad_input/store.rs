//! Stores that do not have the bucket, do not know us, or are not there.

use std::time::{Duration, Instant};

use super::support::null_store::{Fault, NullStore, Op};
use super::support::*;
use super::{Rig, entries};

/// More than a part, in bytes.
const PARTS: u64 = 12 << 20;

#[test]
fn a_missing_bucket_is_named() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let (dir, there) = (temp_dir(), weed.bucket("there"));
    let url = "s3://no-such-bucket/k";
    let out = dir.path().join("out").display().to_string();
    let copy = format!("s3://{there}/copy");
    let words = [
        "no such bucket: \"no-such-bucket\"",
        "hint: check the bucket's name",
    ];
    for args in [
        &["put", "-", url][..],
        &["get", url, &out],
        &["inspect", url],
        &["rm", url],
        &["ls", "s3://no-such-bucket"],
        &["ls", "s3://no-such-bucket/prefix/"],
        &["cp", url, &copy],
    ] {
        agent.cli_in(args, b"x").fails(66, &words);
    }
    assert_eq!(entries(dir.path()), [""; 0]);
    assert_eq!(weed.list(&there, ""), [""; 0]);

    let target = "/v1/objects/no-such-bucket/k";
    for (method, target) in [
        ("PUT", target.to_owned()),
        ("GET", target.to_owned()),
        ("DELETE", target.to_owned()),
        ("GET", format!("{target}?inspect")),
        ("GET", "/v1/objects/no-such-bucket".to_owned()),
    ] {
        let reply = agent.http(method, &target, &[], b"");
        reply.fails("no-such-bucket", &["\"no-such-bucket\"", "account"]);
    }
    assert_eq!(agent.http("HEAD", target, &[], b"").status, 404);
    // Several parts: it shows while the body is still being sent.
    let mut source = Pattern::new(1, PARTS);
    let reply = agent.request("PUT", target, &[], Body::Sized(PARTS, &mut source));
    reply.fails("no-such-bucket", &["\"no-such-bucket\""]);
    // A bucket without the object is another thing.
    let absent = format!("s3://{there}/absent");
    let missing = agent.cli(["get", &absent, &out]);
    missing.fails(66, &["no such object", &absent, "hint: "]);
    assert_eq!(entries(dir.path()), [""; 0]);
}

#[test]
fn wrong_and_absent_credentials_are_told_apart_from_outages() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("credentials");
    let (url, target) = (
        format!("s3://{bucket}/k"),
        format!("/v1/objects/{bucket}/k"),
    );
    weed.raw_put(&bucket, "old", b"old");
    let good = Store::from(weed);
    for (access, secret, word) in [
        (
            good.access_key.as_str(),
            "not-the-secret",
            "SignatureDoesNotMatch",
        ),
        ("nobody", "not-the-secret", "InvalidAccessKeyId"),
        ("", "", "no credentials"),
    ] {
        let agent = Agent::start(&hsm, good.with_credentials(access, secret), |_| {});
        let bucket_url = format!("s3://{bucket}");
        for args in [
            &["put", "-", &url][..],
            &["get", &url, "-"],
            &["ls", &bucket_url],
        ] {
            let run = agent.cli_in(args, b"x");
            let run = run.fails(
                1,
                &[
                    "denies access",
                    word,
                    "hint: check the agent's AWS credentials",
                ],
            );
            assert!(run.stdout.is_empty());
        }
        let reply = agent.http("PUT", &target, &[], b"x");
        reply.fails("store-denied", &[word]);
        let mut source = Pattern::new(1, PARTS);
        let reply = agent.request("PUT", &target, &[], Body::Chunked(&mut source));
        reply.fails("store-denied", &[word]);
        assert!(!agent.log().contains("not-the-secret"), "{}", agent.log());
    }
    assert_eq!(weed.list(&bucket, ""), ["old"]);
    assert!(weed.list_uploads(&bucket).is_empty());
}

#[test]
fn credentials_that_expire_in_the_middle_leave_nothing() {
    let rig = Rig::new();
    let expired = Fault::Status(400, "ExpiredToken");
    for op in [Op::Put, Op::Get, Op::List] {
        rig.null.inject(op, 1, u32::MAX, expired.clone());
    }
    rig.null.inject(Op::Part, 2, u32::MAX, expired);
    let words = [
        "denies access (ExpiredToken)",
        "hint: check the agent's AWS credentials",
    ];
    let url = rig.url("k");
    for args in [
        &["put", "-", &url][..],
        &["get", &url, "-"],
        &["ls", "s3://bucket"],
    ] {
        rig.agent.cli_in(args, b"x").fails(1, &words);
    }
    // After the first part.
    let mut source = Pattern::new(1, 3 * PARTS);
    rig.agent
        .cli_reading(["put", "-", &url], &mut source)
        .fails(1, &words);
    assert!(rig.null.count(Op::Part) > 1);
    rig.nothing_left();
}

#[test]
fn an_unreachable_store_is_temporary_and_told_in_time() {
    let null = NullStore::start();
    let endpoint = null.endpoint();
    drop(null);
    let hsm = Hsm::new();
    // It starts all the same: the store may be back when it is needed.
    let agent = Agent::start(&hsm, Store::at(endpoint), |_| {});
    let words = [
        "the store is away",
        "hint: check the endpoint and the network",
    ];
    std::thread::scope(|scope| {
        let timed = |what: &'static str, args: &'static [&'static str]| {
            let (agent, words) = (&agent, &words);
            scope.spawn(move || {
                let begun = Instant::now();
                agent.cli_in(args, b"x").fails(75, words);
                let took = begun.elapsed();
                println!("{what}: told after {took:?}");
                // Five attempts with back-off, and a put asks what became of
                // it; a machine that is busy besides.
                assert!(took < Duration::from_secs(60), "{what} took {took:?}");
            });
        };
        timed("put", &["put", "-", "s3://bucket/k"]);
        timed("get", &["get", "s3://bucket/k", "-"]);
        timed("ls", &["ls", "s3://bucket"]);
        scope.spawn(|| {
            let reply = agent.http("GET", "/v1/objects/bucket/k", &[], b"");
            reply.fails("store-away", &["the store is away", "endpoint"]);
        });
        // The agent itself is well meanwhile.
        assert_eq!(agent.http("GET", "/v1/ready", &[], b"").status, 200);
    });
}

#[test]
fn a_store_that_is_busy_or_broken_is_told_apart() {
    let rig = Rig::new();
    let url = rig.url("k");
    let denied = rig.agent.cli_in(["put", "-", "s3://denied/k"], b"x");
    denied.fails(1, &["the store denies access (AccessDenied)", "hint: "]);
    rig.null
        .inject(Op::Put, 1, u32::MAX, Fault::Status(418, "Teapot"));
    // 501 is no outage: trying again would not help.
    rig.null
        .inject(Op::List, 1, u32::MAX, Fault::Status(501, "NotImplemented"));
    rig.agent
        .cli_in(["put", "-", &url], b"x")
        .fails(2, &["the store refuses it (Teapot)"]);
    rig.agent
        .cli(["ls", "s3://bucket"])
        .fails(1, &["the store failed (NotImplemented)", "hint: "]);
    rig.nothing_left();
}
