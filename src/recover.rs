//! Open one object offline: a file as it was downloaded, and a key that no
//! agent has. No store, no catalogue, no configuration.
//!
//! Order of proof, as in `get`: the header (a data key out of an encrypted
//! data key, its commitment, the header's tag), the place, the signature where
//! there is one, the final frame (and with it the length) — and only then the
//! first byte.

mod keys;

pub use crate::token::RecoveryKey;
pub use keys::{Key, KeyError, read_private_key};

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use zeroize::Zeroize as _;

use crate::api::{self, ErrorKind};
use crate::binding::{self, CONTEXT_BUCKET, CONTEXT_CREATED, CONTEXT_KEY};
use crate::fault::message_error;
use crate::message::{
    self, Context, Edk, Header, Layout, MAX_SLOT, Opener, Parsed, Permit, Slot, limits::MAX_HEADER,
    limits::MAX_SIGNATURE, limits::MAX_SINGLE,
};
use crate::store::Place;

/// Bytes read at once in the first pass over a signed message.
const WALK: usize = 1 << 20;
/// Bytes of a non-framed body beyond its text: IV, length, tag, and the
/// signature with its length.
const SINGLE_EXTRA: usize = 12 + 8 + 16 + 2 + MAX_SIGNATURE;

/// Why an object was not recovered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not one that the object's data key was wrapped for.
    #[error("{detail}")]
    WrongKey {
        /// What failed and why.
        detail: String,
        /// What may help.
        hint: String,
    },
    /// The object is not what it should be, by the table of errors.
    #[error("{0}")]
    Object(#[from] api::Error),
    /// The key itself cannot be used now: its token is away, say.
    #[error("{0}")]
    Key(#[from] KeyError),
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<message::Error> for Error {
    fn from(error: message::Error) -> Self {
        Self::Object(message_error(&error))
    }
}

/// A downloaded object whose header was read; nothing of it is verified.
pub struct Object {
    file: File,
    len: u64,
    header: Header,
    /// Out of a keyslot.
    further: Vec<Edk>,
}

/// What is proved of an object, once it is unlocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The name in the encrypted data key that was used.
    pub wrapping_key: String,
    /// Whether whoever wrote the object had the use of a secret key. Not with
    /// RSA: anybody with the public half can write (SECURITY.md 21).
    pub origin_proven: bool,
    /// Whether the header commits to its data key.
    pub committed: bool,
    /// The message's id.
    pub message_id: String,
    /// The place that it was written for, if it is bound to one.
    pub place: Option<(String, String)>,
    /// When, by its writer: Unix milliseconds.
    pub created: Option<u64>,
    /// The encryption context, sorted.
    pub context: Vec<(String, String)>,
    /// Plaintext, in bytes.
    pub length: u64,
}

/// An object whose length and header are proved. Its frames are verified as
/// they are read.
pub struct Unlocked {
    file: File,
    opener: Opener,
    facts: Facts,
    body: Body,
}

enum Body {
    /// Frames from `next` on.
    Frames { layout: Layout, next: u32 },
    /// A non-framed body, verified.
    Single(Option<Bytes>),
}

impl Object {
    /// Reads a file's header.
    ///
    /// # Errors
    /// There is no such file, it is no message, or one that is read only where
    /// it is asked for (`permit`).
    pub fn open(path: &Path, permit: Permit) -> Result<Self, Error> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("not a regular file").into());
        }
        let len = meta.len();
        let mut head = vec![0; MAX_HEADER.min(usize::try_from(len).unwrap_or(MAX_HEADER))];
        file.read_exact_at(&mut head, 0)?;
        let header = match Header::parse(&head, permit)? {
            Parsed::Header(header) => *header,
            Parsed::NeedMore => {
                return Err(message::Error::Truncated("it ends in its header".to_owned()).into());
            }
        };
        Ok(Self {
            file,
            len,
            header,
            further: Vec::new(),
        })
    }

    /// Takes a downloaded keyslot, whose encrypted data keys are tried after
    /// the object's own. It is not believed: what it opens to must meet the
    /// header's commitment.
    ///
    /// # Errors
    /// There is no such file, or it is no keyslot of this message.
    pub fn add_keyslot(&mut self, path: &Path) -> Result<(), Error> {
        let file = File::open(path)?;
        let mut bytes = Vec::new();
        file.take(MAX_SLOT as u64 + 1).read_to_end(&mut bytes)?;
        let slot = Slot::parse(&bytes)?;
        if slot.message_id() != self.header.message_id() {
            let detail = format!(
                "the keyslot is message {}'s, not {}'s",
                slot.message_id(),
                self.header.message_id()
            );
            return Err(api::Error::new(ErrorKind::Elsewhere, detail)
                .hint("fetch the keyslot that is named like the object's message id")
                .into());
        }
        self.further.extend_from_slice(slot.edks());
        Ok(())
    }

    /// Opens the header with `key`, holds its context against the `expected`
    /// bucket and key, and
    /// proves the object's length.
    ///
    /// # Errors
    /// See [`Error`]; nothing was released.
    pub fn unlock(self, key: &mut Key, expected: Option<(&str, &str)>) -> Result<Unlocked, Error> {
        let edks = self.header.edks().iter().chain(&self.further);
        let (opener, edk) = open_header(&self.header, edks.collect(), key)?;
        let facts = facts(&self.header, &edk, key);
        if let Some((bucket, name)) = expected {
            let place = Place::new(bucket, name);
            binding::check(self.header.context(), &place, false).map_err(|error| {
                let other = error.kind == ErrorKind::Elsewhere;
                match other {
                    true => error.hint("it is another object than you asked for: fetch the right one, or correct --expect"),
                    false => error.hint("leave out --expect if you trust where it came from"),
                }
            })?;
        }
        let Self {
            file, len, header, ..
        } = self;
        let (body, length) = if !header.is_framed() {
            let text = open_single(&file, len, &opener)?;
            let length = text.len() as u64;
            (Body::Single(Some(text)), length)
        } else {
            let layout = if header.is_signed() {
                walk(&file, &opener)?
            } else {
                opener.layout(len)?
            };
            // The length is true only if the final frame is where it says.
            drop(open_frame(&file, &opener, &layout, layout.final_frame())?);
            (Body::Frames { layout, next: 1 }, layout.plaintext_len())
        };
        Ok(Unlocked {
            file,
            opener,
            facts: Facts { length, ..facts },
            body,
        })
    }
}

impl Unlocked {
    /// What is proved of it.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The next verified bytes, or `None` at the end. Nothing comes after an
    /// error.
    ///
    /// # Errors
    /// A frame is not authentic, or the file cannot be read.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.body {
            Body::Single(text) => Ok(text.take()),
            Body::Frames { layout, next } => {
                if *next > layout.final_frame() || *next == 0 {
                    return Ok(None);
                }
                let seq = *next;
                // 0 after the last of them, and after a failure.
                *next = 0;
                let text = open_frame(&self.file, &self.opener, layout, seq)?;
                *next = seq.checked_add(1).unwrap_or(0);
                Ok(Some(text))
            }
        }
    }
}

/// Finds the encrypted data key that `key` opens, and verifies the header.
fn open_header(header: &Header, edks: Vec<&Edk>, key: &mut Key) -> Result<(Opener, Edk), Error> {
    let none = Context::new();
    let aad = header.keyring_aad(&none);
    let mut misfit = false;
    for edk in &edks {
        let Some(data_key) = key.open(edk, &aad)? else {
            continue;
        };
        match header.verify(data_key, &none) {
            Ok(opener) => return Ok((opener, (*edk).clone())),
            // Somebody else's; another of them may fit (SECURITY.md 4).
            Err(message::Error::WrongKey) => misfit = true,
            Err(error) => return Err(error.into()),
        }
    }
    if misfit {
        let error = message::Error::Altered(
            "the key opens an encrypted data key in it, which is not this message's".to_owned(),
        );
        return Err(error.into());
    }
    let wanted: Vec<String> = edks.iter().map(|edk| describe(edk)).collect();
    let fitting = edks.iter().any(|edk| key.is_for(edk));
    Err(Error::WrongKey {
        detail: match fitting {
            true => format!("{} does not open this object", key.kind()),
            false => format!(
                "{} cannot open this object: it was not written for one",
                key.kind()
            ),
        },
        hint: format!(
            "its data key is wrapped for {}; an object whose place or context was altered is refused by an AES key in the same way",
            wanted.join(", ")
        ),
    })
}

/// An encrypted data key in words.
fn describe(edk: &Edk) -> String {
    let provider = edk.provider_id();
    let (kind, name) = match (
        edk.raw_aes_parts_in(provider),
        edk.raw_rsa_parts_in(provider),
    ) {
        (Some(aes), _) => ("AES key", aes.key_name.to_owned()),
        (None, Some(rsa)) => ("RSA key", rsa.key_name.to_owned()),
        (None, None) => ("a key of", provider.to_owned()),
    };
    format!("{kind} {name:?}")
}

fn facts(header: &Header, edk: &Edk, key: &Key) -> Facts {
    let provider = edk.provider_id();
    let aes = edk.raw_aes_parts_in(provider).map(|parts| parts.key_name);
    let rsa = edk.raw_rsa_parts_in(provider).map(|parts| parts.key_name);
    let context = header.context();
    let place = context.get(CONTEXT_BUCKET).zip(context.get(CONTEXT_KEY));
    Facts {
        wrapping_key: aes.or(rsa).unwrap_or_default().to_owned(),
        origin_proven: key.is_secret_to_writers(edk),
        committed: header.is_committed(),
        message_id: header.message_id().to_string(),
        place: place.map(|(bucket, key)| (bucket.to_owned(), key.to_owned())),
        created: context.get(CONTEXT_CREATED).and_then(|ms| ms.parse().ok()),
        context: context
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        length: 0,
    }
}

/// Reads and verifies one frame.
fn open_frame(file: &File, opener: &Opener, layout: &Layout, seq: u32) -> Result<Bytes, Error> {
    let span = layout.frame_span(seq);
    // At most one frame of 16 MiB, by the header's limits.
    let len = usize::try_from(span.end - span.start).map_err(io::Error::other)?;
    let mut frame = vec![0; len];
    read_at(file, &mut frame, span.start)?;
    let text = opener.open_frame(layout, seq, &mut frame)?;
    Ok(Bytes::from(frame).slice(text))
}

fn open_single(file: &File, len: u64, opener: &Opener) -> Result<Bytes, Error> {
    let start = opener.header().len() as u64;
    let body = len.saturating_sub(start);
    let body = usize::try_from(body)
        .ok()
        .filter(|body| *body <= MAX_SINGLE + SINGLE_EXTRA)
        .ok_or_else(|| {
            message::Error::Limit(format!("a non-framed body of more than {MAX_SINGLE} bytes"))
        })?;
    let mut bytes = vec![0; body];
    read_at(file, &mut bytes, start)?;
    let text = opener.open_single(&mut bytes)?;
    Ok(Bytes::from(bytes).slice(text))
}

/// The first pass over a signed message: nothing of it leaves before its
/// signature is verified.
fn walk(file: &File, opener: &Opener) -> Result<Layout, Error> {
    let mut walker = opener.walk()?;
    let mut at = opener.header().len() as u64;
    let mut piece = vec![0; WALK];
    loop {
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            piece.zeroize();
            return Ok(walker.finish()?.layout());
        }
        walker.push(&piece[..read])?;
        at += read as u64;
    }
}

/// A file that became shorter while it is read is a truncated object.
fn read_at(file: &File, out: &mut [u8], at: u64) -> Result<(), Error> {
    file.read_exact_at(out, at).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return message::Error::Truncated("the file ends early".to_owned()).into();
        }
        error.into()
    })
}
