//! Reads: one version, the bytes that were asked for, or an error.

use bytes::Bytes;
use strongroom::store::{ByteRange, Place, Pool, Select, StoreError};

use crate::null_store::{Fault, Op};
use crate::{MIB, bytes, place, start};

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

    // Served under that id, but not said to be that version.
    let version = Select {
        version_id: Some(null.object("bucket/key").unwrap().version),
        ..Select::default()
    };
    let served = store.fetch_bytes(&place(), version, 100_000).await;
    assert!(matches!(served, Err(StoreError::NoSuchVersion { .. })));
}
