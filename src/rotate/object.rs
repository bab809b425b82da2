//! One version: its header, its data key, its place; then a keyslot.

use super::header::{self, Found};
use super::{Listed, Run};
use crate::api::{Error, ErrorKind, RewrapCounts, RewrapLine};
use crate::audit::Op;
use crate::binding;
use crate::catalog::Unpacked;
use crate::config::Key;
use crate::fault::{message_error, store_error};
use crate::keyring::{Opened, Trust};
use crate::message::{Edk, Header, Record, Slot, slot_name};
use crate::store::{Attributes, Head, Place, StoreError};
use crate::unlock::{SLOT_DEPTH, Unlocked, packed, slots_of, unlock};

/// What became of a version.
#[derive(Default)]
pub(super) struct Outcome {
    state: State,
    /// Keyslots that are not what their names say, with the reason.
    planted: Vec<(String, String)>,
    /// Its data key, to be packed.
    pub(super) wrapped: Option<Wrapped>,
}

#[derive(Default)]
enum State {
    #[default]
    Ignored,
    Already,
    Rewrapped,
    Failed(Error),
}

/// A data key wrapped anew, and how long its object is protected.
pub(super) struct Wrapped {
    pub(super) target: String,
    pub(super) record: Record,
    pub(super) edk: Edk,
    pub(super) header: Box<Header>,
    pub(super) attributes: Attributes,
}

impl Outcome {
    /// The same, unless the token or the store is away: then nothing is known
    /// of this version.
    pub(super) fn unless_away(self) -> Result<Self, Error> {
        match self.state {
            State::Failed(error) if is_passing(error.kind) => Err(error),
            state => Ok(Self { state, ..self }),
        }
    }

    /// What is told of it one by one.
    pub(super) fn lines(&self, listed: &Listed) -> Vec<RewrapLine> {
        let mut lines: Vec<_> = self
            .planted
            .iter()
            .map(|(slot, detail)| RewrapLine::Planted {
                key: listed.key.clone(),
                slot: slot.clone(),
                detail: detail.clone(),
            })
            .collect();
        if let State::Failed(error) = &self.state {
            lines.push(RewrapLine::Failed {
                key: listed.key.clone(),
                version_id: listed.version_id.clone(),
                error: error.kind.slug().to_owned(),
                detail: error.detail.clone(),
                hint: error.hint_text().to_owned(),
            });
        }
        lines
    }

    pub(super) fn count(&self, counts: &mut RewrapCounts) {
        counts.examined += 1;
        counts.planted += self.planted.len() as u64;
        match self.state {
            State::Ignored => counts.ignored += 1,
            State::Already => counts.already += 1,
            State::Rewrapped => counts.rewrapped += 1,
            State::Failed(_) => counts.failed += 1,
        }
    }
}

/// What passes by itself, or when somebody has mended the set-up: the run
/// stops there, and goes on later.
fn is_passing(kind: ErrorKind) -> bool {
    kind.exit_code() == 75 && !matches!(kind, ErrorKind::Archived | ErrorKind::Conflict)
}

pub(super) async fn rewrap(run: &Run, listed: &Listed) -> Outcome {
    let mut outcome = Outcome::default();
    outcome.state = match work(run, listed, &mut outcome).await {
        Ok(state) => state,
        // Deleted since it was listed: nothing is left to open.
        Err(error) if error.kind == ErrorKind::NoSuchObject => State::Ignored,
        Err(error) => State::Failed(error),
    };
    outcome
}

async fn work(run: &Run, listed: &Listed, outcome: &mut Outcome) -> Result<State, Error> {
    let engine = &run.engine;
    let place = Place::new(&run.bucket, &listed.key);
    let version = listed.version_id.as_deref();
    let known = match run.unlocked {
        true => header::known(engine, &place, listed).await?,
        false => None,
    };
    let found = match known {
        Some(found) => Some(found),
        None => header::find(engine, &place, version).await?,
    };
    let Some(Found { header, head }) = found else {
        return Ok(State::Ignored);
    };
    if !header.is_committed() {
        return Err(Error::new(
            ErrorKind::Uncommitted,
            "a version 1 message is never rewrapped: nothing would tell a wrong keyslot from a right one",
        )
        .hint("copy it with `strongroom cp` into a new message"));
    }
    let target = target(run, &header)?;
    if has_edk(&header, &target) && opens_embedded(run, &header, &target).await? {
        return Ok(State::Already);
    }
    let mut first_free = 0;
    // A dry run makes none that would be noticed.
    if run.dry || run.probes() {
        if run.pack
            && let Some(kept) = kept(run, &header, &target).await?
        {
            run.found();
            outcome.wrapped = wrapped(&target, kept, header, &head).filter(|_| !run.dry);
            return Ok(State::Rewrapped);
        }
        let mut search = engine.keyring.search(&header, run.rings.as_deref());
        let slots = slots_of(engine, &mut search, &place.bucket, &target).await?;
        if let Some(error) = search.away() {
            return Err(Error::new(error.kind, error.detail.clone()));
        }
        outcome.planted.extend(slots.bad);
        if slots.opened.is_some() {
            run.found();
            return Ok(State::Already);
        }
        first_free = slots.free.unwrap_or(SLOT_DEPTH);
        let mut search = engine.keyring.search(&header, run.rings.as_deref());
        let packs = packed(engine, &mut search, &place, &place.bucket, &target).await?;
        if packs.opened.is_some() {
            run.found();
            return Ok(State::Already);
        }
    }
    let unlocked = unlock(
        engine,
        &header,
        &place,
        &place.bucket,
        run.rings.as_deref(),
        false,
    )
    .await;
    let Unlocked { opened, .. } = unlocked.map_err(|error| launders(run, &header, error))?;
    // Of the verified header: its context is the writer's.
    binding::check(opened.opener.header().context(), &place, false)?;
    if opened.key == target.name {
        return Ok(State::Already);
    }
    if run.dry {
        return Ok(State::Rewrapped);
    }
    let edk = wrap(run, &header, &target, &opened).await?;
    drop(opened);
    if run.pack {
        keep(run, &header, &target, &edk).await?;
        outcome.wrapped = wrapped(&target, edk, header, &head);
        return Ok(State::Rewrapped);
    }
    let job = SlotJob {
        run,
        place: &place,
        listed,
        header: &header,
        target: &target,
        attributes: protection(&head),
    };
    job.record(&edk, first_free, &mut outcome.planted).await
}

/// The key that is to open this object.
fn target(run: &Run, header: &Header) -> Result<Key, Error> {
    if let Some(key) = &run.target {
        return Ok(key.clone());
    }
    let names = header.edks().iter().filter_map(Edk::raw_aes_parts);
    let ring = names
        .filter_map(|parts| run.engine.keyring.ring_of(parts.key_name))
        .next();
    let key = run.engine.keyring.active(ring.as_deref())?;
    crate::keyring::permitted(&key, run.rings.as_deref())?;
    Ok(key)
}

/// A compromised key's word is not passed on to another key.
fn launders(run: &Run, header: &Header, error: Error) -> Error {
    let compromised = run.engine.keyring.search(header, None).compromised();
    match compromised.first() {
        Some(key) if error.kind == ErrorKind::NoKey => Error::new(
            ErrorKind::NoKey,
            format!(
                "only the compromised key {key:?} opens it: a keyslot would vouch for whatever somebody else may have made of it"
            ),
        )
        .hint("`strongroom cp` makes a new message of it, if it is what this agent's receipt says"),
        _ => error,
    }
}

fn has_edk(header: &Header, key: &Key) -> bool {
    let mut parts = header.edks().iter().filter_map(Edk::raw_aes_parts);
    parts.any(|parts| parts.key_name == key.name)
}

/// Whether the target opens what the header holds for it. It is asked: that a
/// header names a key proves nothing.
async fn opens_embedded(run: &Run, header: &Header, target: &Key) -> Result<bool, Error> {
    let mut search = run.engine.keyring.search(header, None);
    for edk in header.edks() {
        let names = edk
            .raw_aes_parts()
            .is_some_and(|parts| parts.key_name == target.name);
        if names && search.attempt(edk, Trust::Good).await?.is_some() {
            return Ok(true);
        }
    }
    match search.away() {
        Some(error) => Err(Error::new(error.kind, error.detail.clone())),
        None => Ok(false),
    }
}

async fn wrap(run: &Run, header: &Header, target: &Key, opened: &Opened) -> Result<Edk, Error> {
    let data_key = opened
        .data_key
        .as_ref()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a data key that is not proven"))?;
    run.engine.keyring.rewrap(target, header, data_key).await
}

fn wrapped(target: &Key, edk: Edk, header: Box<Header>, head: &Head) -> Option<Wrapped> {
    Some(Wrapped {
        target: target.name.clone(),
        record: Record::new(header.message_id(), &edk)?,
        edk,
        header,
        attributes: protection(head),
    })
}

/// What a former run wrapped and did not get into a pack; opened once before
/// it is believed.
async fn kept(run: &Run, header: &Header, target: &Key) -> Result<Option<Edk>, Error> {
    let id = header.message_id();
    let catalog = &run.engine.catalog;
    let Some(row) = catalog.unpacked(&target.name, id.as_bytes()).await? else {
        return Ok(None);
    };
    let edk = Edk::raw_aes(&target.name, &row.iv, &row.ciphertext);
    let edk = edk.map_err(|e| message_error(&e))?;
    let mut search = run.engine.keyring.search(header, None);
    Ok(search.attempt(&edk, Trust::Good).await?.map(|_| edk))
}

async fn keep(run: &Run, header: &Header, target: &Key, edk: &Edk) -> Result<(), Error> {
    let Some(parts) = edk.raw_aes_parts() else {
        return Ok(());
    };
    let row = Unpacked {
        message_id: header.message_id().as_bytes().to_vec(),
        iv: *parts.iv,
        ciphertext: parts.ciphertext.to_vec(),
    };
    let kept = run.engine.catalog.keep_unpacked(&target.name, row).await;
    Ok(kept?)
}

/// What protects an object from deletion, for its keyslot (SECURITY rule 8).
fn protection(head: &Head) -> Attributes {
    let now = jiff::Timestamp::now();
    let lasting = head
        .retain_until
        .as_deref()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok())
        .is_some_and(|until| until > now);
    Attributes {
        retain_until: head.retain_until.clone().filter(|_| lasting),
        retention_mode: head.retention_mode.clone().filter(|_| lasting),
        legal_hold: head.legal_hold.then(|| "ON".to_owned()),
        ..Attributes::default()
    }
}

/// A keyslot of its own for one message.
pub(super) struct SlotJob<'a> {
    pub(super) run: &'a Run,
    pub(super) place: &'a Place,
    pub(super) listed: &'a Listed,
    pub(super) header: &'a Header,
    pub(super) target: &'a Key,
    pub(super) attributes: Attributes,
}

impl SlotJob<'_> {
    /// Writes it, with its records.
    async fn record(
        &self,
        edk: &Edk,
        from: usize,
        planted: &mut Vec<(String, String)>,
    ) -> Result<State, Error> {
        let mut op: Op = (self.run.records)();
        let event = op.event();
        event.bucket = Some(self.place.bucket.clone());
        event.key = Some(self.place.key.clone());
        event.version_id.clone_from(&self.listed.version_id);
        event.message_id = Some(self.header.message_id().to_string());
        event.wrapping_key = Some(self.target.name.clone());
        event.check_value = self.run.engine.keyring.check_value(&self.target.name);
        op.begin().await?;
        let outcome = self.write(edk, from, planted).await;
        op.finish(outcome).await
    }

    /// Writes it under the first free number, or finds that it is there.
    async fn write(
        &self,
        edk: &Edk,
        mut n: usize,
        planted: &mut Vec<(String, String)>,
    ) -> Result<State, Error> {
        let engine = &self.run.engine;
        let id = self.header.message_id();
        let slot = Slot::new(id, edk.clone()).and_then(|slot| slot.bytes());
        let slot = bytes::Bytes::from(slot.map_err(|e| message_error(&e))?);
        let bucket = engine.settings.slot_bucket(&self.place.bucket);
        while n < SLOT_DEPTH {
            let name = slot_name(&engine.settings.keyslot_prefix, id, &self.target.name, n);
            // The store verifies our checksum of it, so what it acknowledged
            // is what was opened a moment ago.
            let put = engine
                .store
                .put_slot(bucket, &name, slot.clone(), &self.attributes);
            match put.await {
                Ok(()) => return Ok(State::Rewrapped),
                // Not success: whose it is has to be seen.
                Err(StoreError::Exists) => {}
                // Another writer's may be becoming one at this moment.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_error(&error)),
            }
            let mut search = engine.keyring.search(self.header, None);
            let slots = slots_of(engine, &mut search, &self.place.bucket, self.target).await?;
            if let Some(error) = search.away() {
                return Err(Error::new(error.kind, error.detail.clone()));
            }
            for bad in slots.bad {
                if !planted.contains(&bad) {
                    planted.push(bad);
                }
            }
            if slots.opened.is_some() {
                self.run.found();
                return Ok(State::Already);
            }
            n = slots.free.unwrap_or(SLOT_DEPTH);
        }
        Err(Error::new(
            ErrorKind::AlreadyExists,
            format!("{SLOT_DEPTH} keyslots of somebody else's bar the way to its own"),
        )
        .hint("delete the keyslots that are reported, and find out who can write to the bucket"))
    }

    /// One that a pack cannot hold.
    pub(super) async fn alone(&self, edk: &Edk) -> Result<(), Error> {
        self.record(edk, 0, &mut Vec::new()).await.map(drop)
    }
}
