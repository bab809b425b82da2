//! Bytes that nobody meant as a message: no panic, no long work, no surprise.

use std::time::{Duration, Instant};

use super::*;

const ALL: Permit = Permit { uncommitted: true };

#[test]
fn a_header_arrives_in_pieces() {
    let sample = seal(b"some text", End::FullFrame);
    for len in 0..sample.header_len {
        assert!(
            matches!(
                Header::parse(&sample.message[..len], Permit::default()),
                Ok(Parsed::NeedMore)
            ),
            "{len}"
        );
    }
    assert_eq!(parse(&sample.message).unwrap().len(), sample.header_len);
}

#[test]
fn other_files_are_told_at_their_first_bytes() {
    for bytes in [&b"PK\x03\x04"[..], b"\x89PNG", b"\0", b"\x01\x00", b"\x03"] {
        assert!(matches!(Header::parse(bytes, ALL), Err(Error::NotAMessage)));
    }
    assert!(matches!(
        Header::parse(b"\x02\x00\x78", ALL),
        Err(Error::Unsupported(_))
    ));
    assert!(matches!(
        Header::parse(b"\x01\x80\x04\x78", ALL),
        Err(Error::Unsupported(_))
    ));
    assert!(matches!(
        Header::parse(b"\x01\x80\x03\x78", Permit::default()),
        Err(Error::Uncommitted)
    ));
}

#[test]
fn random_bytes_neither_parse_nor_panic() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let began = Instant::now();
    for round in 0..30_000 {
        let len = random.below(600);
        let mut bytes = random.bytes(len);
        // Most get past the first fields, where the lengths are.
        let start: &[u8] = match round % 3 {
            0 => &[2, 0x04, 0x78],
            1 => &[1, 0x80, 0x03, 0x78],
            _ => &[],
        };
        bytes.splice(..0, start.iter().copied());
        if let Ok(Parsed::Header(header)) = Header::parse(&bytes, ALL) {
            let key = DataKey::unwrapped(secret(&[0; 32]));
            assert!(header.verify(key, &Context::new()).is_err());
        }
    }
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn random_changes_to_a_good_message_never_open() {
    let sample = seal(&vec![7; F + 9], End::FullFrame);
    let mut random = Random(99);
    for _ in 0..3_000 {
        let mut message = sample.message.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(message.len());
            match random.below(4) {
                0 => message[at] = message[at].wrapping_add(1),
                1 => message.insert(at, 0xff),
                2 => drop(message.remove(at)),
                _ => message.truncate(at + 1),
            }
        }
        if message != sample.message {
            assert!(open(&message, &sample.key).is_err());
        }
    }
}

/// The most expensive header that fits costs no more than a pass over it.
#[test]
fn a_header_of_tiny_pairs_is_read_in_bounded_time() {
    let mut bytes = [&[2, 0x04, 0x78][..], &[9; 32]].concat();
    // Each pair: key length, a key of four digits, value length 0.
    let count = 8_000_u16;
    bytes.extend((2 + 8 * count).to_be_bytes());
    bytes.extend(count.to_be_bytes());
    for pair in 0..count {
        bytes.extend([&[0, 4], format!("{pair:04}").as_bytes(), &[0, 0]].concat());
    }
    let began = Instant::now();
    assert!(matches!(
        Header::parse(&bytes, Permit::default()),
        Ok(Parsed::NeedMore)
    ));
    assert!(began.elapsed() < Duration::from_secs(1));
}
