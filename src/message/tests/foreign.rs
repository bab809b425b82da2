//! Messages that we read and do not write: signed ones and single blocks.
//! The writer here is for tests alone; tests/vectors.rs has other writers'.

use data_encoding::BASE64;
use p384::ecdsa::SigningKey;
use p384::ecdsa::signature::hazmat::PrehashSigner as _;

use crate::crypto::digest::{SHA384, digest};

use super::super::frame::{self, Kind};
use super::super::keys::derive;
use super::*;

const KEY: [u8; 32] = [0x11; 32];
/// Frame length of the signed messages: foreign frames may be short.
const SHORT: u8 = 8;

fn signing_key() -> SigningKey {
    SigningKey::from_slice(&[0x22; 48]).unwrap()
}

/// A 0478 or 0578 message with any content type and public key.
fn write(suite: u16, public: Option<&str>, frames: Option<&[&[u8]]>, block: &[u8]) -> Sample {
    let id = MessageId::v2([5; 32]);
    let suite = Suite::from_id(suite).unwrap();
    let keys = derive(suite, &id, &KEY).unwrap();
    let mut message = vec![2];
    message.extend(suite.id.to_be_bytes());
    message.extend(id.as_bytes());
    let aad = public.map_or_else(Vec::new, |point| {
        let name = b"aws-crypto-public-key";
        let len = |text: &[u8]| u16::try_from(text.len()).unwrap().to_be_bytes();
        let point = point.as_bytes();
        [&[0, 1][..], &len(name), name, &len(point), point].concat()
    });
    message.extend(u16::try_from(aad.len()).unwrap().to_be_bytes());
    message.extend(aad);
    message.extend([0, 1, 0, 1, b'p', 0, 1, b'i', 0, 1, b'c']);
    match frames {
        Some(_) => message.extend([2, 0, 0, 0, SHORT]),
        None => message.extend([1, 0, 0, 0, 0]),
    }
    message.extend(keys.commitment.unwrap());
    let tag = keys.body.seal([0; 12], &message, &mut []).unwrap();
    message.extend(tag);
    let header_len = message.len();
    for (i, text) in frames.unwrap_or_default().iter().enumerate() {
        let last = i + 1 == frames.unwrap_or_default().len();
        let kind = if last { Kind::Final } else { Kind::Regular };
        let mut bytes = [&vec![0; kind.head_len()], *text, &[0; 16]].concat();
        let seq = u32::try_from(i + 1).unwrap();
        frame::seal(&keys.body, &id, kind, seq, &mut bytes).unwrap();
        message.extend(bytes);
    }
    if frames.is_none() {
        let len = (block.len() as u64).to_be_bytes();
        let string = b"AWSKMSEncryptionClient Single Block";
        let aad = [id.as_bytes(), string, &1_u32.to_be_bytes(), &len].concat();
        let mut text = block.to_vec();
        let tag = keys.body.seal(frame::iv(1), &aad, &mut text).unwrap();
        message.extend([&frame::iv(1)[..], &len, &text, &tag].concat());
    }
    if suite.is_signed() {
        let hash = digest(&SHA384, &message);
        let signature: p384::ecdsa::Signature = signing_key().sign_prehash(hash.as_ref()).unwrap();
        let der = signature.to_der();
        message.extend(u16::try_from(der.as_bytes().len()).unwrap().to_be_bytes());
        message.extend(der.as_bytes());
    }
    Sample {
        message,
        key: KEY,
        header_len,
    }
}

fn public_key() -> String {
    BASE64.encode(signing_key().verifying_key().to_sec1_point(true).as_bytes())
}

/// A signed message of these frames.
pub(super) fn signed(frames: &[&[u8]]) -> Sample {
    write(0x0578, Some(&public_key()), Some(frames), &[])
}

fn walk(message: &[u8], chunk: usize) -> Result<Vec<u8>, Error> {
    let opener = opener(message, &KEY)?;
    let body = &message[opener.header().len()..];
    let mut walker = opener.walk()?;
    for piece in body.chunks(chunk) {
        walker.push(piece)?;
    }
    let layout = walker.finish()?.layout();
    let mut plaintext = Vec::new();
    for seq in 1..=layout.frames() {
        plaintext.extend(open_frame(&opener, &layout, seq, message)?);
    }
    Ok(plaintext)
}

#[test]
fn a_signed_message_opens_after_its_walk_in_pieces_of_any_size() {
    for frames in [
        &[&b"12345678"[..], b"abcdefgh", b"xyz"][..],
        &[b"12345678", b"abcdefgh"],
        &[b"12345678", b""],
        &[b""],
    ] {
        let sample = signed(frames);
        for chunk in [1, 2, 3, 7, 39, 1000] {
            assert_eq!(walk(&sample.message, chunk).unwrap(), frames.concat());
        }
    }
}

#[test]
fn rule_03_a_signed_message_gives_nothing_before_its_signature() {
    let sample = signed(&[b"12345678", b"xyz"]);
    let opener = opener(&sample.message, &KEY).unwrap();
    assert!(matches!(
        opener.layout(sample.message.len() as u64),
        Err(Error::Misuse(_))
    ));
    // Nor with the layout of an unsigned message.
    let unsigned = seal(b"x", End::FullFrame);
    let other = super::opener(&unsigned.message, &unsigned.key).unwrap();
    let layout = other.layout(unsigned.message.len() as u64).unwrap();
    let mut frame = vec![1; 41];
    assert!(matches!(
        opener.open_frame(&layout, 1, &mut frame),
        Err(Error::Misuse(_))
    ));
    // Nor with the right geometry, as long as no signature vouches for it.
    let unproved = Layout::of_object(opener.header(), sample.header_len as u64 + 83).unwrap();
    let mut frame = sample.message[place(&unproved, 1)].to_vec();
    assert!(matches!(
        opener.open_frame(&unproved, 1, &mut frame),
        Err(Error::Misuse(_))
    ));
    // Everything there but the last byte.
    let body = &sample.message[sample.header_len..];
    let mut walker = opener.walk().unwrap();
    walker.push(&body[..body.len() - 1]).unwrap();
    assert!(matches!(walker.finish(), Err(Error::Truncated(_))));
}

#[test]
fn no_flipped_bit_truncation_or_surplus_of_a_signed_message_passes() {
    let sample = signed(&[b"12345678", b"abcdefgh", b"xyz"]);
    for at in 0..sample.message.len() {
        for bit in 0..8 {
            let mut message = sample.message.clone();
            message[at] ^= 1 << bit;
            assert!(walk(&message, 64).is_err(), "bit {bit} of byte {at}");
        }
        assert!(walk(&sample.message[..at], 64).is_err(), "{at} bytes");
    }
    let longer = [&sample.message[..], &[0]].concat();
    assert!(matches!(walk(&longer, 64), Err(Error::Altered(_))));
    assert!(matches!(walk(&longer, 1), Err(Error::Altered(_))));
}

#[test]
fn a_failed_walk_stays_failed() {
    let sample = signed(&[b"12345678", b"xyz"]);
    let opener = opener(&sample.message, &KEY).unwrap();
    let body = &sample.message[sample.header_len..];
    let mut altered = body.to_vec();
    altered[20] ^= 1;
    let mut walker = opener.walk().unwrap();
    assert!(walker.push(&altered).is_err());
    assert!(matches!(walker.push(body), Err(Error::Misuse(_))));
    assert!(walker.finish().is_err());
}

#[test]
fn suite_and_public_key_must_agree() {
    let stray = write(0x0478, Some(&public_key()), Some(&[b"x"]), &[]);
    assert!(matches!(
        opener(&stray.message, &KEY),
        Err(Error::Altered(_))
    ));
    let keyless = write(0x0578, None, Some(&[b"x"]), &[]);
    assert!(matches!(
        opener(&keyless.message, &KEY),
        Err(Error::Altered(_))
    ));
    for nonsense in ["AAAA", "no base64"] {
        let nonsense = write(0x0578, Some(nonsense), Some(&[b"x"]), &[]);
        let opener = opener(&nonsense.message, &KEY).unwrap();
        let walked = opener.walk().and_then(|mut walker| {
            walker.push(&nonsense.message[nonsense.header_len..])?;
            walker.finish()
        });
        assert!(matches!(walked, Err(Error::Altered(_))));
    }
}

#[test]
fn a_block_opens_whole_or_not_at_all() {
    for (suite, public) in [(0x0478, None), (0x0578, Some(public_key()))] {
        for text in [&b""[..], b"one block of text"] {
            let sample = write(suite, public.as_deref(), None, text);
            let open = |message: &[u8]| {
                let opener = opener(message, &KEY)?;
                let mut body = message[sample.header_len..].to_vec();
                let place = opener.open_single(&mut body);
                if place.is_err() {
                    assert!(body.iter().all(|&byte| byte == 0), "not wiped");
                }
                place.map(|place| body[place].to_vec())
            };
            assert_eq!(open(&sample.message).unwrap(), text);
            for at in sample.header_len..sample.message.len() {
                let mut message = sample.message.clone();
                message[at] ^= 0x10;
                assert!(open(&message).is_err(), "byte {at}");
                assert!(open(&sample.message[..at]).is_err(), "{at} bytes");
            }
            assert!(open(&[&sample.message[..], &[0]].concat()).is_err());
        }
    }
}

#[test]
fn rule_03_a_block_of_more_than_16_mib_is_refused_by_its_length_field() {
    let sample = write(0x0478, None, None, b"text");
    let opener = opener(&sample.message, &KEY).unwrap();
    for len in [limits::MAX_SINGLE as u64 + 1, u64::MAX] {
        let mut body = [&[0; 12][..], &len.to_be_bytes(), &[0; 64]].concat();
        assert!(matches!(
            opener.open_single(&mut body),
            Err(Error::Limit(_))
        ));
    }
    assert!(matches!(opener.walk(), Err(Error::Misuse(_))));
    assert!(matches!(opener.layout(1000), Err(Error::Misuse(_))));
}
