//! A key on several tokens: which of them is asked.
//!
//! The first in order of preference on which the key is open, and which is
//! not known to be unwell; while there is none, whichever comes first. If it
//! fails for a reason of its own the next one is asked at once, as long as
//! the key is open there: nobody waits for one token after another. What a
//! token says of the input is final: another one that holds the same key
//! could only say the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use tokio::time::{timeout, timeout_at};

use crate::secret::Secret32;

use super::calls::strange;
use super::error::TokenError;
use super::handle::{Token, Wrapped};
use super::health::Health;
use super::link::{Closed, Lane, Link};
use super::{IV_LEN, WRAPPED_LEN};

impl Token {
    /// Whether a call with this key would go to its worker at once.
    #[must_use]
    pub fn is_open(&self, key: &str) -> bool {
        matches!(self.inner.state.borrow().route(key), Some(Ok(_)))
    }

    /// Whether nothing can be done with this key before somebody acts.
    #[must_use]
    pub fn refuses(&self, key: &str) -> bool {
        matches!(self.inner.state.borrow().route(key), Some(Err(_)))
    }
}

/// The tokens that hold one key, in order of preference.
#[derive(Clone)]
pub struct Holders {
    key: String,
    tokens: Vec<Token>,
}

impl Holders {
    /// The holders of the key with this configured name.
    #[must_use]
    pub fn new(key: &str, tokens: Vec<Token>) -> Self {
        Self {
            key: key.to_owned(),
            tokens,
        }
    }

    /// Wraps a data key; see [`Token::wrap`].
    ///
    /// # Errors
    /// See [`TokenError`]; of several tokens, what the first one asked said.
    pub async fn wrap(&self, data_key: &Secret32, aad: &[u8]) -> Result<Wrapped, TokenError> {
        let mut route = Route::of(self);
        loop {
            let (token, lane, id) = route.next().await?;
            let wrapped = token.inner.wrap_on(lane, &self.key, id, data_key, aad);
            match wrapped.await {
                Err(error) => route.failed(&token, error)?,
                done => return done,
            }
        }
    }

    /// Unwraps a data key; see [`Token::unwrap`].
    ///
    /// # Errors
    /// See [`TokenError`]; of several tokens, what the first one asked said.
    pub async fn unwrap(
        &self,
        iv: &[u8; IV_LEN],
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<Secret32, TokenError> {
        if ciphertext.len() != WRAPPED_LEN {
            return Err(TokenError::BadCiphertext);
        }
        let mut route = Route::of(self);
        loop {
            let (token, lane, id) = route.next().await?;
            let opened = token.inner.unwrap_on(lane, id, iv, ciphertext, aad);
            match opened.await {
                Err(error) => route.failed(&token, error)?,
                done => return done,
            }
        }
    }

    /// 32 bytes of a token's generator; see [`Token::random`].
    ///
    /// # Errors
    /// See [`TokenError`]; of several tokens, what the first one asked said.
    pub async fn random(&self) -> Result<Secret32, TokenError> {
        let mut route = Route::of(self);
        loop {
            let (token, ..) = route.choose().await?;
            match token.random().await {
                Err(error) => route.failed(&token, error)?,
                done => return done,
            }
        }
    }
}

/// One request's way through the holders.
struct Route<'a> {
    key: &'a str,
    left: Vec<Token>,
    first: Option<TokenError>,
    /// How long a holder is waited for on which the key is not open yet.
    until: Instant,
}

/// A holder on which the key is open, with its worker and the key's id there.
type Choice = (Token, Arc<Link>, u32);

impl<'a> Route<'a> {
    fn of(holders: &'a Holders) -> Self {
        let left = holders.tokens.clone();
        let wait = left
            .iter()
            .map(|token| token.inner.call_timeout.get())
            .max();
        Self {
            key: &holders.key,
            left,
            first: None,
            until: Instant::now() + wait.unwrap_or(Duration::ZERO),
        }
    }

    /// The next holder, with a free session.
    async fn next(&mut self) -> Result<(Token, Lane, u32), TokenError> {
        loop {
            let (token, link, id) = self.choose().await?;
            match timeout(token.inner.call_timeout.get(), link.lane()).await {
                Ok(Ok(lane)) => return Ok((token, lane, id)),
                // Nothing was sent; another one may be open.
                Ok(Err(Closed)) => {}
                Err(_) => {
                    let busy = token.inner.busy();
                    self.failed(&token, busy)?;
                }
            }
        }
    }

    /// The next holder on which the key is open. Before the first call one is
    /// waited for; afterwards whoever waits longer is better told.
    async fn choose(&mut self) -> Result<Choice, TokenError> {
        loop {
            // Before looking, so that no change in between is missed.
            let mut states: Vec<_> = self
                .left
                .iter()
                .map(|token| token.inner.state.clone())
                .collect();
            for state in &mut states {
                state.mark_unchanged();
            }
            if let Some(choice) = self.open(true).or_else(|| self.open(false)) {
                return Ok(choice);
            }
            if let Some(first) = &self.first {
                return Err(first.clone());
            }
            self.check_refusals()?;
            let changes = states.iter_mut().map(|state| Box::pin(state.changed()));
            if timeout_at(self.until.into(), select_all(changes))
                .await
                .is_err()
            {
                return Err(self.away());
            }
        }
    }

    /// The first on which the key is open; of those that are well, if asked.
    fn open(&self, well: bool) -> Option<Choice> {
        self.left.iter().find_map(|token| {
            let state = token.inner.state.borrow();
            if well && state.health == Health::Suspect {
                return None;
            }
            let (link, id) = state.route(self.key)?.ok()?;
            Some((token.clone(), link, id))
        })
    }

    /// All refuse: the preferred one says why.
    fn check_refusals(&self) -> Result<(), TokenError> {
        let mut first = None;
        for token in &self.left {
            match token.inner.state.borrow().route(self.key) {
                Some(Err(error)) => first = first.or(Some(error)),
                _ => return Ok(()),
            }
        }
        Err(first.unwrap_or_else(strange))
    }

    fn away(&self) -> TokenError {
        // One that refuses is not what was waited for.
        let awaited = self.left.iter().find(|token| !token.refuses(self.key));
        awaited.map_or_else(strange, |token| token.inner.away())
    }

    /// A holder failed: another one may do better, unless the error is about
    /// the request.
    fn failed(&mut self, token: &Token, error: TokenError) -> Result<(), TokenError> {
        match error {
            TokenError::Away { .. }
            | TokenError::Timeout
            | TokenError::Locked { .. }
            | TokenError::Misconfigured { .. }
            | TokenError::UnknownKey(_) => {
                self.left.retain(|other| other.name() != token.name());
                if !self.left.is_empty() {
                    tracing::warn!(
                        token = token.name(),
                        key = self.key,
                        "{error}; asking another"
                    );
                }
                self.first.get_or_insert(error);
                Ok(())
            }
            TokenError::BadCiphertext
            | TokenError::Rejected { .. }
            | TokenError::Exists { .. }
            | TokenError::Exhausted { .. }
            | TokenError::Uncounted { .. } => Err(error),
        }
    }
}
