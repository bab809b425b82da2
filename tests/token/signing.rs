//! The audit key: made in the token, signs, and cannot be anything else.

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use strongroom::token::TokenError;

use crate::hsm::Hsm;
use crate::{Rig, key};

#[tokio::test]
async fn rule_29_an_audit_key_signs_and_does_nothing_else() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let rig = Rig::new(hsm, &[key("archive")]).await;
    let made = rig.token.generate_signer("audit").await.unwrap();
    let seen = rig.token.signer("audit").await.unwrap();
    assert_eq!(made, seen);
    for (name, wanted) in [
        ("CKA_SIGN", "true"),
        ("CKA_EXTRACTABLE", "false"),
        ("CKA_NEVER_EXTRACTABLE", "true"),
        ("CKA_UNWRAP", "false"),
        ("CKA_DERIVE", "false"),
    ] {
        let found = seen.attributes.iter().find(|(n, _)| n == name);
        assert_eq!(found.map(|(_, v)| v.as_str()), Some(wanted), "{name}");
    }
    let signed = rig.token.sign("audit", b"a message").await.unwrap();
    assert_eq!(signed.signer, seen);
    let public = VerifyingKey::from_sec1_bytes(&seen.public_key).unwrap();
    let signature = Signature::from_slice(&signed.bytes).unwrap();
    public.verify(b"a message", &signature).unwrap();
    assert!(public.verify(b"another", &signature).is_err());

    let again = rig.token.generate_signer("audit").await.unwrap_err();
    assert!(matches!(again, TokenError::Exists { .. }), "{again:?}");
}

#[tokio::test]
async fn what_is_no_audit_key_does_not_sign_and_disturbs_nobody() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let rig = Rig::new(hsm, &[key("archive")]).await;
    // A wrapping key, and none at all.
    for label in ["archive", "nothing"] {
        let error = rig.token.sign(label, b"a message").await.unwrap_err();
        let TokenError::Misconfigured { detail, hint } = error else {
            panic!("{error:?}");
        };
        assert!(detail.contains("no private key of that label"), "{detail}");
        assert!(hint.contains("--audit"), "{hint}");
    }
    rig.token.probe().await.unwrap();
}
