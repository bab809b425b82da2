//! The token layer against a real SoftHSM: worker processes, gate, canary,
//! and what happens when each is wrong.
//!
//! Each test has a token directory of its own. The worker's environment is
//! set by a small script in its place, because the environment of this test
//! process is shared by all tests.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use strongroom::admin::Admin;
use strongroom::config;
use strongroom::secret::{Pin, Secret32};
use strongroom::token::{
    self, Canary, CanaryStore, Health, InitTarget, KeySpec, Stuck, Token, TokenError, worker,
};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711-user-pin";
const SO_PIN: &str = "0815-so-pin";

/// A SoftHSM directory with an initialised token `strongroom`.
struct Hsm {
    dir: tempfile::TempDir,
    exe: PathBuf,
}

impl Hsm {
    fn empty() -> Self {
        assert!(
            Path::new(MODULE).exists(),
            "these tests need SoftHSM (apt-get install softhsm2)"
        );
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("tokens")).unwrap();
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            at("tokens").display()
        );
        std::fs::write(at("softhsm2.conf"), conf).unwrap();
        let hsm = Self {
            exe: at("worker"),
            dir,
        };
        hsm.write_exe("");
        hsm.write_pin("pin", PIN, 0o400);
        hsm
    }

    fn new() -> Self {
        let hsm = Self::empty();
        hsm.init("strongroom").unwrap();
        hsm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_exe(&self, more: &str) {
        let script = format!(
            "#!/bin/sh\nexport SOFTHSM2_CONF={} {more}\nexec {} \"$@\"\n",
            self.path("softhsm2.conf").display(),
            env!("CARGO_BIN_EXE_strongroom")
        );
        // Under a new name first: a script that is being written cannot run.
        std::fs::write(self.path("worker.new"), script).unwrap();
        std::fs::set_permissions(self.path("worker.new"), PermissionsExt::from_mode(0o700))
            .unwrap();
        std::fs::rename(self.path("worker.new"), &self.exe).unwrap();
    }

    fn write_pin(&self, name: &str, pin: &str, mode: u32) {
        let _ = std::fs::remove_file(self.path(name));
        std::fs::write(self.path(name), format!("{pin}\n")).unwrap();
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    fn admin(&self) -> Admin {
        Admin::with(&self.exe)
    }

    fn init(&self, label: &str) -> Result<token::TokenEntry, strongroom::api::Error> {
        let pin = |text: &str| Pin::new(Zeroizing::new(text.to_owned()));
        self.admin().init_token(
            Path::new(MODULE),
            &InitTarget::Free,
            label,
            &pin(SO_PIN),
            &pin(PIN),
        )
    }

    fn config(&self) -> config::Token {
        config::Token {
            name: "primary".into(),
            module: MODULE.into(),
            token_label: Some("strongroom".into()),
            serial: None,
            pin_file: Some(self.path("pin")),
            pin_credential: None,
            gcm_iv: config::GcmIv::Auto,
            sessions: 4,
            call_timeout: config::Timeout::from_secs(3),
            network: true,
        }
    }

    fn generate(&self, label: &str) {
        self.admin().generate_key(&self.config(), label).unwrap();
    }

    /// Runs `pkcs11-tool`, logged in as the user.
    fn tool(&self, args: &[&str]) -> std::process::Output {
        Command::new("pkcs11-tool")
            .env("SOFTHSM2_CONF", self.path("softhsm2.conf"))
            .args([
                "--module",
                MODULE,
                "--token-label",
                "strongroom",
                "--login",
                "--pin",
                PIN,
            ])
            .args(args)
            .output()
            .unwrap()
    }

    fn tool_ok(&self, args: &[&str]) {
        let out = self.tool(args);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }

    fn check(&self, token: &config::Token, keys: &[KeySpec]) -> Vec<String> {
        let checks = self.admin().check_token(token, keys);
        let text = |check: strongroom::admin::Check| match check.result {
            Ok(found) => format!("{}: ok: {found}", check.what),
            Err(error) => {
                format!(
                    "{}: {:?}: {error} ({})",
                    check.what,
                    error.kind,
                    error.hint_text()
                )
            }
        };
        checks.into_iter().map(text).collect()
    }
}

fn key(label: &str) -> KeySpec {
    KeySpec {
        name: label.into(),
        label: label.into(),
        imported: false,
    }
}

#[derive(Default)]
struct Store(Mutex<HashMap<String, Canary>>);

impl CanaryStore for Store {
    fn load(&self, key: &str) -> Result<Option<Canary>, String> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }
    fn save(&self, key: &str, canary: &Canary) -> Result<(), String> {
        self.0.lock().unwrap().insert(key.into(), canary.clone());
        Ok(())
    }
}

/// A token handle with its worker.
struct Rig {
    hsm: Hsm,
    token: Token,
    child: Child,
    store: Arc<Store>,
    stuck: mpsc::Receiver<Stuck>,
}

impl Rig {
    async fn new(hsm: Hsm, keys: &[KeySpec]) -> Self {
        let config = hsm.config();
        Self::with(hsm, &config, keys).await
    }

    async fn with(hsm: Hsm, config: &config::Token, keys: &[KeySpec]) -> Self {
        let store = Arc::new(Store::default());
        let (to, stuck) = mpsc::channel(16);
        let token = Token::new("primary", config.call_timeout.duration(), store.clone(), to);
        token.set_keys(keys.to_vec());
        let (child, link) = token::spawn(config, &hsm.exe).unwrap();
        token.attach(link, child.id());
        let rig = Self {
            hsm,
            token,
            child,
            store,
            stuck,
        };
        rig.settled().await;
        rig
    }

    async fn settled(&self) {
        let mut health = self.token.health();
        let settled = health.wait_for(|h| !matches!(h, Health::Starting | Health::Recovering));
        tokio::time::timeout(Duration::from_secs(20), settled)
            .await
            .unwrap()
            .unwrap();
    }

    fn respawn(&mut self) {
        self.kill();
        let (child, link) = token::spawn(&self.hsm.config(), &self.hsm.exe).unwrap();
        self.token.attach(link, child.id());
        self.child = child;
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end, without keeping the runtime from working.
    async fn exit_code(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the worker lives on");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.kill();
    }
}

fn secret(byte: u8) -> Secret32 {
    Secret32::from_slice(&[byte; 32]).unwrap()
}

#[test]
fn a_token_is_initialised_and_a_key_generated_through_pkcs11_alone() {
    let hsm = Hsm::empty();
    let before = hsm.admin().list_tokens(Path::new(MODULE)).unwrap();
    assert!(
        before.iter().all(|t| !t.initialized && t.aes_gcm),
        "{before:?}"
    );
    let entry = hsm.init("strongroom").unwrap();
    assert!(entry.initialized && entry.user_pin_set && entry.soft && !entry.serial.is_empty());
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
async fn data_keys_are_wrapped_and_unwrapped_and_each_wrap_has_its_own_iv() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let rig = Rig::new(hsm, &[key("archive")]).await;
    assert_eq!(
        *rig.token.health().borrow(),
        Health::Ready,
        "{:?}",
        rig.token.status()
    );
    let status = rig.token.status();
    assert!(
        status.soft && status.worker_pid == Some(rig.child.id()),
        "{status:?}"
    );
    let state = &rig.token.keys()[0];
    assert!(state.ready && state.problem.is_none() && !state.attributes.is_empty());
    let mut ivs = std::collections::HashSet::new();
    for aad in [&b"context"[..], b"", &[7; 16_000]] {
        for _ in 0..50 {
            let wrapped = rig.token.wrap("archive", &secret(1), aad).await.unwrap();
            assert!(ivs.insert(wrapped.iv), "rule 17: a repeated IV");
            let opened = rig
                .token
                .unwrap("archive", &wrapped.iv, &wrapped.ciphertext, aad)
                .await;
            assert_eq!(opened.unwrap().expose(), &[1; 32]);
        }
    }
    rig.token.probe().await.unwrap();
    assert!(rig.token.last_proof().unwrap().elapsed() < Duration::from_secs(5));
    let unknown = rig.token.wrap("other", &secret(1), b"").await.unwrap_err();
    assert_eq!(unknown, TokenError::UnknownKey("other".into()));
    let long = rig
        .token
        .wrap("archive", &secret(1), &[0; 70_000])
        .await
        .unwrap_err();
    assert!(matches!(long, TokenError::Rejected { .. }), "{long:?}");
}

#[tokio::test]
async fn a_corrupt_data_key_fails_alone_and_the_worker_stays() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let rig = Rig::new(hsm, &[key("archive")]).await;
    let good = rig
        .token
        .wrap("archive", &secret(9), b"context")
        .await
        .unwrap();
    let token = rig.token.clone();
    let parallel = tokio::spawn(async move {
        for _ in 0..500 {
            token.wrap("archive", &secret(2), b"context").await.unwrap();
        }
    });
    for round in 0..200 {
        let (mut iv, mut ciphertext, mut aad) = (good.iv, good.ciphertext.to_vec(), *b"context");
        match round % 4 {
            0 => iv[round % 12] ^= 1,
            1 => ciphertext[round % 48] ^= 1,
            2 => aad[round % 7] ^= 1,
            _ => drop(ciphertext.pop()),
        }
        let error = rig
            .token
            .unwrap("archive", &iv, &ciphertext, &aad)
            .await
            .err()
            .unwrap();
        assert_eq!(error, TokenError::BadCiphertext);
    }
    parallel.await.unwrap();
    assert_eq!(rig.token.status().worker_pid, Some(rig.child.id()));
}

#[tokio::test]
async fn random_bytes_come_once() {
    let rig = Rig::new(Hsm::new(), &[]).await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        assert!(seen.insert(*rig.token.random().await.unwrap().expose()));
    }
}

#[tokio::test]
async fn rule_22_a_wrong_pin_costs_exactly_one_login() {
    let hsm = Hsm::new();
    hsm.write_pin("pin", "wrong", 0o400);
    let spy = "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so";
    let log = hsm.path("spy.log");
    hsm.write_exe(&format!(
        "PKCS11SPY={MODULE} PKCS11SPY_OUTPUT={}",
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
    let serial = hsm.admin().list_tokens(Path::new(MODULE)).unwrap()[0]
        .serial
        .clone();
    let second = Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", hsm.path("softhsm2.conf"))
        .args([
            "--init-token",
            "--free",
            "--label",
            "strongroom",
            "--pin",
            PIN,
            "--so-pin",
            SO_PIN,
        ])
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
    assert_eq!(*rig.token.health().borrow(), Health::Ready);
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
async fn a_killed_worker_is_replaced_and_requests_in_flight_get_a_temporary_error() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    let wrapped = rig.token.wrap("archive", &secret(5), b"x").await.unwrap();
    // Stopped, so that requests are surely in flight when it dies.
    rig.signal("STOP");
    let token = rig.token.clone();
    let in_flight = tokio::spawn(async move { token.wrap("archive", &secret(6), b"x").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.kill();
    let error = in_flight.await.unwrap().unwrap_err();
    assert!(matches!(error, TokenError::Away { .. }), "{error:?}");
    // A request that arrives meanwhile waits for the new worker.
    let token = rig.token.clone();
    let waiting = tokio::spawn(async move {
        token
            .unwrap("archive", &wrapped.iv, &wrapped.ciphertext, b"x")
            .await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.token.status().health, "recovering");
    rig.respawn();
    assert_eq!(waiting.await.unwrap().unwrap().expose(), &[5; 32]);
    // Nobody comes: away, within call_timeout.
    rig.kill();
    let begun = Instant::now();
    let error = rig
        .token
        .wrap("archive", &secret(6), b"x")
        .await
        .unwrap_err();
    assert!(matches!(error, TokenError::Away { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_stuck_worker_fails_its_callers_in_time_and_is_reported() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    rig.signal("STOP");
    let begun = Instant::now();
    let error = rig
        .token
        .wrap("archive", &secret(6), b"x")
        .await
        .unwrap_err();
    assert_eq!(error, TokenError::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(4));
    let stuck = rig.stuck.recv().await.unwrap();
    assert_eq!(
        (stuck.token.as_str(), stuck.pid),
        ("primary", rig.child.id())
    );
    rig.respawn();
    rig.token.wrap("archive", &secret(6), b"x").await.unwrap();
}

#[tokio::test]
async fn rule_18_another_key_under_the_same_label_is_not_the_key_it_was() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
    let canary = rig.store.load("archive").unwrap().unwrap();
    rig.respawn();
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
    assert_eq!(
        rig.store.load("archive").unwrap().unwrap(),
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
async fn rule_24_the_module_and_the_pin_are_in_the_worker_alone() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
    let maps = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(
        !maps(std::process::id()).contains("softhsm"),
        "the module is mapped here"
    );
    let worker = rig.child.id();
    // Only root can look into a process that is not dumpable.
    if std::fs::read(format!("/proc/{worker}/environ")).is_ok() {
        assert!(maps(worker).contains("softhsm"));
    }
    for pid in [std::process::id(), worker] {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(
                !text.contains(PIN) && !text.contains(SO_PIN),
                "{pid}/{file}"
            );
            assert!(pid != worker || !text.contains("PATH="), "rule 27: {text}");
        }
    }
    // Nothing inherited: the log, the link, and what the module opens.
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{worker}/fd"))
        .map(|dir| {
            dir.flatten()
                .filter_map(|fd| std::fs::read_link(fd.path()).ok())
                .collect()
        })
        .unwrap_or_default();
    let sockets = open
        .iter()
        .filter(|to| to.to_string_lossy().starts_with("socket:"));
    assert!(sockets.count() <= 2, "{open:?}");
    // The end of the link is the end of the worker.
    rig.token.down(Health::Down, "test", None);
    assert_eq!(rig.exit_code().await, Some(i32::from(worker::LINK_CLOSED)));
}

#[tokio::test]
async fn a_broken_token_directory_ends_the_worker_with_its_code() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    std::fs::rename(rig.hsm.path("tokens"), rig.hsm.path("away")).unwrap();
    // SoftHSM notices on one call or another.
    for _ in 0..20 {
        if rig.child.try_wait().unwrap().is_some() {
            break;
        }
        let _ = rig.token.wrap("archive", &secret(1), b"x").await;
        rig.token.set_keys(vec![key("archive"), key("other")]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    std::fs::rename(rig.hsm.path("away"), rig.hsm.path("tokens")).unwrap();
    rig.respawn();
    rig.token.set_keys(vec![key("archive")]);
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
}

/// `cargo test --release --test token -- --ignored --nocapture throughput`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let config = config::Token {
        sessions: 16,
        ..hsm.config()
    };
    let rig = Rig::with(hsm, &config, &[key("archive")]).await;
    let aad = [7; 150];
    let begun = Instant::now();
    for _ in 0..2000 {
        rig.token.wrap("archive", &secret(1), &aad).await.unwrap();
    }
    println!("one at a time: {:?} a wrap", begun.elapsed() / 2000);
    for clients in [8, 16, 64] {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|_| {
                let token = rig.token.clone();
                tokio::spawn(async move {
                    for _ in 0..20_000 / clients {
                        token.wrap("archive", &secret(1), &aad).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let rate = 20_000.0 / begun.elapsed().as_secs_f64();
        println!("{clients} callers, 16 sessions: {rate:.0} wraps/s");
    }
}
