//! Behaviour of whole messages: what is sealed opens, what is touched does not.
#![allow(clippy::unwrap_used)]

mod foreign;
mod garbage;
mod round_trip;
mod rules;
mod tamper;

use super::*;
use crate::secret::Secret32;

/// Frame length of most tests: the shortest.
const F: usize = limits::MIN_FRAME as usize;

/// A small deterministic generator (xorshift64*): the same bytes in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_be_bytes()[0]).collect()
    }
}

fn secret(bytes: &[u8]) -> Secret32 {
    Secret32::from_slice(bytes).unwrap()
}

fn fresh() -> FreshKey {
    DataKey::fresh(&secret(&[0x5a; 32])).unwrap()
}

fn context() -> Context {
    let mut context = Context::new();
    for (key, value) in [
        ("strongroom:key", "db/2026.dump"),
        ("strongroom:created", "1700000000000"),
        ("strongroom:bucket", "acme-archive"),
        ("owner", "Zoë"),
    ] {
        context.insert(key, value).unwrap();
    }
    context
}

fn draft() -> Draft {
    let mut draft = Draft::new(fresh(), context(), limits::MIN_FRAME).unwrap();
    let edk = Edk::raw_aes("archive-2026", &[3; 12], &[4; 48]).unwrap();
    draft.add_edk(edk).unwrap();
    draft
}

/// How a message whose length is a multiple of the frame length may end.
#[derive(Clone, Copy, PartialEq)]
enum End {
    FullFrame,
    EmptyFrame,
}

/// A sealed message and the key that opens it.
struct Sample {
    message: Vec<u8>,
    key: [u8; 32],
    header_len: usize,
}

/// Seals `plaintext` the way the pipeline does.
fn seal(plaintext: &[u8], end: End) -> Sample {
    let draft = draft();
    let key = *draft.data_key().expose();
    let (header, mut sealer) = draft.seal().unwrap();
    let mut message = header.to_vec();
    let mut rest = plaintext;
    while rest.len() > F || (rest.len() == F && end == End::EmptyFrame) {
        let (text, more) = rest.split_at(F);
        let mut frame = [&[0; Sealer::FRAME_HEAD], text, &[0; Sealer::TAG_LEN]].concat();
        sealer.seal_frame(&mut frame).unwrap();
        message.extend(frame);
        rest = more;
    }
    let mut frame = [&[0; Sealer::FINAL_HEAD], rest, &[0; Sealer::TAG_LEN]].concat();
    let finished = sealer.seal_final(&mut frame).unwrap();
    assert_eq!(finished.plaintext_len, plaintext.len() as u64);
    message.extend(frame);
    Sample {
        message,
        key,
        header_len: header.len(),
    }
}

fn parse(message: &[u8]) -> Result<Box<Header>, Error> {
    match Header::parse(message, Permit::default())? {
        Parsed::Header(header) => Ok(header),
        Parsed::NeedMore => Err(Error::Truncated("in the header".to_owned())),
    }
}

fn opener(message: &[u8], key: &[u8; 32]) -> Result<Opener, Error> {
    let header = parse(message)?;
    header.verify(DataKey::unwrapped(secret(key)), &Context::new())
}

/// Opens a framed, unsigned message: the final frame first, then all.
fn open(message: &[u8], key: &[u8; 32]) -> Result<Vec<u8>, Error> {
    let opener = opener(message, key)?;
    let layout = opener.layout(message.len() as u64)?;
    open_frame(&opener, &layout, layout.final_frame(), message)?;
    let mut plaintext = Vec::new();
    for seq in 1..=layout.frames() {
        plaintext.extend(open_frame(&opener, &layout, seq, message)?);
    }
    assert_eq!(plaintext.len() as u64, layout.plaintext_len());
    Ok(plaintext)
}

fn open_frame(
    opener: &Opener,
    layout: &Layout,
    seq: u32,
    message: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut frame = message[place(layout, seq)].to_vec();
    let opened = opener.open_frame(layout, seq, &mut frame);
    if opened.is_err() {
        assert!(frame.iter().all(|&byte| byte == 0), "not wiped");
    }
    opened.map(|text| frame[text].to_vec())
}

/// The place of a frame in the message, as indices.
fn place(layout: &Layout, seq: u32) -> std::ops::Range<usize> {
    let span = layout.frame_span(seq);
    usize::try_from(span.start).unwrap()..usize::try_from(span.end).unwrap()
}
