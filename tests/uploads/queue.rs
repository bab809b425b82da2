//! Store and forward: while the store is away nothing is lost, nothing is
//! doubled, and the order is kept.

use std::fs;
use std::time::Duration;

use support::process::eventually;

use super::*;

fn queue(agent: &Agent, place: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut all = vec![("Strongroom-Queue", "true")];
    all.extend(headers);
    agent.http("PUT", &format!("/v1/objects/{place}"), &all, body)
}

/// Waits until nothing waits but parked tickets.
#[track_caller]
fn drained(agent: &Agent, parked: u64) {
    let limit = Duration::from_secs(90);
    let done = eventually(limit, || {
        let queue = agent.try_status()?.queue;
        (queue.tickets == parked && queue.parked == parked).then_some(())
    });
    let status = agent.try_status().map(|status| status.queue);
    assert!(done.is_some(), "{status:?}\n{}", agent.log());
}

fn files(agent: &Agent) -> usize {
    fs::read_dir(agent.state_dir().join("spool/queue")).map_or(0, Iterator::count)
}

#[test]
fn an_outage_loses_nothing_and_keeps_the_order() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, small_parts);
    let bucket = weed.versioned_bucket("outage");
    // The store is there: as any put.
    let reply = queue(&agent, &format!("{bucket}/there"), &[], b"there");
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.json()["plaintext_size"], 5);
    assert_eq!(files(&agent), 0);

    recorder.away(true);
    let large = pattern(9, 12 * MIB);
    let bodies: Vec<(String, Vec<u8>)> = (0..6)
        .map(|n| (format!("o-{n}"), pattern(n, 1000 * n)))
        .chain([("large".to_owned(), large)])
        // The same place twice: the later one must come later.
        .chain([("o-3".to_owned(), b"the newer one".to_vec())])
        .collect();
    for (key, body) in &bodies {
        let reply = queue(&agent, &format!("{bucket}/{key}"), &[], body);
        assert_eq!(reply.status, 202, "{}", reply.text());
        let ticket = reply.header("location").unwrap().to_owned();
        let told = agent.http("GET", &ticket, &[], b"").json();
        assert_eq!(
            (&told["state"], &told["key"]),
            (&"waiting".into(), &key.as_str().into())
        );
    }
    let lines = agent.cli(["queue", "list"]).ok().text();
    assert_eq!(lines.lines().count(), bodies.len(), "{lines}");
    let waiting = agent.try_status().unwrap().queue;
    assert_eq!(waiting.tickets, bodies.len() as u64);
    assert!(waiting.oldest.is_some() && waiting.bytes > 12 * MIB);
    assert!(
        agent
            .cli(["status"])
            .ok()
            .text()
            .contains("8 waiting for the store")
    );
    // Killed during the outage, with a stray file in the spool.
    agent.kill();
    fs::write(agent.state_dir().join("spool/queue/stray.new"), b"x").unwrap();
    agent.launch();
    agent.await_ready().unwrap();
    std::thread::sleep(Duration::from_secs(sized(60, 2)));
    assert_eq!(files(&agent), bodies.len());

    recorder.away(false);
    drained(&agent, 0);
    // A ticket is off the list before its file is gone: never the other way.
    let gone = eventually(Duration::from_secs(5), || {
        (files(&agent) == 0).then_some(())
    });
    assert!(gone.is_some(), "{}", files(&agent));
    // The first was there before the outage.
    let made = recorder.made(&bucket).split_off(1);
    let expected: Vec<&str> = bodies.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(made, expected, "in the order of their tickets");
    for (key, body) in bodies.iter().filter(|(key, _)| key != "o-3") {
        let there = agent.http("GET", &format!("/v1/objects/{bucket}/{key}"), &[], b"");
        assert!(there.body == *body, "{key}: {}", there.status);
    }
    let newest = agent.http("GET", &format!("/v1/objects/{bucket}/o-3"), &[], b"");
    assert_eq!(newest.text(), "the newer one");
    assert_eq!(
        weed.list_versions(&bucket, "").len(),
        bodies.len() + 1,
        "nothing twice"
    );
    recorder.no_nonce_twice();
}

/// The answer to the completion is lost, and the agent is killed.
#[test]
fn an_object_whose_answer_was_lost_is_not_sent_twice() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let mut agent = Agent::start(&hsm, store, small_parts);
    let bucket = weed.versioned_bucket("lost");
    recorder.lose_completion();
    let body = pattern(1, 12 * MIB);
    let reply = queue(&agent, &format!("{bucket}/k"), &[], &body);
    assert_eq!(reply.status, 202, "{}", reply.text());
    agent.kill();
    assert_eq!(weed.list_versions(&bucket, "").len(), 1);
    recorder.away(false);
    let sent = recorder.bytes();
    agent.launch();
    agent.await_ready().unwrap();
    drained(&agent, 0);
    assert!(recorder.bytes() - sent < MIB, "it was sent again");
    assert_eq!(weed.list_versions(&bucket, "").len(), 1);
    let there = agent.http("GET", &format!("/v1/objects/{bucket}/k"), &[], b"");
    assert!(there.body == body);
    let left = eventually(Duration::from_secs(20), || {
        weed.list_uploads(&bucket).is_empty().then_some(())
    });
    assert!(left.is_some());
}

#[test]
fn rule_14_a_late_conflict_parks_the_ticket_and_the_spool_is_verified() {
    if !softhsm() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (recorder, store) = recorded(weed);
    let agent = Agent::start(&hsm, store, |config| {
        small_parts(config);
        config["spool"]["max"] = value("1 MiB");
    });
    let bucket = weed.bucket("parked");
    let place = |key: &str| format!("{bucket}/{key}");
    // At once, its client hears it, and there is no ticket.
    weed.raw_put(&bucket, "there", b"somebody's");
    let only_new = [("If-None-Match", "*")];
    queue(&agent, &place("there"), &only_new, b"mine").fails("already-exists", &[]);
    assert_eq!(agent.try_status().unwrap().queue.tickets, 0);

    recorder.away(true);
    let words = b"the plaintext of a queued object, which is nowhere on the disk";
    let ticket = |reply: Reply| {
        assert_eq!(reply.status, 202, "{}", reply.text());
        reply.header("location").unwrap().to_owned()
    };
    let first = ticket(queue(&agent, &place("a"), &only_new, words));
    let behind = ticket(queue(&agent, &place("a"), &[], b"behind"));
    let damaged = ticket(queue(&agent, &place("b"), &[], b"damaged"));
    let fine = ticket(queue(&agent, &place("c"), &[], b"fine"));
    // Full, with a length that says so, and without.
    queue(&agent, &place("d"), &[], &pattern(1, 2 * MIB)).fails("spool-full", &["spool"]);
    let mut body = Pattern::new(1, 2 * MIB);
    let chunked = agent.request(
        "PUT",
        &format!("/v1/objects/{}", place("d")),
        &[("Strongroom-Queue", "true")],
        Body::Chunked(&mut body),
    );
    chunked.fails("spool-full", &["spool"]);
    assert_eq!(files(&agent), 4, "what did not fit is gone");
    for entry in walk(&agent.state_dir()) {
        let bytes = fs::read(&entry).unwrap();
        let found = bytes.windows(words.len()).any(|window| window == words);
        assert!(!found, "plaintext in {}", entry.display());
    }
    let name = damaged.rsplit('/').next().unwrap();
    let path = agent.state_dir().join("spool/queue").join(name);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    // Somebody comes first.
    weed.raw_put(&bucket, "a", b"somebody's");

    recorder.away(false);
    let done = eventually(Duration::from_secs(90), || {
        let queue = agent.try_status()?.queue;
        (queue.tickets == 3 && queue.parked == 2).then_some(())
    });
    assert!(
        done.is_some(),
        "{:?}\n{}",
        agent.try_status().map(|s| s.queue),
        agent.log()
    );
    let show = |at: &str| agent.http("GET", at, &[], b"").json();
    assert_eq!(show(&first)["reason"], "already-exists");
    assert_eq!(show(&damaged)["reason"], "altered");
    assert_eq!(show(&behind)["state"], "waiting");
    assert_eq!(agent.http("GET", &fine, &[], b"").status, 404);
    assert!(
        weed.raw_get(&bucket, "b").is_none(),
        "nothing of it was sent"
    );
    assert_eq!(weed.raw_get(&bucket, "a").unwrap(), b"somebody's");
    // Whoever waits behind it goes on when it is dropped.
    let first = first.rsplit('/').next().unwrap();
    agent.cli(["queue", "drop", first]).ok();
    drained(&agent, 1);
    let there = agent.http("GET", &format!("/v1/objects/{}", place("a")), &[], b"");
    assert_eq!(there.text(), "behind");
    // Nothing but the damaged one is left; it is tried again on demand.
    agent.cli(["queue", "retry", name]).ok();
    drained(&agent, 1);
    agent.cli(["queue", "drop", name]).ok();
    drained(&agent, 0);
    assert_eq!(files(&agent), 0);
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(walk(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}
