//! How a token takes or makes the IV of a wrap (docs/tokens.md).
//!
//! Whatever the token's layout, what leaves here is an explicit 12-byte IV and
//! ciphertext ‖ tag, so that a key may move from one convention to another.
//! Which one a token has is found out in `probe`.

use std::sync::{Mutex, PoisonError};

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki_sys::*;
use zeroize::Zeroizing;

use crate::token::{IV_LEN, WRAPPED_LEN};

use super::failure::Fault;
use super::raw::{Gcm, Raw};

/// Bytes of output offered to the token: the most that we expect is IV,
/// ciphertext and tag, and there is room enough that a different layout is
/// seen as a wrong length, not as "too small", which would leave the operation
/// active.
pub(super) const OUT_LEN: usize = 128;
/// Bytes of a data key: AES-256.
pub(super) const KEY_LEN: usize = 32;

/// AWS CloudHSM's CKM_CLOUDHSM_AES_GCM (cloudhsm_pkcs11_vendor_defs.h).
const CLOUDHSM_AES_GCM: CK_MECHANISM_TYPE = CKM_VENDOR_DEFINED | CKM_AES_GCM;
/// CKM_CLOUDKMS_AES_GCM of Google's libkmsp11 (kmsp11.h).
const CLOUDKMS_AES_GCM: CK_MECHANISM_TYPE = CKM_VENDOR_DEFINED | 0x1E101;

/// Who chooses the IV, and where it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Iv {
    /// The worker supplies 12 random bytes.
    Host,
    /// The worker supplies 12 zero bytes, over which the token writes its own.
    ZeroWriteback,
    /// The worker supplies none, and the token puts its own before the
    /// ciphertext, where it also looks for it.
    VendorPrefix,
}

/// A way of doing AES-GCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Convention {
    pub(super) iv: Iv,
    pub(super) mechanism: CK_MECHANISM_TYPE,
}

/// Every way we know, in the order in which they are tried: first the one in
/// which the randomness of IVs is not the token's secret.
pub(super) const CONVENTIONS: [Convention; 4] = [
    Convention {
        iv: Iv::Host,
        mechanism: CKM_AES_GCM,
    },
    Convention {
        iv: Iv::ZeroWriteback,
        mechanism: CKM_AES_GCM,
    },
    Convention {
        iv: Iv::ZeroWriteback,
        mechanism: CLOUDKMS_AES_GCM,
    },
    Convention {
        iv: Iv::VendorPrefix,
        mechanism: CLOUDHSM_AES_GCM,
    },
];

/// A wrapped data key, whatever convention made it.
pub(super) struct Wrapped {
    pub(super) iv: [u8; IV_LEN],
    pub(super) ciphertext: [u8; WRAPPED_LEN],
}

/// The IVs that the token chose last, for any session of this process: enough
/// to see a generator that is stuck, in all sessions or in each of at most
/// so many.
static RECENT: Mutex<Recent> = Mutex::new(Recent {
    ivs: [[0; IV_LEN]; 64],
    next: 0,
});

struct Recent {
    ivs: [[u8; IV_LEN]; 64],
    next: usize,
}

impl Iv {
    /// Its name in the configuration.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::ZeroWriteback => "zero-writeback",
            Self::VendorPrefix => "vendor-prefix",
        }
    }
}

impl Convention {
    /// Encrypts a data key.
    pub(super) fn wrap(
        self,
        raw: &Raw,
        session: &Session,
        key: ObjectHandle,
        data_key: &[u8],
        aad: &[u8],
    ) -> Result<Wrapped, Fault> {
        let mut given = [0; IV_LEN];
        let iv = match self.iv {
            // At the moment of the call, from the operating system: fetched
            // ahead, a snapshot of this machine would use it twice.
            Iv::Host => {
                getrandom::fill(&mut given).map_err(|_| broken("getrandom"))?;
                &mut given[..]
            }
            Iv::ZeroWriteback => &mut given[..],
            Iv::VendorPrefix => &mut [],
        };
        let mechanism = self.mechanism;
        let chosen = <[u8; IV_LEN]>::try_from(&*iv).unwrap_or_default();
        let mut out = [0; OUT_LEN];
        let gcm = Gcm { mechanism, iv, aad };
        let written = raw.encrypt.run(session, key, gcm, data_key, &mut out)?;
        let out = &out[..written];
        let (iv, ciphertext) = match self.iv {
            Iv::Host if given != chosen => {
                return Err(layout("the token replaced the IV it was given"));
            }
            Iv::Host => (given, out),
            Iv::ZeroWriteback => (own(given)?, out),
            Iv::VendorPrefix => {
                let (prefix, rest) = out
                    .split_first_chunk()
                    .ok_or_else(|| layout("the token's output is shorter than an IV"))?;
                (own(*prefix)?, rest)
            }
        };
        let ciphertext = ciphertext
            .try_into()
            .map_err(|_| layout("the token's output is not ciphertext and 16-byte tag"))?;
        Ok(Wrapped { iv, ciphertext })
    }

    /// Decrypts a wrapped data key, whatever convention made it. `None` if
    /// what comes out is not 32 bytes.
    pub(super) fn unwrap(
        self,
        raw: &Raw,
        session: &Session,
        key: ObjectHandle,
        iv: &[u8; IV_LEN],
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<Option<Zeroizing<[u8; KEY_LEN]>>, Fault> {
        let mut given = *iv;
        let prefixed;
        let (iv, input) = match self.iv {
            Iv::Host | Iv::ZeroWriteback => (&mut given[..], ciphertext),
            Iv::VendorPrefix => {
                prefixed = [iv, ciphertext].concat();
                (&mut [][..], &prefixed[..])
            }
        };
        let mechanism = self.mechanism;
        let mut out = Zeroizing::new([0; OUT_LEN]);
        let gcm = Gcm { mechanism, iv, aad };
        let written = raw.decrypt.run(session, key, gcm, input, &mut *out)?;
        if written != KEY_LEN {
            return Ok(None);
        }
        let mut data_key = Zeroizing::new([0; KEY_LEN]);
        data_key.copy_from_slice(&out[..written]);
        Ok(Some(data_key))
    }
}

/// Takes an IV that the token chose; not one that it did not choose, nor one
/// that it chose a moment ago.
fn own(iv: [u8; IV_LEN]) -> Result<[u8; IV_LEN], Fault> {
    if iv == [0; IV_LEN] {
        return Err(broken("the token wrote no IV, or one of zeros"));
    }
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.ivs.contains(&iv) {
        return Err(broken("the token used the same IV twice"));
    }
    let next = recent.next;
    recent.ivs[next] = iv;
    recent.next = (next + 1) % recent.ivs.len();
    Ok(iv)
}

/// A token that does not lay its output out as this convention says.
fn layout(what: &str) -> Fault {
    Fault::new(CKR_MECHANISM_PARAM_INVALID, what)
}

/// IVs that must not be used, whatever was to be wrapped: under GCM two
/// messages with the same one give away the authentication key.
fn broken(what: &str) -> Fault {
    Fault::new(CKR_RANDOM_NO_RNG, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iv_of_the_tokens_is_neither_zero_nor_a_recent_one() {
        assert!(own([0; IV_LEN]).is_err());
        for session in 1..=64 {
            assert_eq!(own([session; IV_LEN]), Ok([session; IV_LEN]));
        }
        for session in 1..=64 {
            assert!(
                own([session; IV_LEN]).is_err(),
                "stuck in session {session}"
            );
        }
        assert!(own([0; IV_LEN]).is_err(), "nor later");
    }
}
