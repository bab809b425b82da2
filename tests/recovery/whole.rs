//! From a put to the day on which nothing is left but a downloaded object:
//! what an agent wrote, and a keyslot that it wrote, recovered without it.

use std::fs;

use rsa::RsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use rsa::rand_core::OsRng;
use toml_edit::{ArrayOfTables, Item, Table, value};

use crate::recover;
use crate::support::hsm::{TOKEN_LABEL, module};
use crate::support::{Agent, Hsm, Weed, pattern, run, temp_dir};

#[test]
fn what_an_agent_stored_and_rewrapped_is_recovered_without_it() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("recover-whole");
    let dir = temp_dir();
    let path = |name: &str| dir.path().join(name);
    let private = RsaPrivateKey::new(&mut OsRng, 3072).unwrap();
    let public = private.to_public_key().to_public_key_pem(LineEnding::LF);
    fs::write(path("escrow.pem"), public.unwrap()).unwrap();
    let pem = private.to_pkcs8_pem(LineEnding::LF).unwrap();
    fs::write(path("escrow.key"), &*pem).unwrap();
    let mut agent = Agent::start(&hsm, weed, |config| {
        let mut recipient = Table::new();
        recipient["kind"] = value("rsa-oaep");
        recipient["name"] = value("escrow-2026");
        recipient["public_key"] = value(path("escrow.pem").display().to_string());
        let mut all = ArrayOfTables::new();
        all.push(recipient);
        config["recipient"] = Item::ArrayOfTables(all);
    });
    let plain = pattern(7, 700_001);
    let url = format!("s3://{bucket}/db/2026.dump");
    agent.cli_in(["put", "-", &url], &plain).ok();
    agent
        .cli(["key", "rotate", "archive", "--name", "archive-next"])
        .ok();
    agent.cli(["rewrap", &format!("s3://{bucket}/")]).ok();
    agent.stop();
    let slots = weed.list(&bucket, ".strongroom/keyslots/");
    let slot = slots.iter().find(|name| name.ends_with("/archive-next"));
    let slot = slot.unwrap_or_else(|| panic!("{slots:?}"));
    fs::write(path("slot"), weed.raw_get(&bucket, slot).unwrap()).unwrap();
    let stored = weed.raw_get(&bucket, "db/2026.dump").unwrap();
    fs::write(path("object"), stored).unwrap();

    let key = path("escrow.key").display().to_string();
    let told = recover(
        &path("object"),
        &path("by-escrow"),
        ["--private-key", &key, "--expect", &url, "--json"],
    );
    let told = told.ok().json();
    assert_eq!(
        (&told["origin"], &told["wrapping_key"]),
        (&"unproven".into(), &"escrow-2026".into())
    );
    assert!(fs::read(path("by-escrow")).unwrap() == plain);

    let mut command = hsm.command();
    command.arg("recover").arg(path("object"));
    command.arg("-o").arg(path("by-slot"));
    command.arg("--keyslot").arg(path("slot"));
    command.arg("--module").arg(module());
    command.args(["--token-label", TOKEN_LABEL, "--key-label", "archive-next"]);
    command.arg("--pin-file").arg(hsm.pin_file());
    command.args(["--expect", &url, "--json"]);
    let told = run(&mut command, b"").ok().json();
    assert_eq!(
        (&told["origin"], &told["wrapping_key"]),
        (&"proven".into(), &"archive-next".into())
    );
    assert!(fs::read(path("by-slot")).unwrap() == plain);
}
