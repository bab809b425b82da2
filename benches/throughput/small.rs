//! Small objects: 4 KiB each, from many connections at once.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;

use super::measure::{Spread, cpu_of};
use super::rig::Rig;
use super::section::{Aim, Section};
use super::store::Store;
use super::support::shim::{C_Encrypt, Plan, Shim};
use super::support::{TokenKind, value};
use super::{BUCKET, Options};

/// Connections: a busy host's.
const CONNECTIONS: usize = 64;
/// Bytes of an object.
const SIZE: usize = 4 << 10;
/// Puts of one run of many connections, and of one.
const PUTS: usize = 6400;
const PUTS_OF_ONE: usize = 500;
/// What the slow token adds to each wrap: a network HSM's round trip.
const LATENCY: Duration = Duration::from_millis(5);
/// Sessions of the tokens: the default.
const SESSIONS: i64 = 16;

/// One run.
struct Run {
    rate: f64,
    /// Milliseconds.
    p50: f64,
    p99: f64,
    /// Milliseconds a put: the agent's processes, this program.
    cpu: f64,
    client: f64,
    /// A put.
    wraps: f64,
    requests: f64,
}

pub fn run(store: &RefCell<Store>, options: &Options) -> Section {
    // Both behind the shim, which counts, and costs next to nothing.
    let rigged = || {
        let shim = Shim::new(&TokenKind::SoftHsm.module());
        let rig = Rig::start(&store.borrow().http, |config| {
            shim.configure(config);
            let tokens = config["token"].as_array_of_tables_mut().unwrap();
            tokens.get_mut(0).unwrap()["sessions"] = value(SESSIONS);
        });
        (rig, shim)
    };
    let (fast, slow) = (rigged(), rigged());
    slow.1.plan(&Plan {
        encrypt_latency_us: LATENCY.as_micros().try_into().unwrap(),
        ..Plan::default()
    });
    let late = "SoftHSM, 5 ms more for each wrap";
    let cases: [(&str, &(Rig, Shim), usize, usize); 3] = [
        ("SoftHSM", &fast, CONNECTIONS, PUTS),
        ("SoftHSM", &fast, 1, PUTS_OF_ONE),
        (late, &slow, CONNECTIONS, PUTS),
    ];
    let mut text = String::from(
        "| token | connections | puts a second | p50, ms | p99, ms | wraps each | S3 requests each | CPU-ms each, agent | CPU-ms each, client |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut aims = Vec::new();
    let mut runs: [Vec<Run>; 3] = Default::default();
    // One round that is not counted.
    for round in 0..=options.runs {
        for ((token, rigged, connections, puts), runs) in cases.iter().zip(&mut runs) {
            let run = one(store, rigged, *connections, *puts);
            eprintln!(
                "{round} {token}, {connections} connections: {:.0}/s, p50 {:.1} ms, p99 {:.1} ms, {:.2} ms cpu and {:.2} the client's, {:.3} wraps, {:.3} requests",
                run.rate, run.p50, run.p99, run.cpu, run.client, run.wraps, run.requests
            );
            if round > 0 {
                runs.push(run);
            }
        }
    }
    for ((token, _, connections, ..), runs) in cases.iter().zip(&runs) {
        let of = |pick: fn(&Run) -> f64| Spread::of(runs.iter().map(pick));
        let _ = writeln!(
            text,
            "| {token} | {connections} | {:.0} | {:.1} | {:.1} | {:.3} | {:.3} | {:.2} | {:.2} |",
            of(|r| r.rate),
            of(|r| r.p50),
            of(|r| r.p99),
            of(|r| r.wraps).median,
            of(|r| r.requests).median,
            of(|r| r.cpu).median,
            of(|r| r.client).median,
        );
    }
    let of = |case: usize, pick: fn(&Run) -> f64| Spread::of(runs[case].iter().map(pick)).median;
    let what = |what| format!("4 KiB puts from {CONNECTIONS} connections, {what}");
    aims.push(Aim::at_least(what("SoftHSM"), 3000.0, of(0, |r| r.rate), "/s").headline());
    aims.push(Aim::at_most(what("p99"), 60.0, of(0, |r| r.p99), " ms"));
    aims.push(Aim::at_most(
        what("wraps each"),
        1.0,
        hundredths(of(0, |r| r.wraps)),
        "",
    ));
    aims.push(Aim::at_most(
        what("S3 requests each"),
        1.0,
        hundredths(of(0, |r| r.requests)),
        "",
    ));
    aims.push(Aim::at_least(
        what("5 ms more for each wrap"),
        1500.0,
        of(2, |r| r.rate),
        "/s",
    ));
    let _ = writeln!(
        text,
        "\nClient and agent share the cores with the store. Catalogue and audit log are on, and on the disk. Wraps are calls of `C_Encrypt` with an output buffer; the token's own proofs, once in a while, are among them."
    );
    Section {
        title: "Small objects",
        text,
        aims,
    }
}

/// The token's own proofs are a few in thousands.
fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn one(store: &RefCell<Store>, (rig, shim): &(Rig, Shim), connections: usize, puts: usize) -> Run {
    let processes = rig.agent.processes();
    let cpu = || -> Duration { processes.iter().map(|p| cpu_of(p.pid)).sum() };
    let client = || cpu_of(std::process::id());
    let each = |before: Duration, now: Duration| (now - before).as_secs_f64() * 1e3 / puts as f64;
    let wraps_before = shim.buffered(C_Encrypt);
    store.borrow_mut().count();
    let (cpu_before, client_before, begun) = (cpu(), client(), Instant::now());
    let mut latencies = send(&rig.agent.socket(), connections, puts);
    let (cpu, client) = (each(cpu_before, cpu()), each(client_before, client()));
    let rate = puts as f64 / begun.elapsed().as_secs_f64();
    let requests = store.borrow_mut().count().requests as f64 / puts as f64;
    latencies.sort_unstable();
    let at = |percent: usize| latencies[latencies.len() * percent / 100].as_secs_f64() * 1e3;
    Run {
        rate,
        p50: at(50),
        p99: at(99),
        cpu,
        client,
        wraps: (shim.buffered(C_Encrypt) - wraps_before) as f64 / puts as f64,
        requests,
    }
}

/// How long each put took.
fn send(socket: &Path, connections: usize, puts: usize) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let body = bytes::Bytes::from(vec![7; SIZE]);
    runtime.unwrap().block_on(async {
        let tasks = (0..connections).map(|connection| {
            let (socket, body) = (socket.to_owned(), body.clone());
            async move {
                let mut sender = None;
                let mut latencies = Vec::new();
                for i in 0..puts / connections {
                    let begun = Instant::now();
                    // The agent may close a connection; then the next is new.
                    let mut open = match sender.take() {
                        Some(open) => open,
                        None => connect(&socket).await,
                    };
                    let target = format!("/v1/objects/{BUCKET}/small/{connection}/{i}");
                    let request = http::Request::put(target).header("host", "agent");
                    let request = request.body(Full::new(body.clone())).unwrap();
                    let answer = open.send_request(request).await.unwrap();
                    assert_eq!(answer.status(), 201);
                    answer.into_body().collect().await.unwrap();
                    latencies.push(begun.elapsed());
                    if open.ready().await.is_ok() {
                        sender = Some(open);
                    }
                }
                latencies
            }
        });
        let tasks: tokio::task::JoinSet<_> = tasks.collect();
        tasks.join_all().await.concat()
    })
}

type Sender = hyper::client::conn::http1::SendRequest<Full<bytes::Bytes>>;

async fn connect(socket: &Path) -> Sender {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}
