//! How a worker ends, and what its exit code tells the supervisor, which has
//! no link of its own.

use crate::token::protocol::FailureKind;

/// The server closed the link: nothing is wrong.
pub const LINK_CLOSED: u8 = 0;
/// The PIN was refused: do not start another before something has changed.
pub const LOCKED: u8 = 10;
/// Something has to be corrected: starting another would change nothing.
pub const MISCONFIGURED: u8 = 11;
/// The module, the token or a session was lost: start another, with back-off.
pub const LOST: u8 = 12;
/// The module offers no such token now: it may be away, or never have been.
/// Somebody may have to correct something, but nothing is lost by looking
/// again soon.
pub const ABSENT: u8 = 13;

/// The exit code of a worker that ends because of such a failure.
pub(super) const fn code(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Locked => LOCKED,
        FailureKind::Absent => ABSENT,
        FailureKind::Misconfigured => MISCONFIGURED,
        // A start has no input of anybody's: whatever was refused, another
        // process may be lucky.
        FailureKind::Away
        | FailureKind::Lost
        | FailureKind::BadCiphertext
        | FailureKind::Rejected
        | FailureKind::Exists => LOST,
    }
}

/// Ends the process at once, without the exit handlers that a vendor's
/// library has registered: other threads may be inside it, stuck, and one that
/// hung or crashed on the way out would replace the exit code by a signal. A
/// refused PIN would then be tried again.
pub(super) fn now(code: u8) -> ! {
    #[allow(unsafe_code, reason = "std knows no exit without exit handlers")]
    // SAFETY: _exit(2) takes any status and does not return; nothing of ours
    // is buffered or has to be undone.
    unsafe {
        libc::_exit(i32::from(code))
    }
}
