//! What a crash leaves at the store is found and aborted.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use support::process::eventually;

use super::*;

/// A put of unknown length, killed with its agent in the middle; then some
/// starts with the store away.
#[test]
fn orphans_of_a_killed_agent_are_aborted_when_the_store_is_back() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, small_parts);
    let bucket = weed.bucket("orphans");
    // Somebody else's, at the same place, and not ours to abort.
    let others = weed
        .client
        .create_multipart_upload()
        .bucket(&bucket)
        .key("k");
    let others = weed.wait(others.send()).unwrap().upload_id.unwrap();
    let mut put = agent
        .command(["put", "-", &format!("s3://{bucket}/k")])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = put.stdin.take().unwrap();
    pipe.write_all(&pattern(1, 12 * MIB)).unwrap();
    let begun = eventually(Duration::from_secs(20), || {
        (recorder.parts() >= 2).then_some(())
    });
    assert!(begun.is_some(), "{}", agent.log());
    agent.kill();
    drop(pipe);
    put.wait().unwrap();
    assert_eq!(weed.list_uploads(&bucket).len(), 2);
    recorder.away(true);
    for _ in 0..2 {
        agent.launch();
        agent.await_ready().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        agent.kill();
    }
    recorder.away(false);
    agent.launch();
    agent.await_ready().unwrap();
    let left = eventually(Duration::from_secs(30), || {
        let left = weed.list_uploads(&bucket);
        (left.len() == 1).then_some(left)
    });
    assert_eq!(
        left,
        Some(vec![("k".to_owned(), others)]),
        "{}",
        agent.log()
    );
    // And the journal is empty: nothing is looked for again.
    let journal = rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).unwrap();
    let empty = eventually(Duration::from_secs(10), || {
        let rows: i64 = journal
            .query_row("SELECT count(*) FROM upload", [], |row| row.get(0))
            .unwrap();
        (rows == 0).then_some(())
    });
    assert!(empty.is_some());
}

/// The id was never heard: what was begun at that key at about that time is
/// found in the store's list.
#[test]
fn an_upload_whose_id_was_never_heard_is_found() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = Agent::start(&hsm, weed, small_parts);
    let bucket = weed.bucket("unheard");
    agent.stop();
    let now = jiff::Timestamp::now().as_millisecond();
    let journal = rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).unwrap();
    journal
        .execute(
            "INSERT INTO upload (bucket, key, intent, state) VALUES (?1, 'dir/k', ?2, 'open')",
            rusqlite::params![bucket, now],
        )
        .unwrap();
    drop(journal);
    for key in ["dir/k", "dir/k2"] {
        let begin = weed
            .client
            .create_multipart_upload()
            .bucket(&bucket)
            .key(key);
        weed.wait(begin.send()).unwrap();
    }
    agent.launch();
    agent.await_ready().unwrap();
    let left = eventually(Duration::from_secs(20), || {
        let left = weed.list_uploads(&bucket);
        (left.len() == 1).then_some(left)
    });
    let left = left.unwrap_or_else(|| panic!("{}", agent.log()));
    assert_eq!(left[0].0, "dir/k2", "another key's stays");
}

/// A put that needs one request has no entry.
#[test]
fn a_small_put_costs_the_journal_nothing() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, small_parts);
    let bucket = weed.bucket("small");
    let journal = rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).unwrap();
    agent
        .cli_in(["put", "-", &format!("s3://{bucket}/small")], b"small")
        .ok();
    let big = pattern(1, 6 * MIB);
    agent
        .cli_in(["put", "-", &format!("s3://{bucket}/big")], &big)
        .ok();
    let sequence = "SELECT (SELECT count(*) FROM upload), (SELECT count(*) FROM message)";
    let counts: (i64, i64) = journal
        .query_row(sequence, [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!(counts, (0, 2), "an entry leaves with its receipt");
}

/// An upload depends on the key that wrapped its data key, until it is given
/// up.
#[test]
fn rule_11_a_kept_upload_holds_its_key() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, small_parts);
    let bucket = weed.bucket("holds");
    let (upload, _) = Upload::begin(&agent, &format!("{bucket}/k"), "x", 20 * MIB);
    let dependents = || {
        let lines = agent.http("GET", "/v1/catalog", &[], b"").text();
        let head: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        head["dependents"].as_array().unwrap().len()
    };
    assert_eq!(dependents(), 1);
    assert_eq!(agent.http("DELETE", &upload.at, &[], b"").status, 204);
    assert_eq!(dependents(), 0);
    assert!(weed.list_uploads(&bucket).is_empty());
}
