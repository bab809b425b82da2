//! Agent and archive killed at random instants: the uploads go on, and what
//! they send again has a bound.

use std::io::Read as _;
use std::path::Path;
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

fn start(agent: &Agent, tree: &Path, place: &str) -> Child {
    agent
        .command(["archive", "--jobs", &OPEN.to_string()])
        .arg(tree)
        .arg(place)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn agent_and_archive_killed_at_random_instants_lose_nothing() {
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
    let place = format!("s3://{bucket}/");
    let dir = temp_dir();
    for n in 0..files {
        write_pattern(&dir.path().join(n.to_string()), n, size);
    }
    // Each connection: slow enough that instants lie in the middle of it.
    recorder.rate(32 * MIB);
    let (mut killed, mut runs) = (0, 1);
    let mut due = recorder.parts() + 1 + random(6);
    let mut child = start(&agent, dir.path(), &place);
    let ended = eventually(Duration::from_secs(sized(3600, 240)), || {
        if let Some(status) = child.try_wait().unwrap() {
            if status.success() {
                return Some(());
            }
            let mut words = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut words);
            assert_eq!(status.code(), Some(75), "{words}\n{}", agent.log());
            runs += 1;
            child = start(&agent, dir.path(), &place);
        }
        if killed < kills && recorder.parts() >= due {
            std::thread::sleep(Duration::from_millis(random(300)));
            agent.kill();
            let _ = child.kill();
            let _ = child.wait();
            killed += 1;
            agent.launch();
            agent
                .await_ready()
                .unwrap_or_else(|failed| panic!("{}", failed.log));
            // At least one part completes between two kills.
            due = recorder.parts() + 1 + random(6);
            runs += 1;
            child = start(&agent, dir.path(), &place);
        }
        None
    });
    assert!(ended.is_some(), "{}", agent.log());
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
    // A run's own objects are small: manifest, what is so far, `latest`.
    let own = runs * (64 << 10);
    let bound = data + own + killed * OPEN as u64 * CONCURRENCY * (PART + 64 * 1024);
    let sent = recorder.bytes();
    tell(&format!(
        "{killed} kills, {files} files: {sent} bytes sent for {data}, at most {bound}; {frames} frames, {again} again"
    ));
    assert!(sent <= bound, "{sent} bytes sent, more than {bound}");
    assert!(killed >= kills.min(4), "{killed} kills only");
}
