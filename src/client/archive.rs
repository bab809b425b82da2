//! Reading back: asking for archived objects, and listing versions.

use http::Method;

use super::wire::encode;
use super::{Client, Upload, object_path};
use crate::api::{ArchiveState, Error, Tier, VersionList};

impl Client {
    /// Asks the store for an archived object, to be readable for `days` (the
    /// agent's choice if not given).
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn ask_for(
        &self,
        bucket: &str,
        key: &str,
        version_id: Option<&str>,
        tier: Tier,
        days: Option<u16>,
    ) -> Result<ArchiveState, Error> {
        let object = object_path(bucket, key);
        let mut path = format!("{object}?restore&tier={}", tier.as_str());
        if let Some(days) = days {
            path.push_str(&format!("&days={days}"));
        }
        if let Some(version) = version_id {
            path.push_str(&format!("&version_id={}", encode(version)));
        }
        let answer = self.call(Method::POST, &path, Upload::empty()).await?;
        answer.json().await
    }

    /// One page of the versions of the objects under a prefix.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn versions(
        &self,
        bucket: &str,
        prefix: &str,
        continuation: Option<&str>,
    ) -> Result<VersionList, Error> {
        let bucket = encode(bucket);
        let mut path = format!("/v1/objects/{bucket}?versions&prefix={}", encode(prefix));
        if let Some(continuation) = continuation {
            path.push_str(&format!("&continuation={}", encode(continuation)));
        }
        self.fetch(&path).await
    }
}
