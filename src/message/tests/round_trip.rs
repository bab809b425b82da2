//! What is sealed opens, byte for byte, at every size that is special.

use super::*;

#[test]
fn every_special_size_comes_back() {
    let mut random = Random(1);
    for len in [0, 1, F - 1, F, F + 1, 2 * F, 3 * F + 17] {
        for end in [End::FullFrame, End::EmptyFrame] {
            let plaintext = random.bytes(len);
            let sample = seal(&plaintext, end);
            assert_eq!(sample.message[..3], [2, 0x04, 0x78]);
            assert_eq!(open(&sample.message, &sample.key).unwrap(), plaintext);
        }
    }
}

#[test]
fn a_multiple_ends_in_a_full_or_an_empty_frame() {
    let plaintext = Random(2).bytes(2 * F);
    let full = seal(&plaintext, End::FullFrame);
    let empty = seal(&plaintext, End::EmptyFrame);
    for (sample, frames) in [(&full, 2), (&empty, 3)] {
        let opener = opener(&sample.message, &sample.key).unwrap();
        let layout = opener.layout(sample.message.len() as u64).unwrap();
        assert_eq!(layout.frames(), frames);
        assert_eq!(layout.plaintext_len(), plaintext.len() as u64);
    }
    assert_eq!(empty.message.len() - full.message.len(), 32);
}

#[test]
fn the_header_gives_back_what_was_put_in() {
    let draft = draft();
    let (id, aad) = (draft.message_id(), draft.aad());
    let (bytes, _) = draft.seal().unwrap();
    let header = parse(&bytes).unwrap();
    assert_eq!(header.message_id(), id);
    assert_eq!(header.context(), &context());
    assert_eq!(header.keyring_aad(&Context::new()), aad);
    assert_eq!(header.suite().to_string(), "0x0478");
    assert_eq!(header.version(), 2);
    assert_eq!(header.frame_length(), limits::MIN_FRAME);
    assert!(header.is_committed() && header.is_framed() && !header.is_signed());
    assert_eq!((header.len(), header.bytes()), (bytes.len(), &bytes[..]));
    let parts = header.edks()[0].raw_aes_parts().unwrap();
    assert_eq!((parts.key_name, parts.iv), ("archive-2026", &[3; 12]));
}

#[test]
fn spans_tile_object_and_plaintext() {
    for (len, end) in [
        (0, End::FullFrame),
        (2 * F, End::FullFrame),
        (2 * F, End::EmptyFrame),
        (3 * F + 17, End::FullFrame),
    ] {
        let sample = seal(&vec![0; len], end);
        let opener = opener(&sample.message, &sample.key).unwrap();
        let layout = opener.layout(sample.message.len() as u64).unwrap();
        let (mut object, mut text) = (sample.header_len as u64, 0);
        for seq in 1..=layout.frames() {
            let (span, plain) = (layout.frame_span(seq), layout.plaintext_span(seq));
            assert_eq!((span.start, plain.start), (object, text));
            (object, text) = (span.end, plain.end);
        }
        assert_eq!(object, sample.message.len() as u64);
        assert_eq!(text, len as u64);
        for seq in [0, layout.frames() + 1, u32::MAX] {
            assert!(layout.frame_span(seq).is_empty());
            assert!(layout.plaintext_span(seq).is_empty());
        }
    }
}

#[test]
fn a_range_needs_exactly_the_frames_that_hold_it() {
    let sample = seal(&vec![0; 3 * F + 17], End::FullFrame);
    let opener = opener(&sample.message, &sample.key).unwrap();
    let layout = opener.layout(sample.message.len() as u64).unwrap();
    let f = F as u64;
    for (range, frames) in [
        (0..1, 1..=1),
        (0..f, 1..=1),
        (0..f + 1, 1..=2),
        (f - 1..f + 1, 1..=2),
        (f..2 * f, 2..=2),
        (3 * f..u64::MAX, 4..=4),
        (0..u64::MAX, 1..=4),
        (3 * f + 16..3 * f + 17, 4..=4),
    ] {
        assert_eq!(layout.frames_covering(range.clone()), frames, "{range:?}");
    }
    for nothing in [0..0, 5..5, 3 * f + 17..u64::MAX, u64::MAX..u64::MAX] {
        assert!(layout.frames_covering(nothing).is_empty());
    }
}

#[test]
fn pairs_that_are_authenticated_but_not_stored_must_be_given() {
    // No writer of ours leaves pairs out: they change the header's AAD, so
    // a message without them must refuse them, and stored ones may be repeated.
    let sample = seal(b"x", End::FullFrame);
    let header = parse(&sample.message).unwrap();
    let verify = |required: &Context| {
        let key = DataKey::unwrapped(secret(&sample.key));
        header.verify(key, required).map(|_| ())
    };
    let pair = |key, value| {
        let mut context = Context::new();
        context.insert(key, value).unwrap();
        context
    };
    verify(&pair("owner", "Zoë")).unwrap();
    assert!(matches!(
        verify(&pair("other", "1")),
        Err(Error::Altered(_))
    ));
    assert!(matches!(
        verify(&pair("owner", "Zoe")),
        Err(Error::Context(_))
    ));
}

#[test]
fn lengths_that_no_message_can_have_are_truncated() {
    let sample = seal(b"", End::FullFrame);
    let opener = opener(&sample.message, &sample.key).unwrap();
    let header = sample.header_len;
    for len in 0..header + 3 * (F + 32) {
        let rest = len.checked_sub(header + 40).map(|room| room % (F + 32));
        let possible = rest.is_some_and(|rest| rest <= F);
        match opener.layout(len as u64) {
            Ok(_) => assert!(possible, "{len}"),
            Err(error) => {
                assert!(!possible, "{len}");
                assert!(matches!(error, Error::Truncated(_)), "{error}");
            }
        }
    }
    // 2^32 - 1 frames are the most.
    let most = (header + 40) as u64 + (u64::from(u32::MAX) - 1) * (F as u64 + 32);
    assert_eq!(opener.layout(most).unwrap().frames(), u32::MAX);
    let over = most + F as u64 + 32;
    assert!(matches!(opener.layout(over), Err(Error::Limit(_))));
    assert!(opener.layout(u64::MAX).is_err());
}
