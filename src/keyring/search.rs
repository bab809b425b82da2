//! The search for a header's data key: which EDK is tried with which key, and
//! how often.
//!
//! An EDK may come out of the header itself or out of a keyslot; either way
//! the header's context is the AAD and the header's commitment decides. So
//! wherever an EDK was found, it opens this message or nothing.

use super::recipients::none_at_hand;
use super::{Keyring, MAX_UNWRAPS, permitted};
use crate::api::{Error, ErrorKind};
use crate::config::Key;
use crate::fault::message_error;
use crate::message::{self, Context, DataKey, Edk, Header, Opener, ProvenKey};
use crate::token::{Holders, TokenError};

/// A verified header, by whose key.
pub struct Opened {
    /// Opens the body.
    pub opener: Opener,
    /// The wrapping key's configured name.
    pub key: String,
    /// The data key, for wrapping it anew; absent for version 1 messages.
    pub data_key: Option<ProvenKey>,
}

/// Which keys may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those that open on their own word.
    Good,
    /// Those that somebody else may hold too (SECURITY rule 10).
    Compromised,
}

impl Trust {
    fn has(self, key: &Key) -> bool {
        match self {
            Self::Good => key.opens(),
            Self::Compromised => key.is_compromised(),
        }
    }
}

/// One header's search. Its token calls are counted over all it tries.
pub struct Search<'a> {
    keyring: &'a Keyring,
    header: &'a Header,
    rings: Option<&'a [String]>,
    required: Context,
    aad: Vec<u8>,
    tried: usize,
    away: Option<Error>,
    /// A token that is away is waited for once, however often its key is
    /// named.
    gone: Vec<String>,
    barred: Option<Error>,
}

impl Keyring {
    /// Begins a search, with the keys of these rings (of any without them).
    #[must_use]
    pub fn search<'a>(&'a self, header: &'a Header, rings: Option<&'a [String]>) -> Search<'a> {
        let required = Context::new();
        Search {
            keyring: self,
            header,
            rings,
            aad: header.keyring_aad(&required),
            required,
            tried: 0,
            away: None,
            gone: Vec::new(),
            barred: None,
        }
    }

    /// The keys that may open a slot, those that wrap first; of these rings
    /// if any are named.
    #[must_use]
    pub fn slot_keys(&self, rings: Option<&[String]>) -> Vec<Key> {
        let live = self.read();
        let mut keys: Vec<Key> = live
            .keys
            .iter()
            .filter(|key| key.opens() && permitted(key, rings).is_ok())
            .cloned()
            .collect();
        keys.sort_by_key(|key| !key.is_active());
        keys
    }

    /// The ring of a configured key.
    #[must_use]
    pub fn ring_of(&self, name: &str) -> Option<String> {
        let live = self.read();
        let key = live.keys.iter().find(|key| key.name == name)?;
        Some(key.ring().to_owned())
    }

    pub(super) fn key_of(&self, name: &str, trust: Trust) -> Option<(Key, Holders)> {
        let live = self.read();
        let key = live
            .keys
            .iter()
            .find(|key| key.name == name && trust.has(key))?;
        Some((key.clone(), live.holders(key)?))
    }
}

impl<'a> Search<'a> {
    /// The header whose data key is looked for.
    #[must_use]
    pub fn header(&self) -> &'a Header {
        self.header
    }

    /// Whether another token call is allowed.
    #[must_use]
    pub fn may_try(&self) -> bool {
        self.tried < MAX_UNWRAPS
    }

    /// Tries the EDKs that the header itself holds.
    ///
    /// # Errors
    /// The header was altered. That none opens is no error yet.
    pub async fn embedded(&mut self, trust: Trust) -> Result<Option<Opened>, Error> {
        for edk in self.header.edks() {
            if let Some(opened) = self.attempt(edk, trust).await? {
                return Ok(Some(opened));
            }
        }
        Ok(None)
    }

    /// The compromised keys for which the header holds an EDK.
    #[must_use]
    pub fn compromised(&self) -> Vec<String> {
        let names = self.header.edks().iter().filter_map(Edk::raw_aes_parts);
        names
            .map(|parts| parts.key_name)
            .filter(|name| self.keyring.key_of(name, Trust::Compromised).is_some())
            .map(str::to_owned)
            .collect()
    }

    /// Tries one EDK with the key that it names.
    ///
    /// # Errors
    /// The header was altered. That it does not open is none.
    pub async fn attempt(&mut self, edk: &Edk, trust: Trust) -> Result<Option<Opened>, Error> {
        let Some(parts) = edk.raw_aes_parts() else {
            return Ok(None);
        };
        if self.gone.iter().any(|name| name == parts.key_name) {
            return Ok(None);
        }
        let Some((key, holders)) = self.keyring.key_of(parts.key_name, trust) else {
            return Ok(None);
        };
        if let Err(error) = permitted(&key, self.rings)
            && !self.keyring.stands_in(&key, self.header, self.rings)
        {
            self.barred = Some(error);
            return Ok(None);
        }
        let mut doubted = false;
        while self.may_try() {
            self.tried += 1;
            let secret = match holders.unwrap(parts.iv, parts.ciphertext, &self.aad).await {
                Ok(secret) => secret,
                // Too long for the token, say: as good as not authentic.
                Err(TokenError::BadCiphertext | TokenError::Rejected { .. }) => break,
                Err(error) => {
                    self.away = Some(Error::from(error));
                    self.gone.push(parts.key_name.to_owned());
                    break;
                }
            };
            match self
                .header
                .prove(DataKey::unwrapped(secret), &self.required)
            {
                Ok((opener, data_key)) => {
                    return Ok(Some(Opened {
                        opener,
                        key: key.name,
                        data_key,
                    }));
                }
                // It was authentic to the token, and is not the key: a token
                // that garbled it once is asked again before anybody is
                // accused.
                Err(message::Error::WrongKey) if !doubted => doubted = true,
                Err(message::Error::WrongKey) => break,
                Err(error) => return Err(message_error(&error)),
            }
        }
        Ok(None)
    }

    /// Takes down that something could not be asked: then nothing that was
    /// not found is known to be missing.
    pub fn doubt(&mut self, error: Error) {
        self.away.get_or_insert(error);
    }

    /// What was away, if anything was.
    #[must_use]
    pub fn away(&self) -> Option<&Error> {
        self.away.as_ref()
    }

    /// Why nothing opened. `slots` says what was tried besides the header.
    #[must_use]
    pub fn failure(self, slots: &str) -> Error {
        if let Some(error) = self.away {
            return error;
        }
        if let Some(error) = self.barred.filter(|_| self.tried == 0) {
            return error;
        }
        if self.tried == 0 {
            let error = none_at_hand(self.header);
            return Error {
                detail: error.detail + slots,
                ..error
            };
        }
        let names = names(self.header);
        let detail = format!(
            "no encrypted data key opens ({names}): they were altered, or wrapped by other keys of these names"
        );
        Error::new(ErrorKind::NoKey, detail + slots)
    }
}

pub(super) fn names(header: &Header) -> String {
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
