#![allow(clippy::unwrap_used)]

use super::*;

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn the_budget_is_never_exceeded_and_comes_back() {
    let pool = Pool::new(8 * UNIT as u64);
    let a = pool.reserve(5 * UNIT, SOON).await.unwrap();
    assert_eq!(pool.in_use(), 5 * UNIT as u64);
    assert!(pool.try_reserve(4 * UNIT).is_none());
    pool.reserve(4 * UNIT, SOON).await.unwrap_err();
    let b = pool.try_reserve(3 * UNIT).unwrap();
    drop(a);
    let c = pool.reserve(5 * UNIT, SOON).await.unwrap();
    assert_eq!(pool.in_use(), 8 * UNIT as u64);
    drop((b, c));
    assert_eq!(pool.in_use(), 0);
    pool.reserve(8 * UNIT, SOON).await.unwrap();
}

#[tokio::test]
async fn more_than_the_whole_budget_fails_at_once() {
    let pool = Pool::new(8 * UNIT as u64);
    let begun = std::time::Instant::now();
    let starved = pool.reserve(8 * UNIT + 1, LONG).await.unwrap_err();
    assert_eq!((starved.wanted, starved.budget), (8 * UNIT + 1, 8 * UNIT));
    assert!(begun.elapsed() < LONG / 2);
}

#[tokio::test]
async fn a_large_wish_is_not_overtaken_by_small_ones() {
    let pool = Pool::new(4 * UNIT as u64);
    let held = pool.reserve(2 * UNIT, SOON).await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.reserve(4 * UNIT, LONG).await.unwrap() }
    });
    tokio::time::sleep(SOON).await;
    assert!(pool.try_reserve(UNIT).is_none(), "the queue was jumped");
    drop(held);
    assert_eq!(waiting.await.unwrap().capacity(), 4 * UNIT);
}

#[tokio::test]
async fn plaintext_is_wiped_and_ciphertext_reused_as_it_is() {
    let pool = Pool::new(64 * UNIT as u64);
    // Keeps the pool from being idle, so that free mappings stay.
    let _held = pool.try_reserve(1).unwrap();

    let mut plain = pool.try_reserve(UNIT).unwrap();
    plain.extend_from_slice(b"plaintext");
    drop(plain);
    let mut next = pool.try_reserve(UNIT).unwrap();
    next.resize(9);
    assert_eq!(next.as_slice(), &[0; 9]);

    next.as_mut_slice().copy_from_slice(b"sealed:-)");
    next.extend_from_slice(b"plain again");
    next.truncate(9);
    next.mark_ciphertext();
    drop(next);
    let mut last = pool.try_reserve(UNIT).unwrap();
    last.resize(20);
    assert_eq!(last.as_slice(), b"sealed:-)\0\0\0\0\0\0\0\0\0\0\0");

    // Writing after the mark takes the mark away.
    last.mark_ciphertext();
    last.as_mut_slice().fill(b'p');
    drop(last);
    let mut wiped = pool.try_reserve(UNIT).unwrap();
    wiped.resize(20);
    assert_eq!(wiped.as_slice(), &[0; 20]);
}

#[tokio::test]
async fn frozen_bytes_hold_their_reservation_to_the_last_clone() {
    let pool = Pool::new(8 * UNIT as u64);
    let mut buffer = pool.try_reserve(8 * UNIT).unwrap();
    buffer.extend_from_slice(b"0123456789");
    let bytes = buffer.freeze();
    let slice = bytes.slice(3..5);
    drop(bytes);
    assert!(pool.try_reserve(1).is_none());
    assert_eq!(slice.as_ref(), b"34");
    drop(slice);
    assert!(pool.try_reserve(8 * UNIT).is_some());
}

#[tokio::test]
async fn idle_pools_and_changing_sizes_keep_little() {
    let pool = Pool::new(64 << 20);
    for size in [8 << 20, 16 << 20, 5 << 20] {
        let a = pool.try_reserve(size).unwrap();
        let b = pool.try_reserve(size).unwrap();
        drop(a);
        let state = pool.shared.lock();
        assert!(state.in_use + state.free_bytes <= 64 << 20);
        drop(state);
        drop(b);
        assert!(pool.shared.lock().free_bytes <= IDLE_KEEP);
    }
}

#[test]
#[should_panic(expected = "past its reservation")]
fn a_buffer_never_outgrows_its_reservation() {
    let pool = Pool::new(1 << 20);
    let mut buffer = pool.try_reserve(10).unwrap();
    buffer.extend_from_slice(&[0; 11]);
}
