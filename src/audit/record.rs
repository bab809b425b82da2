//! One record: what a line of the log says (docs/audit.md has the table).
//!
//! A line is the writer's part, [`Head`], followed by the event's own,
//! [`Event`], as one JSON object with a stable order of fields. Nothing here
//! is a plaintext byte, a value computed from plaintext other than its
//! length, a value of the encryption context, or a secret.

use serde::{Deserialize, Serialize};

use super::tree::Hash;
use crate::api::{ErrorKind, Operation, Verification};

/// The result of an operation that did what was asked.
pub const OK: &str = "ok";
/// The result of an operation whose end nobody waited for: its client went
/// away, or the agent stopped.
pub const ABANDONED: &str = "abandoned";

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The log goes on in a new file; first in each.
    #[default]
    Segment,
    /// The agent's server began to work.
    Start,
    /// It ended as it was told to.
    Stop,
    /// Another configuration is in force.
    Config,
    /// An object was to be stored.
    Put,
    /// An object was to be read.
    Get,
    /// An object's size and attributes were asked for.
    Head,
    /// An object was looked at without decrypting it.
    Inspect,
    /// Names were listed.
    List,
    /// An object was to be deleted.
    Delete,
    /// Keyslots were to be written.
    Rewrap,
    /// What is stored was to be compared with what is known of it.
    Verify,
    /// An object was to be asked for, out of an archive class.
    Restore,
    /// Something else that a grant governs.
    Admin,
    /// An upload that may be resumed was begun, found, resumed or given up.
    Upload,
    /// No grant permitted it.
    Denied,
    /// A wrapping key changed its state.
    Key,
    /// A token changed its health.
    Token,
    /// Bytes that nobody had been told of were cut off the log.
    Repaired,
    /// What became of an operation that has a begin and no end.
    Resolved,
    /// The log could not be written for a while.
    Outage,
    /// What was found at the anchor at a start.
    Anchor,
    /// A checkpoint is made of the tree that ends with this record.
    Checkpoint,
}

impl From<Operation> for Kind {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Put => Self::Put,
            Operation::Get | Operation::GetUnbound | Operation::GetUncommitted => Self::Get,
            Operation::Head => Self::Head,
            Operation::Inspect => Self::Inspect,
            Operation::List => Self::List,
            Operation::Delete => Self::Delete,
            Operation::Rewrap => Self::Rewrap,
            Operation::Admin => Self::Admin,
        }
    }
}

/// Which of an operation's two records this is; an operation that failed
/// before anything was at stake has a single one, which has none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Durable before the first plaintext byte leaves, or before the request
    /// that makes or deletes the object is sent.
    Begin,
    /// Durable before the client hears that it was done.
    End,
}

/// Who asked: the kernel's word on the peer of the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// The process that connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// That process's name, where it can be read: anybody may choose it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
}

/// A tree: how many records, and their root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeHead {
    /// Records.
    pub size: u64,
    /// The RFC 6962 root over them.
    pub root: Hash,
}

/// The event's own part of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// What happened.
    pub event: Kind,
    /// Before or after, for an operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What begin, end and `resolved` of one operation share: the request's
    /// id, which the client also hears.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    /// Who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Actor>,
    /// What a grant would have had to name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// The bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// The object's key; a listing's prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The object's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// The message's id, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The configured name of the wrapping key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrapping_key: Option<String>,
    /// Who else holds the data key: recipients, by their names in the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipients: Option<Vec<String>>,
    /// Recipients that are not required and could not be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<Vec<String>>,
    /// The token's three bytes of check value, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_value: Option<String>,
    /// Plaintext bytes of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plaintext_size: Option<u64>,
    /// Ciphertext bytes of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_size: Option<u64>,
    /// The stored object's checksum, of ciphertext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// The part of the plaintext that was asked for: first and last byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<[u64; 2]>,
    /// Plaintext bytes that were handed out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released: Option<u64>,
    /// [`OK`], an error's type (docs/errors.md), or [`ABANDONED`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The object was refused as it is: a sign of tampering.
    #[serde(skip_serializing_if = "is_false")]
    pub tamper: bool,
    /// Another writer stored the object.
    #[serde(skip_serializing_if = "is_false")]
    pub foreign: bool,
    /// What a verification came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Box<Verification>>,
    /// The store's own id of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3_request_id: Option<String>,
    /// From the request's arrival, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// The configured name of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// What a token or key is from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// In words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// SHA-256 of the configuration's text, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_sha256: Option<String>,
    /// The last checkpoint before this record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<TreeHead>,
    /// How many of the records are in a checkpoint that was anchored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchored: Option<u64>,
    /// Bytes that were cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The `seq` of the begin that this ends or resolves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begin: Option<u64>,
    /// When it happened, RFC 3339, if the log could not be written then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurred: Option<String>,
    /// Since when, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Records that were lost meanwhile: none of an operation that succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Refusals of the same user before this one that have no record of their
    /// own: too many came at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<u64>,
    /// The log's name, first line of its checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The tree's subtrees before this record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peaks: Option<Vec<Hash>>,
    /// The `seq` of every begin before this record that has no end yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<Vec<u64>>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Event {
    /// An event of this kind.
    #[must_use]
    pub fn new(event: Kind) -> Self {
        Self {
            event,
            ..Self::default()
        }
    }

    /// With words of explanation.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Takes down how an operation ended.
    pub fn set_result(&mut self, outcome: Result<(), ErrorKind>) {
        let (result, tamper) = match outcome {
            Ok(()) => (OK, false),
            // Refused as it is, whoever made it so.
            Err(kind) => (kind.slug(), kind.status() == 422),
        };
        self.result = Some(result.to_owned());
        self.tamper = tamper;
    }
}

/// The writer's part of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The record's number in the log, from 0 and without gaps: its leaf's
    /// index.
    pub seq: u64,
    /// The leaf hash of the record before; absent in the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub prev: Option<Hash>,
    /// When it was written, RFC 3339 in UTC with microseconds.
    pub time: String,
    /// The same on a clock that is never set: nanoseconds since boot, time
    /// asleep included.
    pub monotonic_ns: u64,
    /// Which boot of the host, as the kernel numbers them.
    pub boot_id: String,
    /// The host's name.
    pub host: String,
    /// The agent's version.
    pub version: String,
}

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The writer's part.
    #[serde(flatten)]
    pub head: Head,
    /// The event's.
    #[serde(flatten)]
    pub event: Event,
}

/// Joins the two parts into a line. Neither part is ever empty.
pub(super) fn join(head: &Head, event: &Event) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(head)?;
    line.pop();
    line.push(b',');
    line.extend_from_slice(serde_json::to_vec(event)?.get(1..).unwrap_or_default());
    Ok(line)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_object_with_a_stable_order() {
        let head = Head {
            seq: 7,
            prev: Some(Hash::leaf(b"")),
            time: "2026-01-01T00:00:00.000000Z".into(),
            monotonic_ns: 5,
            boot_id: "b".into(),
            host: "h".into(),
            version: "1".into(),
        };
        let mut event = Event::new(Kind::Get);
        event.phase = Some(Phase::End);
        event.key = Some("a\"b\n".into());
        event.set_result(Err(ErrorKind::RolledBack));
        let line = join(&head, &event).unwrap();
        let expected = concat!(
            r#"{"seq":7,"prev":"bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=","#,
            r#""time":"2026-01-01T00:00:00.000000Z","monotonic_ns":5,"boot_id":"b","#,
            r#""host":"h","version":"1","event":"get","phase":"end","#,
            r#""key":"a\"b\n","result":"rolled-back","tamper":true}"#
        );
        assert_eq!(String::from_utf8(line).unwrap(), expected);
        let record: Record = serde_json::from_str(expected).unwrap();
        assert_eq!(record, Record { head, event });
    }
}
