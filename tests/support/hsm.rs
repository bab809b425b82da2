//! A soft token in a temporary directory, with its wrapping key: SoftHSM or
//! Kryoptic, as [`TokenKind::chosen`] says.
//!
//! Token and key are made by the real binary. What the binary would never do
//! (keys of known bytes, extractable keys, a second key of the same label) is
//! done with cryptoki in a child: this test binary again, asked for one test,
//! since both take their directory from the process's environment.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use serde::{Deserialize, Serialize};

use super::TokenKind;
use super::process::{run, strongroom};

/// CKA_LABEL of the token that [`Hsm`] makes.
pub const TOKEN_LABEL: &str = "strongroom-test";
/// The token's name in the configuration.
pub const TOKEN: &str = "primary";
/// The wrapping key's name and label.
pub const KEY: &str = "archive";

/// A token directory with its configuration file.
pub struct Hsm {
    dir: tempfile::TempDir,
    kind: TokenKind,
    conf: PathBuf,
}

impl Hsm {
    /// A token with one wrapping key generated in it, both made as a user would.
    #[track_caller]
    pub fn new() -> Self {
        let hsm = Self::empty();
        let mut command = hsm.command();
        command
            .args(["key", "generate", KEY, "--token", TOKEN, "--config"])
            .arg(hsm.config_path());
        run(&mut command, b"").ok();
        hsm
    }

    /// A token with one wrapping key of known bytes, configured as imported, so
    /// that other implementations can hold it too.
    #[track_caller]
    pub fn with_key(bytes: &[u8; 32]) -> Self {
        let hsm = Self::empty();
        hsm.import_key(bytes);
        hsm
    }

    /// Puts the wrapping key of [`Self::with_key`] into a token without one.
    #[track_caller]
    pub fn import_key(&self, bytes: &[u8; 32]) {
        self.create(&KeySpec::new(KEY).bytes(bytes));
        self.configure_key(KEY, KEY, "imported = true\n");
    }

    /// An initialised token without any key.
    #[track_caller]
    pub fn empty() -> Self {
        let hsm = Self::bare();
        hsm.init();
        hsm
    }

    /// Makes the token of a [`Self::bare`] one, with the PINs in its files.
    #[track_caller]
    pub fn init(&self) {
        let mut command = self.command();
        command
            .args(["token", "init", "--label", TOKEN_LABEL, "--module"])
            .arg(module())
            .arg("--so-pin-file")
            .arg(self.so_pin_file())
            .arg("--pin-file")
            .arg(self.pin_file());
        run(&mut command, b"").ok();
    }

    /// The module's configuration and PIN files; no token yet.
    pub fn bare() -> Self {
        let (dir, kind) = (super::temp_dir(), TokenKind::chosen());
        let conf = kind.configure(dir.path());
        let hsm = Self { dir, kind, conf };
        // Set-up mistakes that only show with a newline at the end are common.
        hsm.write_pin(&hsm.pin_file(), &format!("{}\n", random_pin()));
        hsm.write_pin(&hsm.so_pin_file(), &random_pin());
        fs::write(
            hsm.config_path(),
            format!(
                "[[token]]\nname = {TOKEN:?}\nmodule = {:?}\ntoken_label = {TOKEN_LABEL:?}\npin_file = {:?}\nnetwork = false\n",
                module().display().to_string(),
                hsm.pin_file().display().to_string()
            ),
        )
        .unwrap();
        hsm
    }

    /// The directory with all of it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Which implementation it is.
    pub fn kind(&self) -> TokenKind {
        self.kind
    }

    /// The module's configuration file: what [`TokenKind::variable`] must name.
    pub fn conf(&self) -> PathBuf {
        self.conf.clone()
    }

    /// The file with the user PIN.
    pub fn pin_file(&self) -> PathBuf {
        self.dir.path().join("pin")
    }

    /// The file with the security officer's PIN.
    pub fn so_pin_file(&self) -> PathBuf {
        self.dir.path().join("so-pin")
    }

    /// The user PIN itself.
    pub fn pin(&self) -> String {
        fs::read_to_string(self.pin_file())
            .unwrap()
            .trim_end()
            .to_owned()
    }

    /// Overwrites a PIN file, mode 0400.
    pub fn write_pin(&self, path: &Path, text: &str) {
        // A new file each time: a PIN error is remembered by the file's inode.
        let _ = fs::remove_file(path);
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
    }

    /// A configuration with `[[token]]` and `[[key]]` alone; an agent's has
    /// this and its own settings.
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("strongroom.toml")
    }

    /// Its text.
    pub fn config(&self) -> String {
        fs::read_to_string(self.config_path()).unwrap()
    }

    /// Adds a `[[key]]`; `more` is further lines of it.
    pub fn configure_key(&self, name: &str, label: &str, more: &str) {
        let text = format!(
            "{}\n[[key]]\nname = {name:?}\ntoken = {TOKEN:?}\nlabel = {label:?}\n{more}",
            self.config()
        );
        fs::write(self.config_path(), text).unwrap();
    }

    /// The binary under test, with the module's configuration.
    pub fn command(&self) -> Command {
        let mut command = strongroom();
        command.env(self.kind.variable(), &self.conf);
        command
    }

    /// Makes a key in the token with exactly these attributes.
    #[track_caller]
    pub fn create(&self, key: &KeySpec) {
        self.child(&Job::Create {
            token: TOKEN_LABEL.to_owned(),
            pin: self.pin(),
            key: key.clone(),
        });
    }

    /// The same in a token that [`Self::add_token`] made.
    #[track_caller]
    pub fn create_on(&self, token: &str, key: &KeySpec) {
        self.child(&Job::Create {
            token: token.to_owned(),
            pin: self.pin(),
            key: key.clone(),
        });
    }

    /// Makes a further token with the same PINs; its label may be taken.
    #[track_caller]
    pub fn add_token(&self, label: &str) {
        self.child(&Job::Init {
            label: label.to_owned(),
            pin: self.pin(),
            so_pin: fs::read_to_string(self.so_pin_file()).unwrap(),
        });
    }

    /// Removes all keys of this label.
    #[track_caller]
    pub fn destroy(&self, label: &str) {
        self.child(&Job::Destroy {
            token: TOKEN_LABEL.to_owned(),
            pin: self.pin(),
            label: label.to_owned(),
        });
    }

    #[track_caller]
    fn child(&self, job: &Job) {
        let file = self.dir.path().join("job.json");
        fs::write(&file, serde_json::to_vec(job).unwrap()).unwrap();
        let test = module_path!().split_once("::").unwrap().1;
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", &format!("{test}::token_child"), "--nocapture"])
            .env(JOB, &file)
            .env(self.kind.variable(), &self.conf);
        let done = run(&mut command, b"").ok();
        assert!(done.text().contains(DONE), "{}", done.text());
        fs::remove_file(file).unwrap();
    }
}

/// The PKCS#11 library of the token that this run is about.
pub fn module() -> PathBuf {
    TokenKind::chosen().module()
}

/// A key to make, with the attributes a wrapping key should have; tests change
/// them one by one.
#[derive(Clone, Serialize, Deserialize)]
pub struct KeySpec {
    label: String,
    bytes: Option<[u8; 32]>,
    flags: Vec<(String, bool)>,
    gcm_only: bool,
}

impl KeySpec {
    /// A generated AES-256 key with sound attributes.
    pub fn new(label: &str) -> Self {
        let flags = [
            ("sensitive", true),
            ("extractable", false),
            ("encrypt", true),
            ("decrypt", true),
            ("sign", false),
            ("verify", false),
            ("wrap", false),
            ("unwrap", false),
            ("derive", false),
            ("modifiable", false),
            ("copyable", false),
        ];
        Self {
            label: label.to_owned(),
            bytes: None,
            flags: flags.map(|(name, on)| (name.to_owned(), on)).into(),
            gcm_only: true,
        }
    }

    /// With these bytes (C_CreateObject) instead of generated in the token.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8; 32]) -> Self {
        self.bytes = Some(*bytes);
        self
    }

    /// With another value of one boolean attribute, named in lower case without
    /// its CKA_: `extractable`, `sign`, ….
    #[must_use]
    pub fn with(mut self, attribute: &str, on: bool) -> Self {
        let flag = self.flags.iter_mut().find(|(name, _)| name == attribute);
        flag.unwrap_or_else(|| panic!("no attribute {attribute}")).1 = on;
        self
    }

    /// Without ALLOWED_MECHANISMS.
    #[must_use]
    pub fn any_mechanism(mut self) -> Self {
        self.gcm_only = false;
        self
    }

    fn template(&self) -> Vec<Attribute> {
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Label(self.label.clone().into_bytes()),
        ];
        template.extend(self.flags.iter().map(|(name, on)| match name.as_str() {
            "sensitive" => Attribute::Sensitive(*on),
            "extractable" => Attribute::Extractable(*on),
            "encrypt" => Attribute::Encrypt(*on),
            "decrypt" => Attribute::Decrypt(*on),
            "sign" => Attribute::Sign(*on),
            "verify" => Attribute::Verify(*on),
            "wrap" => Attribute::Wrap(*on),
            "unwrap" => Attribute::Unwrap(*on),
            "derive" => Attribute::Derive(*on),
            "modifiable" => Attribute::Modifiable(*on),
            "copyable" => Attribute::Copyable(*on),
            other => panic!("no attribute {other}"),
        }));
        if self.gcm_only {
            template.push(Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]));
        }
        match self.bytes {
            Some(bytes) => template.push(Attribute::Value(bytes.to_vec())),
            None => template.push(Attribute::ValueLen(32.into())),
        }
        template
    }
}

/// A PIN of 20 random digits: some tokens take only digits, some at least 8,
/// and one of less than 16 could not be sought among other bytes.
fn random_pin() -> String {
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes).unwrap();
    bytes.iter().map(|b| char::from(b'0' + b % 10)).collect()
}

/// The environment variable that makes [`token_child`] do something.
const JOB: &str = "STRONGROOM_TEST_TOKEN_JOB";
/// What it prints when it did.
const DONE: &str = "token job done";

#[derive(Serialize, Deserialize)]
enum Job {
    Init {
        label: String,
        pin: String,
        so_pin: String,
    },
    Create {
        token: String,
        pin: String,
        key: KeySpec,
    },
    Destroy {
        token: String,
        pin: String,
        label: String,
    },
}

/// Not a test by itself: the child that [`Hsm::child`] starts.
#[test]
fn token_child() {
    let Some(file) = std::env::var_os(JOB) else {
        return;
    };
    let job: Job = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let pkcs11 = Pkcs11::new(module()).unwrap();
    pkcs11
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .unwrap();
    match job {
        Job::Init { label, pin, so_pin } => {
            let slots = pkcs11.get_slots_with_token().unwrap();
            let free = |slot: &Slot| !pkcs11.get_token_info(*slot).unwrap().token_initialized();
            let slot = slots.into_iter().find(free).expect("a free slot");
            let so_pin = AuthPin::new(so_pin.trim_end().into());
            pkcs11.init_token(slot, &so_pin, &label).unwrap();
            let session = pkcs11.open_rw_session(slot).unwrap();
            session.login(UserType::So, Some(&so_pin)).unwrap();
            session.init_pin(&AuthPin::new(pin.into())).unwrap();
        }
        Job::Create { token, pin, key } => {
            let session = log_in(&pkcs11, &token, pin);
            if key.bytes.is_some() {
                session.create_object(&key.template()).unwrap();
            } else {
                session
                    .generate_key(&Mechanism::AesKeyGen, &key.template())
                    .unwrap();
            }
        }
        Job::Destroy { token, pin, label } => {
            let session = log_in(&pkcs11, &token, pin);
            for object in session
                .find_objects(&[Attribute::Label(label.into_bytes())])
                .unwrap()
            {
                session.destroy_object(object).unwrap();
            }
        }
    }
    println!("{DONE}");
}

fn log_in(pkcs11: &Pkcs11, label: &str, pin: String) -> Session {
    let slots = pkcs11.get_slots_with_initialized_token().unwrap();
    let slot = slots
        .into_iter()
        .find(|slot| pkcs11.get_token_info(*slot).unwrap().label() == label)
        .unwrap();
    let session = pkcs11.open_rw_session(slot).unwrap();
    session
        .login(UserType::User, Some(&AuthPin::new(pin.into())))
        .unwrap();
    session
}
