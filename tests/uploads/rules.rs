//! Rules 12 and 13: whatever changed between two attempts, no nonce seals two
//! frames.

use std::fs;

use support::process::eventually;

use super::*;

/// A file's bytes, with the ones from `at` on changed.
fn changed(seed: u64, length: u64, at: u64) -> Vec<u8> {
    let mut bytes = pattern(seed, length);
    bytes[usize::try_from(at).unwrap()] ^= 1;
    bytes
}

fn part(bytes: &[u8], from: u64, to: u64) -> &[u8] {
    &bytes[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()]
}

#[test]
fn rule_12_an_upload_goes_on_with_the_same_frames() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, small_parts);
    let bucket = weed.bucket("goes-on");
    let length = 13 * MIB + 5;
    let bytes = pattern(1, length);
    let place = format!("{bucket}/k");
    {
        let (upload, status) = Upload::begin(&agent, &place, "a", length);
        assert_eq!((status, upload.offset()), (201, 0));
        let reply = upload.patch(0, false, part(&bytes, 0, 12 * MIB));
        assert_eq!(reply.status, 204, "{}", reply.text());
        assert_eq!(reply.header("upload-offset"), Some("10485760"));
        // Another offset is told the right one.
        let reply = upload.patch(0, true, &bytes);
        reply.fails("upload-offset", &["10485760"]);
        assert_eq!(reply.header("upload-offset"), Some("10485760"));
        let (again, status) = Upload::begin(&agent, &place, "a", length);
        assert_eq!((status, &again.at), (200, &upload.at));
    }
    // A crash that lost the confirmation of the second part.
    agent.kill();
    unconfirm(&agent, 2);
    agent.launch();
    agent.await_ready().unwrap();
    let (upload, status) = Upload::begin(&agent, &place, "a", length);
    assert_eq!((status, upload.offset()), (200, 5 * MIB));
    let reply = upload.patch(5 * MIB, true, part(&bytes, 5 * MIB, length));
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(
        agent
            .http("GET", &format!("/v1/objects/{place}"), &[], b"")
            .body,
        bytes
    );
    let (_, again) = recorder.no_nonce_twice();
    assert_eq!(again, 20, "the second part went twice, as it was");
    // Over: nothing of it is left anywhere.
    assert_eq!(agent.http("HEAD", &upload.at, &[], b"").status, 410);
    assert!(weed.list_uploads(&bucket).is_empty());
    assert_eq!(weed.list(&bucket, ""), ["k"]);
    assert_eq!(
        agent.http("GET", "/v1/uploads", &[], b"").json(),
        serde_json::json!([])
    );
}

/// Each change of a source between the attempts: with the second part sent
/// and not confirmed, then with the same upload, in the client's wrong word
/// that nothing changed, and with a new one.
#[test]
fn rule_12_a_source_that_changed_is_never_sealed_again() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, small_parts);
    let bucket = weed.bucket("changed");
    // Two parts and a third that ends exactly on a frame's boundary.
    let length = 12 * MIB;
    assert!(length.is_multiple_of(FRAME));
    let first = pattern(2, length);
    let grown = pattern(2, length + FRAME);
    let one_more = pattern(2, length + 1);
    let shrunk = part(&first, 0, length - FRAME);
    let cases: [(&str, Vec<u8>); 6] = [
        ("first byte", changed(2, length, 5 * MIB)),
        ("last frame of the part", changed(2, length, 10 * MIB - 1)),
        ("in the final frame", changed(2, length, length - 1)),
        ("grown by a frame", grown),
        ("grown by a byte", one_more),
        ("shrunk by a frame", shrunk.to_vec()),
    ];
    let place = |name: &str| format!("{bucket}/{}", name.replace(' ', "-"));
    for (name, _) in &cases {
        let (upload, _) = Upload::begin(&agent, &place(name), "x", length);
        // All but the last byte: the third part was never sealed whole,
        // unless the source is to change there.
        let sent = match *name {
            "in the final frame" => length,
            _ => length - 1,
        };
        let reply = upload.patch(0, false, part(&first, 0, sent));
        assert_eq!(reply.status, 204, "{name}: {}", reply.text());
    }
    agent.kill();
    unconfirm(&agent, 2);
    agent.launch();
    agent.await_ready().unwrap();
    for (name, now) in &cases {
        let place = place(name);
        let (upload, status) = Upload::begin(&agent, &place, "x", length);
        assert_eq!((status, upload.offset()), (200, 5 * MIB), "{name}");
        let sent = recorder.parts();
        let rest = part(now, 5 * MIB, now.len() as u64);
        let reply = upload.patch(5 * MIB, true, rest);
        match *name {
            // The same bytes as far as they go.
            "shrunk by a frame" => {
                reply.fails("incomplete", &[]);
            }
            _ => {
                reply.fails("upload-gone", &[]);
            }
        }
        if matches!(*name, "first byte" | "last frame of the part") {
            assert_eq!(recorder.parts(), sent, "{name}: nothing may be sent");
        }
        recorder.no_nonce_twice();
        // In its client's right word it is another upload.
        let now_length = now.len() as u64;
        let (new, status) = Upload::begin(&agent, &place, "y", now_length);
        assert_eq!((status, new.offset()), (201, 0), "{name}");
        assert_ne!(new.at, upload.at);
        let reply = new.patch(0, true, now);
        assert_eq!(reply.status, 201, "{name}: {}", reply.text());
        let target = format!("/v1/objects/{place}");
        assert_eq!(agent.http("GET", &target, &[], b"").body, *now, "{name}");
    }
    recorder.no_nonce_twice();
    let none = eventually(std::time::Duration::from_secs(20), || {
        weed.list_uploads(&bucket).is_empty().then_some(())
    });
    assert!(none.is_some(), "{:?}", weed.list_uploads(&bucket));
}

#[test]
fn rule_12_another_part_size_is_another_upload() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, small_parts);
    let bucket = weed.bucket("part-size");
    let length = 12 * MIB;
    let (bytes, place) = (pattern(3, length), format!("{bucket}/k"));
    let at = {
        let (upload, _) = Upload::begin(&agent, &place, "x", length);
        assert_eq!(
            upload.patch(0, false, part(&bytes, 0, 11 * MIB)).status,
            204
        );
        upload.at
    };
    agent.reconfigure(|config| config["s3"]["part_size"] = value("6 MiB"));
    agent.restart();
    let old = Upload { agent: &agent, at };
    let sent = recorder.parts();
    old.patch(10 * MIB, true, part(&bytes, 10 * MIB, length))
        .fails("upload-gone", &["sizes"]);
    assert_eq!(recorder.parts(), sent);
    let (new, status) = Upload::begin(&agent, &place, "x", length);
    assert_eq!(status, 201);
    assert_eq!(new.patch(0, true, &bytes).status, 201);
    recorder.no_nonce_twice();
}

/// Another agent with a copy of the first one's journal.
fn copy(hsm: &Hsm, store: Store, of: &Agent) -> Agent {
    let copy = Agent::prepare(hsm, store, small_parts);
    fs::create_dir_all(copy.state_dir()).unwrap();
    for entry in fs::read_dir(of.state_dir()).unwrap().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("catalog.sqlite") {
            fs::copy(entry.path(), copy.state_dir().join(name)).unwrap();
        }
    }
    copy
}

#[test]
fn rule_13_a_journal_from_an_earlier_copy_does_not_resume() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store.clone(), small_parts);
    let bucket = weed.bucket("earlier");
    let length = 22 * MIB;
    let (bytes, place) = (pattern(4, length), format!("{bucket}/k"));
    let (upload, _) = Upload::begin(&agent, &place, "x", length);
    assert_eq!(upload.patch(0, false, part(&bytes, 0, 6 * MIB)).status, 204);
    let at = upload.at;
    agent.stop();
    let mut earlier = copy(&hsm, store, &agent);
    agent.launch();
    agent.await_ready().unwrap();
    let upload = Upload {
        agent: &agent,
        at: at.clone(),
    };
    assert_eq!(
        upload
            .patch(5 * MIB, false, part(&bytes, 5 * MIB, 11 * MIB))
            .status,
        204
    );
    agent.stop();
    // Restored, with a file that has changed behind what the copy knows of.
    earlier.launch();
    earlier.await_ready().unwrap();
    let restored = Upload {
        agent: &earlier,
        at,
    };
    assert_eq!(restored.offset(), 5 * MIB);
    let sent = recorder.parts();
    let other = changed(4, length, 7 * MIB);
    restored
        .patch(5 * MIB, true, part(&other, 5 * MIB, length))
        .fails("upload-gone", &["another copy"]);
    assert_eq!(recorder.parts(), sent, "nothing may be sent");
    // What is the first one's is not aborted: it goes on.
    assert_eq!(weed.list_uploads(&bucket).len(), 1);
    let (new, status) = Upload::begin(&earlier, &place, "x", length);
    assert_eq!(status, 201);
    assert_eq!(new.patch(0, true, &other).status, 201);
    recorder.no_nonce_twice();
}

/// The store has parts that the journal knows nothing of.
#[test]
fn rule_13_a_part_that_the_journal_lacks_ends_the_upload() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, small_parts);
    let bucket = weed.bucket("lacks");
    let length = 22 * MIB;
    let (bytes, place) = (pattern(5, length), format!("{bucket}/k"));
    let (upload, _) = Upload::begin(&agent, &place, "x", length);
    assert_eq!(
        upload.patch(0, false, part(&bytes, 0, 16 * MIB)).status,
        204
    );
    let at = upload.at;
    agent.stop();
    let journal = rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).unwrap();
    journal
        .execute("DELETE FROM upload_part WHERE number = 3", [])
        .unwrap();
    drop(journal);
    agent.launch();
    agent.await_ready().unwrap();
    let upload = Upload { agent: &agent, at };
    let sent = recorder.parts();
    let other = changed(5, length, 12 * MIB);
    upload
        .patch(10 * MIB, true, part(&other, 10 * MIB, length))
        .fails("upload-gone", &["lacks part 3"]);
    assert_eq!(recorder.parts(), sent, "nothing may be sent");
    let none = eventually(std::time::Duration::from_secs(20), || {
        weed.list_uploads(&bucket).is_empty().then_some(())
    });
    assert!(none.is_some(), "it is aborted");
    recorder.no_nonce_twice();
}

#[test]
fn rule_13_of_two_copies_one_goes_on() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store.clone(), small_parts);
    let bucket = weed.bucket("copies");
    let length = 17 * MIB;
    let (bytes, place) = (pattern(6, length), format!("{bucket}/k"));
    let (upload, _) = Upload::begin(&agent, &place, "x", length);
    assert_eq!(upload.patch(0, false, part(&bytes, 0, 6 * MIB)).status, 204);
    let at = upload.at;
    agent.stop();
    let mut second = copy(&hsm, store, &agent);
    for agent in [&mut agent, &mut second] {
        agent.launch();
        agent.await_ready().unwrap();
    }
    let other = changed(6, length, 8 * MIB);
    let outcomes = std::thread::scope(|scope| {
        [(&agent, &bytes), (&second, &other)]
            .map(|(agent, bytes)| {
                let upload = Upload {
                    agent,
                    at: at.clone(),
                };
                scope.spawn(move || upload.patch(5 * MIB, true, part(bytes, 5 * MIB, length)))
            })
            .map(|racer| racer.join().unwrap())
    });
    let won: Vec<_> = outcomes.iter().map(|reply| reply.status == 201).collect();
    assert_eq!(won.iter().filter(|won| **won).count(), 1, "{outcomes:?}");
    let (loser, winner) = if won[0] { (1, &bytes) } else { (0, &other) };
    outcomes[loser].fails("upload-gone", &["another copy"]);
    recorder.no_nonce_twice();
    let there = agent.http("GET", &format!("/v1/objects/{place}"), &[], b"");
    if won[0] {
        assert_eq!(there.body, *winner);
    }
}

/// The answer to the completion is lost, and the agent with it.
#[test]
fn an_object_that_nobody_heard_of_is_not_sent_again() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, small_parts);
    let bucket = weed.bucket("unheard");
    let path = agent.dir().join("file");
    let length = 17 * MIB;
    write_pattern(&path, 7, length);
    let place = format!("s3://{bucket}/k");
    let file = path.to_str().unwrap();
    recorder.lose_completion();
    let put = agent
        .command(["put", "--resume", file, &place])
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut put = put.unwrap();
    let there = eventually(std::time::Duration::from_secs(30), || {
        weed.raw_get(&bucket, "k").map(|_| ())
    });
    assert!(there.is_some(), "{}", agent.log());
    agent.kill();
    put.wait().unwrap();
    recorder.away(false);
    let sent = recorder.bytes();
    agent.launch();
    agent.await_ready().unwrap();
    let again = agent.cli(["--json", "put", "--resume", file, &place]).ok();
    assert_eq!(again.json()["plaintext_size"], length);
    assert!(
        recorder.bytes() - sent < MIB,
        "{} bytes again",
        recorder.bytes() - sent
    );
    agent.cli(["get", &place, "-"]).ok();
    recorder.no_nonce_twice();
}
