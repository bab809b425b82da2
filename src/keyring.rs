//! Which wrapping key wraps, which opens: configured keys over their tokens.
//!
//! The one place where a [`Draft`] gets its encrypted data keys and a
//! [`Header`] gets its data key back. Canaries, which fix a key's identity
//! (SECURITY rule 18), and the counts of wraps (rule 19) are kept in the
//! catalogue (`records`); `rings` chooses who wraps, `recipients` who else
//! does, `report` tells of it.

mod period;
mod recipients;
mod records;
mod report;
mod rings;

pub use period::Period;
pub use recipients::{Held, Opens};

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::mpsc;

use crate::api::{Error, ErrorKind};
use crate::catalog::Catalog;
use crate::config::{Config, Key, Recipients};
use crate::fault::message_error;
use crate::message::{self, Context, DataKey, FreshKey, Header, Opener};
use crate::recipient::PublicKey;
use crate::secret::Secret32;
use crate::token::{CanaryStore, Holders, KeySpec, Stuck, Token, TokenError, WrapCounts};

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
            None => Secret32::random().map_err(|error| {
                Error::new(ErrorKind::Internal, "no random bytes").log(error)
            })?,
        };
        DataKey::fresh(&random).map_err(|e| message_error(&e))
    }

    /// Finds a data key for `header`, by a key of these rings (of any without
    /// them), and verifies commitment and header tag with it. Returns the
    /// opener and the wrapping key's name.
    ///
    /// # Errors
    /// No key at hand, none of these rings, no EDK that opens, a header that
    /// was altered, or a token that is away.
    pub async fn open(
        &self,
        header: &Header,
        rings: Option<&[String]>,
    ) -> Result<(Opener, String), Error> {
        let required = Context::new();
        let aad = header.keyring_aad(&required);
        let mut tried = 0;
        let mut away = None;
        let mut gone = Vec::new();
        let mut barred = None;
        for edk in header.edks() {
            let Some(parts) = edk.raw_aes_parts() else {
                continue;
            };
            // A token that is away is waited for once, however often a header
            // names its key.
            if gone.contains(&parts.key_name) {
                continue;
            }
            let Some((key, holders)) = self.openers(parts.key_name) else {
                continue;
            };
            if let Err(error) = permitted(&key, rings)
                && !self.stands_in(&key, header, rings)
            {
                barred = Some(error);
                continue;
            }
            let mut doubted = false;
            while tried < MAX_UNWRAPS {
                tried += 1;
                let secret = match holders.unwrap(parts.iv, parts.ciphertext, &aad).await {
                    Ok(secret) => secret,
                    // Too long for the token, say: as good as not authentic.
                    Err(TokenError::BadCiphertext | TokenError::Rejected { .. }) => break,
                    Err(error) => {
                        away = Some(Error::from(error));
                        gone.push(parts.key_name);
                        break;
                    }
                };
                match header.verify(DataKey::unwrapped(secret), &required) {
                    Ok(opener) => return Ok((opener, parts.key_name.to_owned())),
                    // It was authentic to the token, and is not the key: a
                    // token that garbled it once is asked again before
                    // anybody is accused.
                    Err(message::Error::WrongKey) if !doubted => doubted = true,
                    Err(message::Error::WrongKey) => break,
                    Err(error) => return Err(message_error(&error)),
                }
            }
        }
        if let Some(error) = away {
            return Err(error);
        }
        if let Some(error) = barred.filter(|_| tried == 0) {
            return Err(error);
        }
        if tried == 0 {
            return Err(recipients::none_at_hand(header));
        }
        Err(Error::new(
            ErrorKind::NoKey,
            format!(
                "no encrypted data key opens ({}): they were altered, or wrapped by other keys of these names",
                names(header)
            ),
        ))
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

    fn openers(&self, key_name: &str) -> Option<(Key, Holders)> {
        let live = self.read();
        let key = live.keys.iter().find(|k| k.name == key_name && k.opens())?;
        Some((key.clone(), live.holders(key)?))
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

fn names(header: &Header) -> String {
    let mut names: Vec<String> = header
        .edks()
        .iter()
        .map(|edk| match edk.raw_aes_parts() {
            Some(parts) => format!("{:?}", parts.key_name),
            None => match edk.raw_rsa_parts() {
                Some(parts) => format!("the RSA recipient {:?}", parts.key_name),
                None => format!("a key of {:?}", edk.provider_id()),
            },
        })
        .collect();
    names.dedup();
    names.join(", ")
}
