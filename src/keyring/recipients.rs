//! Who else holds every data key: the ring's own key and each recipient wrap
//! it, all at once, before anything reaches S3.
//!
//! What the configuration requires must be there (fail closed); others are
//! left out at once while their token is away, and the records say so.

use futures_util::future::{try_join, try_join_all};

use crate::api::{Error, ErrorKind};
use crate::config::{Holder, Key, Recipient};
use crate::fault::message_error;
use crate::message::{Context, DataKey, Draft, Edk, Header, NAMESPACE};
use crate::recipient::PublicKey;
use crate::token::{Holders, Token, TokenError};

use super::report::is_open;
use super::search::{Trust, names};
use super::{Keyring, Live};

/// Who holds a message's data key besides its ring's own key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The wrapping key; of a write-only host, its first recipient.
    pub wrapping_key: String,
    /// Recipients, by the names in the object.
    pub recipients: Vec<String>,
    /// Recipients that were not required and could not be had.
    pub missing: Vec<String>,
}

/// What a single key makes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// It unwraps a data key that the header's commitment and tag accept.
    Yes,
    /// The message names it, and what it unwraps is not the data key.
    No,
    /// The message does not name it.
    Unnamed,
}

/// What is asked of a recipient.
struct Part {
    name: String,
    required: bool,
    by: Result<By, Error>,
}

enum By {
    Token(String, Holders),
    Rsa(PublicKey),
}

impl Part {
    fn error(&self, error: Error) -> Error {
        of_recipient(&self.name, error)
    }
}

fn of_recipient(name: &str, error: Error) -> Error {
    Error {
        detail: format!("recipient {name:?}: {}", error.detail),
        ..error
    }
}

type Outcome = Result<Edk, Error>;

impl Keyring {
    /// Whether what this host stores is for RSA recipients alone.
    #[must_use]
    pub fn is_write_only(&self) -> bool {
        self.read().recipients.write_only
    }

    /// Wraps the draft's data key under `key` and for each recipient.
    ///
    /// # Errors
    /// A token that is required is away or refuses, or fewer could be had
    /// than `recipients.min` demands; the text names the recipient.
    pub async fn wrap(&self, key: Option<&Key>, draft: &mut Draft) -> Result<Held, Error> {
        let (parts, min, write_only) = {
            let live = self.read();
            let own = key.map(|key| key.name.as_str());
            let policy = &live.recipients;
            (self.parts(&live, own), policy.min, policy.write_only)
        };
        let aad = draft.aad();
        let shared: &Draft = draft;
        let own = async {
            let Some(key) = key.filter(|_| !write_only) else {
                return Ok(None);
            };
            let holders = self.holders(key)?;
            wrap_by(&key.name, &holders, shared, &aad).await.map(Some)
        };
        let others = try_join_all(parts.iter().map(|part| one(part, shared, &aad)));
        let (own, others) = try_join(own, others).await?;
        let mut held = Held::default();
        let mut edks = Vec::new();
        if let (Some(edk), Some(key)) = (own, key) {
            held.wrapping_key.clone_from(&key.name);
            edks.push(edk);
        }
        let mut lacking = None;
        for (part, outcome) in parts.iter().zip(others) {
            match outcome {
                Ok(edk) => {
                    held.recipients.push(part.name_in_object());
                    edks.push(edk);
                }
                Err(error) => {
                    tracing::warn!(
                        recipient = part.name,
                        why = error.detail,
                        "stored without it"
                    );
                    held.missing.push(part.name.clone());
                    lacking.get_or_insert(part.error(error));
                }
            }
        }
        if edks.len() < min {
            let same = || Error::new(ErrorKind::Misconfigured, "the ring is a recipient's own");
            return Err(too_few(edks.len(), min, lacking.unwrap_or_else(same)));
        }
        if held.wrapping_key.is_empty() {
            held.wrapping_key = held.recipients.first().cloned().unwrap_or_default();
        }
        for edk in edks {
            draft.add_edk(edk).map_err(|e| message_error(&e))?;
        }
        Ok(held)
    }

    /// The recipients' parts, without one that would be the ring's own key
    /// once more.
    fn parts(&self, live: &Live, own: Option<&str>) -> Vec<Part> {
        let mut rsa = live.public_keys.iter();
        let mut parts = Vec::new();
        for recipient in &live.recipients.all {
            let by = match &recipient.holder {
                Holder::Rsa(_) => rsa.next().cloned().map(By::Rsa).ok_or_else(|| {
                    Error::new(ErrorKind::Misconfigured, "its public key was not read")
                }),
                Holder::Ring(_) => match self.wrapping_for(live, recipient) {
                    Ok(key) if own == Some(key.name.as_str()) => continue,
                    Ok(key) if !recipient.required && !is_open(live, key, &|_| true) => {
                        Err(not_open(live, key))
                    }
                    Ok(key) => match live.holders(key) {
                        Some(holders) => Ok(By::Token(key.name.clone(), holders)),
                        None => Err(not_open(live, key)),
                    },
                    Err(error) => Err(error),
                },
            };
            parts.push(Part {
                name: recipient.name.clone(),
                required: recipient.required,
                by,
            });
        }
        parts
    }

    /// The key that wraps for a recipient now.
    fn wrapping_for<'a>(&self, live: &'a Live, recipient: &Recipient) -> Result<&'a Key, Error> {
        let Holder::Ring(ring) = &recipient.holder else {
            return Err(Error::new(ErrorKind::Internal, "it has no key in a token"));
        };
        let mut keys = live.keys.iter();
        let active = keys.find(|key| key.is_active() && key.ring() == ring);
        let active = active.ok_or_else(|| {
            Error::new(
                ErrorKind::Misconfigured,
                format!("no key of its ring {ring:?} is active"),
            )
            .hint("make a key of the ring active, or take the recipient out of the configuration")
        })?;
        let key = self.current(live, active);
        self.unless_exhausted(key)?;
        Ok(key)
    }

    /// A required recipient's key that wraps no more.
    pub(super) fn exhausted_recipient(&self, live: &Live) -> Option<Error> {
        let required = live.recipients.all.iter().filter(|r| r.required);
        let mut errors = required
            .filter(|r| matches!(r.holder, Holder::Ring(_)))
            .filter_map(|r| Some(of_recipient(&r.name, self.wrapping_for(live, r).err()?)));
        errors.find(|error| error.kind == ErrorKind::KeyExhausted)
    }

    /// Why no upload can have the recipients it must have.
    #[must_use]
    pub fn recipient_trouble(&self) -> Option<Error> {
        self.lacking_recipient(&self.read(), &|_| true)
    }

    /// The first recipient without which nothing can be stored now, of those
    /// whose tokens this is not true of.
    pub(super) fn lacking_recipient(
        &self,
        live: &Live,
        and: &dyn Fn(&Token) -> bool,
    ) -> Option<Error> {
        let policy = &live.recipients;
        let mut count = usize::from(!policy.write_only);
        let mut lacking = None;
        for recipient in &policy.all {
            let fault = match &recipient.holder {
                Holder::Rsa(_) => None,
                Holder::Ring(_) => match self.wrapping_for(live, recipient) {
                    Ok(key) if is_open(live, key, and) => None,
                    Ok(key) => Some(not_open(live, key)),
                    Err(error) => Some(error),
                },
            };
            match fault.map(|error| of_recipient(&recipient.name, error)) {
                None => count += 1,
                Some(error) if recipient.required => return Some(error),
                Some(error) => lacking = lacking.or(Some(error)),
            }
        }
        let error = lacking?;
        (count < policy.min).then(|| too_few(count, policy.min, error))
    }

    /// Whether a recipient's key may open what a grant for these rings may
    /// read: the message names a key of one of them too. Its header's tag,
    /// without which nothing is read, proves that its writer said so.
    pub(super) fn stands_in(&self, key: &Key, header: &Header, rings: Option<&[String]>) -> bool {
        let live = self.read();
        let Some(rings) = rings.filter(|_| live.recipients.has_ring(key.ring())) else {
            return false;
        };
        let named = header.edks().iter().filter_map(Edk::raw_aes_parts);
        named
            .filter_map(|parts| live.keys.iter().find(|key| key.name == parts.key_name))
            .any(|named| rings.iter().any(|ring| ring == named.ring()))
    }

    /// What the key of this name alone makes of a message.
    ///
    /// # Errors
    /// Its token is away, or it is not configured; an altered header.
    pub async fn opens_with(&self, header: &Header, name: &str) -> Result<Opens, Error> {
        let required = Context::new();
        let aad = header.keyring_aad(&required);
        let mut outcome = Opens::Unnamed;
        for edk in header.edks() {
            let Some(parts) = edk.raw_aes_parts().filter(|p| p.key_name == name) else {
                continue;
            };
            let Some((_, holders)) = self.key_of(name, Trust::Good) else {
                return Err(Error::new(
                    ErrorKind::Misconfigured,
                    format!("key {name:?} is not configured here, or does not open"),
                ));
            };
            outcome = Opens::No;
            // Asked twice: a token that garbled one answer accuses nobody.
            for _ in 0..2 {
                match holders.unwrap(parts.iv, parts.ciphertext, &aad).await {
                    Ok(secret) => match header.verify(DataKey::unwrapped(secret), &required) {
                        Ok(_) => return Ok(Opens::Yes),
                        Err(crate::message::Error::WrongKey) => {}
                        Err(error) => return Err(message_error(&error)),
                    },
                    Err(TokenError::BadCiphertext | TokenError::Rejected { .. }) => {}
                    Err(error) => return Err(Error::from(error)),
                }
            }
        }
        Ok(outcome)
    }

    /// The names that a recipient may have in objects: its RSA key's, or those
    /// of all keys of its ring; with the length of an RSA wrap.
    ///
    /// # Errors
    /// No recipient is called so.
    pub fn names_of(&self, recipient: &str) -> Result<(Vec<String>, Option<usize>), Error> {
        let live = self.read();
        let mut all = live.recipients.all.iter();
        let Some(found) = all.find(|r| r.is_called(recipient)) else {
            let known: Vec<&str> = live.recipients.all.iter().map(|r| &*r.name).collect();
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no recipient {recipient:?} is configured"),
            )
            .hint(match known.is_empty() {
                true => "no recipient is configured at all".to_owned(),
                false => format!("configured: {}", known.join(", ")),
            }));
        };
        Ok(match &found.holder {
            Holder::Ring(ring) => {
                let keys = live.keys.iter().filter(|key| key.ring() == ring);
                (keys.map(|key| key.name.clone()).collect(), None)
            }
            Holder::Rsa(_) => {
                let rsa = live.recipients.public_keys();
                let at = rsa.map(|(r, _)| r).position(|r| r.name == found.name);
                let key = at.and_then(|at| live.public_keys.get(at));
                (vec![found.name.clone()], key.map(PublicKey::wrapped_len))
            }
        })
    }
}

impl Part {
    fn name_in_object(&self) -> String {
        match &self.by {
            Ok(By::Token(key, _)) => key.clone(),
            _ => self.name.clone(),
        }
    }
}

/// One recipient's part. The outer error ends the put.
async fn one(part: &Part, draft: &Draft, aad: &[u8]) -> Result<Outcome, Error> {
    let outcome = match &part.by {
        Ok(By::Token(key, holders)) => wrap_by(key, holders, draft, aad).await,
        Ok(By::Rsa(key)) => {
            // After the requests to the tokens are on their way.
            tokio::task::yield_now().await;
            wrap_to(&part.name, key, draft)
        }
        Err(error) => Err(again(error)),
    };
    match outcome {
        Err(error) if part.required => Err(part.error(error)),
        outcome => Ok(outcome),
    }
}

fn again(error: &Error) -> Error {
    Error {
        kind: error.kind,
        detail: error.detail.clone(),
        hint: error.hint.clone(),
        log: error.log.clone(),
        retry_after: error.retry_after,
    }
}

async fn wrap_by(key: &str, holders: &Holders, draft: &Draft, aad: &[u8]) -> Outcome {
    let wrapped = holders.wrap(draft.data_key(), aad).await;
    let wrapped = wrapped.map_err(Error::from)?;
    Edk::raw_aes(key, &wrapped.iv, &wrapped.ciphertext).map_err(|e| message_error(&e))
}

fn wrap_to(name: &str, key: &PublicKey, draft: &Draft) -> Outcome {
    let wrapped = key
        .wrap(draft.data_key())
        .map_err(|why| Error::new(ErrorKind::Internal, "its RSA key cannot encrypt").log(why))?;
    Edk::raw_rsa(name, &wrapped).map_err(|e| message_error(&e))
}

fn too_few(count: usize, min: usize, first: Error) -> Error {
    Error {
        detail: format!(
            "{count} of the {min} holders that recipients.min demands can be had: {}",
            first.detail
        ),
        ..first
    }
}

/// A recipient's key that no token of its has let in.
fn not_open(live: &Live, key: &Key) -> Error {
    let token = live.tokens_of(key).next();
    let (health, why) = token.map_or(("gone".to_owned(), None), |token| {
        let status = token.status();
        let mut keys = token.keys().into_iter();
        let own = keys.find(|state| state.spec.name == key.name);
        (
            status.health,
            own.and_then(|state| state.problem).or(status.detail),
        )
    });
    let kind = match health.as_str() {
        "locked" => ErrorKind::TokenLocked,
        "misconfigured" => ErrorKind::Misconfigured,
        _ => ErrorKind::TokenAway,
    };
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    Error::new(
        kind,
        format!(
            "key {:?} is not open, token {:?} is {health}{why}",
            key.name,
            key.token()
        ),
    )
}

/// No encrypted data key of the message is one that this agent tries.
pub(super) fn none_at_hand(header: &Header) -> Error {
    let ours = header
        .edks()
        .iter()
        .filter(|edk| edk.provider_id() == NAMESPACE);
    let only_rsa =
        ours.clone().next().is_some() && ours.clone().all(|edk| edk.raw_rsa_parts().is_some());
    let names = names(header);
    if only_rsa {
        return Error::new(
            ErrorKind::NoKey,
            format!("it was written for recovery alone: it is wrapped for {names}"),
        )
        .hint("only the private key, where it is kept, opens it: fetch the object from S3, and use `strongroom recover` there");
    }
    Error::new(
        ErrorKind::NoKey,
        format!("it is wrapped for {names}, none of which is at hand"),
    )
}
