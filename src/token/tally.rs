//! How often the module was called, by function and return code. Counted
//! where the calls are made, in the worker, and brought home in frames beside
//! its replies; added up here, so that a worker's end takes nothing away but
//! the calls of its last second.
//!
//! What cryptoki makes several C calls of (C_FindObjectsInit, C_FindObjects,
//! C_FindObjectsFinal) counts once, under the main one's name, or under that
//! of the one that failed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::worker::code_name;

/// The functions that are told apart; an index into it goes over the link.
const FUNCTIONS: &[&str] = &[
    "C_Initialize",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_GetMechanismInfo",
    "C_OpenSession",
    "C_Login",
    "C_GetSessionInfo",
    "C_FindObjects",
    "C_GetAttributeValue",
    "C_GenerateKey",
    "C_GenerateKeyPair",
    "C_DestroyObject",
    "C_GenerateRandom",
    "C_EncryptInit",
    "C_Encrypt",
    "C_DecryptInit",
    "C_Decrypt",
    "C_SignInit",
    "C_Sign",
];

/// Codes beyond the standard's are one: a module must not make the metrics grow.
const OTHER: u64 = u64::MAX;

/// Function, return code, and how often since the last frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry(u8, u64, u64);

type Counts = BTreeMap<(u8, u64), u64>;

/// The worker's own calls that have not been told yet.
static CALLS: Mutex<Counts> = Mutex::new(Counts::new());

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts one call, in the worker.
pub(super) fn count(function: &str, code: u64) {
    let main = match function {
        "C_FindObjectsInit" | "C_FindObjectsFinal" => "C_FindObjects",
        other => other,
    };
    let Some(index) = FUNCTIONS.iter().position(|known| *known == main) else {
        return;
    };
    let Ok(index) = u8::try_from(index) else {
        return;
    };
    let code = if code_name(code).is_some() {
        code
    } else {
        OTHER
    };
    *lock(&CALLS).entry((index, code)).or_default() += 1;
}

/// Takes what was counted since the last time, in the worker.
pub(super) fn take() -> Vec<Entry> {
    std::mem::take(&mut *lock(&CALLS))
        .into_iter()
        .map(|((function, code), count)| Entry(function, code, count))
        .collect()
}

/// How often a function was answered so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Such as `C_Encrypt`.
    pub function: &'static str,
    /// Such as `CKR_OK`, or `other`.
    pub result: &'static str,
    /// How often.
    pub count: u64,
}

/// All calls of a token's workers; never goes back.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counts>);

impl Tally {
    pub(super) fn add(&self, entries: &[Entry]) {
        let mut counts = lock(&self.0);
        for Entry(function, code, count) in entries {
            // Of the worker's word only what has a name is kept.
            let known = usize::from(*function) < FUNCTIONS.len();
            let code = if code_name(*code).is_some() {
                *code
            } else {
                OTHER
            };
            if known {
                let total = counts.entry((*function, code)).or_default();
                *total = total.saturating_add(*count);
            }
        }
    }

    pub(super) fn calls(&self) -> Vec<Calls> {
        let counts = lock(&self.0);
        let named = counts.iter().filter_map(|((function, code), count)| {
            Some(Calls {
                function: FUNCTIONS.get(usize::from(*function))?,
                result: code_name(*code).unwrap_or("other"),
                count: *count,
            })
        });
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_only_grow_and_unknown_codes_are_one() {
        let tally = Tally::default();
        let encrypt = 14;
        assert_eq!(FUNCTIONS[usize::from(encrypt)], "C_Encrypt");
        tally.add(&[Entry(encrypt, 0, 3), Entry(encrypt, 0x8000_0001, 1)]);
        tally.add(&[
            Entry(encrypt, 0, 2),
            Entry(encrypt, 0x8000_0002, 1),
            Entry(200, 0, 9),
        ]);
        tally.add(&[Entry(encrypt, 5, u64::MAX), Entry(encrypt, 5, 1)]);
        let told: Vec<_> = tally
            .calls()
            .iter()
            .map(|c| (c.function, c.result, c.count))
            .collect();
        let expected = [
            ("C_Encrypt", "CKR_OK", 5),
            ("C_Encrypt", "CKR_GENERAL_ERROR", u64::MAX),
            ("C_Encrypt", "other", 2),
        ];
        assert_eq!(told, expected);
    }
}
