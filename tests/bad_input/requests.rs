//! What no client should send: garbage, half requests, endless headers,
//! bodies that are not what their headers say, unknown routes and options.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use strongroom::api::Status;

use super::Rig;
use super::support::null_store::Op;
use super::support::*;

/// Sends raw bytes and no more, and returns what comes back until the agent
/// hangs up (or we lose patience).
fn raw(agent: &Agent, bytes: &[u8]) -> String {
    exchange(agent, bytes, true)
}

/// The same, ready to send more: hanging up would be giving up.
fn ask(agent: &Agent, bytes: &[u8]) -> String {
    exchange(agent, bytes, false)
}

fn exchange(agent: &Agent, bytes: &[u8], hang_up: bool) -> String {
    let mut stream = agent.connect();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // An agent that has heard enough does not read the rest.
            let _ = writer.write_all(bytes);
            if hang_up {
                let _ = writer.shutdown(std::net::Shutdown::Write);
            }
        });
        let mut answer = Vec::new();
        // A reset after the answer takes nothing away from it.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    })
}

fn status(agent: &Agent) -> Status {
    agent.http("GET", "/v1/status", &[], b"").parse()
}

#[test]
fn garbage_is_refused_and_harms_nobody() {
    let rig = Rig::new();
    let before = rig.null.requests().len();
    let noise = pattern(7, 100_000);
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"HELLO WORLD\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/status HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        b"GET /v1/sta tus HTTP/1.1\r\n\r\n",
        b"PUT /v1/objects/bucket/k HTTP/1.1\r\nContent-Length: abc\r\n\r\nabc",
        b"PUT /v1/objects/bucket/k HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/objects/bucket/k HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"PUT /v1/objects/bucket/k HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"PUT /v1/objects/bucket/k HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"PUT /v1/objects/bucket/k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &noise,
    ] {
        let answer = raw(&rig.agent, garbage);
        let shown = String::from_utf8_lossy(&garbage[..garbage.len().min(60)]).into_owned();
        let refused = ["HTTP/1.1 400", "HTTP/1.1 414", "HTTP/1.1 431"];
        assert!(
            answer.is_empty() || refused.iter().any(|line| answer.starts_with(line)),
            "{shown:?}: {answer}"
        );
    }
    rig.nothing_sent_since(before);
    rig.nothing_left();
    rig.still_works();
}

#[test]
fn half_requests_hold_up_nobody() {
    let rig = Rig::new();
    let halves: [&[u8]; 4] = [
        b"",
        b"PUT /v1/objects/bu",
        b"PUT /v1/objects/bucket/k HTTP/1.1\r\nHost: s\r\nContent-Le",
        b"PUT /v1/objects/bucket/k HTTP/1.1\r\nHost: s\r\nContent-Length: 100\r\n\r\nhalf",
    ];
    let open: Vec<UnixStream> = (0..40)
        .flat_map(|_| halves)
        .map(|half| {
            let mut stream = rig.agent.connect();
            stream.write_all(half).unwrap();
            stream
        })
        .collect();
    let waiting = process::eventually(Duration::from_secs(20), || {
        (status(&rig.agent).requests == 40).then_some(())
    });
    assert!(waiting.is_some(), "{:?}", status(&rig.agent));
    rig.still_works();
    // One that finishes after all is served.
    let mut late = rig.agent.connect();
    late.write_all(b"GET /v1/hea").unwrap();
    rig.still_works();
    late.write_all(b"lth HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(open);
    rig.nothing_left();
    rig.still_works();
}

#[test]
fn headers_of_100_mb_are_cut_off_at_no_cost() {
    const SIZE: usize = 100 << 20;
    let rig = Rig::new();
    rig.still_works();
    let server = rig.agent.server();
    let before = server.peak_memory();
    let mut one =
        b"PUT /v1/objects/bucket/k HTTP/1.1\r\nHost: s\r\nStrongroom-Context: a=".to_vec();
    one.resize(SIZE, b'x');
    let mut many = b"PUT /v1/objects/bucket/k HTTP/1.1\r\nHost: s\r\n".to_vec();
    while many.len() < SIZE {
        many.extend_from_slice(
            b"Strongroom-Context: name=value of a header of ordinary length\r\n",
        );
    }
    let mut path = b"GET /v1/objects/bucket/".to_vec();
    path.resize(SIZE, b'k');
    for (what, bytes) in [
        ("one header", &one),
        ("many headers", &many),
        ("a path", &path),
    ] {
        let answer = raw(&rig.agent, bytes);
        let refused = ["HTTP/1.1 431", "HTTP/1.1 414"];
        assert!(
            refused.iter().any(|line| answer.starts_with(line)),
            "{what}: {:?}",
            answer.get(..200).unwrap_or(&answer)
        );
    }
    let grown = server.peak_memory() - before;
    println!("300 MB of headers: {grown} bytes of memory");
    assert!(grown < 8 << 20, "the server grew by {grown} bytes");
    assert_eq!(rig.agent.server().pid, server.pid, "another server");
    // What is allowed still goes through, and what is not is told apart.
    let long = format!("a={}", "x".repeat(20 << 10));
    let headers = [("Strongroom-Context", long.as_str())];
    let reply = rig
        .agent
        .http("PUT", &rig.target("context"), &headers, b"x");
    assert_eq!(reply.status, 201, "{}", reply.text());
    let url = rig.url("k");
    let pairs = (b'a'..b'k').map(|name| format!("{}={}", char::from(name), &long[2..]));
    let mut args = vec!["put".to_owned(), "-".to_owned(), url];
    args.extend(pairs.flat_map(|pair| ["--context".to_owned(), pair]));
    let run = rig.agent.cli_in(args, b"x");
    run.fails(2, &["headers are too large", "hint: shorten them"]);
    rig.still_works();
}

#[test]
fn a_body_that_is_not_what_its_headers_say_is_not_stored() {
    let rig = Rig::new();
    for (announced, sent) in [(1000, 10), (1, 0), (20 << 20, 12 << 20)] {
        let mut source = Pattern::new(1, sent);
        let body = Body::Sized(announced, &mut source);
        let reply = rig.agent.request("PUT", &rig.target("k"), &[], body);
        reply.fails(
            "incomplete",
            &[
                "the connection ended before the body did",
                "nothing was stored",
            ],
        );
    }
    let head = "PUT /v1/objects/bucket/k HTTP/1.1\r\nHost: s\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunks in [
        "5\r\nhello\r\n",
        "5\r\nhel",
        "5\r\nhello\r\n0\r\n",
        "zz\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "6\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "",
    ] {
        let answer = raw(&rig.agent, format!("{head}{chunks}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400"), "{chunks:?}: {answer}");
        assert!(
            answer.contains("urn:strongroom:error:incomplete"),
            "{chunks:?}: {answer}"
        );
    }
    assert_eq!(rig.null.count(Op::Put), 0);
    rig.nothing_left();

    // RFC 9112, 6.3: chunks overrule a length, in either order.
    for (key, fields) in [
        ("first", "Content-Length: 3\r\nTransfer-Encoding: chunked"),
        ("last", "Transfer-Encoding: chunked\r\nContent-Length: 300"),
    ] {
        let request = format!(
            "PUT /v1/objects/bucket/{key} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        let answer = ask(&rig.agent, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 201"), "{fields}: {answer}");
        assert_eq!(rig.read(key), b"hello");
    }
    // What follows a body is no part of it; nor is it a request, since it
    // came before the answer.
    let request =
        "PUT /v1/objects/bucket/cut HTTP/1.1\r\nHost: s\r\nContent-Length: 3\r\n\r\nabcdef\r\n\r\n";
    let asked = Instant::now();
    let answer = ask(&rig.agent, request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    // Its client is hung up on, not left to wait for a second answer.
    assert!(asked.elapsed() < Duration::from_secs(8));
    assert_eq!(rig.read("cut"), b"abc");

    // One that waits for its answer may go on, with whatever it likes.
    let mut stream = rig.agent.connect();
    let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
    for (key, method) in [
        ("one", "PUT"),
        ("two", "PUT"),
        ("one", "GET"),
        ("two", "PUT"),
    ] {
        let body = if method == "PUT" { key } else { "" };
        let head = format!("{method} /v1/objects/bucket/{key} HTTP/1.1\r\nHost: s\r\n");
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).unwrap();
        let reply = http::read_reply(&mut reader, method, &mut std::io::sink()).unwrap();
        assert_eq!(reply.status / 100, 2, "{method} {key}");
        assert_eq!(reply.header("connection"), None, "{method} {key}");
    }
}

#[test]
fn unknown_routes_methods_and_parameters_are_named() {
    let rig = Rig::new();
    let before = rig.null.requests().len();
    for (method, target, kind, word) in [
        ("GET", "/", "not-found", "no route /"),
        ("GET", "/v1", "not-found", "no route /v1"),
        ("GET", "/v2/objects/bucket/k", "not-found", "/v2/objects"),
        ("GET", "/v1/object/bucket/k", "not-found", "/v1/object/"),
        ("GET", "/v1/statuses", "not-found", "/v1/statuses"),
        ("GET", "/v1/requests/none", "not-found", "no such request"),
        (
            "POST",
            "/v1/objects/bucket/k",
            "method-not-allowed",
            "POST /v1/objects/bucket/k",
        ),
        (
            "PATCH",
            "/v1/objects/bucket/k",
            "method-not-allowed",
            "PATCH",
        ),
        (
            "OPTIONS",
            "/v1/objects/bucket/k",
            "method-not-allowed",
            "OPTIONS",
        ),
        ("BREW", "/v1/objects/bucket/k", "method-not-allowed", "BREW"),
        (
            "POST",
            "/v1/status",
            "method-not-allowed",
            "POST /v1/status",
        ),
        ("GET", "/v1/reload", "method-not-allowed", "GET /v1/reload"),
        (
            "DELETE",
            "/v1/keys",
            "method-not-allowed",
            "DELETE /v1/keys",
        ),
        (
            "PUT",
            "/v1/objects/bucket",
            "malformed",
            "names a bucket and no key",
        ),
        (
            "PUT",
            "/v1/objects/bucket/",
            "malformed",
            "names a bucket and no key",
        ),
        (
            "DELETE",
            "/v1/objects/bucket",
            "malformed",
            "names a bucket and no key",
        ),
        (
            "POST",
            "/v1/rewrap",
            "malformed",
            "the query names no bucket",
        ),
        ("PUT", "/v1/uploads", "method-not-allowed", "/v1/uploads"),
        (
            "GET",
            "/v1/objects/bucket/k?versionId=x",
            "malformed",
            "unknown query parameter \"versionId\"",
        ),
        (
            "GET",
            "/v1/objects/bucket/k?inspect&x",
            "malformed",
            "\"x\"",
        ),
        (
            "PUT",
            "/v1/objects/bucket/k?version_id=x",
            "malformed",
            "\"version_id\"",
        ),
        (
            "DELETE",
            "/v1/objects/bucket/k?force",
            "malformed",
            "\"force\"",
        ),
        (
            "GET",
            "/v1/objects/bucket?prefx=a",
            "malformed",
            "\"prefx\"",
        ),
        ("GET", "/v1/objects/bucket?prefix=%FF", "malformed", "UTF-8"),
        ("POST", "/v1/keys", "malformed", "not the JSON of a new key"),
    ] {
        let reply = rig.agent.http(method, target, &[], b"x");
        reply.fails(kind, &[word]);
        assert!(reply.header("strongroom-request-id").is_some());
    }
    let wanted = br#"{"label":"new","token":"nobody"}"#;
    let reply = rig.agent.http("POST", "/v1/keys", &[], wanted);
    reply.fails("not-found", &["no token \"nobody\" is configured"]);
    rig.nothing_sent_since(before);
}

#[test]
fn headers_that_make_no_sense_are_named() {
    let rig = Rig::new();
    let before = rig.null.requests().len();
    let long = format!("a={}", "x".repeat(40 << 10));
    let third = |name: &str| format!("{name}={}", "x".repeat(15 << 10));
    let thirds = [third("a"), third("b"), third("c")];
    let context = "Strongroom-Context";
    let (until, mode) = ("Strongroom-Retain-Until", "Strongroom-Retention-Mode");
    let good = (mode, "GOVERNANCE");
    let put = |headers: &[(&str, &str)], kind: &str, words: &[&str]| {
        let reply = rig.agent.http("PUT", &rig.target("k"), headers, b"x");
        reply.fails(kind, words);
    };
    for (value, word) in [
        (
            "strongroom:bucket=other",
            "\"strongroom:bucket\" is reserved",
        ),
        ("strongroom:new=1", "\"strongroom:new\" is reserved"),
        (
            "aws-crypto-public-key=x",
            "\"aws-crypto-public-key\" is reserved",
        ),
        ("no pair", "must be key=value"),
        ("=value", "must be key=value"),
        ("", "must be key=value"),
    ] {
        put(&[(context, value)], "malformed", &[word]);
    }
    put(
        &[(context, "a=1"), (context, "a=2")],
        "malformed",
        &["context pair \"a\""],
    );
    put(
        &[(context, &long)],
        "too-large",
        &["context pair \"a\"", "docs/limits.md"],
    );
    let all: Vec<_> = thirds.iter().map(|pair| (context, pair.as_str())).collect();
    put(&all, "too-large", &["context pair \"c\""]);

    for (headers, word) in [
        (
            &[(until, "tomorrow"), good][..],
            "\"tomorrow\" is not an instant",
        ),
        (&[(until, "1999-01-01T00:00:00Z"), good], "is in the past"),
        (
            &[(until, "2999-01-01T00:00:00Z")],
            "both an instant and a mode",
        ),
        (&[good], "both an instant and a mode"),
        (
            &[(until, "2999-01-01T00:00:00Z"), (mode, "maybe")],
            "\"maybe\" must be GOVERNANCE or COMPLIANCE",
        ),
        (
            &[("Strongroom-Storage-Class", "glacier!")],
            "\"glacier!\" is not a storage class",
        ),
        (
            &[("Strongroom-Legal-Hold", "maybe")],
            "\"maybe\" must be ON or OFF",
        ),
        (&[("Strongroom-Tags", "novalue")], "a pair without '='"),
        (&[("Strongroom-Tags", "a=b c")], "percent-encoded"),
        (
            &[("Strongroom-Key", "nobody")],
            "no active wrapping key \"nobody\"",
        ),
        (&[("If-None-Match", "\"abc\"")], "only * is supported"),
        (&[("If-Match", "*")], "If-Match is not supported"),
        (&[("Content-Type", "\u{fc}")], "is not a content type"),
    ] {
        put(headers, "malformed", &[word]);
    }
    for (headers, word) in [
        (("Strongroom-Allow-Unbound", "yes"), "must be true or false"),
        (
            ("Strongroom-Allow-Uncommitted", "1"),
            "must be true or false",
        ),
        (
            ("Strongroom-Bound-To", "bucket/k"),
            "must be s3://BUCKET/KEY",
        ),
        (
            ("Strongroom-Bound-To", "s3://bucket"),
            "must be s3://BUCKET/KEY",
        ),
    ] {
        let reply = rig.agent.http("GET", &rig.target("k"), &[headers], b"");
        reply.fails("malformed", &[word]);
    }
    let url = rig.url("k");
    for (options, word) in [
        (&["--context", "strongroom:key=x"][..], "is reserved"),
        (&["--context", "x"], "write it as NAME=VALUE"),
        (
            &["--context", "a=1", "--context", "a=2"],
            "context pair \"a\"",
        ),
        (&["--context", "a=line\nbreak"], "no header can carry"),
        (
            &[
                "--retain-until",
                "tomorrow",
                "--retention-mode",
                "governance",
            ],
            "write a date",
        ),
        (
            &[
                "--retain-until",
                "1999-01-01",
                "--retention-mode",
                "governance",
            ],
            "in the past",
        ),
        (&["--retain-until", "2999-01-01"], "--retention-mode"),
        (
            &["--retention-mode", "maybe", "--retain-until", "2999-01-01"],
            "maybe",
        ),
        (&["--storage-class", "glacier!"], "is not a storage class"),
        (&["--tag", "novalue"], "write it as NAME=VALUE"),
        (&["--key", "nobody"], "no active wrapping key \"nobody\""),
        (&["--size", "many"], "many"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        let args = [&["put", "-", &url], options].concat();
        rig.agent.cli_in(args, b"x").fails(2, &[word]);
    }
    let args = ["put", "-", &url, "--context", &long];
    rig.agent
        .cli_in(args, b"x")
        .fails(1, &["context pair \"a\"", "hint: "]);
    rig.nothing_sent_since(before);
    rig.nothing_left();
}
