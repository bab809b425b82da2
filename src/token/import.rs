//! Importing a key, from the asking side: through the agent's worker, or
//! through one of the command's own.

use std::time::Instant;

use super::calls::strange;
use super::error::TokenError;
use super::handle::{SYNC_PAUSE, Token};
use super::offline::{self, Offline, away};
use super::protocol::{KeySpec, OpenedKey, Reply, Request, Transport};
use crate::transport::{Fingerprint, OaepHash, Sealed};

/// A sealed key on its way into a token.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its CKA_LABEL to be.
    pub label: String,
    /// Of the pair that it was sealed for.
    pub pair: Fingerprint,
    /// The hash of RSA-OAEP that it was sealed with.
    pub hash: OaepHash,
    /// The sealed key.
    pub sealed: Sealed,
    /// Its check value, as computed where it was sealed.
    pub check_value: [u8; 3],
}

impl Arrival {
    fn request(&self) -> Request<'_> {
        Request::FinishImport {
            label: &self.label,
            pair: self.pair,
            hash: self.hash,
            sealed: self.sealed.clone(),
            check_value: self.check_value,
        }
    }

    fn spec(&self) -> KeySpec {
        KeySpec {
            name: self.label.clone(),
            label: self.label.clone(),
            imported: true,
        }
    }
}

impl Token {
    /// Makes an RSA pair in the token for one import.
    ///
    /// # Errors
    /// [`TokenError::Exists`] if the label is taken or an import of it has
    /// begun; [`TokenError::Misconfigured`] on a token that cannot import.
    pub async fn begin_import(&self, label: &str) -> Result<Transport, TokenError> {
        let lane = self.inner.lane().await?;
        let frame = self
            .inner
            .call(lane, &Request::BeginImport { label })
            .await?;
        match frame.decode() {
            Ok(Reply::Transport(transport)) => Ok(transport),
            _ => Err(strange()),
        }
    }

    /// Unwraps a key that was sealed for such a pair, and runs the gate on it.
    ///
    /// # Errors
    /// [`TokenError::Rejected`] for an envelope that is not this import's.
    pub async fn finish_import(&self, arrival: &Arrival) -> Result<OpenedKey, TokenError> {
        let lane = self.inner.lane().await?;
        self.inner.call(lane, &arrival.request()).await?;
        let open = Request::OpenKey(arrival.spec());
        // As with a generated key: a cluster needs a moment.
        let deadline = Instant::now() + self.inner.call_timeout.get();
        loop {
            let lane = self.inner.lane().await?;
            match self.inner.call(lane, &open).await {
                Ok(frame) => {
                    return match frame.decode() {
                        Ok(Reply::Key(opened)) => Ok(opened),
                        _ => Err(strange()),
                    };
                }
                Err(TokenError::Away { .. }) if Instant::now() + SYNC_PAUSE < deadline => {
                    tokio::time::sleep(SYNC_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Destroys the pair of an import that is not to be.
    ///
    /// # Errors
    /// [`TokenError::Rejected`] if there is none.
    pub async fn cancel_import(&self, label: &str) -> Result<(), TokenError> {
        let lane = self.inner.lane().await?;
        let request = Request::CancelImport { label };
        self.inner.call(lane, &request).await.map(drop)
    }
}

impl Offline {
    /// See [`Token::begin_import`].
    ///
    /// # Errors
    /// See there.
    pub fn begin_import(&mut self, label: &str) -> Result<Transport, TokenError> {
        let frame = self.call(&Request::BeginImport { label })?;
        match frame.decode().map_err(away)? {
            Reply::Transport(transport) => Ok(transport),
            _ => Err(offline::strange()),
        }
    }

    /// See [`Token::finish_import`].
    ///
    /// # Errors
    /// See there.
    pub fn finish_import(&mut self, arrival: &Arrival) -> Result<OpenedKey, TokenError> {
        self.call(&arrival.request())?;
        self.open_key(&arrival.spec())
    }

    /// See [`Token::cancel_import`].
    ///
    /// # Errors
    /// See there.
    pub fn cancel_import(&mut self, label: &str) -> Result<(), TokenError> {
        self.call(&Request::CancelImport { label }).map(drop)
    }
}
