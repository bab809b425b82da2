//! Throughput and memory. The figures are printed; bounds hold only at full
//! size and in a release build, on a machine that does nothing else.

use std::time::Instant;

use strongroom::api::RewrapItem;

use super::*;

#[test]
fn rewrap_keeps_pace() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.bucket("pace");
    let mut agent = Agent::prepare(&hsm, weed, |_| {});
    // As in production: what is measured is not the writing of a log.
    agent.set("STRONGROOM_LOG", "info");
    agent.launch();
    agent.await_ready().unwrap();
    let count = sized(20_000, 400);
    fill(&agent, &bucket, "s/", count / 2, &[]);
    fill(&agent, &bucket, "p/", count / 2, &[]);
    hand_over(&agent);
    for (prefix, more, least) in [("s/", &[][..], 300.0), ("p/", &["--pack"][..], 2000.0)] {
        let begun = Instant::now();
        let done = rewrap_all(&agent, &format!("s3://{bucket}/{prefix}"), more);
        let rate = done.rewrapped as f64 / begun.elapsed().as_secs_f64();
        let how = if more.is_empty() {
            "separate keyslots"
        } else {
            "packed"
        };
        tell(&format!(
            "rewrap, {how}: {rate:.0} objects/s ({})",
            done.rewrapped
        ));
        if soak() && !cfg!(debug_assertions) {
            assert!(rate >= least, "{how}: {rate:.0}/s");
        }
    }
}

#[test]
fn memory_does_not_grow_with_the_list() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.bucket("memory");
    let agent = Agent::start(&hsm, weed, |_| {});
    put(&agent, &bucket, "one", &[], b"one");
    hand_over(&agent);
    let place = format!("s3://{bucket}/");
    let inventory = agent.dir().join("synthetic.csv");
    // One line in a hundred is this shard's to look for: the list itself is
    // what grows.
    let write = |lines: usize| {
        let mut text = String::new();
        for n in 0..lines {
            text += &format!("\"{bucket}\",\"none/{n}\",\"\",\"true\",\"false\"\n");
        }
        fs::write(&inventory, text).unwrap();
    };
    let run = |lines: usize, shard: &str| {
        write(lines);
        let path = inventory.to_str().unwrap();
        let counts = rewrap_all(&agent, &place, &["--inventory", path, "--shard", shard]);
        (counts.examined, agent.server().peak_memory())
    };
    let (_, small) = run(1000, "1/10");
    let (examined, large) = run(sized(1_000_000, 30_000), &format!("1/{}", sized(20, 100)));
    tell(&format!(
        "rewrap of a list, peak memory of the server: {} MiB after {} more versions ({} MiB before)",
        large >> 20,
        examined,
        small >> 20
    ));
    assert!(large < small + (32 << 20), "{small} {large}");
    let item = RewrapItem {
        key: "x".into(),
        version_id: None,
    };
    assert_eq!(serde_json::to_string(&item).unwrap(), r#"{"key":"x"}"#);
}
