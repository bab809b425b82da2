//! Clients that die and agents that stop in the middle of a put: nothing
//! half-stored, nothing left behind, nobody else disturbed.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::process::{eventually, signal, wait};
use support::tamper::read;
use support::{Agent, Compare, Hsm, Pattern, Weed, pattern, temp_dir, value, write_pattern};

/// Bytes of the put that is killed.
const SIZE: u64 = 200 << 20;
/// How many clients die.
const KILLS: usize = 20;
/// Bytes a second that a pipe is fed with: the put then takes some 1.3 s, and
/// the instants lie in all of its phases.
const RATE: u64 = 150 << 20;

/// SplitMix64: the seed that a failing run printed repeats its instants.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let seed = std::env::var("STRONGROOM_SEED")
            .ok()
            .and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        });
        println!("STRONGROOM_SEED={seed}");
        Self(seed)
    }

    /// From 0 up to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        f64::from(u32::try_from((z ^ (z >> 31)) >> 32).unwrap()) / (f64::from(u32::MAX) + 1.0)
    }
}

fn agent(hsm: &Hsm, weed: &Weed, grace: &str) -> Agent {
    Agent::start(hsm, weed, |config| {
        config["s3"]["part_size"] = value("5 MiB");
        config["s3"]["upload_concurrency"] = value(3);
        config["agent"]["shutdown_grace"] = value(grace);
    })
}

fn start_put(agent: &Agent, source: &str, bucket: &str, key: &str) -> Child {
    agent
        .command(["put", source, &format!("s3://{bucket}/{key}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Feeds a client at most [`RATE`] bytes a second until it goes away or `len`
/// bytes are through. The pipe is then closed only if `close`.
fn feed(child: &mut Child, len: u64, close: bool) -> std::thread::JoinHandle<Option<ChildStdin>> {
    let mut pipe = child.stdin.take().unwrap();
    std::thread::spawn(move || {
        let mut source = Pattern::new(7, len);
        let mut piece = vec![0; 256 << 10];
        let began = Instant::now();
        let mut sent = 0;
        loop {
            let n = source.read(&mut piece).unwrap();
            if n == 0 {
                return (!close).then_some(pipe);
            }
            if pipe.write_all(&piece[..n]).is_err() {
                return None;
            }
            sent += n as u64;
            let due = Duration::from_millis(sent * 1000 / RATE);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    })
}

fn stderr_of(child: &mut Child) -> String {
    let mut text = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut text);
    text
}

fn status(agent: &Agent) -> strongroom::api::Status {
    agent.http("GET", "/v1/status", &[], b"").parse()
}

/// Asserts that the bucket has neither objects nor uploads, and the agent
/// neither requests nor memory in use: soon, since an abort takes its time.
#[track_caller]
fn nothing_left(agent: &Agent, weed: &Weed, bucket: &str) {
    let settled = eventually(Duration::from_secs(15), || {
        let idle = status(agent);
        (idle.requests == 0 && idle.memory_in_use == 0).then_some(())
    });
    assert!(settled.is_some(), "still busy: {:?}", status(agent));
    nothing_stored(weed, bucket);
    assert_eq!(status(agent).health, "ready");
}

#[track_caller]
fn nothing_stored(weed: &Weed, bucket: &str) {
    let gone = eventually(Duration::from_secs(5), || {
        weed.list_uploads(bucket).is_empty().then_some(())
    });
    assert!(
        gone.is_some(),
        "uploads left: {:?}",
        weed.list_uploads(bucket)
    );
    assert_eq!(weed.list(bucket, ""), Vec::<String>::new());
}

#[test]
fn clients_killed_while_they_send_a_pipe_leave_nothing() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent(&hsm, weed, "10 s");
    let bucket = weed.bucket("killed-pipe");
    let mut random = Random::seeded();
    let whole = Duration::from_millis(SIZE * 1000 / RATE);
    let mut instants = Vec::new();
    for _ in 0..KILLS / 2 {
        let mut child = start_put(&agent, "-", &bucket, "k");
        // Never closed: whatever the agent saw, it saw no end.
        let feeder = feed(&mut child, SIZE, false);
        let instant = whole.mul_f64(random.share());
        std::thread::sleep(instant);
        signal(child.id(), Signal::KILL);
        child.wait().unwrap();
        drop(feeder.join().unwrap());
        nothing_left(&agent, weed, &bucket);
        instants.push(instant.as_millis());
    }
    let put = agent.cli_in(["put", "-", &format!("s3://{bucket}/k")], b"and on it goes");
    put.ok();
    println!(
        "killed at {instants:?} ms of {} ms: nothing left",
        whole.as_millis()
    );
}

#[test]
fn clients_killed_while_they_send_a_file_leave_nothing() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = agent(&hsm, weed, "10 s");
    let bucket = weed.bucket("killed-file");
    let dir = temp_dir();
    let path = dir.path().join("file");
    write_pattern(&path, 7, SIZE);
    let source = path.display().to_string();
    // How long one takes when it is let.
    let began = Instant::now();
    agent
        .cli(["put", &source, &format!("s3://{bucket}/k")])
        .ok();
    let mut whole = began.elapsed();
    weed.raw_delete(&bucket, "k");

    let mut random = Random::seeded();
    let (mut instants, mut too_late) = (Vec::new(), 0);
    while instants.len() < KILLS / 2 {
        let mut child = start_put(&agent, &source, &bucket, "k");
        let instant = whole.mul_f64(random.share());
        std::thread::sleep(instant);
        signal(child.id(), Signal::KILL);
        child.wait().unwrap();
        let idle = eventually(Duration::from_secs(15), || {
            (status(&agent).requests == 0).then_some(())
        });
        assert!(idle.is_some(), "still busy: {:?}", status(&agent));
        if weed.list(&bucket, "") == ["k"] {
            // All bytes had been sent: then it must be a whole object.
            let mut sink = Compare::with(Pattern::new(7, SIZE));
            let target = format!("/v1/objects/{bucket}/k");
            let reply = agent.stream("GET", &target, &[], support::Body::None, &mut sink);
            assert!(reply.complete);
            sink.finish();
            weed.raw_delete(&bucket, "k");
            too_late += 1;
            whole = whole.min(instant).mul_f64(0.95);
            assert!(too_late < 20, "every client finishes before it is killed");
            continue;
        }
        nothing_left(&agent, weed, &bucket);
        instants.push(instant.as_millis());
    }
    agent
        .cli(["put", &source, &format!("s3://{bucket}/k")])
        .ok();
    println!(
        "killed at {instants:?} ms of {} ms: nothing left; {too_late} had sent everything and left a whole object",
        whole.as_millis()
    );
}

#[test]
fn a_sigterm_to_the_agent_lets_a_put_finish() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = agent(&hsm, weed, "20 s");
    let bucket = weed.bucket("sigterm");
    let mut child = start_put(&agent, "-", &bucket, "k");
    let feeder = feed(&mut child, SIZE, true);
    std::thread::sleep(Duration::from_millis(500));
    agent.signal(Signal::TERM);
    let code = wait(&mut child, Duration::from_secs(40)).and_then(|s| s.code());
    let words = stderr_of(&mut child);
    drop(feeder.join().unwrap());
    assert_eq!(
        agent.wait_exit(Duration::from_secs(30)),
        Some(0),
        "{}",
        agent.log()
    );
    match code {
        Some(0) => {
            agent.launch();
            agent.await_ready().unwrap();
            let mut sink = Compare::with(Pattern::new(7, SIZE));
            let target = format!("/v1/objects/{bucket}/k");
            let reply = agent.stream("GET", &target, &[], support::Body::None, &mut sink);
            assert!(reply.complete);
            sink.finish();
        }
        Some(75) => nothing_stored(weed, &bucket),
        other => panic!("exit {other:?}: {words}"),
    }
    assert!(weed.list_uploads(&bucket).is_empty());
    println!("SIGTERM during a put: client exit {code:?}, agent exit 0");
}

#[test]
fn after_shutdown_grace_a_stalled_put_is_aborted() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = agent(&hsm, weed, "1 s");
    let bucket = weed.bucket("stalled");
    let mut child = start_put(&agent, "-", &bucket, "k");
    let feeder = feed(&mut child, 40 << 20, false);
    // The open pipe is the stall.
    let pipe = feeder.join().unwrap();
    let begun = eventually(Duration::from_secs(10), || {
        (!weed.list_uploads(&bucket).is_empty()).then_some(())
    });
    assert!(begun.is_some(), "no upload was begun");
    let began = Instant::now();
    assert_eq!(agent.terminate(), Some(0), "{}", agent.log());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let code = wait(&mut child, Duration::from_secs(10)).and_then(|s| s.code());
    let words = stderr_of(&mut child);
    drop(pipe);
    assert_eq!(code, Some(75), "{words}");
    nothing_stored(weed, &bucket);
    println!("a stalled put after a grace of 1 s: aborted, agent gone in {took:?}, client exit 75");
}

#[test]
fn an_agent_killed_in_a_put_leaves_no_object() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = agent(&hsm, weed, "1 s");
    let bucket = weed.bucket("agent-killed");
    let mut child = start_put(&agent, "-", &bucket, "k");
    let feeder = feed(&mut child, 40 << 20, false);
    let pipe = feeder.join().unwrap();
    agent.kill();
    let code = wait(&mut child, Duration::from_secs(10)).and_then(|s| s.code());
    let words = stderr_of(&mut child);
    drop(pipe);
    assert_eq!(code, Some(75), "{words}");
    assert_eq!(weed.list(&bucket, ""), Vec::<String>::new());
    // What kill -9 leaves (socket file, lock) does not keep the next one out.
    agent.launch();
    agent.await_ready().unwrap();
    agent
        .cli_in(["put", "-", &format!("s3://{bucket}/k")], &pattern(1, 1000))
        .ok();
    assert_eq!(read(&agent, &bucket, "k").body, pattern(1, 1000));
    println!("a killed agent: client exit 75, no object, the next agent serves");
}
