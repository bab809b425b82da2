//! Set-ups that are wrong: each fault is named, and a PIN is tried once.

use std::process::Command;
use std::time::Duration;

use strongroom::config;
use strongroom::secret::Pin;
use strongroom::token::{Health, InitTarget, TokenError, worker};
use zeroize::Zeroizing;

use crate::hsm::{Hsm, PIN, SO_PIN};
use crate::support::TokenKind;
use crate::{Rig, key, secret};

#[tokio::test]
async fn rule_22_a_wrong_pin_costs_exactly_one_login() {
    if !TokenKind::SoftHsm.is_only("the spy cannot stand before a module of PKCS#11 3") {
        return;
    }
    let hsm = Hsm::new();
    hsm.write_pin("pin", "wrong", 0o400);
    let spy = "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so";
    let log = hsm.path("spy.log");
    hsm.write_exe(&format!(
        "PKCS11SPY={} PKCS11SPY_OUTPUT={}",
        hsm.module.display(),
        log.display()
    ));
    let config = config::Token {
        module: spy.into(),
        ..hsm.config()
    };
    let mut rig = Rig::with(hsm, &config, &[key("archive")]).await;
    assert_eq!(*rig.token.health().borrow(), Health::Locked);
    for _ in 0..5 {
        let error = rig
            .token
            .wrap("archive", &secret(1), b"x")
            .await
            .unwrap_err();
        let TokenError::Locked { detail, hint } = &error else {
            panic!("{error:?}")
        };
        assert!(
            detail.contains("CKR_PIN_INCORRECT") && hint.contains("SIGHUP"),
            "{error:?}"
        );
    }
    assert_eq!(rig.exit_code().await, Some(i32::from(worker::LOCKED)));
    let calls = std::fs::read_to_string(log).unwrap();
    assert_eq!(calls.matches("C_Login\n").count(), 1, "{calls}");
    // The supervisor's word does not hide the worker's own.
    rig.token.down(Health::Locked, "exit code 10", None);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(
        rig.token
            .status()
            .detail
            .unwrap()
            .contains("CKR_PIN_INCORRECT")
    );
}

#[test]
fn each_fault_of_a_set_up_is_named_with_its_remedy() {
    let hsm = Hsm::new();
    let good = hsm.config();
    let fault = |token: &config::Token| hsm.check(token, &[]).join("\n");
    assert!(
        fault(&good).starts_with("token primary: ok: "),
        "{}",
        fault(&good)
    );

    let missing = config::Token {
        module: "/nonexistent/libpkcs11.so".into(),
        ..good.clone()
    };
    assert!(fault(&missing).contains("no PKCS#11 module at /nonexistent/libpkcs11.so"));
    let no_module = config::Token {
        module: "/bin/sh".into(),
        ..good.clone()
    };
    assert!(
        fault(&no_module).contains("does not load"),
        "{}",
        fault(&no_module)
    );
    let elsewhere = config::Token {
        token_label: Some("other".into()),
        ..good.clone()
    };
    let said = fault(&elsewhere);
    assert!(
        said.contains("no token matches label \"other\"") && said.contains("\"strongroom\""),
        "{said}"
    );
    let no_pin = config::Token {
        pin_file: Some("/nonexistent/pin".into()),
        ..good.clone()
    };
    assert!(fault(&no_pin).contains("cannot read the PIN file /nonexistent/pin"));
    hsm.write_pin("pin", PIN, 0o444);
    let said = fault(&good);
    assert!(
        said.contains("0444") && said.contains("chmod 0400"),
        "{said}"
    );
    hsm.write_pin("pin", "wrong", 0o400);
    let said = fault(&good);
    assert!(
        said.contains("TokenLocked") && said.contains("CKR_PIN_INCORRECT"),
        "{said}"
    );
    let credential = config::Token {
        pin_file: None,
        pin_credential: Some("pin".into()),
        ..good
    };
    assert!(
        fault(&credential).contains("LoadCredential"),
        "{}",
        fault(&credential)
    );
    hsm.write_pin("pin", PIN, 0o400);
    hsm.write_exe(&format!(
        "CREDENTIALS_DIRECTORY={}",
        hsm.dir.path().display()
    ));
    assert!(
        fault(&credential).starts_with("token primary: ok: "),
        "{}",
        fault(&credential)
    );
}

#[test]
fn two_tokens_of_one_label_need_a_serial() {
    let hsm = Hsm::new();
    let serial = hsm.admin().list_tokens(&hsm.module).unwrap()[0]
        .serial
        .clone();
    let second = Command::new("pkcs11-tool")
        .env(hsm.kind.variable(), &hsm.conf)
        .arg("--module")
        .arg(&hsm.module)
        .args(["--init-token", "--slot-index", "1"])
        .args(["--label", "strongroom", "--so-pin", SO_PIN])
        .output()
        .unwrap();
    assert!(second.status.success());
    let mut config = hsm.config();
    let said = hsm.check(&config, &[]).join("\n");
    assert!(
        said.contains("2 tokens match label \"strongroom\": set serial"),
        "{said}"
    );
    config.serial = Some(serial);
    let said = hsm.check(&config, &[]).join("\n");
    assert!(said.starts_with("token primary: ok"), "{said}");
}

#[test]
fn a_pin_that_the_token_would_not_take_is_refused_before_anything_is_made() {
    let hsm = Hsm::empty();
    let pin = |text: &str| Pin::new(Zeroizing::new(text.to_owned()));
    let error = hsm
        .admin()
        .init_token(
            &hsm.module,
            &InitTarget::Free,
            "strongroom",
            &pin(SO_PIN),
            &pin("123"),
        )
        .unwrap_err();
    let range = match hsm.kind {
        TokenKind::SoftHsm => "4 to 255",
        TokenKind::Kryoptic => "at least 8",
    };
    let said = format!("the user's PIN must have {range} characters on this token");
    assert_eq!(error.detail, said);
    let tokens = hsm.admin().list_tokens(&hsm.module).unwrap();
    assert!(tokens.iter().all(|token| !token.initialized), "{tokens:?}");
}
