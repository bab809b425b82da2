//! Agent and client killed at random instants: the uploads go on, and what
//! they send again has a bound.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use support::process::eventually;

use super::*;

/// Files that are sent at once, and parts of one.
const OPEN: usize = 2;
const CONCURRENCY: u64 = 2;
const PART: u64 = 5 * MIB;

fn random(below: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes) % below
}

fn start(agent: &Agent, file: &PathBuf, place: &str) -> Child {
    agent
        .command(["put", "--resume"])
        .arg(file)
        .arg(place)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn agent_and_clients_killed_at_random_instants_lose_nothing() {
    if !softhsm() {
        return;
    }
    let (files, size) = (sized(50, 4), sized(100 * MIB + 4321, 48 * MIB + 4321));
    let kills = sized(100, 8);
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, |config| {
        small_parts(config);
        config["s3"]["upload_concurrency"] = value(i64::try_from(CONCURRENCY).unwrap());
    });
    let bucket = weed.bucket("kills");
    let dir = temp_dir();
    let path = |n: u64| dir.path().join(n.to_string());
    for n in 0..files {
        write_pattern(&path(n), n, size);
    }
    // Each connection: slow enough that instants lie in the middle of it.
    recorder.rate(32 * MIB);
    let mut left: Vec<u64> = (0..files).rev().collect();
    let mut done = 0;
    let mut running: Vec<(u64, Child)> = Vec::new();
    let mut killed = 0;
    let mut due = recorder.parts() + 1 + random(6);
    let ended = eventually(Duration::from_secs(sized(3600, 240)), || {
        let mut still = Vec::new();
        for (n, mut child) in running.drain(..) {
            match child.try_wait().unwrap() {
                Some(status) if status.success() => done += 1,
                Some(status) => {
                    let output = child.wait_with_output().unwrap();
                    let words = String::from_utf8_lossy(&output.stderr).into_owned();
                    assert_eq!(status.code(), Some(75), "{n}: {words}\n{}", agent.log());
                    left.push(n);
                }
                None => still.push((n, child)),
            }
        }
        running = still;
        while running.len() < OPEN
            && let Some(n) = left.pop()
        {
            running.push((n, start(&agent, &path(n), &format!("s3://{bucket}/{n}"))));
        }
        if running.is_empty() {
            return Some(());
        }
        if killed < kills && recorder.parts() >= due {
            std::thread::sleep(Duration::from_millis(random(300)));
            agent.kill();
            for (n, mut child) in running.drain(..) {
                let _ = child.kill();
                // It may have ended well in the very moment.
                match child.wait().unwrap().success() {
                    true => done += 1,
                    false => left.push(n),
                }
            }
            killed += 1;
            agent.launch();
            agent
                .await_ready()
                .unwrap_or_else(|failed| panic!("{}", failed.log));
            // At least one part completes between two kills.
            due = recorder.parts() + 1 + random(6);
        }
        None
    });
    assert!(
        ended.is_some(),
        "{done} of {files} are there\n{}",
        agent.log()
    );
    assert_eq!(done, files);
    for n in 0..files {
        let mut same = Compare::with(Pattern::new(n, size));
        let target = format!("/v1/objects/{bucket}/{n}");
        let reply = agent.stream("GET", &target, &[], Body::None, &mut same);
        assert_eq!(reply.status, 200, "{n}");
        same.finish();
    }
    let none = eventually(Duration::from_secs(20), || {
        weed.list_uploads(&bucket).is_empty().then_some(())
    });
    assert!(none.is_some(), "{:?}", weed.list_uploads(&bucket));
    let (frames, again) = recorder.no_nonce_twice();
    let data = files * (size + size / 1000 + (64 << 10));
    let bound = data + killed * OPEN as u64 * CONCURRENCY * (PART + 64 * 1024);
    let sent = recorder.bytes();
    tell(&format!(
        "{killed} kills, {files} files: {sent} bytes sent for {data}, at most {bound}; {frames} frames, {again} again"
    ));
    assert!(sent <= bound, "{sent} bytes sent, more than {bound}");
    assert!(killed >= kills.min(4), "{killed} kills only");
}
