//! The start-up gate: a wrapping key serves only if the token itself says
//! that it cannot leave, and shows that it works (docs/tokens.md).

use std::sync::Arc;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::{CK_RV, CKR_OK};

use crate::secret::Secret32;
use crate::token::IV_LEN;
use crate::token::protocol::{Attributes, Failure, FailureKind, KeySpec, OpenedKey};

use super::attributes::read;
use super::failure::{Class, Fault, counted};
use super::mechanism::{Convention, Wrapped};
use super::module;
use super::raw::Raw;

/// The AAD of known-good wraps: never an encryption context, which does not
/// begin with a count of zero.
const GATE_AAD: &[u8] = b"\0\0strongroom gate";
/// An AAD that must not open what [`GATE_AAD`] sealed.
const WRONG_AAD: &[u8] = b"\0\0strongroom fate";

/// A key that passed, as this process knows it.
pub(super) struct Opened {
    pub(super) spec: KeySpec,
    pub(super) handle: ObjectHandle,
    convention: Convention,
    /// How this token says "bad ciphertext".
    pub(super) bad_ciphertext: CK_RV,
    known: Wrapped,
    plaintext: Secret32,
}

impl Opened {
    /// Opens the known-good wrap of the gate: what decides whether a failed
    /// decrypt was the ciphertext's fault or the module's.
    pub(super) fn still_opens(&self, raw: &Raw, session: &Session) -> Result<bool, Fault> {
        let Wrapped { iv, ciphertext } = &self.known;
        let opened = self
            .convention
            .unwrap(raw, session, self.handle, iv, ciphertext, GATE_AAD)?;
        Ok(opened.is_some_and(|key| *key == *self.plaintext.expose()))
    }

    /// A fresh wrap and its unwrap.
    pub(super) fn round_trip(
        &self,
        raw: &Raw,
        session: &Session,
        convention: Convention,
    ) -> Result<bool, Fault> {
        let plaintext = self.plaintext.expose();
        let Wrapped { iv, ciphertext } =
            convention.wrap(raw, session, self.handle, plaintext, GATE_AAD)?;
        let opened = convention.unwrap(raw, session, self.handle, &iv, &ciphertext, GATE_AAD)?;
        Ok(opened.is_some_and(|key| *key == *plaintext))
    }
}

/// Runs the gate for one key.
pub(super) fn open(
    raw: &Raw,
    session: &Session,
    convention: Convention,
    spec: KeySpec,
) -> Result<(Arc<Opened>, OpenedKey), Failure> {
    let handle = find(session, &spec)?;
    let (attributes, check_value) = read(session, handle)
        .map_err(|fault| fault.failed(format!("key {}: cannot read its attributes", spec.name)))?;
    check(&spec, &attributes)?;
    let opened = prove(raw, session, convention, spec, handle)?;
    let described = OpenedKey {
        id: 0,
        attributes,
        check_value,
    };
    Ok((Arc::new(opened), described))
}

/// Every secret key of that label.
pub(super) fn labelled(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, Fault> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Label(label.as_bytes().to_vec()),
    ];
    Ok(counted("C_FindObjects", session.find_objects(&template))?)
}

fn find(session: &Session, spec: &KeySpec) -> Result<ObjectHandle, Failure> {
    let KeySpec { name, label, .. } = spec;
    let logged_in = |session| {
        module::logged_in(session)
            .map_err(|fault| fault.failed(format!("key {name}: no key is labelled {label:?}")))
    };
    let found = labelled(session, label)
        .map_err(|fault| fault.failed(format!("key {name}: cannot look for its label")))?;
    match found[..] {
        [handle] => Ok(handle),
        // Private objects are not seen without a login: a token that forgot
        // it has lost no key.
        [] if !logged_in(session)? => Err(Failure::new(
            FailureKind::Lost,
            format!("key {name}: the token has forgotten the login"),
        )),
        [] => Err(Failure::misconfigured(
            format!("key {name}: no key on the token is labelled {label:?}"),
            format!("generate it with `strongroom key generate {name}`, or correct its label"),
        )),
        _ => Err(Failure::misconfigured(
            format!(
                "key {name}: {} keys are labelled {label:?}",
                if found.len() == 2 {
                    "two".to_owned()
                } else {
                    found.len().to_string()
                }
            ),
            "rename or delete all but one with the token's own tools",
        )),
    }
}

/// What the gate demands, by CKA name; `true` in the last place where an
/// imported key is let off.
const DEMANDS: [(&str, &str, bool, &str); 15] = [
    ("CKA_KEY_TYPE", "AES", false, "wrapping is AES-256-GCM"),
    ("CKA_VALUE_LEN", "32", false, "wrapping is AES-256-GCM"),
    (
        "CKA_TOKEN",
        "true",
        false,
        "a session key is gone with its session",
    ),
    (
        "CKA_SENSITIVE",
        "true",
        false,
        "a wrapping key must never leave the token",
    ),
    (
        "CKA_EXTRACTABLE",
        "false",
        false,
        "a wrapping key must never leave the token",
    ),
    (
        "CKA_ALWAYS_SENSITIVE",
        "true",
        true,
        "it could have been read before",
    ),
    (
        "CKA_NEVER_EXTRACTABLE",
        "true",
        true,
        "it could have been exported before",
    ),
    (
        "CKA_LOCAL",
        "true",
        true,
        "it was not generated in this token",
    ),
    ("CKA_ENCRYPT", "true", false, "it could not wrap"),
    ("CKA_DECRYPT", "true", false, "it could not unwrap"),
    (
        "CKA_WRAP",
        "false",
        false,
        "it could export other keys of the token",
    ),
    (
        "CKA_UNWRAP",
        "false",
        false,
        "it could import keys into the token",
    ),
    (
        "CKA_DERIVE",
        "false",
        false,
        "derivation can reveal what it encrypts with",
    ),
    (
        "CKA_SIGN",
        "false",
        false,
        "a MAC under it can reveal what it encrypts with",
    ),
    (
        "CKA_VERIFY",
        "false",
        false,
        "a MAC under it can reveal what it encrypts with",
    ),
];

/// Holds the attributes against the demands. Missing means failed: a token
/// that does not say is not believed.
pub(super) fn check(spec: &KeySpec, attributes: &Attributes) -> Result<(), Failure> {
    for (name, wanted, waived_if_imported, why) in DEMANDS {
        if waived_if_imported && spec.imported {
            continue;
        }
        let value = attributes
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str());
        if value == Some(wanted) {
            continue;
        }
        // SoftHSM tells no length of a key that it unwrapped, nor lets one be
        // set. What was imported has opened an AES-256 ciphertext then.
        if spec.imported && name == "CKA_VALUE_LEN" && value == Some("0") {
            continue;
        }
        let found = value.map_or_else(
            || "is not given by the token".to_owned(),
            |v| format!("is {v}"),
        );
        let hint = if waived_if_imported {
            "if the key was imported on purpose, set imported = true; otherwise generate a new one with `strongroom key generate`"
        } else {
            "generate a new key with `strongroom key generate`, which sets every attribute"
        };
        return Err(Failure::misconfigured(
            format!("key {}: {name} {found}; {why}", spec.name),
            hint,
        ));
    }
    Ok(())
}

/// A round trip, and a wrong AAD that must fail.
fn prove(
    raw: &Raw,
    session: &Session,
    convention: Convention,
    spec: KeySpec,
    handle: ObjectHandle,
) -> Result<Opened, Failure> {
    let name = spec.name.clone();
    let failed = |fault: Fault| fault.failed(format!("key {name}: its round trip failed"));
    let broken = |what: &str| {
        Failure::misconfigured(
            format!("key {name}: {what}"),
            "the token's AES-GCM cannot be trusted; see docs/tokens.md",
        )
    };
    let plaintext = Secret32::random()
        .map_err(|error| Failure::new(FailureKind::Away, format!("no random bytes: {error}")))?;
    let known = convention
        .wrap(raw, session, handle, plaintext.expose(), GATE_AAD)
        .map_err(failed)?;
    if known.ciphertext[..32] == plaintext.expose()[..] {
        return Err(broken("the token returned the plaintext as ciphertext"));
    }
    let mut opened = Opened {
        spec,
        handle,
        convention,
        bad_ciphertext: CKR_OK,
        known,
        plaintext,
    };
    if !opened.still_opens(raw, session).map_err(failed)? {
        return Err(broken("what it wrapped it does not open"));
    }
    let Wrapped { iv, ciphertext } = &opened.known;
    match convention.unwrap(raw, session, handle, iv, ciphertext, WRONG_AAD) {
        Ok(_) => return Err(broken("the token opens a wrap under another context")),
        Err(fault) if matches!(fault.class(), Class::SessionLost | Class::LockedOut) => {
            return Err(failed(fault));
        }
        Err(fault) => opened.bad_ciphertext = fault.code,
    }
    // The code is "bad ciphertext" only if the token is still well.
    if !opened.still_opens(raw, session).map_err(failed)? {
        return Err(broken("a wrong context breaks it for the right one"));
    }
    Ok(opened)
}

/// Generates a wrapping key with every attribute set (SECURITY.md 17): the
/// defaults of some tokens are an extractable key, or one that cannot encrypt.
pub(super) fn generate(
    session: &Session,
    convention: Convention,
    label: &str,
) -> Result<(), Failure> {
    let exists = !labelled(session, label)
        .map_err(|fault| fault.failed("cannot look for the label"))?
        .is_empty();
    if exists {
        return Err(Failure::new(
            FailureKind::Exists,
            format!("a key labelled {label:?} is already on the token"),
        ));
    }
    let made = convention.tried_templates(&sound(label), |template| {
        let made = session.generate_key(&Mechanism::AesKeyGen, template);
        counted("C_GenerateKey", made).map_err(Fault::from)
    });
    made.map(drop)
        .map_err(|fault| fault.failed(format!("cannot generate a key labelled {label:?}")))
}

/// The attributes of a wrapping key, every one of them set, but for those that
/// not every token knows ([`Convention::tried_templates`]).
pub(super) fn sound(label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Modifiable(false),
    ]
}

impl Convention {
    /// Makes a key with this template, COPYABLE false and AES-GCM for its only
    /// mechanism. Not every token knows the last two; the fewest that it
    /// refuses are left out, and `key show` tells what the key has.
    pub(super) fn tried_templates(
        self,
        template: &[Attribute],
        make: impl Fn(&[Attribute]) -> Result<ObjectHandle, Fault>,
    ) -> Result<ObjectHandle, Fault> {
        let copyable = Attribute::Copyable(false);
        let only_gcm = Attribute::AllowedMechanisms(vec![self.mechanism_type()?]);
        let attempts = [
            vec![copyable.clone(), only_gcm.clone()],
            vec![only_gcm],
            vec![copyable],
        ];
        for extra in attempts {
            // In front: SoftHSM, when it unwraps, sets attributes in their order,
            // and none after MODIFIABLE, which is the last of `sound`.
            let template: Vec<_> = extra.into_iter().chain(template.iter().cloned()).collect();
            match make(&template) {
                Err(fault) if fault.class() == Class::Configuration => {}
                made => return made,
            }
        }
        make(template)
    }
}

const _: () = assert!(IV_LEN == 12, "the gate's known-good wraps have 12-byte IVs");

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(imported: bool) -> KeySpec {
        KeySpec {
            name: "archive-2026".into(),
            label: "a".into(),
            imported,
        }
    }

    fn good() -> Attributes {
        DEMANDS
            .iter()
            .map(|(name, value, ..)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn every_demand_is_made_and_a_missing_attribute_fails() {
        assert!(check(&spec(false), &good()).is_ok());
        for (i, (name, wanted, waived, _)) in DEMANDS.iter().enumerate() {
            let mut missing = good();
            missing.remove(i);
            let failure = check(&spec(false), &missing).unwrap_err();
            assert!(failure.detail.contains(name), "{failure:?}");
            assert_eq!(check(&spec(true), &missing).is_ok(), *waived, "{name}");
            let mut wrong = good();
            wrong[i].1 = if *wanted == "true" { "false" } else { "true" }.to_owned();
            assert!(check(&spec(false), &wrong).is_err(), "{name}");
        }
    }

    #[test]
    fn an_imported_key_may_have_a_length_that_its_token_does_not_tell() {
        let with = |len: &str| {
            let mut attributes = good();
            let value = attributes.iter_mut().find(|(n, _)| n == "CKA_VALUE_LEN");
            value.unwrap().1 = len.into();
            attributes
        };
        assert!(check(&spec(true), &with("0")).is_ok());
        assert!(check(&spec(false), &with("0")).is_err());
        assert!(check(&spec(true), &with("16")).is_err());
    }

    #[test]
    fn an_extractable_key_is_refused_in_so_many_words() {
        let mut attributes = good();
        attributes
            .iter_mut()
            .find(|(n, _)| n == "CKA_EXTRACTABLE")
            .unwrap()
            .1 = "true".into();
        assert_eq!(
            check(&spec(false), &attributes).unwrap_err().detail,
            "key archive-2026: CKA_EXTRACTABLE is true; a wrapping key must never leave the token"
        );
    }
}
