//! One bucket: every version of every object, and which keys open it.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::mpsc::Sender;

use crate::api::{Error, ErrorKind, RetireLine, RetireReport};
use crate::engine::Engine;
use crate::keyring::Opens;
use crate::message::{Header, MAX_SLOT, Parsed, Permit, header_slot_name, pack_prefix};
use crate::objects::read_header;
use crate::store::{ListedVersion, METADATA_HEADER, METADATA_MESSAGE_ID, Place, StoreError};
use crate::unlock::{packed, slots_of};

use super::{Seen, subject};

/// Versions looked at at once: enough to hide the store's latency, and fewer
/// than a token has sessions.
const AT_ONCE: usize = 8;

/// Entries of a listing page: the most that S3 returns (ListObjectsV2).
const PAGE: u32 = 1000;

/// What one version turned out to be.
enum Found {
    /// It was deleted since it was listed.
    Gone,
    /// Nothing of ours.
    NoMessage,
    /// A message that holds no data key of this wrapping key.
    Independent(String),
    /// A message that another key opens, too.
    OpenedBy(String, String),
    /// A message that no other key was seen to open, and why.
    OnlyKey(String, String),
}

/// Lists a bucket and looks at each version.
pub(super) async fn bucket(
    engine: &Arc<Engine>,
    bucket: &str,
    report: &mut RetireReport,
    seen: &mut Seen,
    lines: &Sender<RetireLine>,
) {
    let retiring = report.key.clone();
    let slotted = match slotted(engine, bucket, &retiring).await {
        Ok(slotted) => slotted,
        Err(error) => {
            let why = format!("its keyslots cannot be listed: {error}");
            report.refuse("unknown", format!("s3://{bucket}"), why);
            return;
        }
    };
    let mut after = None;
    loop {
        let page = match engine.store.list_versions(bucket, "", after.as_ref()).await {
            Ok(page) => page,
            Err(error) => {
                let why = format!("its versions cannot be listed: {error}");
                report.refuse("unknown", format!("s3://{bucket}"), why);
                return;
            }
        };
        let ours = |v: &ListedVersion| !v.delete_marker && !engine.is_reserved(bucket, &v.key);
        let versions = page.versions.into_iter().filter(ours);
        let looks = versions.map(|version| look(engine, bucket, version, &retiring, &slotted));
        let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some((version, found)) = looks.next().await {
            report.versions += 1;
            count(report, seen, bucket, &version, found);
        }
        drop(looks);
        // Nobody reading is no reason to stop: the report goes on record.
        let _ = lines.try_send(RetireLine::Progress {
            versions: report.versions,
        });
        after = page.next;
        if after.is_none() {
            return;
        }
    }
}

fn count(
    report: &mut RetireReport,
    seen: &mut Seen,
    bucket: &str,
    version: &ListedVersion,
    found: Result<Found, Error>,
) {
    let place = || subject(bucket, &version.key, version.version_id.as_deref());
    match found {
        Ok(Found::Gone) => report.versions -= 1,
        Ok(Found::NoMessage) => report.no_messages += 1,
        Ok(Found::Independent(id)) => {
            seen.add_unproven(bucket, &version.key, &id);
            report.independent += 1;
        }
        Ok(Found::OpenedBy(id, key)) => {
            seen.add(bucket, &version.key, &id);
            *report.opened_by.entry(key).or_default() += 1;
        }
        Ok(Found::OnlyKey(id, why)) => {
            seen.add(bucket, &version.key, &id);
            report.refuse("only-key", place(), why);
        }
        Err(error) => report.refuse("unknown", place(), error.detail),
    }
}

async fn look(
    engine: &Arc<Engine>,
    bucket: &str,
    version: ListedVersion,
    retiring: &str,
    slotted: &Slotted,
) -> (ListedVersion, Result<Found, Error>) {
    let place = Place::new(bucket, &version.key);
    let found = match header_of(engine, &place, &version).await {
        Ok(header) => judge(engine, &place, &header, retiring, slotted).await,
        Err(error) => match error.kind {
            ErrorKind::NoSuchObject => Ok(Found::Gone),
            ErrorKind::NotAMessage => Ok(Found::NoMessage),
            _ => Err(error),
        },
    };
    (version, found)
}

/// The header, from the object itself; of one that is archived, what was
/// stored beside it. A forged one opens nothing, and is not the message that
/// the catalogue knows.
async fn header_of(
    engine: &Engine,
    place: &Place,
    version: &ListedVersion,
) -> Result<Box<Header>, Error> {
    if version.size == 0 {
        return Err(Error::new(ErrorKind::NotAMessage, "it is empty"));
    }
    let archived = match read_header(engine, place, version.version_id.clone()).await {
        Err(error) if error.kind == ErrorKind::Archived => error,
        read => return read,
    };
    let head = engine
        .store
        .head(place, version.version_id.as_deref())
        .await;
    let head = head.map_err(|error| crate::fault::store_error(&error))?;
    let metadata = |name: &str| {
        let mut pairs = head.metadata.iter();
        pairs.find(|(key, _)| key == name).map(|(_, value)| value)
    };
    let bytes = match (metadata(METADATA_HEADER), metadata(METADATA_MESSAGE_ID)) {
        (Some(encoded), _) => data_encoding::BASE64.decode(encoded.as_bytes()).ok(),
        (None, Some(id)) => {
            let settings = &engine.settings;
            let bucket = settings.slot_bucket(&place.bucket);
            let name = header_slot_name(&settings.keyslot_prefix, id);
            let slot = engine.store.get_slot(bucket, &name, MAX_SLOT).await;
            slot.ok().map(|bytes| bytes.to_vec())
        }
        (None, None) => None,
    };
    match bytes.map(|bytes| Header::parse(&bytes, Permit { uncommitted: true })) {
        Some(Ok(Parsed::Header(header))) => Ok(header),
        _ => Err(archived),
    }
}

async fn judge(
    engine: &Arc<Engine>,
    place: &Place,
    header: &Header,
    retiring: &str,
    slotted: &Slotted,
) -> Result<Found, Error> {
    let id = header.message_id().to_string();
    let names: Vec<&str> = header
        .edks()
        .iter()
        .filter_map(|edk| edk.raw_aes_parts())
        .map(|parts| parts.key_name)
        .collect();
    if !names.contains(&retiring) && !slotted.may_have(&id) {
        return Ok(Found::Independent(id));
    }
    let mut why = Vec::new();
    for name in names.iter().filter(|name| **name != retiring) {
        match engine.keyring.opens_with(header, name).await {
            Ok(Opens::Yes) => return Ok(Found::OpenedBy(id, (*name).to_owned())),
            Ok(_) => why.push(format!("what key {name:?} holds of it does not open")),
            Err(error) => why.push(format!("key {name:?} cannot be asked: {}", error.detail)),
        }
    }
    if let Some(name) = slot_opens(engine, place, header, retiring, &mut why).await? {
        return Ok(Found::OpenedBy(id, name));
    }
    if why.is_empty() {
        why.push("no other key holds its data key".to_owned());
    }
    Ok(Found::OnlyKey(id, why.join("; ")))
}

/// The messages of a bucket that have a keyslot of this key.
struct Slotted {
    /// Those with one of their own.
    ids: HashSet<String>,
    /// There are packs of it, in which any message may have one.
    packs: bool,
}

impl Slotted {
    fn may_have(&self, id: &str) -> bool {
        self.packs || self.ids.contains(id)
    }
}

async fn slotted(engine: &Engine, bucket: &str, key: &str) -> Result<Slotted, StoreError> {
    let prefix = &engine.settings.keyslot_prefix;
    let packs = pack_prefix(prefix, key, bucket);
    let bucket = engine.settings.slot_bucket(bucket);
    let first = engine.store.list(bucket, &packs, None, None, 1).await?;
    let packs = !first.objects.is_empty();
    let mut ids = HashSet::new();
    let mut continuation = None;
    loop {
        let page = engine
            .store
            .list(bucket, prefix, None, continuation.as_deref(), PAGE);
        let page = page.await?;
        for object in page.objects {
            let name = object.key.strip_prefix(prefix.as_str()).unwrap_or_default();
            let Some((id, holder)) = name.split_once('/') else {
                continue;
            };
            // The first one has the key's name alone, further ones a number.
            let more = holder
                .strip_prefix(key)
                .and_then(|rest| rest.strip_prefix('.'));
            let number = |rest: &str| rest.bytes().all(|b| b.is_ascii_digit());
            if holder == key || more.is_some_and(number) {
                ids.insert(id.to_owned());
            }
        }
        continuation = page.continuation;
        if continuation.is_none() {
            return Ok(Slotted { ids, packs });
        }
    }
}

/// Another key whose keyslot opens the message.
async fn slot_opens(
    engine: &Engine,
    place: &Place,
    header: &Header,
    retiring: &str,
    why: &mut Vec<String>,
) -> Result<Option<String>, Error> {
    let others = engine.keyring.slot_keys(None).into_iter();
    for key in others.filter(|key| key.name != retiring) {
        let mut search = engine.keyring.search(header, None);
        let mut slots = slots_of(engine, &mut search, &place.bucket, &key).await?;
        if slots.opened.is_none() {
            let packs = packed(engine, &mut search, place, &place.bucket, &key).await?;
            slots.bad.extend(packs.bad);
            slots.opened = packs.opened;
        }
        if slots.opened.is_some() {
            return Ok(Some(key.name));
        }
        if let Some(error) = search.away() {
            why.push(format!(
                "the keyslot of {:?} cannot be looked at: {}",
                key.name, error.detail
            ));
        } else if let Some((name, fault)) = slots.bad.first() {
            why.push(format!("the keyslot {name} does not open it: {fault}"));
        }
    }
    Ok(None)
}
