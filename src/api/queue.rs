//! Store and forward (docs/queue.md).

use serde::{Deserialize, Serialize};

use super::Receipt;

/// An object that is sealed and safe, and not yet in S3.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Its name: `/v1/queue/{ticket}`.
    pub ticket: String,
    /// `waiting` or `parked`.
    pub state: String,
    /// The bucket.
    pub bucket: String,
    /// The object's key.
    pub key: String,
    /// Whose it is.
    pub uid: u32,
    /// Plaintext bytes.
    pub plaintext_size: u64,
    /// Bytes in the spool.
    pub stored_size: u64,
    /// The message's id, hexadecimal.
    pub message_id: String,
    /// The key that wrapped its data key.
    pub wrapping_key: String,
    /// Since when it waits, Unix milliseconds.
    pub since: u64,
    /// How often it was sent, or was about to be.
    pub attempts: u64,
    /// Why it is parked: an error's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The queue as a whole, in `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Tickets, parked ones included.
    pub tickets: u64,
    /// Parked ones among them: somebody has to look.
    pub parked: u64,
    /// Bytes in the spool.
    pub bytes: u64,
    /// Since when the oldest waits, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u64>,
}

/// What a put that may be queued has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queued {
    /// 201: it is in S3.
    Stored(Receipt),
    /// 202: it is safe here, and will be.
    Ticket(Ticket),
}
