//! Verify what is stored: whether it is all still there, unaltered and
//! current (docs/verify.md), and whether a recipient could open it.

mod finding;
mod judge;
mod levels;
mod look;
mod recipient;
mod seen;

pub use finding::Finding;
pub use levels::{Level, Scope, levels};
pub use recipient::recipient;

/// True for this share of all calls.
fn chance(share: f64) -> bool {
    let mut bytes = [0; 4];
    // Without randomness, look at all: never at fewer.
    if share >= 1.0 || getrandom::fill(&mut bytes).is_err() {
        return true;
    }
    f64::from(u32::from_be_bytes(bytes)) < share * f64::from(u32::MAX)
}
