//! After an opener is gone, neither the data key nor the payload key, which
//! starts its own schedule, is anywhere in the process's memory. A process of
//! its own: what other tests leave on their stacks is not this one's to find.
#![allow(clippy::unwrap_used)]

use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt as _;

use data_encoding::{BASE64, HEXLOWER};
use strongroom::message::{Context, DataKey, Header, Opener, Parsed, Permit};
use strongroom::secret::Secret32;
use zeroize::Zeroizing;

/// The first official commitment vector. A vector, because this process must
/// not have computed the payload key in any other way.
const MESSAGE: &str = "\
    AgR4TfvRMU2dVZJbgXIyxeNtbj5eIw8BiTDiwsHyQ/Z9wXkAAAABAAxQcm92aWRlck5hbWUA\
    GUtleUlkAAAAgAAAAAz45sc3cDvJZ7D4P3sAMKE7d/w8ziQt2C0qHsy1Qu2E2q92eIGE/kLn\
    F/Y003HKvTxx7xv2Zv83YuOdwHML5QIAABAAF88I9zPbUQSfOlzLXv+uIY2+m/E6j2PMsbge\
    HVH/L0wLqQlY+5CL0z3xnNOMIZae/////wAAAAEAAAAAAAAAAAAAAAEAAAAOSZBKHHRpTwXO\
    FTQVGapXXj5CwXBMouBB2ucaIJVm";
/// Its data key, inverted, so that the test's own copy is not what it finds.
const DATA_KEY: &str = "0561413dec2a3c26f1527d26eb3bbed89605a9a745b0012c6dcf1746d0491932";
/// Its payload key, inverted.
const PAYLOAD_KEY: &str = "a851082ca373d926cb70ec6322fda1fa58c54753b122835aa526f5b2766bac1c";

/// Bytes read at once.
const PAGE: usize = 4096;

/// Whether the key of which `inverted` is the complement stands in memory that
/// can be written.
fn is_in_memory(inverted: &[u8]) -> bool {
    let memory = File::open("/proc/self/mem").unwrap();
    // Wiped, so that one search does not leave what the next would find.
    let mut window = Zeroizing::new(vec![0; PAGE + inverted.len() - 1]);
    let maps = read_to_string("/proc/self/maps").unwrap();
    for map in maps.lines() {
        let (range, rest) = map.split_once(' ').unwrap();
        if !rest.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        for at in (start..end).step_by(PAGE) {
            // Short at a map's end; none at all where a thread just unmapped.
            let read = memory.read_at(&mut window, at).unwrap_or(0);
            let found = window[..read]
                .windows(inverted.len())
                .any(|here| here.iter().zip(inverted).all(|(a, b)| *a == !*b));
            if found {
                return true;
            }
        }
    }
    false
}

struct Vector {
    message: Vec<u8>,
    data_key: Vec<u8>,
    payload_key: Vec<u8>,
}

impl Vector {
    fn load() -> Self {
        Self {
            message: BASE64.decode(MESSAGE.as_bytes()).unwrap(),
            data_key: HEXLOWER.decode(DATA_KEY.as_bytes()).unwrap(),
            payload_key: HEXLOWER.decode(PAYLOAD_KEY.as_bytes()).unwrap(),
        }
    }

    fn secret(&self) -> Secret32 {
        Secret32::fill_with::<()>(|bytes| {
            for (byte, inverted) in bytes.iter_mut().zip(&self.data_key) {
                *byte = !*inverted;
            }
            Ok(())
        })
        .unwrap()
    }

    fn verified(&self, secret: Secret32) -> Opener {
        let Parsed::Header(header) = Header::parse(&self.message, Permit::default()).unwrap()
        else {
            panic!("the vector is whole");
        };
        header
            .verify(DataKey::unwrapped(secret), &Context::new())
            .unwrap()
    }

    fn assert_gone(&self) {
        assert!(!is_in_memory(&self.payload_key), "the payload key is left");
        assert!(!is_in_memory(&self.data_key), "the data key is left");
    }
}

/// One test, not two: they would find each other's keys.
#[test]
fn keys_are_gone_once_their_owners_are() {
    let vector = Vector::load();
    // First without any use, which could cover what the set-up left on the
    // stack.
    drop(vector.verified(vector.secret()));
    vector.assert_gone();

    let secret = vector.secret();
    assert!(is_in_memory(&vector.data_key), "the search works");
    let opener = vector.verified(secret);
    assert!(!is_in_memory(&vector.data_key), "the data key is left");
    let layout = opener.layout(vector.message.len() as u64).unwrap();
    let span = layout.frame_span(1);
    let (start, end) = (
        usize::try_from(span.start).unwrap(),
        usize::try_from(span.end).unwrap(),
    );
    let mut frame = vector.message[start..end].to_vec();
    let text = opener.open_frame(&layout, 1, &mut frame).unwrap();
    assert_eq!(frame[text], *b"GoodCommitment");
    assert!(
        is_in_memory(&vector.payload_key),
        "the schedule begins with the key"
    );
    drop(opener);
    vector.assert_gone();
}
