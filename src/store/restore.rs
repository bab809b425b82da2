//! Archive classes: whether an object can be read, and asking for it.

use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::types::{GlacierJobParameters, RestoreRequest, Tier as SdkTier};

use super::error::classify;
use super::{Head, Place, Store, StoreError};
use crate::api::{Availability, Tier};

/// Classes whose objects must be asked for before they can be read (S3 User
/// Guide, "Working with archived objects").
const ARCHIVE_CLASSES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// What became of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whether this request made the store begin.
    pub begun: bool,
    /// Whether it can be read already.
    pub readable: bool,
    /// The store's id of the request.
    pub request_id: Option<String>,
}

impl Head {
    /// Whether the object can be read now, and until when if it is a restored
    /// copy (RFC 3339).
    #[must_use]
    pub fn availability(&self) -> (Availability, Option<String>) {
        let class = self.storage_class.as_deref().unwrap_or_default();
        // Intelligent-Tiering moves objects to archive tiers of its own.
        let archived = ARCHIVE_CLASSES.contains(&class) || self.archive_status.is_some();
        match self.restore.as_deref() {
            Some(text) if text.contains("ongoing-request=\"true\"") => {
                (Availability::Restoring, None)
            }
            Some(text) if text.contains("ongoing-request=\"false\"") => {
                (Availability::Readable, expiry(text))
            }
            _ if archived => (Availability::Archived, None),
            _ => (Availability::Readable, None),
        }
    }
}

/// `expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"`.
fn expiry(restore: &str) -> Option<String> {
    let (_, rest) = restore.split_once("expiry-date=\"")?;
    let (date, _) = rest.split_once('"')?;
    let at = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(date)
        .ok()?;
    Some(at.to_string())
}

impl Store {
    /// Asks for an archived object, whose copy is then readable for `days`.
    /// One that was asked for before is no failure.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::SlowDown`] where the tier has no
    /// capacity left.
    pub async fn ask_for(
        &self,
        place: &Place,
        version: Option<&str>,
        tier: Tier,
        days: Option<i32>,
    ) -> Result<Asked, StoreError> {
        place.check()?;
        let tier = match tier {
            Tier::Bulk => SdkTier::Bulk,
            Tier::Standard => SdkTier::Standard,
            Tier::Expedited => SdkTier::Expedited,
        };
        let job = GlacierJobParameters::builder()
            .tier(tier)
            .build()
            .map_err(|e| StoreError::invalid(e.to_string()))?;
        let request = RestoreRequest::builder()
            .set_days(days)
            .glacier_job_parameters(job)
            .build();
        let sent = self
            .inner
            .client
            .restore_object()
            .bucket(&place.bucket)
            .key(place.sdk_key())
            .set_version_id(version.map(str::to_owned))
            .restore_request(request)
            .set_expected_bucket_owner(self.inner.owner.clone())
            .send()
            .await;
        match sent {
            Ok(answer) => Ok(Asked {
                begun: true,
                readable: false,
                request_id: answer.request_id().map(str::to_owned),
            }),
            Err(error) => match error.code() {
                Some("RestoreAlreadyInProgress") => Ok(Asked {
                    begun: false,
                    readable: false,
                    request_id: error.request_id().map(str::to_owned),
                }),
                Some("ObjectAlreadyInActiveTierError") => Ok(Asked {
                    begun: false,
                    readable: true,
                    request_id: error.request_id().map(str::to_owned),
                }),
                _ => Err(classify("RestoreObject", place, error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stores_words_become_a_state() {
        let state = |class: Option<&str>, restore: Option<&str>| {
            Head {
                storage_class: class.map(str::to_owned),
                restore: restore.map(str::to_owned),
                ..Head::default()
            }
            .availability()
        };
        assert_eq!(state(None, None).0, Availability::Readable);
        assert_eq!(state(Some("STANDARD_IA"), None).0, Availability::Readable);
        // Readable at once, whatever its name says.
        assert_eq!(state(Some("GLACIER_IR"), None).0, Availability::Readable);
        let deep = Some("DEEP_ARCHIVE");
        assert_eq!(state(deep, None).0, Availability::Archived);
        assert_eq!(
            state(deep, Some("ongoing-request=\"true\"")).0,
            Availability::Restoring
        );
        let ready = "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2012 00:00:00 GMT\"";
        assert_eq!(
            state(deep, Some(ready)),
            (
                Availability::Readable,
                Some("2012-12-21T00:00:00Z".to_owned())
            )
        );
    }
}
