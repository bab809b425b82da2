//! Catalogues of former schema versions, and copies of this one.

#![allow(clippy::unwrap_used)]

use rusqlite::{Connection, params};

use super::tests::{fresh, hex, receipt};
use super::*;

/// A catalogue as the release with the first `version` migrations left it,
/// with rows in every table that it had.
fn of_version(dir: &Path, version: usize) {
    let conn = Connection::open(dir.join(FILE)).unwrap();
    for statements in &schema::MIGRATIONS[..version] {
        conn.execute_batch(statements).unwrap();
    }
    conn.pragma_update(None, "application_id", schema::APPLICATION_ID)
        .unwrap();
    let number = i32::try_from(version).unwrap();
    conn.pragma_update(None, "user_version", number).unwrap();
    conn.execute_batch(
        "INSERT INTO place (id, bucket, key) VALUES (1, 'b', 'k'), (2, 'b', 'gone');
         UPDATE place SET deleted = 99 WHERE id = 2;",
    )
    .unwrap();
    for (place, id) in [(1, 1_u8), (1, 2), (2, 3)] {
        let r = receipt("k", id, u64::from(id) * 10);
        conn.execute(
            "INSERT INTO message (place, message_id, created, recorded, version_id, etag,
                                  plaintext_size, stored_size, checksum, wrapping_key)
             VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                place,
                message_id(&r.message_id).unwrap(),
                i64::from(id) * 10,
                r.version_id,
                r.etag,
                i64::try_from(r.plaintext_size).unwrap(),
                i64::try_from(r.stored_size).unwrap(),
                r.checksum,
                r.wrapping_key
            ],
        )
        .unwrap();
    }
    conn.execute_batch(
        "UPDATE place SET current = 2 WHERE id = 1; UPDATE place SET current = 3 WHERE id = 2;
         INSERT INTO foreign_write (place, message_id, created, first_seen, last_seen)
             VALUES (1, x'ff', 5, 5, 5);
         INSERT INTO canary VALUES ('archive', x'000000000000000000000000', x'01', zeroblob(32), 7);",
    )
    .unwrap();
    if version > 1 {
        conn.execute_batch("INSERT INTO wraps VALUES ('archive', 65536, 1)")
            .unwrap();
    }
    if version > 2 {
        conn.execute_batch(
            "INSERT INTO dependents VALUES ('queue', 't', 'archive', 's3://b/k', 1);
             INSERT INTO header VALUES (2, x'02');",
        )
        .unwrap();
    }
}

#[tokio::test]
async fn a_catalogue_of_each_former_version_opens_and_works() {
    for version in 1..schema::MIGRATIONS.len() {
        let dir = tempfile::tempdir().unwrap();
        of_version(dir.path(), version);
        let catalog = Catalog::open(dir.path()).unwrap();
        let known = catalog.lookup("b", "k").await.unwrap().unwrap();
        assert_eq!(known.receipt, receipt("k", 2, 20), "version {version}");
        assert!(catalog.lookup("b", "gone").await.unwrap().unwrap().deleted);
        let counts = catalog.counts().await.unwrap();
        assert_eq!((counts.receipts, counts.foreign_writes), (3, 1));
        let wraps = catalog.load_wraps("archive").unwrap();
        assert_eq!(wraps.complete, version > 1);
        assert_eq!(catalog.doubt().await.unwrap(), None);
        catalog.record_put(&receipt("k", 4, 40)).await.unwrap();
        let superseded = catalog.classify("b", "k", &hex(2), 20).await.unwrap();
        let expected = Standing::Superseded {
            current_created: 40,
        };
        assert_eq!(superseded, expected);
        assert_eq!(catalog.mark_head().await.unwrap().count, 1);
        drop(catalog);
        // And once more, now of this version.
        let catalog = Catalog::open(dir.path()).unwrap();
        let known = catalog.lookup("b", "k").await.unwrap().unwrap();
        assert_eq!(known.receipt, receipt("k", 4, 40));
    }
}

#[tokio::test]
async fn rule_15_a_copy_does_not_know_the_heads_marked_after_it() {
    let (dir, catalog) = fresh();
    catalog.record_put(&receipt("k", 1, 10)).await.unwrap();
    let first = catalog.mark_head().await.unwrap();
    assert_eq!(Head::parse(&first.to_string()), Some(first));
    let copy = dir.path().join("copy");
    catalog.copy(&copy).await.unwrap();
    catalog.record_delete("b", "k", None).await.unwrap();
    let second = catalog.mark_head().await.unwrap();
    assert_eq!((first.count, second.count), (1, 2));
    assert_ne!(first.hash, second.hash);
    // What is no change of a place does not move it.
    catalog.reserve_wraps("archive", 5).unwrap();
    assert_eq!(catalog.mark_head().await.unwrap(), second);

    let other = tempfile::tempdir().unwrap();
    std::fs::copy(&copy, other.path().join(FILE)).unwrap();
    let old = Catalog::open(other.path()).unwrap();
    assert_eq!(old.compare_head(first).await.unwrap(), (first, true));
    assert_eq!(old.compare_head(second).await.unwrap(), (first, false));
    // It goes its own way: the same count, another hash.
    old.record_put(&receipt("other", 9, 90)).await.unwrap();
    let branch = old.mark_head().await.unwrap();
    assert_eq!(branch.count, second.count);
    assert!(!old.compare_head(second).await.unwrap().1);
    assert!(!catalog.compare_head(branch).await.unwrap().1);

    old.set_doubt("an older one", second).await.unwrap();
    old.set_doubt("again", branch).await.unwrap();
    assert_eq!(old.doubt().await.unwrap().as_deref(), Some("an older one"));
    let accepted = old.accept(Some(branch)).await.unwrap();
    assert_eq!(old.doubt().await.unwrap(), None);
    assert!(old.compare_head(second).await.unwrap().1);
    assert!(accepted.count > second.count);
}

#[tokio::test]
async fn what_was_found_is_no_receipt_and_a_receipt_makes_it_one() {
    let (_dir, catalog) = fresh();
    let seen = |id, latest| Seen {
        receipt: receipt("k", id, u64::from(id) * 10),
        latest,
    };
    assert!(catalog.record_seen(seen(1, false)).await.unwrap());
    assert!(catalog.record_seen(seen(2, true)).await.unwrap());
    assert!(!catalog.record_seen(seen(2, true)).await.unwrap());
    let standing = catalog.classify("b", "k", &hex(2), 20).await.unwrap();
    assert_eq!(standing, Standing::Current(receipt("k", 2, 20)));
    assert_eq!(catalog.message("b", "k", &hex(2)).await.unwrap(), None);
    assert!(
        catalog
            .first_seen("b", "k", &hex(2))
            .await
            .unwrap()
            .is_some()
    );
    catalog.record_put(&receipt("k", 2, 20)).await.unwrap();
    assert_eq!(catalog.first_seen("b", "k", &hex(2)).await.unwrap(), None);
    assert!(catalog.message("b", "k", &hex(2)).await.unwrap().is_some());
    // What this host stored itself is not taken back by what is found.
    assert!(catalog.record_seen(seen(3, true)).await.unwrap());
    let known = catalog.lookup("b", "k").await.unwrap().unwrap();
    assert_eq!(known.receipt.message_id, hex(2));
}

/// Not a test of speed, which no machine of ours could hold: a figure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_kept_in_the_same_commits() {
    let (_dir, catalog) = fresh();
    let began = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..32_u8 {
        let catalog = catalog.clone();
        tasks.spawn(async move {
            for n in 0..50_u64 {
                let put = receipt(&format!("{task}/{n}"), task, n);
                catalog.record_put(&put).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "figure: 1,600 receipts in {} commits, {:.0} a second",
        catalog.commits(),
        1600.0 / seconds
    );
    assert!(catalog.commits() < 1600);
    assert_eq!(catalog.mark_head().await.unwrap().count, 1600);
}
