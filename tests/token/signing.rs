//! The audit key: made in the token, signs, and cannot be anything else.

use std::time::{Duration, Instant};

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use strongroom::config;
use strongroom::token::TokenError;

use crate::hsm::Hsm;
use crate::support::shim::*;
use crate::{Rig, key, secret};

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

/// Whatever becomes of a signature, it is a good one or none, wraps go on, and
/// the key signs again when the token does.
#[tokio::test]
async fn a_token_that_signs_badly_gives_no_signature_and_comes_back() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let shim = Shim::new(&hsm.module);
    let config = config::Token {
        module: shim.module(),
        // Of which a busy machine takes some for itself.
        call_timeout: config::Timeout::from_secs(3),
        ..hsm.config()
    };
    let mut rig = Rig::with(hsm, &config, &[key("archive")]).await;
    rig.token.generate_signer("audit").await.unwrap();
    let faults = [
        ("FUNCTION_FAILED", Action::Return(0x006)),
        ("DEVICE_ERROR", Action::Return(0x030)),
        ("USER_NOT_LOGGED_IN", Action::Return(0x101)),
        ("SESSION_HANDLE_INVALID", Action::Return(0x0B3)),
        ("KEY_HANDLE_INVALID", Action::Return(0x060)),
        ("MECHANISM_INVALID", Action::Return(0x070)),
        ("a vendor's own", Action::Return(0x8000_0042)),
        ("hang", Action::Hang),
        ("crash", Action::Segv),
        ("session loss", Action::LoseSessions),
        ("logout", Action::Logout),
        ("corrupt output", Action::Corrupt),
        ("zeroed output", Action::Zero),
        ("over-reported output", Action::OverReport),
    ];
    for function in [C_SignInit, C_Sign] {
        for (name, action) in &faults {
            shim.plan(&Plan::default().always(function, action.clone()));
            // A session that the last fault left in the middle of an operation
            // refuses the next call, and is replaced.
            let asked = Instant::now();
            let (signed, happened) = loop {
                let signed = rig.token.sign("audit", b"a message").await;
                let happened = shim.happened(0);
                let over = asked.elapsed() > Duration::from_secs(10);
                if happened > 0 || signed.is_ok() || over {
                    break (signed, happened);
                }
            };
            shim.clear();
            let why = signed.as_ref().err();
            assert!(happened > 0, "{function:?} {name}: never called: {why:?}");
            // What gives nothing back cannot be harmed.
            let harmless = function == C_SignInit && name.ends_with("output");
            match signed {
                Ok(signed) => {
                    // Perhaps it was tried again; it is good in any case.
                    let public = VerifyingKey::from_sec1_bytes(&signed.signer.public_key).unwrap();
                    let signature = Signature::from_slice(&signed.bytes).unwrap();
                    public.verify(b"a message", &signature).unwrap();
                }
                Err(_) => assert!(!harmless, "{function:?} {name}"),
            }
            let began = Instant::now();
            loop {
                let ended = rig.child.try_wait().unwrap().is_some();
                // What hangs, nobody but its end cures.
                if ended || *name == "hang" && rig.stuck.try_recv().is_ok() {
                    rig.respawn_with(&config);
                }
                if rig.token.sign("audit", b"a message").await.is_ok()
                    && rig.token.wrap("archive", &secret(1), b"x").await.is_ok()
                {
                    break;
                }
                assert!(
                    began.elapsed() < Duration::from_secs(30),
                    "{function:?} {name}: it does not come back"
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
