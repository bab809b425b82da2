//! What status and key list tell of tokens and keys.

use std::collections::HashMap;

use crate::api::{KeyInfo, TokenStatus};
use crate::config::KeyUse;
use crate::token::{PROOF_LASTS, Token};

use super::Keyring;

impl Keyring {
    /// Every configured token's state, by name.
    #[must_use]
    pub fn token_status(&self) -> Vec<TokenStatus> {
        let mut all: Vec<_> = self.read().tokens.values().map(Token::status).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Whether a wrap and an unwrap succeeded within the last 30 s on a token
    /// that holds a key which wraps now.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        let live = self.read();
        self.wrapping(&live)
            .filter_map(|key| live.tokens.get(&key.token)?.last_proof())
            .any(|at| at.elapsed() < PROOF_LASTS)
    }

    /// Every configured key with its attributes as its token reports them.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyInfo> {
        let live = self.read();
        let mut known = HashMap::new();
        for (token, handle) in &live.tokens {
            for key in handle.keys() {
                known.insert((token.clone(), key.spec.name.clone()), key);
            }
        }
        live.keys
            .iter()
            .map(|key| {
                let mut info = KeyInfo {
                    name: key.name.clone(),
                    token: key.token.clone(),
                    label: key.label.clone(),
                    ring: key.ring().to_owned(),
                    usage: usage(key.usage).to_owned(),
                    ..KeyInfo::default()
                };
                info.successor = key.successor.clone();
                info.handed_over_to = self.handed_over(&live, key).map(|next| next.name.clone());
                info.wrap_limit = key.wrap_limit.wraps();
                if let Some(count) = self.counts.count(&key.name) {
                    info.wraps_used = count.used;
                    info.wraps_complete = count.complete;
                }
                if let Some(state) = known.remove(&(key.token.clone(), key.name.clone())) {
                    info.ready = state.ready;
                    info.problem = state.problem;
                    info.attributes = state.attributes;
                    info.check_value = state
                        .check_value
                        .map(|v| data_encoding::HEXLOWER.encode(&v));
                }
                info
            })
            .collect()
    }

    /// Whether a key that wraps now has passed its token's gate.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let live = self.read();
        self.wrapping(&live).any(|key| {
            let token = live.tokens.get(&key.token);
            token.is_some_and(|token| token.is_open(&key.name))
        })
    }
}

fn usage(usage: KeyUse) -> &'static str {
    match usage {
        KeyUse::Active => "active",
        KeyUse::Decrypt => "decrypt",
        KeyUse::Disabled => "disabled",
        KeyUse::Compromised => "compromised",
    }
}
