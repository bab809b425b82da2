//! Packs being filled: one for each target key, stored when it is full.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::object::{SlotJob, Wrapped};
use super::{Listed, Run, Shard};
use crate::api::{Error, ErrorKind};
use crate::fault::{message_error, store_error};
use crate::message::{MAX_RECORDS, Pack, pack_prefix};
use crate::store::{Attributes, Place, StoreError};

/// Records at which a pack is stored before the next key's versions begin:
/// a run goes on from such a place. Behind it, room for one key's versions.
const DUE: usize = MAX_RECORDS - 1024;

/// The packs of one run.
pub(super) struct Packing {
    run: Arc<Run>,
    shard: Shard,
    packs: BTreeMap<String, Vec<(Wrapped, String)>>,
}

impl Packing {
    pub(super) fn new(run: Arc<Run>, shard: Shard) -> Self {
        Self {
            run,
            shard,
            packs: BTreeMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// Whether it is time to store them.
    pub(super) fn is_due(&self) -> bool {
        self.packs.values().map(Vec::len).sum::<usize>() >= DUE
    }

    /// Takes a data key of the object `key`; says how many packs were stored.
    pub(super) async fn add(&mut self, wrapped: Wrapped, key: &str) -> Result<u64, Error> {
        let target = wrapped.target.clone();
        let pack = self.packs.entry(target.clone()).or_default();
        pack.push((wrapped, key.to_owned()));
        if pack.len() < MAX_RECORDS {
            return Ok(0);
        }
        self.store(&target).await
    }

    /// Stores what there is; says how many packs were.
    pub(super) async fn flush(&mut self) -> Result<u64, Error> {
        let mut stored = 0;
        while let Some(target) = self.packs.keys().next().cloned() {
            stored += self.store(&target).await?;
        }
        Ok(stored)
    }

    /// One PUT makes a pack: nobody sees a part of it. It stays in hand until
    /// that has succeeded.
    async fn store(&mut self, target: &str) -> Result<u64, Error> {
        let Some(entries) = self.packs.get(target).filter(|pack| !pack.is_empty()) else {
            self.packs.remove(target);
            return Ok(0);
        };
        let engine = &self.run.engine;
        let bucket = engine.settings.slot_bucket(&self.run.bucket);
        let prefix = pack_prefix(&engine.settings.keyslot_prefix, target, &self.run.bucket);
        let keys = || entries.iter().map(|(_, key)| key.as_str());
        let ends = (
            keys().min().unwrap_or_default(),
            keys().max().unwrap_or_default(),
        );
        let records = entries.iter().map(|(w, _)| w.record.clone()).collect();
        let shard = (self.shard.index, self.shard.of);
        let (pack, outliers) =
            Pack::new(&prefix, target, records, ends, shard).map_err(|e| message_error(&e))?;
        let count = entries.len() - outliers.len();

        let mut op = (self.run.records)();
        let event = op.event();
        event.bucket = Some(bucket.to_owned());
        event.key = Some(pack.name.clone());
        event.wrapping_key = Some(target.to_owned());
        event.check_value = engine.keyring.check_value(target);
        event.stored_size = Some(pack.bytes.len() as u64);
        event.detail = Some(format!(
            "{count} keyslots for objects of {}; SHA-256 of their sorted message ids {}",
            self.run.bucket,
            digest(entries, &outliers),
        ));
        op.begin().await?;
        let attributes = longest(entries.iter().map(|(wrapped, _)| &wrapped.attributes));
        let put = engine
            .store
            .put_slot(bucket, &pack.name, pack.bytes.into(), &attributes);
        let outcome = match put.await {
            Ok(()) => Ok(()),
            Err(StoreError::Exists) => Err(Error::new(
                ErrorKind::Conflict,
                format!("{} is somebody else's", pack.name),
            )),
            Err(error) => Err(store_error(&error)),
        };
        op.finish(outcome).await?;
        for (wrapped, key) in entries {
            if outliers.contains(&wrapped.record) {
                self.alone(wrapped, key).await?;
            }
        }
        let ids = entries
            .iter()
            .map(|(w, _)| w.record.id().to_vec())
            .collect();
        engine.catalog.drop_unpacked(target, ids).await?;
        self.packs.remove(target);
        Ok(1)
    }

    async fn alone(&self, wrapped: &Wrapped, key: &str) -> Result<(), Error> {
        let target = self.run.engine.keyring.active(Some(&wrapped.target))?;
        let place = Place::new(&self.run.bucket, key);
        let listed = Listed::default();
        let job = SlotJob {
            run: &self.run,
            place: &place,
            listed: &listed,
            header: &wrapped.header,
            target: &target,
            attributes: wrapped.attributes.clone(),
        };
        job.alone(&wrapped.edk).await
    }
}

/// What identifies the objects of a pack in the log.
fn digest(entries: &[(Wrapped, String)], outliers: &[crate::message::Record]) -> String {
    let mut ids: Vec<&[u8; 32]> = entries
        .iter()
        .filter(|(wrapped, _)| !outliers.contains(&wrapped.record))
        .map(|(wrapped, _)| wrapped.record.id())
        .collect();
    ids.sort_unstable();
    let mut context = crate::crypto::digest::Context::new(&crate::crypto::digest::SHA256);
    ids.iter().for_each(|id| context.update(*id));
    data_encoding::HEXLOWER.encode(context.finish().as_ref())
}

/// What protects the best protected of them protects all.
fn longest<'a>(all: impl Iterator<Item = &'a Attributes>) -> Attributes {
    let mut most = Attributes::default();
    let instant = |text: &Option<String>| {
        text.as_deref()
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
    };
    for one in all {
        if instant(&one.retain_until) > instant(&most.retain_until) {
            most.retain_until.clone_from(&one.retain_until);
        }
        // The stricter mode sorts first.
        if one.retention_mode.is_some()
            && (most.retention_mode.is_none() || one.retention_mode < most.retention_mode)
        {
            most.retention_mode.clone_from(&one.retention_mode);
        }
        if one.legal_hold.is_some() {
            most.legal_hold.clone_from(&one.legal_hold);
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_08_a_pack_is_kept_as_long_as_the_longest_of_its_objects() {
        let of = |until: &str, mode: &str| Attributes {
            retain_until: Some(until.to_owned()),
            retention_mode: Some(mode.to_owned()),
            ..Attributes::default()
        };
        let held = Attributes {
            legal_hold: Some("ON".to_owned()),
            ..Attributes::default()
        };
        let all = [
            of("2040-01-01T00:00:00Z", "COMPLIANCE"),
            of("2050-01-01T00:00:00Z", "GOVERNANCE"),
            Attributes::default(),
            held,
        ];
        let most = longest(all.iter());
        assert_eq!(most.retain_until.as_deref(), Some("2050-01-01T00:00:00Z"));
        assert_eq!(most.retention_mode.as_deref(), Some("COMPLIANCE"));
        assert_eq!(most.legal_hold.as_deref(), Some("ON"));
    }
}
