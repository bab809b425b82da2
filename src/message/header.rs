//! Parsing and verifying a message's header.
//!
//! Specification: data-format/message-header.md,
//! client-apis/decrypt.md#verify-the-header.

use subtle::ConstantTimeEq as _;

use super::cipher::{IV_LEN, TAG_LEN};
use super::context::Context;
use super::cursor::{Cursor, Stop};
use super::edk::Edk;
use super::error::Error;
use super::id::MessageId;
use super::keys::{self, DataKey, ProvenKey};
use super::limits::{MAX_EDKS, MAX_FRAME};
use super::opener::Opener;
use super::signature::PUBLIC_KEY;
use super::suite::Suite;

/// First byte of a version 1 message.
const VERSION_1: u8 = 0x01;
/// First byte of a version 2 message.
pub(super) const VERSION_2: u8 = 0x02;
/// Second byte of a version 1 message: customer authenticated encrypted data.
const TYPE_1: u8 = 0x80;
/// Content type: the body is one block.
const SINGLE: u8 = 0x01;
/// Content type: the body is frames.
pub(super) const FRAMED: u8 = 0x02;

/// What the caller is ready to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Permit {
    /// Version 1 messages too, which do not commit to their data key.
    pub uncommitted: bool,
}

/// What the first bytes of a message gave.
#[derive(Debug)]
pub enum Parsed {
    /// A whole header.
    Header(Box<Header>),
    /// A good beginning: parse again with more bytes.
    NeedMore,
}

/// A header as it was read. Nothing in it is verified: use it to choose a
/// key, then [`verify`](Self::verify).
#[derive(Clone, Debug)]
pub struct Header {
    suite: Suite,
    message_id: MessageId,
    context: Context,
    edks: Vec<Edk>,
    /// `None` for a non-framed body.
    frame_length: Option<u32>,
    commitment: Option<[u8; 32]>,
    iv: [u8; IV_LEN],
    tag: [u8; TAG_LEN],
    /// As received, tag included.
    bytes: Vec<u8>,
    /// The authenticated part of `bytes`.
    body_len: usize,
}

impl Header {
    /// Reads the header at the beginning of `bytes`; what follows it is
    /// ignored. Costs at most one pass over 64 KiB, whatever the bytes say.
    ///
    /// # Errors
    /// [`Error::NotAMessage`], [`Error::Unsupported`], [`Error::Uncommitted`],
    /// [`Error::Limit`], or [`Error::Altered`] where no writer would have
    /// written such a thing.
    pub fn parse(bytes: &[u8], permit: Permit) -> Result<Parsed, Error> {
        match parse(&mut Cursor::new(bytes), permit) {
            Ok(header) => Ok(Parsed::Header(Box::new(header))),
            Err(Stop::NeedMore) => Ok(Parsed::NeedMore),
            Err(Stop::Refused(error)) => Err(error),
        }
    }

    /// Length in bytes, tag included: the body begins here.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The header as received, tag included.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message's id.
    #[must_use]
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    /// Message format version: 1 or 2.
    #[must_use]
    pub fn version(&self) -> u8 {
        self.suite.version
    }

    /// The algorithm suite.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Whether the header commits to its data key.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.suite.is_committed()
    }

    /// Whether a signature ends the message; then [`Opener::walk`] comes first.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.suite.is_signed()
    }

    /// Whether the body is frames, not one block.
    #[must_use]
    pub fn is_framed(&self) -> bool {
        self.frame_length.is_some()
    }

    /// Plaintext bytes per frame; 0 for a non-framed body.
    #[must_use]
    pub fn frame_length(&self) -> u32 {
        self.frame_length.unwrap_or(0)
    }

    /// The stored encryption context.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The encrypted data keys, in the order they are stored.
    #[must_use]
    pub fn edks(&self) -> &[Edk] {
        &self.edks
    }

    /// AAD of the data keys' wrapping: the stored pairs and those that are
    /// `required` but not stored, sorted.
    #[must_use]
    pub fn keyring_aad(&self, required: &Context) -> Vec<u8> {
        self.context.with(required).aad()
    }

    pub(super) fn tag(&self) -> &[u8; TAG_LEN] {
        &self.tag
    }

    /// Checks that `data_key` is this message's and that the header is what
    /// its writer sealed. `required` are pairs that the writer authenticated
    /// without storing them (normally none).
    ///
    /// # Errors
    /// [`Error::WrongKey`]: the commitment is another key's, try the next EDK
    /// (version 1 cannot tell: there a wrong key looks like an altered
    /// header). [`Error::Altered`]: the header is not the writer's.
    /// [`Error::Context`]: `required` contradicts a stored pair.
    pub fn verify(&self, data_key: DataKey, required: &Context) -> Result<Opener, Error> {
        self.check(&data_key, required)
    }

    /// [`verify`](Self::verify), which gives the data key back, proven to be
    /// this message's: to be wrapped for another key. `None` for version 1,
    /// whose header proves nothing of the kind.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn prove(
        &self,
        data_key: DataKey,
        required: &Context,
    ) -> Result<(Opener, Option<ProvenKey>), Error> {
        let opener = self.check(&data_key, required)?;
        let proven = self.is_committed().then(|| ProvenKey::of(data_key));
        Ok((opener, proven.flatten()))
    }

    fn check(&self, data_key: &DataKey, required: &Context) -> Result<Opener, Error> {
        let keys = keys::derive(self.suite, &self.message_id, data_key.expose())?;
        if let Some(ours) = keys.commitment {
            let stored = self.commitment.unwrap_or_default();
            if !bool::from(ours.ct_eq(&stored)) {
                return Err(Error::WrongKey);
            }
        }
        let mut aad = self.bytes[..self.body_len].to_vec();
        aad.extend_from_slice(&required.beyond(&self.context)?.aad());
        let mut tag = self.tag;
        keys.body
            .open(self.iv, &aad, &mut tag)
            .map_err(|_| Error::altered("the header does not authenticate"))?;
        // With the tag good, a public key in an unsigned message is a writer's
        // fault, or a signed message's suite that somebody with the data key
        // replaced: the specification has both refused.
        if self.is_signed() != self.context.get(PUBLIC_KEY).is_some() {
            return Err(Error::altered("suite and public key contradict each other"));
        }
        Ok(Opener::new(self.clone(), keys.body))
    }
}

fn parse(input: &mut Cursor<'_>, permit: Permit) -> Result<Header, Stop> {
    let version = input.u8()?;
    match version {
        VERSION_1 if input.u8()? != TYPE_1 => return Err(Error::NotAMessage.into()),
        VERSION_1 | VERSION_2 => {}
        _ => return Err(Error::NotAMessage.into()),
    }
    let id = input.u16()?;
    let suite = Suite::from_id(id)
        .filter(|suite| suite.version == version)
        .ok_or_else(|| Error::Unsupported(format!("suite 0x{id:04x} in version {version}")))?;
    if !suite.is_committed() && !permit.uncommitted {
        return Err(Error::Uncommitted.into());
    }
    let message_id = if version == VERSION_1 {
        MessageId::v1(input.array()?)
    } else {
        MessageId::v2(input.array()?)
    };
    let context = Context::parse(input.counted()?)?;
    let edks = parse_edks(input)?;
    let content_type = input.u8()?;
    if version == VERSION_1 {
        if input.u32()? != 0 {
            return Err(Error::altered("a reserved field is not zero").into());
        }
        if usize::from(input.u8()?) != IV_LEN {
            return Err(Error::altered("the IV length is not the suite's").into());
        }
    }
    let frame_length = frame_length(content_type, input.u32()?)?;
    let commitment = if suite.is_committed() {
        Some(input.array()?)
    } else {
        None
    };
    let body_len = input.position();
    let iv = if version == VERSION_1 {
        input.array()?
    } else {
        [0; IV_LEN]
    };
    let tag = input.array()?;
    Ok(Header {
        suite,
        message_id,
        context,
        edks,
        frame_length,
        commitment,
        iv,
        tag,
        bytes: input.consumed().to_vec(),
        body_len,
    })
}

pub(super) fn parse_edks(input: &mut Cursor<'_>) -> Result<Vec<Edk>, Stop> {
    let count = usize::from(input.u16()?);
    if count == 0 {
        return Err(Error::altered("no encrypted data key").into());
    }
    if count > MAX_EDKS {
        return Err(
            Error::Limit(format!("{count} encrypted data keys, at most {MAX_EDKS}")).into(),
        );
    }
    let mut edks = Vec::with_capacity(count);
    for _ in 0..count {
        let id = input.counted()?;
        let info = input.counted()?;
        let ciphertext = input.counted()?;
        let id = std::str::from_utf8(id)
            .map_err(|_| Error::altered("a key provider's id is not UTF-8 text"))?;
        edks.push(Edk::new(id, info, ciphertext)?);
    }
    Ok(edks)
}

fn frame_length(content_type: u8, length: u32) -> Result<Option<u32>, Error> {
    match (content_type, length) {
        (SINGLE, 0) => Ok(None),
        (FRAMED, 1..=MAX_FRAME) => Ok(Some(length)),
        (FRAMED, 0) | (SINGLE, _) => Err(Error::altered(
            "frame length and content type contradict each other",
        )),
        (FRAMED, _) => Err(Error::Limit(format!(
            "frames of {length} bytes, at most {MAX_FRAME}"
        ))),
        _ => Err(Error::altered("no such content type")),
    }
}
