//! How a worker ends, and what its exit code tells the supervisor, which has
//! no link of its own.

use std::time::Duration;

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

/// How long the module's own exit handlers may take before the process is
/// killed. Ours hold nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// The exit code of a worker that ends because of such a failure.
pub(super) const fn code(kind: FailureKind) -> u8 {
    match kind {
        FailureKind::Locked => LOCKED,
        FailureKind::Away | FailureKind::Lost => LOST,
        FailureKind::Absent => ABSENT,
        FailureKind::Misconfigured
        | FailureKind::BadCiphertext
        | FailureKind::Rejected
        | FailureKind::Exists => MISCONFIGURED,
    }
}

/// Ends the process. Other threads may be inside the module, stuck there.
pub(super) fn now(code: u8) -> ! {
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    });
    std::process::exit(i32::from(code));
}
