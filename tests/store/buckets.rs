//! Buckets: what a probe finds, what a listing shows, what slots are.

use std::time::Duration;

use bytes::Bytes;
use strongroom::store::{Attributes, Place, Select, StoreError};

use crate::null_store::{Fault, NullStore, Op};
use crate::{bytes, memory, ours, place, start, store_with};

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
    let other = Bytes::from_static(b"else");
    let error = store
        .put_slot("bucket", "p/id/0", other, &attributes)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Exists));
    // The same again, as a retry after a lost answer writes it, is no fault.
    store
        .put_slot("bucket", "p/id/0", slot.clone(), &attributes)
        .await
        .unwrap();
    null.inject(Op::Put, 1, 1, Fault::LostReply);
    store
        .put_slot("bucket", "p/id2/0", slot, &attributes)
        .await
        .unwrap();
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
