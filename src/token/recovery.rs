//! A key in a token, for offline recovery: a worker of its own, which logs in
//! once, opens encrypted data keys, and ends with its owner.

use std::path::PathBuf;

use zeroize::Zeroizing;

use super::IV_LEN;
use super::error::TokenError;
use super::offline::{Offline, PATIENCE, away, strange};
use super::protocol::{IvChoice, Mode, PinSource, Reply, Request, Serve, Setup};

/// Where a recovery key is.
#[derive(Clone, Debug)]
pub struct RecoveryKey {
    /// The PKCS#11 library.
    pub module: PathBuf,
    /// The token's CKA_LABEL.
    pub token_label: String,
    /// The key's CKA_LABEL: an AES key's, or an RSA private key's.
    pub key_label: String,
    /// The file with the user PIN.
    pub pin_file: PathBuf,
}

/// A recovery key's worker.
pub struct RecoveryToken {
    worker: Offline,
    label: String,
}

impl RecoveryToken {
    /// Logs in: exactly one attempt with the PIN.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn log_in(key: RecoveryKey) -> Result<Self, TokenError> {
        let exe = std::env::current_exe().map_err(away)?;
        let setup = Setup {
            module: key.module,
            network: true,
            mode: Mode::Recover(Serve {
                label: Some(key.token_label),
                serial: None,
                pin: PinSource::File(key.pin_file),
                sessions: 1,
                call_timeout: PATIENCE,
                gcm_iv: IvChoice::Auto,
                verify_wraps: false,
            }),
        };
        Ok(Self {
            worker: Offline::start(&setup, &exe)?,
            label: key.key_label,
        })
    }

    /// Opens an encrypted data key, with its IV if it is an AES one; `None` if
    /// the key does not open it.
    ///
    /// # Errors
    /// See [`TokenError`]: there is no such key, or the token is away.
    pub fn open(
        &mut self,
        iv: Option<[u8; IV_LEN]>,
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, TokenError> {
        let request = Request::Recover {
            label: &self.label,
            iv,
            ciphertext,
            aad,
        };
        match self.worker.call(&request) {
            Ok(frame) => match frame.decode().map_err(away)? {
                Reply::DataKey(key) => Ok(Some(Zeroizing::new(key.to_vec()))),
                _ => Err(strange()),
            },
            Err(TokenError::BadCiphertext) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
