//! Which wrapping key wraps, which opens: configured keys over their tokens.
//!
//! The one place where a [`Draft`] gets its encrypted data keys and a
//! [`Header`] gets its data key back. Canaries, which fix a key's identity
//! (SECURITY rule 18), and the counts of wraps (rule 19) are kept in the
//! catalogue (`records`); `rings` chooses who wraps, `search` who opens,
//! `report` tells of it.

mod records;
mod report;
mod rings;
mod search;

pub use search::{Opened, Search, Trust};

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::mpsc;

use crate::api::{Error, ErrorKind};
use crate::catalog::Catalog;
use crate::config::{Config, Key};
use crate::fault::message_error;
use crate::message::{Context, DataKey, Draft, Edk, FreshKey, Header, ProvenKey};
use crate::token::{CanaryStore, Holders, KeySpec, Stuck, Token, WrapCounts};

use records::Records;

/// Unwrap attempts per open, SECURITY rule 4: a header may carry 16 EDKs that
/// all claim to be ours, and each costs a token call.
const MAX_UNWRAPS: usize = 8;

/// The configured wrapping keys and the tokens that hold them.
pub struct Keyring {
    live: RwLock<Live>,
    canaries: Arc<dyn CanaryStore>,
    counts: Arc<WrapCounts>,
    stuck: mpsc::Sender<Stuck>,
    /// Keys whose hand-over the log has told.
    announced: Mutex<BTreeSet<String>>,
}

struct Live {
    keys: Vec<Key>,
    tokens: HashMap<String, Token>,
}

impl Live {
    /// The tokens of a key, in its order of preference.
    fn tokens_of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = &'a Token> {
        key.tokens.iter().filter_map(|name| self.tokens.get(name))
    }

    fn holders(&self, key: &Key) -> Option<Holders> {
        let tokens: Vec<Token> = self.tokens_of(key).cloned().collect();
        (!tokens.is_empty()).then(|| Holders::new(&key.name, tokens))
    }
}

impl Keyring {
    /// Handles for every configured token, waiting for their workers.
    #[must_use]
    pub fn new(config: &Config, catalog: Catalog, stuck: mpsc::Sender<Stuck>) -> Self {
        let records = Arc::new(Records(catalog));
        let ring = Self {
            live: RwLock::new(Live {
                keys: Vec::new(),
                tokens: HashMap::new(),
            }),
            canaries: records.clone(),
            counts: Arc::new(WrapCounts::new(records)),
            stuck,
            announced: Mutex::default(),
        };
        ring.update(config);
        ring
    }

    /// Takes over the keys and tokens of a new configuration. Blocks while
    /// the counts of new keys are read.
    pub fn update(&self, config: &Config) {
        for key in &config.keys {
            self.counts.configure(&key.name, key.wrap_limit.wraps());
        }
        let mut live = self.live.write().unwrap_or_else(|e| e.into_inner());
        let mut former = std::mem::take(&mut live.tokens);
        for token in &config.tokens {
            let handle = former.remove(&token.name).unwrap_or_else(|| {
                Token::new(
                    token.name.clone(),
                    token.call_timeout.duration(),
                    self.canaries.clone(),
                    self.counts.clone(),
                    self.stuck.clone(),
                )
            });
            handle.set_call_timeout(token.call_timeout.duration());
            handle.set_keys(KeySpec::of_token(config, &token.name));
            live.tokens.insert(token.name.clone(), handle);
        }
        live.keys.clone_from(&config.keys);
    }

    /// The handle of a configured token.
    #[must_use]
    pub fn token(&self, name: &str) -> Option<Token> {
        self.read().tokens.get(name).cloned()
    }

    /// A fresh data key: the token's random bytes mixed with the system's.
    ///
    /// # Errors
    /// The key's token is away.
    pub async fn fresh_data_key(&self, key: &Key) -> Result<FreshKey, Error> {
        let random = self.holders(key)?.random().await.map_err(Error::from)?;
        DataKey::fresh(&random).map_err(|e| message_error(&e))
    }

    /// Wraps the draft's data key under `key` and adds it as an EDK.
    ///
    /// # Errors
    /// The key's token is away or refuses.
    pub async fn wrap(&self, key: &Key, draft: &mut Draft) -> Result<(), Error> {
        let holders = self.holders(key)?;
        let wrapped = holders
            .wrap(draft.data_key(), &draft.aad())
            .await
            .map_err(Error::from)?;
        let edk = Edk::raw_aes(&key.name, &wrapped.iv, &wrapped.ciphertext)
            .map_err(|e| message_error(&e))?;
        draft.add_edk(edk).map_err(|e| message_error(&e))
    }

    /// Wraps a message's data key for another of our keys, and opens the
    /// result before anybody relies on it: two token calls.
    ///
    /// # Errors
    /// The key's token is away or refuses, or what it wrapped does not open.
    pub async fn rewrap(
        &self,
        key: &Key,
        header: &Header,
        data_key: &ProvenKey,
    ) -> Result<Edk, Error> {
        let holders = self.holders(key)?;
        // The header's context, whatever a slot or the store may say.
        let required = Context::new();
        let aad = header.keyring_aad(&required);
        let wrapped = holders
            .wrap(data_key.secret(), &aad)
            .await
            .map_err(Error::from)?;
        let opened = holders
            .unwrap(&wrapped.iv, &wrapped.ciphertext, &aad)
            .await
            .map_err(Error::from)?;
        header
            .verify(DataKey::unwrapped(opened), &required)
            .map_err(|error| {
                Error::new(
                    ErrorKind::TokenAway,
                    format!("what key {:?} wrapped does not open again", key.name),
                )
                .log(error)
            })?;
        Edk::raw_aes(&key.name, &wrapped.iv, &wrapped.ciphertext).map_err(|e| message_error(&e))
    }

    fn holders(&self, key: &Key) -> Result<Holders, Error> {
        self.read().holders(key).ok_or_else(|| {
            Error::new(
                ErrorKind::Misconfigured,
                format!(
                    "token {:?} of key {:?} is gone from the configuration",
                    key.token(),
                    key.name
                ),
            )
        })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(|e| e.into_inner())
    }
}

/// Whether a key's ring is one of these; without them, any is.
///
/// # Errors
/// [`ErrorKind::Forbidden`].
pub fn permitted(key: &Key, rings: Option<&[String]>) -> Result<(), Error> {
    match rings {
        Some(rings) if !rings.iter().any(|ring| ring == key.ring()) => Err(Error::new(
            ErrorKind::Forbidden,
            format!(
                "the grant is not for the ring {:?} of the wrapping key {:?}",
                key.ring(),
                key.name
            ),
        )),
        _ => Ok(()),
    }
}
