//! Uploads: parts become one object, or nothing.

use std::time::{Duration, Instant};

use strongroom::config::PayloadSigning;
use strongroom::store::{Attributes, PartBody, Pool, Spool, StoreError};

use crate::null_store::{Fault, NullStore, Op};
use crate::{MIB, bytes, memory, ours, place, start, store_with, three_parts};

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
