//! No secret is left anywhere one second after the operation that needed it:
//! not in the memory of any of the agent's processes, in logs at the most
//! talkative level, state, command lines, environments, core files or answers.
//!
//! This needs no build that reports its keys: the test knows the wrapping key,
//! and derives all others from the headers that the store was sent. Which of
//! the shapes that it looks for a process really uses is shown by a look into
//! the middle of an operation.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufReader, Read as _, Write as _};
use std::time::Duration;

use data_encoding::{BASE32, BASE64};
use rustix::process::Signal;
use support::memory::{Found, MessageKeys, Needles, PIECE};
use support::null_store::{Fault, NullStore, Op};
use support::process::{Process, eventually, signal};
use support::*;

/// How long after its end an operation may leave traces.
const GRACE: Duration = Duration::from_secs(1);
/// The least part that S3 allows, in bytes.
const PART: usize = 5 << 20;
/// User metadata with the header of a message.
const HEADER: &str = "x-amz-meta-strongroom-header";

/// An agent at TRACE with a wrapping key that the test knows, and all that
/// must not be found.
struct Scene {
    agent: Agent,
    store: NullStore,
    wrapping_key: [u8; 32],
    needles: Needles,
    /// Requests to the store whose headers were looked at.
    seen: usize,
    messages: usize,
    looks: usize,
    /// What clients were told, but for the plaintext they asked for.
    answers: Vec<u8>,
    /// The token's files; they must outlive the agent.
    _hsm: Hsm,
}

/// Sixteen random characters over and over: any piece that is left behind
/// holds them, and any text that it gets into shows them.
struct Plain(Vec<u8>);

impl Plain {
    fn bytes(&self, len: usize) -> Vec<u8> {
        self.0.iter().copied().cycle().take(len).collect()
    }
}

impl Scene {
    #[track_caller]
    fn new() -> Self {
        let mut wrapping_key = [0; 32];
        getrandom::fill(&mut wrapping_key).unwrap();
        let hsm = Hsm::bare();
        let pin = hsm.pin();
        hsm.init();
        hsm.import_key(&wrapping_key);
        let store = NullStore::start();
        let place = Store::at(store.endpoint()).with_credentials("test", "test-secret");
        let mut agent = Agent::prepare(&hsm, place, |config| {
            config["s3"]["part_size"] = value("5 MiB");
        });
        agent.launch();
        if let Err(failed) = agent.await_ready() {
            panic!("not ready: {:?}", failed.code);
        }
        let mut needles = Needles::new();
        needles.add_written("PIN", pin.as_bytes());
        Self {
            agent,
            store,
            wrapping_key,
            needles,
            seen: 0,
            messages: 0,
            looks: 0,
            answers: Vec::new(),
            _hsm: hsm,
        }
    }

    fn plain(&mut self) -> Plain {
        let mut random = [0; 10];
        getrandom::fill(&mut random).unwrap();
        let mut unit = BASE32.encode(&random).into_bytes();
        for _ in 0..PIECE {
            self.needles.add("plaintext", &unit);
            unit.rotate_left(1);
        }
        Plain(unit)
    }

    #[track_caller]
    fn put(&mut self, key: &str, status: u16, body: Body<'_>) {
        let target = format!("/v1/objects/bucket/{key}");
        let reply = self.agent.request("PUT", &target, &[], body);
        assert_eq!(reply.status, status, "{}", reply.text());
        self.answers
            .extend(format!("{:?}", reply.headers).into_bytes());
        self.answers.extend(reply.body);
    }

    fn get(&mut self, method: &str, key: &str, headers: &[(&str, &str)]) -> Reply {
        let target = format!("/v1/objects/bucket/{key}");
        let reply = self.agent.http(method, &target, headers, b"");
        self.answers
            .extend(format!("{:?}", reply.headers).into_bytes());
        if reply.status / 100 != 2 {
            self.answers.extend(&reply.body);
        }
        reply
    }

    /// Derives the keys of every message that was begun, finished or not.
    fn learn(&mut self) {
        let requests = self.store.requests();
        for request in &requests[self.seen..] {
            let begins = matches!(request.op, Op::Put | Op::Create);
            if let Some(header) = request.headers.get(HEADER).filter(|_| begins) {
                let header = BASE64.decode(header.as_bytes()).unwrap();
                MessageKeys::of(&header, &self.wrapping_key).add_to(&mut self.needles);
                self.messages += 1;
            }
        }
        self.seen = requests.len();
    }

    /// What is found in one process's memory, arguments and environment.
    fn look(&mut self, process: &Process) -> Found {
        self.learn();
        self.looks += 1;
        let mut found = self.needles.in_process(process);
        for file in ["cmdline", "environ"] {
            self.needles.is_in(&process.proc(file), &mut found);
        }
        found
    }

    #[track_caller]
    fn nothing_is_left(&mut self, after: &str) {
        std::thread::sleep(GRACE);
        let processes = self.agent.processes();
        assert_eq!(processes.len(), 3, "after {after}: {processes:?}");
        for process in processes {
            let found = self.look(&process);
            assert!(
                found.is_empty(),
                "after {after}, in {:?}: {found:?}",
                process.args
            );
        }
    }
}

#[test]
fn rule_24_no_secret_outlives_its_operation() {
    let mut scene = Scene::new();
    scene.nothing_is_left("the start and its login");

    let plain = scene.plain();
    scene.put("small", 201, Body::Bytes(&plain.bytes(1000)));
    scene.put(
        "chunked",
        201,
        Body::Chunked(&mut &plain.bytes(100_000)[..]),
    );
    scene.put("large", 201, Body::Bytes(&plain.bytes(5 * PART + 17)));
    scene.nothing_is_left("puts");

    // On a connection that its client keeps open.
    let plain = scene.plain();
    let mut kept = scene.agent.connect();
    let head = "PUT /v1/objects/bucket/kept HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n";
    kept.write_all(&[head.as_bytes(), &plain.bytes(3000)].concat())
        .unwrap();
    let mut reader = BufReader::new(kept.try_clone().unwrap());
    let reply = http::read_reply(&mut reader, "PUT", &mut std::io::sink()).unwrap();
    assert_eq!(reply.status, 201);
    let mut kept = scene.agent.connect();
    let mut reader = BufReader::new(kept.try_clone().unwrap());
    for key in ["small", "kept", "chunked"] {
        write!(
            kept,
            "GET /v1/objects/bucket/{key} HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        .unwrap();
        let reply = http::read_reply(&mut reader, "GET", &mut std::io::sink()).unwrap();
        assert!(reply.complete && reply.status == 200);
    }
    scene.nothing_is_left("requests on a connection that stays open");
    drop(kept);

    assert_eq!(
        scene.get("GET", "large", &[]).received,
        5 * PART as u64 + 17
    );
    let range = [("range", "bytes=5242000-5243999")];
    assert_eq!(scene.get("GET", "large", &range).received, 2000);
    assert_eq!(scene.get("HEAD", "small", &[]).status, 200);
    assert_eq!(scene.get("GET", "small?inspect", &[]).status, 200);
    scene.nothing_is_left("gets, ranges and looks");

    // In the middle of a get everything must be there, or this test is blind.
    let mut slow = scene.agent.connect();
    slow.write_all(b"GET /v1/objects/bucket/large HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    slow.read_exact(&mut [0; 1000]).unwrap();
    let server = scene.agent.server();
    let live = scene.look(&server);
    println!("in the server in the middle of a get: {live:?}");
    for name in [
        "plaintext",
        "payload key",
        "round key of the payload key",
        "hash key of the payload key",
    ] {
        assert!(live.contains_key(name), "not looked for rightly: {name}");
    }
    drop(slow);
    scene.nothing_is_left("a get that its client broke off");

    failures(&mut scene);

    // What is told of it all.
    for target in [
        "/v1/metrics",
        "/v1/status",
        "/v1/keys",
        "/v1/grants",
        "/v1/evidence?from=2000-01-01&to=2100-01-01",
        "/v1/objects/bucket?prefix=",
    ] {
        let reply = scene.agent.http("GET", target, &[], b"");
        assert_eq!(reply.status, 200, "{target}: {}", reply.text());
        scene.answers.extend(reply.body);
    }
    scene.nothing_is_left("metrics, status and the evidence report");

    // What is at rest.
    let mut found = Found::new();
    scene.needles.is_in(&scene.answers, &mut found);
    assert!(found.is_empty(), "in answers: {found:?}");
    let files = scene.needles.in_files(scene.agent.dir());
    assert!(files.is_empty(), "{files:?}");
    let log = scene.agent.log();
    assert!(
        log.contains("TRACE") && log.contains("authorization"),
        "no trace of anything"
    );
    println!(
        "{} messages' keys and 4 plaintexts, {} looks into processes, {} bytes of log, {} of answers",
        scene.messages,
        scene.looks,
        log.len(),
        scene.answers.len()
    );
}

/// Operations that do not come to a good end.
fn failures(scene: &mut Scene) {
    let plain = scene.plain();
    let before = scene.messages;
    for op in [Op::Put, Op::Part, Op::Complete] {
        scene
            .store
            .inject(op, 1, 1, Fault::Status(403, "AccessDenied"));
        let len = if op == Op::Put { 1000 } else { 2 * PART };
        let target = "/v1/objects/bucket/refused";
        let reply = scene
            .agent
            .request("PUT", target, &[], Body::Bytes(&plain.bytes(len)));
        assert!(reply.status >= 400, "{op:?}");
        scene.answers.extend(reply.body);
    }
    // A client that dies in the middle of a part.
    let mut dying = scene.agent.connect();
    let head = format!(
        "PUT /v1/objects/bucket/dead HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        9 * PART
    );
    dying
        .write_all(&[head.into_bytes(), plain.bytes(PART + PART / 2)].concat())
        .unwrap();
    let begun = eventually(Duration::from_secs(20), || {
        (scene.store.count(Op::Part) > 8).then_some(())
    });
    assert!(begun.is_some());
    drop(dying);
    let aborted = eventually(Duration::from_secs(20), || {
        (scene.store.open_uploads() == 0).then_some(())
    });
    assert!(aborted.is_some());
    scene.nothing_is_left("puts that failed");
    assert_eq!(scene.messages - before, 4, "messages that were begun");

    // Altered in the final frame, in the middle, and in the wrapped key.
    let whole = scene.store.object("bucket/large").unwrap();
    let body = whole.body.unwrap();
    for at in [body.len() - 1, body.len() / 2, 250] {
        let mut altered = body.to_vec();
        altered[at] ^= 1;
        scene.store.plant("bucket/large", altered);
        let reply = scene.get("GET", "large", &[]);
        assert!(reply.status == 422 || !reply.complete, "{at}");
    }
    scene.nothing_is_left("objects that were altered");

    for worker in scene.agent.workers() {
        signal(worker.pid, Signal::KILL);
    }
    let back = eventually(Duration::from_secs(20), || {
        let reply = scene
            .agent
            .http("GET", "/v1/objects/bucket/small", &[], b"");
        (reply.status == 200).then_some(())
    });
    assert!(back.is_some(), "no worker came back");
    scene.nothing_is_left("a worker's death");
}
