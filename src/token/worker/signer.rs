//! The audit key: ECDSA on P-256, which signs and does nothing else
//! (SECURITY.md 29). Not a wrapping key: it protects no data, so it needs no
//! canary, is looked at anew for each signature, and is told by its public
//! key.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use crate::crypto::digest::{SHA256, digest};
use crate::crypto::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use crate::token::protocol::{Attributes, Failure, FailureKind, SIGNATURE_LEN, Signer};

use super::attributes::read;
use super::failure::Fault;
use super::module;

/// CKA_EC_PARAMS of P-256: the DER of its object identifier,
/// 1.2.840.10045.3.1.7 (RFC 5480, 2.1.1.1).
const P256: [u8; 10] = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
/// An uncompressed point of P-256 (SEC 1, 2.3.3): 4, x, y.
const POINT_LEN: usize = 65;
/// DER of an OCTET STRING of that length, which PKCS#11 (2.40, mechanisms,
/// 2.3.3) puts before the point; some tokens give the bare point.
const POINT_DER: [u8; 2] = [4, 65];

/// What is demanded of the private key, by CKA name.
const DEMANDS: [(&str, &str, &str); 10] = [
    ("CKA_KEY_TYPE", "EC", "checkpoints are signed with ECDSA"),
    (
        "CKA_TOKEN",
        "true",
        "a session key is gone with its session",
    ),
    ("CKA_SENSITIVE", "true", "it must never leave the token"),
    ("CKA_EXTRACTABLE", "false", "it must never leave the token"),
    (
        "CKA_ALWAYS_SENSITIVE",
        "true",
        "it could have been read before",
    ),
    (
        "CKA_NEVER_EXTRACTABLE",
        "true",
        "it could have been exported before",
    ),
    ("CKA_LOCAL", "true", "it was not generated in this token"),
    ("CKA_SIGN", "true", "it could not sign"),
    ("CKA_DERIVE", "false", "it must do nothing but sign"),
    ("CKA_UNWRAP", "false", "it must do nothing but sign"),
];

/// Signs `message` with the key of that label, and proves the signature by
/// the public key that the token gives for it.
pub(super) fn sign(
    session: &Session,
    label: &str,
    message: &[u8],
) -> Result<([u8; SIGNATURE_LEN], Signer), Failure> {
    let (key, signer) = open(session, label)?;
    let failed = |why: &str| Failure::new(FailureKind::Away, format!("audit key {label:?}: {why}"));
    let hash = digest(&SHA256, message);
    let made = session
        .sign(&Mechanism::Ecdsa, key, hash.as_ref())
        .map_err(|error| Fault::from(error).failed(format!("audit key {label:?} did not sign")))?;
    let bytes: [u8; SIGNATURE_LEN] = made[..]
        .try_into()
        .map_err(|_| failed("its signature has the wrong length"))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &signer.public_key)
        .verify(message, &bytes)
        .map_err(|_| failed("its signature does not verify with its public key"))?;
    Ok((bytes, signer))
}

/// Finds the key, and holds it against what is demanded of it.
pub(super) fn open(session: &Session, label: &str) -> Result<(ObjectHandle, Signer), Failure> {
    let private = the_one(session, label, ObjectClass::PRIVATE_KEY)?;
    let public = the_one(session, label, ObjectClass::PUBLIC_KEY)?;
    let unread =
        |fault: Fault| fault.failed(format!("audit key {label:?}: cannot read its attributes"));
    let (attributes, _) = read(session, private).map_err(unread)?;
    check(label, &attributes)?;
    let mut point = None;
    let mut curve = None;
    let wanted = [AttributeType::EcParams, AttributeType::EcPoint];
    for attribute in session
        .get_attributes(public, &wanted)
        .map_err(|error| unread(error.into()))?
    {
        match attribute {
            Attribute::EcParams(bytes) => curve = Some(bytes),
            Attribute::EcPoint(bytes) => point = bare_point(&bytes),
            _ => {}
        }
    }
    let public_key = point
        .filter(|_| curve.as_deref() == Some(&P256))
        .ok_or_else(|| unfit(label, "it is not a key on P-256"))?;
    Ok((
        private,
        Signer {
            public_key,
            attributes,
        },
    ))
}

/// Makes the key pair, every attribute set.
pub(super) fn generate(session: &Session, label: &str) -> Result<Signer, Failure> {
    let exists = [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY]
        .map(|class| labelled(session, label, class));
    for found in exists {
        let found = found.map_err(|fault| fault.failed("cannot look for the label"))?;
        if !found.is_empty() {
            return Err(Failure::new(
                FailureKind::Exists,
                format!("a key pair labelled {label:?} is already on the token"),
            ));
        }
    }
    let public = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::EcParams(P256.to_vec()),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::Encrypt(false),
        Attribute::Wrap(false),
    ];
    let private = [
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::EC),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    session
        .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
        .map_err(|error| {
            Fault::from(error).failed(format!("cannot generate a key pair labelled {label:?}"))
        })?;
    sign(session, label, b"strongroom.gate").map(|(_, signer)| signer)
}

fn labelled(
    session: &Session,
    label: &str,
    class: ObjectClass,
) -> Result<Vec<ObjectHandle>, Fault> {
    Ok(session.find_objects(&[
        Attribute::Class(class),
        Attribute::Label(label.as_bytes().to_vec()),
    ])?)
}

fn the_one(session: &Session, label: &str, class: ObjectClass) -> Result<ObjectHandle, Failure> {
    let what = match class {
        ObjectClass::PRIVATE_KEY => "private",
        _ => "public",
    };
    let found = labelled(session, label, class)
        .map_err(|fault| fault.failed(format!("audit key {label:?}: cannot look for it")))?;
    let logged_in = || {
        module::logged_in(session)
            .map_err(|fault| fault.failed(format!("audit key {label:?}: no {what} key")))
    };
    match found[..] {
        [handle] => Ok(handle),
        // Private objects are not seen without a login.
        [] if !logged_in()? => Err(Failure::new(
            FailureKind::Lost,
            format!("audit key {label:?}: the token has forgotten the login"),
        )),
        [] => Err(unfit(
            label,
            &format!("the token has no {what} key of that label"),
        )),
        _ => Err(unfit(
            label,
            &format!("the token has {} {what} keys of that label", found.len()),
        )),
    }
}

/// Missing means failed, as with wrapping keys.
fn check(label: &str, attributes: &Attributes) -> Result<(), Failure> {
    for (name, wanted, why) in DEMANDS {
        let value = attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        if value.map(String::as_str) != Some(wanted) {
            let found = value.map_or_else(
                || "is not given by the token".to_owned(),
                |value| format!("is {value}"),
            );
            return Err(unfit(label, &format!("{name} {found}; {why}")));
        }
    }
    Ok(())
}

fn unfit(label: &str, why: &str) -> Failure {
    Failure::misconfigured(
        format!("audit key {label:?}: {why}"),
        "generate one with `strongroom key generate --audit`, or correct [audit] checkpoint_key",
    )
}

fn bare_point(bytes: &[u8]) -> Option<Vec<u8>> {
    let point = match bytes.strip_prefix(&POINT_DER) {
        Some(point) if point.len() == POINT_LEN => point,
        _ => bytes,
    };
    (point.len() == POINT_LEN).then(|| point.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_demand_is_made_and_a_missing_attribute_fails() {
        let good: Attributes = DEMANDS
            .iter()
            .map(|(name, value, _)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert!(check("audit", &good).is_ok());
        for (i, (name, ..)) in DEMANDS.iter().enumerate() {
            let mut missing = good.clone();
            missing.remove(i);
            let failure = check("audit", &missing).unwrap_err();
            assert!(failure.detail.contains(name), "{failure:?}");
            let mut wrong = good.clone();
            wrong[i].1 = "other".into();
            assert!(check("audit", &wrong).is_err(), "{name}");
        }
    }

    #[test]
    fn a_point_may_come_bare_or_in_der() {
        let bare = [4; POINT_LEN];
        let der = [&POINT_DER[..], &bare].concat();
        assert_eq!(bare_point(&der).unwrap(), bare);
        assert_eq!(bare_point(&bare).unwrap(), bare);
        assert!(bare_point(&der[1..66]).is_none() || bare_point(&der[..66]).is_none());
        assert!(bare_point(&[]).is_none());
    }
}
