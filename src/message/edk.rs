//! Encrypted data keys (EDKs) as they travel in the header.
//!
//! Specification: data-format/message-header.md#encrypted-data-key-entries,
//! framework/raw-aes-keyring.md, framework/raw-rsa-keyring.md.

use super::error::Error;
use super::limits::MAX_EDK;

/// The key namespace (EDK provider id) of every key of ours.
pub const NAMESPACE: &str = "strongroom";

/// Raw AES keyring: bits in the tag, as its provider info states them.
const TAG_BITS: u32 = 128;
/// Raw AES keyring: bytes in the IV, as its provider info states them.
const IV_LEN: u32 = 12;
/// Provider info behind the key name: two u32 and the IV.
const INFO_TAIL: usize = 4 + 4 + 12;
/// A wrapped 32-byte data key: ciphertext and tag.
const WRAPPED_256: usize = 32 + 16;
/// Wrapped data keys of 16, 24 and 32 bytes (version 1 has all three).
const WRAPPED: [usize; 3] = [16 + 16, 24 + 16, WRAPPED_256];

/// One encrypted data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edk {
    provider_id: String,
    provider_info: Vec<u8>,
    ciphertext: Vec<u8>,
}

/// An EDK in the raw AES keyring's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawAes<'a> {
    /// Which wrapping key.
    pub key_name: &'a str,
    /// The wrap's IV.
    pub iv: &'a [u8; 12],
    /// The wrapped data key with its tag: 48 bytes for a 32-byte key.
    pub ciphertext: &'a [u8],
}

/// An EDK in the raw RSA keyring's layout.
///
/// Anybody with the public key can make one: what opens only through it
/// proves nothing about its writer, so normal reads never use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRsa<'a> {
    /// Which key pair.
    pub key_name: &'a str,
    /// The RSA-OAEP ciphertext.
    pub ciphertext: &'a [u8],
}

impl Edk {
    /// An EDK of any provider; at most 8 KiB as serialised.
    pub(super) fn new(id: &str, info: &[u8], ciphertext: &[u8]) -> Result<Self, Error> {
        // Three u16 lengths and the fields.
        if 6 + id.len() + info.len() + ciphertext.len() > MAX_EDK {
            return Err(Error::Limit(format!(
                "an encrypted data key is longer than {MAX_EDK} bytes"
            )));
        }
        Ok(Self {
            provider_id: id.to_owned(),
            provider_info: info.to_vec(),
            ciphertext: ciphertext.to_vec(),
        })
    }

    /// What `C_Encrypt` with AES-GCM made of a 32-byte data key, under the
    /// wrapping key configured as `key_name`.
    ///
    /// # Errors
    /// [`Error::Misuse`] for an empty name or a ciphertext that is not 48
    /// bytes, [`Error::Limit`] for an endless name.
    pub fn raw_aes(
        key_name: &str,
        iv: &[u8; 12],
        ciphertext_and_tag: &[u8],
    ) -> Result<Self, Error> {
        if key_name.is_empty() {
            return Err(Error::Misuse("a wrapping key without a name"));
        }
        if ciphertext_and_tag.len() != WRAPPED_256 {
            return Err(Error::Misuse("a wrapped data key is 48 bytes"));
        }
        let mut info = Vec::with_capacity(key_name.len() + INFO_TAIL);
        info.extend_from_slice(key_name.as_bytes());
        info.extend_from_slice(&TAG_BITS.to_be_bytes());
        info.extend_from_slice(&IV_LEN.to_be_bytes());
        info.extend_from_slice(iv);
        Self::new(NAMESPACE, &info, ciphertext_and_tag)
    }

    /// What RSA-OAEP made of a data key, under the recipient `key_name`.
    ///
    /// # Errors
    /// [`Error::Misuse`] for an empty name or ciphertext, [`Error::Limit`] for
    /// endless ones.
    pub fn raw_rsa(key_name: &str, ciphertext: &[u8]) -> Result<Self, Error> {
        if key_name.is_empty() || ciphertext.is_empty() {
            return Err(Error::Misuse("an RSA recipient without name or ciphertext"));
        }
        Self::new(NAMESPACE, key_name.as_bytes(), ciphertext)
    }

    /// The provider id: for raw keyrings, the key namespace.
    #[must_use]
    pub fn provider_id(&self) -> &str {
        &self.provider_id
    }

    /// The provider's own words about the key.
    #[must_use]
    pub fn provider_info(&self) -> &[u8] {
        &self.provider_info
    }

    /// The wrapped data key.
    #[must_use]
    pub fn ciphertext(&self) -> &[u8] {
        &self.ciphertext
    }

    /// The parts of one of *our* AES EDKs: [`NAMESPACE`], 128-bit tag, 12-byte
    /// IV, a 32-byte data key. `None` for any other.
    #[must_use]
    pub fn raw_aes_parts(&self) -> Option<RawAes<'_>> {
        self.raw_aes_parts_in(NAMESPACE)
            .filter(|parts| parts.ciphertext.len() == WRAPPED_256)
    }

    /// The parts of an AES EDK of the given namespace, with a data key of 16,
    /// 24 or 32 bytes: for recovery with keys that other software named.
    #[must_use]
    pub fn raw_aes_parts_in(&self, namespace: &str) -> Option<RawAes<'_>> {
        let (name, tail) = self
            .provider_info
            .split_last_chunk::<INFO_TAIL>()
            .filter(|_| self.provider_id == namespace)?;
        let (tag_bits, tail) = tail.split_first_chunk::<4>()?;
        let (iv_len, tail) = tail.split_first_chunk::<4>()?;
        let iv = tail.first_chunk::<12>()?;
        let fits = u32::from_be_bytes(*tag_bits) == TAG_BITS
            && u32::from_be_bytes(*iv_len) == IV_LEN
            && WRAPPED.contains(&self.ciphertext.len());
        let key_name = std::str::from_utf8(name).ok()?;
        (fits && !key_name.is_empty()).then_some(RawAes {
            key_name,
            iv,
            ciphertext: &self.ciphertext,
        })
    }

    /// The parts of one of our RSA EDKs, for offline recovery alone.
    #[must_use]
    pub fn raw_rsa_parts(&self) -> Option<RawRsa<'_>> {
        self.raw_rsa_parts_in(NAMESPACE)
    }

    /// The parts of an RSA EDK of the given namespace. Nothing but its name
    /// tells an RSA EDK: one that reads as AES is not taken for RSA.
    #[must_use]
    pub fn raw_rsa_parts_in(&self, namespace: &str) -> Option<RawRsa<'_>> {
        if self.provider_id != namespace || self.raw_aes_parts_in(namespace).is_some() {
            return None;
        }
        let key_name = std::str::from_utf8(&self.provider_info).ok()?;
        (!key_name.is_empty()).then_some(RawRsa {
            key_name,
            ciphertext: &self.ciphertext,
        })
    }

    /// Appends the header's form.
    pub(super) fn serialise(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        let id = self.provider_id.as_bytes();
        for field in [id, &self.provider_info, &self.ciphertext] {
            let len = u16::try_from(field.len())
                .map_err(|_| Error::Limit("an encrypted data key is too long".to_owned()))?;
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(field);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_aes_edk_gives_its_parts_back() {
        let edk = Edk::raw_aes("archive-2026", &[7; 12], &[9; 48]).unwrap();
        assert_eq!(
            edk.provider_info(),
            b"archive-2026\x00\x00\x00\x80\x00\x00\x00\x0c\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07"
        );
        let parts = edk.raw_aes_parts().unwrap();
        assert_eq!(
            (parts.key_name, parts.iv, parts.ciphertext),
            ("archive-2026", &[7; 12], &[9; 48][..])
        );
        assert!(edk.raw_rsa_parts().is_none());
        assert!(edk.raw_aes_parts_in("other").is_none());
    }

    #[test]
    fn rule_04_only_our_own_layout_is_ours() {
        let good = Edk::raw_aes("k", &[0; 12], &[0; 48]).unwrap();
        let change = |f: &dyn Fn(&mut Edk)| {
            let mut edk = good.clone();
            f(&mut edk);
            edk
        };
        for edk in [
            change(&|e| e.provider_id = "aws-kms".to_owned()),
            change(&|e| e.provider_info[1 + 3] = 96),
            change(&|e| e.provider_info[1 + 7] = 16),
            change(&|e| e.provider_info[0] = 0xff),
            change(&|e| e.provider_info = e.provider_info[1..].to_vec()),
            change(&|e| e.provider_info.clear()),
            change(&|e| e.ciphertext.push(0)),
            change(&|e| e.ciphertext.truncate(32)),
        ] {
            assert!(edk.raw_aes_parts().is_none(), "{edk:?}");
        }
        assert!(Edk::raw_aes("", &[0; 12], &[0; 48]).is_err());
        assert!(Edk::raw_aes("k", &[0; 12], &[0; 47]).is_err());
        assert!(Edk::raw_aes(&"k".repeat(MAX_EDK), &[0; 12], &[0; 48]).is_err());
    }

    #[test]
    fn an_rsa_edk_gives_its_parts_back() {
        let edk = Edk::raw_rsa("escrow", &[1; 512]).unwrap();
        assert_eq!(edk.raw_rsa_parts().unwrap().key_name, "escrow");
        assert!(edk.raw_aes_parts().is_none());
        assert!(edk.raw_rsa_parts_in("other").is_none());
    }
}
