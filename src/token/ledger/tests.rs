#![allow(clippy::unwrap_used)]
use std::sync::atomic::AtomicUsize;

use super::*;

/// A ledger in memory that can be full.
#[derive(Default)]
struct Book {
    total: AtomicU64,
    asked: AtomicUsize,
    full: AtomicBool,
}

impl WrapLedger for Book {
    fn load(&self, _: &str) -> Result<Reserved, String> {
        self.asked.fetch_sub(1, Ordering::SeqCst);
        self.reserve("", 0)
    }

    fn reserve(&self, _: &str, wraps: u64) -> Result<Reserved, String> {
        if self.full.load(Ordering::SeqCst) {
            return Err("the disk is full".into());
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(Reserved {
            total: self.total.fetch_add(wraps, Ordering::SeqCst) + wraps,
            complete: true,
        })
    }
}

impl Book {
    fn total(&self) -> u64 {
        self.total.load(Ordering::SeqCst)
    }
}

const MOST: u64 = WRAP_COST as u64;
const PROOF: u64 = PROOF_COST as u64;

fn counts(book: &Arc<Book>, limit: u64) -> Arc<WrapCounts> {
    let counts = Arc::new(WrapCounts::new(book.clone()));
    counts.configure("k", limit);
    counts
}

async fn settle(counts: &WrapCounts) {
    // Whoever reserves ahead has the turn.
    drop(counts.counter("k").turn.lock().await);
}

#[tokio::test]
async fn rule_19_what_a_request_may_cost_is_counted_before_and_kept_if_it_fails() {
    let book = Arc::new(Book::default());
    let counts = counts(&book, 1 << 20);
    let used = || counts.count("k").unwrap().used;
    let charge = counts.charge("k", Purpose::DataKey).await.unwrap();
    assert_eq!((used(), book.total()), (MOST, BLOCK));
    charge.spent(1);
    assert_eq!(used(), 1);
    counts
        .charge("k", Purpose::DataKey)
        .await
        .unwrap()
        .spent(WRAP_COST);
    assert_eq!(used(), 1 + MOST);
    // A worker that says it wrapped without wrapping is not believed.
    counts.charge("k", Purpose::DataKey).await.unwrap().spent(0);
    assert_eq!(used(), 2 + MOST);
    // Failed, timed out, dropped: all of it stays.
    drop(counts.charge("k", Purpose::Proof).await.unwrap());
    assert_eq!(used(), 2 + MOST + PROOF);
    drop(counts.charge("k", Purpose::DataKey).await.unwrap());
    assert_eq!(used(), 2 + 2 * MOST + PROOF);
}

#[tokio::test]
async fn rule_19_a_crash_skips_the_rest_of_a_block_and_repeats_nothing() {
    let book = Arc::new(Book::default());
    let mut before = 0;
    for _ in 0..5 {
        let counts = counts(&book, 1 << 32);
        assert_eq!(counts.count("k").unwrap().used, before);
        for _ in 0..7 {
            let charge = counts.charge("k", Purpose::DataKey).await.unwrap();
            let used = counts.count("k").unwrap().used;
            assert!(used > before && used <= book.total());
            charge.spent(1);
        }
        // The process dies here, with what it had in memory.
        before = book.total();
    }
    assert_eq!(before, 5 * BLOCK);
}

#[tokio::test]
async fn rule_19_the_next_block_is_reserved_ahead_and_once() {
    let book = Arc::new(Book::default());
    let counts = counts(&book, 1 << 32);
    let take = async |n: u64| {
        for _ in 0..n {
            drop(counts.charge("k", Purpose::DataKey).await.unwrap());
        }
    };
    take((BLOCK - AHEAD) / MOST).await;
    settle(&counts).await;
    assert_eq!(book.total(), BLOCK);
    take(1).await;
    settle(&counts).await;
    assert_eq!(book.total(), 2 * BLOCK);
    take(AHEAD / MOST + 1).await;
    settle(&counts).await;
    assert_eq!(book.total(), 2 * BLOCK, "once");
    assert_eq!(book.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rule_19_many_at_once_never_pass_what_is_reserved() {
    let book = Arc::new(Book::default());
    let counts = counts(&book, 1 << 32);
    let made = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let (counts, book, made) = (counts.clone(), book.clone(), made.clone());
            tokio::spawn(async move {
                for i in 0..8_000_u32 {
                    let charge = counts.charge("k", Purpose::DataKey).await.unwrap();
                    let wraps = (i + n) % WRAP_COST + 1;
                    let made = made.fetch_add(u64::from(wraps), Ordering::SeqCst);
                    assert!(made + u64::from(wraps) <= book.total());
                    charge.spent(wraps);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    settle(&counts).await;
    let made = made.load(Ordering::SeqCst);
    assert_eq!(counts.count("k").unwrap().used, made);
    assert!(made > 4 * BLOCK && book.total() - made < BLOCK + AHEAD + 16 * MOST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rule_19_nothing_is_wrapped_beyond_the_limit_but_keys_still_open() {
    let book = Arc::new(Book::default());
    book.total.store(1_000, Ordering::SeqCst);
    let counts = counts(&book, BLOCK);
    let made = Arc::new(AtomicU64::new(1_000));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (counts, made) = (counts.clone(), made.clone());
            tokio::spawn(async move {
                loop {
                    match counts.charge("k", Purpose::DataKey).await {
                        Ok(charge) => {
                            made.fetch_add(1, Ordering::SeqCst);
                            charge.spent(1);
                        }
                        Err(TokenError::Exhausted { detail }) => {
                            assert!(detail.contains("wrap_limit of 65536"), "{detail}");
                            return;
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let made = made.load(Ordering::SeqCst);
    assert!(made <= BLOCK && made + 17 * MOST > BLOCK, "{made}");
    let count = counts.count("k").unwrap();
    assert!(count.is_low() && count.is_due() && count.is_exhausted());
    drop(counts.charge("k", Purpose::Proof).await.unwrap());
    assert!(counts.is_exhausted("k"));
    // A new configuration may raise it.
    counts.configure("k", 1 << 20);
    assert!(!counts.count("k").unwrap().is_due());
    drop(counts.charge("k", Purpose::DataKey).await.unwrap());
}

#[tokio::test]
async fn rule_19_a_hand_over_is_not_undone_by_what_is_given_back() {
    let book = Arc::new(Book::default());
    let due = BLOCK - BLOCK / 32;
    book.total.store(due - 1, Ordering::SeqCst);
    let counts = counts(&book, BLOCK);
    assert!(!counts.count("k").unwrap().is_due());
    let charge = counts.charge("k", Purpose::DataKey).await.unwrap();
    assert!(counts.count("k").unwrap().is_due());
    charge.spent(1);
    assert!(counts.count("k").unwrap().is_due());
}

#[tokio::test]
async fn rule_19_what_cannot_be_counted_is_not_wrapped() {
    let book = Arc::new(Book::default());
    let counts = counts(&book, 1 << 32);
    drop(counts.charge("k", Purpose::DataKey).await.unwrap());
    book.full.store(true, Ordering::SeqCst);
    // The block at hand is used up first.
    let mut made = MOST;
    let error = loop {
        match counts.charge("k", Purpose::DataKey).await {
            Ok(_) => made += MOST,
            Err(error) => break error,
        }
    };
    assert_eq!(made, BLOCK / MOST * MOST);
    assert!(
        matches!(&error, TokenError::Uncounted { detail } if detail.contains("full")),
        "{error:?}"
    );
    assert!(counts.charge("k", Purpose::Proof).await.is_err());
    book.full.store(false, Ordering::SeqCst);
    drop(counts.charge("k", Purpose::DataKey).await.unwrap());
    assert_eq!(book.total(), 2 * BLOCK);
}

#[tokio::test]
async fn rule_19_what_others_reserve_meanwhile_is_theirs() {
    let book = Arc::new(Book::default());
    let counts = counts(&book, 1 << 32);
    drop(counts.charge("k", Purpose::DataKey).await.unwrap());
    // As `doctor` does, in a process of its own.
    book.reserve("k", 40).unwrap();
    for _ in 0..BLOCK / MOST {
        drop(counts.charge("k", Purpose::DataKey).await.unwrap());
    }
    settle(&counts).await;
    assert_eq!(book.total(), 2 * BLOCK + 40);
    let made = (BLOCK / MOST + 1) * MOST;
    assert_eq!(counts.count("k").unwrap().used, made + 40);
}

#[test]
fn rule_19_the_warning_and_the_hand_over_come_in_time() {
    for limit in [BLOCK, 1_000_000, 1 << 31, 1 << 32] {
        let at = |used| WrapCount::new(used, limit, true);
        assert!(!at(limit / 10 * 9 - 1).is_low() && at(limit / 10 * 9 + 10).is_low());
        assert!(at(limit - limit / 32).is_due() && !at(limit - limit / 32 - 1).is_due());
        assert!(!at(limit - MOST).is_exhausted() && at(limit - MOST + 1).is_exhausted());
    }
}
