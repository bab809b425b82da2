//! The stock AWS Encryption SDKs for Python and JavaScript: readers and writers
//! of the format that nobody here wrote. Each runs as a script of tests/readers.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{Run, run};

/// A stock SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sdk {
    /// `aws-encryption-sdk` for Python.
    Python,
    /// `@aws-crypto/client-node`.
    Node,
}

/// All of them.
pub const SDKS: [Sdk; 2] = [Sdk::Python, Sdk::Node];

/// The key namespace of everything Strongroom wraps.
const NAMESPACE: &str = "strongroom";

/// A raw AES-256 wrapping key, as the SDKs hold it.
pub struct RawKey {
    file: tempfile::NamedTempFile,
    name: String,
}

impl RawKey {
    /// The key of this name with these bytes.
    pub fn new(name: &str, bytes: &[u8; 32]) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Self {
            file,
            name: name.to_owned(),
        }
    }
}

impl Sdk {
    /// Decrypts a file into a file; gives the message's encryption context.
    #[track_caller]
    pub fn decrypt(self, key: &RawKey, message: &Path, plaintext: &Path) -> serde_json::Value {
        self.try_decrypt(key, message, plaintext).ok().json()
    }

    /// Decrypts a file that may not be decryptable.
    #[track_caller]
    pub fn try_decrypt(self, key: &RawKey, message: &Path, plaintext: &Path) -> Run {
        let mut command = self.script("decrypt", key);
        command.arg(message).arg(plaintext);
        run(&mut command, b"")
    }

    /// Encrypts a file into a file under suite 0x0478 with this context and
    /// frame length.
    #[track_caller]
    pub fn encrypt(
        self,
        key: &RawKey,
        context: &[(&str, &str)],
        frame_length: u32,
        plaintext: &Path,
        message: &Path,
    ) {
        let context: serde_json::Map<_, _> = context
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).into()))
            .collect();
        let mut command = self.script("encrypt", key);
        command
            .arg(plaintext)
            .arg(message)
            .arg(serde_json::Value::Object(context).to_string())
            .arg(frame_length.to_string());
        run(&mut command, b"").ok();
    }

    fn script(self, operation: &str, key: &RawKey) -> Command {
        let scripts = super::root().join("tests/readers");
        let (program, script): (PathBuf, _) = match self {
            Self::Python => (super::cache().join("venv/bin/python"), "esdk.py"),
            Self::Node => ("node".into(), "esdk.mjs"),
        };
        let modules = super::cache().join("node/node_modules");
        let there = match self {
            Self::Python => program.exists(),
            Self::Node => modules.exists(),
        };
        if !there {
            super::lacking(&format!("the stock {self:?} SDK"));
        }
        let mut command = Command::new(program);
        command
            .arg(scripts.join(script))
            .args([operation, NAMESPACE, &key.name])
            .arg(key.file.path())
            .env("STRONGROOM_NODE_MODULES", modules)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}
