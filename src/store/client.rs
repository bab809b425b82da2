//! The connection to the store: endpoint, TLS, credentials, time limits,
//! retries, and what of a request is signed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::client::customize::CustomizableOperation;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_s3::config::{
    Builder, ConfigBag, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{Connector, tls};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;

use super::checksum::Sum;
use super::tally::{Calls, Counting, Tally};
use super::wire::PutKeyBack;
use super::{Limits, StoreError};
use crate::config::{Checksum, PayloadSigning, S3};

/// Attempts at one request, the first included. With the SDK's back-off they
/// span some 15 s, longer than a load balancer's switch-over.
const ATTEMPTS: u32 = 5;
/// What retries may cost together, in the SDK's tokens: 5 a retry, 10 after a
/// time-out, given back when it succeeds. The SDK's own 500, shared by the
/// whole process, are used up by one outage under 100 requests, and come back
/// one a success: one passing fault would then end a large upload. These are
/// as many as 256 requests with an outage's four retries each can use.
const RETRY_QUOTA: usize = 10_000;
/// Tokens that come back a second, whatever happens: ten retries, few enough
/// for a store that is overloaded.
const RETRY_REFILL: f32 = 50.0;
/// The region of stores that have none (SeaweedFS, MinIO, Ceph): the name
/// every S3 client falls back to.
const NO_REGION: &str = "us-east-1";

/// How long to wait for what. Tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For a TCP and TLS connection.
    pub connect: Duration,
    /// Without a byte moving in either direction before a body counts as
    /// stalled. A full socket buffer of some hundred KiB may take half of it
    /// to drain on the slowest line.
    pub stall: Duration,
    /// For an answer, after the time that the body itself may take.
    pub answer: Duration,
    /// For CompleteMultipartUpload, which takes minutes on large objects (S3
    /// API reference).
    pub complete: Duration,
    /// Before the first retry; doubles, with jitter.
    pub backoff: Duration,
    /// The slowest sending that is waited for, in bytes a second and request.
    pub slowest: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(60),
            answer: Duration::from_secs(60),
            complete: Duration::from_secs(600),
            backoff: Duration::from_secs(1),
            // Eight parts in flight over a line of 1 Mbit/s.
            slowest: 16 << 10,
        }
    }
}

/// The store. Clones share connections and credentials.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) client: aws_sdk_s3::Client,
    pub(super) limits: Limits,
    pub(super) timing: Timing,
    pub(super) checksum: Checksum,
    pub(super) signed: bool,
    pub(super) owner: Option<String>,
    pub(super) sse: Option<String>,
    pub(super) sse_kms_key_id: Option<String>,
    tally: Arc<Tally>,
    endpoint: String,
}

impl Store {
    /// Prepares the client. Sends nothing: a store that is away now may be
    /// back when it is needed.
    ///
    /// # Errors
    /// [`StoreError::Invalid`]: no region, or an unusable CA bundle.
    pub async fn connect(config: &S3, limits: Limits) -> Result<Self, StoreError> {
        Self::connect_with(config, limits, Timing::default()).await
    }

    /// [`Store::connect`] with time limits of the caller's choice.
    ///
    /// # Errors
    /// As [`Store::connect`].
    pub async fn connect_with(
        config: &S3,
        limits: Limits,
        timing: Timing,
    ) -> Result<Self, StoreError> {
        let plain = config
            .endpoint_url
            .as_deref()
            .is_some_and(|url| url.starts_with("http://"));
        let http = http_client(config)?;
        // Credentials, a region that is not configured, and the FIPS and
        // dual-stack switches come from the SDK's environment. An endpoint
        // does not: it could be plain http to anywhere, which SECURITY rule 27
        // leaves to our own configuration.
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
        if let Some(region) = own_region(config).await {
            loader = loader.region(region);
        }
        let shared = loader.load().await;
        let region = shared.region().cloned().ok_or_else(|| {
            StoreError::invalid(
                "no region: set s3.region, AWS_REGION, or region in the AWS profile",
            )
        })?;
        let endpoint = config
            .endpoint_url
            .clone()
            .unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let tally = Arc::<Tally>::default();
        // Reading the system's trust anchors is most of a start's time.
        let http = match plain {
            true => aws_smithy_http_client::Builder::new().build_http(),
            false => http,
        };
        let builder = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .region(region)
            .force_path_style(config.force_path_style)
            .interceptor(PutKeyBack)
            .interceptor(Counting(Arc::clone(&tally)))
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(ATTEMPTS)
                    .with_initial_backoff(timing.backoff),
            )
            .retry_partition(
                RetryPartition::custom("strongroom")
                    .token_bucket(
                        TokenBucket::builder()
                            .capacity(RETRY_QUOTA)
                            .refill_rate(RETRY_REFILL)
                            .build(),
                    )
                    .build(),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(timing.connect)
                    .operation_attempt_timeout(timing.answer)
                    .build(),
            )
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled()
                    .upload_enabled(true)
                    .download_enabled(true)
                    .grace_period(timing.stall)
                    .build(),
            );
        let mut builder = builder;
        builder.set_endpoint_url(config.endpoint_url.clone());
        builder.set_credentials_provider(shared.credentials_provider());
        builder.set_use_fips(shared.use_fips());
        builder.set_use_dual_stack(shared.use_dual_stack());

        Ok(Self {
            inner: Arc::new(Inner {
                client: aws_sdk_s3::Client::from_conf(builder.build()),
                limits,
                timing,
                checksum: config.checksum,
                signed: match config.payload_signing {
                    PayloadSigning::Auto => plain,
                    PayloadSigning::Always => true,
                    PayloadSigning::Never => false,
                },
                owner: config.expected_bucket_owner.clone(),
                sse: config.sse.clone(),
                sse_kms_key_id: config.sse_kms_key_id.clone(),
                tally,
                endpoint,
            }),
        })
    }

    /// Where requests go.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.inner.endpoint.clone()
    }

    /// What was sent to the store, and how it was answered.
    #[must_use]
    pub fn calls(&self) -> Vec<Calls> {
        self.inner.tally.calls()
    }

    /// What the store allows of parts.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }
}

impl Inner {
    /// The time one attempt at sending `len` bytes may take in all. Stalls
    /// within a body are noticed much earlier.
    pub(super) fn patience(&self, len: u64) -> Duration {
        self.timing.answer + Duration::from_secs(len / self.timing.slowest.max(1))
    }

    /// Sends an operation with a body of ours: its signature covers the hash
    /// that is already known, or none.
    pub(super) fn with_payload<T, E, B>(
        &self,
        operation: CustomizableOperation<T, E, B>,
        sum: &Sum,
    ) -> CustomizableOperation<T, E, B> {
        let payload = match sum.payload_hash() {
            Some(hash) if self.signed => PayloadSigningOverride::Precomputed(hash),
            _ => PayloadSigningOverride::UnsignedPayload,
        };
        let operation = operation.interceptor(SignPayload(payload));
        let patience = self.patience(sum.len());
        if patience == self.timing.answer {
            // The client's own: an override costs every small put some µs.
            return operation;
        }
        operation.config_override(Builder::new().timeout_config(attempt(patience)))
    }
}

/// A limit on each attempt, and nothing else changed.
pub(super) fn attempt(limit: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .operation_attempt_timeout(limit)
        .build()
}

/// Tells the signer what stands for the payload, so that a retry does not
/// hash it again and a streamed one is not sent with trailers, which Garage
/// and Ceph reject.
#[derive(Debug)]
struct SignPayload(PayloadSigningOverride);

impl Intercept for SignPayload {
    fn name(&self) -> &'static str {
        "SignPayload"
    }

    fn modify_before_signing(
        &self,
        _context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        bag.interceptor_state().store_put(self.0.clone());
        Ok(())
    }
}

/// The configured region; for a store other than AWS's also the
/// environment's, the profile's or the conventional one, without asking an
/// instance's metadata service, which beyond AWS only costs time.
async fn own_region(config: &S3) -> Option<Region> {
    if let Some(region) = &config.region {
        return Some(Region::new(region.clone()));
    }
    config.endpoint_url.as_ref()?;
    RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new())
        .or_else(Region::from_static(NO_REGION))
        .region()
        .await
}

/// TLS by the library of this build (`crypto`).
#[cfg(not(feature = "fips"))]
const CRYPTO: CryptoMode = CryptoMode::AwsLc;
/// TLS by the library of this build (`crypto`).
#[cfg(feature = "fips")]
const CRYPTO: CryptoMode = CryptoMode::AwsLcFips;

/// hyper with rustls. The credentials chain uses it too.
fn http_client(config: &S3) -> Result<SharedHttpClient, StoreError> {
    let provider = tls::Provider::Rustls(CRYPTO);
    let trust = match &config.ca_bundle {
        Some(path) => own_roots(path, &provider)?,
        None => tls::TrustStore::default(),
    };
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(provider)
        .tls_context(tls_context(trust)?)
        .build_https())
}

fn tls_context(trust: tls::TrustStore) -> Result<tls::TlsContext, StoreError> {
    tls::TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|e| StoreError::invalid(format!("TLS cannot be set up: {e}")))
}

/// The trust anchors of `s3.ca_bundle`, and no others.
fn own_roots(path: &Path, provider: &tls::Provider) -> Result<tls::TrustStore, StoreError> {
    let shown = path.display();
    let pem = std::fs::read(path)
        .map_err(|e| StoreError::invalid(format!("cannot read s3.ca_bundle {shown}: {e}")))?;
    let begins = b"-----BEGIN CERTIFICATE-----";
    let some = pem.windows(begins.len()).any(|window| window == begins);
    let trust = tls::TrustStore::empty().with_pem_certificate(pem);
    // The library panics on a certificate that it cannot read, when it makes
    // the first connection. Here it may, so that the agent does not start.
    let (provider, context) = (provider.clone(), tls_context(trust.clone())?);
    let readable = std::panic::catch_unwind(|| {
        Connector::builder()
            .tls_provider(provider)
            .tls_context(context)
            .build();
    });
    if !some || readable.is_err() {
        return Err(StoreError::invalid(format!(
            "s3.ca_bundle {shown} is not a bundle of PEM certificates"
        )));
    }
    Ok(trust)
}
