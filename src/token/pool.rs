//! Random bytes of the token, fetched ahead in blocks so that a data key does
//! not cost a round trip. They are mixed with the operating system's at the
//! moment of use (SECURITY.md 13), so that a machine cloned together with its
//! pool does not make the same key twice.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use zeroize::{Zeroize as _, Zeroizing};

use crate::secret::Secret32;

use super::error::TokenError;

/// Bytes fetched at a time: 4 KiB, 128 data keys.
pub(super) const BLOCK: usize = 4096;
/// Bytes of one secret.
const SECRET: usize = 32;

/// The pool. Bytes are handed out once, from the end, and wiped behind it.
pub(super) struct Pool {
    state: Mutex<State>,
    filled: Notify,
}

struct State {
    bytes: Zeroizing<Vec<u8>>,
    fetching: bool,
    /// Why the last fetch failed, if it did.
    failure: Option<TokenError>,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                // Room for a block on top of a half-used one: never grows,
                // so never leaves a copy behind.
                bytes: Zeroizing::new(Vec::with_capacity(2 * BLOCK)),
                fetching: false,
                failure: None,
            }),
            filled: Notify::new(),
        }
    }

    /// Takes 32 bytes, if there are any; the flag asks the caller to fetch a
    /// block: it is raised once per block, when half of one is left.
    pub(super) fn take(&self) -> (Option<Secret32>, bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State {
            bytes, fetching, ..
        } = &mut *state;
        let start = bytes.len().saturating_sub(SECRET);
        let secret = Secret32::from_slice(&bytes[start..]);
        if secret.is_some() {
            bytes[start..].zeroize();
            bytes.truncate(start);
        }
        let fetch = !*fetching && bytes.len() <= BLOCK / 2;
        *fetching |= fetch;
        (secret, fetch)
    }

    /// Ends a fetch with a block.
    pub(super) fn fetched(&self, block: &[u8]) {
        self.end(None, block);
    }

    /// Ends a fetch without one; whoever waits for it is told why.
    pub(super) fn failed(&self, why: TokenError) {
        self.end(Some(why), &[]);
    }

    fn end(&self, failure: Option<TokenError>, block: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.fetching = false;
        state.failure = failure;
        let room = state.bytes.capacity() - state.bytes.len();
        if block.len() <= room {
            state.bytes.extend_from_slice(block);
        }
        drop(state);
        self.filled.notify_waiters();
    }

    /// Why the last fetch failed, if it did.
    pub(super) fn failure(&self) -> Option<TokenError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failure.clone()
    }

    /// Resolves at the end of the next fetch. Create it before looking.
    pub(super) fn filled(&self) -> tokio::sync::futures::Notified<'_> {
        self.filled.notified()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_handed_out_once_and_wiped() {
        let pool = Pool::new();
        assert!(matches!(pool.take(), (None, true)));
        assert!(matches!(pool.take(), (None, false)), "one fetch at a time");
        let block: Vec<u8> = (0..BLOCK)
            .map(|i| u8::try_from(i / SECRET).unwrap())
            .collect();
        pool.fetched(&block);
        let mut seen = std::collections::HashSet::new();
        let mut asked = 0;
        for _ in 0..BLOCK / SECRET {
            let (secret, fetch) = pool.take();
            assert!(seen.insert(*secret.unwrap().expose()));
            asked += usize::from(fetch);
        }
        assert_eq!(asked, 1, "one fetch per block");
        assert!(pool.take().0.is_none());
        let state = pool.state.lock().unwrap();
        assert!(state.bytes.is_empty() && state.bytes.capacity() >= 2 * BLOCK);
    }

    #[test]
    fn a_failed_fetch_may_be_tried_again() {
        let pool = Pool::new();
        assert!(pool.take().1);
        pool.failed(TokenError::Timeout);
        assert_eq!(pool.failure(), Some(TokenError::Timeout));
        assert!(pool.take().1);
        pool.fetched(&[1; BLOCK]);
        assert_eq!(pool.failure(), None);
    }
}
