//! What status and key list tell of tokens and keys.

use crate::api::{KeyInfo, TokenStatus};
use crate::config::{Key, KeyUse};
use crate::token::{Health, PROOF_LASTS, Token};

use super::{Keyring, Live};

impl Keyring {
    /// Every configured token's state, by name.
    #[must_use]
    pub fn token_status(&self) -> Vec<TokenStatus> {
        let mut all: Vec<_> = self.read().tokens.values().map(Token::status).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Every configured token's health, in no order.
    #[must_use]
    pub fn healths(&self) -> Vec<Health> {
        let live = self.read();
        live.tokens.values().map(Token::health_now).collect()
    }

    /// Every configured token, by name.
    #[must_use]
    pub fn tokens(&self) -> Vec<(String, Token)> {
        let live = self.read();
        let tokens = live.tokens.iter();
        let mut all: Vec<_> = tokens.map(|(n, t)| (n.clone(), t.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Whether all that an upload needs is there, and proven: a wrap and an
    /// unwrap succeeded on each token of it within the last 30 s.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        let fresh = |token: &Token| {
            token
                .last_proof()
                .is_some_and(|at| at.elapsed() < PROOF_LASTS)
                && *token.health().borrow() != Health::Suspect
        };
        self.any_open(&fresh)
    }

    /// Whether a key that wraps now has passed the gate of one of its tokens,
    /// and so have the recipients' that an upload must have.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.any_open(&|_| true)
    }

    fn any_open(&self, and: &dyn Fn(&Token) -> bool) -> bool {
        let live = self.read();
        let mut wrapping = self.wrapping(&live).peekable();
        // A write-only host needs no key of its own.
        let own = (live.recipients.write_only && wrapping.peek().is_none())
            || wrapping.any(|key| is_open(&live, key, and));
        own && self.lacking_recipient(&live, and).is_none()
    }

    /// Every configured key with its attributes as its tokens report them.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyInfo> {
        let live = self.read();
        live.keys
            .iter()
            .map(|key| self.report(&live, key))
            .collect()
    }

    /// The check value of a configured key as a token of its reported it,
    /// hexadecimal.
    #[must_use]
    pub fn check_value(&self, name: &str) -> Option<String> {
        let live = self.read();
        let key = live.keys.iter().find(|key| key.name == name)?;
        let value = live
            .tokens_of(key)
            .find_map(|token| token.check_value(name))?;
        Some(data_encoding::HEXLOWER.encode(&value))
    }

    fn report(&self, live: &Live, key: &Key) -> KeyInfo {
        let mut info = KeyInfo {
            name: key.name.clone(),
            token: key.token().to_owned(),
            tokens: key.tokens.clone(),
            label: key.label.clone(),
            ring: key.ring().to_owned(),
            usage: usage(key.usage).to_owned(),
            wrap_limit: key.wrap_limit.wraps(),
            successor: key.successor.clone(),
            cryptoperiod_seconds: key.cryptoperiod.map(|period| period.duration().as_secs()),
            handed_over_to: self.handed_over(live, key).map(|next| next.name.clone()),
            ..KeyInfo::default()
        };
        if let Some(count) = self.counts.count(&key.name) {
            info.wraps_used = count.used;
            info.wraps_complete = count.complete;
        }
        self.tell_age(key, &mut info);
        let mut problems = Vec::new();
        for token in live.tokens_of(key) {
            let states = token.keys();
            let Some(state) = states.into_iter().find(|state| state.spec.name == key.name) else {
                continue;
            };
            if let Some(problem) = state.problem {
                problems.push(match key.tokens.len() {
                    1 => problem,
                    _ => format!("token {}: {problem}", token.name()),
                });
            }
            // The preferred token's, of those that can tell.
            if info.attributes.is_empty() || (state.ready && !info.ready) {
                info.attributes = state.attributes;
                info.check_value = state
                    .check_value
                    .map(|value| data_encoding::HEXLOWER.encode(&value));
            }
            info.ready |= state.ready;
        }
        info.problem = (!problems.is_empty()).then(|| problems.join("; "));
        info
    }
}

/// Whether the key is open on a token of its of which this is true.
pub(super) fn is_open(live: &Live, key: &Key, and: &dyn Fn(&Token) -> bool) -> bool {
    live.tokens_of(key)
        .any(|token| token.is_open(&key.name) && and(token))
}

fn usage(usage: KeyUse) -> &'static str {
    match usage {
        KeyUse::Active => "active",
        KeyUse::Decrypt => "decrypt",
        KeyUse::Disabled => "disabled",
        KeyUse::Compromised => "compromised",
    }
}
