//! Small objects: 4 KiB each, from many connections at once.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;

use super::contenders::Bench;
use super::measure::{cpu_of, spread};

/// Connections: the issue's own number, of a busy host.
const CONNECTIONS: usize = 64;
/// Bytes of an object.
const SIZE: usize = 4 << 10;
/// Puts of one run.
const PUTS: usize = 6400;

/// The median run's figures.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    /// Puts a second: median, least, most.
    pub rate: (f64, f64, f64),
    /// The 99th percentile of the median run's latencies, milliseconds.
    pub p99: f64,
    /// Requests to the store for a put.
    pub requests: f64,
    /// Processor time of the agent's processes for a put, milliseconds.
    pub cpu: f64,
}

pub fn run(bench: &Bench, runs: usize) -> Small {
    let mut done: Vec<(f64, f64, f64, f64)> = Vec::new();
    for round in 0..=runs {
        bench.requests();
        let ours = bench.agent.processes();
        let cpu = || -> Duration { ours.iter().map(|p| cpu_of(p.pid)).sum() };
        let (before, begun) = (cpu(), Instant::now());
        let mut latencies = puts(bench, round);
        let rate = PUTS as f64 / begun.elapsed().as_secs_f64();
        let cpu = (cpu() - before).as_secs_f64() * 1e3 / PUTS as f64;
        latencies.sort_unstable();
        let p99 = latencies[latencies.len() * 99 / 100].as_secs_f64() * 1e3;
        let requests = bench.requests() as f64 / PUTS as f64;
        eprintln!(
            "{round} 4 KiB puts: {rate:.0}/s, p99 {p99:.1} ms, {cpu:.2} ms cpu, {requests} requests each"
        );
        if round > 0 {
            done.push((rate, p99, requests, cpu));
        }
    }
    let of = |pick: fn(&(f64, f64, f64, f64)) -> f64| spread(done.iter().map(pick));
    Small {
        rate: of(|d| d.0),
        p99: of(|d| d.1).0,
        requests: of(|d| d.2).0,
        cpu: of(|d| d.3).0,
    }
}

/// How long each put took.
fn puts(bench: &Bench, round: usize) -> Vec<Duration> {
    let socket = bench.agent.socket();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let mut connections = tokio::task::JoinSet::new();
        for connection in 0..CONNECTIONS {
            let socket = socket.clone();
            connections.spawn(async move {
                let mut sender = None;
                let mut latencies = Vec::new();
                for i in 0..PUTS / CONNECTIONS {
                    let begun = Instant::now();
                    // The agent may close a connection; then the next is new.
                    let mut open = match sender.take() {
                        Some(open) => open,
                        None => connect(&socket).await,
                    };
                    let request = http::Request::put(format!(
                        "/v1/objects/bench/small/{round}/{connection}/{i}"
                    ))
                    .header("host", "agent")
                    .body(Full::new(bytes::Bytes::from(vec![7; SIZE])))
                    .unwrap();
                    let answer = open.send_request(request).await.unwrap();
                    assert_eq!(answer.status(), 201);
                    let close = answer
                        .headers()
                        .get("connection")
                        .is_some_and(|v| v == "close");
                    answer.into_body().collect().await.unwrap();
                    latencies.push(begun.elapsed());
                    if !close && open.ready().await.is_ok() {
                        sender = Some(open);
                    }
                }
                latencies
            });
        }
        let mut all = Vec::new();
        while let Some(latencies) = connections.join_next().await {
            all.extend(latencies.unwrap());
        }
        all
    })
}

type Sender = hyper::client::conn::http1::SendRequest<Full<bytes::Bytes>>;

async fn connect(socket: &std::path::Path) -> Sender {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}
