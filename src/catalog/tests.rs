#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt as _;

use super::*;

pub(super) fn receipt(key: &str, id: u8, created: u64) -> Receipt {
    Receipt {
        bucket: "b".into(),
        key: key.into(),
        version_id: Some(format!("v{id}")),
        etag: Some(format!("\"e{id}\"")),
        plaintext_size: 100 + u64::from(id),
        stored_size: 1000 + u64::from(id),
        checksum: "crc64nvme:AAAA".into(),
        message_id: hex(id),
        wrapping_key: "archive".into(),
        recipients: Vec::new(),
        missing_recipients: Vec::new(),
        created,
    }
}

pub(super) fn hex(id: u8) -> String {
    format!("{id:02x}").repeat(32)
}

pub(super) fn fresh() -> (tempfile::TempDir, Catalog) {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    (dir, catalog)
}

async fn standing(catalog: &Catalog, key: &str, id: u8, created: u64) -> Standing {
    catalog.classify("b", key, &hex(id), created).await.unwrap()
}

#[tokio::test]
async fn a_receipt_survives_reopening_and_the_file_is_private() {
    let (dir, catalog) = fresh();
    let put = receipt("k", 1, 10);
    catalog.record_put(&put).await.unwrap();
    // As after kill -9: nothing is closed, the write-ahead log stays.
    let copy = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("{FILE}{suffix}");
        let mode = std::fs::metadata(dir.path().join(&name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        std::fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
    }
    let reopened = Catalog::open(copy.path()).unwrap();
    let known = reopened.lookup("b", "k").await.unwrap().unwrap();
    assert_eq!(known.receipt, put);
    assert!(!known.deleted);
    assert_eq!(reopened.lookup("b", "other").await.unwrap(), None);
}

#[tokio::test]
async fn history_tells_current_superseded_older_and_newer_apart() {
    let (_dir, catalog) = fresh();
    assert_eq!(standing(&catalog, "k", 1, 10).await, Standing::Unknown);
    for (id, created) in [(1, 10), (2, 20), (3, 30)] {
        catalog
            .record_put(&receipt("k", id, created))
            .await
            .unwrap();
    }
    assert_eq!(
        standing(&catalog, "k", 3, 30).await,
        Standing::Current(receipt("k", 3, 30))
    );
    let superseded = Standing::Superseded {
        current_created: 30,
    };
    // Every earlier message stays known, whatever time it claims.
    assert_eq!(standing(&catalog, "k", 1, 10).await, superseded);
    assert_eq!(standing(&catalog, "k", 2, 99).await, superseded);
    let older = Standing::Older {
        current_created: 30,
    };
    assert_eq!(standing(&catalog, "k", 9, 29).await, older);
    assert_eq!(standing(&catalog, "k", 9, 30).await, older);
    assert_eq!(standing(&catalog, "k", 9, 31).await, Standing::Newer);
    assert_eq!(standing(&catalog, "other", 3, 30).await, Standing::Unknown);
}

#[tokio::test]
async fn a_deleted_message_that_comes_back_is_superseded() {
    let (_dir, catalog) = fresh();
    catalog.record_put(&receipt("k", 1, 10)).await.unwrap();
    catalog.record_delete("b", "k", None).await.unwrap();
    assert!(catalog.lookup("b", "k").await.unwrap().unwrap().deleted);
    assert_eq!(
        standing(&catalog, "k", 1, 10).await,
        Standing::Superseded {
            current_created: 10
        }
    );
    catalog.record_put(&receipt("k", 2, 20)).await.unwrap();
    assert!(!catalog.lookup("b", "k").await.unwrap().unwrap().deleted);
}

#[tokio::test]
async fn deleting_the_current_version_uncovers_the_one_before() {
    let (_dir, catalog) = fresh();
    for id in 1..=3 {
        let put = receipt("k", id, u64::from(id) * 10);
        catalog.record_put(&put).await.unwrap();
    }
    // Not the current one: nothing changes.
    catalog.record_delete("b", "k", Some("v2")).await.unwrap();
    assert!(matches!(
        standing(&catalog, "k", 3, 30).await,
        Standing::Current(_)
    ));
    catalog.record_delete("b", "k", Some("v3")).await.unwrap();
    assert!(matches!(
        standing(&catalog, "k", 1, 10).await,
        Standing::Current(_)
    ));
    catalog.record_delete("b", "k", Some("v1")).await.unwrap();
    assert!(catalog.lookup("b", "k").await.unwrap().unwrap().deleted);
}

#[tokio::test]
async fn foreign_writes_are_counted_once_each() {
    let (_dir, catalog) = fresh();
    catalog.record_put(&receipt("k", 1, 10)).await.unwrap();
    for id in [7, 7, 8] {
        catalog
            .record_foreign("b", "k", &hex(id), 20, None)
            .await
            .unwrap();
    }
    let counts = catalog.counts().await.unwrap();
    assert_eq!((counts.receipts, counts.foreign_writes), (1, 2));
    // Seeing a foreign message does not make it this host's.
    assert_eq!(standing(&catalog, "k", 7, 20).await, Standing::Newer);
}

#[tokio::test]
async fn sizes_are_given_only_for_the_very_object_on_record() {
    let (_dir, catalog) = fresh();
    catalog.record_put(&receipt("a", 1, 10)).await.unwrap();
    catalog.record_put(&receipt("gone", 2, 10)).await.unwrap();
    catalog.record_delete("b", "gone", None).await.unwrap();
    let page = [
        ("a".to_owned(), 1001, Some("e1".to_owned())),
        ("a".to_owned(), 1001, None),
        ("a".to_owned(), 1002, Some("e1".to_owned())),
        ("a".to_owned(), 1001, Some("other".to_owned())),
        ("gone".to_owned(), 1002, None),
        ("unknown".to_owned(), 1, None),
    ];
    assert_eq!(
        catalog.sizes("b", &page).await.unwrap(),
        [Some(101), Some(101), None, None, None, None]
    );
}

#[tokio::test]
async fn a_canary_is_written_once() {
    let (dir, catalog) = fresh();
    let row = |byte| CanaryRow {
        iv: [byte; 12],
        ciphertext: vec![byte; 48],
        digest: [byte; 32],
    };
    assert_eq!(catalog.load_canary("k").unwrap(), None);
    assert!(catalog.save_canary("k", &row(1)).unwrap());
    assert!(!catalog.save_canary("k", &row(2)).unwrap());
    drop(catalog);
    let reopened = Catalog::open(dir.path()).unwrap();
    assert_eq!(reopened.load_canary("k").unwrap(), Some(row(1)));
}

#[test]
fn rule_19_reserved_wraps_add_up_and_survive_reopening() {
    let (dir, catalog) = fresh();
    let fresh = catalog.load_wraps("k").unwrap();
    assert!(fresh.complete && fresh.reserved > 0, "{fresh:?}");
    let row = catalog.reserve_wraps("k", 65_536).unwrap();
    assert_eq!(row.reserved, fresh.reserved + 65_536);
    assert_eq!(catalog.load_wraps("k").unwrap(), row);
    // A canary made after the count began does not make it incomplete.
    let canary = CanaryRow {
        iv: [1; 12],
        ciphertext: vec![1; 48],
        digest: [1; 32],
    };
    assert!(catalog.save_canary("k", &canary).unwrap());
    drop(catalog);
    let reopened = Catalog::open(dir.path()).unwrap();
    let again = reopened.reserve_wraps("k", 4).unwrap();
    assert_eq!(again.reserved, row.reserved + 4);
    assert!(again.complete);
    assert_eq!(reopened.load_wraps("other").unwrap(), fresh);
}

/// A catalogue as the first release left it: schema 1, a key in use.
#[tokio::test]
async fn rule_19_a_key_in_use_before_the_count_is_marked_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch(schema::MIGRATIONS[0]).unwrap();
    conn.pragma_update(None, "application_id", schema::APPLICATION_ID)
        .unwrap();
    conn.pragma_update(None, "user_version", 1).unwrap();
    conn.execute_batch(
        "INSERT INTO canary VALUES ('archive', x'00', x'00', x'00', 0);
         INSERT INTO place (id, bucket, key) VALUES (1, 'b', 'k');",
    )
    .unwrap();
    for id in 0..3_000_i32 {
        conn.execute(
            "INSERT INTO message (place, message_id, created, recorded, plaintext_size,
                                  stored_size, checksum, wrapping_key)
             VALUES (1, cast(?1 AS BLOB), 0, 0, 0, 0, '', 'archive')",
            [id.to_string()],
        )
        .unwrap();
    }
    drop(conn);
    let catalog = Catalog::open(dir.path()).unwrap();
    let before = catalog.load_wraps("archive").unwrap();
    // At the least what the receipts say.
    assert!(!before.complete && before.reserved >= 3_000, "{before:?}");
    let row = catalog.reserve_wraps("archive", 65_536).unwrap();
    assert_eq!(row.reserved, before.reserved + 65_536);
    assert!(!row.complete);
    assert!(!catalog.load_wraps("archive").unwrap().complete, "it stays");
    assert!(catalog.load_wraps("new").unwrap().complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_puts_share_commits() {
    let (_dir, catalog) = fresh();
    let before = catalog.commits();
    let tasks: Vec<_> = (0..400)
        .map(|n| {
            let catalog = catalog.clone();
            tokio::spawn(async move {
                let put = receipt(&format!("k{n}"), 1, 10);
                catalog.record_put(&put).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let commits = catalog.commits() - before;
    assert!(commits < 200, "400 puts took {commits} commits");
    assert_eq!(catalog.counts().await.unwrap().receipts, 400);
}

#[tokio::test]
async fn one_bad_record_fails_alone() {
    let (_dir, catalog) = fresh();
    let mut huge = receipt("huge", 1, 10);
    huge.plaintext_size = u64::MAX;
    let good = receipt("good", 2, 10);
    let (bad, fine) = tokio::join!(catalog.record_put(&huge), catalog.record_put(&good));
    assert!(matches!(bad, Err(CatalogError::Invalid(_))), "{bad:?}");
    fine.unwrap();
    let mut id = receipt("id", 3, 10);
    id.message_id = "xyz".into();
    assert!(matches!(
        catalog.record_put(&id).await,
        Err(CatalogError::Invalid(_))
    ));
    assert_eq!(catalog.counts().await.unwrap().receipts, 1);
}

/// A limit on the file's size stands in for a full disk: SQLite answers both
/// with SQLITE_FULL.
#[tokio::test]
async fn a_full_disk_is_an_error_and_later_writes_work_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let conn = schema::open_writer(&path).unwrap();
    let pages: i64 = conn
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .unwrap();
    conn.pragma_update(None, "max_page_count", pages).unwrap();
    let (queue, jobs) = channel();
    let commits = Arc::new(AtomicU64::new(0));
    let writer = Writer::new(&path, conn, Arc::clone(&commits));
    std::thread::spawn(move || writer.run(&jobs));
    let catalog = Catalog {
        queue,
        readers: Arc::new(Readers::new(path)),
        commits,
    };
    let mut put = receipt("k", 1, 10);
    put.checksum = "x".repeat(100_000);
    let error = catalog.record_put(&put).await.unwrap_err();
    assert!(matches!(error, CatalogError::Full { .. }), "{error:?}");
    assert_eq!(catalog.lookup("b", "k").await.unwrap(), None);
    // The writer opens the file afresh, without the limit.
    catalog.record_put(&put).await.unwrap();
    assert!(catalog.lookup("b", "k").await.unwrap().is_some());
}

#[test]
fn an_empty_database_of_version_0_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    std::fs::write(&path, b"").unwrap();
    drop(Catalog::open(dir.path()).unwrap());
    let conn = rusqlite::Connection::open(&path).unwrap();
    let version: i64 = conn
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(usize::try_from(version).unwrap(), schema::MIGRATIONS.len());
}

#[test]
fn a_damaged_file_is_refused_with_the_way_out() {
    let (dir, catalog) = fresh();
    let path = dir.path().join(FILE);
    drop(catalog);
    wait_for_close(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in &mut bytes[4096..8192] {
        *byte ^= 0x5a;
    }
    std::fs::write(&path, &bytes).unwrap();
    let error = Catalog::open(dir.path()).err().unwrap();
    assert!(matches!(error, CatalogError::Corrupt { .. }), "{error:?}");
    assert!(error.hint().contains("backup") && error.hint().contains("aside"));

    std::fs::write(
        &path,
        b"not a database, but long enough to have a header".repeat(100),
    )
    .unwrap();
    let error = Catalog::open(dir.path()).err().unwrap();
    assert!(matches!(error, CatalogError::Corrupt { .. }), "{error:?}");
}

#[test]
fn files_of_later_releases_and_other_programs_are_refused_untouched() {
    let (dir, catalog) = fresh();
    let path = dir.path().join(FILE);
    drop(catalog);
    wait_for_close(&path);
    let set = |pragma: &str, value: i64| {
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.pragma_update(None, pragma, value).unwrap();
    };
    set("user_version", 99);
    let error = Catalog::open(dir.path()).err().unwrap();
    assert!(
        matches!(error, CatalogError::Newer { found: 99, .. }),
        "{error:?}"
    );
    set(
        "user_version",
        i64::try_from(schema::MIGRATIONS.len()).unwrap(),
    );
    set("application_id", 1234);
    let error = Catalog::open(dir.path()).err().unwrap();
    assert!(matches!(error, CatalogError::NotOurs { .. }), "{error:?}");
}

/// The writer thread closes the file soon after its last handle is gone; the
/// write-ahead log disappears with the last connection.
fn wait_for_close(path: &Path) {
    let wal = path.with_file_name(format!("{FILE}-wal"));
    for _ in 0..500 {
        if !wal.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the catalogue was not closed");
}
