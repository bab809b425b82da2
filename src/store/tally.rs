//! What was sent to the store, by operation and answer. Every attempt counts,
//! retries too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::FinalizerInterceptorContextRef;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::retries::RequestAttempts;

/// One line of [`super::Store::calls`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calls {
    /// S3's name of the operation, such as `UploadPart`.
    pub operation: String,
    /// `2xx` to `5xx` by the answer's status, or `none` without an answer.
    pub result: &'static str,
    /// Attempts.
    pub count: u64,
    /// How many of them were not the first of their request.
    pub retries: u64,
}

/// Attempts and retries, by operation and answer.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<BTreeMap<Which, (u64, u64)>>);

/// An operation, and how it was answered.
type Which = (String, &'static str);

impl Tally {
    pub(super) fn calls(&self) -> Vec<Calls> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts
            .iter()
            .map(|((operation, result), (count, retries))| Calls {
                operation: operation.clone(),
                result,
                count: *count,
                retries: *retries,
            })
            .collect()
    }

    fn count(&self, operation: &str, result: &'static str, again: bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = counts.entry((operation.to_owned(), result)).or_default();
        entry.0 += 1;
        entry.1 += u64::from(again);
    }
}

/// The hook in the SDK that counts.
#[derive(Debug)]
pub(super) struct Counting(pub(super) Arc<Tally>);

impl Intercept for Counting {
    fn name(&self) -> &'static str {
        "Counting"
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let operation = bag.load::<Metadata>().map_or("unknown", Metadata::name);
        let result = match context.response().map(|r| r.status().as_u16() / 100) {
            Some(2) => "2xx",
            Some(3) => "3xx",
            Some(4) => "4xx",
            Some(5) => "5xx",
            // Not HTTP as we know it, or nothing at all.
            Some(_) | None => "none",
        };
        let again = bag
            .load::<RequestAttempts>()
            .is_some_and(|attempts| attempts.attempts() > 1);
        self.0.count(operation, result, again);
        Ok(())
    }
}
