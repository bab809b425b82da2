//! The catalogue: what this host stored, remembered in SQLite.
//!
//! Only local memory can tell that the store serves an old version, or
//! another's, as the current one (docs/security.md). One thread writes,
//! a few connections read; the handle is cheap to clone and its calls are
//! async, but for the two that run before there is anything to wait for.

mod copy;
mod dependents;
mod error;
mod head;
#[cfg(test)]
mod history_tests;
mod journal;
mod places;
mod queue;
mod reader;
mod rewrap;
mod schema;
mod seen;
#[cfg(test)]
mod tests;
mod uploads;
mod wraps;
mod writer;

pub use copy::Restored;
pub use dependents::{Dependent, Entry};
pub use error::CatalogError;
pub use head::Head;
pub use places::{Asked, Match, PlaceRecord, Record, Waiting};
pub use queue::{Backlog, Queued};
pub use rewrap::{Checkpoint, Unpacked};
pub use seen::Seen;
pub use uploads::{ConfirmedPart, Journal, JournalledPart, JournalledUpload, Open, Orphan};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};

use tokio::sync::oneshot;

use crate::api::Receipt;
use reader::Readers;
use writer::{Change, Effect, Job, MessageId, Outcome, Reply, Writer};

/// The catalogue's file name in the state directory.
const FILE: &str = "catalog.sqlite";

/// What is known of a place: its last receipt, and whether it was deleted
/// since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The message this host stored there last.
    pub receipt: Receipt,
    /// Whether this host deleted it afterwards.
    pub deleted: bool,
    /// Whether it was only found there: no receipt of this host's.
    pub found: bool,
}

/// How a message that the store serves for a place compares with what this
/// host knows of the place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, and most of them are receipts"
)]
pub enum Standing {
    /// Nothing was stored there by this host.
    Unknown,
    /// It is the message this host stored last.
    Current(Receipt),
    /// This host stored it, and another one, or a deletion, after it.
    Superseded {
        /// When the message stored last was created, Unix ms.
        current_created: u64,
    },
    /// Not this host's, and not newer than this host's last.
    Older {
        /// When the message stored last was created, Unix ms.
        current_created: u64,
    },
    /// Not this host's, and newer than its last: a foreign write.
    Newer,
}

/// What depends on a wrapping key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Custody {
    /// Its configured name.
    pub key: String,
    /// Objects and versions.
    pub objects: u64,
    /// Their ciphertext bytes.
    pub stored_bytes: u64,
}

/// The stored canary of a wrapping key (docs/tokens.md). No secret: the
/// plaintext is random, kept nowhere, and known by its digest alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanaryRow {
    /// The IV it was wrapped with.
    pub iv: [u8; 12],
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
    /// SHA-256 of the plaintext.
    pub digest: [u8; 32],
}

/// How often a wrapping key may have wrapped on this host (docs/security.md,
/// rule 19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrapsRow {
    /// Wraps reserved so far: those made, and those that a crash skipped.
    pub reserved: u64,
    /// Whether the count goes back to the key's first use.
    pub complete: bool,
}

/// How much the catalogue holds, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Receipts ever recorded.
    pub receipts: u64,
    /// Distinct foreign messages ever met.
    pub foreign_writes: u64,
}

/// A handle on the catalogue; clones share it. The writer ends, with
/// everything queued committed, when the last one is dropped.
#[derive(Clone)]
pub struct Catalog {
    queue: Sender<Job>,
    readers: Arc<Readers>,
    commits: Arc<AtomicU64>,
}

impl Catalog {
    /// Opens `catalog.sqlite` in the state directory, creating or migrating
    /// it (mode 0600), and starts its writer thread: a process that confines
    /// itself does so before.
    ///
    /// # Errors
    /// The file is damaged, of a later release or another program's, or the
    /// system refuses; [`CatalogError::hint`] has the way out.
    pub fn open(state_dir: &Path) -> Result<Self, CatalogError> {
        let path = state_dir.join(FILE);
        let conn = schema::open_writer(&path)?;
        let (queue, jobs) = channel();
        let commits = Arc::new(AtomicU64::new(0));
        let writer = Writer::new(&path, conn, Arc::clone(&commits));
        std::thread::Builder::new()
            .name("catalog".into())
            .spawn(move || writer.run(&jobs))
            .map_err(|_| CatalogError::Closed)?;
        Ok(Self {
            queue,
            readers: Arc::new(Readers::new(path)),
            commits,
        })
    }

    /// The same where there is one already; `None` where no agent has been
    /// started yet.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub fn open_existing(state_dir: &Path) -> Result<Option<Self>, CatalogError> {
        let path = state_dir.join(FILE);
        match path.try_exists() {
            Ok(true) => Self::open(state_dir).map(Some),
            Ok(false) => Ok(None),
            Err(error) => Err(CatalogError::Io {
                path,
                detail: error.to_string(),
            }),
        }
    }

    /// Records an acknowledged put: durable on return. The message becomes
    /// the place's current one; every earlier one stays known as superseded.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn record_put(&self, receipt: &Receipt) -> Result<(), CatalogError> {
        self.record_message(receipt, &[]).await
    }

    /// The same, and keeps the message's header, for which rewrap then need
    /// not ask the store.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn record_message(
        &self,
        receipt: &Receipt,
        header: &[u8],
    ) -> Result<(), CatalogError> {
        self.record_uploaded(receipt, header, None).await
    }

    /// Records a deletion: of the place or, where the caller named a
    /// version, of that version alone. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn record_delete(
        &self,
        bucket: &str,
        key: &str,
        version_id: Option<&str>,
    ) -> Result<(), CatalogError> {
        self.change(Change::Delete {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            version_id: version_id.map(str::to_owned),
        })
        .await
    }

    /// Remembers a message that another writer stored. Durable on return.
    ///
    /// # Errors
    /// The record is not durable.
    pub async fn record_foreign(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        created: u64,
        version_id: Option<&str>,
    ) -> Result<(), CatalogError> {
        self.change(Change::Foreign {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            message_id: message_id(id)?,
            created,
            version_id: version_id.map(str::to_owned),
        })
        .await
    }

    /// What this host stored at a place last.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn lookup(&self, bucket: &str, key: &str) -> Result<Option<Known>, CatalogError> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        self.readers
            .run(move |conn| reader::lookup(conn, &bucket, &key))
            .await
    }

    /// The receipt of one message (its id in hexadecimal) that this host stored
    /// at a place, whether or not it is the current one there.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn message(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
    ) -> Result<Option<Receipt>, CatalogError> {
        let (bucket, key, id) = (bucket.to_owned(), key.to_owned(), message_id(id)?);
        self.readers
            .run(move |conn| reader::message(conn, &bucket, &key, &id))
            .await
    }

    /// The header of the version that has this size and entity tag, if this
    /// host stored it there and kept its header.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn header(
        &self,
        bucket: &str,
        key: &str,
        version_id: Option<&str>,
        size: u64,
        etag: &str,
    ) -> Result<Option<Vec<u8>>, CatalogError> {
        let (bucket, key, etag) = (bucket.to_owned(), key.to_owned(), etag.to_owned());
        let version = version_id.filter(|id| *id != "null").map(str::to_owned);
        self.readers
            .run(move |conn| reader::header(conn, (&bucket, &key), version.as_deref(), size, &etag))
            .await
    }

    /// Compares a message that the store serves (its id in hexadecimal, its
    /// creation in Unix ms) with what is known of the place.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn classify(
        &self,
        bucket: &str,
        key: &str,
        id: &str,
        created: u64,
    ) -> Result<Standing, CatalogError> {
        let (bucket, key, id) = (bucket.to_owned(), key.to_owned(), message_id(id)?);
        self.readers
            .run(move |conn| reader::classify(conn, &bucket, &key, &id, created))
            .await
    }

    /// Plaintext sizes for a page of a listing, given as key, stored size
    /// and entity tag: `None` where the object is not the one on record.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn sizes(
        &self,
        bucket: &str,
        entries: &[(String, u64, Option<String>)],
    ) -> Result<Vec<Option<u64>>, CatalogError> {
        let (bucket, entries) = (bucket.to_owned(), entries.to_vec());
        self.readers
            .run(move |conn| reader::sizes(conn, &bucket, &entries))
            .await
    }

    /// How much the catalogue holds.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn counts(&self) -> Result<Counts, CatalogError> {
        self.readers.run(reader::counts).await
    }

    /// The canary of the wrapping key with this configured name. Blocks.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub fn load_canary(&self, key: &str) -> Result<Option<CanaryRow>, CatalogError> {
        self.readers.run_blocking(|conn| reader::canary(conn, key))
    }

    /// Stores a wrapping key's canary unless it has one; says whether it did.
    /// Blocks until it is durable.
    ///
    /// # Errors
    /// The record is not durable.
    pub fn save_canary(&self, key: &str, row: &CanaryRow) -> Result<bool, CatalogError> {
        let change = Change::Canary(key.to_owned(), row.clone());
        Ok(matches!(self.change_blocking(change)?, Effect::Made))
    }

    /// How often the wrapping key with this configured name may have wrapped.
    /// Blocks.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub fn load_wraps(&self, key: &str) -> Result<WrapsRow, CatalogError> {
        self.readers.run_blocking(|conn| wraps::load(conn, key))
    }

    /// What depends on each wrapping key. Reads all receipts: seconds for
    /// millions of them.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn custody(&self) -> Result<Vec<Custody>, CatalogError> {
        self.readers.run(reader::custody).await
    }

    /// When each wrapping key was first used on this host, Unix milliseconds.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn first_uses(&self) -> Result<Vec<(String, u64)>, CatalogError> {
        self.readers.run(reader::first_uses).await
    }

    /// What depends on one key, as wrapping key or as recipient.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn custody_of(&self, key: &str) -> Result<Custody, CatalogError> {
        let key = key.to_owned();
        self.readers
            .run(move |conn| dependents::custody_of(conn, &key))
            .await
    }

    /// When a wrapping key was first used on this host, Unix milliseconds.
    /// Blocks.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub fn first_use(&self, key: &str) -> Result<Option<u64>, CatalogError> {
        self.readers
            .run_blocking(|conn| dependents::first_use(conn, key))
    }

    /// What depends on wrapping keys and is no object yet: queued objects,
    /// uploads that are to be resumed.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn dependents(&self) -> Result<Vec<Dependent>, CatalogError> {
        self.readers.run(dependents::dependents).await
    }

    /// The next objects and versions that are there, in the order of their
    /// recording: those after `after` (0 for the first), at most `limit`.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn entries(&self, after: u64, limit: u32) -> Result<Vec<Entry>, CatalogError> {
        self.readers
            .run(move |conn| dependents::entries(conn, after, limit))
            .await
    }

    /// Every bucket in which this host stored something.
    ///
    /// # Errors
    /// The catalogue cannot be read.
    pub async fn buckets(&self) -> Result<Vec<String>, CatalogError> {
        self.readers.run(dependents::buckets).await
    }

    /// The schema's version.
    #[must_use]
    pub fn schema_version() -> usize {
        schema::MIGRATIONS.len()
    }

    /// Counts further wraps of a key, before they are made. Blocks until it
    /// is durable; the answer includes them.
    ///
    /// # Errors
    /// The record is not durable.
    pub fn reserve_wraps(&self, key: &str, count: u64) -> Result<WrapsRow, CatalogError> {
        let key = key.to_owned();
        match self.change_blocking(Change::Wraps { key, count })? {
            Effect::Wraps(row) => Ok(row),
            _ => Err(CatalogError::Closed),
        }
    }

    /// Transactions committed since the catalogue was opened.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    fn change_blocking(&self, change: Change) -> Outcome {
        let (sender, answer) = sync_channel(1);
        self.send(change, Reply::Blocking(sender))?;
        answer.recv().unwrap_or(Err(CatalogError::Closed))
    }

    async fn change(&self, change: Change) -> Result<(), CatalogError> {
        self.effect(change).await.map(|_| ())
    }

    async fn effect(&self, change: Change) -> Outcome {
        let (sender, answer) = oneshot::channel::<Outcome>();
        self.send(change, Reply::Async(sender))?;
        answer.await.unwrap_or(Err(CatalogError::Closed))
    }

    fn send(&self, change: Change, reply: Reply) -> Result<(), CatalogError> {
        self.queue
            .send(Job { change, reply })
            .map_err(|_| CatalogError::Closed)
    }
}

/// Message ids are 32 bytes (version 2) or 16 (version 1) in hexadecimal.
fn message_id(text: &str) -> Result<MessageId, CatalogError> {
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()
        .filter(|bytes| matches!(bytes.len(), 16 | 32))
        .ok_or(CatalogError::Invalid(
            "a message id is 32 or 64 hexadecimal digits",
        ))
}
