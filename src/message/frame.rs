//! One frame's bytes: head, IV and AAD, the same for sealing and opening.
//!
//! Specification: data-format/message-body.md, message-body-aad.md.

use super::cipher::{BodyKey, IV_LEN, TAG_LEN};
use super::error::Error;
use super::id::MessageId;

/// Head of a regular frame: sequence number and IV.
pub(super) const FRAME_HEAD: usize = 4 + IV_LEN;
/// Head of the final frame: marker, sequence number, IV and length.
pub(super) const FINAL_HEAD: usize = 4 + 4 + IV_LEN + 4;
/// Head of a non-framed body: IV and length.
pub(super) const SINGLE_HEAD: usize = IV_LEN + 8;
/// What stands where a regular frame has its sequence number.
pub(super) const FINAL_MARK: [u8; 4] = [0xff; 4];
/// Longest AAD: message id, string, sequence number, length.
const MAX_AAD: usize = 32 + 35 + 4 + 8;

/// The three kinds of body content, told apart by their AAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Final,
    Single,
}

impl Kind {
    fn text(self) -> &'static [u8] {
        match self {
            Self::Regular => b"AWSKMSEncryptionClient Frame",
            Self::Final => b"AWSKMSEncryptionClient Final Frame",
            Self::Single => b"AWSKMSEncryptionClient Single Block",
        }
    }

    /// Bytes before the ciphertext.
    pub(super) fn head_len(self) -> usize {
        match self {
            Self::Regular => FRAME_HEAD,
            Self::Final => FINAL_HEAD,
            Self::Single => SINGLE_HEAD,
        }
    }
}

/// The IV of frame `seq`: its number, padded in front. The header of version 2
/// has number 0, which no frame has.
pub(super) fn iv(seq: u32) -> [u8; IV_LEN] {
    let mut iv = [0; IV_LEN];
    iv[IV_LEN - 4..].copy_from_slice(&seq.to_be_bytes());
    iv
}

/// A frame's AAD, on the stack.
struct BodyAad {
    bytes: [u8; MAX_AAD],
    len: usize,
}

impl BodyAad {
    fn new(id: &MessageId, kind: Kind, seq: u32, plaintext_len: usize) -> Self {
        let mut aad = Self {
            bytes: [0; MAX_AAD],
            len: 0,
        };
        aad.push(id.as_bytes());
        aad.push(kind.text());
        aad.push(&seq.to_be_bytes());
        aad.push(&(plaintext_len as u64).to_be_bytes());
        aad
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Seals the frame that fills `frame`: writes its head, encrypts the text
/// behind it in place, writes the tag. The caller has checked that the text
/// is as long as it may be and that `seq` was never sealed before.
pub(super) fn seal(
    key: &BodyKey,
    id: &MessageId,
    kind: Kind,
    seq: u32,
    frame: &mut [u8],
) -> Result<(), Error> {
    let short = Error::Misuse("the buffer is shorter than a frame's head and tag");
    let Some((head, rest)) = frame.split_at_mut_checked(kind.head_len()) else {
        return Err(short);
    };
    let Some((text, tag)) = rest.split_last_chunk_mut::<TAG_LEN>() else {
        return Err(short);
    };
    let aad = BodyAad::new(id, kind, seq, text.len());
    write_head(kind, seq, text.len(), head)?;
    *tag = key
        .seal(iv(seq), aad.as_slice(), text)
        .map_err(|_| Error::Internal("the cipher refused to seal a frame".to_owned()))?;
    Ok(())
}

fn write_head(kind: Kind, seq: u32, text_len: usize, head: &mut [u8]) -> Result<(), Error> {
    let number = seq.to_be_bytes();
    match kind {
        Kind::Regular => {
            head[..4].copy_from_slice(&number);
            head[4..].copy_from_slice(&iv(seq));
        }
        Kind::Final => {
            let len = u32::try_from(text_len)
                .map_err(|_| Error::Misuse("the final frame is longer than its length field"))?;
            head[..4].copy_from_slice(&FINAL_MARK);
            head[4..8].copy_from_slice(&number);
            head[8..20].copy_from_slice(&iv(seq));
            head[20..].copy_from_slice(&len.to_be_bytes());
        }
        Kind::Single => return Err(Error::Misuse("we write framed messages only")),
    }
    Ok(())
}

/// Opens the frame that fills `frame` in place; its head must say exactly
/// `kind`, `seq` and the length that the slice leaves. The plaintext stands
/// between head and tag. On error the content is worthless: wipe it.
///
/// The IV is the stored one. Writers need not derive it from the number (16 of
/// the official vectors have `FF x 8 || seq`), and it needs no comparison: under
/// another IV than the writer's the tag fails.
pub(super) fn open(
    key: &BodyKey,
    id: &MessageId,
    kind: Kind,
    seq: u32,
    frame: &mut [u8],
) -> Result<(), Error> {
    let Some((head, sealed)) = frame.split_at_mut_checked(kind.head_len()) else {
        return Err(Error::Truncated(format!("frame {seq} has no head")));
    };
    let Some(text_len) = sealed.len().checked_sub(TAG_LEN) else {
        return Err(Error::Truncated(format!("frame {seq} has no tag")));
    };
    let stored_iv = check_head(kind, seq, text_len, head)?;
    let aad = BodyAad::new(id, kind, seq, text_len);
    key.open(stored_iv, aad.as_slice(), sealed)
        .map_err(|_| Error::Altered(format!("frame {seq} does not authenticate")))
}

/// Compares a head with what it must say and returns its IV.
fn check_head(kind: Kind, seq: u32, text_len: usize, head: &[u8]) -> Result<[u8; IV_LEN], Error> {
    let altered = |what: &str| Error::Altered(format!("frame {seq}: {what}"));
    let (number, iv, len) = match kind {
        Kind::Regular => (Some(&head[..4]), &head[4..16], None),
        Kind::Final => {
            if head[..4] != FINAL_MARK {
                return Err(altered("it is not marked as final"));
            }
            let len = u32::from_be_bytes(field(&head[20..24])?);
            (Some(&head[4..8]), &head[8..20], Some(u64::from(len)))
        }
        Kind::Single => {
            let len = u64::from_be_bytes(field(&head[12..20])?);
            (None, &head[..12], Some(len))
        }
    };
    if number.is_some_and(|number| number != seq.to_be_bytes()) {
        return Err(altered("another frame stands in its place"));
    }
    if len.is_some_and(|len| len != text_len as u64) {
        return Err(altered("its length does not fit the message"));
    }
    field(iv)
}

/// A fixed-length field out of a slice of just that length.
fn field<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Error> {
    bytes
        .try_into()
        .map_err(|_| Error::Internal("a field of the wrong length".to_owned()))
}
