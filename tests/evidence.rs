//! The auditor's report over a day of everything: recomputed from the log by
//! a script that has nothing of ours, and read as an auditor reads it.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use strongroom::api::Evidence;
use support::hsm::{KEY, TOKEN};
use support::process::{eventually, run, signal};
use support::{Agent, Hsm, Weed, cache, lacking, root, value};

/// How long the agent may take to notice something.
const NOTICED: Duration = Duration::from_secs(20);

/// An audit key in the token, and its public half in a file.
fn with_audit_key(hsm: &Hsm) -> std::path::PathBuf {
    let mut command = hsm.command();
    command
        .args(["key", "generate", "audit-1", "--token", TOKEN, "--audit"])
        .arg("--config")
        .arg(hsm.config_path())
        .args(["--socket", "/nonexistent"]);
    let made = run(&mut command, b"").ok();
    let pem = hsm.dir().join("audit.pem");
    fs::write(&pem, &made.stdout).unwrap();
    assert!(fs::read_to_string(&pem).unwrap().contains("PUBLIC KEY"));
    assert!(hsm.config().contains("checkpoint_key = \"audit-1\""));
    pem
}

/// What happens on a day: objects come, change and go; somebody is refused;
/// an object is altered; the token is locked.
fn a_day(agent: &Agent, hsm: &Hsm, bucket: &str) {
    let place = |key: &str| format!("/v1/objects/{bucket}/{key}");
    for (key, body) in [("a", "one"), ("b", "two"), ("a", "three"), ("c", "<b>&")] {
        let stored = agent.http("PUT", &place(key), &[], body.as_bytes());
        assert_eq!(stored.status, 201, "{}", stored.text());
    }
    assert_eq!(agent.http("GET", &place("a"), &[], b"").body, b"three");
    let part = agent.http("GET", &place("b"), &[("Range", "bytes=0-0")], b"");
    assert_eq!(part.body, b"t");
    assert_eq!(agent.http("HEAD", &place("b"), &[], b"").status, 200);
    assert_eq!(agent.http("GET", &place("nothing"), &[], b"").status, 404);
    assert_eq!(agent.http("DELETE", &place("b"), &[], b"").status, 204);
    let list = format!("/v1/objects/{bucket}?prefix=");
    assert_eq!(agent.http("GET", &list, &[], b"").status, 200);
    let elsewhere = agent.http("PUT", "/v1/objects/not-granted/x", &[], b"x");
    assert_eq!(elsewhere.status, 403);
    let weed = Weed::shared();
    let mut raw = weed.raw_get(bucket, "c").unwrap();
    *raw.last_mut().unwrap() ^= 1;
    weed.raw_put(bucket, "c", &raw);
    assert_eq!(agent.http("GET", &place("c"), &[], b"").status, 422);

    // The token is locked for a while.
    let right = hsm.pin();
    hsm.write_pin(&hsm.pin_file(), "not the PIN");
    signal(agent.workers()[0].pid, Signal::KILL);
    await_health(agent, "locked");
    hsm.write_pin(&hsm.pin_file(), &right);
    agent.signal(Signal::HUP);
    await_health(agent, "ready");
}

#[track_caller]
fn await_health(agent: &Agent, wanted: &str) {
    let reached = eventually(NOTICED, || {
        let status = agent.try_status()?;
        (status.tokens[0].health == wanted).then_some(())
    });
    assert!(reached.is_some(), "not {wanted}: {:#?}", agent.try_status());
    // The log looks at it now and then.
    let log = agent.state_dir().join("audit");
    let told = eventually(NOTICED, || {
        let files = fs::read_dir(&log)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let text: String = files
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        let state = format!("\"state\":{wanted:?}");
        let last = text
            .lines()
            .rfind(|line| line.contains("\"event\":\"token\""))?;
        last.contains(&state).then_some(())
    });
    assert!(told.is_some(), "{wanted} is not on record");
}

fn now() -> String {
    let now = jiff::Timestamp::now();
    now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn report(agent: &Agent, from: &str, to: &str, dir: &Path, name: &str) -> Evidence {
    let json = dir.join(format!("{name}.json"));
    let html = dir.join(format!("{name}.html"));
    let made = agent.cli([
        "evidence".as_ref(),
        "--from".as_ref(),
        from.as_ref(),
        "--to".as_ref(),
        to.as_ref(),
        "--out".as_ref(),
        json.as_os_str(),
        "--html".as_ref(),
        html.as_os_str(),
    ]);
    made.ok();
    serde_json::from_slice(&fs::read(json).unwrap()).unwrap()
}

#[test]
fn rule_29_a_days_report_is_what_the_log_says_and_reads_well() {
    let hsm = Hsm::new();
    let pem = with_audit_key(&hsm);
    let bucket = Weed::shared().bucket("evidence");
    let from = now();
    let mut agent = Agent::start(&hsm, Weed::shared(), |config| {
        let keys = config["key"].as_array_of_tables_mut().unwrap();
        keys.get_mut(0).unwrap()["cryptoperiod"] = value("1y");
        let operations = r#"["put", "get", "head", "inspect", "list", "delete"]"#;
        let grant = format!("[[grant]]\nuid = 0\noperations = {operations}\nbucket = {bucket:?}\n");
        let grant: toml_edit::DocumentMut = grant.parse().unwrap();
        config["grant"] = grant["grant"].clone();
    });
    a_day(&agent, &hsm, &bucket);
    // A stop ends in a signed checkpoint, so that all of the day is under one.
    agent.restart();
    let to = now();
    let dir = support::temp_dir();
    let first = report(&agent, &from, &to, dir.path(), "first");

    // Numbers: by a script that knows the log alone.
    let mut script = Command::new("python3");
    script
        .arg(root().join("tests/readers/evidence.py"))
        .arg(agent.state_dir().join("audit"))
        .arg(dir.path().join("first.json"));
    let disagrees = run(&mut script, b"").ok();
    assert_eq!(String::from_utf8(disagrees.stdout.clone()).unwrap(), "");

    // What it must say.
    let found = &first.report;
    assert!(found.log.intact, "{:?}", found.log);
    // All but what the start after it wrote.
    let unsigned = found.log.size - found.log.signed;
    assert!(found.log.signed > 20 && unsigned < 6, "{:?}", found.log);
    assert_eq!(found.log.open, 0);
    assert_eq!((found.denials.total, found.refusals.total), (1, 1));
    assert_eq!(found.questions.len(), 6);
    assert!(
        found.grants.iter().any(|grant| grant.contains(&bucket)),
        "{:?}",
        found.grants
    );
    let key = found.keys.iter().find(|key| key.name == KEY).unwrap();
    let is =
        |name: &str, wanted: &str| key.attributes.iter().any(|(n, v)| n == name && v == wanted);
    assert!(is("CKA_NEVER_EXTRACTABLE", "true") && is("CKA_SENSITIVE", "true"));
    assert_eq!((key.puts, key.gets, key.objects), (4, 2, 2));
    assert_eq!((key.age_days, key.cryptoperiod_days), (Some(0), Some(365)));
    assert!(key.wraps_reserved > 0 && key.since.is_some());
    let away = |what: &str| found.outages.iter().any(|outage| outage.what == what);
    assert!(
        away("agent") && away(&format!("token {TOKEN}")),
        "{:?}",
        found.outages
    );
    let caveat = |word: &str| found.log.caveats.iter().any(|c| c.contains(word));
    assert!(caveat("not proven against the operator"));
    let cryptography = &found.installation.cryptography;
    assert!(cryptography.starts_with(strongroom::crypto::NAME));
    assert!(found.tokens[0].soft && found.tokens[0].library.is_some());

    // Two runs differ in time and signature alone.
    let second = report(&agent, &from, &to, dir.path(), "second");
    assert_eq!(first.report, second.report);
    assert_eq!(first.report_sha256, second.report_sha256);
    assert_ne!(first.made_at, second.made_at);
    assert_ne!(first.note, second.note);

    // Signed by the token's key, and nothing can be changed in it.
    let check = |name: &str| {
        let file = dir.path().join(name);
        agent.cli([
            "evidence".as_ref(),
            "--check".as_ref(),
            file.as_os_str(),
            "--key".as_ref(),
            pem.as_os_str(),
        ])
    };
    check("first.json").ok();
    let text = fs::read_to_string(dir.path().join("first.json")).unwrap();
    let forged = text.replacen("\"total\": 1", "\"total\": 0", 1);
    assert_ne!(text, forged);
    fs::write(dir.path().join("forged.json"), forged).unwrap();
    assert_eq!(check("forged.json").code, Some(65));

    // On a phone, on a desk, on paper.
    let modules = cache().join("node/node_modules");
    if !modules.join("puppeteer-core").exists() || !Path::new("/usr/bin/chromium").exists() {
        lacking("chromium and puppeteer");
    }
    let mut browser = Command::new("node");
    browser
        .arg(root().join("tests/readers/page.mjs"))
        .arg(dir.path().join("first.html"))
        .arg(dir.path().join("first.pdf"))
        .env("STRONGROOM_NODE_MODULES", modules);
    let wrong = run(&mut browser, b"").ok();
    assert_eq!(String::from_utf8(wrong.stdout.clone()).unwrap(), "");
}

#[test]
fn a_report_without_an_audit_key_says_so() {
    let hsm = Hsm::new();
    let agent = Agent::start(&hsm, Weed::shared(), |_| {});
    let made = agent.cli(["evidence"]).ok();
    let evidence: Evidence = serde_json::from_slice(&made.stdout).unwrap();
    assert!(evidence.note.is_none());
    assert!(evidence.unsigned.unwrap().contains("checkpoint_key"));
    let caveats = evidence.report.log.caveats.join("; ");
    assert!(caveats.contains("not signed"), "{caveats}");
    // A period that makes no sense is refused before anything is read.
    let refused = agent.cli(["evidence", "--from", "2026-02-01", "--to", "2026-01-01"]);
    assert_eq!(refused.code, Some(2));
    let refused = agent.http("GET", "/v1/evidence?from=soon", &[], b"");
    assert_eq!(refused.status, 400);
}
