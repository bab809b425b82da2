//! The audit log of the real agent: what is on record, what happens while it
//! cannot be written, and what is left of it after a crash.
//!
//! With STRONGROOM_SOAK=1 at full size, else at one that a continuous
//! integration bears.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod records;
mod trouble;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use strongroom::audit::{Files, Kind, Phase, Record, Report};
use support::process::eventually;
use support::{Agent, Hsm, value};

/// Names the configuration of the child that makes an audit key.
const CHILD: &str = "STRONGROOM_TEST_AUDIT_KEY";
/// The audit key's label.
const LABEL: &str = "audit-test";

/// One number at full size, another otherwise.
fn sized(full: usize, reduced: usize) -> usize {
    match std::env::var_os("STRONGROOM_SOAK").is_some_and(|v| v == "1") {
        true => full,
        false => reduced,
    }
}

/// Makes an audit key in the token and returns its public half as PEM.
fn make_key(hsm: &Hsm) -> String {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "key_child", "--nocapture"])
        .env(CHILD, hsm.config_path())
        .env(hsm.kind().variable(), hsm.conf())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    let from = text.find("-----BEGIN").expect(&text);
    let to = text.find("-----END PUBLIC KEY-----\n").unwrap();
    text[from..to].to_owned() + "-----END PUBLIC KEY-----\n"
}

/// Not a test by itself: the child of the one above. A worker takes the
/// token's place from its environment.
#[test]
fn key_child() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let config = strongroom::config::Config::load(Path::new(&path)).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_strongroom"));
    let mut worker = strongroom::token::Offline::log_in(&config.tokens[0], binary).unwrap();
    let signer = worker.generate_signer(LABEL).unwrap();
    let key = strongroom::audit::PublicKey::from_point(&signer.public_key).unwrap();
    println!("{}", key.to_pem());
}

/// Every record of a log.
fn records(dir: &Path) -> Vec<Record> {
    let lines = strongroom::audit::tail(dir, usize::MAX, None).unwrap();
    let parse = |(_, line): (u64, String)| serde_json::from_str(&line).unwrap();
    lines.into_iter().map(parse).collect()
}

/// What a verification without anchor and key says; asserts that nothing is
/// wrong.
#[track_caller]
fn sound(dir: &Path) -> Report {
    let report = strongroom::audit::verify(&Files::of(dir).unwrap(), None, None).unwrap();
    assert_eq!(report.fault, None, "{report:#?}");
    report
}

/// The records of each request: whether it began, how it ended or what became
/// of it.
#[derive(Debug, Default)]
struct Told {
    begun: bool,
    end: Option<String>,
    resolved: Option<String>,
}

fn by_request(records: &[Record]) -> HashMap<String, Told> {
    let mut told: HashMap<String, Told> = HashMap::new();
    for event in records.iter().map(|record| &record.event) {
        let Some(op) = &event.op else { continue };
        let told = told.entry(op.clone()).or_default();
        match (event.phase, event.event) {
            (Some(Phase::Begin), _) => told.begun = true,
            (_, Kind::Resolved) => told.resolved.clone_from(&event.state),
            _ => told.end.clone_from(&event.result),
        }
    }
    told
}

/// Waits until the agent is ready.
#[track_caller]
fn await_ready(agent: &Agent) {
    let ready = eventually(Duration::from_secs(60), || {
        let status = agent.try_status()?;
        (status.health == "ready").then_some(())
    });
    ready.unwrap_or_else(|| panic!("{:?}\n{}", agent.try_status(), agent.log()));
}

fn config_audit(config: &mut support::DocumentMut) -> &mut toml_edit::Table {
    let audit = config.entry("audit").or_insert_with(toml_edit::table);
    let audit = audit.as_table_mut().unwrap();
    audit["checkpoint_key"] = value(LABEL);
    audit
}
