//! `recover` with a key in a token: an RSA private key, and a wrapping key.

use std::fs;
use std::process::Command;

use rsa::RsaPublicKey;
use rsa::pkcs8::DecodePublicKey as _;
use strongroom::transport::OaepHash;

use crate::objects::{Holders, message};
use crate::recover;
use crate::support::hsm::{KEY, TOKEN_LABEL, module};
use crate::support::{Agent, Hsm, TokenKind, Weed, lacking, pattern, run, temp_dir};

/// The hash that this token has OAEP with.
fn hash() -> OaepHash {
    match TokenKind::chosen() {
        TokenKind::SoftHsm => OaepHash::Sha1,
        TokenKind::Kryoptic => OaepHash::Sha256,
    }
}

/// `pkcs11-tool` on that token.
fn tool(hsm: &Hsm, args: &[&str]) -> Command {
    let mut command = Command::new("pkcs11-tool");
    command
        .env(hsm.kind().variable(), hsm.conf())
        .arg("--module")
        .arg(module())
        .args(["--token-label", TOKEN_LABEL, "--login", "--pin"])
        .arg(hsm.pin())
        .args(args);
    command
}

fn in_token(hsm: &Hsm, label: &str) -> Vec<String> {
    let args = [
        ("--module", module().display().to_string()),
        ("--token-label", TOKEN_LABEL.to_owned()),
        ("--key-label", label.to_owned()),
        ("--pin-file", hsm.pin_file().display().to_string()),
    ];
    args.into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

#[test]
fn a_key_in_a_token_opens_what_was_wrapped_for_it() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("recover-token");
    let dir = temp_dir();
    let (object, out) = (dir.path().join("object"), dir.path().join("out"));
    // `recover` has the test's environment, and finds the token by it.
    let recover = |args: Vec<String>| {
        let mut command = hsm.command();
        command.arg("recover").arg(&object).arg("-o").arg(&out);
        run(command.args(args), b"")
    };
    if run(
        Command::new("sh").args(["-c", "command -v pkcs11-tool"]),
        b"",
    )
    .code
        != Some(0)
    {
        lacking("pkcs11-tool");
    }
    run(
        &mut tool(
            &hsm,
            &[
                "--keypairgen",
                "--key-type",
                "rsa:2048",
                "--label",
                "escrow",
                "--usage-decrypt",
            ],
        ),
        b"",
    )
    .ok();
    let der = dir.path().join("public.der");
    run(
        tool(
            &hsm,
            &[
                "--read-object",
                "--type",
                "pubkey",
                "--label",
                "escrow",
                "-o",
            ],
        )
        .arg(&der),
        b"",
    )
    .ok();
    let public = RsaPublicKey::from_public_key_der(&fs::read(&der).unwrap()).unwrap();
    let plain = pattern(4, 9000);
    let holders = Holders {
        rsa: Some(("escrow-2026", &public, hash())),
        aes: Some(("archive", [3; 32])),
        slot: None,
    };
    fs::write(&object, message(&plain, ("acme", "k"), &holders).0).unwrap();
    let done = recover(in_token(&hsm, "escrow")).ok();
    assert!(fs::read(&out).unwrap() == plain);
    assert!(
        done.stderr.contains("origin is not proven"),
        "{}",
        done.stderr
    );
    recover(in_token(&hsm, KEY)).fails(67, &["this key in the token does not open"]);
    let stranger = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
    let strangers = Holders {
        rsa: Some(("escrow-2026", &stranger.to_public_key(), hash())),
        ..Holders::default()
    };
    fs::write(&object, message(&plain, ("acme", "k"), &strangers).0).unwrap();
    recover(in_token(&hsm, "escrow")).fails(67, &["this key in the token does not open"]);
    recover(in_token(&hsm, "nobody")).fails(75, &["no key on the token is labelled"]);

    // The agent's own wrapping key, without the agent.
    let agent = Agent::start(&hsm, weed, |_| {});
    let path = format!("/v1/objects/{bucket}/k");
    assert_eq!(agent.http("PUT", &path, &[], &plain).status, 201);
    fs::write(&object, weed.raw_get(&bucket, "k").unwrap()).unwrap();
    drop(agent);
    fs::remove_file(&out).unwrap();
    let mut args = in_token(&hsm, KEY);
    args.extend(["--expect".into(), format!("s3://{bucket}/k")]);
    let done = recover(args).ok();
    assert_eq!(done.stderr, "");
    assert!(fs::read(&out).unwrap() == plain);
    recover(in_token(&hsm, "escrow")).fails(67, &["this key in the token"]);
}

#[test]
fn no_key_is_a_matter_of_usage() {
    let dir = temp_dir();
    recover(&dir.path().join("o"), &dir.path().join("out"), [""; 0]).fails(2, &["--private-key"]);
}
