//! Every limit of the message format, each checked before anything is
//! allocated or read by it.

/// Longest header we write or read, in bytes, tag included. Ours: an object's
/// header must fit one ranged GET; the format alone would allow gigabytes.
pub const MAX_HEADER: usize = 64 * 1024;

/// Most encrypted data keys in one message. Ours: each costs a token call.
pub const MAX_EDKS: usize = 16;

/// Longest single EDK, in bytes as serialised. Ours: RSA-16384 needs 2 KiB,
/// post-quantum wraps below 4 KiB.
pub const MAX_EDK: usize = 8 * 1024;

/// Longest serialised encryption context we *write*, in bytes. Ours: leaves
/// room for EDKs in [`MAX_HEADER`]. Read contexts are bounded by the header.
pub const MAX_CONTEXT: usize = 32 * 1024;

/// Shortest frame we write, in bytes of plaintext. Ours: below this the
/// 32 bytes per frame begin to count.
pub const MIN_FRAME: u32 = 4 * 1024;

/// Longest frame we write or read, in bytes of plaintext. Ours: one frame must
/// be buffered whole before any of it may be released.
pub const MAX_FRAME: u32 = 16 * 1024 * 1024;

/// Longest non-framed body we read, in bytes of plaintext; for the same
/// reason as [`MAX_FRAME`].
pub const MAX_SINGLE: usize = 16 * 1024 * 1024;

/// Longest footer signature we read, in bytes of DER. A P-384 signature has
/// at most 104 (SEC 1, C.5: two integers of 49 bytes in a sequence).
pub const MAX_SIGNATURE: usize = 104;
