//! What every operation needs, in one place: keys, store, catalogue, memory.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Notify, oneshot, watch};

use crate::api::{Error, ErrorKind, Receipt};
use crate::catalog::Catalog;
use crate::config::{BucketAlias, Config};
use crate::keyring::Keyring;
use crate::store::{Buffer, Limits, Place, Pool, Spool, Store};

/// How long a request waits for its share of `memory_budget` before it is
/// told to come back: longer than a burst, shorter than a client's patience.
pub const RESERVE_WAIT: Duration = Duration::from_secs(60);

/// How long a request that is under way waits for its next share. Parts in
/// flight and slow clients have limits of their own, far below this; it only
/// ends what no limit foresaw.
pub const MORE_WAIT: Duration = Duration::from_secs(600);

/// Locks over places, a power of two: two requests for different places
/// seldom meet, and the table never grows.
const PLACE_LOCKS: usize = 1024;

/// Keys, store, catalogue and memory of one running server.
pub struct Engine {
    /// The wrapping keys.
    pub keyring: Keyring,
    /// S3.
    pub store: Store,
    /// The catalogue.
    pub catalog: Catalog,
    /// Part buffers within `memory_budget`.
    pub pool: Pool,
    /// Where parts go that do not fit the pool.
    pub spool: Spool,
    /// What of the configuration shapes an object.
    pub settings: Settings,
    /// Uploads in progress, by wrapping key.
    pub uses: Uses,
    /// Resumable uploads that a client is sending to, by their tickets.
    pub sessions: Sessions,
    /// Told when an upload was given up and is to be aborted.
    pub orphaned: Notify,
    /// Told when something was queued, or may be tried again.
    pub queued: Notify,
    /// Clients that wait to hear what became of their tickets.
    pub waiting: Waiting,
    /// Becomes true when running requests must end.
    pub cancel: watch::Receiver<bool>,
    places: Box<[Mutex<()>]>,
}

/// What of the configuration shapes an object.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Plaintext bytes a frame.
    pub frame_length: u32,
    /// Nominal part size in bytes.
    pub part_size: u64,
    /// Parts in flight for one request.
    pub concurrency: usize,
    /// The largest part kept in memory, in bytes; larger ones are spooled.
    pub memory_part: u64,
    /// The bucket of slots, if not the object's own.
    pub keyslot_bucket: Option<String>,
    /// The reserved prefix.
    pub keyslot_prefix: String,
    /// The store's limits on parts.
    pub limits: Limits,
    /// The checksum that the store verifies.
    pub checksum: String,
    /// Buckets with replicas: each with the one its objects were written for.
    pub aliases: Vec<BucketAlias>,
}

impl Settings {
    /// From a validated configuration.
    #[must_use]
    pub fn new(config: &Config, limits: Limits) -> Self {
        // The configuration bounds frame_length to 16 MiB.
        let frame_length = u32::try_from(config.message.frame_length.bytes()).unwrap_or(u32::MAX);
        let part_size = config.s3.part_size.bytes();
        Self {
            frame_length,
            part_size,
            concurrency: config.s3.upload_concurrency,
            memory_part: (config.agent.memory_budget.bytes() / 4).max(part_size),
            keyslot_bucket: config.keyslots.bucket.clone(),
            keyslot_prefix: config.keyslots.prefix.clone(),
            limits,
            checksum: format!("{:?}", config.s3.checksum),
            aliases: config.bucket_aliases.clone(),
        }
    }

    /// Where what is read at `place` was written: there, or where the bucket
    /// it is a replica of has it.
    #[must_use]
    pub fn home(&self, place: &Place) -> Place {
        match self.replicated(&place.bucket) {
            Some(holds) => Place::new(holds, &place.key),
            None => place.clone(),
        }
    }

    /// The bucket whose replicas `bucket` holds, if it is an alias.
    #[must_use]
    pub fn replicated(&self, bucket: &str) -> Option<&str> {
        let alias = self.aliases.iter().find(|alias| alias.bucket == bucket);
        alias.map(|alias| alias.holds.as_str())
    }

    /// The bucket with the slots of the objects of `bucket`.
    #[must_use]
    pub fn slot_bucket<'a>(&'a self, bucket: &'a str) -> &'a str {
        self.keyslot_bucket.as_deref().unwrap_or(bucket)
    }
}

/// Uploads in progress, by the key that wraps them: what neither a listing nor
/// the catalogue shows yet.
#[derive(Default)]
pub struct Uses(Arc<std::sync::Mutex<HashMap<String, u64>>>);

/// One of them; over when it is dropped.
pub struct Use {
    uses: Arc<std::sync::Mutex<HashMap<String, u64>>>,
    key: String,
}

impl Uses {
    /// One more under the key with this configured name.
    #[must_use]
    pub fn begin(&self, key: &str) -> Use {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *uses.entry(key.to_owned()).or_default() += 1;
        Use {
            uses: Arc::clone(&self.0),
            key: key.to_owned(),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn of(&self, key: &str) -> u64 {
        let uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.get(key).copied().unwrap_or_default()
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = uses.get_mut(&self.key) {
            *count -= 1;
        }
    }
}

/// Resumable uploads that a client is sending to. One at a time: two would
/// seal the same frames.
#[derive(Default)]
pub struct Sessions(Arc<std::sync::Mutex<HashSet<String>>>);

/// One of them; over when it is dropped.
pub struct Session {
    sessions: Arc<std::sync::Mutex<HashSet<String>>>,
    ticket: String,
}

impl Sessions {
    /// Begins one, unless there is one for this ticket.
    #[must_use]
    pub fn begin(&self, ticket: &str) -> Option<Session> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.insert(ticket.to_owned()).then(|| Session {
            sessions: Arc::clone(&self.0),
            ticket: ticket.to_owned(),
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&self.ticket);
    }
}

/// What became of a ticket at its first try: its receipt, `None` while the
/// store is away, or why it is parked.
pub type Tried = Result<Option<Receipt>, Error>;

/// Clients that wait for the first try of their tickets.
#[derive(Default)]
pub struct Waiting(std::sync::Mutex<HashMap<String, oneshot::Sender<Tried>>>);

impl Waiting {
    /// Waits for a ticket's.
    pub fn begin(&self, ticket: &str) -> oneshot::Receiver<Tried> {
        let (tell, told) = oneshot::channel();
        self.lock().insert(ticket.to_owned(), tell);
        told
    }

    /// Waits no longer.
    pub fn end(&self, ticket: &str) {
        self.lock().remove(ticket);
    }

    /// Tells whoever waits; false if nobody does any more.
    pub fn tell(&self, ticket: &str, tried: Tried) -> bool {
        let waiting = self.lock().remove(ticket);
        waiting.is_some_and(|client| client.send(tried).is_ok())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Tried>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Puts the rooms together.
    #[must_use]
    pub fn new(
        keyring: Keyring,
        store: Store,
        catalog: Catalog,
        pool: Pool,
        spool: Spool,
        settings: Settings,
        cancel: watch::Receiver<bool>,
    ) -> Arc<Self> {
        Arc::new(Self {
            keyring,
            store,
            catalog,
            pool,
            spool,
            settings,
            uses: Uses::default(),
            sessions: Sessions::default(),
            orphaned: Notify::new(),
            queued: Notify::new(),
            waiting: Waiting::default(),
            cancel,
            places: (0..PLACE_LOCKS).map(|_| Mutex::new(())).collect(),
        })
    }

    /// Holds back other writers of `place` on this host, so that receipts
    /// are recorded in the order in which S3 took the objects.
    pub async fn lock_place(&self, place: &Place) -> MutexGuard<'_, ()> {
        let mut hasher = std::hash::DefaultHasher::new();
        place.bucket.hash(&mut hasher);
        place.key.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % PLACE_LOCKS as u64).unwrap_or_default();
        self.places[index].lock().await
    }

    /// Memory for `len` bytes, in turn with everybody else, for a request
    /// that holds none: whoever waits for memory while he holds some can
    /// wait for somebody who waits for him.
    ///
    /// # Errors
    /// Nothing came free within [`RESERVE_WAIT`].
    pub async fn reserve(&self, len: usize) -> Result<Buffer, Error> {
        self.reserve_within(len, RESERVE_WAIT).await
    }

    /// The same for a request that is under way: what it waits for may be
    /// its own parts on a slow line to the store.
    ///
    /// # Errors
    /// Nothing came free within [`MORE_WAIT`].
    pub async fn reserve_more(&self, len: usize) -> Result<Buffer, Error> {
        self.reserve_within(len, MORE_WAIT).await
    }

    async fn reserve_within(&self, len: usize, wait: Duration) -> Result<Buffer, Error> {
        if len as u64 > self.pool.budget() {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("{len} bytes are needed at once, and memory_budget is less"),
            )
            .hint("raise agent.memory_budget"));
        }
        self.pool.reserve(len, wait).await.map_err(|_| {
            Error::new(
                ErrorKind::Busy,
                format!(
                    "no memory came free within {} s: other requests hold all of memory_budget",
                    wait.as_secs()
                ),
            )
        })
    }

    /// Refuses what lies under the reserved prefix (SECURITY rule 8).
    ///
    /// # Errors
    /// [`ErrorKind::Reserved`].
    pub fn check_reserved(&self, place: &Place) -> Result<(), Error> {
        if self.is_reserved(&place.bucket, &place.key) {
            return Err(Error::new(
                ErrorKind::Reserved,
                format!(
                    "{} lies under the keyslot prefix {:?}",
                    place, self.settings.keyslot_prefix
                ),
            ));
        }
        Ok(())
    }

    /// Refuses to write among replicas: what is written there is bound to
    /// that bucket, and would not be read under the alias.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`].
    pub fn check_no_replica(&self, place: &Place) -> Result<(), Error> {
        match self.settings.replicated(&place.bucket) {
            Some(holds) => Err(Error::new(
                ErrorKind::Forbidden,
                format!(
                    "{:?} holds replicas of {holds:?} ([[bucket_alias]])",
                    place.bucket
                ),
            )
            .hint(format!(
                "write to s3://{holds}/, and let the store replicate it"
            ))),
            None => Ok(()),
        }
    }

    /// Whether a key lies under the reserved prefix. In any bucket: whoever
    /// later moves keyslots into it must not find clients' objects there.
    #[must_use]
    pub fn is_reserved(&self, _bucket: &str, key: &str) -> bool {
        let prefix = &self.settings.keyslot_prefix;
        let folded = folded(key);
        key.starts_with(prefix)
            || folded.starts_with(prefix.as_str())
            // A file of the directory's name would bar the way to all slots.
            || folded == prefix.trim_end_matches('/')
    }

    /// Resolves when running requests must end.
    pub async fn cancelled(&self) {
        let mut cancel = self.cancel.clone();
        // A dropped sender means the server is gone: that ends requests too.
        let _ = cancel.wait_for(|stop| *stop).await;
    }
}

/// A key as a store with directories would resolve it. S3 itself does not,
/// but others do, and `x/../` must not lead to keyslots, nor out of a granted
/// prefix, on any of them.
#[must_use]
pub fn folded(key: &str) -> String {
    let mut parts = Vec::new();
    for part in key.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut folded = parts.join("/");
    if key.ends_with('/') {
        folded.push('/');
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::folded;

    #[test]
    fn rule_08_no_detour_leads_to_the_reserved_prefix() {
        for key in [
            ".strongroom/keyslots/x",
            "/.strongroom/keyslots/x",
            "a/../.strongroom//keyslots/./x",
            "../.strongroom/keyslots/b/../x",
        ] {
            assert_eq!(folded(key), ".strongroom/keyslots/x", "{key}");
        }
        assert_eq!(folded("a//b/"), "a/b/");
    }
}
