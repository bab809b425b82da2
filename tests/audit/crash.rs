//! The agent is killed under load, again and again: the log verifies after
//! each start, what was acknowledged is on record, and what was begun is
//! resolved.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use strongroom::audit::{Kind, OK};

use crate::support::http::{Body, send};
use crate::support::process::{eventually, signal};
use crate::support::{Agent, Hsm, Weed, tell, value};
use crate::{await_ready, by_request, records, sized, sound};

/// Clients at once.
const CLIENTS: usize = 6;

#[test]
fn rule_28_after_a_crash_every_acknowledged_object_is_on_record_and_every_begin_resolved() {
    let kills = sized(200, 8);
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("crash");
    let mut agent = Agent::start(&hsm, weed, |config| {
        let audit = config.entry("audit").or_insert_with(toml_edit::table);
        audit["rotate"] = value("256 KiB");
    });
    let dir = agent.state_dir().join("audit");
    let (socket, stop) = (agent.socket(), AtomicBool::new(false));
    let (acknowledged, count) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let mut resolved = 0;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (socket, stop, bucket) = (&socket, &stop, &bucket);
            let (acknowledged, count) = (&acknowledged, &count);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let n = count.fetch_add(1, Ordering::Relaxed);
                    let target = format!("/v1/objects/{bucket}/{client}-{n}");
                    let body = vec![7; 1 + n * 977 % 60_000];
                    let mut sink = std::io::sink();
                    let (put, get) = (Body::Bytes(&body), Body::None);
                    let reply = send(socket, "PUT", &target, &[], put, &mut sink);
                    match reply {
                        Ok(reply) if reply.status == 201 => {
                            let id = reply.header("strongroom-request-id").unwrap().to_owned();
                            acknowledged.lock().unwrap().push(id);
                            drop(send(socket, "GET", &target, &[], get, &mut sink));
                        }
                        _ => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
            });
        }
        let end = StopAtEnd(&stop);
        for round in 0..kills {
            std::thread::sleep(Duration::from_millis(50 + (round as u64 * 131) % 400));
            agent.kill();
            agent.launch();
            await_ready(&agent);
            sound(&dir);
        }
        drop(end);
    });
    // Every begin of a process that is gone has an end or is resolved.
    let settled = eventually(Duration::from_secs(60), || {
        let all = records(&dir);
        let told = by_request(&all);
        resolved = told.values().filter(|told| told.resolved.is_some()).count();
        let open =
            |told: &&crate::Told| told.begun && told.end.is_none() && told.resolved.is_none();
        (told.values().filter(open).count() == 0).then_some(told)
    });
    let told = settled.unwrap_or_else(|| panic!("some are open:\n{}", agent.log()));
    let acknowledged = acknowledged.into_inner().unwrap();
    for id in &acknowledged {
        let told = &told[id];
        assert!(
            told.begun && told.end.as_deref() == Some(OK),
            "{id}: {told:?}"
        );
    }
    assert!(
        acknowledged.len() > kills,
        "{} acknowledged",
        acknowledged.len()
    );

    // A killed worker is replaced although the server is confined.
    let worker = agent.workers()[0].pid;
    signal(worker, Signal::KILL);
    let next = eventually(Duration::from_secs(60), || {
        let status = agent.try_status()?;
        let pid = status.tokens[0].worker_pid?;
        (pid != worker && status.health == "ready").then_some(())
    });
    assert!(next.is_some(), "{}", agent.log());
    agent.stop();
    let report = sound(&dir);
    assert!(report.clean_stop && report.open.is_empty());
    let starts = records(&dir)
        .iter()
        .filter(|r| r.event.event == Kind::Start)
        .count();
    assert_eq!(starts, kills + 1);
    tell(&format!(
        "{kills} kills: {} puts acknowledged and all on record, {resolved} begins resolved",
        acknowledged.len()
    ));
}

/// However this ends, the clients end too.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
