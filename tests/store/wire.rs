//! What goes over the wire, and to whom: keys, attributes, endpoint, roots.

use strongroom::config::{Checksum, PayloadSigning, S3};
use strongroom::store::{Attributes, Place, Select, Store, StoreError};

use crate::null_store::{NullStore, Op};
use crate::{TINY, credentials, memory, ours, place, start, store_with, three_parts};

#[tokio::test]
async fn every_key_goes_out_right_on_the_wire() {
    let (null, store) = start().await;
    let longest = "\u{4e2d}".repeat(341) + "k";
    assert_eq!(longest.len(), 1024);
    let keys = [
        "plain",
        "..",
        ".",
        "a/../b",
        "./a",
        "a/..",
        "../../etc/passwd",
        "a//b",
        "//",
        "/",
        "/lead",
        "trail/",
        "a%2Fb",
        "%2e%2e",
        "%",
        "a b",
        " ",
        "\t\u{3000}",
        "x/strongroom-stand-in.20",
        "a+b",
        "a?b#c&d=e",
        "\u{e9}\u{4e2d}\u{1f600}",
        "a\tb\nc",
        "~-_.!*'()",
        "a;b:c,d@e$f",
        "\u{fffd}\\^`|<>\"{}[]",
        &longest,
    ];
    for key in keys {
        let place = Place::new("bucket", key);
        // RFC 3986: all but unreserved characters percent-encoded, slashes kept.
        let mut path = String::from("/bucket/");
        for b in key.bytes() {
            match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                    path.push(char::from(b));
                }
                _ => path += &format!("%{b:02X}"),
            }
        }
        let before = null.requests().len();
        store
            .put(&place, &Attributes::default(), memory(5, 0))
            .await
            .unwrap();
        assert_eq!(
            null.object(&format!("bucket/{key}")).unwrap().size,
            5,
            "{key:?}"
        );
        let mut upload = store
            .begin(&place, &Attributes::default(), 1)
            .await
            .unwrap();
        upload.send(memory(6, 0)).await.unwrap();
        upload.complete().await.unwrap();
        let (fetched, body) = store
            .fetch_bytes(&place, Select::default(), 100)
            .await
            .unwrap();
        assert_eq!((fetched.total_len, body.len()), (6, 6));
        assert_eq!(store.head(&place, None).await.unwrap().size, 6);
        store
            .begin(&place, &Attributes::default(), 1)
            .await
            .unwrap()
            .abort()
            .await;
        store.delete(&place, None).await.unwrap();
        let requests = null.requests().split_off(before);
        assert!(requests.len() >= 9);
        for request in requests {
            let target = request.target.split('?').next().unwrap();
            assert_eq!(target, path, "{:?} of {key:?}", request.op);
        }
        assert!(null.object(&format!("bucket/{key}")).is_none());
    }
    for key in ["", "a\0b", &"k".repeat(1025)] {
        let before = null.requests().len();
        let place = Place::new("bucket", key);
        let error = store
            .put(&place, &Attributes::default(), memory(5, 0))
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Invalid { .. }), "{error}");
        assert_eq!(null.requests().len(), before, "{key:?} was sent");
    }
}

#[tokio::test]
async fn rule_27_an_endpoint_from_the_environment_is_ignored() {
    let null = NullStore::start();
    // AWS_ENDPOINT_URL is set; see `credentials`.
    let store = store_with(&null, |c| c.endpoint_url = None).await;
    assert_eq!(store.endpoint(), "https://s3.eu-central-1.amazonaws.com");
}

#[tokio::test]
async fn attributes_and_payload_settings_reach_the_store() {
    let null = NullStore::start();
    let attributes = Attributes {
        content_type: Some("text/plain".into()),
        storage_class: Some("GLACIER_IR".into()),
        retain_until: Some("2999-01-01T00:00:00Z".into()),
        retention_mode: Some("GOVERNANCE".into()),
        legal_hold: Some("ON".into()),
        tags: Some("a=1&b=2".into()),
        ..ours("id")
    };
    for (signing, checksum) in [
        (PayloadSigning::Auto, Checksum::Crc64nvme),
        (PayloadSigning::Never, Checksum::Crc32c),
        (PayloadSigning::Always, Checksum::Sha256),
    ] {
        let store = store_with(&null, |c| {
            c.payload_signing = signing;
            c.checksum = checksum;
            c.expected_bucket_owner = Some("111122223333".into());
            c.sse = Some("AES256".into());
        })
        .await;
        store.delete(&place(), None).await.unwrap();
        let before = null.requests().len();
        let put = store
            .put(&place(), &attributes, memory(300_000, 0))
            .await
            .unwrap();
        store.delete(&place(), None).await.unwrap();
        let (upload, _) = three_parts(&store, &attributes).await;
        let whole = upload.complete().await.unwrap();
        assert_eq!((put.size, whole.size), (300_000, 200_007));
        for request in null.requests().split_off(before) {
            let has = |name: &str| request.headers.get(name).map(|v| v.to_str().unwrap());
            assert_eq!(has("x-amz-expected-bucket-owner"), Some("111122223333"));
            assert_eq!(has("x-amz-trailer"), None);
            assert_eq!(has("content-encoding"), None);
            assert_eq!(has("transfer-encoding"), None);
            if matches!(request.op, Op::Put | Op::Part) {
                let unsigned = has("x-amz-content-sha256") == Some("UNSIGNED-PAYLOAD");
                assert_eq!(unsigned, signing == PayloadSigning::Never);
                let name = match checksum {
                    Checksum::Crc64nvme => "x-amz-checksum-crc64nvme",
                    Checksum::Crc32c => "x-amz-checksum-crc32c",
                    Checksum::Sha256 => "x-amz-checksum-sha256",
                };
                assert!(has(name).is_some());
            }
            if matches!(request.op, Op::Put | Op::Create) {
                assert_eq!(has("content-type"), Some("text/plain"));
                assert_eq!(has("x-amz-storage-class"), Some("GLACIER_IR"));
                assert_eq!(has("x-amz-object-lock-mode"), Some("GOVERNANCE"));
                assert_eq!(
                    has("x-amz-object-lock-retain-until-date"),
                    Some("2999-01-01T00:00:00Z")
                );
                assert_eq!(has("x-amz-object-lock-legal-hold"), Some("ON"));
                assert_eq!(has("x-amz-tagging"), Some("a=1&b=2"));
                assert_eq!(has("x-amz-meta-strongroom-message-id"), Some("id"));
                assert_eq!(has("x-amz-server-side-encryption"), Some("AES256"));
            }
            if matches!(request.op, Op::Put | Op::Complete) {
                assert_eq!(has("if-none-match"), Some("*"));
            }
        }
    }
}

#[tokio::test]
async fn a_bad_ca_bundle_is_refused_at_the_start() {
    credentials();
    let dir = tempfile::tempdir().unwrap();
    let bad = [
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ];
    for (i, text) in bad.into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.pem"));
        std::fs::write(&path, text).unwrap();
        let config = S3 {
            region: Some("eu-central-1".into()),
            ca_bundle: Some(path),
            ..S3::default()
        };
        let error = Store::connect(&config, TINY).await.unwrap_err();
        assert!(error.to_string().contains("ca_bundle"), "{error}");
    }
}
