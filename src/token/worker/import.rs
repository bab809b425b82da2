//! Receiving a key from outside (SECURITY.md 23): an RSA pair made here, that
//! unwraps and does nothing else; the transport key it unwraps, which unwraps
//! and does nothing else; and the key itself, with the attributes of one that
//! was generated. Pair and transport key are destroyed when it has arrived.

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use crate::secret::Secret32;
use crate::token::IV_LEN;
use crate::token::protocol::{Failure, FailureKind, KeySpec, Transport};
use crate::transport::{BITS, Fingerprint, OaepHash, PROOF_AAD, Sealed, TransportKey};

use super::attributes::read;
use super::failure::{Class, Fault, counted};
use super::gate::{self, labelled, sound};
use super::mechanism::Convention;
use super::module;
use super::raw::Raw;
use super::recovery::oaep;

/// The pair's label is the key's, and this.
const PAIR: &str = ".import";
/// CKA_LABEL of what [`rehearse`] carries, for the instant that it exists.
const REHEARSAL: &str = "strongroom.rehearsal";

/// A session of a token, and how it does AES-GCM.
pub(super) struct Importer<'a> {
    pub(super) session: &'a Session,
    pub(super) raw: &'a Raw,
    pub(super) convention: Convention,
}

/// A key to be unwrapped, and how to know that it is the right one.
pub(super) struct Arriving<'a> {
    pub(super) label: &'a str,
    /// Of the pair that it was sealed for.
    pub(super) pair: Fingerprint,
    pub(super) hash: OaepHash,
    pub(super) sealed: &'a Sealed,
    /// As the offline machine computed it.
    pub(super) check_value: [u8; 3],
}

impl Importer<'_> {
    /// Makes the pair, and finds out with a throwaway key whether this token
    /// can import at all, and with which hash: before custodians travel.
    pub(super) fn begin(&self, label: &str) -> Result<Transport, Failure> {
        self.must_be_free(label)?;
        if !self.pair(label)?.is_empty() {
            return Err(Failure::new(
                FailureKind::Exists,
                format!("an import under the label {label:?} has begun: finish or cancel it"),
            ));
        }
        let (public, private) = self.generate_pair(label)?;
        let rehearsed = self
            .public_half(public)
            .and_then(|key| self.rehearse(&key, private));
        rehearsed.inspect_err(|_| self.destroy(&[public, private]))
    }

    /// Unwraps the key, proves that it is the one that was sent, and destroys
    /// what carried it. After a failure the token holds what it held before.
    pub(super) fn finish(&self, arriving: &Arriving<'_>) -> Result<(), Failure> {
        let Arriving { label, .. } = arriving;
        self.must_be_free(label)?;
        let pair = self.pair(label)?;
        let private = self.private_half(label, &pair)?;
        let ours = self.public_half(private)?;
        let print = ours.fingerprint().map_err(|error| refused(&error))?;
        if print != arriving.pair {
            return Err(Failure::new(
                FailureKind::Rejected,
                format!("the envelope was sealed for another key pair than the one of {label:?}"),
            ));
        }
        let key = self.carry(private, arriving.hash, arriving.sealed, label, true)?;
        let checked = self.check(key, arriving).and_then(|()| {
            self.session_destroy(&pair)
                .map_err(|fault| fault.failed("cannot destroy the transport key pair"))
        });
        checked.inspect_err(|_| self.destroy(&[key]))
    }

    /// Destroys the pair of an import that is not to be.
    pub(super) fn cancel(&self, label: &str) -> Result<(), Failure> {
        let pair = self.pair(label)?;
        if pair.is_empty() {
            return Err(none(label));
        }
        self.session_destroy(&pair)
            .map_err(|fault| fault.failed("cannot destroy the transport key pair"))
    }

    fn rehearse(&self, key: &TransportKey, private: ObjectHandle) -> Result<Transport, Failure> {
        let throwaway = Secret32::random().map_err(|error| {
            Failure::new(FailureKind::Away, format!("no random bytes: {error}"))
        })?;
        let mut why = None;
        for hash in OaepHash::WRITTEN {
            let sealed = key
                .seal(hash, &throwaway)
                .map_err(|error| refused(&error))?;
            let carried = self.carry(private, hash, &sealed, REHEARSAL, false);
            let proved = carried.and_then(|carried| {
                let proved = self.opens_proof(carried, &sealed);
                self.destroy(&[carried]);
                proved
            });
            match proved {
                Ok(()) => {
                    return Ok(Transport {
                        public_key: key.to_pem().map_err(|error| refused(&error))?,
                        hash,
                    });
                }
                // The session or the device: no hash is at fault.
                Err(failure) if matches!(failure.kind, FailureKind::Locked) => {
                    return Err(failure);
                }
                Err(failure) => why = Some(failure.detail),
            }
        }
        Err(Failure::misconfigured(
            format!(
                "the token imports no key by RSA-OAEP and AES key wrap: {}",
                why.unwrap_or_default()
            ),
            "use a token that offers CKM_RSA_PKCS_OAEP and CKM_AES_KEY_WRAP for C_UnwrapKey, or the vendor's own import",
        ))
    }

    /// C_UnwrapKey twice; the transport key lives between the two calls.
    fn carry(
        &self,
        private: ObjectHandle,
        hash: OaepHash,
        sealed: &Sealed,
        label: &str,
        stays: bool,
    ) -> Result<ObjectHandle, Failure> {
        let unwrap = |mechanism: &Mechanism<'_>, by, wrapped: &[u8], template: &[Attribute]| {
            let made = self.session.unwrap_key(mechanism, by, wrapped, template);
            counted("C_UnwrapKey", made).map_err(Fault::from)
        };
        let transport = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(false),
            Attribute::Decrypt(false),
            Attribute::Sign(false),
            Attribute::Verify(false),
            Attribute::Wrap(false),
            Attribute::Unwrap(true),
            Attribute::Derive(false),
        ];
        let carrier = unwrap(&oaep(hash), private, &sealed.transport_key, &transport)
            .map_err(|fault| self.not_taken(&fault, "the transport key"))?;
        let mut template = sound(label);
        // Its length is the wrapped key's.
        template.retain(|a| a.attribute_type() != AttributeType::ValueLen);
        template.retain(|a| a.attribute_type() != AttributeType::Token);
        // In front: nothing can be set after MODIFIABLE.
        template.insert(0, Attribute::Token(stays));
        let made = self.convention.tried_templates(&template, |template| {
            unwrap(&Mechanism::AesKeyWrap, carrier, &sealed.key, template)
        });
        self.destroy(&[carrier]);
        made.map_err(|fault| self.not_taken(&fault, "the key"))
    }

    fn check(&self, key: ObjectHandle, arriving: &Arriving<'_>) -> Result<(), Failure> {
        self.opens_proof(key, arriving.sealed)?;
        let (attributes, reported) = read(self.session, key)
            .map_err(|fault| fault.failed("cannot read the key's attributes"))?;
        let spec = KeySpec {
            name: arriving.label.to_owned(),
            label: arriving.label.to_owned(),
            imported: true,
        };
        gate::check(&spec, &attributes)?;
        match reported {
            // Not every token has one; the proof says more.
            Some(value) if value != arriving.check_value => Err(Failure::new(
                FailureKind::Rejected,
                "the token reports another check value than the envelope",
            )),
            _ => Ok(()),
        }
    }

    /// The key decrypts what the key encrypted where it came from.
    fn opens_proof(&self, key: ObjectHandle, sealed: &Sealed) -> Result<(), Failure> {
        let wrong = || {
            Failure::new(
                FailureKind::Rejected,
                "the key that arrived does not open its proof: it is not the one that was sent",
            )
        };
        let iv: [u8; IV_LEN] = sealed.proof_iv[..].try_into().map_err(|_| wrong())?;
        let opened =
            self.convention
                .unwrap(self.raw, self.session, key, &iv, &sealed.proof, PROOF_AAD);
        match opened {
            Ok(Some(text)) if text[..] == sealed.proof_plaintext[..] => Ok(()),
            Ok(_) => Err(wrong()),
            Err(_) => Err(match module::check_generator(self.session) {
                Ok(()) => wrong(),
                Err(worse) => worse.failed("cannot prove the key"),
            }),
        }
    }

    fn must_be_free(&self, label: &str) -> Result<(), Failure> {
        let taken = labelled(self.session, label)
            .map_err(|fault| fault.failed("cannot look for the label"))?;
        match taken[..] {
            [] => Ok(()),
            _ => Err(Failure::new(
                FailureKind::Exists,
                format!("a key labelled {label:?} is already on the token"),
            )),
        }
    }

    /// Both halves of the pair of that import.
    fn pair(&self, label: &str) -> Result<Vec<ObjectHandle>, Failure> {
        let mut found = Vec::new();
        for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
            let template = [
                Attribute::Class(class),
                Attribute::Label(format!("{label}{PAIR}").into_bytes()),
            ];
            let halves = counted("C_FindObjects", self.session.find_objects(&template))
                .map_err(|error| Fault::from(error).failed("cannot look for the key pair"))?;
            found.extend(halves);
        }
        Ok(found)
    }

    /// The half that unwraps: made here, and never outside.
    fn private_half(&self, label: &str, pair: &[ObjectHandle]) -> Result<ObjectHandle, Failure> {
        const DEMANDS: [(&str, &str); 5] = [
            ("CKA_SENSITIVE", "true"),
            ("CKA_EXTRACTABLE", "false"),
            ("CKA_LOCAL", "true"),
            ("CKA_UNWRAP", "true"),
            ("CKA_DECRYPT", "false"),
        ];
        let private = *pair.first().ok_or_else(|| none(label))?;
        let (attributes, _) = read(self.session, private)
            .map_err(|fault| fault.failed("cannot read the key pair's attributes"))?;
        for (name, wanted) in DEMANDS {
            let value = attributes.iter().find(|(n, _)| n == name);
            if value.is_none_or(|(_, value)| value != wanted) {
                return Err(Failure::misconfigured(
                    format!(
                        "the transport key pair of {label:?} was not made by `key import begin`: {name} is not {wanted}"
                    ),
                    "cancel the import, and begin anew",
                ));
            }
        }
        Ok(private)
    }

    fn generate_pair(&self, label: &str) -> Result<(ObjectHandle, ObjectHandle), Failure> {
        let label = format!("{label}{PAIR}").into_bytes();
        let public = [
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Label(label.clone()),
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::ModulusBits((BITS as u64).into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
            Attribute::Encrypt(false),
            Attribute::Verify(false),
            Attribute::Wrap(false),
        ];
        let private = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Label(label),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Decrypt(false),
            Attribute::Sign(false),
            Attribute::Derive(false),
            Attribute::Unwrap(true),
        ];
        // Where the token has it; without, it unwraps by other mechanisms too.
        let only_oaep = Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS_OAEP]);
        let strict: Vec<Attribute> = private.iter().cloned().chain([only_oaep]).collect();
        let generate = |private: &[Attribute]| {
            let made =
                self.session
                    .generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, private);
            counted("C_GenerateKeyPair", made).map_err(Fault::from)
        };
        generate(&strict)
            .or_else(|fault| match fault.class() {
                Class::Configuration => generate(&private),
                _ => Err(fault),
            })
            .map_err(|fault| fault.failed("cannot make an RSA key pair for the import"))
    }

    fn public_half(&self, handle: ObjectHandle) -> Result<TransportKey, Failure> {
        let asked = [AttributeType::Modulus, AttributeType::PublicExponent];
        let (mut modulus, mut exponent) = (Vec::new(), Vec::new());
        let attributes = self.session.get_attributes(handle, &asked);
        for attribute in counted("C_GetAttributeValue", attributes)
            .map_err(|error| Fault::from(error).failed("cannot read the public key"))?
        {
            match attribute {
                Attribute::Modulus(bytes) => modulus = bytes,
                Attribute::PublicExponent(bytes) => exponent = bytes,
                _ => {}
            }
        }
        TransportKey::from_parts(&modulus, &exponent).map_err(|error| refused(&error))
    }

    fn session_destroy(&self, objects: &[ObjectHandle]) -> Result<(), Fault> {
        for object in objects {
            counted("C_DestroyObject", self.session.destroy_object(*object))?;
        }
        Ok(())
    }

    /// On a path that has failed, or of an object that ends with its session
    /// anyway: what cannot be destroyed is logged.
    fn destroy(&self, objects: &[ObjectHandle]) {
        for object in objects {
            if let Err(fault) = self.session_destroy(&[*object]) {
                tracing::error!("an object of an import is left in the token: {fault}");
            }
        }
    }
}

fn none(label: &str) -> Failure {
    Failure::new(
        FailureKind::Rejected,
        format!("no import under the label {label:?} has begun on this token"),
    )
}

fn refused(error: &crate::transport::NotSealed) -> Failure {
    Failure::new(FailureKind::Rejected, error.to_string())
}

impl Importer<'_> {
    /// What a token says of a key that it does not take may be any code
    /// (Kryoptic: CKR_DEVICE_ERROR): the envelope is to blame if the token is
    /// well otherwise.
    fn not_taken(&self, fault: &Fault, what: &str) -> Failure {
        let what = format!("the token does not unwrap {what}");
        match module::check_generator(self.session) {
            Ok(()) => Failure::new(FailureKind::Rejected, format!("{what}: {fault}")),
            Err(worse) => worse.failed(what),
        }
    }
}
