//! A message being prepared, up to its header.

use std::ops::Deref;

use super::cipher::IV_LEN;
use super::context::Context;
use super::edk::Edk;
use super::error::Error;
use super::header::{FRAMED, VERSION_2};
use super::id::MessageId;
use super::keys::{self, FreshKey};
use super::limits::{MAX_EDKS, MAX_FRAME, MAX_HEADER, MIN_FRAME};
use super::sealer::Sealer;
use super::signature::PUBLIC_KEY;
use super::suite::Suite;
use crate::secret::Secret32;

/// A message before its header is written: the data key to be wrapped, a
/// random message id, the context, the frame length.
///
/// Two headers under one data key would repeat a GCM nonce and give away the
/// authentication key, so sealing consumes the draft, and with it the key:
///
/// ```compile_fail,E0382
/// # fn f(draft: strongroom::message::Draft) {
/// let first = draft.seal();
/// let second = draft.seal();
/// # }
/// ```
pub struct Draft {
    key: FreshKey,
    message_id: MessageId,
    context: Context,
    frame_length: u32,
    edks: Vec<Edk>,
}

/// A header that is final: send exactly these bytes. There is one per draft.
///
/// ```compile_fail,E0599
/// # fn f(header: strongroom::message::SealedHeader) {
/// let two = (header.clone(), header);
/// # }
/// ```
#[derive(Debug)]
pub struct SealedHeader(Vec<u8>);

impl Deref for SealedHeader {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Draft {
    /// Begins a message with frames of `frame_length` plaintext bytes.
    ///
    /// # Errors
    /// [`Error::Limit`] unless `frame_length` is 4 KiB to 16 MiB;
    /// [`Error::Context`] for a context with a signed message's public key;
    /// [`Error::Internal`] when there are no random bytes for the message id.
    pub fn new(key: FreshKey, context: Context, frame_length: u32) -> Result<Self, Error> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame_length) {
            return Err(Error::Limit(format!(
                "frames of {frame_length} bytes, from {MIN_FRAME} to {MAX_FRAME}"
            )));
        }
        if context.get(PUBLIC_KEY).is_some() {
            return Err(Error::Context(format!(
                "{PUBLIC_KEY} belongs to signed messages"
            )));
        }
        Ok(Self {
            key,
            message_id: MessageId::random()?,
            context,
            frame_length,
            edks: Vec::new(),
        })
    }

    /// The message's id.
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    /// The data key, for wrapping it.
    #[must_use]
    pub fn data_key(&self) -> &Secret32 {
        self.key.secret()
    }

    /// The AAD to wrap the data key with.
    #[must_use]
    pub fn aad(&self) -> Vec<u8> {
        self.context.aad()
    }

    /// Adds a wrapped data key.
    ///
    /// # Errors
    /// [`Error::Limit`] at the 17th.
    pub fn add_edk(&mut self, edk: Edk) -> Result<(), Error> {
        if self.edks.len() == MAX_EDKS {
            return Err(Error::Limit(format!(
                "more than {MAX_EDKS} encrypted data keys"
            )));
        }
        self.edks.push(edk);
        Ok(())
    }

    /// Writes the header and gives the sealer for the body. The data key is
    /// gone afterwards.
    ///
    /// # Errors
    /// [`Error::Misuse`] without an EDK; [`Error::Limit`] when the header would
    /// be longer than 64 KiB.
    pub fn seal(self) -> Result<(SealedHeader, Sealer), Error> {
        if self.edks.is_empty() {
            return Err(Error::Misuse("a message without an encrypted data key"));
        }
        let suite = Suite::WRITTEN;
        let keys = keys::derive(suite, &self.message_id, self.key.secret().expose())?;
        let commitment = keys
            .commitment
            .ok_or(Error::Misuse("we write suites with commitment only"))?;
        let mut bytes = self.serialise(suite, &commitment)?;
        let tag = keys
            .body
            .seal([0; IV_LEN], &bytes, &mut [])
            .map_err(|_| Error::Internal("the cipher refused to seal the header".to_owned()))?;
        bytes.extend_from_slice(&tag);
        if bytes.len() > MAX_HEADER {
            return Err(Error::Limit(format!(
                "the header is longer than {MAX_HEADER} bytes"
            )));
        }
        let sealer = Sealer::new(keys.body, self.message_id, self.frame_length);
        Ok((SealedHeader(bytes), sealer))
    }

    /// The header without its tag.
    fn serialise(&self, suite: Suite, commitment: &[u8; 32]) -> Result<Vec<u8>, Error> {
        let aad = self.context.aad();
        let mut out = Vec::with_capacity(1024);
        out.push(VERSION_2);
        out.extend_from_slice(&suite.id.to_be_bytes());
        out.extend_from_slice(self.message_id.as_bytes());
        put_count(&mut out, aad.len())?;
        out.extend_from_slice(&aad);
        put_count(&mut out, self.edks.len())?;
        for edk in &self.edks {
            edk.serialise(&mut out)?;
        }
        out.push(FRAMED);
        out.extend_from_slice(&self.frame_length.to_be_bytes());
        out.extend_from_slice(commitment);
        Ok(out)
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) -> Result<(), Error> {
    let count = u16::try_from(count)
        .map_err(|_| Error::Limit("the encryption context is too long".to_owned()))?;
    out.extend_from_slice(&count.to_be_bytes());
    Ok(())
}
