//! docs/recovery.md: its scripts, as they stand, open real objects without
//! Strongroom.

use std::fs;
use std::path::Path;
use std::process::Command;

use rsa::RsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey as _, LineEnding};
use rsa::rand_core::OsRng;

use crate::document;
use crate::markdown::Block;
use crate::support::hsm::{KEY, TOKEN_LABEL, module};
use crate::support::{self, Agent, Hsm, TokenKind, Weed, lacking, pattern, run};

/// What the document names, and what the test has instead.
struct Names(Vec<(&'static str, String)>);

impl Names {
    fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (theirs, ours)| {
            text.replace(theirs, ours)
        })
    }
}

/// The one block of that language with this in it.
#[track_caller]
fn block(language: &str, holds: &str) -> Block {
    let mut blocks = document("docs/recovery.md").blocks();
    blocks.retain(|b| b.language == language && b.text.contains(holds));
    assert_eq!(blocks.len(), 1, "blocks with {holds:?}");
    blocks.remove(0)
}

#[track_caller]
fn python(hsm: Option<&Hsm>, dir: &Path, script: &str) {
    let python = support::cache().join("venv/bin/python");
    if !python.exists() {
        lacking("the stock Python SDK");
    }
    let mut command = Command::new(python);
    command.args(["-c", script]).current_dir(dir);
    if let Some(hsm) = hsm {
        command.env(hsm.kind().variable(), hsm.conf());
    }
    run(&mut command, b"").ok();
}

/// Takes the plaintext that a script wrote.
#[track_caller]
fn opened(dir: &Path, plain: &[u8]) {
    let path = dir.join("plaintext");
    assert!(fs::read(&path).unwrap() == plain, "another plaintext");
    fs::remove_file(path).unwrap();
}

#[test]
fn an_object_is_opened_by_hand_with_the_token_and_a_stock_sdk() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("docs-recovery");
    let agent = Agent::start(&hsm, weed, |_| {});
    let dir = support::temp_dir();
    let plain = pattern(9, 700_000);
    let target = format!("/v1/objects/{bucket}/docs/report.pdf");
    assert_eq!(agent.http("PUT", &target, &[], &plain).status, 201);
    let object = weed.raw_get(&bucket, "docs/report.pdf").unwrap();
    fs::write(dir.path().join("object"), object).unwrap();
    drop(agent);
    fs::write(dir.path().join("pin"), hsm.pin()).unwrap();
    let names = Names(vec![
        ("acme-archive", bucket),
        (
            "/usr/lib/softhsm/libsofthsm2.so",
            module().display().to_string(),
        ),
        ("\"archive\",", format!("{TOKEN_LABEL:?},")),
        (
            "--token-label archive",
            format!("--token-label {TOKEN_LABEL}"),
        ),
        // After the token's label, which it would otherwise become.
        ("archive-2026", KEY.to_owned()),
    ]);
    let script = |holds: &str| names.apply(&block("python", holds).text);
    python(None, dir.path(), &script("unpack_from(\">H\", header"));
    python(Some(&hsm), dir.path(), &script("C_GetFunctionList"));
    python(None, dir.path(), &script("class AtHand"));
    opened(dir.path(), &plain);

    // The same step with pkcs11-tool, where it is new enough to do it.
    let help = run(Command::new("pkcs11-tool").arg("--help"), b"");
    if !help.text().contains("--aad") && !help.stderr.contains("--aad") {
        println!("skipped: this pkcs11-tool cannot pass additional authenticated data");
        return;
    }
    fs::remove_file(dir.path().join("data.key")).unwrap();
    let script = names.apply(&block("sh", "--mechanism AES-GCM").text);
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", &script])
        .env(hsm.kind().variable(), hsm.conf())
        .env("PIN", hsm.pin())
        .current_dir(dir.path());
    run(&mut command, b"").ok();
    let script = names.apply(&block("python", "class AtHand").text);
    python(None, dir.path(), &script);
    opened(dir.path(), &plain);
}

/// A data key as the token or an escrow key gives it, wrapped for another key.
const REWRAP: &str = r#"
import struct
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
header = open("object", "rb").read(65536)
aad_len, = struct.unpack_from(">H", header, 35)
aad = header[37 : 37 + aad_len]
at = 37 + aad_len + 2
fields = []
for _ in range(3):
    length, = struct.unpack_from(">H", header, at)
    fields.append(header[at + 2 : at + 2 + length])
    at += 2 + length
old = AESGCM(open("wrapping.key", "rb").read())
data_key = old.decrypt(fields[1][-12:], fields[2], aad)
iv = b"\7" * 12
edk = [b"strongroom", b"archive-2027" + struct.pack(">II", 128, 12) + iv]
edk.append(AESGCM(open("new.key", "rb").read()).encrypt(iv, data_key, aad))
slot = b"SgKs\1" + header[3:35] + b"\0\1"
slot += b"".join(struct.pack(">H", len(field)) + field for field in edk)
open("keyslot", "wb").write(slot)
"#;

#[test]
fn a_stock_sdk_reads_through_a_keyslot() {
    let bytes = [42; 32];
    let (hsm, weed) = (Hsm::with_key(&bytes), Weed::shared());
    let bucket = weed.bucket("docs-keyslot");
    let agent = Agent::start(&hsm, weed, |_| {});
    let dir = support::temp_dir();
    let plain = pattern(10, 300_000);
    let target = format!("/v1/objects/{bucket}/docs/report.pdf");
    assert_eq!(agent.http("PUT", &target, &[], &plain).status, 201);
    let object = weed.raw_get(&bucket, "docs/report.pdf").unwrap();
    for (name, content) in [
        ("object", &object[..]),
        ("wrapping.key", &bytes),
        ("new.key", &[43; 32]),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    python(None, dir.path(), REWRAP);
    let script = block("python", "class WithKeyslot").text;
    python(None, dir.path(), &script.replace("acme-archive", &bucket));
    opened(dir.path(), &plain);
}

#[test]
fn a_stock_sdk_and_pkcs11_tool_open_what_was_written_for_an_escrow_key() {
    use strongroom::message::{Context, DataKey, Draft, Edk};
    use strongroom::transport::OaepHash;

    let dir = support::temp_dir();
    let private = RsaPrivateKey::new(&mut OsRng, 2048).unwrap();
    let pem = private.to_pkcs8_pem(LineEnding::LF).unwrap();
    fs::write(dir.path().join("escrow.pem"), &*pem).unwrap();
    let plain = pattern(11, 3000);
    let random = strongroom::secret::Secret32::random().unwrap();
    let mut context = Context::new();
    for (name, value) in [
        ("strongroom:bucket", "acme-archive"),
        ("strongroom:key", "docs/report.pdf"),
        ("strongroom:created", "1790000000000"),
    ] {
        context.insert(name, value).unwrap();
    }
    let mut draft = Draft::new(DataKey::fresh(&random).unwrap(), context, 4096).unwrap();
    let padding = OaepHash::Sha256.padding();
    let data_key = *draft.data_key().expose();
    let wrapped = private
        .to_public_key()
        .encrypt(&mut OsRng, padding, &data_key);
    draft
        .add_edk(Edk::raw_rsa("escrow-2026", &wrapped.unwrap()).unwrap())
        .unwrap();
    let (header, sealer) = draft.seal().unwrap();
    let mut frame = vec![0; 24];
    frame.extend_from_slice(&plain);
    frame.extend_from_slice(&[0; 16]);
    sealer.seal_final(&mut frame).unwrap();
    fs::write(dir.path().join("object"), [&header[..], &frame].concat()).unwrap();
    python(
        None,
        dir.path(),
        &block("python", "RSA_OAEP_SHA256_MGF1").text,
    );
    opened(dir.path(), &plain);

    // The private key in a token that has the hash.
    if !TokenKind::Kryoptic.is_only("SoftHSM has no RSA-OAEP with SHA-256") {
        return;
    }
    let hsm = Hsm::empty();
    let tool = |args: &[&str]| {
        let mut command = Command::new("pkcs11-tool");
        command
            .env(hsm.kind().variable(), hsm.conf())
            .current_dir(dir.path())
            .arg("--module")
            .arg(module())
            .args(["--token-label", TOKEN_LABEL, "--login", "--pin"])
            .arg(hsm.pin())
            .args(args);
        run(&mut command, b"").ok()
    };
    tool(&[
        "--keypairgen",
        "--key-type",
        "rsa:2048",
        "--label",
        "escrow-2026",
        "--usage-decrypt",
    ]);
    tool(&[
        "--read-object",
        "--type",
        "pubkey",
        "--label",
        "escrow-2026",
        "-o",
        "public.der",
    ]);
    use rsa::pkcs8::DecodePublicKey as _;
    let der = fs::read(dir.path().join("public.der")).unwrap();
    let public = rsa::RsaPublicKey::from_public_key_der(&der).unwrap();
    let edk = public.encrypt(&mut OsRng, OaepHash::Sha256.padding(), &data_key);
    fs::write(dir.path().join("edk"), edk.unwrap()).unwrap();
    let script = block("sh", "--mechanism RSA-PKCS-OAEP").text;
    let names = Names(vec![
        (
            "/usr/lib/softhsm/libsofthsm2.so",
            module().display().to_string(),
        ),
        (
            "--token-label archive",
            format!("--token-label {TOKEN_LABEL}"),
        ),
    ]);
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", &names.apply(&script)])
        .env(hsm.kind().variable(), hsm.conf())
        .env("PIN", hsm.pin())
        .current_dir(dir.path());
    run(&mut command, b"").ok();
    assert_eq!(fs::read(dir.path().join("data.key")).unwrap(), data_key);
}
