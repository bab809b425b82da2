//! PKCS#11 tokens: wrapping data keys where the wrapping key never leaves.
//!
//! Two sides of one socket. [`Token`] lives in the server: asynchronous, no
//! PIN, no PKCS#11 module, no `unsafe`. [`worker`] is a process of its own
//! that loads the vendor's module, logs in and makes the calls; whatever a
//! vendor library does to its process, it does to the worker alone, and the
//! cure of every fault is a fresh one. `protocol` is what they say to each
//! other, `wire` how it gets there, `spawn` starts a worker, `offline` drives one for a command.
//!
//! This is the only module that names cryptoki.

mod calls;
mod canary;
mod error;
mod handle;
mod health;
mod import;
mod latch;
mod ledger;
mod link;
mod manager;
mod offline;
mod opening;
mod pool;
mod protocol;
mod recovery;
mod retry;
mod route;
mod spawn;
mod state;
mod tally;
mod wire;
pub mod worker;

pub use canary::{Canary, CanaryStore};
pub use error::TokenError;
pub use handle::{Signature, Stuck, Token, Wrapped};
pub use health::{Health, PROOF_LASTS};
pub use import::Arrival;
pub use latch::{Attempt, Latches, latched, pin_path};
pub use ledger::{Reserved, WrapCount, WrapCounts, WrapLedger};
pub use offline::{InitTarget, Offline};
pub use protocol::{
    Attributes, KeySpec, OpenedKey, PROOF_COST, SIGNATURE_LEN, Signer, TokenEntry, TokenInfo,
    Transport,
};
pub use recovery::{RecoveryKey, RecoveryToken};
pub use route::Holders;
pub use spawn::spawn;
pub use state::KeyState;
pub use tally::Calls;

/// Bytes of the IV of a wrap: 96 bits, as ESDK's raw AES keyring fixes it.
pub const IV_LEN: usize = 12;
/// Bytes of a wrapped 32-byte data key: ciphertext and 128-bit tag.
pub const WRAPPED_LEN: usize = 48;
