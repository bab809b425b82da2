//! What is wrong with this host's set-up, and how to mend it.
//!
//! Looks at configuration, tokens and store in that order, and goes on after
//! a fault wherever it can: an operator mends three things at once rather
//! than one after the other.

mod recipients;
mod wraps;

use std::path::Path;

use serde::Serialize;

use crate::admin;
use crate::api::ErrorKind;
use crate::config::{Config, ConfigError};
use crate::secret::Pin;
use crate::store::{Limits, Store, StoreError};
use crate::token::{Attempt, KeySpec, Latches};

use wraps::Wraps;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `configuration`, `grants`, `recipient NAME`, `audit log`, `token NAME`,
    /// `key NAME`, `catalogue`, `store`, `bucket NAME`, `agent`.
    pub area: String,
    /// Whether it is in order.
    pub ok: bool,
    /// What was found.
    pub what: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn fine(area: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            area: area.into(),
            ok: true,
            what: what.into(),
            remedy: None,
        }
    }

    fn fault(area: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            area: area.into(),
            ok: false,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Looks at everything that the configuration names, and at `bucket`.
///
/// Makes at most one login a token, and none where the PIN is known to be
/// refused. Starts a runtime of its own: not to be called from within one.
#[must_use]
pub fn run(config_path: &Path, socket: &Path, bucket: Option<&str>) -> Vec<Finding> {
    let config = match Config::load(config_path) {
        Ok(config) => config,
        Err(error) => return vec![configuration(&error)],
    };
    let mut findings = vec![Finding::fine(
        "configuration",
        format!(
            "{} is valid; tokens: {}, keys: {}",
            config_path.display(),
            config.tokens.len(),
            config.keys.len()
        ),
    )];
    findings.push(grants(&config));
    findings.extend(recipients::findings(&config));
    findings.push(audit(&config));
    if !config.keys.iter().any(crate::config::Key::is_active) {
        findings.push(Finding::fault(
            "configuration",
            "no wrapping key is active, so nothing can be stored",
            "`strongroom key generate NAME --token TOKEN` makes one and configures it",
        ));
    }
    match Wraps::open(&config) {
        Ok(wraps) => {
            for token in &config.tokens {
                findings.extend(token_findings(&config, token, &wraps));
            }
            findings.extend(wraps.findings(&config));
        }
        // The gate wraps, and what cannot be counted is not wrapped.
        Err(fault) => findings.push(fault),
    }
    let buckets: Vec<String> = bucket
        .map(str::to_owned)
        .into_iter()
        .chain(config.keyslots.bucket.clone())
        .collect();
    findings.extend(store_findings(&config, &buckets));
    findings.push(agent(socket));
    findings
}

/// Whether the users and groups of grants exist; an agent without grants is
/// a choice, and no fault.
fn grants(config: &Config) -> Finding {
    match config.principals() {
        Err(error) => configuration(&error),
        Ok(ids) if ids.is_empty() => Finding::fine(
            "grants",
            "no grants configured: only root and the agent's own user may use it",
        ),
        Ok(ids) => Finding::fine(
            "grants",
            format!("{}; their users and groups exist", ids.len()),
        ),
    }
}

/// What the audit log can prove; to sign and anchor it is a choice, and no
/// fault of the set-up.
fn audit(config: &Config) -> Finding {
    let what = match (&config.audit.checkpoint_key, &config.audit.anchor) {
        (None, _) => {
            "its checkpoints are not signed, so whoever can write the log can rewrite it; `strongroom key generate NAME --audit --token TOKEN` makes a key that signs them"
        }
        (Some(_), None) => {
            "its checkpoints are signed, and anchored nowhere: it is not proven against this host's operator; `[audit] anchor` names a place under Object Lock, or a directory of somebody else's"
        }
        (Some(_), Some(_)) => "its checkpoints are signed and anchored",
    };
    Finding::fine("audit log", what)
}

/// Whether somebody listens; an agent that is not running is no fault of the
/// set-up, and what a running one thinks of itself is `status`'s to tell.
fn agent(socket: &Path) -> Finding {
    let path = socket.display();
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => Finding::fine(
            "agent",
            format!("listens at {path}; `strongroom status` tells how it is"),
        ),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Finding::fault(
            "agent",
            format!("{path} exists, but this user may not connect to it"),
            "add the user to agent.socket_group",
        ),
        Err(_) => Finding::fine("agent", format!("not running (nobody listens at {path})")),
    }
}

fn configuration(error: &ConfigError) -> Finding {
    Finding::fault("configuration", &error.message, &error.hint)
}

fn token_findings(config: &Config, token: &crate::config::Token, wraps: &Wraps) -> Vec<Finding> {
    let area = format!("token {}", token.name);
    if !token.module.exists() {
        return vec![Finding::fault(
            area,
            format!("its module {} does not exist", token.module.display()),
            "correct `module`, or install the vendor's PKCS#11 library",
        )];
    }
    if let Some(pin_file) = &token.pin_file
        && let Err(error) = Pin::check_file(pin_file)
    {
        return vec![Finding::fault(
            area,
            error.to_string(),
            format!(
                "put the PIN into {} alone on a line: owner root or the agent's user, mode 0400",
                pin_file.display()
            ),
        )];
    }
    if let Some(pin_file) = &token.pin_file
        && let Some(dir) = admin::servers_directory_of(config, pin_file)
    {
        return vec![Finding::fault(
            area,
            format!(
                "the PIN file {} is inside {}, which the server can read and write",
                pin_file.display(),
                dir.display()
            ),
            "move it elsewhere, such as /etc/strongroom/pin",
        )];
    }
    if let Some(detail) = crate::token::latched(&config.agent.state_dir, token) {
        return vec![Finding::fault(
            area,
            detail,
            "correct the PIN file; that alone makes the PIN be tried again",
        )];
    }
    let keys = KeySpec::of_token(config, &token.name);
    if let Err(fault) = wraps.charge(&keys) {
        return vec![fault];
    }
    let attempt = Attempt::now(token);
    let checks = admin::check_token(token, &keys);
    let locked = checks
        .iter()
        .any(|check| matches!(&check.result, Err(error) if error.kind == ErrorKind::TokenLocked));
    if let Ok(attempt) = attempt
        && locked
    {
        remember(&config.agent.state_dir, token, &attempt);
    }
    checks
        .into_iter()
        .map(|check| match check.result {
            Ok(found) => Finding::fine(check.what, found),
            Err(error) => Finding::fault(check.what, &error.detail, error.hint_text()),
        })
        .collect()
}

/// Notes a refused PIN for the agent and the next `doctor` (SECURITY rule 22).
/// Before the agent's first start there is no directory to note it in.
fn remember(state_dir: &Path, token: &crate::config::Token, attempt: &Attempt) {
    if state_dir.exists()
        && let Err(error) = Latches::new(state_dir).set(&token.name, attempt)
    {
        tracing::warn!(token = token.name, %error, "cannot store the PIN latch");
    }
}

fn store_findings(config: &Config, buckets: &[String]) -> Vec<Finding> {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![Finding::fault(
                "store",
                format!("no runtime: {error}"),
                "free some memory and descriptors",
            )];
        }
    };
    runtime.block_on(async {
        let store = match Store::connect(&config.s3, Limits::default()).await {
            Ok(store) => store,
            // Nothing was sent yet.
            Err(error) => {
                return vec![Finding::fault(
                    "store",
                    error.to_string(),
                    "correct [s3] in the configuration; docs/configuration.md lists its settings",
                )];
            }
        };
        if buckets.is_empty() {
            return vec![reach(&store).await];
        }
        let mut findings = Vec::new();
        for bucket in buckets {
            findings.extend(bucket_findings(config, &store, bucket).await);
        }
        findings
    })
}

/// Without a bucket to look at, one that cannot exist tells whether the store
/// answers and knows us: "no such bucket" is the good answer.
async fn reach(store: &Store) -> Finding {
    let mut random = [0; 12];
    // A fixed name would do as well, only less surely.
    let _ = getrandom::fill(&mut random);
    let name = format!(
        "strongroom-doctor-{}",
        data_encoding::HEXLOWER.encode(&random)
    );
    match store.probe_bucket(&name).await {
        Ok(_) | Err(StoreError::NoSuchBucket { .. }) => Finding::fine(
            "store",
            format!(
                "{} answers; name a bucket with --bucket to have it looked at",
                store.endpoint()
            ),
        ),
        Err(error) => store_fault("store".to_owned(), &error),
    }
}

async fn bucket_findings(config: &Config, store: &Store, bucket: &str) -> Vec<Finding> {
    let area = format!("bucket {bucket}");
    let facts = match store.probe_bucket(bucket).await {
        Ok(facts) => facts,
        Err(error) => return vec![store_fault(area, &error)],
    };
    let told = |what: &str, fact: Option<bool>| match fact {
        Some(true) => format!("{what} on"),
        Some(false) => format!("{what} off"),
        None => format!("{what} unknown"),
    };
    let mut findings = vec![Finding::fine(
        &area,
        format!(
            "reachable, {}, {}",
            told("versioning", facts.versioning),
            told("object lock", facts.object_lock)
        ),
    )];
    let mut random = [0; 12];
    let _ = getrandom::fill(&mut random);
    let key = format!(
        "{}doctor-{}",
        config.keyslots.prefix,
        data_encoding::HEXLOWER.encode(&random)
    );
    findings.push(match store.probe_if_none_match(bucket, &key).await {
        Ok(true) => Finding::fine(
            &area,
            "a test object could be written and deleted; If-None-Match is enforced",
        ),
        Ok(false) => Finding::fault(
            &area,
            "the store ignores If-None-Match: --no-clobber cannot protect existing objects there",
            "use a store that enforces conditional writes, or a bucket with versioning",
        ),
        Err(error) => store_fault(area, &error),
    });
    findings
}

fn store_fault(area: String, error: &StoreError) -> Finding {
    let remedy = match error {
        StoreError::NoSuchBucket { .. } => {
            "create the bucket, or correct its name, s3.region or s3.endpoint_url"
        }
        StoreError::Denied { .. } => {
            "give the agent AWS credentials (profile, environment, instance role) that may use this bucket"
        }
        StoreError::Away { .. } | StoreError::SlowDown { .. } => {
            "check s3.endpoint_url, name resolution and the network"
        }
        _ => "the store's own words above are all there is to go by",
    };
    Finding::fault(area, error.to_string(), remedy)
}
