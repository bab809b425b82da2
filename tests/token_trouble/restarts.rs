//! Done-when 2: token restarts under load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::clients::{Client, Random, Seen, same};
use crate::support::process::{eventually, signal};
use crate::support::tamper::read;
use crate::support::{Agent, Hsm, TokenKind, Weed, value};
use crate::{sized, worker};

/// Clients at once.
const CLIENTS: u64 = 8;

/// Workers are killed and token directories moved away and back, in turn. No
/// worker is killed that may be logging in: SoftHSM rewrites the token's file
/// in place then, and would be the one that loses it.
#[test]
fn restarts_under_load_lose_nothing_and_every_failure_is_a_503() {
    let restarts = sized(300, 20);
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("restarts");
    let agent = Agent::start(&hsm, weed, |config| {
        config["s3"]["part_size"] = value("5 MiB");
    });
    let (server, stop) = (agent.server().pid, AtomicBool::new(false));
    let (mut kills, mut moves, mut noticed) = (0, 0, 0);
    let began = Instant::now();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        // However this ends, the clients end too.
        let _stop = StopAtEnd(&stop);
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|number| {
                let client = Client {
                    socket: agent.socket(),
                    bucket: bucket.clone(),
                    number,
                    reads: true,
                };
                let stop = &stop;
                scope.spawn(move || client.run(stop))
            })
            .collect();
        let mut random = Random(1);
        for round in 0..restarts {
            let pid = worker(&agent);
            std::thread::sleep(Duration::from_millis(random.below(200)));
            // Kryoptic keeps its file open, and works on wherever that is.
            if round % 2 == 0 || hsm.kind() == TokenKind::Kryoptic {
                signal(pid, Signal::KILL);
                kills += 1;
            } else {
                let (here, away) = (hsm.dir().join("tokens"), hsm.dir().join("away"));
                std::fs::rename(&here, &away).unwrap();
                let gone = eventually(Duration::from_secs(3), || {
                    let token = agent.try_status()?.tokens.remove(0);
                    (token.worker_pid != Some(pid)).then_some(())
                });
                std::thread::sleep(Duration::from_millis(random.below(500)));
                std::fs::rename(&away, &here).unwrap();
                noticed += usize::from(gone.is_some());
                moves += 1;
            }
        }
        worker(&agent);
        // Some work after the last one.
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let took = began.elapsed();
    assert_eq!(agent.server().pid, server, "the server was replaced");

    let wrong: Vec<_> = seen.iter().flat_map(|s| &s.wrong).collect();
    let sum = |count: fn(&Seen) -> usize| seen.iter().map(count).sum::<usize>();
    let objects: Vec<_> = seen.iter().flat_map(|s| &s.acknowledged).collect();
    crate::support::tell(&format!(
        "{} restarts in {took:.0?}: {kills} kills, {moves} moves of the directory ({noticed} noticed); \
         {} puts and {} gets succeeded, {} and {} were a 503, {} were wrong; longest answer {:.1?}",
        kills + moves,
        objects.len(),
        sum(|s| s.read),
        sum(|s| s.refused_puts),
        sum(|s| s.refused_gets),
        wrong.len(),
        seen.iter().map(|s| s.longest).max().unwrap(),
    ));
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(objects.len() > restarts && sum(|s| s.read) > restarts);

    let mut bytes = 0;
    for object in &objects {
        let reply = read(&agent, &bucket, &object.key);
        assert_eq!(reply.status, 200, "{object:?}: {}", reply.text());
        assert!(same(object, &reply.body), "{object:?} came back otherwise");
        bytes += object.len;
    }
    let mut there = weed.list(&bucket, "");
    there.retain(|key| !key.starts_with(".strongroom/"));
    there.sort();
    let mut promised: Vec<_> = objects.iter().map(|o| o.key.clone()).collect();
    promised.sort();
    assert_eq!(there, promised, "S3 has other objects than acknowledged");
    assert!(weed.list_uploads(&bucket).is_empty());
    crate::support::tell(&format!(
        "{} acknowledged objects, {} MiB, read back byte for byte; nothing else in S3",
        objects.len(),
        bytes >> 20
    ));
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
