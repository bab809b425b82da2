//! `recover` with an escrow private key and with components: what opens, and
//! what each refusal says and exits with.

use std::fs;
use std::path::{Path, PathBuf};

use rsa::pkcs1::EncodeRsaPrivateKey as _;
use rsa::pkcs8::{EncodePrivateKey as _, LineEnding};
use rsa::rand_core::OsRng;
use rsa::{RsaPrivateKey, RsaPublicKey};
use strongroom::message::{Context, DataKey, Draft, Edk, Slot};
use strongroom::secret::Secret32;
use strongroom::transport::OaepHash;

use crate::support::{pattern, temp_dir};
use crate::{by_components, components, digits, in_memory, recover};

const FRAME: u32 = 4096;
const PASSPHRASE: &str = "correct horse battery staple";

/// Who can open a message.
#[derive(Default)]
pub(crate) struct Holders<'a> {
    pub(crate) rsa: Option<(&'a str, &'a RsaPublicKey, OaepHash)>,
    pub(crate) aes: Option<(&'a str, [u8; 32])>,
    /// Its EDK goes into a keyslot instead.
    pub(crate) slot: Option<(&'a str, [u8; 32])>,
}

/// A message as the agent writes one, and its keyslot.
pub(crate) fn message(
    plain: &[u8],
    place: (&str, &str),
    holders: &Holders<'_>,
) -> (Vec<u8>, Vec<u8>) {
    let random = Secret32::random().unwrap();
    let mut context = Context::new();
    for (name, value) in [
        ("strongroom:bucket", place.0),
        ("strongroom:key", place.1),
        ("strongroom:created", "1790000000000"),
    ] {
        context.insert(name, value).unwrap();
    }
    let mut draft = Draft::new(DataKey::fresh(&random).unwrap(), context, FRAME).unwrap();
    let aad = draft.aad();
    let wrapped = |draft: &Draft, name: &str, key: &[u8; 32]| {
        use aes_gcm::KeyInit as _;
        use aes_gcm::aead::AeadInOut as _;
        let mut text = draft.data_key().expose().to_vec();
        let iv = [9; 12];
        let tag = aes_gcm::Aes256Gcm::new(key.into())
            .encrypt_inout_detached(&iv.into(), &aad, (&mut text[..]).into())
            .unwrap();
        text.extend_from_slice(&tag);
        Edk::raw_aes(name, &iv, &text).unwrap()
    };
    if let Some((name, key)) = &holders.aes {
        let edk = wrapped(&draft, name, key);
        draft.add_edk(edk).unwrap();
    }
    if let Some((name, public, hash)) = holders.rsa {
        let text = public.encrypt(&mut OsRng, hash.padding(), draft.data_key().expose());
        let edk = Edk::raw_rsa(name, &text.unwrap()).unwrap();
        draft.add_edk(edk).unwrap();
    }
    let mut slot = Vec::new();
    if let Some((name, key)) = &holders.slot {
        let edk = wrapped(&draft, name, key);
        slot = Slot::new(draft.message_id(), edk).unwrap().bytes().unwrap();
    }
    let (header, mut sealer) = draft.seal().unwrap();
    let mut out = header.to_vec();
    let mut frames = plain.chunks(FRAME as usize).peekable();
    while let Some(frame) = frames.next() {
        let last = frames.peek().is_none();
        let head = if last { 24 } else { 16 };
        let mut sealed = vec![0; head];
        sealed.extend_from_slice(frame);
        sealed.extend_from_slice(&[0; 16]);
        if last {
            sealer.seal_final(&mut sealed).unwrap();
            out.extend_from_slice(&sealed);
            return (out, slot);
        }
        sealer.seal_frame(&mut sealed).unwrap();
        out.extend_from_slice(&sealed);
    }
    unreachable!("not for empty messages");
}

struct Escrow {
    dir: tempfile::TempDir,
    private: RsaPrivateKey,
    public: RsaPublicKey,
}

impl Escrow {
    fn new() -> Self {
        let private = RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
        let public = private.to_public_key();
        Self {
            dir: temp_dir(),
            private,
            public,
        }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, content).unwrap();
        path
    }

    fn key(&self) -> PathBuf {
        let pem = self.private.to_pkcs8_pem(LineEnding::LF).unwrap();
        self.file("escrow.pem", &*pem)
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn message(&self, plain: &[u8], hash: OaepHash) -> Vec<u8> {
        let holders = Holders {
            rsa: Some(("escrow-2026", &self.public, hash)),
            aes: Some(("archive", [3; 32])),
            slot: None,
        };
        message(plain, ("acme", "docs/a.pdf"), &holders).0
    }
}

fn key_option(path: &Path) -> Vec<String> {
    vec!["--private-key".into(), path.display().to_string()]
}

#[test]
fn rule_21_an_escrow_key_in_any_form_opens_and_origin_is_said_to_be_unproven() {
    let escrow = Escrow::new();
    let plain = pattern(1, 3 * u64::from(FRAME) + 17);
    for hash in OaepHash::ALL {
        let object = escrow.file("object", escrow.message(&plain, hash));
        let done = recover(&object, &escrow.out(), key_option(&escrow.key())).ok();
        assert!(fs::read(escrow.out()).unwrap() == plain, "{hash}");
        assert!(
            done.stderr.contains("its origin is not proven")
                && done.stderr.contains("was written for s3://acme/docs/a.pdf"),
            "{}",
            done.stderr
        );
    }
    let object = escrow.dir.path().join("object");
    let pkcs1 = escrow.private.to_pkcs1_pem(LineEnding::LF).unwrap();
    let pkcs1 = escrow.file("pkcs1.pem", &*pkcs1);
    let encrypted = escrow
        .private
        .to_pkcs8_encrypted_pem(&mut OsRng, PASSPHRASE, LineEnding::LF)
        .unwrap();
    let encrypted = escrow.file("encrypted.pem", &*encrypted);
    let right = escrow.file("passphrase", format!("{PASSPHRASE}\n"));
    let wrong = escrow.file("wrong", "something else\n");
    for file in [&right, &wrong] {
        fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    }
    recover(&object, &escrow.out(), key_option(&pkcs1)).ok();
    let with = |file: &Path| {
        let mut args = key_option(&encrypted);
        args.extend(["--passphrase-file".into(), file.display().to_string()]);
        args
    };
    fs::remove_file(escrow.out()).unwrap();
    recover(&object, &escrow.out(), with(&right)).ok();
    assert!(fs::read(escrow.out()).unwrap() == plain);
    recover(&object, &escrow.out(), with(&wrong)).fails(1, &["the passphrase does not open"]);

    // To standard output, and as JSON.
    let streamed = recover(&object, Path::new("-"), key_option(&pkcs1)).ok();
    assert!(streamed.stdout == plain);
    let mut json = key_option(&pkcs1);
    json.extend(["--json", "--expect", "s3://acme/docs/a.pdf"].map(str::to_owned));
    let told = recover(&object, &escrow.out(), json).ok().json();
    assert_eq!(told["origin"], "unproven");
    assert_eq!(told["wrapping_key"], "escrow-2026");
    assert_eq!(told["size"], plain.len());
    assert_eq!(
        (&told["bucket"], &told["key"]),
        (&"acme".into(), &"docs/a.pdf".into())
    );
}

#[test]
fn each_refusal_has_its_message_and_exit_code_and_writes_nothing() {
    let escrow = Escrow::new();
    let plain = pattern(2, 2 * u64::from(FRAME));
    let good = escrow.message(&plain, OaepHash::Sha256);
    let object = escrow.file("object", &good);
    let out = escrow.out();
    let key = key_option(&escrow.key());

    // Another key: 67.
    let other = Escrow::new();
    recover(&object, &out, key_option(&other.key())).fails(
        67,
        &[
            "this RSA private key does not open this object",
            "\"escrow-2026\"",
        ],
    );
    // No recipient of that kind: 67, in other words.
    let holders = Holders {
        aes: Some(("archive", [3; 32])),
        ..Holders::default()
    };
    let (unescrowed, _) = message(&plain, ("acme", "k"), &holders);
    let unescrowed = escrow.file("unescrowed", unescrowed);
    recover(&unescrowed, &out, key.clone()).fails(67, &["it was not written for one"]);
    // Another object: 65.
    let mut elsewhere = key.clone();
    elsewhere.extend(["--expect", "s3://acme/docs/b.pdf"].map(str::to_owned));
    recover(&object, &out, elsewhere).fails(
        65,
        &[
            "the object belongs elsewhere",
            "s3://acme/docs/a.pdf",
            "--expect",
        ],
    );
    // Altered: in the header (its context), in a frame, at the end: 65.
    let at = good.windows(6).position(|w| w == b"docs/a").unwrap();
    for (at, word) in [
        (at, "the object was altered"),
        (good.len() - 20, "the object was altered"),
        (good.len() - FRAME as usize - 100, "the object was altered"),
    ] {
        let mut altered = good.clone();
        altered[at] ^= 1;
        let file = escrow.file("altered", &altered);
        recover(&file, &out, key.clone()).fails(65, &[word]);
    }
    let cut = escrow.file("cut", &good[..good.len() - 1]);
    recover(&cut, &out, key.clone()).fails(65, &[]);
    let cut = escrow.file("cut", &good[..50]);
    recover(&cut, &out, key.clone()).fails(65, &["truncated"]);
    let none = escrow.file("none", b"%PDF-1.7 something else");
    recover(&none, &out, key.clone()).fails(65, &["not a Strongroom object"]);
    // No file, no key.
    recover(&escrow.dir.path().join("absent"), &out, key.clone()).fails(66, &["absent"]);
    recover(&object, &out, ["--private-key", "/nonexistent"]).fails(66, &["/nonexistent"]);
    recover(&object, &out, ["--no-clobber"]).fails(2, &[]);
    let garbage = escrow.file("garbage", "no key");
    recover(&object, &out, key_option(&garbage)).fails(1, &["no private key in PEM"]);
    assert!(!out.exists(), "nothing was written");
    // What comes before the altered frame is genuine, and still no file.
    let mut late = good;
    let at = late.len() - FRAME as usize - 100;
    late[at] ^= 1;
    let late = escrow.file("late", late);
    recover(&late, &out, key).fails(65, &["nothing was written"]);
    assert!(!out.exists());
}

#[test]
fn components_open_an_object_and_its_keyslot_and_other_components_do_not() {
    let (dir, other) = (in_memory(), in_memory());
    let (files, _) = components(dir.path(), 3);
    let (others, _) = components(other.path(), 3);
    let key = files.iter().fold([0; 32], |mut sum: [u8; 32], file| {
        let hex = digits(file).replace(' ', "");
        let bytes = data_encoding::HEXUPPER.decode(hex.as_bytes()).unwrap();
        sum.iter_mut().zip(bytes).for_each(|(s, b)| *s ^= b);
        sum
    });
    let work = temp_dir();
    let plain = pattern(3, 10_000);
    let holders = Holders {
        aes: Some(("archive", key)),
        ..Holders::default()
    };
    let (object, _) = message(&plain, ("acme", "k"), &holders);
    let file = work.path().join("object");
    let out = work.path().join("out");
    fs::write(&file, &object).unwrap();
    let done = recover(&file, &out, by_components(&files)).ok();
    assert!(fs::read(&out).unwrap() == plain);
    assert!(!done.stderr.contains("origin"), "{}", done.stderr);
    fs::remove_file(&out).unwrap();
    // In another order too.
    let turned: Vec<PathBuf> = files.iter().rev().cloned().collect();
    let mut json = by_components(&turned);
    json.extend(["--json".to_owned()]);
    assert_eq!(recover(&file, &out, json).ok().json()["origin"], "proven");
    fs::remove_file(&out).unwrap();

    let refused = |files: &[PathBuf], code: i32, words: &[&str]| {
        recover(&file, &out, by_components(files)).fails(code, words);
    };
    refused(&others, 67, &["the key of these components does not open"]);
    let mixed = [files[0].clone(), files[1].clone(), others[2].clone()];
    refused(&mixed, 67, &["does not open"]);
    refused(&files[..2], 67, &["does not open"]);
    refused(&files[..1], 1, &["from 2 to 8"]);
    let twice = [files[0].clone(), files[1].clone(), files[0].clone()];
    refused(&twice, 1, &["components 1 and 3 are the same"]);

    // Rewrapped: the object's own EDK is another key's.
    let holders = Holders {
        aes: Some(("old", [1; 32])),
        slot: Some(("archive", key)),
        ..Holders::default()
    };
    let (object, slot) = message(&plain, ("acme", "k"), &holders);
    let (_, foreign) = message(&plain, ("acme", "k"), &holders);
    fs::write(&file, &object).unwrap();
    refused(&files, 67, &["does not open"]);
    let with_slot = |slot: &[u8]| {
        let path = work.path().join("slot");
        fs::write(&path, slot).unwrap();
        let mut args = by_components(&files);
        args.extend(["--keyslot".into(), path.display().to_string()]);
        recover(&file, &out, args)
    };
    with_slot(&slot).ok();
    assert!(fs::read(&out).unwrap() == plain);
    with_slot(&foreign).fails(65, &["belongs elsewhere", "the keyslot is message"]);
    with_slot(&slot[..60]).fails(65, &["truncated"]);
    let mut altered = slot.clone();
    *altered.last_mut().unwrap() ^= 1;
    with_slot(&altered).fails(67, &["does not open"]);
}

#[test]
fn rule_23_a_component_on_a_disk_is_not_taken() {
    let (memory, disk) = (in_memory(), temp_dir());
    let (files, _) = components(memory.path(), 2);
    let mut command = crate::support::strongroom();
    command
        .args(["key", "components", "generate", "--out-dir"])
        .arg(disk.path());
    crate::support::run(&mut command, b"").fails(1, &["is on a disk"]);
    let file = disk.path().join("component-1");
    assert!(!file.exists());
    fs::copy(&files[0], &file).unwrap();
    let object = disk.path().join("object");
    let holders = Holders {
        aes: Some(("a", [1; 32])),
        ..Holders::default()
    };
    fs::write(&object, message(b"x", ("b", "k"), &holders).0).unwrap();
    let args = by_components(&[file, files[1].clone()]);
    recover(&object, &disk.path().join("out"), args).fails(1, &["is on a disk", "destroy"]);
    // Nor written there by a shell.
    let mut command = crate::support::strongroom();
    command
        .args(["key", "components", "generate", "--print"])
        .stdout(fs::File::create(disk.path().join("printed")).unwrap())
        .stderr(std::process::Stdio::piped())
        .stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(disk.path().join("printed")).unwrap(), b"");
    let mut command = crate::support::strongroom();
    command.args(["key", "components", "generate", "--print", "--count", "2"]);
    let printed = crate::support::run(&mut command, b"").ok().text();
    assert_eq!(printed.matches("component: ").count(), 2);
    assert_eq!(printed.matches("check value of the key: ").count(), 2);
}
