//! `GET /v1/evidence`: the auditor's report, signed.

use std::sync::Arc;

use http::{Response, StatusCode};

use crate::api::{Error, GrantInfo, Operation};
use crate::audit::Signer;
use crate::evidence::{self, Period, Surroundings};

use super::audit::TokenSigner;
use super::policy::Policy;
use super::reply::{self, Body};
use super::request::{Query, malformed};
use super::state::App;

pub(super) async fn answer(
    app: &Arc<App>,
    policy: &Policy,
    query: &Query,
) -> Result<Response<Body>, Error> {
    query.allow(&["from", "to"])?;
    let (from, to) = (query.value("from"), query.value("to"));
    let period = Period::parse(from.as_deref(), to.as_deref()).map_err(malformed)?;
    let signer = TokenSigner::of(app);
    let audit_key = match &signer {
        // A report without it says that it is not signed, and why.
        Some(signer) => signer.show().await.ok(),
        None => None,
    };
    let checkpoints = {
        let shown = app.checkpoints.lock().unwrap_or_else(|e| e.into_inner());
        shown.clone()
    };
    let around = Surroundings {
        audit_dir: &app.audit_dir,
        origin: app.audit.standing().origin,
        confinement: app.confinement.clone(),
        grants: grants(policy),
        access: access(policy),
        anchored: checkpoints.anchored.unwrap_or(0),
        anchors: checkpoints.anchor,
        audit_key,
    };
    let report = evidence::report(&app.engine, &period, around).await?;
    let signer = signer.as_ref().map(|signer| signer as &dyn Signer);
    reply::json(StatusCode::OK, &evidence::sign(report, signer).await?)
}

/// The grants in force, in words.
fn grants(policy: &Policy) -> Vec<String> {
    let own = "root and the agent's own user may administer the agent";
    let all = "no grant is configured: root and the agent's own user may do everything, and nobody else anything";
    let granted = policy.list();
    let first = if granted.is_empty() { all } else { own };
    let mut words = vec![first.to_owned()];
    words.extend(granted.iter().map(in_words));
    words
}

fn in_words(grant: &GrantInfo) -> String {
    let operations: Vec<&str> = grant
        .operations
        .iter()
        .copied()
        .map(Operation::as_str)
        .collect();
    let mut text = format!("{} (id {}): {}", grant.who, grant.id, operations.join(", "));
    if !grant.bucket.is_empty() {
        text.push_str(&format!(" on s3://{}/{}", grant.bucket, grant.prefix));
    }
    if let Some(key) = &grant.key {
        text.push_str(&format!(", with keys of ring {key} alone"));
    }
    for condition in &grant.conditions {
        text.push_str(&format!(", {condition}"));
    }
    text
}

fn access(policy: &Policy) -> String {
    let who = match policy.list().len() {
        0 => "on this host root and the agent's own user, through its socket".to_owned(),
        1 => "on this host, through the agent's socket, whom the one grant names".to_owned(),
        n => format!("on this host, through the agent's socket, whom the {n} grants name"),
    };
    format!("{who}; the storage provider holds ciphertext and wrapped keys only, and no key")
}
