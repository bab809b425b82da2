//! Rule 19 of docs/security.md, end to end: wraps are counted through kills
//! and restarts, a successor takes over in time, and a key that is used up
//! wraps no more and is read all the same.
//!
//! No test can make 65,536 wraps: the count is set in the catalogue of an
//! agent that does not run.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use rusqlite::Connection;
use strongroom::api::{KeyInfo, Receipt};
use support::hsm::KEY;
use support::null_store::NullStore;
use support::process::eventually;
use support::tamper::read;
use support::{Agent, DocumentMut, Hsm, KeySpec, Store, Weed, value};

/// The wrap_limit of these tests.
const LIMIT: u64 = 1 << 20;
/// The count from which the successor wraps.
const DUE: u64 = LIMIT - LIMIT / 32;

fn limited(config: &mut DocumentMut) {
    let key = config["key"].as_array_of_tables_mut().unwrap();
    key.get_mut(0).unwrap()["wrap_limit"] = value("2^20");
}

fn catalogue(agent: &Agent) -> Connection {
    Connection::open(agent.state_dir().join("catalog.sqlite")).unwrap()
}

/// What a stopped agent's catalogue has reserved.
fn reserved(agent: &Agent, key: &str) -> u64 {
    let query = "SELECT reserved FROM wraps WHERE key = ?1";
    let found: i64 = catalogue(agent)
        .query_row(query, [key], |row| row.get(0))
        .unwrap();
    found.try_into().unwrap()
}

/// As if a stopped agent had come so far.
fn set(agent: &Agent, key: &str, wraps: u64) {
    let changed = catalogue(agent)
        .execute(
            "UPDATE wraps SET reserved = ?2 WHERE key = ?1",
            (key, i64::try_from(wraps).unwrap()),
        )
        .unwrap();
    assert_eq!(changed, 1);
}

fn key(agent: &Agent, name: &str) -> KeyInfo {
    let keys: Vec<KeyInfo> = agent.http("GET", "/v1/keys", &[], b"").parse();
    keys.into_iter().find(|key| key.name == name).unwrap()
}

/// Stores a small object; the key that wrapped it.
#[track_caller]
fn put(agent: &Agent, bucket: &str, name: &str) -> String {
    let target = format!("/v1/objects/{bucket}/{name}");
    let reply = agent.http("PUT", &target, &[], name.as_bytes());
    assert_eq!(reply.status, 201, "{}", reply.text());
    reply.parse::<Receipt>().wrapping_key
}

#[test]
fn rule_19_the_successor_takes_over_before_the_limit_and_no_put_fails() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    hsm.create(&KeySpec::new("next"));
    hsm.configure_key("next", "next", "ring = \"archive\"\nuse = \"decrypt\"\n");
    let bucket = weed.bucket("hand-over");
    let mut agent = Agent::start(&hsm, weed, |config| {
        limited(config);
        let keys = config["key"].as_array_of_tables_mut().unwrap();
        keys.get_mut(0).unwrap()["successor"] = value("next");
    });
    assert_eq!(put(&agent, &bucket, "before"), KEY);
    let info = key(&agent, KEY);
    assert_eq!(info.successor.as_deref(), Some("next"));
    assert_eq!((info.wrap_limit, info.handed_over_to), (LIMIT, None));

    agent.stop();
    set(&agent, KEY, DUE - 40);
    agent.launch();
    agent.await_ready().unwrap();
    let wrapped_by: Vec<String> = (0..60)
        .map(|n| put(&agent, &bucket, &format!("k{n}")))
        .collect();
    let old = wrapped_by.iter().take_while(|key| *key == KEY).count();
    // The gate's wrap and perhaps a probe's are charged with four each.
    assert!((20..40).contains(&old), "{wrapped_by:?}");
    assert!(wrapped_by[old..].iter().all(|key| key == "next"));
    for name in ["before", "k0", "k59"] {
        assert_eq!(read(&agent, &bucket, name).body, name.as_bytes());
    }

    let info = key(&agent, KEY);
    assert_eq!(info.handed_over_to.as_deref(), Some("next"));
    // The last wrap gave back what it did not need.
    assert!((DUE - 12..LIMIT).contains(&info.wraps_used), "{info:?}");
    for command in [["key", "list"].as_slice(), &["status"]] {
        let text = agent.cli(command).ok().text();
        assert!(text.contains("handed over to next"), "{text}");
    }
    let log = agent.log();
    for told in ["its successor wraps from now on", "90 % of its wrap_limit"] {
        assert_eq!(log.matches(told).count(), 1, "{log}");
    }

    // For good: the count does not fall, however the agent ends.
    agent.kill();
    agent.launch();
    agent.await_ready().unwrap();
    assert_eq!(put(&agent, &bucket, "after"), "next");
    // By the name of the ring, and by the names of both keys.
    for name in [KEY, "next"] {
        let target = format!("/v1/objects/{bucket}/named");
        let reply = agent.http("PUT", &target, &[("Strongroom-Key", name)], b"x");
        assert_eq!(reply.parse::<Receipt>().wrapping_key, "next");
    }
}

#[test]
fn rule_19_a_used_up_key_wraps_no_more_and_is_read_all_the_same() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("used-up");
    let mut agent = Agent::start(&hsm, weed, limited);
    put(&agent, &bucket, "before");
    agent.stop();
    set(&agent, KEY, LIMIT - 40);
    agent.launch();
    agent.await_ready().unwrap();
    let target = format!("/v1/objects/{bucket}/late");
    let refused = eventually(Duration::from_secs(20), || {
        let reply = agent.http("PUT", &target, &[], b"late");
        (reply.status != 201).then_some(reply)
    })
    .unwrap();
    refused.fails("key-exhausted", &["wrap_limit of 1048576", "active"]);
    assert!(refused.header("retry-after").is_some());
    let used = key(&agent, KEY).wraps_used;
    assert!(used <= LIMIT && used > LIMIT - 12, "{used}");
    assert_eq!(read(&agent, &bucket, "before").body, b"before");

    // From the start, and after the worker had to pass the gate again.
    for _ in 0..2 {
        agent.kill();
        agent.launch();
        let body = eventually(Duration::from_secs(20), || {
            agent.try_status()?.keys[0].ready.then_some(())?;
            Some(read(&agent, &bucket, "before").body)
        });
        assert_eq!(body.unwrap(), b"before");
        let ready = agent.http("GET", "/v1/ready", &[], b"");
        ready.fails("key-exhausted", &["wrap_limit"]);
        agent
            .cli_in(["put", "-", &format!("s3://{bucket}/late2")], b"x")
            .fails(75, &["wrap_limit of 1048576", "hint: "]);
    }
    let status = agent.try_status().unwrap();
    assert_eq!(status.health, "misconfigured");
    let doctor = agent.cli(["doctor"]).fails(1, &[]).text();
    assert!(doctor.contains("nothing more is wrapped"), "{doctor}");

    // The remedy, as the hint has it.
    agent.reconfigure(|config| {
        let keys = config["key"].as_array_of_tables_mut().unwrap();
        keys.get_mut(0).unwrap()["use"] = value("decrypt");
    });
    let generate = ["key", "generate", "archive-2", "--ring", KEY, "--token"];
    agent
        .cli(generate.iter().chain([&support::hsm::TOKEN]))
        .ok();
    agent.await_ready().unwrap();
    assert_eq!(put(&agent, &bucket, "again"), "archive-2");
    assert_eq!(read(&agent, &bucket, "before").body, b"before");
}

#[test]
fn rule_19_no_kill_lowers_the_count() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    let mut agent = Agent::start(&hsm, Store::at(null.endpoint()), |_| {});
    let mut least = 0;
    for round in 0..4 {
        for n in 0..10 {
            put(&agent, "bucket", &format!("{round}-{n}"));
        }
        let used = key(&agent, KEY).wraps_used;
        assert!(used >= least + 10, "{used} after {least}");
        agent.kill();
        // What was reserved is durable, and all of it counts as used.
        let durable = reserved(&agent, KEY);
        assert!(durable >= used && durable - used <= 65_536 + 8_192);
        least = durable;
        agent.launch();
        agent.await_ready().unwrap();
        assert!(key(&agent, KEY).wraps_used >= durable);
    }
    // The doctor's own wraps count too, while the agent runs.
    agent.cli(["doctor"]).ok();
    agent.kill();
    assert_eq!(reserved(&agent, KEY) % 65_536, (least + 4) % 65_536);
}

#[test]
fn rule_19_a_lost_count_is_told_with_its_remedy() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    let mut agent = Agent::start(&hsm, Store::at(null.endpoint()), |_| {});
    assert!(key(&agent, KEY).wraps_complete);
    agent.stop();
    let lost = catalogue(&agent).execute("DELETE FROM wraps", []).unwrap();
    assert_eq!(lost, 1);
    agent.launch();
    agent.await_ready().unwrap();
    put(&agent, "bucket", "k");
    assert!(!key(&agent, KEY).wraps_complete);
    for command in [["key", "list"].as_slice(), &["status"]] {
        let text = agent.cli(command).ok().text();
        assert!(text.contains("the count is incomplete, rotate"), "{text}");
    }
    let doctor = agent.cli(["doctor"]).fails(1, &[]).text();
    assert!(
        doctor.contains("count of its wraps is incomplete"),
        "{doctor}"
    );
    assert!(doctor.contains("rotate: docs/keys.md"), "{doctor}");
}
