//! Looks for secrets where none may be left: in all memory of running
//! processes, and in files.
//!
//! What is sought is known to the test alone: it gave the token a wrapping key
//! of known bytes, so it can open the data key of a stored object and derive
//! from it whatever an implementation makes of such a key.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::aes::cipher::BlockCipherEncrypt as _;
use aes_gcm::{Aes256Gcm, Tag};
use data_encoding::{BASE64, HEXLOWER};
use sha2::{Digest as _, Sha512};
use strongroom::message::{Header, Parsed, Permit};

use super::process::Process;

/// Bytes of each piece that is sought: the least that a register or a block
/// of AES holds, and enough not to occur by chance.
pub const PIECE: usize = 16;
/// Bytes read from a process at once.
const WINDOW: usize = 1 << 20;

/// Pieces to look for, each under the name of what it is a piece of.
#[derive(Default)]
pub struct Needles {
    /// By their first eight bytes.
    pieces: HashMap<u64, Vec<([u8; PIECE], String)>>,
    /// Which pairs of first bytes occur at all.
    heads: Vec<u64>,
}

/// What was found: name and number of occurrences.
pub type Found = BTreeMap<String, usize>;

impl Needles {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            pieces: HashMap::new(),
            heads: vec![0; 1024],
        }
    }

    /// Every whole piece of `secret`, from its beginning on.
    pub fn add(&mut self, name: &str, secret: &[u8]) {
        assert!(secret.len() >= PIECE, "{name} is too short to be sought");
        for piece in secret.as_chunks::<PIECE>().0 {
            let piece = *piece;
            let first = head(&piece);
            let pair = usize::from(u16::from_le_bytes([piece[0], piece[1]]));
            self.heads[pair / 64] |= 1 << (pair % 64);
            let known = self.pieces.entry(first).or_default();
            if !known.iter().any(|(other, _)| *other == piece) {
                known.push((piece, name.to_owned()));
            }
        }
    }

    /// A secret, and the shapes in which a careless line of a log or an error
    /// would write it.
    pub fn add_written(&mut self, name: &str, secret: &[u8]) {
        self.add(name, secret);
        let hex = HEXLOWER.encode(secret);
        self.add(&format!("{name} in hexadecimal"), hex.as_bytes());
        let upper = hex.to_ascii_uppercase();
        self.add(&format!("{name} in hexadecimal"), upper.as_bytes());
        let base64 = BASE64.encode(secret);
        self.add(&format!("{name} in base64"), base64.as_bytes());
        let debug = format!("{secret:?}");
        self.add(&format!("{name} as a list"), &debug.as_bytes()[1..]);
    }

    /// Looks through `bytes`.
    pub fn is_in(&self, bytes: &[u8], found: &mut Found) {
        let Some(last) = bytes.len().checked_sub(PIECE) else {
            return;
        };
        for at in 0..=last {
            let pair = usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            if self.heads[pair / 64] & (1 << (pair % 64)) == 0 {
                continue;
            }
            let here: &[u8; PIECE] = bytes[at..at + PIECE].try_into().unwrap();
            let Some(known) = self.pieces.get(&head(here)) else {
                continue;
            };
            for (_, name) in known.iter().filter(|(piece, _)| piece == here) {
                *found.entry(name.clone()).or_default() += 1;
            }
        }
    }

    /// Looks through everything that a process can read in its own memory.
    #[track_caller]
    pub fn in_process(&self, process: &Process) -> Found {
        let memory = match File::open(format!("/proc/{}/mem", process.pid)) {
            Ok(memory) => memory,
            Err(_) if !process.runs() => return Found::new(),
            Err(error) => panic!("cannot look into {process:?}: {error} (this test needs root)"),
        };
        let maps = String::from_utf8(process.proc("maps")).unwrap();
        let (mut found, mut looked) = (Found::new(), 0);
        let mut window = vec![0; WINDOW + PIECE - 1];
        for map in maps.lines() {
            let (range, rest) = map.split_once(' ').unwrap();
            // The kernel's own pages cannot be read this way.
            if !rest.starts_with('r') || rest.ends_with("[vvar]") || rest.ends_with("[vsyscall]") {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let start = u64::from_str_radix(start, 16).unwrap();
            let end = u64::from_str_radix(end, 16).unwrap();
            let mut at = start;
            while at < end {
                let len = usize::try_from(end - at).unwrap().min(window.len());
                // Memory that was unmapped meanwhile is not there to be read.
                let Ok(read) = memory.read_at(&mut window[..len], at) else {
                    break;
                };
                looked += read;
                if window[..read].iter().any(|byte| *byte != 0) {
                    let before: usize = found.values().sum();
                    self.is_in(&window[..read], &mut found);
                    if std::env::var_os("STRONGROOM_TEST_WHERE").is_some()
                        && found.values().sum::<usize>() > before
                    {
                        eprintln!("{} {range} {rest} at {at:x}: {found:?}", process.pid);
                    }
                }
                at += u64::try_from(read.clamp(1, WINDOW)).unwrap();
                if read == 0 {
                    break;
                }
            }
        }
        assert!(
            looked > 1 << 20 || !process.runs(),
            "only {looked} bytes of {process:?} could be read"
        );
        found
    }

    /// Looks through every file below `dir`.
    pub fn in_files(&self, dir: &Path) -> BTreeMap<PathBuf, Found> {
        let mut all = BTreeMap::new();
        let mut left = vec![dir.to_owned()];
        while let Some(path) = left.pop() {
            let Ok(meta) = path.symlink_metadata() else {
                continue;
            };
            if meta.is_dir() {
                left.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            } else if meta.is_file() {
                let mut found = Found::new();
                self.is_in(&std::fs::read(&path).unwrap_or_default(), &mut found);
                if !found.is_empty() {
                    all.insert(path, found);
                }
            }
        }
        all
    }
}

fn head(piece: &[u8; PIECE]) -> u64 {
    u64::from_le_bytes(*piece.first_chunk().unwrap())
}

/// A stored message's data key, opened with the wrapping key it was wrapped
/// under, and all that follows from it.
pub struct MessageKeys {
    data_key: [u8; 32],
    payload_key: [u8; 32],
    /// HKDF-Extract's output.
    prk: [u8; 64],
}

impl MessageKeys {
    /// The keys of a stored object of ours (suite 0x0478).
    #[track_caller]
    pub fn of(stored: &[u8], wrapping_key: &[u8; 32]) -> Self {
        let Ok(Parsed::Header(header)) = Header::parse(stored, Permit::default()) else {
            panic!("what was stored has no header");
        };
        let edk = header.edks()[0].raw_aes_parts().unwrap();
        let (sealed, tag) = edk.ciphertext.split_last_chunk::<16>().unwrap();
        let mut data_key: [u8; 32] = sealed.try_into().unwrap();
        Aes256Gcm::new(wrapping_key.into())
            .decrypt_inout_detached(
                &(*edk.iv).into(),
                &header.context().aad(),
                (&mut data_key[..]).into(),
                &Tag::from(*tag),
            )
            .unwrap();
        // RFC 5869: PRK = HMAC(salt, IKM); T(1) = HMAC(PRK, info || 1).
        let prk = hmac(header.message_id().as_bytes(), &data_key);
        let info = [&[0x04, 0x78][..], b"DERIVEKEY", &[1]].concat();
        let payload_key = *hmac(&prk, &info).first_chunk().unwrap();
        Self {
            data_key,
            payload_key,
            prk,
        }
    }

    /// Everything that gives the message away, in the shapes in which
    /// libraries are known to keep it.
    pub fn needles(&self) -> Needles {
        let mut needles = Needles::new();
        self.add_to(&mut needles);
        needles
    }

    /// The same, beside others.
    pub fn add_to(&self, needles: &mut Needles) {
        needles.add_written("data key", &self.data_key);
        needles.add_written("payload key", &self.payload_key);
        needles.add("pseudorandom key of HKDF", &self.prk);
        // SHA-512 reads its input as big-endian words.
        needles.add("data key in SHA-512", &reversed::<8>(&self.data_key));
        for pad in [0x36, 0x5c] {
            let padded = padded(&self.prk, pad);
            // What the key does not cover is the same in every HMAC.
            needles.add("padded key of HMAC", &padded[..64]);
            needles.add(
                "padded key of HMAC in SHA-512",
                &reversed::<8>(&padded[..64]),
            );
            needles.add("state of HMAC", &first_state(&padded));
        }
        for (name, key) in [
            ("data key", &self.data_key),
            ("payload key", &self.payload_key),
        ] {
            // The first two round keys are the key itself.
            for round in schedule(key).iter().skip(2) {
                needles.add(&format!("round key of the {name}"), round);
                needles.add(
                    &format!("round key of the {name}, by words"),
                    &reversed::<4>(round),
                );
            }
            add_hash_key(needles, name, key);
        }
    }
}

/// HMAC-SHA-512 (RFC 2104), written out so that its padded keys are known.
fn hmac(key: &[u8], data: &[u8]) -> [u8; 64] {
    let inner = Sha512::new()
        .chain_update(padded(key, 0x36))
        .chain_update(data)
        .finalize();
    let outer = Sha512::new()
        .chain_update(padded(key, 0x5c))
        .chain_update(inner)
        .finalize();
    outer.into()
}

fn padded(key: &[u8], pad: u8) -> [u8; 128] {
    let mut block = [pad; 128];
    for (byte, key) in block.iter_mut().zip(key) {
        *byte ^= key;
    }
    block
}

/// SHA-512's state after its first block: as good as the key that is in it.
fn first_state(block: &[u8; 128]) -> Vec<u8> {
    // FIPS 180-4, 5.3.5.
    let mut state: [u64; 8] = [
        0x6a09_e667_f3bc_c908,
        0xbb67_ae85_84ca_a73b,
        0x3c6e_f372_fe94_f82b,
        0xa54f_f53a_5f1d_36f1,
        0x510e_527f_ade6_82d1,
        0x9b05_688c_2b3e_6c1f,
        0x1f83_d9ab_fb41_bd6b,
        0x5be0_cd19_137e_2179,
    ];
    sha2::compress512(&mut state, &[(*block).into()]);
    state.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The bytes of each group of `N` backwards.
fn reversed<const N: usize>(bytes: &[u8]) -> Vec<u8> {
    let groups = bytes.as_chunks::<N>().0;
    groups
        .iter()
        .flat_map(|g| g.iter().rev().copied())
        .collect()
}

/// AES-256's key expansion (FIPS 197, 5.2).
fn schedule(key: &[u8; 32]) -> [[u8; 16]; 15] {
    let sub = sbox();
    let mut words = [[0; 4]; 60];
    words[..8].copy_from_slice(key.as_chunks::<4>().0);
    let mut constant = 1;
    for i in 8..60 {
        let mut word: [u8; 4] = words[i - 1];
        if i % 8 == 0 {
            word.rotate_left(1);
        }
        if i % 4 == 0 {
            word = word.map(|byte| sub[usize::from(byte)]);
        }
        if i % 8 == 0 {
            word[0] ^= constant;
            constant <<= 1;
        }
        for (byte, before) in word.iter_mut().zip(words[i - 8]) {
            *byte ^= before;
        }
        words[i] = word;
    }
    let mut rounds = [[0; 16]; 15];
    for (round, words) in rounds.iter_mut().zip(words.chunks(4)) {
        *round = words.concat().try_into().unwrap();
    }
    rounds
}

/// AES's S-box (FIPS 197, 5.1.1): inverses, found by walking through the
/// powers of a generator and of its inverse, and the affine map.
fn sbox() -> [u8; 256] {
    let mut sub = [0; 256];
    let (mut power, mut inverse) = (1_u8, 1_u8);
    loop {
        // Times 3.
        power ^= (power << 1) ^ if power & 0x80 != 0 { 0x1b } else { 0 };
        // Divided by 3.
        inverse ^= inverse << 1;
        inverse ^= inverse << 2;
        inverse ^= inverse << 4;
        if inverse & 0x80 != 0 {
            inverse ^= 0x09;
        }
        let rotated = |by| inverse.rotate_left(by);
        sub[usize::from(power)] =
            inverse ^ rotated(1) ^ rotated(2) ^ rotated(3) ^ rotated(4) ^ 0x63;
        if power == 1 {
            break;
        }
    }
    sub[0] = 0x63;
    sub
}

/// GCM's hash key, which forges tags, as it is and as carry-less
/// multiplication wants it: its powers, each shifted by one bit.
fn add_hash_key(needles: &mut Needles, of: &str, key: &[u8; 32]) {
    let mut block = aes_gcm::aes::Block::default();
    aes_gcm::aes::Aes256::new(key.into()).encrypt_block(&mut block);
    let h = u128::from_be_bytes(block.into());
    let name = format!("hash key of the {of}");
    let mut add = |value: u128| {
        needles.add(&name, &value.to_be_bytes());
        needles.add(&name, &value.to_le_bytes());
        needles.add(&name, &value.rotate_left(64).to_le_bytes());
    };
    add(h);
    let mut power = h;
    for _ in 0..16 {
        let carry = if power >> 127 == 1 {
            0xc200_0000_0000_0000_0000_0000_0000_0001
        } else {
            0
        };
        add((power << 1) ^ carry);
        power = times(power, h);
    }
}

/// Multiplication in GCM's field (NIST SP 800-38D, 6.3).
fn times(x: u128, y: u128) -> u128 {
    let (mut sum, mut v) = (0, y);
    for bit in (0..128).rev() {
        if x >> bit & 1 == 1 {
            sum ^= v;
        }
        v = (v >> 1) ^ if v & 1 == 1 { 0xe1 << 120 } else { 0 };
    }
    sum
}
