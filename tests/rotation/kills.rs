//! A run that is killed goes on; two at once do not collide.

use std::process::Stdio;
use std::time::Duration;

use support::process::eventually;
use support::shim::*;

use super::*;

/// The separate slots of a bucket: name without its number, how many of it.
fn doubled(weed: &Weed, bucket: &str) -> Vec<String> {
    let all = slots(weed, bucket);
    all.into_iter()
        .filter(|name| name.ends_with(".1"))
        .collect()
}

fn campaign(pack: bool) {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.bucket("kills");
    let shim = Shim::new(&hsm::module());
    let mut agent = Agent::start(&hsm, weed, |config| shim.configure(config));
    let count = sized(2000, 250);
    fill(&agent, &bucket, "", count, &[]);
    hand_over(&agent);
    let place = format!("s3://{bucket}/");
    let mut more = vec!["--rate", "200/s"];
    if pack {
        more.push("--pack");
    }
    let kills = sized(50, if pack { 2 } else { 4 });
    for kill in 0..kills {
        let mut command = agent.command(["rewrap", place.as_str()]);
        let mut child = command
            .args(&more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut random = [0];
        getrandom::fill(&mut random).unwrap();
        let pause = 100 + u64::from(random[0]) * 3;
        thread::sleep(Duration::from_millis(pause));
        agent.kill();
        // Nobody answers it any more: temporary, if it was not done by then.
        let status = child.wait().unwrap();
        assert!(
            matches!(status.code(), Some(0 | 75)),
            "kill {kill}: {status:?}"
        );
        agent.launch();
        agent
            .await_ready()
            .unwrap_or_else(|failed| panic!("{}", failed.log));
        let second = eventually(Duration::from_secs(20), || {
            let status = agent.try_status()?;
            let mut tokens = status.tokens.iter();
            tokens.all(|token| token.health == "ready").then_some(())
        });
        assert!(second.is_some(), "{}", agent.log());
    }
    let more = &more[2..];
    rewrap_all(&agent, &place, more);
    assert_eq!(doubled(weed, &bucket), Vec::<String>::new());
    if !pack {
        assert_eq!(slots(weed, &bucket).len(), count);
    }
    // Once more over what is done: one token call for each, and no slot.
    let calls = || shim.buffered(C_Encrypt) + shim.buffered(C_Decrypt);
    let before = calls();
    let again = rewrap_all(&agent, &place, more);
    let spent = calls() - before;
    assert_eq!(
        (again.already, again.rewrapped),
        (count as u64, 0),
        "{again:?}"
    );
    // Proofs of the tokens' health come on top.
    assert!(
        spent <= count as u64 + 40,
        "{spent} token calls for {count} objects"
    );
    assert_eq!(doubled(weed, &bucket), Vec::<String>::new());
    destroy_old(&mut agent, &hsm);
    all_read(&agent, &bucket, "", count);
}

#[test]
fn rewrap_killed_at_random_instants_ends_complete() {
    campaign(false);
}

#[test]
fn packed_rewrap_killed_at_random_instants_ends_complete() {
    campaign(true);
}

#[test]
fn two_runs_at_once_do_not_collide() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.bucket("two-runs");
    let mut agent = Agent::start(&hsm, weed, |_| {});
    let count = sized(2000, 200);
    fill(&agent, &bucket, "", count, &[]);
    hand_over(&agent);
    let place = format!("s3://{bucket}/");
    // Two shards, and two that do the same.
    let runs = ["1/2", "2/2", "1/2", "2/2"];
    let done: u64 = thread::scope(|scope| {
        let runs: Vec<_> = runs
            .map(|shard| scope.spawn(|| rewrap_all(&agent, &place, &["--shard", shard]).rewrapped))
            .into();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    assert_eq!(done, count as u64);
    assert_eq!(slots(weed, &bucket).len(), count);
    destroy_old(&mut agent, &hsm);
    all_read(&agent, &bucket, "", count);
}

#[test]
fn a_client_that_leaves_stops_the_run_and_it_goes_on_later() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.bucket("leaves");
    let agent = Agent::start(&hsm, weed, |_| {});
    fill(&agent, &bucket, "", 150, &[]);
    hand_over(&agent);
    let place = format!("s3://{bucket}/");
    let mut child = agent
        .command(["rewrap", &place, "--rate", "50/s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let some = eventually(Duration::from_secs(20), || {
        (slots(weed, &bucket).len() > 20).then_some(())
    });
    assert!(some.is_some(), "{}", agent.log());
    child.kill().unwrap();
    child.wait().unwrap();
    let still = eventually(Duration::from_secs(20), || {
        let before = slots(weed, &bucket).len();
        thread::sleep(Duration::from_secs(2));
        (slots(weed, &bucket).len() == before && before < 150).then_some(())
    });
    assert!(still.is_some(), "it went on without anybody listening");
    let done = rewrap_all(&agent, &place, &[]);
    assert_eq!(slots(weed, &bucket).len(), 150);
    assert!(done.examined >= 150, "{done:?}");
}
