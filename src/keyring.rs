//! Which wrapping key wraps, which opens: configured keys over their tokens.
//!
//! The one place where a [`Draft`] gets its encrypted data keys and a
//! [`Header`] gets its data key back. Canaries, which fix a key's identity
//! (SECURITY rule 18), are kept in the catalogue.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use tokio::sync::mpsc;

use crate::api::{Error, ErrorKind, KeyInfo, TokenStatus};
use crate::catalog::Catalog;
use crate::config::{Config, Key, KeyUse};
use crate::fault::message_error;
use crate::message::{self, Context, DataKey, Draft, Edk, FreshKey, Header, Opener};
use crate::token::{Canary, CanaryStore, KeySpec, PROOF_LASTS, Stuck, Token, TokenError};

/// Unwrap attempts per open, SECURITY rule 4: a header may carry 16 EDKs that
/// all claim to be ours, and each costs a token call.
const MAX_UNWRAPS: usize = 8;

/// The configured wrapping keys and the tokens that hold them.
pub struct Keyring {
    live: RwLock<Live>,
    canaries: Arc<dyn CanaryStore>,
    stuck: mpsc::Sender<Stuck>,
}

struct Live {
    keys: Vec<Key>,
    tokens: HashMap<String, Token>,
}

struct CatalogCanaries(Catalog);

impl CanaryStore for CatalogCanaries {
    fn load(&self, key: &str) -> Result<Option<Canary>, String> {
        let row = self.0.load_canary(key).map_err(|e| e.to_string())?;
        Ok(row.map(|row| Canary {
            iv: row.iv,
            ciphertext: row.ciphertext,
            digest: row.digest,
        }))
    }

    fn save(&self, key: &str, canary: &Canary) -> Result<(), String> {
        let row = crate::catalog::CanaryRow {
            iv: canary.iv,
            ciphertext: canary.ciphertext.clone(),
            digest: canary.digest,
        };
        match self.0.save_canary(key, &row) {
            Ok(true) => Ok(()),
            Ok(false) => Err("the key has a canary already".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Keyring {
    /// Handles for every configured token, waiting for their workers.
    #[must_use]
    pub fn new(config: &Config, catalog: Catalog, stuck: mpsc::Sender<Stuck>) -> Self {
        let ring = Self {
            live: RwLock::new(Live {
                keys: Vec::new(),
                tokens: HashMap::new(),
            }),
            canaries: Arc::new(CatalogCanaries(catalog)),
            stuck,
        };
        ring.update(config);
        ring
    }

    /// Takes over the keys and tokens of a new configuration.
    pub fn update(&self, config: &Config) {
        let mut live = self.live.write().unwrap_or_else(|e| e.into_inner());
        let mut former = std::mem::take(&mut live.tokens);
        for token in &config.tokens {
            let handle = former.remove(&token.name).unwrap_or_else(|| {
                Token::new(
                    token.name.clone(),
                    token.call_timeout.duration(),
                    self.canaries.clone(),
                    self.stuck.clone(),
                )
            });
            let specs = config
                .keys
                .iter()
                .filter(|key| key.token == token.name && key.opens())
                .map(|key| KeySpec {
                    name: key.name.clone(),
                    label: key.label.clone(),
                    imported: key.imported,
                })
                .collect();
            handle.set_keys(specs);
            live.tokens.insert(token.name.clone(), handle);
        }
        live.keys.clone_from(&config.keys);
    }

    /// The handle of a configured token.
    #[must_use]
    pub fn token(&self, name: &str) -> Option<Token> {
        self.read().tokens.get(name).cloned()
    }

    /// Every configured token's state, by name.
    #[must_use]
    pub fn token_status(&self) -> Vec<TokenStatus> {
        let mut all: Vec<_> = self.read().tokens.values().map(Token::status).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Whether a wrap and an unwrap succeeded within the last 30 s on a token
    /// that holds an active key.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        let live = self.read();
        live.keys
            .iter()
            .filter(|key| key.is_active())
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

    /// The key that wraps new objects of `ring` (or of the only ring).
    ///
    /// # Errors
    /// There is no such ring, or several and none was named.
    pub fn active(&self, ring: Option<&str>) -> Result<Key, Error> {
        let live = self.read();
        let mut active = live.keys.iter().filter(|k| k.is_active());
        let Some(name) = ring else {
            let Some(first) = active.next() else {
                return Err(
                    Error::new(ErrorKind::Misconfigured, "no wrapping key is active")
                        .hint("`strongroom key generate NAME --token T` makes one"),
                );
            };
            if active.next().is_some() {
                return Err(Error::new(
                    ErrorKind::Malformed,
                    "several rings are configured and none was named",
                )
                .hint("name one with --key or the Strongroom-Key header"));
            }
            return Ok(first.clone());
        };
        // A key's own name works too, as long as it is the ring's active key.
        active
            .find(|k| k.ring() == name || k.name == name)
            .cloned()
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Malformed,
                    format!("no active wrapping key {name:?}"),
                )
                .hint("`strongroom key list` shows the configured keys")
            })
    }

    /// A fresh data key: the token's random bytes mixed with the system's.
    ///
    /// # Errors
    /// The key's token is away.
    pub async fn fresh_data_key(&self, key: &Key) -> Result<FreshKey, Error> {
        let token = self.token_of(key)?;
        let random = token.random().await.map_err(Error::from)?;
        DataKey::fresh(&random).map_err(|e| message_error(&e))
    }

    /// Wraps the draft's data key under `key` and adds it as an EDK.
    ///
    /// # Errors
    /// The key's token is away or refuses.
    pub async fn wrap(&self, key: &Key, draft: &mut Draft) -> Result<(), Error> {
        let token = self.token_of(key)?;
        let wrapped = token
            .wrap(&key.name, draft.data_key(), &draft.aad())
            .await
            .map_err(Error::from)?;
        let edk = Edk::raw_aes(&key.name, &wrapped.iv, &wrapped.ciphertext)
            .map_err(|e| message_error(&e))?;
        draft.add_edk(edk).map_err(|e| message_error(&e))
    }

    /// Finds a data key for `header` and verifies commitment and header tag
    /// with it. Returns the opener and the wrapping key's name.
    ///
    /// # Errors
    /// No key at hand, no EDK that opens, a header that was altered, or a
    /// token that is away.
    pub async fn open(&self, header: &Header) -> Result<(Opener, String), Error> {
        let required = Context::new();
        let aad = header.keyring_aad(&required);
        let mut tried = 0;
        let mut away = None;
        for edk in header.edks() {
            let Some(parts) = edk.raw_aes_parts() else {
                continue;
            };
            let Some(token) = self.opener_of(parts.key_name) else {
                continue;
            };
            if tried == MAX_UNWRAPS {
                break;
            }
            tried += 1;
            let secret = match token
                .unwrap(parts.key_name, parts.iv, parts.ciphertext, &aad)
                .await
            {
                Ok(secret) => secret,
                // Too long for the token, say: as good as not authentic.
                Err(TokenError::BadCiphertext | TokenError::Rejected { .. }) => continue,
                Err(error) => {
                    away = Some(Error::from(error));
                    continue;
                }
            };
            match header.verify(DataKey::unwrapped(secret), &required) {
                Ok(opener) => return Ok((opener, parts.key_name.to_owned())),
                Err(message::Error::WrongKey) => {}
                Err(error) => return Err(message_error(&error)),
            }
        }
        if let Some(error) = away {
            return Err(error);
        }
        if tried == 0 {
            return Err(Error::new(
                ErrorKind::NoKey,
                format!(
                    "it is wrapped for {}, none of which is at hand",
                    names(header)
                ),
            ));
        }
        Err(Error::new(
            ErrorKind::NoKey,
            format!(
                "no encrypted data key opens ({}): they were altered, or wrapped by other keys of these names",
                names(header)
            ),
        ))
    }

    fn token_of(&self, key: &Key) -> Result<Token, Error> {
        self.token(&key.token).ok_or_else(|| {
            Error::new(
                ErrorKind::Misconfigured,
                format!(
                    "token {:?} of key {:?} is gone from the configuration",
                    key.token, key.name
                ),
            )
        })
    }

    fn opener_of(&self, key_name: &str) -> Option<Token> {
        let live = self.read();
        let key = live.keys.iter().find(|k| k.name == key_name && k.opens())?;
        live.tokens.get(&key.token).cloned()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(|e| e.into_inner())
    }
}

fn names(header: &Header) -> String {
    let mut names: Vec<String> = header
        .edks()
        .iter()
        .map(|edk| match edk.raw_aes_parts() {
            Some(parts) => format!("{:?}", parts.key_name),
            None => format!("a key of {:?}", edk.provider_id()),
        })
        .collect();
    names.dedup();
    names.join(", ")
}

fn usage(usage: KeyUse) -> &'static str {
    match usage {
        KeyUse::Active => "active",
        KeyUse::Decrypt => "decrypt",
        KeyUse::Disabled => "disabled",
        KeyUse::Compromised => "compromised",
    }
}
