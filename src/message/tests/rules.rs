//! SECURITY.md, rules 1 to 5, as far as the format can hold them.

use super::*;

#[test]
fn rule_01_one_data_key_one_message_id_one_header() {
    // That a draft seals once, and a data key starts one draft, is a matter of
    // types: the compile_fail examples at Draft, FreshKey and DataKey.
    let (one, two) = (draft(), draft());
    assert_ne!(one.message_id(), two.message_id());
    assert_ne!(one.data_key().expose(), two.data_key().expose());
    let (one, _) = one.seal().unwrap();
    let (two, _) = two.seal().unwrap();
    assert_ne!(one[one.len() - 16..], two[two.len() - 16..]);
}

#[test]
fn rule_02_a_nonce_is_used_once_and_in_order() {
    let (_, mut sealer) = draft().seal().unwrap();
    let mut ivs = Vec::new();
    for seq in 1..=5_u32 {
        // Refused calls neither seal nor count.
        for len in [0, 31, F + 31, F + 33] {
            let mut wrong = vec![7; len];
            assert!(sealer.seal_frame(&mut wrong).is_err());
            assert!(wrong.iter().all(|&byte| byte == 7));
        }
        let mut frame = vec![0; Sealer::FRAME_HEAD + F + Sealer::TAG_LEN];
        sealer.seal_frame(&mut frame).unwrap();
        assert_eq!(frame[..4], seq.to_be_bytes());
        ivs.push(frame[4..16].to_vec());
    }
    let mut last = vec![0; Sealer::FINAL_HEAD + Sealer::TAG_LEN];
    let finished = sealer.seal_final(&mut last).unwrap();
    assert_eq!(finished.frames, 6);
    ivs.push(last[8..20].to_vec());
    let mut unique = ivs.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique, ivs);
    // The header's nonce is the zero one.
    assert!(!ivs.contains(&vec![0; 12]));
}

#[test]
fn rule_02_sequence_numbers_never_wrap() {
    let (_, mut sealer) = draft().seal().unwrap();
    let mut frame = vec![0; Sealer::FRAME_HEAD + F + Sealer::TAG_LEN];
    sealer.skip_to(u32::MAX - 2);
    sealer.seal_frame(&mut frame).unwrap();
    assert_eq!(frame[..4], (u32::MAX - 1).to_be_bytes());
    // FFFFFFFF would read as the final mark: left to the final frame.
    assert!(matches!(
        sealer.seal_frame(&mut frame),
        Err(Error::Limit(_))
    ));
    let mut last = vec![0; Sealer::FINAL_HEAD + Sealer::TAG_LEN];
    assert_eq!(sealer.seal_final(&mut last).unwrap().frames, u32::MAX);
}

#[test]
fn rule_03_a_refused_frame_is_wiped() {
    let sample = seal(&vec![0xaa; F + 5], End::FullFrame);
    let opener = opener(&sample.message, &sample.key).unwrap();
    let layout = opener.layout(sample.message.len() as u64).unwrap();
    for seq in 1..=2 {
        let mut frame = sample.message[place(&layout, seq)].to_vec();
        let last = frame.len() - 1;
        frame[last] ^= 1;
        let result = opener.open_frame(&layout, seq, &mut frame);
        assert!(matches!(result, Err(Error::Altered(_))));
        assert!(frame.iter().all(|&byte| byte == 0));
    }
    let mut short = sample.message[place(&layout, 1)][1..].to_vec();
    assert!(matches!(
        opener.open_frame(&layout, 1, &mut short),
        Err(Error::Truncated(_))
    ));
}

#[test]
fn rule_03_a_layout_serves_only_its_own_message() {
    let one = seal(b"one", End::FullFrame);
    let two = seal(b"two", End::FullFrame);
    let opener_one = opener(&one.message, &one.key).unwrap();
    let layout_two = opener(&two.message, &two.key)
        .unwrap()
        .layout(two.message.len() as u64)
        .unwrap();
    let mut frame = one.message[place(&layout_two, 1)].to_vec();
    assert!(matches!(
        opener_one.open_frame(&layout_two, 1, &mut frame),
        Err(Error::Misuse(_))
    ));
}

#[test]
fn rule_03_a_false_length_fails_at_the_final_frame() {
    let sample = seal(&vec![1; 3 * F], End::FullFrame);
    let opener = opener(&sample.message, &sample.key).unwrap();
    let whole = sample.message.len() as u64;
    for length in [whole - 1, whole - F as u64 - 32, whole - 40, whole - 8 - 32] {
        let Ok(layout) = opener.layout(length) else {
            continue;
        };
        let place = place(&layout, layout.final_frame());
        let mut frame = sample.message[place].to_vec();
        assert!(
            opener
                .open_frame(&layout, layout.final_frame(), &mut frame)
                .is_err()
        );
    }
}

#[test]
fn rule_04_limits_of_what_we_write() {
    for bad in [0, 1, limits::MIN_FRAME - 1, limits::MAX_FRAME + 1, u32::MAX] {
        assert!(matches!(
            Draft::new(fresh(), context(), bad),
            Err(Error::Limit(_))
        ));
    }
    let edk = |len| Edk::raw_rsa("k", &vec![1; len]).unwrap();

    let bare = Draft::new(fresh(), context(), limits::MAX_FRAME).unwrap();
    assert!(matches!(bare.seal(), Err(Error::Misuse(_))));

    let mut many = Draft::new(fresh(), context(), limits::MIN_FRAME).unwrap();
    for _ in 0..limits::MAX_EDKS {
        many.add_edk(edk(48)).unwrap();
    }
    assert!(matches!(many.add_edk(edk(48)), Err(Error::Limit(_))));
    let (bytes, _) = many.seal().unwrap();
    assert_eq!(parse(&bytes).unwrap().edks().len(), limits::MAX_EDKS);

    let mut large = Draft::new(fresh(), context(), limits::MIN_FRAME).unwrap();
    for _ in 0..9 {
        large.add_edk(edk(8000)).unwrap();
    }
    assert!(matches!(large.seal(), Err(Error::Limit(_))));
}

/// Each limit is refused from the length alone, before its bytes are there.
#[test]
fn rule_04_limits_of_what_we_read() {
    let start = [&[2, 0x04, 0x78][..], &[9; 32]].concat();
    let with = |parts: &[&[u8]]| [&[&start[..]], parts].concat().concat();
    let counted = |len: usize| {
        let field = u16::try_from(len).unwrap().to_be_bytes();
        [&field[..], &vec![b'x'; len]].concat()
    };
    let one_edk = [counted(1), counted(1), counted(1)].concat();
    let big_edk = [counted(1), counted(1), counted(8192 - 8 + 1)].concat();
    for (what, bytes) in [
        ("header length by the context", with(&[&[0xff, 0xff]])),
        ("17 EDKs", with(&[&[0, 0], &[0, 17]])),
        ("65535 EDKs", with(&[&[0, 0], &[0xff, 0xff]])),
        ("a long EDK", with(&[&[0, 0], &[0, 1], &big_edk])),
        ("a long EDK field", with(&[&[0, 0], &[0, 1], &[0xff, 0xff]])),
        (
            "frame length",
            with(&[&[0, 0], &[0, 1], &one_edk, &[2, 1, 0, 0, 1]]),
        ),
    ] {
        let result = Header::parse(&bytes, Permit::default());
        assert!(matches!(result, Err(Error::Limit(_))), "{what}: {result:?}");
    }
    for (what, bytes) in [
        ("no EDK", with(&[&[0, 0], &[0, 0]])),
        (
            "frames of 0 bytes",
            with(&[&[0, 0], &[0, 1], &one_edk, &[2, 0, 0, 0, 0]]),
        ),
        (
            "a block with a frame length",
            with(&[&[0, 0], &[0, 1], &one_edk, &[1, 0, 0, 0, 1]]),
        ),
        (
            "content type 3",
            with(&[&[0, 0], &[0, 1], &one_edk, &[3, 0, 0, 0, 1]]),
        ),
    ] {
        let result = Header::parse(&bytes, Permit::default());
        assert!(
            matches!(result, Err(Error::Altered(_))),
            "{what}: {result:?}"
        );
    }
    let largest = with(&[&[0, 0], &[0, 1], &one_edk, &[2, 1, 0, 0, 0]]);
    assert!(matches!(
        Header::parse(&largest, Permit::default()),
        Ok(Parsed::NeedMore)
    ));
}

#[test]
fn rule_05_a_context_with_a_public_key_is_not_written() {
    let sample = foreign::signed(&[b"x"]);
    let foreign = parse(&sample.message).unwrap().context().clone();
    assert!(matches!(
        Draft::new(fresh(), foreign, limits::MIN_FRAME),
        Err(Error::Context(_))
    ));
}
