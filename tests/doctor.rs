//! `strongroom doctor` on set-ups that are in order, and on broken ones: it
//! names each fault with its remedy, and never the PIN.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use support::null_store::NullStore;
use support::*;

/// Runs doctor; its findings are lines of `--json`, in which the PIN is not.
#[track_caller]
fn findings(agent: &Agent, hsm: &Hsm, more: &[&str], code: i32) -> Vec<Value> {
    let text = agent.cli([&["doctor"], more].concat()).fails(code, &[]);
    let json = agent
        .cli([&["doctor", "--json"], more].concat())
        .fails(code, &[]);
    for run in [&text, &json] {
        assert!(
            !run.text().contains(&hsm.pin()),
            "the PIN is in:\n{}",
            run.text()
        );
        assert!(
            !run.stderr.contains(&hsm.pin()),
            "the PIN is in:\n{}",
            run.stderr
        );
    }
    let found: Vec<Value> = json
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    assert_eq!(
        found.iter().any(|f| f["ok"] == false),
        code != 0,
        "{found:#?}"
    );
    for finding in &found {
        // People read the same, word for word.
        let verdict = if finding["ok"] == true {
            "ok   "
        } else {
            "wrong"
        };
        let line = format!("{verdict} {}: ", finding["area"].as_str().unwrap());
        assert!(
            text.text().contains(&line),
            "{line:?} is not in:\n{}",
            text.text()
        );
        let remedy = finding["remedy"].as_str().unwrap_or_default();
        assert_eq!(remedy.is_empty(), finding["ok"] == true, "{finding}");
    }
    found
}

/// Asserts that a fault of this area is told with these words, and that its
/// remedy has `remedy` in it.
#[track_caller]
fn names(found: &[Value], area: &str, words: &[&str], remedy: &str) {
    let fits = |finding: &&Value| {
        let what = finding["what"].as_str().unwrap_or_default();
        finding["ok"] == false
            && finding["area"] == area
            && words.iter().all(|word| what.contains(word))
            && finding["remedy"]
                .as_str()
                .is_some_and(|text| text.contains(remedy))
    };
    assert!(
        found.iter().any(|f| fits(&f)),
        "no {words:?} with {remedy:?} of {area} in {found:#?}"
    );
}

/// Asserts that these areas, and no others, are at fault.
#[track_caller]
fn at_fault(found: &[Value], areas: &[&str]) {
    let faults: Vec<_> = found.iter().filter(|f| f["ok"] == false).collect();
    let named: Vec<_> = faults.iter().map(|f| f["area"].as_str().unwrap()).collect();
    assert_eq!(named, areas, "{faults:#?}");
}

#[test]
fn a_good_set_up_has_no_fault() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("doctor");
    let mut agent = Agent::prepare(&hsm, weed, |_| {});
    let found = findings(&agent, &hsm, &["--bucket", &bucket], 0);
    let areas: Vec<_> = found.iter().map(|f| f["area"].as_str().unwrap()).collect();
    let place = format!("bucket {bucket}");
    assert_eq!(
        areas,
        [
            "configuration",
            "grants",
            "audit log",
            "token primary",
            "key archive",
            &place,
            &place,
            "agent"
        ]
    );
    let all = serde_json::to_string(&found).unwrap();
    for word in [
        "tokens: 1, keys: 1",
        "a software token",
        "passes the start-up gate",
        "versioning off",
        "If-None-Match is enforced",
        "not running",
    ] {
        assert!(all.contains(word), "{word:?} is not in {all}");
    }
    // Beside the agent, without a bucket, and with its URL.
    agent.launch();
    agent.await_ready().unwrap();
    let found = findings(&agent, &hsm, &[], 0);
    assert!(
        found
            .iter()
            .any(|f| f["area"] == "store" && f["what"].as_str().unwrap().contains("answers"))
    );
    assert!(
        found
            .iter()
            .any(|f| f["area"] == "agent" && f["what"].as_str().unwrap().contains("listens at"))
    );
    findings(&agent, &hsm, &["--bucket", &format!("s3://{bucket}/")], 0);
    // What it tried is gone again.
    assert_eq!(weed.list(&bucket, ""), [""; 0]);
    agent.stop();
}

#[test]
fn a_wrong_module_is_named() {
    let hsm = Hsm::new();
    let (null, mut cases) = (NullStore::start(), 0);
    for (module, words, remedy) in [
        (
            "/nonexistent/p11.so",
            &["module /nonexistent/p11.so does not exist"][..],
            "correct `module`, or install",
        ),
        (
            "/etc/passwd",
            &["/etc/passwd does not load"],
            "is it a PKCS#11 library",
        ),
        ("/lib/x86_64-linux-gnu/libc.so.6", &["libc.so.6"], "PKCS#11"),
    ] {
        if module.starts_with("/lib") && !std::path::Path::new(module).exists() {
            continue;
        }
        let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |c| {
            c["token"][0]["module"] = value(module);
        });
        let found = findings(&agent, &hsm, &[], 1);
        names(&found, "token primary", words, remedy);
        at_fault(&found, &["token primary"]);
        cases += 1;
    }
    assert!(cases >= 2);
}

#[test]
fn a_token_that_is_not_there_is_named() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |c| {
        c["token"][0]["token_label"] = value("another");
    });
    let found = findings(&agent, &hsm, &[], 1);
    names(
        &found,
        "token primary",
        &["no token matches label \"another\""],
        "the module offers \"strongroom-test\"",
    );

    let bare = Hsm::bare();
    let agent = Agent::prepare(&bare, Store::at(null.endpoint()), |_| {});
    let found = findings(&agent, &bare, &[], 1);
    names(
        &found,
        "token primary",
        &["offers no initialised token"],
        "strongroom token init",
    );
    names(
        &found,
        "configuration",
        &["no wrapping key is active"],
        "strongroom key generate",
    );

    hsm.add_token(hsm::TOKEN_LABEL);
    let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |_| {});
    let found = findings(&agent, &hsm, &[], 1);
    names(
        &found,
        "token primary",
        &["2 tokens match", "set serial"],
        "the module offers",
    );
}

#[test]
fn rule_22_a_wrong_pin_costs_doctor_one_login_and_the_agent_none() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    let good = hsm.pin();
    let mut agent = Agent::start(&hsm, Store::at(null.endpoint()), |_| {});
    agent.stop();
    hsm.write_pin(&hsm.pin_file(), "999999999999");
    let run = agent.cli(["doctor"]).fails(1, &[]);
    for word in [
        "wrong token primary: ",
        "CKR_PIN_INCORRECT",
        "hint: correct the PIN file",
    ] {
        assert!(
            run.text().contains(word),
            "{word:?} is not in:\n{}",
            run.text()
        );
    }
    assert!(!run.text().contains("999999999999") && !run.stderr.contains("999999999999"));
    // From now on it is known: neither doctor nor the agent tries it again.
    let latched = "refused the PIN in its PIN file, and the file has not changed since";
    for _ in 0..2 {
        let found = findings(&agent, &hsm, &[], 1);
        names(&found, "token primary", &[latched], "correct the PIN file");
        at_fault(&found, &["token primary"]);
    }
    let earlier = agent.log().matches("token worker started").count();
    agent.launch();
    let locked = process::eventually(std::time::Duration::from_secs(20), || {
        agent
            .cli(["status"])
            .text()
            .starts_with("locked")
            .then_some(())
    });
    assert!(locked.is_some(), "{}", agent.log());
    assert_eq!(
        agent.log().matches("token worker started").count(),
        earlier,
        "{}",
        agent.log()
    );
    // The right PIN is tried at once, by both.
    hsm.write_pin(&hsm.pin_file(), &good);
    findings(&agent, &hsm, &[], 0);
    agent.signal(rustix::process::Signal::HUP);
    agent.await_ready().unwrap();
}

#[test]
fn rule_22_what_root_notes_of_a_pin_the_agents_user_can_read() {
    use std::os::unix::fs::MetadataExt as _;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    let (hsm, null) = (Hsm::new(), NullStore::start());
    let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |_| {});
    std::fs::create_dir(agent.state_dir()).unwrap();
    std::os::unix::fs::chown(agent.state_dir(), Some(4711), Some(4711)).unwrap();
    hsm.write_pin(&hsm.pin_file(), "999999999999");
    let run = agent.cli(["doctor"]).fails(1, &[]);
    assert!(run.text().contains("CKR_PIN_INCORRECT"), "{}", run.text());
    // A note that the agent cannot read would hold for good.
    for entry in std::fs::read_dir(agent.state_dir()).unwrap().flatten() {
        assert_eq!(entry.metadata().unwrap().uid(), 4711, "{entry:?}");
    }
}

#[test]
fn a_pin_file_that_is_not_right_is_named() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |_| {});
    std::fs::set_permissions(hsm.pin_file(), PermissionsExt::from_mode(0o444)).unwrap();
    let found = findings(&agent, &hsm, &[], 1);
    names(
        &found,
        "token primary",
        &["has mode 0444", "other users can reach it"],
        "mode 0400",
    );
    let inside = Agent::prepare(&hsm, Store::at(null.endpoint()), |c| {
        c["agent"]["state_dir"] = value(hsm.dir().display().to_string());
    });
    std::fs::set_permissions(hsm.pin_file(), PermissionsExt::from_mode(0o400)).unwrap();
    let found = findings(&inside, &hsm, &[], 1);
    names(
        &found,
        "token primary",
        &["is inside ", "which the server can read"],
        "move it elsewhere",
    );
    hsm.write_pin(&hsm.pin_file(), "\n");
    let run = agent.cli(["doctor"]).fails(1, &[]);
    assert!(
        run.text().contains("is empty") && run.text().contains("only line"),
        "{}",
        run.text()
    );
    std::fs::remove_file(hsm.pin_file()).unwrap();
    let run = agent.cli(["doctor"]).fails(1, &[]);
    assert!(
        run.text().contains("cannot read the PIN file"),
        "{}",
        run.text()
    );
}

#[test]
fn keys_that_fail_the_gate_are_named() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    hsm.create(&KeySpec::new("leaky").with("extractable", true));
    hsm.create(&KeySpec::new("brought").bytes(&[7; 32]));
    hsm.create(&KeySpec::new("twin"));
    hsm.create(&KeySpec::new("twin"));
    for name in ["leaky", "brought", "twin", "absent"] {
        hsm.configure_key(name, name, "");
    }
    let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |_| {});
    let found = findings(&agent, &hsm, &[], 1);
    names(
        &found,
        "key leaky",
        &["CKA_EXTRACTABLE is true", "must never leave the token"],
        "strongroom key generate",
    );
    names(
        &found,
        "key brought",
        &["CKA_", "is false"],
        "set imported = true",
    );
    names(
        &found,
        "key twin",
        &["two keys are labelled \"twin\""],
        "delete all but one",
    );
    names(
        &found,
        "key absent",
        &["no key on the token is labelled \"absent\""],
        "strongroom key generate absent",
    );
    at_fault(
        &found,
        &["key leaky", "key brought", "key twin", "key absent"],
    );
    assert!(
        found
            .iter()
            .any(|f| f["area"] == "key archive" && f["ok"] == true)
    );
}

#[test]
fn buckets_credentials_and_endpoints_are_named() {
    let (hsm, weed, null) = (Hsm::new(), Weed::shared(), NullStore::start());
    let agent = Agent::prepare(&hsm, weed, |c| {
        c["keyslots"]["bucket"] = value("no-slot-bucket");
    });
    let found = findings(&agent, &hsm, &["--bucket", "no-such-bucket"], 1);
    for bucket in ["no-such-bucket", "no-slot-bucket"] {
        let said = format!("no such bucket: {bucket:?}");
        names(
            &found,
            &format!("bucket {bucket}"),
            &[&said],
            "create the bucket, or correct its name",
        );
    }
    at_fault(&found, &["bucket no-such-bucket", "bucket no-slot-bucket"]);

    let bucket = weed.bucket("doctor-denied");
    let good = Store::from(weed);
    for (access, secret, word) in [
        ("", "", "no credentials"),
        (&good.access_key, "wrong", "denies access"),
    ] {
        let agent = Agent::prepare(&hsm, good.with_credentials(access, secret), |_| {});
        let found = findings(&agent, &hsm, &[], 1);
        names(
            &found,
            "store",
            &["the store denies access", word],
            "AWS credentials",
        );
        at_fault(&found, &["store"]);
        let found = findings(&agent, &hsm, &["--bucket", &bucket], 1);
        names(
            &found,
            &format!("bucket {bucket}"),
            &[word],
            "AWS credentials",
        );
    }
    // A store that cannot keep a promise of ours.
    null.ignores_if_none_match(true);
    let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |_| {});
    let found = findings(&agent, &hsm, &["--bucket", "bucket"], 1);
    names(
        &found,
        "bucket bucket",
        &["the store ignores If-None-Match", "--no-clobber"],
        "a store that enforces conditional writes",
    );
    assert_eq!(null.keys(), [""; 0]);
    // Trust anchors that are not there.
    let agent = Agent::prepare(&hsm, Store::at("https://127.0.0.1:1"), |c| {
        c["s3"]["ca_bundle"] = value("/nonexistent/ca.pem");
    });
    let found = findings(&agent, &hsm, &[], 1);
    names(
        &found,
        "store",
        &["cannot read s3.ca_bundle /nonexistent/ca.pem"],
        "correct [s3]",
    );
}

#[test]
fn a_store_that_is_away_is_named() {
    let hsm = Hsm::new();
    let agent = Agent::prepare(&hsm, Store::at("http://127.0.0.1:1"), |_| {});
    let run = agent.cli(["doctor"]).fails(1, &[]);
    for word in [
        "wrong store: the store is away",
        "hint: check s3.endpoint_url",
        "ok    token primary",
    ] {
        assert!(
            run.text().contains(word),
            "{word:?} is not in:\n{}",
            run.text()
        );
    }
}

#[test]
fn an_invalid_configuration_is_named() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |c| {
        c["s3"]["part_sise"] = value("8 MiB");
    });
    let found = findings(&agent, &hsm, &[], 1);
    names(
        &found,
        "configuration",
        &["unknown field `part_sise`"],
        "did you mean `part_size`?",
    );
    let missing = ["--config", "/nonexistent/strongroom.toml"];
    let found = findings(&agent, &hsm, &missing, 1);
    names(
        &found,
        "configuration",
        &["cannot read the configuration /nonexistent/strongroom.toml"],
        "name another file",
    );
    let plain = Agent::prepare(&hsm, Store::at("http://192.0.2.1:9000"), |_| {});
    let found = findings(&plain, &hsm, &[], 1);
    names(
        &found,
        "configuration",
        &["plain http beyond this host"],
        "use https",
    );
}

#[test]
fn several_faults_are_named_at_once() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    hsm.create(&KeySpec::new("leaky").with("extractable", true));
    hsm.configure_key("leaky", "leaky", "");
    let config = format!(
        "{}\n[[token]]\nname = \"second\"\nmodule = \"/nonexistent/p11.so\"\ntoken_label = \"x\"\npin_file = {:?}\n",
        hsm.config(),
        hsm.pin_file().display().to_string()
    );
    std::fs::write(hsm.config_path(), config).unwrap();
    let agent = Agent::prepare(&hsm, Store::at(null.endpoint()), |_| {});
    let found = findings(&agent, &hsm, &["--bucket", "missing"], 1);
    at_fault(&found, &["key leaky", "token second", "bucket missing"]);
    names(&found, "token second", &["does not exist"], "install");
    names(
        &found,
        "bucket missing",
        &["no such bucket"],
        "create the bucket",
    );
}
