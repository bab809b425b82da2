//! Checkpoints: what is signed, how it is written down, and how it is
//! checked (c2sp.org/tlog-checkpoint, c2sp.org/signed-note).
//!
//! A checkpoint's first line is the log's origin, `strongroom/audit/HOST/ID`.
//! Whatever else the same key may sign begins otherwise, so no other
//! signature can pass for a checkpoint's.

use std::fmt::Write as _;
use std::path::Path;
use std::pin::Pin;

use data_encoding::BASE64;

use crate::crypto::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use super::record::TreeHead;
use super::tree::Hash;

/// What every origin begins with.
pub const ORIGIN_PREFIX: &str = "strongroom/audit/";

/// SubjectPublicKeyInfo of a P-256 key up to its point (RFC 5480).
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Signatures looked at in one note: c2sp.org/signed-note wants 16 at least.
const MAX_SIGNATURES: usize = 16;

/// A future that a trait object returns.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<Signed, String>> + Send + 'a>>;

/// A signature, and the key that made it.
#[derive(Clone, Debug)]
pub struct Signed {
    /// ECDSA P-256 over SHA-256 of the text: r and s, 32 bytes each.
    pub signature: [u8; 64],
    /// The public key.
    pub key: PublicKey,
}

/// Who signs checkpoints: a key in a token.
pub trait Signer: Send + Sync {
    /// Signs a text. Fails while the token is away.
    fn sign<'a>(&'a self, text: &'a [u8]) -> Signing<'a>;
}

/// The auditor's public key: ECDSA on P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 65]);

impl PublicKey {
    /// From an uncompressed point.
    #[must_use]
    pub fn from_point(point: &[u8]) -> Option<Self> {
        let point: [u8; 65] = point.try_into().ok()?;
        (point[0] == 4).then_some(Self(point))
    }

    /// From a PEM `PUBLIC KEY` file, as `openssl pkey -pubin` reads it.
    #[must_use]
    pub fn from_pem(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("-----BEGIN PUBLIC KEY-----")?;
        let (body, _) = rest.split_once("-----END PUBLIC KEY-----")?;
        let body: String = body.split_ascii_whitespace().collect();
        let der = BASE64.decode(body.as_bytes()).ok()?;
        Self::from_point(der.strip_prefix(&SPKI_P256[..])?)
    }

    /// Reads a PEM file.
    ///
    /// # Errors
    /// It cannot be read, or holds no such key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        Self::from_pem(&text).ok_or_else(|| "not a P-256 public key in PEM".to_owned())
    }

    /// As PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let mut pem = "-----BEGIN PUBLIC KEY-----\n".to_owned();
        let text = BASE64.encode(&self.spki());
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem + "-----END PUBLIC KEY-----\n"
    }

    fn spki(&self) -> Vec<u8> {
        [&SPKI_P256[..], &self.0].concat()
    }

    /// The key id of c2sp.org/signed-note, type 0x02.
    fn id(&self) -> [u8; 4] {
        Hash::plain(&self.spki()).head()
    }

    fn verifies(&self, text: &[u8], der: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.0);
        key.verify(text, der).is_ok()
    }
}

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Its tree.
    pub tree: TreeHead,
    /// Further lines: `name value`.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// The text that is signed.
    #[must_use]
    pub fn text(&self) -> String {
        let TreeHead { size, root } = &self.tree;
        let mut text = format!("{}\n{size}\n{root}\n", self.origin);
        for line in &self.extensions {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// The value of an extension line.
    #[must_use]
    pub fn extension(&self, name: &str) -> Option<&str> {
        let mut lines = self.extensions.iter();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let origin = lines.next().filter(|line| !line.is_empty())?.to_owned();
        let size = lines.next()?;
        let root = Hash::parse(lines.next()?)?;
        // No sign, no leading zero: one way alone to write it.
        let number: u64 = size.parse().ok()?;
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        (number.to_string() == size && extensions.iter().all(|line| !line.is_empty())).then_some(
            Self {
                origin,
                tree: TreeHead { size: number, root },
                extensions,
            },
        )
    }
}

/// The name under which a checkpoint is anchored: `HOST/ID/SIZE`, the size
/// zero-padded, so that names sort as trees grow.
#[must_use]
pub fn anchor_name(checkpoint: &Checkpoint) -> String {
    let origin = &checkpoint.origin;
    let log = origin.strip_prefix(ORIGIN_PREFIX).unwrap_or(origin);
    format!("{log}/{:020}.checkpoint", checkpoint.tree.size)
}

/// The size in such a name.
#[must_use]
pub fn anchored_size(name: &str) -> Option<u64> {
    let name = name.rsplit('/').next()?;
    name.strip_suffix(".checkpoint")?.parse().ok()
}

/// A checkpoint as it is kept: with its signatures, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// Signature lines.
    signatures: Vec<String>,
}

/// What the signatures of a note are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// By the key that was asked for.
    Proven,
    /// There is none, or none by that key.
    Unsigned,
    /// It names that key and is not its.
    Forged,
}

impl Note {
    /// An unsigned checkpoint: a self-check and no more.
    #[must_use]
    pub fn unsigned(checkpoint: Checkpoint) -> Self {
        Self {
            checkpoint,
            signatures: Vec::new(),
        }
    }

    /// A signed checkpoint.
    #[must_use]
    pub fn signed(checkpoint: Checkpoint, signed: &Signed) -> Self {
        let id = signed.key.id();
        let bytes = [&id[..], &der(&signed.signature)].concat();
        let line = format!("\u{2014} {} {}", checkpoint.origin, BASE64.encode(&bytes));
        Self {
            checkpoint,
            signatures: vec![line],
        }
    }

    /// Whether anybody signed it.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        !self.signatures.is_empty()
    }

    /// Checks its signatures against one key.
    #[must_use]
    pub fn check(&self, key: &PublicKey) -> Standing {
        let text = self.checkpoint.text();
        let mut standing = Standing::Unsigned;
        for line in self.signatures.iter().take(MAX_SIGNATURES) {
            let Some((name, signature)) = parse_signature(line) else {
                return Standing::Forged;
            };
            if name != self.checkpoint.origin || signature[..4] != key.id() {
                continue;
            }
            if !key.verifies(text.as_bytes(), &signature[4..]) {
                return Standing::Forged;
            }
            standing = Standing::Proven;
        }
        standing
    }

    /// As a file of its own: c2sp.org/signed-note.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.checkpoint.text();
        text.push('\n');
        for line in &self.signatures {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// One of several in a file: an empty line ends it.
    #[must_use]
    pub fn entry(&self) -> String {
        self.text() + "\n"
    }
}

fn parse_signature(line: &str) -> Option<(&str, Vec<u8>)> {
    let (name, signature) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let bytes = BASE64.decode(signature.as_bytes()).ok()?;
    (bytes.len() > 4).then_some((name, bytes))
}

/// What a file of checkpoints holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// The checkpoints in their order.
    pub notes: Vec<Note>,
    /// Bytes of the whole ones.
    pub good: usize,
    /// The line, from 1, at which it ceases to make sense, if it does.
    pub bad_line: Option<usize>,
}

/// Reads checkpoints one after the other: of our own file, or a single one of
/// its own, which has no empty line at its end.
#[must_use]
pub fn parse_notes(text: &str) -> Notes {
    let mut found = Notes::default();
    let mut rest = text;
    while !rest.is_empty() {
        match parse_note(rest) {
            Some((note, len)) => {
                found.notes.push(note);
                found.good += len;
                rest = &rest[len..];
            }
            None => {
                found.bad_line = Some(text[..found.good].matches('\n').count() + 1);
                break;
            }
        }
    }
    found
}

/// The first checkpoint, and how long it is.
fn parse_note(text: &str) -> Option<(Note, usize)> {
    let end = text.find("\n\n")?;
    let checkpoint = Checkpoint::parse(&text[..=end])?;
    let mut at = end + 2;
    let mut signatures = Vec::new();
    loop {
        let rest = &text[at..];
        let line_end = rest.find('\n');
        match line_end {
            Some(0) => {
                return Some((
                    Note {
                        checkpoint,
                        signatures,
                    },
                    at + 1,
                ));
            }
            Some(len) if rest.starts_with('\u{2014}') => {
                signatures.push(rest[..len].to_owned());
                at += len + 1;
            }
            // A file of its own ends here.
            None if rest.is_empty() && !signatures.is_empty() => {
                return Some((
                    Note {
                        checkpoint,
                        signatures,
                    },
                    at,
                ));
            }
            _ => return None,
        }
    }
}

/// A signature of two 32-byte numbers as ASN.1 (RFC 3279, section 2.2.3),
/// which is what verifiers of signed notes expect.
fn der(raw: &[u8; 64]) -> Vec<u8> {
    let mut body = Vec::with_capacity(72);
    for number in raw.chunks(32) {
        let zeros = number
            .iter()
            .take(31)
            .take_while(|byte| **byte == 0)
            .count();
        let number = &number[zeros..];
        let sign = number[0] & 0x80 != 0;
        // At most 33.
        let len = number.len() + usize::from(sign);
        body.extend([2, u8::try_from(len).unwrap_or(0)]);
        if sign {
            body.push(0);
        }
        body.extend_from_slice(number);
    }
    let mut der = vec![0x30, u8::try_from(body.len()).unwrap_or(0)];
    der.append(&mut body);
    der
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use p256::ecdsa::signature::Signer as _;
    use p256::ecdsa::{Signature, SigningKey};

    /// A key outside any token.
    pub(in crate::audit) struct TestKey(SigningKey);

    impl TestKey {
        pub(in crate::audit) fn new(seed: u8) -> Self {
            Self(SigningKey::from_slice(&[seed; 32]).unwrap())
        }

        pub(in crate::audit) fn public(&self) -> PublicKey {
            let point = self.0.verifying_key().to_sec1_point(false);
            PublicKey::from_point(point.as_bytes()).unwrap()
        }

        pub(in crate::audit) fn sign_now(&self, text: &[u8]) -> Signed {
            let signature: Signature = self.0.sign(text);
            Signed {
                signature: signature.to_bytes().into(),
                key: self.public(),
            }
        }
    }

    impl Signer for TestKey {
        fn sign<'a>(&'a self, text: &'a [u8]) -> Signing<'a> {
            Box::pin(async move { Ok(self.sign_now(text)) })
        }
    }

    fn checkpoint(size: u64) -> Checkpoint {
        Checkpoint {
            origin: "strongroom/audit/h/1".into(),
            tree: TreeHead {
                size,
                root: Hash::leaf(b"x"),
            },
            extensions: vec!["host h".into(), "catalog 3 abc".into()],
        }
    }

    fn signed(size: u64, seed: u8) -> Note {
        let checkpoint = checkpoint(size);
        let signature = TestKey::new(seed).sign_now(checkpoint.text().as_bytes());
        Note::signed(checkpoint, &signature)
    }

    #[test]
    fn a_note_reads_as_it_was_written() {
        let notes = [signed(1, 1), Note::unsigned(checkpoint(2)), signed(3, 1)];
        let file: String = notes.iter().map(Note::entry).collect();
        assert_eq!(anchored_size(&anchor_name(&checkpoint(70))), Some(70));
        let read = parse_notes(&file);
        assert_eq!(read.notes, notes);
        assert_eq!((read.good, read.bad_line), (file.len(), None));
        assert_eq!(parse_notes(&notes[0].text()).notes, notes[..1]);
        assert_eq!(read.notes[0].checkpoint.extension("catalog"), Some("3 abc"));
        // However it was torn, the whole ones are read and the rest is not.
        let first = notes[0].entry().len();
        for cut in first + 1..first + notes[1].entry().len() {
            let read = parse_notes(&file[..cut]);
            assert_eq!((read.notes.len(), read.good), (1, first), "{cut}");
            assert!(read.bad_line.is_some());
        }
    }

    #[test]
    fn only_the_keys_own_signature_proves() {
        let note = signed(5, 1);
        let (key, other) = (TestKey::new(1).public(), TestKey::new(2).public());
        assert_eq!(note.check(&key), Standing::Proven);
        assert_eq!(note.check(&other), Standing::Unsigned);
        let mut altered = note.clone();
        altered.checkpoint.tree.size = 6;
        assert_eq!(altered.check(&key), Standing::Forged);
        let mut other_log = note.clone();
        other_log.checkpoint.origin = "strongroom/audit/h/2".into();
        assert_eq!(other_log.check(&key), Standing::Unsigned);
        assert_eq!(
            Note::unsigned(checkpoint(5)).check(&key),
            Standing::Unsigned
        );
        assert_eq!(PublicKey::from_pem(&key.to_pem()), Some(key));
    }

    #[test]
    fn signatures_are_ascii_armoured_asn1_with_the_keys_id() {
        let note = signed(5, 1);
        let text = note.text();
        let line = text.lines().last().unwrap();
        let (name, bytes) = parse_signature(line).unwrap();
        assert_eq!(name, "strongroom/audit/h/1");
        // The key's id: the first bytes of SHA-256 over its DER form.
        assert_eq!(bytes[..4], TestKey::new(1).public().id());
        assert_eq!(bytes[4], 0x30);
        let mut raw = [0; 64];
        raw[31] = 0x7f;
        raw[32] = 0x80;
        let encoded = der(&raw);
        assert_eq!(encoded[..7], [0x30, 38, 2, 1, 0x7f, 2, 33]);
        assert_eq!(encoded[7..9], [0, 0x80]);
    }
}
