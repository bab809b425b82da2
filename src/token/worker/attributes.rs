//! A key's attributes, read from the token and named in words.

use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectHandle};
use cryptoki::session::Session;

use crate::token::protocol::Attributes;

use super::failure::{Fault, counted};

/// The attributes we show and check, as the token gives them, and the token's
/// check value.
pub(super) fn read(
    session: &Session,
    handle: ObjectHandle,
) -> Result<(Attributes, Option<[u8; 3]>), Fault> {
    const ASKED: [AttributeType; 20] = [
        AttributeType::KeyType,
        AttributeType::ValueLen,
        AttributeType::Token,
        AttributeType::Private,
        AttributeType::Sensitive,
        AttributeType::AlwaysSensitive,
        AttributeType::Extractable,
        AttributeType::NeverExtractable,
        AttributeType::Local,
        AttributeType::Encrypt,
        AttributeType::Decrypt,
        AttributeType::Wrap,
        AttributeType::Unwrap,
        AttributeType::Derive,
        AttributeType::Sign,
        AttributeType::Verify,
        AttributeType::Modifiable,
        AttributeType::Copyable,
        AttributeType::AllowedMechanisms,
        AttributeType::CheckValue,
    ];
    let mut attributes = Attributes::with_capacity(ASKED.len());
    let mut check_value = None;
    for attribute in counted(
        "C_GetAttributeValue",
        session.get_attributes(handle, &ASKED),
    )? {
        if let Attribute::CheckValue(bytes) = &attribute {
            // Three bytes and no more: further ones would be further bytes
            // of the GHASH key.
            check_value = bytes.get(..3).and_then(|bytes| bytes.try_into().ok());
        } else if let Some((name, value)) = named(&attribute) {
            attributes.push((name.to_owned(), value));
        }
    }
    Ok((attributes, check_value))
}

fn named(attribute: &Attribute) -> Option<(&'static str, String)> {
    Some(match attribute {
        Attribute::KeyType(KeyType::AES) => ("CKA_KEY_TYPE", "AES".to_owned()),
        Attribute::KeyType(KeyType::EC) => ("CKA_KEY_TYPE", "EC".to_owned()),
        Attribute::KeyType(other) => ("CKA_KEY_TYPE", other.to_string()),
        Attribute::ValueLen(len) => ("CKA_VALUE_LEN", len.to_string()),
        Attribute::Token(v) => ("CKA_TOKEN", v.to_string()),
        Attribute::Private(v) => ("CKA_PRIVATE", v.to_string()),
        Attribute::Sensitive(v) => ("CKA_SENSITIVE", v.to_string()),
        Attribute::AlwaysSensitive(v) => ("CKA_ALWAYS_SENSITIVE", v.to_string()),
        Attribute::Extractable(v) => ("CKA_EXTRACTABLE", v.to_string()),
        Attribute::NeverExtractable(v) => ("CKA_NEVER_EXTRACTABLE", v.to_string()),
        Attribute::Local(v) => ("CKA_LOCAL", v.to_string()),
        Attribute::Encrypt(v) => ("CKA_ENCRYPT", v.to_string()),
        Attribute::Decrypt(v) => ("CKA_DECRYPT", v.to_string()),
        Attribute::Wrap(v) => ("CKA_WRAP", v.to_string()),
        Attribute::Unwrap(v) => ("CKA_UNWRAP", v.to_string()),
        Attribute::Derive(v) => ("CKA_DERIVE", v.to_string()),
        Attribute::Sign(v) => ("CKA_SIGN", v.to_string()),
        Attribute::Verify(v) => ("CKA_VERIFY", v.to_string()),
        Attribute::Modifiable(v) => ("CKA_MODIFIABLE", v.to_string()),
        Attribute::Copyable(v) => ("CKA_COPYABLE", v.to_string()),
        Attribute::AllowedMechanisms(list) => (
            "CKA_ALLOWED_MECHANISMS",
            match list[..] {
                [] => "any".to_owned(),
                [MechanismType::AES_GCM] => "CKM_AES_GCM".to_owned(),
                _ => list
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
            },
        ),
        _ => return None,
    })
}
