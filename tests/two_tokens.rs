//! Two tokens at once: keys of their own, and one key on both, which goes on
//! while either of them is away.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use strongroom::api::{KeyInfo, Receipt, Status};
use support::hsm::{KEY, TOKEN, module};
use support::process::{eventually, signal};
use support::tamper::read;
use support::{Agent, Hsm, KeySpec, Weed, value};
use toml_edit::{Array, DocumentMut};

/// The second token's name and label.
const STANDBY: &str = "standby";
/// How long a token may take to be back.
const BACK: Duration = Duration::from_secs(20);
/// What waits for no deadline of a token is done within this, on a busy
/// machine too: the deadlines here are longer.
const AT_ONCE: Duration = Duration::from_secs(3);

fn standby_pin(hsm: &Hsm) -> PathBuf {
    hsm.dir().join("pin-standby")
}

/// Two tokens in one SoftHSM, each with its own PIN file. No keys.
fn two_tokens() -> Hsm {
    let hsm = Hsm::empty();
    hsm.add_token(STANDBY);
    hsm.write_pin(&standby_pin(&hsm), &hsm.pin());
    let text = format!(
        "{}\n[[token]]\nname = {STANDBY:?}\nmodule = {:?}\ntoken_label = {STANDBY:?}\npin_file = {:?}\nnetwork = false\n",
        hsm.config(),
        module().display().to_string(),
        standby_pin(&hsm).display().to_string()
    );
    fs::write(hsm.config_path(), text).unwrap();
    hsm
}

/// One key of these bytes on the first token, and one on the second.
fn key_on_both(first: [u8; 32], second: [u8; 32]) -> Hsm {
    let hsm = two_tokens();
    hsm.create(&KeySpec::new(KEY).bytes(&first));
    hsm.create_on(STANDBY, &KeySpec::new(KEY).bytes(&second));
    hsm.configure_key(KEY, KEY, "imported = true\n");
    hsm
}

fn prefer(config: &mut DocumentMut, tokens: &[&str]) {
    let keys = config["key"].as_array_of_tables_mut().unwrap();
    keys.get_mut(0).unwrap()["token"] = value(Array::from_iter(tokens.iter().copied()));
}

fn both(config: &mut DocumentMut) {
    prefer(config, &[TOKEN, STANDBY]);
    for token in config["token"].as_array_of_tables_mut().unwrap().iter_mut() {
        token["call_timeout"] = value("4 s");
    }
}

fn start(hsm: &Hsm) -> Agent {
    let agent = Agent::start(hsm, Weed::shared(), both);
    await_health(&agent, &[(TOKEN, "ready"), (STANDBY, "ready")]);
    agent
}

#[track_caller]
fn await_health(agent: &Agent, wanted: &[(&str, &str)]) -> Status {
    let is = |status: &Status, token: &str, health: &str| {
        let mut tokens = status.tokens.iter();
        tokens.any(|t| t.name == token && t.health == health)
    };
    let reached = eventually(BACK, || {
        let status = agent.try_status()?;
        wanted
            .iter()
            .all(|(token, health)| is(&status, token, health))
            .then_some(status)
    });
    reached.unwrap_or_else(|| panic!("not {wanted:?}: {:#?}", agent.try_status()))
}

/// A token's worker, once it has one: for an instant it has none while it is
/// replaced.
fn worker(agent: &Agent, token: &str) -> u32 {
    let found = eventually(BACK, || {
        let status = agent.try_status()?;
        status
            .tokens
            .iter()
            .find(|t| t.name == token)
            .and_then(|t| t.worker_pid)
    });
    found.unwrap_or_else(|| panic!("no worker: {:#?}", agent.try_status()))
}

fn key(agent: &Agent) -> KeyInfo {
    let keys: Vec<KeyInfo> = agent.http("GET", "/v1/keys", &[], b"").parse();
    keys.into_iter().find(|key| key.name == KEY).unwrap()
}

/// Stores its own name.
#[track_caller]
fn put(agent: &Agent, bucket: &str, name: &str) -> Duration {
    let target = format!("/v1/objects/{bucket}/{name}");
    let begun = Instant::now();
    let reply = agent.http("PUT", &target, &[], name.as_bytes());
    assert_eq!(reply.status, 201, "{}", reply.text());
    begun.elapsed()
}

/// Makes a token's PIN a wrong one, which its next worker finds.
fn lock(agent: &Agent, hsm: &Hsm, token: &str, pin: &std::path::Path) {
    hsm.write_pin(pin, "not the PIN");
    signal(worker(agent, token), Signal::KILL);
    await_health(agent, &[(token, "locked")]);
}

fn unlock(agent: &Agent, token: &str, pin: &std::path::Path, right: &str) {
    let _ = fs::remove_file(pin);
    fs::write(pin, right).unwrap();
    fs::set_permissions(pin, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    agent.signal(Signal::HUP);
    await_health(agent, &[(token, "ready")]);
}

#[test]
fn what_one_token_wrapped_the_other_opens_and_neither_is_missed() {
    let hsm = key_on_both([7; 32], [7; 32]);
    let (right, standby) = (hsm.pin(), standby_pin(&hsm));
    let bucket = Weed::shared().bucket("either");
    let agent = start(&hsm);
    let info = key(&agent);
    assert_eq!((info.token.as_str(), info.problem), (TOKEN, None));
    assert_eq!(info.tokens, [TOKEN, STANDBY]);
    put(&agent, &bucket, "both");

    // Without the preferred one: at once, and the agent calls itself degraded.
    lock(&agent, &hsm, TOKEN, &hsm.pin_file());
    assert!(put(&agent, &bucket, "by-standby") < AT_ONCE);
    assert_eq!(read(&agent, &bucket, "both").body, b"both");
    assert_eq!(agent.http("GET", "/v1/ready", &[], b"").status, 200);
    assert_eq!(agent.try_status().unwrap().health, "degraded");
    assert!(key(&agent).ready);

    // It comes back, and serves alone.
    unlock(&agent, TOKEN, &hsm.pin_file(), &right);
    lock(&agent, &hsm, STANDBY, &standby);
    assert!(put(&agent, &bucket, "by-preferred") < AT_ONCE);
    for name in ["both", "by-standby"] {
        assert_eq!(read(&agent, &bucket, name).body, name.as_bytes());
    }
    // And the other way round.
    unlock(&agent, STANDBY, &standby, &right);
    lock(&agent, &hsm, TOKEN, &hsm.pin_file());
    assert_eq!(read(&agent, &bucket, "by-preferred").body, b"by-preferred");

    // With neither there is nothing to wait for.
    lock(&agent, &hsm, STANDBY, &standby);
    let begun = Instant::now();
    let target = format!("/v1/objects/{bucket}/by-nobody");
    let refused = agent.http("PUT", &target, &[], b"x");
    refused.fails("token-locked", &[]);
    let refused = agent.http("GET", &format!("/v1/objects/{bucket}/both"), &[], b"");
    refused.fails("token-locked", &[]);
    assert!(begun.elapsed() < AT_ONCE);
}

#[test]
fn a_token_that_hangs_costs_its_deadline_and_no_request() {
    let hsm = key_on_both([7; 32], [7; 32]);
    let bucket = Weed::shared().bucket("hangs");
    let agent = start(&hsm);
    // The preferred one is asked as long as it is well.
    let stuck = worker(&agent, STANDBY);
    signal(stuck, Signal::STOP);
    for n in 0..5 {
        assert!(put(&agent, &bucket, &format!("a{n}")) < AT_ONCE);
    }
    await_health(&agent, &[(TOKEN, "ready")]);
    // Unless a probe has found it by itself meanwhile.
    signal(stuck, Signal::KILL);
    let replaced = eventually(BACK, || {
        let status = agent.try_status()?;
        let token = status.tokens.iter().find(|t| t.name == STANDBY)?;
        (token.health == "ready" && token.worker_pid? != stuck).then_some(())
    });
    assert!(replaced.is_some());

    let stuck = worker(&agent, TOKEN);
    signal(stuck, Signal::STOP);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (agent, bucket) = (&agent, &bucket);
            scope.spawn(move || {
                let took = put(agent, bucket, &format!("b{n}"));
                // One call_timeout for the token's random bytes or its wrap.
                assert!(took < Duration::from_secs(10), "{took:?}");
            });
        }
    });
    for n in 0..8 {
        let name = format!("b{n}");
        assert_eq!(read(&agent, &bucket, &name).body, name.as_bytes());
    }
    let replaced = eventually(BACK, || (worker(&agent, TOKEN) != stuck).then_some(()));
    assert!(replaced.is_some(), "the stuck worker was replaced");
}

#[test]
fn no_request_fails_while_the_preferred_tokens_worker_is_killed() {
    let hsm = key_on_both([7; 32], [7; 32]);
    let bucket = Weed::shared().bucket("killed");
    let agent = start(&hsm);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..3 {
            let (agent, bucket, over) = (&agent, &bucket, &over);
            scope.spawn(move || {
                let mut stored = 0;
                while !over.load(Ordering::Relaxed) || stored == 0 {
                    let name = format!("{client}-{stored}");
                    put(agent, bucket, &name);
                    assert_eq!(read(agent, bucket, &name).body, name.as_bytes());
                    stored += 1;
                }
                println!("client {client}: {stored} objects stored and read");
            });
        }
        for _ in 0..6 {
            signal(worker(&agent, TOKEN), Signal::KILL);
            std::thread::sleep(Duration::from_millis(300));
            // Both, before the next one dies: one token at a time.
            await_health(&agent, &[(TOKEN, "ready"), (STANDBY, "ready")]);
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn rule_18_another_key_of_the_same_label_does_not_pass_for_the_same() {
    let hsm = key_on_both([7; 32], [8; 32]);
    let bucket = Weed::shared().bucket("impostor");
    let agent = Agent::start(&hsm, Weed::shared(), |_| {});
    put(&agent, &bucket, "before");
    agent.reconfigure(both);
    agent.signal(Signal::HUP);
    await_health(&agent, &[(TOKEN, "ready"), (STANDBY, "misconfigured")]);
    let info = key(&agent);
    assert!(info.ready);
    let problem = info.problem.unwrap();
    assert!(
        problem.starts_with("token standby: key archive: ")
            && problem.contains("is not the key it was"),
        "{problem}"
    );
    put(&agent, &bucket, "after");
    for name in ["before", "after"] {
        assert_eq!(read(&agent, &bucket, name).body, name.as_bytes());
    }
    // It does not stand in, either.
    lock(&agent, &hsm, TOKEN, &hsm.pin_file());
    let target = format!("/v1/objects/{bucket}/before");
    assert_eq!(agent.http("GET", &target, &[], b"").status, 503);
}

#[test]
fn two_tokens_with_a_key_each_do_not_disturb_each_other() {
    let hsm = two_tokens();
    hsm.create(&KeySpec::new("one"));
    hsm.create_on(STANDBY, &KeySpec::new("two"));
    hsm.configure_key("one", "one", "");
    let text = format!(
        "{}\n[[key]]\nname = \"two\"\ntoken = {STANDBY:?}\nlabel = \"two\"\n",
        hsm.config()
    );
    fs::write(hsm.config_path(), text).unwrap();
    let bucket = Weed::shared().bucket("each");
    let agent = Agent::start(&hsm, Weed::shared(), |_| {});
    await_health(&agent, &[(TOKEN, "ready"), (STANDBY, "ready")]);
    let put = |key: &str, name: &str| {
        let target = format!("/v1/objects/{bucket}/{name}");
        let reply = agent.http("PUT", &target, &[("Strongroom-Key", key)], name.as_bytes());
        assert_eq!(reply.status, 201, "{}", reply.text());
        assert_eq!(reply.parse::<Receipt>().wrapping_key, key);
    };
    put("one", "a");
    put("two", "b");
    signal(worker(&agent, TOKEN), Signal::STOP);
    let begun = Instant::now();
    put("two", "c");
    for name in ["b", "c"] {
        assert_eq!(read(&agent, &bucket, name).body, name.as_bytes());
    }
    assert!(begun.elapsed() < AT_ONCE);
    signal(worker(&agent, TOKEN), Signal::CONT);
    assert_eq!(read(&agent, &bucket, "a").body, b"a");
}
