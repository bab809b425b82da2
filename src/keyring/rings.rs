//! Which key of a ring wraps: the configured one, or who took over from it.
//!
//! A key's successor, if it has one, wraps in its place from 31/32 of its
//! wrap_limit on (SECURITY rule 19). The count never falls, so neither a
//! restart nor a crash gives a used-up key its place back.
//!
//! A key that a new configuration makes active wraps from the moment at which
//! a token has let it in: until then whoever wrapped before goes on, so that
//! a rotation costs no request.

use std::time::{Duration, Instant};

use crate::api::{Error, ErrorKind};
use crate::config::Key;
use crate::token::Token;

use super::{Keyring, Live};

/// How long a new key is waited for: a CloudHSM cluster takes seconds until a
/// new key is on all its HSMs. Longer than `key rotate` waits before it takes
/// the new key back (20 s), so that no request fails either way; after that
/// its problem had better be told.
const HANDOVER: Duration = Duration::from_secs(30);

/// Who wrapped for a ring before its present key.
pub(super) struct Former {
    key: String,
    until: Instant,
}

impl Keyring {
    /// The key that wraps new objects of `ring` (or of the only ring).
    ///
    /// # Errors
    /// There is no such ring, or several and none was named; or the key has
    /// reached its wrap_limit and has no successor.
    pub fn active(&self, ring: Option<&str>) -> Result<Key, Error> {
        let live = self.read();
        let active = live.keys.iter().filter(|k| k.is_active());
        let Some(name) = ring else {
            let mut active = active.filter(|key| !live.recipients.has_ring(key.ring()));
            let Some(first) = active.next() else {
                return Err(
                    Error::new(ErrorKind::Misconfigured, "no wrapping key is active")
                        .hint("`strongroom key generate NAME --token T` makes one"),
                );
            };
            if active.next().is_some() {
                return Err(Error::new(
                    ErrorKind::Malformed,
                    "several rings are configured and none was named",
                )
                .hint("name one with --key or the Strongroom-Key header"));
            }
            return self.unless_exhausted(self.current(&live, first));
        };
        // A key's own name works too, as long as it is the ring's active key.
        active
            .map(|key| (key, self.current(&live, key)))
            .find(|(key, current)| key.ring() == name || key.name == name || current.name == name)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Malformed,
                    format!("no active wrapping key {name:?}"),
                )
                .hint("`strongroom key list` shows the configured keys")
            })
            .and_then(|(_, current)| self.unless_exhausted(current))
    }

    /// Why nothing can be stored at all, if every ring's key has reached its
    /// wrap_limit.
    #[must_use]
    pub fn exhaustion(&self) -> Option<Error> {
        let live = self.read();
        if let Some(error) = self.exhausted_recipient(&live) {
            return Some(error);
        }
        let spent = |key: &&Key| {
            let count = self.counts.count(&key.name);
            count.is_some_and(|count| count.is_exhausted())
        };
        if !self.wrapping(&live).all(|key| spent(&key)) {
            return None;
        }
        let first = self.wrapping(&live).next()?;
        self.unless_exhausted(first).err()
    }

    /// The key of each ring that wraps now; recipients' rings are none.
    pub(super) fn wrapping<'a>(&'a self, live: &'a Live) -> impl Iterator<Item = &'a Key> {
        let chosen = |key: &&Key| key.is_active() && !live.recipients.has_ring(key.ring());
        let active = live.keys.iter().filter(chosen);
        active.map(|key| self.current(live, key))
    }

    /// Who wraps in place of a ring's configured key.
    pub(super) fn current<'a>(&self, live: &'a Live, configured: &'a Key) -> &'a Key {
        let mut key = Self::former(live, configured).unwrap_or(configured);
        // The configuration's chains of successors end.
        while let Some(next) = self.handed_over(live, key) {
            self.announce(key, next);
            key = next;
        }
        key
    }

    /// The rings whose key these keys replace, with the key that wraps now.
    pub(super) fn replaced(&self, keys: &[Key]) -> Vec<(String, Former)> {
        let live = self.read();
        let active = keys.iter().filter(|key| key.is_active());
        let replaced = active.filter_map(|key| {
            let mut before = live.keys.iter();
            let before = before.find(|k| k.is_active() && k.ring() == key.ring())?;
            let before = self.current(&live, before);
            (before.name != key.name).then(|| {
                let former = Former {
                    key: before.name.clone(),
                    until: Instant::now() + HANDOVER,
                };
                (key.ring().to_owned(), former)
            })
        });
        replaced.collect()
    }

    /// Who goes on wrapping while a ring's new key is on its way through the
    /// gate. One that was disabled meanwhile does not.
    fn former<'a>(live: &'a Live, new: &Key) -> Option<&'a Key> {
        let former = live.former.get(new.ring())?;
        let settled = |token: &Token| token.is_open(&new.name) || token.refuses(&new.name);
        if former.until <= Instant::now() || live.tokens_of(new).any(settled) {
            return None;
        }
        let mut keys = live.keys.iter();
        keys.find(|key| key.name == former.key && key.opens())
    }

    /// The successor of a key whose time has come.
    pub(super) fn handed_over<'a>(&self, live: &'a Live, key: &Key) -> Option<&'a Key> {
        let name = key.successor.as_deref()?;
        let count = self.counts.count(&key.name)?;
        if !count.is_due() {
            return None;
        }
        let next = live.keys.iter().find(|other| other.name == name)?;
        // One that its tokens refuse would only waste what is left.
        let wasted = live.tokens_of(next).all(|token| token.refuses(&next.name));
        (count.is_exhausted() || !wasted).then_some(next)
    }

    fn announce(&self, key: &Key, next: &Key) {
        let mut announced = self.announced.lock().unwrap_or_else(|e| e.into_inner());
        if !announced.contains(&key.name) {
            announced.insert(key.name.clone());
            tracing::warn!(
                key = key.name,
                successor = next.name,
                hint = "make the successor the active key of the configuration, and name the next",
                "the wrapping key has nearly reached its wrap_limit: its successor wraps from now on"
            );
        }
    }

    pub(super) fn unless_exhausted(&self, key: &Key) -> Result<Key, Error> {
        let count = self.counts.count(&key.name);
        match count.filter(|count| count.is_exhausted()) {
            None => Ok(key.clone()),
            Some(count) => Err(Error::new(
                ErrorKind::KeyExhausted,
                format!(
                    "wrapping key {:?} has reached its wrap_limit of {}",
                    key.name, count.limit
                ),
            )),
        }
    }
}
