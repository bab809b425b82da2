//! Where a header's data key is found: in the header, in a keyslot, or, for
//! a compromised key, only with the catalogue's word.
//!
//! Slots are the store's to forge, swap, hide and repeat. Nothing here
//! believes them: place and AAD come from the header, the header's commitment
//! decides, and a bad slot only costs a request and at most one token call.

use crate::api::{Error, ErrorKind};
use crate::config::Key;
use crate::engine::Engine;
use crate::fault::store_error;
use crate::keyring::{Opened, Search, Trust};
use crate::message::{
    Header, MAX_SLOT, PackName, Slot, edk_in, pack_prefix, packs_behind, slot_name,
};
use crate::store::{ByteRange, Place, Select, StoreError};

/// Slots looked at for one message and key: the first, and those behind it
/// where somebody's garbage lies. Ours: whoever can plant one can plant more,
/// and each may cost a token call.
pub const SLOT_DEPTH: usize = 8;
/// Packs looked at for one object and key. Ours: a run makes one that covers
/// it, and each costs a request.
const PACK_DEPTH: usize = 8;
/// Packs listed to find those: others of the same stretch of keys, of other
/// shards say, stand between them.
const PACKS_LISTED: u32 = 64;
/// Slots asked for in one search, whatever number of keys is configured.
/// Ours: each is a request to the store.
const SLOT_REQUESTS: usize = 32;

/// An opened header, and through what.
pub struct Unlocked {
    /// What was opened, by which key.
    pub opened: Opened,
    /// Where its EDK was found.
    pub via: Via,
}

/// Where an EDK was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// In the header.
    Header,
    /// In the header, by a key that others may hold too: the whole object
    /// has to be compared with the catalogue before a byte of it leaves.
    Compromised,
    /// In the keyslot of this name.
    Slot(String),
}

/// What the slots of one message and key hold.
#[derive(Default)]
pub struct Slots {
    /// The one that opens, with its name.
    pub opened: Option<(Opened, String)>,
    /// The first number under which there is none.
    pub free: Option<usize>,
    /// Slots that are not what their names say, with the reason.
    pub bad: Vec<(String, String)>,
    /// How many were asked for.
    pub asked: usize,
}

/// Finds the data key of a header that belongs at `place` (the first one, for
/// a copy), with keys of these rings; keyslots are those of the objects of
/// bucket `slots`. `vouched`: the catalogue knows the
/// message, so that a compromised key may be tried at all.
///
/// # Errors
/// No key at hand opens it, none of these rings, the header was altered, or
/// a token or the store is away.
pub async fn unlock(
    engine: &Engine,
    header: &Header,
    place: &Place,
    slots: &str,
    rings: Option<&[String]>,
    vouched: bool,
) -> Result<Unlocked, Error> {
    let mut search = engine.keyring.search(header, rings);
    if let Some(opened) = search.embedded(Trust::Good).await? {
        return Ok(Unlocked {
            opened,
            via: Via::Header,
        });
    }
    let mut told = Told::default();
    // A version 1 message has no commitment to tell a wrong slot by.
    if header.is_committed() {
        let mut requests = 0;
        let keys = engine.keyring.slot_keys(rings);
        for key in &keys {
            if requests >= SLOT_REQUESTS || !search.may_try() {
                told.cut = true;
                break;
            }
            let found = slots_of(engine, &mut search, slots, key).await?;
            requests += found.asked;
            if let Some((opened, name)) = found.opened {
                return Ok(Unlocked {
                    opened,
                    via: Via::Slot(name),
                });
            }
            told.add(key, found.bad);
        }
        for key in &keys {
            if requests >= SLOT_REQUESTS || !search.may_try() {
                told.cut = true;
                break;
            }
            let found = packed(engine, &mut search, place, slots, key).await?;
            requests += found.asked;
            if let Some((opened, name)) = found.opened {
                return Ok(Unlocked {
                    opened,
                    via: Via::Slot(name),
                });
            }
            told.bad.extend(told_of(found.bad));
        }
    }
    let compromised = search.compromised();
    if vouched && let Some(opened) = search.embedded(Trust::Compromised).await? {
        return Ok(Unlocked {
            opened,
            via: Via::Compromised,
        });
    }
    if let (false, Some(key)) = (vouched, compromised.first()) {
        return Err(search.failure_by_compromised(key));
    }
    Err(search.failure(&told.text()))
}

/// Looks at the slots of one key, in the order of their numbers, until one
/// opens or there is none.
///
/// # Errors
/// The header was altered.
pub async fn slots_of(
    engine: &Engine,
    search: &mut Search<'_>,
    bucket: &str,
    key: &Key,
) -> Result<Slots, Error> {
    let settings = &engine.settings;
    let bucket = settings.slot_bucket(bucket);
    let id = search.header().message_id();
    let mut slots = Slots::default();
    for n in 0..SLOT_DEPTH {
        if !search.may_try() {
            break;
        }
        let name = slot_name(&settings.keyslot_prefix, id, &key.name, n);
        slots.asked += 1;
        let why = match engine.store.get_slot(bucket, &name, MAX_SLOT).await {
            Ok(bytes) => match try_slot(search, &bytes, key).await? {
                Ok(opened) => {
                    slots.opened = Some((opened, name));
                    break;
                }
                Err(why) => why,
            },
            Err(StoreError::NoSuchKey { .. }) => {
                slots.free = Some(n);
                break;
            }
            // Longer than a slot, archived, altered on the way: not ours.
            Err(error) if error.is_of_the_object() => error.to_string(),
            Err(error) => {
                search.doubt(store_error(&error));
                break;
            }
        };
        if search.away().is_some() {
            break;
        }
        tracing::warn!(bucket, name, why, "a keyslot is not what its name says");
        slots.bad.push((name, why));
    }
    Ok(slots)
}

/// What shards and packs tell an object by: the same on every host.
#[must_use]
pub fn object_hash(key: &str) -> u64 {
    let digest = crate::crypto::digest::digest(&crate::crypto::digest::SHA256, key.as_bytes());
    let mut high = [0; 8];
    high.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(high)
}

/// Looks for the message in the packs of one key that cover its place, among
/// the slots of the objects of bucket `slots`: one listing, and one ranged
/// read for each of them.
///
/// # Errors
/// The header was altered.
pub async fn packed(
    engine: &Engine,
    search: &mut Search<'_>,
    place: &Place,
    slots: &str,
    key: &Key,
) -> Result<Slots, Error> {
    let settings = &engine.settings;
    let bucket = settings.slot_bucket(slots);
    let prefix = pack_prefix(&settings.keyslot_prefix, &key.name, &place.bucket);
    let after = packs_behind(&prefix, &place.key);
    let mut slots = Slots {
        asked: 1,
        ..Slots::default()
    };
    let listed = engine
        .store
        .list_behind(bucket, &prefix, &after, PACKS_LISTED);
    let listed = match listed.await {
        Ok(page) => page.objects,
        Err(StoreError::NoSuchBucket { .. } | StoreError::NoSuchKey { .. }) => return Ok(slots),
        Err(error) => {
            search.doubt(store_error(&error));
            return Ok(slots);
        }
    };
    let hash = object_hash(&place.key);
    let covering = listed
        .iter()
        .filter_map(|object| PackName::parse(&prefix, &key.name, &object.key, object.size))
        .filter(|pack| pack.may_cover(&place.key, hash))
        .take(PACK_DEPTH);
    let id = search.header().message_id();
    for pack in covering {
        let Some((start, end)) = pack.span(&id).filter(|_| search.may_try()) else {
            break;
        };
        slots.asked += 1;
        let select = Select {
            range: Some(ByteRange::new(start, end)),
            ..Select::default()
        };
        let limit = usize::try_from(end - start + 1).unwrap_or_default();
        let from = Place::new(bucket, &pack.name);
        let records = match engine.store.fetch_bytes(&from, select, limit).await {
            Ok((_, records)) => records,
            Err(error) if error.is_of_the_object() => {
                slots.bad.push((pack.name, error.to_string()));
                continue;
            }
            Err(error) => {
                search.doubt(store_error(&error));
                continue;
            }
        };
        let Some(edk) = edk_in(&records, &id, &key.name) else {
            continue;
        };
        if let Some(opened) = search.attempt(&edk, Trust::Good).await? {
            slots.opened = Some((opened, pack.name));
            break;
        }
        if search.away().is_some() {
            break;
        }
        let why = "its data key does not open the message".to_owned();
        slots.bad.push((pack.name, why));
    }
    for (name, why) in &slots.bad {
        tracing::warn!(bucket, name, why, "a pack is not what its name says");
    }
    Ok(slots)
}

/// The keyslots there seem to be for a header: wrapping key and name. Nothing
/// is opened, so nothing of it is verified.
pub async fn told(engine: &Engine, header: &Header, place: &Place) -> Vec<(String, String)> {
    let settings = &engine.settings;
    let bucket = settings.slot_bucket(&place.bucket);
    let id = header.message_id();
    let mut found = Vec::new();
    for key in engine.keyring.slot_keys(None).iter().take(SLOT_REQUESTS) {
        for n in 0..SLOT_DEPTH {
            let name = slot_name(&settings.keyslot_prefix, id, &key.name, n);
            let Ok(bytes) = engine.store.get_slot(bucket, &name, MAX_SLOT).await else {
                break;
            };
            let fits = Slot::parse(&bytes)
                .is_ok_and(|slot| slot.message_id() == id && slot.edk_of(&key.name).is_some());
            if fits {
                found.push((key.name.clone(), name));
                break;
            }
        }
    }
    found
}

/// What a slot opens, or why it does not.
async fn try_slot(
    search: &mut Search<'_>,
    bytes: &[u8],
    key: &Key,
) -> Result<Result<Opened, String>, Error> {
    let slot = match Slot::parse(bytes) {
        Ok(slot) => slot,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if slot.message_id() != search.header().message_id() {
        return Ok(Err("it is another message's".to_owned()));
    }
    let Some(edk) = slot.edk_of(&key.name) else {
        return Ok(Err("it has no data key of this wrapping key".to_owned()));
    };
    Ok(search
        .attempt(edk, Trust::Good)
        .await?
        .ok_or_else(|| "its data key does not open the message".to_owned()))
}

/// What the search among slots came to, for the one who asked.
#[derive(Default)]
struct Told {
    missing: Vec<String>,
    bad: Vec<String>,
    cut: bool,
}

impl Told {
    /// Names in an error's text, at most.
    const MOST: usize = 4;

    fn add(&mut self, key: &Key, bad: Vec<(String, String)>) {
        if bad.is_empty() {
            self.missing.push(format!("{:?}", key.name));
        }
        self.bad.extend(told_of(bad));
    }

    fn text(mut self) -> String {
        self.bad.truncate(Self::MOST);
        let mut text = String::new();
        if !self.missing.is_empty() {
            text += &format!("; it has no keyslot for {}", self.missing.join(", "));
        }
        if !self.bad.is_empty() {
            text += &format!("; these keyslots do not open it: {}", self.bad.join(", "));
        }
        if self.cut {
            text += "; further keyslots were not tried";
        }
        text
    }
}

fn told_of(bad: Vec<(String, String)>) -> impl Iterator<Item = String> {
    bad.into_iter().map(|(name, why)| format!("{name} ({why})"))
}

impl Search<'_> {
    /// Why a compromised key was not tried.
    fn failure_by_compromised(self, key: &str) -> Error {
        if let Some(error) = self.away() {
            return Error::new(error.kind, error.detail.clone());
        }
        Error::new(
            ErrorKind::NoKey,
            format!(
                "only the compromised key {key:?} opens it, and this agent has no receipt for it: anybody with that key could have written it"
            ),
        )
        .hint("read it on the host that stored it, or restore that host's catalogue; `strongroom cp` then makes a new message")
    }
}
