//! What a key passes before it serves: the worker's gate, then its canary.

use std::sync::Arc;

use crate::secret::Secret32;

use super::calls::Inner;
use super::canary::Canary;
use super::error::TokenError;
use super::handle::Wrapped;
use super::link::Link;
use super::protocol::{KeySpec, OpenedKey, Reply, Request};

/// Gate, then canary.
pub(super) async fn open_key(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    spec: &KeySpec,
) -> Result<OpenedKey, TokenError> {
    let lane = inner.lane_on(link).await?;
    let frame = inner.call(lane, &Request::OpenKey(spec.clone())).await?;
    let Ok(Reply::Key(opened)) = frame.decode() else {
        return Err(TokenError::away(
            "the token's worker said something strange",
        ));
    };
    match stored_canary(inner, spec).await? {
        Some(canary) => check_canary(inner, link, spec, opened.id, &canary).await?,
        None => make_canary(inner, link, spec, opened.id).await?,
    }
    inner.proved();
    Ok(opened)
}

async fn stored_canary(inner: &Arc<Inner>, spec: &KeySpec) -> Result<Option<Canary>, TokenError> {
    let (store, name) = (Arc::clone(&inner.canaries), spec.name.clone());
    let loaded = tokio::task::spawn_blocking(move || store.load(&name)).await;
    settle(spec, "cannot read", loaded)
}

async fn check_canary(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    spec: &KeySpec,
    id: u32,
    canary: &Canary,
) -> Result<(), TokenError> {
    let aad = Canary::aad(&spec.name);
    let lane = inner.lane_on(link).await?;
    let opened = inner
        .unwrap_on(lane, id, &canary.iv, &canary.ciphertext, &aad)
        .await;
    match opened {
        Ok(plaintext) if canary.matches(&plaintext) => Ok(()),
        Ok(_) | Err(TokenError::BadCiphertext) => Err(TokenError::Misconfigured {
            detail: format!(
                "key {}: the key labelled {:?} is not the key it was: it does not open this key's canary",
                spec.name, spec.label
            ),
            hint: "put the former key back; a new key needs a new name, because a name stays with the objects it wrapped".to_owned(),
        }),
        Err(error) => Err(error),
    }
}

async fn make_canary(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    spec: &KeySpec,
    id: u32,
) -> Result<(), TokenError> {
    let plaintext = Secret32::random()
        .map_err(|error| TokenError::away(format!("no random bytes: {error}")))?;
    let aad = Canary::aad(&spec.name);
    let lane = inner.lane_on(link).await?;
    let wrapped: Wrapped = inner.wrap_on(lane, id, &plaintext, &aad).await?;
    let canary = Canary::new(&plaintext, &wrapped);
    let (store, name) = (Arc::clone(&inner.canaries), spec.name.clone());
    let saved = tokio::task::spawn_blocking(move || store.save(&name, &canary)).await;
    settle(spec, "cannot keep", saved)
}

fn settle<T>(
    spec: &KeySpec,
    what: &str,
    outcome: Result<Result<T, String>, tokio::task::JoinError>,
) -> Result<T, TokenError> {
    outcome
        .map_err(|error| error.to_string())
        .and_then(|inner| inner)
        .map_err(|why| TokenError::away(format!("key {}: {what} its canary: {why}", spec.name)))
}
