//! The harness holds what its own tests promise: it would notice a wrong byte,
//! and what it shows of S3 and of the token is what is there.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::panic::catch_unwind;

use support::*;

#[test]
fn patterns_are_the_same_from_any_offset() {
    let whole = pattern(7, 1000);
    assert_ne!(whole, pattern(8, 1000));
    for (start, end) in [(0, 1), (3, 900), (8, 16), (999, 1000), (5, 5)] {
        let mut part = Vec::new();
        let mut range = Pattern::range(7, start as u64, end as u64);
        range.read_to_end(&mut part).unwrap();
        assert_eq!(part, whole[start..end]);
    }
}

#[test]
fn a_wrong_missing_or_extra_byte_is_noticed() {
    let compare = |bytes: Vec<u8>| {
        catch_unwind(move || {
            let mut sink = Compare::with(Pattern::new(7, 1000));
            for piece in bytes.chunks(33) {
                sink.write_all(piece).unwrap();
            }
            sink.finish();
        })
    };
    let right = pattern(7, 1000);
    assert!(compare(right.clone()).is_ok());
    assert!(compare(right[..999].to_vec()).is_err());
    assert!(compare([right.as_slice(), &[0]].concat()).is_err());
    let mut wrong = right;
    wrong[500] ^= 1;
    assert!(compare(wrong).is_err());
}

#[test]
fn the_raw_view_of_s3_shows_versions_and_uploads() {
    let weed = Weed::shared();
    let bucket = weed.versioned_bucket("harness");
    assert_eq!(weed.raw_get(&bucket, "k"), None);
    weed.raw_put(&bucket, "k", b"old");
    weed.raw_put_with(&bucket, "k", b"new", &[("a".into(), "b".into())]);
    assert_eq!(weed.raw_get(&bucket, "k").unwrap(), b"new");
    assert_eq!(weed.raw_head(&bucket, "k").metadata().unwrap()["a"], "b");
    let versions = weed.list_versions(&bucket, "");
    assert_eq!(versions.len(), 2);
    let old = versions.iter().find(|v| !v.latest).unwrap();
    let bytes = weed.raw_get_version(&bucket, "k", Some(&old.id));
    assert_eq!(bytes.unwrap(), b"old");
    weed.raw_delete(&bucket, "k");
    assert_eq!(weed.raw_get(&bucket, "k"), None);
    assert!(weed.list(&bucket, "").is_empty());

    assert!(weed.list_uploads(&bucket).is_empty());
    let begin = weed.client.create_multipart_upload().bucket(&bucket);
    let begun = weed.wait(begin.key("x").send()).unwrap();
    let uploads = [("x".to_owned(), begun.upload_id().unwrap().to_owned())];
    assert_eq!(weed.list_uploads(&bucket), uploads);
}

#[tokio::test]
async fn the_harness_works_inside_a_runtime() {
    let weed = Weed::start();
    let bucket = weed.locked_bucket("harness");
    weed.raw_put(&bucket, "k", b"x");
    assert_eq!(weed.list_versions(&bucket, "").len(), 1);
}

#[test]
fn tokens_and_keys_can_be_made_as_a_test_wants_them() {
    let hsm = Hsm::bare();
    hsm.add_token(hsm::TOKEN_LABEL);
    hsm.create(&KeySpec::new("archive").bytes(&[7; 32]));
    let leaky = KeySpec::new("archive");
    hsm.create(&leaky.with("extractable", true).with("sensitive", false));
    hsm.destroy("archive");
    hsm.create(&KeySpec::new("archive").any_mechanism());
}

/// Serves one connection with these bytes once the request's head has come,
/// then closes.
fn serve_once(socket: &std::path::Path, reply: Vec<u8>) -> std::thread::JoinHandle<()> {
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            head.push(byte[0]);
        }
        stream.write_all(&reply).unwrap();
    })
}

#[test]
fn a_body_that_breaks_off_does_not_look_whole() {
    let dir = temp_dir();
    let replies: [(&[u8], &[u8], bool); 6] = [
        (b"Content-Length: 5\r\n\r\nhello", b"hello", true),
        (b"Content-Length: 5\r\n\r\nhell", b"hell", false),
        (
            b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
            b"hello",
            true,
        ),
        (
            b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n",
            b"hello",
            false,
        ),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", b"hel", false),
        (b"Content-Length: 0\r\n\r\n", b"", true),
    ];
    for (i, (rest, body, complete)) in replies.into_iter().enumerate() {
        let socket = dir.path().join(i.to_string());
        let server = serve_once(&socket, [b"HTTP/1.1 200 OK\r\nX-Y: z\r\n", rest].concat());
        // More than the socket's buffer: the server never reads it.
        let mut source = Pattern::new(1, 8 << 20);
        let mut kept = Vec::new();
        let request = Body::Chunked(&mut source);
        let reply = http::send(&socket, "PUT", "/x", &[], request, &mut kept).unwrap();
        assert_eq!((reply.status, reply.header("x-y")), (200, Some("z")));
        assert_eq!((kept.as_slice(), reply.complete), (body, complete), "{i}");
        server.join().unwrap();
    }
}
