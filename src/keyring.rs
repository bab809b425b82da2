//! Which wrapping key wraps, which opens: configured keys over their tokens.
//!
//! The one place where a [draft](crate::message::Draft) gets its encrypted
//! data keys and a [`Header`] gets its data key back. Canaries, which fix a key's identity
//! (SECURITY rule 18), and the counts of wraps (rule 19) are kept in the
//! catalogue (`records`); `rings` chooses who wraps, `recipients` who else
//! does, `search` who opens, `report` tells of it.

mod period;
mod recipients;
mod records;
mod report;
mod rings;
mod search;

pub use search::{Opened, Search, Trust};

pub use period::Period;
pub use recipients::{Held, Opens};

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::mpsc;

use crate::api::{Error, ErrorKind};
use crate::catalog::Catalog;
use crate::config::{Config, Key, Recipients};
use crate::fault::message_error;
use crate::message::{Context, DataKey, Edk, FreshKey, Header, ProvenKey};
use crate::recipient::PublicKey;
use crate::secret::Secret32;
use crate::token::{CanaryStore, Holders, KeySpec, Stuck, Token, WrapCounts};

use period::Births;
use records::Records;
use rings::Former;

/// Unwrap attempts per open, SECURITY rule 4: a header may carry 16 EDKs that
/// all claim to be ours, and each costs a token call.
const MAX_UNWRAPS: usize = 8;

/// The configured wrapping keys and the tokens that hold them.
pub struct Keyring {
    live: RwLock<Live>,
    canaries: Arc<dyn CanaryStore>,
    counts: Arc<WrapCounts>,
    stuck: mpsc::Sender<Stuck>,
    births: Births,
    /// Keys whose hand-over the log has told.
    announced: Mutex<BTreeSet<String>>,
}

#[derive(Default)]
struct Live {
    keys: Vec<Key>,
    tokens: HashMap<String, Token>,
    recipients: Recipients,
    /// Of the RSA recipients, in their order.
    public_keys: Vec<PublicKey>,
    /// Who wrapped for a ring before its present key.
    former: HashMap<String, Former>,
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
    pub fn new(
        config: &Config,
        public_keys: Vec<PublicKey>,
        catalog: Catalog,
        stuck: mpsc::Sender<Stuck>,
    ) -> Self {
        let births = Births::new(catalog.clone());
        let records = Arc::new(Records(catalog));
        let ring = Self {
            live: RwLock::default(),
            canaries: records.clone(),
            counts: Arc::new(WrapCounts::new(records)),
            stuck,
            births,
            announced: Mutex::default(),
        };
        ring.update(config, public_keys);
        ring
    }

    /// Takes over the keys, tokens and recipients of a new configuration,
    /// with the public keys of the RSA recipients in their order. Blocks
    /// while the counts of new keys are read.
    pub fn update(&self, config: &Config, public_keys: Vec<PublicKey>) {
        for key in &config.keys {
            self.counts.configure(&key.name, key.wrap_limit.wraps());
        }
        let replaced = self.replaced(&config.keys);
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
        live.recipients = config.recipients.clone();
        live.public_keys = public_keys;
        live.former.extend(replaced);
    }

    /// The handle of a configured token.
    #[must_use]
    pub fn token(&self, name: &str) -> Option<Token> {
        self.read().tokens.get(name).cloned()
    }

    /// A fresh data key: the token's random bytes mixed with the system's. A
    /// write-only host may have no key, and then uses the system's alone.
    ///
    /// # Errors
    /// The key's token is away.
    pub async fn fresh_data_key(&self, key: Option<&Key>) -> Result<FreshKey, Error> {
        let random = match key {
            Some(key) => self.holders(key)?.random().await.map_err(Error::from)?,
            None => Secret32::random()
                .map_err(|error| Error::new(ErrorKind::Internal, "no random bytes").log(error))?,
        };
        DataKey::fresh(&random).map_err(|e| message_error(&e))
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
