//! Opening a message's body, once its header is verified.
//!
//! Specification: client-apis/decrypt.md#decrypt-the-message-body.

use std::ops::Range;

use zeroize::Zeroize as _;

use super::cipher::{BodyKey, TAG_LEN};
use super::error::Error;
use super::frame::{self, Kind, SINGLE_HEAD};
use super::header::Header;
use super::layout::Layout;
use super::limits::{MAX_SIGNATURE, MAX_SINGLE};
use super::signature::Verifier;
use super::walker::Walker;

/// Opens the body of a message whose header is verified; made by
/// [`Header::verify`] alone. Frames can be opened in any order and from several
/// threads at once.
///
/// ```
/// fn shared<T: Send + Sync>() {}
/// shared::<strongroom::message::Opener>();
/// ```
pub struct Opener {
    header: Header,
    key: BodyKey,
}

impl Opener {
    pub(super) fn new(header: Header, key: BodyKey) -> Self {
        Self { header, key }
    }

    /// Its parts, for a [`Resealer`](super::Resealer).
    pub(super) fn into_parts(self) -> (Header, BodyKey) {
        (self.header, self.key)
    }

    /// The verified header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the frames of an unsigned message stand in an object of
    /// `object_len` bytes. The length is the store's word until the
    /// [final frame](Layout::final_frame) has been opened.
    ///
    /// # Errors
    /// [`Error::Truncated`] when no message of this header can have that
    /// length; [`Error::Misuse`] for a signed message ([`walk`](Self::walk)
    /// gives its layout) or a non-framed one.
    pub fn layout(&self, object_len: u64) -> Result<Layout, Error> {
        if !self.header.is_framed() {
            return Err(Error::Misuse("a non-framed message has no layout"));
        }
        if self.header.is_signed() {
            return Err(Error::Misuse("a signed message is walked first"));
        }
        Layout::of_object(&self.header, object_len)
    }

    /// Opens frame `seq` in place. `frame` is exactly the bytes of its
    /// [span](Layout::frame_span); the result is the plaintext's place in it.
    /// Number, final marker and length must be what the layout says; the tag
    /// covers all of them and the IV.
    ///
    /// # Errors
    /// [`Error::Altered`] or [`Error::Truncated`], the slice then being wiped;
    /// [`Error::Misuse`] for a layout of another message, a signed message's
    /// that was not walked, or a number without frame.
    pub fn open_frame(
        &self,
        layout: &Layout,
        seq: u32,
        frame: &mut [u8],
    ) -> Result<Range<usize>, Error> {
        let opened = self.try_open_frame(layout, seq, frame);
        if opened.is_err() {
            frame.zeroize();
        }
        opened
    }

    fn try_open_frame(
        &self,
        layout: &Layout,
        seq: u32,
        frame: &mut [u8],
    ) -> Result<Range<usize>, Error> {
        if !layout.serves(&self.header) {
            return Err(Error::Misuse("the layout of another message"));
        }
        let span = layout.frame_span(seq);
        if span.is_empty() {
            return Err(Error::Misuse("the message has no such frame"));
        }
        if frame.len() as u64 != span.end - span.start {
            return Err(Error::Truncated(format!(
                "frame {seq} has {} bytes instead of {}",
                frame.len(),
                span.end - span.start
            )));
        }
        let kind = if seq == layout.final_frame() {
            Kind::Final
        } else {
            Kind::Regular
        };
        self.open_at(kind, seq, frame)
    }

    /// Opens what must be a frame of this kind and number.
    pub(super) fn open_at(
        &self,
        kind: Kind,
        seq: u32,
        frame: &mut [u8],
    ) -> Result<Range<usize>, Error> {
        let id = self.header.message_id();
        frame::open(&self.key, &id, kind, seq, frame)?;
        Ok(kind.head_len()..frame.len() - TAG_LEN)
    }

    /// Opens a non-framed body in place: `body` is everything after the header.
    /// A signature is verified before anything is decrypted. The result is the
    /// plaintext's place in the slice.
    ///
    /// # Errors
    /// [`Error::Limit`] past 16 MiB; [`Error::Altered`] or
    /// [`Error::Truncated`], the slice then being wiped; [`Error::Misuse`] for
    /// a framed message.
    pub fn open_single(&self, body: &mut [u8]) -> Result<Range<usize>, Error> {
        let opened = self.try_open_single(body);
        if opened.is_err() {
            body.zeroize();
        }
        opened
    }

    fn try_open_single(&self, body: &mut [u8]) -> Result<Range<usize>, Error> {
        if self.header.is_framed() {
            return Err(Error::Misuse("a framed message is opened by frames"));
        }
        let Some(head) = body.first_chunk::<SINGLE_HEAD>() else {
            return Err(Error::Truncated("the body has no head".to_owned()));
        };
        let len: [u8; 8] = *head.last_chunk().unwrap_or(&[0xff; 8]);
        let text_len = usize::try_from(u64::from_be_bytes(len))
            .ok()
            .filter(|&len| len <= MAX_SINGLE)
            .ok_or_else(|| {
                Error::Limit(format!("a non-framed body of more than {MAX_SINGLE} bytes"))
            })?;
        let Some((block, footer)) = body.split_at_mut_checked(SINGLE_HEAD + text_len + TAG_LEN)
        else {
            return Err(Error::Truncated("the body ends early".to_owned()));
        };
        match self.verifier()? {
            Some(mut verifier) => {
                verifier.update(block);
                verifier.finish(signature_in(footer)?)?;
            }
            None if !footer.is_empty() => {
                return Err(Error::altered("bytes follow the body"));
            }
            None => {}
        }
        // Its sequence number is 1 by definition (message-body-aad.md).
        self.open_at(Kind::Single, 1, block)
    }

    /// The first pass over a signed, framed message.
    ///
    /// # Errors
    /// [`Error::Misuse`] for any other message; [`Error::Altered`] when the
    /// public key in its context is none.
    pub fn walk(&self) -> Result<Walker<'_>, Error> {
        if !self.header.is_framed() {
            return Err(Error::Misuse("a non-framed message is opened as a whole"));
        }
        match self.verifier()? {
            Some(verifier) => Ok(Walker::new(self, verifier)),
            None => Err(Error::Misuse("an unsigned message needs no walk")),
        }
    }

    /// For signed messages, a verifier that has taken the header already.
    fn verifier(&self) -> Result<Option<Verifier>, Error> {
        let Some(curve) = self.header.suite().curve else {
            return Ok(None);
        };
        let mut verifier = Verifier::new(curve, self.header.context())?;
        verifier.update(self.header.bytes());
        Ok(Some(verifier))
    }
}

/// The signature in a whole footer: `len u16 | DER`, and nothing behind it.
pub(super) fn signature_in(footer: &[u8]) -> Result<&[u8], Error> {
    let Some((len, rest)) = footer.split_first_chunk::<2>() else {
        return Err(Error::Truncated("the footer is missing".to_owned()));
    };
    let len = signature_len(*len)?;
    match rest.len() {
        have if have < len => Err(Error::Truncated("the footer ends early".to_owned())),
        have if have > len => Err(Error::altered("bytes follow the footer")),
        _ => Ok(rest),
    }
}

/// The length field of a footer, checked.
pub(super) fn signature_len(field: [u8; 2]) -> Result<usize, Error> {
    let len = usize::from(u16::from_be_bytes(field));
    if len > MAX_SIGNATURE {
        return Err(Error::Limit(format!(
            "a signature of {len} bytes, at most {MAX_SIGNATURE}"
        )));
    }
    Ok(len)
}
