//! What the journal says of an upload, held against itself and against what
//! the store has: whatever does not fit ends the upload.

use std::collections::HashSet;

use super::resumption::Resumption;
use super::{Failure, confirmed, gone};
use crate::api::Error;
use crate::catalog::{ConfirmedPart, JournalledPart, JournalledUpload};
use crate::fault::store_error;
use crate::store::ListedPart;

impl Resumption<'_> {
    /// The journal's own words against its geometry.
    pub(super) fn check_parts(&self) -> Result<(), Error> {
        let fits = |part: &JournalledPart| {
            self.geometry.span(part.number) == Some((part.first, part.last))
        };
        match self.upload.parts.iter().all(fits) {
            true => Ok(()),
            false => Err(gone("its journal contradicts itself")),
        }
    }

    /// What the store has of it against what the journal knows.
    pub(super) async fn compare(&self) -> Result<(), Failure> {
        let upload = self.upload;
        let listed = self
            .engine
            .store
            .list_parts(&self.place, &upload.upload_id)
            .await
            .map_err(|e| store_error(&e))?;
        let Some(listed) = listed else {
            // It may have become the object, and nobody heard of it: then
            // completing it once more finds that out.
            let all = confirmed(upload) == self.geometry.parts();
            return match all {
                true => Ok(()),
                false => Err(gone("the store has no such upload").into()),
            };
        };
        let mut there = HashSet::new();
        for part in &listed {
            there.insert(part.number);
            let known = part_of(upload, part.number)
                .ok_or_else(|| gone(format!("the journal lacks part {}", part.number)))?;
            if let Some(confirmed) = &known.confirmed
                && !same(confirmed, part)
            {
                return Err(gone(format!("the store has another part {}", part.number)).into());
            }
        }
        let lost =
            |part: &&JournalledPart| part.confirmed.is_some() && !there.contains(&part.number);
        let missing = upload.parts.iter().find(lost);
        match missing {
            Some(part) => Err(gone(format!("the store lost part {}", part.number)).into()),
            None => Ok(()),
        }
    }
}

/// A part that may have been sent.
pub(super) fn part_of(upload: &JournalledUpload, number: u32) -> Option<&JournalledPart> {
    let at = upload
        .parts
        .binary_search_by_key(&number, |part| part.number);
    upload.parts.get(at.ok()?)
}

/// Whether the store has of a part what it confirmed.
fn same(confirmed: &ConfirmedPart, listed: &ListedPart) -> bool {
    let tag = |text: &str| text.trim_matches('"').to_owned();
    confirmed.size == listed.size
        && tag(&confirmed.etag) == tag(&listed.etag)
        && listed
            .checksum
            .as_ref()
            .is_none_or(|there| *there == confirmed.checksum)
}
