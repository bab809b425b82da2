//! Wrapping keys over their lives: recipients, rotation, retirement, and what
//! the auditor sees of it.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod recipients;
mod retire;
mod rotate;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use strongroom::api::{KeyInfo, Receipt, Status};
use support::hsm::{TOKEN, module};
use support::process::{eventually, run};
use support::{Agent, DocumentMut, Hsm, value};

/// The second token's name and label: the disaster recovery site.
const SITE: &str = "site";
/// Its key.
const DR: &str = "dr-1";
/// How long something may take to be noticed, on a busy machine.
const NOTICED: Duration = Duration::from_secs(20);

/// The key `archive` generated in one token, and `dr-1` in another.
fn two_sites() -> Hsm {
    let hsm = Hsm::new();
    hsm.add_token(SITE);
    hsm.write_pin(&site_pin(&hsm), &hsm.pin());
    let text = format!(
        "{}\n[[token]]\nname = {SITE:?}\nmodule = {:?}\ntoken_label = {SITE:?}\npin_file = {:?}\nnetwork = false\ncall_timeout = \"2 s\"\n",
        hsm.config(),
        module().display().to_string(),
        site_pin(&hsm).display().to_string()
    );
    fs::write(hsm.config_path(), text).unwrap();
    let mut command = hsm.command();
    command
        .args([
            "key",
            "generate",
            DR,
            "--token",
            SITE,
            "--socket",
            "/nonexistent",
            "--config",
        ])
        .arg(hsm.config_path());
    run(&mut command, b"").ok();
    hsm
}

fn site_pin(hsm: &Hsm) -> PathBuf {
    hsm.dir().join("pin-site")
}

/// An RSA key pair: private and public half, PEM.
fn rsa_pair(dir: &Path, name: &str, bits: u32) -> (PathBuf, PathBuf) {
    let (private, public) = (
        dir.join(format!("{name}.key")),
        dir.join(format!("{name}.pem")),
    );
    let mut command = Command::new("openssl");
    let bits = format!("rsa_keygen_bits:{bits}");
    command.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", &bits, "-out"]);
    run(command.arg(&private), b"").ok();
    let mut command = Command::new("openssl");
    command.args(["pkey", "-pubout", "-in"]).arg(&private);
    run(command.arg("-out").arg(&public), b"").ok();
    (private, public)
}

/// Adds tables to a configuration.
fn add(config: &mut DocumentMut, text: &str) {
    let whole = format!("{config}\n{text}\n");
    *config = whole.parse().unwrap();
}

fn rsa_recipient(name: &str, public: &Path) -> String {
    let path = public.display().to_string();
    format!("[[recipient]]\nkind = \"rsa-oaep\"\nname = {name:?}\npublic_key = {path:?}\n")
}

fn key_recipient() -> String {
    format!("[[recipient]]\nkind = \"key\"\nname = \"dr\"\nkey = {DR:?}\n")
}

#[track_caller]
fn await_token(agent: &Agent, token: &str, health: &str) -> Status {
    let reached = eventually(NOTICED, || {
        let status = agent.try_status()?;
        let is = |t: &strongroom::api::TokenStatus| t.name == token && t.health == health;
        status.tokens.iter().any(is).then_some(status)
    });
    reached.unwrap_or_else(|| panic!("{token} not {health}: {:#?}", agent.try_status()))
}

fn key(agent: &Agent, name: &str) -> KeyInfo {
    let keys: Vec<KeyInfo> = agent.http("GET", "/v1/keys", &[], b"").parse();
    keys.into_iter().find(|key| key.name == name).unwrap()
}

fn pid_of(agent: &Agent, token: &str) -> u32 {
    let found = eventually(NOTICED, || {
        let status = agent.try_status()?;
        let mut tokens = status.tokens.into_iter();
        tokens.find(|t| t.name == token)?.worker_pid
    });
    found.unwrap()
}

/// Makes a token's PIN a wrong one, which its next worker finds.
fn lock(agent: &Agent, hsm: &Hsm, token: &str) {
    let pin = if token == TOKEN {
        hsm.pin_file()
    } else {
        site_pin(hsm)
    };
    hsm.write_pin(&pin, "not the PIN");
    support::process::signal(pid_of(agent, token), rustix::process::Signal::KILL);
    await_token(agent, token, "locked");
}

/// The records of the log whose line has all of these.
fn records(agent: &Agent, words: &[&str]) -> Vec<serde_json::Value> {
    let mut files: Vec<_> = fs::read_dir(agent.state_dir().join("audit"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let text: String = files
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    text.lines()
        .filter(|line| words.iter().all(|word| line.contains(word)))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn set_policy(config: &mut DocumentMut, name: &str, to: toml_edit::Item) {
    if !config.contains_key("recipients") {
        config["recipients"] = toml_edit::table();
    }
    config["recipients"][name] = to;
}

#[track_caller]
fn reload(agent: &Agent) {
    let reply = agent.http("POST", "/v1/reload", &[], b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// Stores its own name.
#[track_caller]
fn stored(agent: &Agent, bucket: &str, name: &str) -> Receipt {
    let target = format!("/v1/objects/{bucket}/{name}");
    let reply = agent.http("PUT", &target, &[], name.as_bytes());
    assert_eq!(reply.status, 201, "{}", reply.text());
    reply.parse()
}

/// A list of names, for a policy.
fn list(names: &[&str]) -> toml_edit::Item {
    value(toml_edit::Array::from_iter(names.iter().copied()))
}
