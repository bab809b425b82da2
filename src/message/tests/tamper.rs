//! Whatever is done to a message of three frames, it does not open.

use super::*;

fn sample() -> (Sample, Vec<u8>) {
    let plaintext = Random(3).bytes(2 * F + 100);
    (seal(&plaintext, End::FullFrame), plaintext)
}

fn frames(sample: &Sample) -> Vec<Vec<u8>> {
    let opener = opener(&sample.message, &sample.key).unwrap();
    let layout = opener.layout(sample.message.len() as u64).unwrap();
    (1..=layout.frames())
        .map(|seq| sample.message[place(&layout, seq)].to_vec())
        .collect()
}

fn assert_refused(message: &[u8], key: &[u8; 32], what: &str) {
    match open(message, key) {
        Ok(_) => panic!("{what}: it opened"),
        Err(Error::Misuse(_) | Error::Internal(_)) => panic!("{what}: the wrong error"),
        Err(_) => {}
    }
}

#[test]
fn rule_03_no_flipped_bit_goes_unnoticed() {
    let (sample, plaintext) = sample();
    assert_eq!(open(&sample.message, &sample.key).unwrap(), plaintext);
    let opener = opener(&sample.message, &sample.key).unwrap();
    let layout = opener.layout(sample.message.len() as u64).unwrap();
    let mut every_bit = vec![false; sample.message.len()];
    every_bit[..sample.header_len].fill(true);
    for seq in 1..=3 {
        let place = place(&layout, seq);
        every_bit[place.start..place.start + Sealer::FINAL_HEAD].fill(true);
        every_bit[place.end - Sealer::TAG_LEN..place.end].fill(true);
    }
    let mut flips = 0;
    for (at, &every) in every_bit.iter().enumerate() {
        let bits = match every {
            true => 0..8,
            false if at % 64 == 0 => 3..4,
            false => continue,
        };
        for bit in bits {
            let mut message = sample.message.clone();
            message[at] ^= 1 << bit;
            assert_refused(&message, &sample.key, &format!("bit {bit} of byte {at}"));
            flips += 1;
        }
    }
    assert!(flips > 2000, "{flips}");
}

#[test]
fn rule_03_no_truncation_goes_unnoticed() {
    let (sample, _) = sample();
    for len in 0..sample.message.len() {
        assert_refused(&sample.message[..len], &sample.key, &format!("{len} bytes"));
    }
}

#[test]
fn frames_swapped_dropped_repeated_or_appended_are_refused() {
    let (sample, _) = sample();
    let header = &sample.message[..sample.header_len];
    let parts = frames(&sample);
    let [a, b, z] = &parts[..] else {
        panic!("three frames")
    };
    let (other, _) = super::tamper::sample();
    let theirs = frames(&other);
    let cases: [(&str, Vec<&[u8]>); 12] = [
        ("swapped", vec![b, a, z]),
        ("final first", vec![z, a, b]),
        ("first dropped", vec![b, z]),
        ("second dropped", vec![a, z]),
        ("final dropped", vec![a, b]),
        ("all but final dropped", vec![z]),
        ("repeated", vec![a, a, b, z]),
        ("replaced by another", vec![a, a, z]),
        ("final repeated", vec![a, b, z, z]),
        ("a byte appended", vec![a, b, z, &[0]]),
        ("a frame of another message", vec![&theirs[0], b, z]),
        ("the final frame of another message", vec![a, b, &theirs[2]]),
    ];
    for (what, order) in cases {
        let message = [&[header][..], &order].concat().concat();
        assert_refused(&message, &sample.key, what);
    }
    let own = [header, a, b, z].concat();
    assert!(open(&own, &sample.key).is_ok(), "the cases are built right");
}

#[test]
fn another_messages_header_is_refused() {
    let (one, _) = sample();
    let (two, _) = sample();
    let body = &one.message[one.header_len..];
    let mixed = [&two.message[..two.header_len], body].concat();
    assert!(matches!(open(&mixed, &one.key), Err(Error::WrongKey)));
    assert!(matches!(open(&mixed, &two.key), Err(Error::Altered(_))));
}

/// A regular frame cannot be passed off as final, nor the other way round,
/// although number, IV and length can all be rewritten to fit.
#[test]
fn the_final_mark_is_authenticated() {
    let sample = seal(&vec![1; 2 * F], End::FullFrame);
    let parts = frames(&sample);
    let header = &sample.message[..sample.header_len];
    let length = u32::try_from(F).unwrap().to_be_bytes();
    let promoted = [&[0xff; 4], &parts[0][..16], &length, &parts[0][16..]].concat();
    assert_refused(&[header, &promoted].concat(), &sample.key, "cut short");
    let demoted = [&parts[1][4..20], &parts[1][24..]].concat();
    let grown = [header, &parts[0], &demoted, &parts[1]].concat();
    assert_refused(&grown, &sample.key, "grown");
}

#[test]
fn a_wrong_data_key_is_told_from_an_altered_header() {
    let (sample, _) = sample();
    let mut key = sample.key;
    key[31] ^= 1;
    assert!(matches!(
        opener(&sample.message, &key),
        Err(Error::WrongKey)
    ));
    let mut message = sample.message.clone();
    message[sample.header_len - 1] ^= 1;
    assert!(matches!(
        opener(&message, &sample.key),
        Err(Error::Altered(_))
    ));
}
