//! Wrapping keys: made with every attribute, refused at the gate, known again
//! by their canary.

use strongroom::token::{CanaryStore, Health, TokenError};

use crate::hsm::Hsm;
use crate::{Rig, key, secret};

#[test]
fn a_token_is_initialised_and_a_key_generated_through_pkcs11_alone() {
    let hsm = Hsm::empty();
    let before = hsm.admin().list_tokens(&hsm.module).unwrap();
    assert!(
        before
            .iter()
            .all(|t| !t.initialized && t.aes_gcm != Some(false)),
        "{before:?}"
    );
    let entry = hsm.init("strongroom").unwrap();
    assert!(entry.initialized && entry.user_pin_set && entry.soft && !entry.serial.is_empty());
    assert_eq!(entry.aes_gcm, Some(true));
    let again = hsm.init("strongroom").unwrap_err();
    assert!(again.detail.contains("already exists"), "{again}");

    let info = hsm.admin().generate_key(&hsm.config(), "archive").unwrap();
    let attribute = |name: &str| {
        let found = info.attributes.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    };
    for (name, value) in [
        ("CKA_EXTRACTABLE", "false"),
        ("CKA_SENSITIVE", "true"),
        ("CKA_NEVER_EXTRACTABLE", "true"),
        ("CKA_LOCAL", "true"),
        ("CKA_SIGN", "false"),
        ("CKA_VERIFY", "false"),
        ("CKA_WRAP", "false"),
        ("CKA_UNWRAP", "false"),
        ("CKA_DERIVE", "false"),
        ("CKA_MODIFIABLE", "false"),
        ("CKA_COPYABLE", "false"),
        ("CKA_ALLOWED_MECHANISMS", "CKM_AES_GCM"),
    ] {
        assert_eq!(
            attribute(name),
            Some(value),
            "{name}: {:?}",
            info.attributes
        );
    }
    println!("check value {:?}", info.check_value);
    let again = hsm
        .admin()
        .generate_key(&hsm.config(), "archive")
        .unwrap_err();
    assert!(again.detail.contains("already on the token"), "{again}");
}

#[test]
fn rule_17_a_wrapping_key_never_does_aes_ecb() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let (input, output) = (hsm.path("zeros"), hsm.path("ghash-key"));
    std::fs::write(&input, [0; 16]).unwrap();
    let encrypt = |mechanism: &str| {
        hsm.tool(&[
            "--encrypt",
            "--label",
            "archive",
            "-m",
            mechanism,
            "--iv",
            "00000000000000000000000000000000",
            "-i",
            input.to_str().unwrap(),
            "-o",
            output.to_str().unwrap(),
        ])
    };
    for mechanism in ["AES-ECB", "AES-CBC"] {
        let out = encrypt(mechanism);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            !out.status.success() && said.contains("CKR_MECHANISM_INVALID"),
            "{mechanism}: {said}"
        );
    }
}

#[tokio::test]
async fn a_key_that_fails_the_gate_is_refused_and_the_others_serve() {
    let hsm = Hsm::new();
    hsm.generate("good");
    hsm.generate("twin");
    hsm.tool_ok(&[
        "--keygen",
        "--key-type",
        "AES:32",
        "--label",
        "twin",
        "--sensitive",
    ]);
    hsm.tool_ok(&[
        "--keygen",
        "--key-type",
        "AES:32",
        "--label",
        "loose",
        "--sensitive",
        "--extractable",
    ]);
    std::fs::write(hsm.path("key.bin"), [3; 32]).unwrap();
    let bytes = hsm.path("key.bin");
    hsm.tool_ok(&[
        "--write-object",
        bytes.to_str().unwrap(),
        "--type",
        "secrkey",
        "--key-type",
        "AES:32",
        "--label",
        "import",
        "--sensitive",
        "--usage-decrypt",
    ]);
    let keys = ["good", "twin", "loose", "absent", "import"].map(key);
    let rig = Rig::new(hsm, &keys).await;
    assert_eq!(*rig.token.health().borrow(), Health::Degraded);
    rig.token.wrap("good", &secret(1), b"x").await.unwrap();
    for (name, words) in [
        ("twin", "key twin: two keys are labelled \"twin\""),
        (
            "loose",
            "key loose: CKA_EXTRACTABLE is true; a wrapping key must never leave the token",
        ),
        (
            "absent",
            "key absent: no key on the token is labelled \"absent\"",
        ),
        ("import", "key import: CKA_"),
    ] {
        let error = rig.token.wrap(name, &secret(1), b"x").await.unwrap_err();
        let TokenError::Misconfigured { detail, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(detail.starts_with(words), "{detail}");
    }
    let states = rig.token.keys();
    assert!(states[0].ready && states[1..].iter().all(|k| !k.ready && k.problem.is_some()));
}

#[tokio::test]
async fn when_no_key_passes_the_token_is_misconfigured_until_the_keys_are_set_right() {
    let hsm = Hsm::new();
    let rig = Rig::new(hsm, &[key("late")]).await;
    assert_eq!(*rig.token.health().borrow(), Health::Misconfigured);
    let status = rig.token.status();
    assert!(
        status
            .detail
            .unwrap()
            .contains("no key on the token is labelled"),
        "{:?}",
        status.hint
    );
    let opened = rig.token.generate_key("late").await.unwrap();
    assert!(!opened.attributes.is_empty());
    let taken = rig.token.generate_key("late").await.unwrap_err();
    assert!(matches!(taken, TokenError::Exists { .. }), "{taken:?}");
    rig.token.set_keys(vec![key("late")]);
    let mut health = rig.token.health();
    health.wait_for(|h| *h == Health::Ready).await.unwrap();
    rig.token.wrap("late", &secret(1), b"x").await.unwrap();
}

#[tokio::test]
async fn rule_18_another_key_under_the_same_label_is_not_the_key_it_was() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
    let canary = CanaryStore::load(&*rig.store, "archive").unwrap().unwrap();
    rig.respawn();
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
    assert_eq!(
        CanaryStore::load(&*rig.store, "archive").unwrap().unwrap(),
        canary,
        "made once"
    );
    rig.hsm
        .tool_ok(&["--delete-object", "--type", "secrkey", "--label", "archive"]);
    rig.hsm.generate("archive");
    rig.respawn();
    let mut health = rig.token.health();
    health
        .wait_for(|h| *h == Health::Misconfigured)
        .await
        .unwrap();
    let error = rig
        .token
        .wrap("archive", &secret(1), b"x")
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("is not the key it was"),
        "{error}"
    );
    assert!(matches!(error, TokenError::Misconfigured { .. }));
}

/// A module may take it for good that its token was away for a moment: keys
/// that were there are looked for by another worker before somebody must.
#[tokio::test]
async fn a_worker_that_misses_a_key_that_was_there_gives_way_to_another() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    rig.hsm
        .tool_ok(&["--delete-object", "--type", "secrkey", "--label", "archive"]);
    rig.respawn();
    let mut health = rig.token.health();
    health
        .wait_for(|h| *h == Health::Misconfigured)
        .await
        .unwrap();
    health.wait_for(|h| *h == Health::Recovering).await.unwrap();
    assert_eq!(rig.exit_code().await, Some(0));
    // The next one is not replaced as soon as that.
    rig.respawn();
    health
        .wait_for(|h| *h == Health::Misconfigured)
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert!(rig.child.try_wait().unwrap().is_none());
    assert_eq!(*health.borrow(), Health::Misconfigured);
}

#[tokio::test]
async fn rule_18_a_check_value_is_the_tokens_own_three_bytes() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let rig = Rig::new(hsm, &[key("archive")]).await;
    let value = rig.token.keys()[0].check_value;
    let out = rig.hsm.tool(&["--list-objects", "--type", "secrkey"]);
    println!("{value:02x?} {}", String::from_utf8_lossy(&out.stdout));
    if let Some(value) = value {
        assert_ne!(value, [0; 3]);
    }
}

#[tokio::test]
async fn rule_19_gate_canary_probe_and_every_failed_wrap_count() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut config = hsm.config();
    config.call_timeout = strongroom::config::Timeout::from_secs(1);
    let mut rig = Rig::with(hsm, &config, &[key("archive")]).await;
    let used = |rig: &Rig| rig.counts.count("archive").unwrap().used;
    // What a proof and a wrap are charged with at most.
    let (proof, most) = (4, 12);
    // The gate says not how many it needed; the canary's wrap was one.
    assert_eq!(used(&rig), proof + 1);
    let wrapped = rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
    assert_eq!(used(&rig), proof + 2);
    let (iv, ciphertext) = (&wrapped.iv, &wrapped.ciphertext);
    let unwrapped = rig.token.unwrap("archive", iv, ciphertext, b"x").await;
    assert_eq!(unwrapped.unwrap().expose(), secret(1).expose());
    assert_eq!(used(&rig), proof + 2, "an unwrap is none");
    rig.token.probe().await.unwrap();
    assert_eq!(used(&rig), 2 * proof + 2);
    // Nobody knows whether this one was made.
    rig.signal("STOP");
    let failed = rig.token.wrap("archive", &secret(1), b"x").await;
    assert_eq!(failed, Err(TokenError::Timeout));
    assert_eq!(used(&rig), 2 * proof + 2 + most);
    // A recovery passes the gate again.
    rig.respawn();
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
    assert_eq!(used(&rig), 3 * proof + 3 + most);
}
