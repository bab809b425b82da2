//! The store module against a store that fails in every way we know of.
#![allow(clippy::unwrap_used)]

#[path = "support/null_store.rs"]
mod null_store;

use std::sync::Once;
use std::time::{Duration, Instant};

use bytes::Bytes;
use null_store::{Fault, NullStore, Op};
use strongroom::config::{Checksum, PayloadSigning, S3};
use strongroom::store::{
    Attributes, ByteRange, Limits, METADATA_MESSAGE_ID, PartBody, Place, Pool, Select, Spool,
    Store, StoreError, Timing, Upload,
};

const MIB: u64 = 1 << 20;
const TINY: Limits = Limits {
    min_part: 16,
    max_part: 1 << 20,
    max_parts: 20,
};
const QUICK: Timing = Timing {
    connect: Duration::from_millis(500),
    stall: Duration::from_millis(300),
    answer: Duration::from_millis(800),
    complete: Duration::from_millis(800),
    backoff: Duration::from_millis(1),
    slowest: 1 << 30,
};

fn credentials() {
    static ONCE: Once = Once::new();
    // SAFETY: every test comes through here before it reads the environment,
    // and nothing writes to it afterwards.
    #[allow(unsafe_code, reason = "the SDK takes credentials from the environment")]
    ONCE.call_once(|| unsafe {
        std::env::set_var("AWS_ACCESS_KEY_ID", "test-access");
        std::env::set_var("AWS_SECRET_ACCESS_KEY", "test-secret");
        std::env::set_var("AWS_EC2_METADATA_DISABLED", "true");
        std::env::set_var("AWS_ENDPOINT_URL", "http://192.0.2.1:1");
    });
}

async fn store_with(null: &NullStore, change: impl FnOnce(&mut S3)) -> Store {
    credentials();
    let mut config = S3 {
        region: Some("eu-central-1".into()),
        endpoint_url: Some(null.endpoint()),
        force_path_style: true,
        ..S3::default()
    };
    change(&mut config);
    Store::connect_with(&config, TINY, QUICK).await.unwrap()
}

async fn start() -> (NullStore, Store) {
    let null = NullStore::start();
    let store = store_with(&null, |_| {}).await;
    (null, store)
}

fn place() -> Place {
    Place::new("bucket", "key")
}

fn ours(id: &str) -> Attributes {
    Attributes {
        metadata: vec![(METADATA_MESSAGE_ID.into(), id.into())],
        if_none_match: true,
        ..Attributes::default()
    }
}

fn memory(len: usize, seed: u8) -> PartBody {
    PartBody::Memory(bytes(len, seed))
}

fn bytes(len: usize, seed: u8) -> Bytes {
    (0..len)
        .map(|i| u8::try_from(i % 253).unwrap() ^ seed)
        .collect()
}

/// Begins an upload and sends three parts; what `complete` must yield.
async fn three_parts(store: &Store, attributes: &Attributes) -> (Upload, Vec<u8>) {
    let mut upload = store.begin(&place(), attributes, 2).await.unwrap();
    let mut whole = Vec::new();
    for (seed, len) in [(1, 100_000), (2, 100_000), (3, 7)] {
        upload.send(memory(len, seed)).await.unwrap();
        whole.extend_from_slice(&bytes(len, seed));
    }
    (upload, whole)
}

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
async fn parts_from_memory_and_spool_become_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let null = NullStore::start();
    for signing in [PayloadSigning::Always, PayloadSigning::Never] {
        let store = store_with(&null, |c| c.payload_signing = signing).await;
        let spool = Spool::new(dir.path(), 8 * MIB);
        let pool = Pool::new(4 * MIB);
        let mut upload = store
            .begin(&place(), &Attributes::default(), 3)
            .await
            .unwrap();
        let mut whole = Vec::new();
        for n in 0..12_u8 {
            let part = bytes(600_000 + usize::from(n), n);
            whole.extend_from_slice(&part);
            let body = if n % 2 == 0 {
                let mut buffer = pool
                    .reserve(part.len(), Duration::from_secs(9))
                    .await
                    .unwrap();
                buffer.extend_from_slice(&part);
                buffer.mark_ciphertext();
                PartBody::Memory(buffer.freeze())
            } else {
                let mut file = spool.create().unwrap();
                file.append(part.slice(..1000)).await.unwrap();
                file.append(part.slice(1000..)).await.unwrap();
                PartBody::Spooled(file)
            };
            upload.send(body).await.unwrap();
        }
        let stored = upload.complete().await.unwrap();
        let object = null.object("bucket/key").unwrap();
        assert_eq!(object.body.unwrap(), whole);
        assert_eq!(stored.size, whole.len() as u64);
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &whole);
        let base64 = data_encoding::BASE64.encode(&crc.to_be_bytes());
        assert_eq!(stored.checksum, format!("crc64nvme:{base64}"));
        assert_eq!((pool.in_use(), spool.in_use()), (0, 0));
    }
}

#[tokio::test]
async fn passing_faults_are_retried_from_the_buffered_ciphertext() {
    let faults = [
        Fault::Status(503, "SlowDown"),
        Fault::Status(500, "InternalError"),
        Fault::Cut,
        Fault::LostReply,
        Fault::Stall,
    ];
    for fault in faults {
        let (null, store) = start().await;
        null.inject(Op::Part, 2, 2, fault.clone());
        null.inject(Op::Create, 1, 1, fault.clone());
        null.inject(Op::Complete, 1, 1, fault.clone());
        null.inject(Op::Put, 1, 1, fault.clone());
        let (upload, whole) = three_parts(&store, &ours("a")).await;
        let stored = upload
            .complete()
            .await
            .unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        let object = null.object("bucket/key").unwrap();
        assert_eq!(object.body.unwrap(), whole, "{fault:?}");
        assert_eq!(stored.etag.unwrap(), object.etag);
        assert_eq!(null.count(Op::Part), 5, "{fault:?}");
        let other = Place::new("bucket", "other");
        store
            .put(&other, &ours("b"), memory(300_000, 9))
            .await
            .unwrap();
        assert_eq!(
            null.object("bucket/other").unwrap().body.unwrap(),
            bytes(300_000, 9)
        );
    }
}

#[tokio::test]
async fn lasting_faults_are_told_and_leave_nothing() {
    let cases = [
        (Fault::Status(503, "SlowDown"), "busy"),
        (Fault::Status(500, "InternalError"), "away"),
        (Fault::Cut, "away"),
        (Fault::Stall, "away"),
        (Fault::WrongChecksum, "altered"),
        (Fault::Status(400, "BadDigest"), "altered"),
        (Fault::Status(403, "AccessDenied"), "denies"),
    ];
    for (fault, words) in cases {
        for op in [Op::Part, Op::Complete, Op::Put] {
            let (null, store) = start().await;
            null.inject(op, 1, 99, fault.clone());
            let begun = Instant::now();
            let error = if op == Op::Put {
                store
                    .put(&place(), &ours("a"), memory(300_000, 1))
                    .await
                    .unwrap_err()
            } else {
                let mut upload = store.begin(&place(), &ours("a"), 2).await.unwrap();
                let mut sent = Ok(());
                for seed in 0..3 {
                    sent = sent.and(upload.send(memory(300_000, seed)).await);
                }
                let completed = upload.complete().await.unwrap_err();
                if let Err(first) = sent {
                    assert_eq!(first.to_string(), completed.to_string());
                }
                completed
            };
            assert!(
                error.to_string().contains(words),
                "{op:?} {fault:?}: {error}"
            );
            assert!(!error.to_string().contains("test-secret"));
            assert_eq!(null.open_uploads(), 0, "{op:?} {fault:?}");
            assert_eq!(null.keys(), [""; 0], "{op:?} {fault:?}");
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
    }
}

#[tokio::test]
async fn the_first_error_ends_sending_early() {
    let (null, store) = start().await;
    null.inject(Op::Part, 1, 99, Fault::Status(403, "AccessDenied"));
    let mut upload = store
        .begin(&place(), &Attributes::default(), 2)
        .await
        .unwrap();
    let mut sent = 0;
    let error = loop {
        match upload.send(memory(1000, 0)).await {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 10);
    };
    assert!(matches!(error, StoreError::Denied { .. }));
    upload.abort().await;
    assert_eq!(null.open_uploads(), 0);
}

#[tokio::test]
async fn an_error_inside_a_200_is_an_error() {
    let (null, store) = start().await;
    null.inject(Op::Complete, 1, 99, Fault::ErrorIn200("InternalError"));
    let (upload, _) = three_parts(&store, &ours("a")).await;
    let error = upload.complete().await.unwrap_err();
    assert!(matches!(error, StoreError::Away { .. }), "{error}");
    assert_eq!((null.open_uploads(), null.keys().len()), (0, 0));
}

#[tokio::test]
async fn a_lost_reply_is_resolved_by_comparing() {
    let (null, store) = start().await;
    // All five attempts: the first works, the others are told 412.
    null.inject(Op::Put, 1, 1, Fault::LostReply);
    let stored = store
        .put(&place(), &ours("a"), memory(50, 1))
        .await
        .unwrap();
    assert_eq!(stored.etag, null.object("bucket/key").map(|o| o.etag));
    assert_eq!(null.count(Op::Put), 2);

    // Somebody else's object is not taken for ours.
    null.plant("bucket/key", bytes(50, 1));
    null.inject(Op::Put, 1, 1, Fault::LostReply);
    let error = store
        .put(&place(), &ours("b"), memory(50, 1))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Exists), "{error}");

    // The completion's second attempt meets NoSuchUpload.
    store.delete(&place(), None).await.unwrap();
    null.inject(Op::Complete, 1, 1, Fault::LostReply);
    let (upload, whole) = three_parts(&store, &ours("c")).await;
    let stored = upload.complete().await.unwrap();
    assert_eq!(stored.size, whole.len() as u64);
    assert_eq!(stored.etag, null.object("bucket/key").map(|o| o.etag));

    // Ours by message id, but not what we sent.
    store.delete(&place(), None).await.unwrap();
    store
        .put(&place(), &ours("d"), memory(49, 1))
        .await
        .unwrap();
    let error = store
        .put(&place(), &ours("d"), memory(50, 1))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn existing_objects_are_not_replaced() {
    let (null, store) = start().await;
    null.plant("bucket/key", bytes(3, 3));
    let error = store
        .put(&place(), &ours("a"), memory(50, 1))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Exists));
    let (upload, _) = three_parts(&store, &ours("a")).await;
    let error = upload.complete().await.unwrap_err();
    assert!(matches!(error, StoreError::Exists));
    assert_eq!(null.open_uploads(), 0);
    assert_eq!(
        null.object("bucket/key").unwrap().body.unwrap(),
        bytes(3, 3)
    );

    store.delete(&place(), None).await.unwrap();
    null.inject(
        Op::Complete,
        1,
        99,
        Fault::Status(409, "ConditionalRequestConflict"),
    );
    let (upload, _) = three_parts(&store, &ours("a")).await;
    let error = upload.complete().await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }));
    assert_eq!((null.open_uploads(), null.keys().len()), (0, 0));
}

#[tokio::test]
async fn a_store_that_tells_no_checksum_is_measured() {
    let (null, store) = start().await;
    null.tells_no_checksum(true);
    let (upload, _) = three_parts(&store, &ours("a")).await;
    upload.complete().await.unwrap();
    assert_eq!(null.count(Op::Head), 1);
}

#[tokio::test]
async fn limits_on_parts_are_kept() {
    let (null, store) = start().await;
    let mut upload = store
        .begin(&place(), &Attributes::default(), 2)
        .await
        .unwrap();
    upload.send(memory(15, 0)).await.unwrap();
    let error = upload.send(memory(16, 0)).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }));
    upload.complete().await.unwrap_err();

    let mut upload = store
        .begin(&place(), &Attributes::default(), 2)
        .await
        .unwrap();
    for _ in 0..20 {
        upload.send(memory(16, 0)).await.unwrap();
    }
    upload.send(memory(16, 0)).await.unwrap_err();
    upload.abort().await;

    let upload = store
        .begin(&place(), &Attributes::default(), 2)
        .await
        .unwrap();
    upload.complete().await.unwrap_err();
    assert_eq!((null.open_uploads(), null.keys().len()), (0, 0));
}

#[tokio::test]
async fn an_abandoned_upload_is_aborted() {
    let (null, store) = start().await;
    null.inject(Op::Part, 1, 9, Fault::Stall);
    let mut upload = store
        .begin(&place(), &Attributes::default(), 2)
        .await
        .unwrap();
    upload.send(memory(1000, 0)).await.unwrap();
    assert_eq!(null.open_uploads(), 1);
    drop(upload);
    let begun = Instant::now();
    while null.open_uploads() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn reads_are_pinned_to_one_version() {
    for versioned in [false, true] {
        let (null, store) = start().await;
        null.versioned(versioned);
        let first = bytes(100_000, 1);
        null.plant("bucket/key", first.clone());
        let pool = Pool::new(MIB);
        let mut buffer = pool.try_reserve(50_000).unwrap();
        let select = Select {
            range: Some(ByteRange::new(0, 29_999)),
            ..Select::default()
        };
        let head = store.fetch(&place(), select, &mut buffer).await.unwrap();
        assert_eq!((head.start, head.len, head.total_len), (0, 30_000, 100_000));
        null.plant("bucket/key", bytes(100_000, 2));
        let select = Select {
            range: Some(ByteRange::new(30_000, 49_999)),
            pin: Some(head.pin.clone()),
            ..Select::default()
        };
        let rest = store.fetch(&place(), select.clone(), &mut buffer).await;
        if versioned {
            assert_eq!(rest.unwrap().pin, head.pin);
            assert_eq!(buffer.as_slice(), &first[..50_000]);
        } else {
            assert!(matches!(rest.unwrap_err(), StoreError::Changed));
            assert_eq!(buffer.len(), 30_000, "the buffer is as before");
        }
        store.delete(&place(), None).await.unwrap();
        buffer.truncate(0);
        let error = store
            .fetch(&place(), select, &mut buffer)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Changed), "{error}");
    }
}

#[tokio::test]
async fn reads_get_what_they_asked_for_or_an_error() {
    let (null, store) = start().await;
    let body = bytes(100_000, 1);
    null.plant("bucket/key", body.clone());
    null.plant("bucket/empty", Bytes::new());
    let get = async |key: &str, range: Option<ByteRange>, limit| {
        let select = Select {
            range,
            ..Select::default()
        };
        store
            .fetch_bytes(&Place::new("bucket", key), select, limit)
            .await
    };
    let (all, got) = get("key", None, 100_000).await.unwrap();
    assert_eq!((all.total_len, got.as_ref()), (100_000, body.as_ref()));
    let (some, got) = get("key", Some(ByteRange::suffix(10)), 10).await.unwrap();
    assert_eq!((some.start, got.as_ref()), (99_990, &body[99_990..]));
    let (some, got) = get("key", Some(ByteRange::new(99_999, 200_000)), 10)
        .await
        .unwrap();
    assert_eq!((some.len, got.as_ref()), (1, &body[99_999..]));

    let error = get("key", None, 99_999).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }));
    let error = get("key", Some(ByteRange::new(100_000, 100_001)), 10)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Invalid { .. }), "{error}");
    let (none, got) = get("empty", Some(ByteRange::new(0, 4095)), 4096)
        .await
        .unwrap();
    assert_eq!((none.total_len, got.len()), (0, 0));
    assert!(none.pin.etag.is_some());
    get("empty", None, 0).await.unwrap();

    // Broken off three times, the fourth attempt brings it; four are too many.
    null.inject(Op::Get, 1, 3, Fault::ShortBody);
    let (_, got) = get("key", None, 100_000).await.unwrap();
    assert_eq!(got.as_ref(), body.as_ref());
    null.inject(Op::Get, 1, 4, Fault::ShortBody);
    let error = get("key", None, 100_000).await.unwrap_err();
    assert!(matches!(error, StoreError::Away { .. }), "{error}");

    let error = get("none", None, 10).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSuchKey { .. }));
    let version = Select {
        version_id: Some("v99".into()),
        ..Select::default()
    };
    let error = store.fetch_bytes(&place(), version, 10).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSuchVersion { .. }));
}

#[tokio::test]
async fn buckets_and_access_are_told_apart() {
    let (null, store) = start().await;
    let missing = Place::new("missing", "key");
    let errors = [
        store
            .put(&missing, &ours("a"), memory(5, 0))
            .await
            .unwrap_err(),
        store.begin(&missing, &ours("a"), 2).await.unwrap_err(),
        store.head(&missing, None).await.unwrap_err(),
        store
            .fetch_bytes(&missing, Select::default(), 5)
            .await
            .unwrap_err(),
        store.list("missing", "", None, None, 10).await.unwrap_err(),
        store.probe_bucket("missing").await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, StoreError::NoSuchBucket { .. }), "{error}");
        assert!(error.to_string().contains("missing"));
    }
    let error = store.probe_bucket("denied").await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    null.versioned(true);
    let facts = store.probe_bucket("bucket").await.unwrap();
    assert_eq!(
        (facts.versioning, facts.object_lock),
        (Some(true), Some(false))
    );

    let closed = NullStore::start();
    let away = store_with(&closed, |_| {}).await;
    drop(closed);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let error = away
        .put(&place(), &ours("a"), memory(5, 0))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Away { .. }), "{error}");
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out() {
    let (null, store) = start().await;
    assert!(
        store
            .probe_if_none_match("bucket", ".strongroom/probe")
            .await
            .unwrap()
    );
    null.ignores_if_none_match(true);
    assert!(
        !store
            .probe_if_none_match("bucket", ".strongroom/probe")
            .await
            .unwrap()
    );
    assert_eq!(null.keys(), [""; 0]);
}

#[tokio::test]
async fn slots_are_written_once_and_keep_their_retention() {
    let (null, store) = start().await;
    let attributes = Attributes {
        retain_until: Some("2999-01-01T00:00:00Z".into()),
        retention_mode: Some("COMPLIANCE".into()),
        tags: Some("a=1".into()),
        ..ours("a")
    };
    let slot = Bytes::from_static(b"slot");
    store
        .put_slot("bucket", "p/id/0", slot.clone(), &attributes)
        .await
        .unwrap();
    let error = store
        .put_slot("bucket", "p/id/0", slot, &attributes)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Exists));
    assert_eq!(
        store
            .get_slot("bucket", "p/id/0", 4)
            .await
            .unwrap()
            .as_ref(),
        b"slot"
    );
    store.get_slot("bucket", "p/id/0", 3).await.unwrap_err();
    let request = &null.requests()[0];
    assert_eq!(request.headers["x-amz-object-lock-mode"], "COMPLIANCE");
    assert!(!request.headers.contains_key("x-amz-tagging"));
    assert!(
        !request
            .headers
            .contains_key("x-amz-meta-strongroom-message-id")
    );
}

#[tokio::test]
async fn listings_come_in_pages_with_keys_as_they_are() {
    let (null, store) = start().await;
    let keys = ["a b", "a%2Fb", "a+b", "d/1", "d/2", "e/x", "\u{e9}"];
    for key in keys {
        null.plant(&format!("bucket/{key}"), bytes(4, 0));
    }
    let mut found = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let page = store
            .list("bucket", "", None, next.as_deref(), 2)
            .await
            .unwrap();
        assert!(page.objects.len() <= 2);
        found.extend(page.objects.into_iter().map(|o| o.key));
        next = page.continuation;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(found, keys);
    let page = store
        .list("bucket", "", Some("/"), None, 1000)
        .await
        .unwrap();
    assert_eq!(page.prefixes, ["d/", "e/"]);
    assert_eq!(page.objects.len(), 4);
    assert_eq!(page.objects[0].size, 4);
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
