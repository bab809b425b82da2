//! What HSMs have less of than software tokens: sessions, speed, and keys that
//! work at once.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cryptoki_sys::*;

use crate::control::Function;
use crate::faults::real;
use crate::plan::Plan;
use crate::shim;

/// Sessions that this process has open.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// When this process first saw each object.
static SEEN: Mutex<Option<HashMap<CK_OBJECT_HANDLE, Instant>>> = Mutex::new(None);

pub(crate) fn open_session(plan: &Plan, open: impl FnOnce() -> CK_RV) -> CK_RV {
    if plan
        .max_sessions
        .is_some_and(|max| OPEN.load(Ordering::SeqCst) >= max)
    {
        return CKR_SESSION_COUNT;
    }
    let code = open();
    if code == CKR_OK {
        OPEN.fetch_add(1, Ordering::SeqCst);
    }
    code
}

pub(crate) fn close_session(session: CK_SESSION_HANDLE) -> CK_RV {
    let code = real!(C_CloseSession(session));
    if code == CKR_OK {
        let less = |open: u64| Some(open.saturating_sub(1));
        let _ = OPEN.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
    }
    code
}

pub(crate) fn all_closed() {
    OPEN.store(0, Ordering::SeqCst);
}

/// Notes objects that the real module has found or made.
pub(crate) fn note(at: *const CK_OBJECT_HANDLE, count: usize) {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = seen.get_or_insert_default();
    for i in 0..count {
        // SAFETY: the real module has just written so many handles there.
        let handle = unsafe { *at.add(i) };
        seen.entry(handle).or_insert_with(Instant::now);
    }
}

/// Whether this key cannot be used yet.
pub(crate) fn cold(plan: &Plan, key: CK_OBJECT_HANDLE) -> bool {
    let warm_up = Duration::from_millis(plan.warm_up_ms);
    if warm_up.is_zero() {
        return false;
    }
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let since = seen.as_ref().and_then(|seen| seen.get(&key));
    since.is_some_and(|since| since.elapsed() < warm_up)
}

thread_local! {
    /// By how much this thread's calls have taken longer than they were to.
    static OVERSLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Most that later calls make up for: what is longer is a pause of the whole
/// machine, not a late timer.
const MOST_OVERSLEPT: Duration = Duration::from_millis(50);

/// Takes `latency`, on the average of a thread's calls: a sleep ends late, on
/// a busy machine by milliseconds, and the calls after it are shorter by that.
fn take(latency: Duration) {
    let late = OVERSLEPT.get();
    let begun = Instant::now();
    if late < latency {
        std::thread::sleep(latency - late);
    }
    let late = (late + begun.elapsed()).saturating_sub(latency);
    OVERSLEPT.set(late.min(MOST_OVERSLEPT));
}

/// Counts a call that reaches the HSM, and takes its time.
pub(crate) fn round_trip(plan: &Plan, function: Function) {
    shim().control.count_buffered(function);
    let latency = match function {
        Function::C_Encrypt => plan.encrypt_latency_us,
        _ => plan.decrypt_latency_us,
    };
    if latency > 0 {
        take(Duration::from_micros(latency));
    }
}
