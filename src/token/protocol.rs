//! What server and worker say to each other: frames, requests, replies.
//!
//! A frame is `id u64 | body`, big-endian, in one packet; its length is checked
//! before anything is allocated. Bodies are postcard. The first frame is the
//! parent's [`Setup`]; the worker answers it with a hello (frame id 0); then
//! requests and replies in any order, matched by id.
//!
//! Requests and replies may carry data keys, so a frame is zeroised when it
//! is dropped, is allocated once at its final size (growing would leave a
//! copy behind), and neither side prints one. Payloads are borrowed from it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::transport::{Fingerprint, OaepHash, Sealed};

use super::IV_LEN;

/// Most bytes: 64 KiB. A message header is at most 64 KiB (docs/limits.md) and
/// its context, the AAD of a wrap, is smaller than the header by more than
/// what a request adds to it.
pub(super) const MAX_FRAME: usize = 64 * 1024;
/// Bytes of the id.
pub(super) const HEAD: usize = 8;

/// Most C_Encrypt calls under a wrapping key that wrapping a data key may
/// cost, however it ends: a worker tries again by itself, and may have to
/// prove the key in between. What is counted (SECURITY.md 19) rests on it.
pub(super) const WRAP_COST: u32 = 12;
/// The same of opening a key or probing it: one proof, tried again.
pub const PROOF_COST: u32 = 4;

/// Bytes of an ECDSA signature on P-256: r and s, as PKCS#11 (2.40,
/// mechanisms, 2.3.1) gives them.
pub const SIGNATURE_LEN: usize = 64;

/// The frame id of the setup and of the worker's answer to it.
pub(super) const HELLO: u64 = 0;
/// The frame id of a worker's counts of its calls, which nobody asks for.
pub(super) const TALLY: u64 = u64::MAX;

/// One whole frame; zeroised when dropped.
pub(super) struct Frame(Zeroizing<Vec<u8>>);

impl Frame {
    /// Puts `body` into a frame.
    ///
    /// # Errors
    /// It would be longer than 64 KiB.
    pub(super) fn encode(id: u64, body: &impl Serialize) -> io::Result<Self> {
        let body_len = postcard::experimental::serialized_size(body).map_err(malformed)?;
        let len = HEAD + body_len;
        if len > MAX_FRAME {
            let kind = io::ErrorKind::InvalidInput;
            return Err(io::Error::new(kind, "a frame over 64 KiB"));
        }
        let mut bytes = Zeroizing::new(vec![0; len]);
        bytes[..HEAD].copy_from_slice(&id.to_be_bytes());
        postcard::to_slice(body, &mut bytes[HEAD..]).map_err(malformed)?;
        Ok(Self(bytes))
    }

    /// One that arrived; at least an id long.
    pub(super) fn received(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// Takes the body out, borrowing its payloads from the frame.
    ///
    /// # Errors
    /// It is not a `T`, or something follows it.
    pub(super) fn decode<'a, T: Deserialize<'a>>(&'a self) -> io::Result<T> {
        match postcard::take_from_bytes(&self.0[HEAD..]) {
            Ok((body, [])) => Ok(body),
            Ok(_) => Err(io::Error::other("bytes after a frame's body")),
            Err(error) => Err(malformed(error)),
        }
    }

    /// The request this belongs to.
    pub(super) fn id(&self) -> u64 {
        self.0[..HEAD]
            .iter()
            .fold(0, |id, byte| (id << 8) | u64::from(*byte))
    }

    /// Everything, as it goes over the link.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn malformed(error: postcard::Error) -> io::Error {
    io::Error::other(format!("a malformed frame: {error}"))
}

/// The first frame: everything a worker is told. It holds no secret; the PIN
/// is read by the worker, from where [`PinSource`] says.
#[derive(Serialize, Deserialize)]
pub(super) struct Setup {
    /// The PKCS#11 library.
    pub(super) module: PathBuf,
    /// Whether the worker may use TCP.
    pub(super) network: bool,
    /// What it is for.
    pub(super) mode: Mode,
}

/// What a worker is for.
#[derive(Serialize, Deserialize)]
pub(super) enum Mode {
    /// One token, logged in.
    Serve(Serve),
    /// Listing and initialising tokens; never logs in on its own.
    Admin,
    /// One token, logged in, to open what was written long ago.
    Recover(Serve),
}

/// Which token, and how to log in to it.
#[derive(Serialize, Deserialize)]
pub(super) struct Serve {
    /// The token's CKA_LABEL.
    pub(super) label: Option<String>,
    /// Its serial number.
    pub(super) serial: Option<String>,
    /// Where its PIN is.
    pub(super) pin: PinSource,
    /// Logged-in sessions working in parallel.
    pub(super) sessions: usize,
    /// The deadline of each call while it starts.
    pub(super) call_timeout: Duration,
    /// The configured IV convention.
    pub(super) gcm_iv: IvChoice,
    /// Whether each wrap is opened before it is handed out.
    pub(super) verify_wraps: bool,
}

/// Where a worker finds its PIN.
#[derive(Serialize, Deserialize)]
pub(super) enum PinSource {
    /// A file of mode 0400.
    File(PathBuf),
    /// A file of that name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// Who chooses the IV of a wrap; `Auto` is settled by the worker.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum IvChoice {
    Auto,
    Host,
    ZeroWriteback,
    VendorPrefix,
}

/// A configured wrapping key, as far as the token layer knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    /// Its configured, permanent name.
    pub name: String,
    /// Its CKA_LABEL in the token.
    pub label: String,
    /// Not generated in this token: LOCAL, ALWAYS_SENSITIVE and
    /// NEVER_EXTRACTABLE are not demanded.
    pub imported: bool,
}

impl KeySpec {
    /// The keys that `token` is to open.
    #[must_use]
    pub fn of_token(config: &Config, token: &str) -> Vec<Self> {
        let keys = config.keys.iter();
        keys.filter(|key| (key.opens() || key.is_compromised()) && key.is_on(token))
            .map(|key| Self {
                name: key.name.clone(),
                label: key.label.clone(),
                imported: key.imported,
            })
            .collect()
    }
}

/// What the server asks of a worker. No request carries an IV to wrap with
/// (SECURITY.md 17): the worker, or the token, chooses it.
#[derive(Serialize, Deserialize)]
pub(super) enum Request<'a> {
    /// Run the start-up gate for a key.
    OpenKey(KeySpec),
    /// Encrypt a data key under an opened key.
    Wrap {
        key: u32,
        data_key: &'a [u8],
        aad: &'a [u8],
    },
    /// Decrypt a wrapped data key.
    Unwrap {
        key: u32,
        iv: [u8; IV_LEN],
        ciphertext: &'a [u8],
        aad: &'a [u8],
    },
    /// Bytes of the token's generator.
    Random { len: u16 },
    /// The token.
    Describe,
    /// A wrap and an unwrap: the only proof of life.
    Probe { key: u32 },
    /// Make a wrapping key in the token.
    GenerateKey { label: String },
    /// Make the RSA pair of an import, and try the whole of one.
    BeginImport { label: &'a str },
    /// Unwrap what was sealed for that pair.
    FinishImport {
        label: &'a str,
        pair: Fingerprint,
        hash: OaepHash,
        sealed: Sealed,
        check_value: [u8; 3],
    },
    /// Destroy the RSA pair of an import.
    CancelImport { label: &'a str },
    /// Look at the audit key of that label.
    OpenSigner { label: String },
    /// Sign with the audit key of that label.
    Sign { label: &'a str, message: &'a [u8] },
    /// Make an audit key in the token.
    GenerateSigner { label: String },
    /// Decrypt a wrapped data key with the key of that label; an AES one has
    /// an IV. Recover mode.
    Recover {
        label: &'a str,
        iv: Option<[u8; IV_LEN]>,
        ciphertext: &'a [u8],
        aad: &'a [u8],
    },
    /// Every token of the module. Admin mode.
    ListTokens,
    /// Initialise a token. Admin mode.
    InitToken {
        slot: Option<u64>,
        serial: Option<String>,
        label: String,
        so_pin: &'a str,
        user_pin: &'a str,
    },
}

/// What a worker answers.
#[derive(Serialize, Deserialize)]
pub(super) enum Reply<'a> {
    Wrapped {
        iv: [u8; IV_LEN],
        ciphertext: &'a [u8],
        /// C_Encrypt calls it took, at most.
        wraps: u32,
    },
    DataKey(&'a [u8]),
    Random(&'a [u8]),
    Key(OpenedKey),
    Transport(Transport),
    Signer(Signer),
    Signed {
        signature: &'a [u8],
        signer: Signer,
    },
    Token(TokenInfo),
    Tokens(Vec<TokenEntry>),
    Done,
    Failed(Failure),
}

/// Attributes by their PKCS#11 names, as the token reports them.
pub type Attributes = Vec<(String, String)>;

/// A key that passed the start-up gate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedKey {
    /// What requests on this link call it.
    pub(super) id: u32,
    /// Its attributes.
    pub attributes: Attributes,
    /// CKA_CHECK_VALUE: the token's own three bytes, never computed by us.
    pub check_value: Option<[u8; 3]>,
}

/// The public half of the pair that an import's key is sealed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// In PEM (SPKI).
    pub public_key: String,
    /// The hash of RSA-OAEP that the token takes.
    pub hash: OaepHash,
}

/// An audit key, which only signs (SECURITY.md 29).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// Its public key: an uncompressed point of P-256 (SEC 1, 2.3.3).
    pub public_key: Vec<u8>,
    /// The private key's attributes.
    pub attributes: Attributes,
}

/// The token that a worker is logged in to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its label.
    pub label: String,
    /// Its serial number.
    pub serial: String,
    /// Who made it.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// Versions of its hardware and firmware.
    pub firmware: String,
    /// The PKCS#11 library and its version.
    pub library: String,
    /// Whether it is a software token, which protects no key from root.
    pub soft: bool,
    /// The mechanisms we know by name that it offers.
    pub mechanisms: Vec<String>,
    /// The IV convention in use.
    pub gcm_iv: String,
    /// Logged-in sessions, which is how many calls it works on at once.
    pub sessions: usize,
    /// How many were configured.
    pub sessions_wanted: usize,
}

/// One token of a module, as `strongroom token list` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// The slot it is in; not stable across restarts with some modules.
    pub slot: u64,
    /// Its label.
    pub label: String,
    /// Its serial number.
    pub serial: String,
    /// Who made it.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// Whether it has been initialised.
    pub initialized: bool,
    /// Whether the user's PIN has been set.
    pub user_pin_set: bool,
    /// Whether it offers AES-GCM, which wrapping needs; some tokens do not say
    /// before they are initialised.
    pub aes_gcm: Option<bool>,
    /// Whether it is a software token.
    pub soft: bool,
}

/// Why a worker could not do something, by what the server can do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// "what failed: why"; never a secret.
    pub(super) detail: String,
    pub(super) hint: Option<String>,
}

/// The kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FailureKind {
    /// May work later, on this worker.
    Away,
    /// This worker is of no more use, and ends; another may do.
    Lost,
    /// The PIN was refused; nothing is tried again.
    Locked,
    /// The module offers no such token at present.
    Absent,
    /// Somebody has to change something.
    Misconfigured,
    /// This wrapped data key is wrong; the token is fine.
    BadCiphertext,
    /// The token refuses this input.
    Rejected,
    /// There already is one of that label.
    Exists,
}

impl Failure {
    pub(super) fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            hint: None,
        }
    }

    pub(super) fn misconfigured(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(FailureKind::Misconfigured, detail).hint(hint)
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_the_link() {
        let request = Request::Wrap {
            key: 3,
            data_key: &[7; 32],
            aad: b"context",
        };
        let frame = Frame::encode(u64::MAX - 1, &request).unwrap();
        let back = Frame::received(frame.as_bytes());
        assert_eq!(back.id(), u64::MAX - 1);
        let Request::Wrap { key, data_key, aad } = back.decode().unwrap() else {
            panic!("another request");
        };
        assert_eq!((key, data_key, aad), (3, &[7; 32][..], &b"context"[..]));
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_by_its_sender() {
        let big = vec![0; MAX_FRAME];
        assert!(Frame::encode(1, &Reply::Random(&big)).is_err());
    }

    #[test]
    fn bytes_after_a_body_are_an_error() {
        let frame = Frame::encode(1, &(Reply::Done, 0u8)).unwrap();
        assert!(frame.decode::<Reply<'_>>().is_err());
        assert!(
            Frame::encode(1, &Reply::Done)
                .unwrap()
                .decode::<Reply<'_>>()
                .is_ok()
        );
    }

    #[test]
    fn a_frame_holds_the_largest_context_a_header_can() {
        // A header is at most 64 KiB; besides the context it holds at least
        // 190 bytes (FORMATS.md).
        let aad = vec![1; (64 << 10) - 190];
        let unwrap = Request::Unwrap {
            key: u32::MAX,
            iv: [0; IV_LEN],
            ciphertext: &[0; super::super::WRAPPED_LEN],
            aad: &aad,
        };
        assert!(Frame::encode(u64::MAX, &unwrap).is_ok());
    }

    #[test]
    fn rule_17_no_request_carries_an_iv_to_wrap_with() {
        // Exhaustive on purpose: a new field of `Wrap` stops this compiling.
        let Request::Wrap {
            key: _,
            data_key: _,
            aad: _,
        } = (Request::Wrap {
            key: 0,
            data_key: &[],
            aad: &[],
        })
        else {
            panic!("not a wrap");
        };
    }
}
