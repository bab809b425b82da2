//! A catalogue that was put back from a copy is older than the evidence.

use std::fs;
use std::path::Path;

use super::*;

pub(super) const FILES: [&str; 3] = ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"];

fn copy(from: &Path, to: &Path) {
    for file in FILES {
        let _ = fs::remove_file(to.join(file));
        if from.join(file).exists() {
            fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }
}

pub(super) fn start(agent: &mut Agent) {
    agent.launch();
    agent.await_ready().unwrap();
}

#[test]
fn rule_15_a_catalogue_older_than_the_evidence_turns_verify_red() {
    if !TokenKind::SoftHsm.is_only("the token has no part in it") {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = &weed.bucket("older");
    let place = &format!("s3://{bucket}/");
    let mut agent = Agent::start(&hsm, weed, |_| {});
    put(&agent, bucket, "early", b"x");
    agent.stop();
    // Of a stopped agent, with what it had folded in.
    let kept = temp_dir();
    copy(&agent.state_dir(), kept.path());

    start(&mut agent);
    for i in 0..5 {
        put(&agent, bucket, &format!("late-{i}"), b"x");
    }
    verify(&agent, place, &[]).is(&BTreeMap::new());
    agent.stop();
    let checkpoints = agent.state_dir().join("audit/checkpoints");
    let text = fs::read_to_string(checkpoints).unwrap();
    assert!(text.contains("\ncatalog 6 "), "{text}");
    // The catalogue alone is put back; the log is whole.
    copy(kept.path(), &agent.state_dir());

    start(&mut agent);
    let red = verify(&agent, &format!("{place}early"), &[]);
    assert_eq!(red.code(), 65);
    assert_eq!(
        red.found,
        [(String::new(), "catalogue-rolled-back".to_owned())].into()
    );
    assert!(red.run.text().contains("5 changes"), "{}", red.run.text());
    let intact = agent.cli(["audit", "verify"]).ok().text();
    assert!(intact.contains("; catalog 6 "), "{intact}");
    let told = process::eventually(std::time::Duration::from_secs(20), || {
        let status = agent.cli(["status"]).ok().text();
        status.contains("older than the evidence").then_some(())
    });
    assert!(told.is_some(), "status does not tell");
    // Work goes on, and later checkpoints do not make it forgotten.
    put(&agent, bucket, "meanwhile", b"x");
    agent.cli(["get", &format!("{place}late-1"), "-"]).ok();
    agent.restart();
    assert_eq!(verify(&agent, place, &[]).count("catalogue-rolled-back"), 1);

    agent.cli(["catalog", "accept"]).ok();
    let after = verify(&agent, place, &[]);
    assert_eq!(
        (after.count("extra"), after.found.len()),
        (5, 5),
        "{:?}",
        after.found
    );
    agent.restart();
    verify(&agent, place, &["--allow-extra"]).is(&BTreeMap::new());

    // Lost altogether: the same.
    agent.stop();
    for file in FILES {
        let _ = fs::remove_file(agent.state_dir().join(file));
    }
    start(&mut agent);
    assert_eq!(verify(&agent, place, &[]).count("catalogue-rolled-back"), 1);
}
