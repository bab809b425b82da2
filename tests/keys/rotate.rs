//! Rotation of a ring's key under load, its two steps in a fleet, and what
//! does not work out.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use strongroom::api::KeyDetail;

use super::support::hsm::KEY;
use super::support::shim::{Action, C_GenerateKey, Plan, Shim};
use super::support::{Weed, tamper::read};
use super::*;

fn detail(agent: &Agent, name: &str) -> KeyDetail {
    let reply = agent.http("GET", &format!("/v1/keys/{name}"), &[], b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.parse()
}

#[test]
fn a_key_is_rotated_under_load_without_a_failed_request_and_without_a_grant_edited() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("rotate");
    let uid = rustix::process::geteuid().as_raw();
    let grant = format!(
        "[[grant]] # untouched\nuid = {uid}\noperations = [\"put\", \"get\"]\nbucket = {bucket:?}\nkey = \"archive\"\n"
    );
    let agent = Agent::start(&hsm, weed, |config| add(config, &grant));
    let before = stored(&agent, &bucket, "before");
    assert_eq!(before.wrapping_key, KEY);
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..3 {
            let (agent, bucket, over, count) = (&agent, &bucket, &over, &count);
            scope.spawn(move || {
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
                    let name = format!("{client}-{n}");
                    stored(agent, bucket, &name);
                    assert_eq!(read(agent, bucket, &name).body, name.as_bytes());
                    n += 1;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for new in ["archive-b", "archive-c"] {
            let asked = agent
                .cli(["--json", "key", "rotate", "archive", "--name", new])
                .ok();
            assert_eq!(asked.json()["use"], "active", "{}", asked.text());
            let until = count.load(Ordering::Relaxed) + 6;
            let more = eventually(NOTICED, || {
                (count.load(Ordering::Relaxed) >= until).then_some(())
            });
            assert!(more.is_some());
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(stored(&agent, &bucket, "after").wrapping_key, "archive-c");
    assert_eq!(read(&agent, &bucket, "before").body, b"before");
    let text = fs::read_to_string(agent.config_path()).unwrap();
    assert!(text.contains("[[grant]] # untouched"), "{text}");
    assert_eq!(key(&agent, KEY).usage, "decrypt");
    let shown = detail(&agent, "archive-c");
    assert!(
        shown.objects >= 1 && shown.info.first_used.is_some(),
        "{shown:?}"
    );
    let shown = agent.cli(["key", "show", KEY]).ok().text();
    assert!(
        shown.contains("depend on it") && shown.contains("CKA_EXTRACTABLE"),
        "{shown}"
    );
    // The records tell of each key's birth and of who follows whom.
    let told = |state: &str| {
        let state = format!("\"state\":{state:?}");
        records(&agent, &["\"event\":\"key\"", &state]).len()
    };
    assert_eq!(
        (told("generated"), told("rotated"), told("decrypt")),
        (2, 2, 2)
    );
}

#[test]
fn what_does_not_work_out_is_undone() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("undone");
    let shim = Shim::new(&module());
    let agent = Agent::start(&hsm, weed, |config| shim.configure(config));
    let before = fs::read_to_string(agent.config_path()).unwrap();
    let same = || assert_eq!(fs::read_to_string(agent.config_path()).unwrap(), before);

    // No key was made.
    shim.plan(&Plan::default().with(C_GenerateKey, 1, None, Action::Return(0x13)));
    agent
        .cli(["key", "rotate", "archive", "--name", "b"])
        .fails(75, &["cannot generate"]);
    shim.clear();
    same();
    // It is not in the token that another host is said to have put it in.
    let refused = agent.cli(["key", "rotate", "archive", "--name", "c", "--existing"]);
    refused.fails(1, &["key \"c\" does not work", "is as it was"]);
    same();
    // Nor does the agent keep what was undone.
    assert_eq!(stored(&agent, &bucket, "x").wrapping_key, KEY);
    // The agent refuses the file for another reason than the change.
    agent.reconfigure(|config| {
        config["agent"]["state_dir"] = value("/elsewhere");
    });
    let changed = fs::read_to_string(agent.config_path()).unwrap();
    let refused = agent.cli(["key", "rotate", "archive", "--name", "d"]);
    refused.fails(75, &["state_dir", "is as it was", "label \"d\""]);
    assert_eq!(fs::read_to_string(agent.config_path()).unwrap(), changed);
    assert_eq!(stored(&agent, &bucket, "y").wrapping_key, KEY);
    agent
        .cli(["key", "rotate", "nothing"])
        .fails(66, &["configured rings: archive"]);
}

#[test]
fn a_fleet_stages_the_key_everywhere_and_activates_it_afterwards() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("fleet");
    let one = Agent::start(&hsm, weed, |_| {});
    let other = Agent::start(&hsm, weed, |_| {});
    one.cli(["key", "rotate", "archive", "--name", "next", "--stage"])
        .ok();
    assert_eq!(stored(&one, &bucket, "a").wrapping_key, KEY);
    other
        .cli([
            "key",
            "rotate",
            "archive",
            "--name",
            "next",
            "--stage",
            "--existing",
        ])
        .ok();
    one.cli(["key", "rotate", "archive", "--activate"]).ok();
    assert_eq!(stored(&one, &bucket, "b").wrapping_key, "next");
    // The host that has not gone so far yet reads it, and wraps as before.
    assert_eq!(read(&other, &bucket, "b").body, b"b");
    assert_eq!(stored(&other, &bucket, "c").wrapping_key, KEY);
    other.cli(["key", "rotate", "archive", "--activate"]).ok();
    assert_eq!(stored(&other, &bucket, "d").wrapping_key, "next");
    one.cli(["key", "rotate", "archive", "--activate"])
        .fails(78, &["waits to be active"]);
}

#[test]
fn a_disabled_key_neither_wraps_nor_opens() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("disable");
    let agent = Agent::start(&hsm, weed, |_| {});
    stored(&agent, &bucket, "a");
    // Nobody at a terminal could have been asked.
    agent
        .cli(["key", "disable", KEY])
        .fails(2, &["--yes", "nothing can be stored"]);
    assert_eq!(read(&agent, &bucket, "a").body, b"a");
    agent.cli(["key", "disable", KEY, "--yes"]).ok();
    read(&agent, &bucket, "a").fails("no-key", &[]);
    let put = agent.http("PUT", &format!("/v1/objects/{bucket}/b"), &[], b"b");
    put.fails("misconfigured", &["no wrapping key is active"]);
    assert!(
        agent
            .cli(["key", "list"])
            .ok()
            .text()
            .contains("archive: disabled")
    );
    let told = records(&agent, &["\"event\":\"key\"", "\"state\":\"disabled\""]);
    assert_eq!(told[0]["detail"], "was active");
}

#[test]
fn a_cryptoperiod_that_ends_is_warned_of_and_one_that_ended_is_in_the_evidence() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("cryptoperiod");
    let agent = Agent::start(&hsm, weed, |config| {
        let keys = config["key"].as_array_of_tables_mut().unwrap();
        keys.get_mut(0).unwrap()["cryptoperiod"] = value("2 s");
    });
    stored(&agent, &bucket, "a");
    let over = eventually(NOTICED, || {
        let status = agent.try_status()?;
        let warned = status.keys[0]
            .warnings
            .iter()
            .any(|w| w.contains("cryptoperiod ended"));
        warned.then_some(())
    });
    assert!(over.is_some(), "{:#?}", agent.try_status());
    assert!(agent.cli(["status"]).text().contains("cryptoperiod ended"));
    let told = eventually(NOTICED, || {
        let log = agent.log();
        let told = records(&agent, &["\"state\":\"cryptoperiod-exceeded\""]);
        (log.contains("cryptoperiod ended") && !told.is_empty()).then_some(())
    });
    assert!(told.is_some(), "{}", agent.log());
    let report = agent.cli(["evidence"]).ok().json();
    let key = &report["report"]["keys"][0];
    assert_eq!(key["cryptoperiod_exceeded"], true, "{key}");
    // A log line a day, not one each time somebody looks.
    let lines = agent.log().matches("its cryptoperiod ended").count();
    assert_eq!(lines, 1);
    let doctor = agent.cli(["doctor"]);
    assert!(
        doctor
            .text()
            .contains("wrong key archive: its cryptoperiod ended"),
        "{}",
        doctor.text()
    );
}
