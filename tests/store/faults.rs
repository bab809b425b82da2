//! A store that fails while it is written to: what is retried, what is told.

use std::time::{Duration, Instant};

use strongroom::store::{Attributes, Place, StoreError};

use crate::null_store::{Fault, Op};
use crate::{bytes, memory, ours, place, start, three_parts};

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

/// The SDK's quota of retries, 500 tokens for the whole process, would be
/// used up by this outage.
#[tokio::test]
async fn an_outage_does_not_use_up_the_retries_of_what_comes_after_it() {
    let (null, store) = start().await;
    null.inject(Op::Put, 1, 200, Fault::Status(500, "InternalError"));
    for _ in 0..40 {
        let failed = store.put(&place(), &ours("a"), memory(100, 1)).await;
        assert!(matches!(failed, Err(StoreError::Away { .. })), "{failed:?}");
    }
    null.inject(Op::Put, 1, 4, Fault::Status(500, "InternalError"));
    store
        .put(&place(), &ours("a"), memory(100, 1))
        .await
        .unwrap();
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
