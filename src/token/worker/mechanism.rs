//! How a token takes or makes the IV of a wrap (docs/tokens.md).
//!
//! One function per convention; whatever the token's layout, what leaves here
//! is an explicit 12-byte IV and ciphertext ‖ tag. This release has the first
//! of the conventions.

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki_sys::CKR_RANDOM_NO_RNG;
use zeroize::Zeroizing;

use crate::token::protocol::{Failure, IvChoice};
use crate::token::{IV_LEN, WRAPPED_LEN};

use super::failure::Fault;
use super::raw::Raw;

/// Bytes of output offered to the token: the 48 we expect, and room enough
/// that a different layout is seen as a wrong length, not as "too small",
/// which would leave the operation active.
const OUT_LEN: usize = 128;
/// Bytes of a data key: AES-256.
pub(super) const KEY_LEN: usize = 32;

/// Who chooses the IV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Convention {
    /// The worker supplies 12 random bytes.
    Host,
}

/// A wrapped data key, whatever convention made it.
pub(super) struct Wrapped {
    pub(super) iv: [u8; IV_LEN],
    pub(super) ciphertext: [u8; WRAPPED_LEN],
}

impl Convention {
    /// Settles the configured choice.
    pub(super) fn choose(choice: IvChoice) -> Result<Self, Failure> {
        match choice {
            IvChoice::Auto | IvChoice::Host => Ok(Self::Host),
            IvChoice::ZeroWriteback | IvChoice::VendorPrefix => Err(Failure::misconfigured(
                "this release has no IV convention but gcm_iv = \"host\"",
                "remove gcm_iv, or use a later release",
            )),
        }
    }

    /// Its name in the configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
        }
    }

    /// Encrypts a data key.
    pub(super) fn wrap(
        self,
        raw: &Raw,
        session: &Session,
        key: ObjectHandle,
        data_key: &[u8],
        aad: &[u8],
    ) -> Result<Wrapped, Fault> {
        match self {
            Self::Host => host(raw, session, key, data_key, aad),
        }
    }
}

/// The worker chooses the IV, at the moment of the call, from the operating
/// system's generator: fetched ahead, a snapshot of this machine would use it
/// twice.
fn host(
    raw: &Raw,
    session: &Session,
    key: ObjectHandle,
    data_key: &[u8],
    aad: &[u8],
) -> Result<Wrapped, Fault> {
    let mut iv = [0; IV_LEN];
    getrandom::fill(&mut iv).map_err(|_| Fault::new(CKR_RANDOM_NO_RNG, "getrandom"))?;
    let chosen = iv;
    let mut out = [0; OUT_LEN];
    let written = raw.gcm_encrypt(session, key, &mut iv, aad, data_key, &mut out)?;
    if iv != chosen {
        return Err(layout("the token replaced the IV it was given"));
    }
    let ciphertext = out[..written]
        .try_into()
        .map_err(|_| layout("the token's output is not ciphertext and 16-byte tag"))?;
    Ok(Wrapped { iv, ciphertext })
}

/// Decrypts a wrapped data key: the same call under every convention that
/// yields explicit 12-byte IVs. `None` if what comes out is not 32 bytes.
pub(super) fn unwrap(
    raw: &Raw,
    session: &Session,
    key: ObjectHandle,
    iv: &[u8; IV_LEN],
    ciphertext: &[u8],
    aad: &[u8],
) -> Result<Option<Zeroizing<[u8; KEY_LEN]>>, Fault> {
    let mut iv = *iv;
    let mut out = Zeroizing::new([0; OUT_LEN]);
    let written = raw.gcm_decrypt(session, key, &mut iv, aad, ciphertext, &mut *out)?;
    let mut data_key = Zeroizing::new([0; KEY_LEN]);
    if written != KEY_LEN {
        return Ok(None);
    }
    data_key.copy_from_slice(&out[..written]);
    Ok(Some(data_key))
}

/// A token that does not lay its output out as this convention says.
fn layout(what: &str) -> Fault {
    Fault::new(cryptoki_sys::CKR_MECHANISM_PARAM_INVALID, what)
}
