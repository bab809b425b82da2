//! A worker for offline recovery: logged in, one session, one key, which only
//! decrypts. No gate and no probe: a recovery token need not be fit to wrap,
//! and its key may be the private half of an RSA pair.

use std::path::Path;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use zeroize::{Zeroizing, zeroize_stack};

use crate::token::IV_LEN;
use crate::token::protocol::{Failure, FailureKind, Serve};
use crate::transport::OaepHash;

use super::failure::{Fault, counted};
use super::mechanism::Convention;
use super::module;
use super::probe;
use super::raw::Raw;
use super::serve::MODULE_STACK;
use super::watch::Watch;

/// A session on a token with a key that opens what was written long ago.
pub(super) struct Recovery {
    session: Session,
    raw: Raw,
    ways: Vec<Convention>,
    /// Last: what was made with it ends before it does.
    _pkcs11: Pkcs11,
}

impl Recovery {
    /// Loads the module, finds the token, logs in: one attempt.
    pub(super) fn start(path: &Path, setup: &Serve, watch: Watch) -> Result<Self, Failure> {
        let pkcs11 = module::load(path, &watch)?;
        watch.step("C_GetTokenInfo");
        let (slot, _) = module::find(&pkcs11, setup)?;
        let raw = Raw::load(path).map_err(|fault| fault.failed("cannot use the module"))?;
        watch.step("C_OpenSession");
        let session = module::open_session(&pkcs11, slot)
            .map_err(|fault| fault.failed("cannot open a session"))?;
        watch.step("C_Login");
        let logged_in = module::log_in(&session, &setup.pin);
        zeroize_stack::<MODULE_STACK>();
        logged_in.map_err(|failure| match failure.kind {
            // The agent's advice does not fit here.
            FailureKind::Locked => failure.hint("correct the PIN file; it was tried once"),
            _ => failure,
        })?;
        watch.step("C_GetMechanismInfo");
        // A token without AES-GCM may still hold an RSA key.
        let ways = probe::offered(&pkcs11, slot)
            .map_err(|fault| fault.failed("the token does not say what it offers"))?;
        Ok(Self {
            session,
            raw,
            ways,
            _pkcs11: pkcs11,
        })
    }

    /// Opens an encrypted data key: an AES one, which has an IV, or an RSA one.
    /// [`FailureKind::BadCiphertext`] if the key does not open it.
    pub(super) fn open(
        &self,
        label: &str,
        iv: Option<[u8; IV_LEN]>,
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let opened = self.try_open(label, iv, ciphertext, aad);
        zeroize_stack::<MODULE_STACK>();
        opened?.ok_or_else(|| Failure::new(FailureKind::BadCiphertext, "it does not open"))
    }

    #[inline(never)]
    fn try_open(
        &self,
        label: &str,
        iv: Option<[u8; IV_LEN]>,
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let secret = self.the_one(label, ObjectClass::SECRET_KEY)?;
        let private = self.the_one(label, ObjectClass::PRIVATE_KEY)?;
        match (secret, private, iv) {
            (None, None, _) => Err(Failure::misconfigured(
                format!("no key on the token is labelled {label:?}"),
                "correct --key-label; `pkcs11-tool --list-objects --login` shows the labels",
            )),
            (Some(key), _, Some(iv)) => self.open_aes(key, &iv, ciphertext, aad),
            (_, Some(key), None) => self.open_rsa(key, ciphertext),
            _ => Ok(None),
        }
    }

    /// The first of that label and class: with several, the label is at fault.
    fn the_one(&self, label: &str, class: ObjectClass) -> Result<Option<ObjectHandle>, Failure> {
        let template = [
            Attribute::Class(class),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        let found = counted("C_FindObjects", self.session.find_objects(&template))
            .map_err(|error| Fault::from(error).failed("cannot look for the key"))?;
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(Failure::misconfigured(
                format!("{} keys are labelled {label:?}", found.len()),
                "give one of them another label with the token's own tools",
            )),
        }
    }

    /// Decrypting with an explicit IV is the same in every convention but for
    /// where the IV stands; a wrong way opens nothing.
    fn open_aes(
        &self,
        key: ObjectHandle,
        iv: &[u8; IV_LEN],
        ciphertext: &[u8],
        aad: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        for way in &self.ways {
            match way.unwrap(&self.raw, &self.session, key, iv, ciphertext, aad) {
                Ok(Some(data_key)) => return Ok(Some(Zeroizing::new(data_key.to_vec()))),
                Ok(None) => {}
                Err(_) => self.still_well()?,
            }
        }
        Ok(None)
    }

    /// What a token says of a ciphertext or a hash that it does not take may be
    /// any code (Kryoptic: CKR_DEVICE_ERROR): it is to blame only if it does
    /// nothing else either.
    fn still_well(&self) -> Result<(), Failure> {
        module::check_generator(&self.session)
            .map_err(|fault| fault.failed("the token did not decrypt"))
    }

    fn open_rsa(
        &self,
        key: ObjectHandle,
        ciphertext: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        for hash in OaepHash::ALL {
            let opened = self.session.decrypt(&oaep(hash), key, ciphertext);
            match counted("C_Decrypt", opened).map_err(Fault::from) {
                Ok(data_key) => return Ok(Some(Zeroizing::new(data_key))),
                Err(_) => self.still_well()?,
            }
        }
        Ok(None)
    }
}

/// RSA-OAEP with this hash, MGF1 of it, and an empty label.
pub(super) fn oaep(hash: OaepHash) -> Mechanism<'static> {
    let (hash, mgf) = match hash {
        OaepHash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        OaepHash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        OaepHash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
        OaepHash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
}
