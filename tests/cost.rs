//! What an operation costs in round trips, bytes and memory: the figures of
//! docs/benchmarks.md that do not depend on the machine, at sizes that take
//! seconds.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read as _;
use std::time::Duration;

use support::http::{self, Body};
use support::null_store::NullStore;
use support::process::{Process, eventually};
use support::shim::{C_Decrypt, C_Encrypt, Shim};
use support::{Agent, Hsm, Store, TokenKind, hsm, value};

const MIB: u64 = 1 << 20;
/// The default `memory_budget`, and what the processes may have beyond it.
const BUDGET: u64 = 256 * MIB;
const BEYOND: u64 = 48 * MIB;
/// How often memory is looked at: buffers live for longer.
const LOOK: Duration = Duration::from_millis(10);

/// What costs round trips and memory is not the token's.
fn elsewhere() -> bool {
    !TokenKind::SoftHsm.is_only("it counts what the agent does, not the token")
}

fn agent(hsm: &Hsm, store: &NullStore, shim: Option<&Shim>) -> Agent {
    Agent::start(hsm, Store::at(store.endpoint()), |config| {
        config["s3"]["payload_signing"] = value("never");
        if let Some(shim) = shim {
            shim.configure(config);
        }
    })
}

#[track_caller]
fn put(agent: &Agent, target: &str, size: u64) {
    let mut zeros = std::io::repeat(0).take(size);
    let mut answer = Vec::new();
    let body = Body::Sized(size, &mut zeros);
    let reply = http::send(&agent.socket(), "PUT", target, &[], body, &mut answer).unwrap();
    assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_small_put_is_one_wrap_and_one_request_and_a_get_one_unwrap_and_one_request() {
    if elsewhere() {
        return;
    }
    const PUTS: u64 = 100;
    let (hsm, store, shim) = (Hsm::new(), NullStore::start(), Shim::new(&hsm::module()));
    let agent = agent(&hsm, &store, Some(&shim));
    let target = |i| format!("/v1/objects/bucket/small/{i}");
    let (wraps, requests) = (shim.buffered(C_Encrypt), store.total());
    for i in 0..PUTS {
        put(&agent, &target(i), 4096);
    }
    // The token may have been asked to prove itself meanwhile: once a minute.
    let wraps = shim.buffered(C_Encrypt) - wraps;
    assert!((PUTS..=PUTS + 2).contains(&wraps), "{wraps} wraps");
    assert_eq!(store.total() - requests, PUTS);
    let (unwraps, requests) = (shim.buffered(C_Decrypt), store.total());
    for i in 0..PUTS {
        assert_eq!(agent.http("GET", &target(i), &[], b"").received, 4096);
    }
    let unwraps = shim.buffered(C_Decrypt) - unwraps;
    assert!((PUTS..=PUTS + 2).contains(&unwraps), "{unwraps} unwraps");
    assert_eq!(store.total() - requests, PUTS);
}

#[test]
fn a_range_fetches_its_frames_and_little_else() {
    if elsewhere() {
        return;
    }
    let (hsm, store, shim) = (Hsm::new(), NullStore::start(), Shim::new(&hsm::module()));
    let agent = agent(&hsm, &store, Some(&shim));
    let target = "/v1/objects/bucket/long";
    let size = 100 * MIB;
    put(&agent, target, size);
    for start in [0, 12_345, size / 2 - 77, size - MIB - 1, size - MIB] {
        let (requests, sent, unwraps) = (store.total(), store.sent(), shim.buffered(C_Decrypt));
        let range = format!("bytes={start}-{}", start + MIB - 1);
        let reply = agent.http("GET", target, &[("Range", &range)], b"");
        assert_eq!((reply.status, reply.received), (206, MIB), "{range}");
        let (requests, sent) = (store.total() - requests, store.sent() - sent);
        assert!(requests <= 3, "{range}: {requests} requests");
        assert!(sent <= 2 * MIB, "{range}: {sent} bytes fetched");
        let unwraps = shim.buffered(C_Decrypt) - unwraps;
        assert!((1..=2).contains(&unwraps), "{range}: {unwraps} token calls");
    }
}

#[test]
fn many_uploads_at_once_stay_within_the_budget() {
    if elsewhere() {
        return;
    }
    // Each could use eight parts of 8 MiB: four times the budget.
    const UPLOADS: u64 = 16;
    let (hsm, store) = (Hsm::new(), NullStore::start_with(0, false));
    let agent = agent(&hsm, &store, None);
    let processes = agent.processes();
    // The program itself is several times as large in a build for tests.
    let own = || -> u64 { processes.iter().map(Process::own_memory).sum() };
    let peak = std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..UPLOADS)
            .map(|i| {
                let agent = &agent;
                scope.spawn(move || put(agent, &format!("/v1/objects/bucket/{i}"), 128 * MIB))
            })
            .collect();
        let mut peak = 0;
        while uploads.iter().any(|upload| !upload.is_finished()) {
            peak = own().max(peak);
            std::thread::sleep(LOOK);
        }
        peak
    });
    support::tell(&format!(
        "{UPLOADS} uploads at once: peak of all processes {} MiB",
        peak / MIB
    ));
    assert!(peak <= BUDGET + BEYOND, "{} MiB", peak / MIB);
    // Blind if it never used what it has.
    assert!(peak > BUDGET / 2, "only {} MiB", peak / MIB);
}

#[test]
fn a_listing_takes_the_same_memory_however_long() {
    if elsewhere() {
        return;
    }
    /// What an allocator keeps for itself varies by so much.
    const FLAT: u64 = 4 * MIB;
    let (hsm, store) = (Hsm::new(), NullStore::start_with(0, false));
    let agent = agent(&hsm, &store, None);
    for (name, count) in [("few", 2_000), ("many", 50_000)] {
        for i in 0..count {
            store.plant_synthetic(&format!("bucket/{name}/a/rather/long/key/{i:08}"), 1);
        }
    }
    let peak = || -> u64 { agent.processes().iter().map(Process::peak_memory).sum() };
    let list = |name: &str, count: usize| {
        let place = format!("s3://bucket/{name}/");
        let listed = agent.cli(["ls", "--recursive", &place]).ok().text();
        assert_eq!(listed.lines().count(), count);
    };
    list("few", 2_000);
    let few = peak();
    list("many", 50_000);
    let grown = peak() - few;
    support::tell(&format!(
        "50,000 keys listed: {} KiB more than for 2,000",
        grown / 1024
    ));
    assert!(grown <= FLAT, "{grown} bytes more for more keys");
}

/// A start touches most of the program's code once. It is no secret: neither
/// locked, as the rest of memory is, nor kept.
#[test]
fn code_is_neither_locked_nor_kept_at_rest() {
    if elsewhere() {
        return;
    }
    let (hsm, store) = (Hsm::new(), NullStore::start());
    let agent = agent(&hsm, &store, None);
    let processes = agent.processes();
    assert_eq!(processes.len(), 3);
    let settled = |after: &str| {
        let mut seen = Vec::new();
        let done = eventually(Duration::from_secs(10), || {
            seen = processes.iter().map(Code::of).collect();
            let small = |code: &Code| code.resident * 4 < code.size;
            seen.iter().all(small).then_some(())
        });
        assert!(done.is_some(), "after {after}: {seen:?}");
        assert!(seen.iter().all(|code| code.locked == 0), "{seen:?}");
        println!("after {after}: {seen:?}");
    };
    settled("the start");
    for i in 0..3 {
        put(&agent, &format!("/v1/objects/bucket/{i}"), 9 * MIB);
    }
    settled("a load");
}

/// The program's own code in a process, in bytes.
#[derive(Debug)]
struct Code {
    size: u64,
    resident: u64,
    locked: u64,
}

impl Code {
    fn of(process: &Process) -> Self {
        let program = std::fs::read_link(format!("/proc/{}/exe", process.pid)).unwrap();
        let smaps = String::from_utf8(process.proc("smaps")).unwrap();
        let (mut inside, mut code) = (false, [0; 3]);
        for line in smaps.lines() {
            let (first, rest) = line.split_once(' ').unwrap();
            if !first.ends_with(':') {
                inside = rest.starts_with("r-xp") && rest.ends_with(program.to_str().unwrap());
            } else if inside
                && let Some(at) = ["Size:", "Rss:", "Locked:"]
                    .iter()
                    .position(|f| *f == first)
            {
                let number = rest.split_whitespace().next().unwrap();
                code[at] += number.parse::<u64>().unwrap() << 10;
            }
        }
        let [size, resident, locked] = code;
        assert!(size > 0, "{smaps}");
        Self {
            size,
            resident,
            locked,
        }
    }
}
