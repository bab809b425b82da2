//! What HSMs have less of than software tokens: sessions, speed, and keys that
//! work at once.

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

/// Counts a call that reaches the HSM, and takes its time.
pub(crate) fn round_trip(plan: &Plan, function: Function) {
    shim().control.count_buffered(function);
    let latency = match function {
        Function::C_Encrypt => plan.encrypt_latency_us,
        _ => plan.decrypt_latency_us,
    };
    if latency > 0 {
        std::thread::sleep(Duration::from_micros(latency));
    }
}
