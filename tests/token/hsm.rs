//! A soft token of a test's own.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use strongroom::admin::Admin;
use strongroom::config;
use strongroom::secret::Pin;
use strongroom::token::{self, InitTarget, KeySpec};
use zeroize::Zeroizing;

use crate::support::TokenKind;
use crate::support::process::install;

pub(crate) const PIN: &str = "4711-user-pin";
pub(crate) const SO_PIN: &str = "0815-so-pin";

/// A token's directory, with an initialised token `strongroom`.
pub(crate) struct Hsm {
    pub(crate) kind: TokenKind,
    /// The module's configuration.
    pub(crate) conf: PathBuf,
    pub(crate) module: PathBuf,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) exe: PathBuf,
}

impl Hsm {
    pub(crate) fn empty() -> Self {
        let (dir, kind) = (tempfile::tempdir().unwrap(), TokenKind::chosen());
        let hsm = Self {
            kind,
            conf: kind.configure(dir.path()),
            module: kind.module(),
            exe: dir.path().join("worker"),
            dir,
        };
        hsm.write_exe("");
        hsm.write_pin("pin", PIN, 0o400);
        hsm
    }

    pub(crate) fn new() -> Self {
        let hsm = Self::empty();
        hsm.init("strongroom").unwrap();
        hsm
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write_exe(&self, more: &str) {
        let script = format!(
            "#!/bin/sh\nexport {}={} {more}\nexec {} \"$@\"\n",
            self.kind.variable(),
            self.conf.display(),
            env!("CARGO_BIN_EXE_strongroom")
        );
        // Under a new name first: a script that is being written cannot run.
        std::fs::write(self.path("worker.text"), script).unwrap();
        install(self.path("worker.text"), &self.path("worker.new"));
        std::fs::rename(self.path("worker.new"), &self.exe).unwrap();
    }

    pub(crate) fn write_pin(&self, name: &str, pin: &str, mode: u32) {
        let _ = std::fs::remove_file(self.path(name));
        std::fs::write(self.path(name), format!("{pin}\n")).unwrap();
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin::with(&self.exe)
    }

    pub(crate) fn init(&self, label: &str) -> Result<token::TokenEntry, strongroom::api::Error> {
        let pin = |text: &str| Pin::new(Zeroizing::new(text.to_owned()));
        self.admin().init_token(
            &self.module,
            &InitTarget::Free,
            label,
            &pin(SO_PIN),
            &pin(PIN),
        )
    }

    pub(crate) fn config(&self) -> config::Token {
        config::Token {
            name: "primary".into(),
            module: self.module.clone(),
            token_label: Some("strongroom".into()),
            serial: None,
            pin_file: Some(self.path("pin")),
            pin_credential: None,
            gcm_iv: config::GcmIv::Auto,
            sessions: 4,
            call_timeout: config::Timeout::from_secs(3),
            network: true,
            verify_wraps: false,
        }
    }

    pub(crate) fn generate(&self, label: &str) {
        self.admin().generate_key(&self.config(), label).unwrap();
    }

    /// Runs `pkcs11-tool`, logged in as the user.
    pub(crate) fn tool(&self, args: &[&str]) -> std::process::Output {
        Command::new("pkcs11-tool")
            .env(self.kind.variable(), &self.conf)
            .arg("--module")
            .arg(&self.module)
            .args(["--token-label", "strongroom", "--login", "--pin", PIN])
            .args(args)
            .output()
            .unwrap()
    }

    pub(crate) fn tool_ok(&self, args: &[&str]) {
        let out = self.tool(args);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }

    pub(crate) fn check(&self, token: &config::Token, keys: &[KeySpec]) -> Vec<String> {
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
