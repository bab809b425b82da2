//! What happens when one of the agent's processes dies, when a second agent
//! comes, and when a PIN or a wrapping key is not the right one.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::process::{eventually, of_threads, signal};
use support::tamper::{read, stored};
use support::{Agent, Hsm, KeySpec, Weed, pattern, value};

/// Puts and gets until it works, at most five seconds.
#[track_caller]
fn works_again(agent: &Agent, bucket: &str) -> Duration {
    let began = Instant::now();
    let done = eventually(Duration::from_secs(5), || {
        let put = agent.cli_in(["put", "-", &format!("s3://{bucket}/again")], b"again");
        match put.code {
            Some(0) => Some(()),
            Some(75) => None,
            _ => panic!("{:?}: {}", put.code, put.stderr),
        }
    });
    assert!(done.is_some(), "no put within 5 s:\n{}", agent.log());
    let took = began.elapsed();
    assert_eq!(read(agent, bucket, "again").body, b"again");
    took
}

#[test]
fn a_killed_worker_is_replaced() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let bucket = weed.bucket("worker");
    let server = agent.server().pid;
    for round in 1..=3 {
        let before = agent.workers().remove(0);
        signal(before.pid, Signal::KILL);
        let took = works_again(&agent, &bucket);
        let after = agent.workers().remove(0);
        assert_ne!(before.pid, after.pid);
        assert_eq!(after.parent, agent.pid(), "the supervisor started it");
        assert_eq!(agent.server().pid, server, "the server stayed");
        println!("worker killed, round {round}: a put worked {took:?} later");
    }
}

#[test]
fn a_killed_server_is_replaced_and_the_socket_stays() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let bucket = weed.bucket("server");
    let inode = std::fs::metadata(agent.socket()).unwrap().ino();
    for round in 1..=3 {
        let before = agent.server();
        signal(before.pid, Signal::KILL);
        let gone = eventually(Duration::from_secs(5), || (!before.runs()).then_some(()));
        assert!(gone.is_some());
        // In between: nobody is refused, the kernel holds the connection.
        let health = agent.http("GET", "/v1/health", &[], b"");
        assert_eq!(health.status, 200);
        let took = works_again(&agent, &bucket);
        assert_ne!(agent.server().pid, before.pid);
        assert_eq!(of_threads(&agent.server(), "Seccomp:")[0], "2");
        assert_eq!(std::fs::metadata(agent.socket()).unwrap().ino(), inode);
        println!("server killed, round {round}: a put worked {took:?} later");
    }
    assert_eq!(agent.workers().len(), 1);
}

#[test]
fn a_server_that_gives_no_sign_of_life_is_replaced() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let bucket = weed.bucket("mute");
    let before = agent.server();
    signal(before.pid, Signal::STOP);
    // Thirty seconds without a word, and the time to start another.
    let gone = eventually(Duration::from_secs(45), || (!before.runs()).then_some(()));
    assert!(gone.is_some(), "{}", agent.log());
    works_again(&agent, &bucket);
    assert!(agent.log().contains("it gives no sign of life"));
}

#[test]
fn a_killed_supervisor_takes_all_others_with_it() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = Agent::start(&hsm, weed, |_| {});
    let all = agent.processes();
    assert_eq!(all.len(), 3);
    signal(agent.pid(), Signal::KILL);
    // Asserts that none of them outlives it.
    assert_eq!(agent.wait_exit(Duration::from_secs(5)), None);
    // Its socket file is still there, and does not keep the next one out.
    assert!(agent.socket().exists());
    agent.launch();
    agent.await_ready().unwrap();
    println!("3 processes ended with the supervisor; the stale socket was replaced");
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let first = Agent::start(&hsm, weed, |_| {});
    let same = first.cli(["agent"]).fails(1, &["another agent", "hint: "]);
    assert!(same.stderr.contains("state_dir"), "{}", same.stderr);

    let path = |path: PathBuf| value(path.display().to_string());
    for (setting, theirs, word) in [
        ("socket", first.socket(), "another agent listens"),
        ("state_dir", first.state_dir(), "another agent (process"),
    ] {
        let other = Agent::prepare(&hsm, weed, |config| {
            config["agent"][setting] = path(theirs.clone());
        });
        let refused = other.cli(["agent"]).fails(1, &[word, "hint: "]);
        assert!(
            refused.stderr.contains(&theirs.display().to_string()),
            "{}",
            refused.stderr
        );
    }
    // What is no socket is nobody's to remove.
    let other = Agent::prepare(&hsm, weed, |_| {});
    std::fs::write(other.socket(), "precious").unwrap();
    other.cli(["agent"]).fails(1, &["not a socket", "hint: "]);
    assert_eq!(std::fs::read(other.socket()).unwrap(), b"precious");
    assert_eq!(first.http("GET", "/v1/ready", &[], b"").status, 200);
    println!("4 second agents refused");
}

#[test]
fn rule_22_a_wrong_pin_costs_one_attempt_and_a_restart_none() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let pin = hsm.pin();
    hsm.write_pin(&hsm.pin_file(), "000000000000");
    let mut agent = Agent::prepare(&hsm, weed, |_| {});
    agent.launch();
    let locked = |agent: &Agent| {
        let status = eventually(Duration::from_secs(20), || {
            agent.try_status().filter(|s| s.health == "locked")
        });
        let status = status.unwrap_or_else(|| panic!("not locked:\n{}", agent.log()));
        assert!(
            status.tokens[0]
                .hint
                .as_ref()
                .is_some_and(|h| !h.is_empty()),
            "{status:?}"
        );
    };
    let attempts = |agent: &Agent| agent.log().matches("token worker started").count();
    locked(&agent);
    // Longer than any back-off's first steps.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(attempts(&agent), 1, "{}", agent.log());
    assert_eq!(agent.workers().len(), 0);
    let latch = agent
        .state_dir()
        .join(format!("pin-latch-{}", support::hsm::TOKEN));
    assert!(latch.exists());
    agent
        .cli_in(["put", "-", "s3://bucket/k"], b"x")
        .fails(75, &["PIN", "hint: "]);
    agent
        .http("GET", "/v1/ready", &[], b"")
        .fails("token-locked", &["PIN"]);
    for _ in 0..2 {
        agent.stop();
        agent.launch();
        locked(&agent);
    }
    assert_eq!(
        attempts(&agent),
        1,
        "restarts tried again:\n{}",
        agent.log()
    );

    // The right PIN, and a reload.
    hsm.write_pin(&hsm.pin_file(), &pin);
    agent.signal(Signal::HUP);
    agent.await_ready().unwrap();
    assert_eq!(attempts(&agent), 2);
    println!("a wrong PIN: 1 attempt, 2 restarts: none, the right one: ready");
}

#[test]
fn rule_18_a_key_of_the_same_label_is_not_the_same_key() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = Agent::start(&hsm, weed, |_| {});
    let bucket = weed.bucket("canary");
    stored(&agent, weed, &bucket, "k", &pattern(1, 1000));
    agent.stop();
    hsm.destroy(support::hsm::KEY);
    hsm.create(&KeySpec::new(support::hsm::KEY));
    agent.launch();
    let refused = eventually(Duration::from_secs(20), || {
        let status = agent.try_status()?;
        status.keys[0]
            .problem
            .clone()
            .filter(|_| !status.keys[0].ready)
    });
    let refused = refused.expect("a problem");
    assert!(refused.contains("canary"), "{refused}");
    let put = agent.cli_in(["put", "-", &format!("s3://{bucket}/new")], b"x");
    assert!(put.code == Some(75), "{:?}: {}", put.code, put.stderr);
    assert_eq!(weed.raw_get(&bucket, "new"), None);
    assert_eq!(read(&agent, &bucket, "k").status, 503);
    println!("another key of the same label: {refused}");
}
