//! Who goes on with an upload: resumption `n` is claimed at the store, by an
//! object that only one can make, so that of two copies of a journal the
//! second sends nothing (docs/security.md, rule 13).

use bytes::Bytes;

use super::resumption::Resumption;
use super::{Failure, gone};
use crate::api::{Error, ErrorKind};
use crate::engine::Engine;
use crate::fault::store_error;
use crate::store::{Place, StoreError};

/// Claims removed after an upload, at most: it has one for each resumption,
/// and what is left a lifecycle rule removes.
const CLAIMS_REMOVED: u64 = 100;

impl Resumption<'_> {
    /// Counts this resumption and claims it at the store.
    pub(super) async fn claim(&self) -> Result<(), Failure> {
        let n = self.engine.catalog.resume_upload(self.upload.row).await?;
        let n = n.ok_or_else(|| gone("it was given up meanwhile"))?;
        let mut random = [0; 32];
        getrandom::fill(&mut random)
            .map_err(|e| Error::new(ErrorKind::Internal, "no random bytes").log(e))?;
        let bucket = self.engine.settings.slot_bucket(&self.place.bucket);
        let name = claim_name(self.engine, &self.upload.upload_id, n);
        let claim = Bytes::copy_from_slice(&random);
        match self.engine.store.put_claim(bucket, &name, claim).await {
            Ok(()) => Ok(()),
            Err(StoreError::Exists) => Err(Failure::Left(gone(
                "another copy of this host's state goes on with it",
            ))),
            Err(error) => Err(Failure::Kept(store_error(&error))),
        }
    }
}

/// Where resumption `n` of an upload is claimed: beside the keyslots, under
/// the hash of the store's id of it.
fn claim_name(engine: &Engine, upload_id: &str, n: u64) -> String {
    let hash = crate::crypto::digest::digest(&crate::crypto::digest::SHA256, upload_id.as_bytes());
    let hash = data_encoding::HEXLOWER.encode(hash.as_ref());
    format!("{}claims/{hash}/{n}", engine.settings.keyslot_prefix)
}

/// Removes the claims of an upload that is over. Best effort.
pub(in crate::put) async fn remove_claims(
    engine: &Engine,
    place: &Place,
    upload_id: &str,
    resumes: u64,
) {
    let bucket = engine.settings.slot_bucket(&place.bucket);
    for n in 1..=resumes.min(CLAIMS_REMOVED) {
        let claim = Place::new(bucket, claim_name(engine, upload_id, n));
        if let Err(error) = engine.store.delete(&claim, None).await {
            tracing::debug!(%claim, %error, "a claim is left to the lifecycle rule");
            return;
        }
    }
}
