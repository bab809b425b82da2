//! What the agent tells Prometheus, read by Prometheus's own parser; and that
//! documents, dashboard and alerts name what there is.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde::Deserialize;
use support::hsm::{KEY, TOKEN};
use support::process::{eventually, run, signal};
use support::tamper::{read, stored};
use support::{Agent, Hsm, Weed, root, value};

/// What a collector sends that knows OpenMetrics.
const OPEN: [(&str, &str); 1] = [(
    "Accept",
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
)];

#[derive(Debug, Deserialize)]
struct Family {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    unit: String,
    help: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// A scrape, as the Python client reads it.
struct Scrape(Vec<Family>);

impl Scrape {
    #[track_caller]
    fn parse(format: &str, text: &[u8]) -> Self {
        let python = support::cache().join("venv/bin/python");
        if !python.exists() {
            support::lacking("the Python client of Prometheus");
        }
        let mut command = Command::new(python);
        command
            .arg(root().join("tests/readers/metrics.py"))
            .arg(format);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let parsed = run(&mut command, text).ok();
        Self(serde_json::from_slice(&parsed.stdout).unwrap())
    }

    #[track_caller]
    fn of(agent: &Agent) -> Self {
        let reply = agent.http("GET", "/v1/metrics", &OPEN, b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(
            reply.header("content-type"),
            Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
        );
        assert!(reply.text().ends_with("# EOF\n"));
        Self::parse("open", &reply.body)
    }

    fn samples(&self) -> impl Iterator<Item = &(String, BTreeMap<String, String>, f64)> {
        self.0.iter().flat_map(|family| &family.samples)
    }

    /// The sum of the samples of this name with these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = self.samples().filter(|(sample, all, _)| {
            let has = |(label, wanted): &(&str, &str)| all.get(*label).is_some_and(|v| v == wanted);
            sample == name && labels.iter().all(has)
        });
        matching.map(|(.., value)| value).sum()
    }

    /// The word of a family of states that is 1.
    #[track_caller]
    fn state(&self, name: &str) -> &str {
        let mut on = self
            .samples()
            .filter(|(sample, _, value)| sample == name && *value > 0.0);
        let (_, labels, value) = on.next().unwrap();
        assert!(on.next().is_none() && (*value - 1.0).abs() < f64::EPSILON);
        &labels["state"]
    }
}

/// A port that was free a moment ago.
fn port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn fetch(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_scrape_parses_and_tells_the_truth() {
    let (hsm, weed, address) = (Hsm::new(), Weed::shared(), port());
    let bucket = weed.bucket("metrics");
    let agent = Agent::start(&hsm, weed, |config| {
        config["metrics"]["listen"] = value(address.to_string());
    });
    let secret = "a-name-that-no-label-may-have";
    let target = format!("/v1/objects/{bucket}/{secret}");
    for _ in 0..3 {
        stored(&agent, weed, &bucket, secret, &[7; 1000]);
    }
    assert_eq!(read(&agent, &bucket, secret).body.len(), 1000);
    let mut message = weed.raw_get(&bucket, secret).unwrap();
    *message.last_mut().unwrap() ^= 1;
    weed.raw_put(&bucket, secret, &message);
    agent.http("GET", &target, &[], b"").fails("altered", &[]);
    assert_eq!(
        agent.http("GET", &format!("{target}x"), &[], b"").status,
        404
    );

    let scrape = Scrape::of(&agent);
    let counted = |operation, result| {
        let labels = [("operation", operation), ("result", result)];
        scrape.value("strongroom_requests_total", &labels)
    };
    assert_eq!(
        [
            counted("put", "ok"),
            counted("get", "ok"),
            counted("get", "altered"),
            counted("get", "no-such-object"),
        ],
        [3.0, 1.0, 1.0, 1.0]
    );
    let value =
        |name: &str, labels: &[(&str, &str)]| scrape.value(&format!("strongroom_{name}"), labels);
    assert_eq!(
        value("plaintext_bytes_total", &[("direction", "in")]),
        3000.0
    );
    assert_eq!(
        value("plaintext_bytes_total", &[("direction", "out")]),
        1000.0
    );
    assert_eq!(
        value("request_duration_seconds_count", &[("operation", "put")]),
        3.0
    );
    let worked = [
        ("token", TOKEN),
        ("function", "C_Encrypt"),
        ("result", "CKR_OK"),
    ];
    // The gate at least; a second later, the puts too.
    assert!(value("token_calls_total", &worked) >= 1.0);
    let once = [
        ("token", TOKEN),
        ("function", "C_Login"),
        ("result", "CKR_OK"),
    ];
    assert_eq!(value("token_calls_total", &once), 1.0);
    assert_eq!(value("token_workers_total", &[("token", TOKEN)]), 1.0);
    assert_eq!(scrape.state("strongroom_health"), "ready");
    assert_eq!(scrape.state("strongroom_token_health"), "ready");
    assert_eq!(value("ready", &[]), 1.0);
    let stored = [("operation", "PutObject"), ("result", "2xx")];
    assert_eq!(value("store_requests_total", &stored), 3.0);
    let status: strongroom::api::Status = agent.http("GET", "/v1/status", &[], b"").parse();
    let key = status.keys.iter().find(|key| key.name == KEY).unwrap();
    let (used, limit) = (key.wraps_used as f64, key.wrap_limit as f64);
    assert_eq!(value("key_wraps_used", &[("key", KEY)]), used);
    assert_eq!(value("key_wraps_limit", &[("key", KEY)]), limit);
    assert_eq!(
        value("memory_budget_bytes", &[]),
        status.memory_budget as f64
    );
    assert!(value("catalog_commits_total", &[]) >= 3.0);
    assert_eq!(value("audit_healthy", &[]), 1.0);
    assert!(value("audit_records_total", &[]) >= 8.0);
    for (name, labels, _) in scrape.samples() {
        let text = format!("{name} {labels:?}");
        assert!(!text.contains(secret) && !text.contains(&bucket), "{text}");
    }

    // The port has the same in the older format, and nothing else.
    let answer = fetch(address, "GET /metrics");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("version=0.0.4"),
        "{head}"
    );
    let older = Scrape::parse("older", body.as_bytes());
    assert_eq!(
        older.value("strongroom_requests_total", &[("operation", "put")]),
        3.0
    );
    let names = |scrape: &Scrape| -> BTreeSet<String> {
        scrape.samples().map(|(name, ..)| name.clone()).collect()
    };
    assert_eq!(names(&older), names(&scrape));
    assert!(
        older.0.iter().all(|family| family.kind != "unknown"),
        "{:?}",
        older.0
    );
    for request in [
        "GET /v1/status",
        "POST /metrics",
        "GET /v1/objects/b/k",
        "GET /",
    ] {
        assert!(
            fetch(address, request).starts_with("HTTP/1.1 404"),
            "{request}"
        );
    }
}

#[test]
fn counters_never_go_back_when_a_worker_is_replaced() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("metrics-worker");
    let agent = Agent::start(&hsm, weed, |_| {});
    stored(&agent, weed, &bucket, "k", b"x");
    let mut scrapes = vec![Scrape::of(&agent)];
    let logins = |scrape: &Scrape| {
        let labels = [("function", "C_Login"), ("result", "CKR_OK")];
        scrape.value("strongroom_token_calls_total", &labels)
    };
    for round in 2..=3 {
        signal(agent.workers()[0].pid, Signal::KILL);
        let next = eventually(Duration::from_secs(30), || {
            let reply = agent.http("PUT", &format!("/v1/objects/{bucket}/k"), &[], b"x");
            let scrape = Scrape::of(&agent);
            let replaced = scrape.value("strongroom_token_workers_total", &[]) >= f64::from(round);
            (reply.status == 201 && replaced && logins(&scrape) >= f64::from(round))
                .then_some(scrape)
        });
        scrapes.push(next.expect("another worker"));
    }
    for pair in scrapes.windows(2) {
        let mut compared = 0;
        for (name, labels, before) in pair[0]
            .samples()
            .filter(|(name, ..)| name.ends_with("_total"))
        {
            let labels: Vec<_> = labels
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            let after = pair[1].value(name, &labels);
            assert!(
                after >= *before,
                "{name} {labels:?}: {before}, then {after}"
            );
            compared += 1;
        }
        assert!(compared > 15, "{compared}");
    }
}

#[test]
fn a_port_that_is_taken_is_told() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let failed = Agent::try_start(&hsm, weed, |config| {
        config["metrics"]["listen"] = value(address.as_str());
    });
    let failed = failed.err().unwrap();
    assert!(
        failed.log.contains("metrics.listen: cannot listen on"),
        "{}",
        failed.log
    );
}

/// Names of metrics in a text, as queries write them.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|word| word.starts_with("strongroom_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn documents_dashboard_and_alerts_name_what_there_is() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("metrics-docs");
    let agent = Agent::start(&hsm, weed, |_| {});
    stored(&agent, weed, &bucket, "k", b"x");
    let scrape = Scrape::of(&agent);
    // Whatever a query may name.
    let mut known: BTreeSet<String> = scrape.samples().map(|(name, ..)| name.clone()).collect();
    known.extend(
        scrape
            .0
            .iter()
            .filter(|f| f.kind == "counter")
            .map(|f| format!("{}_total", f.name)),
    );
    for file in ["grafana-dashboard.json", "alerts.yml"] {
        let text = fs::read_to_string(root().join("docs").join(file)).unwrap();
        let named = named(&text);
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(
            named.len() > 8 && unknown.is_empty(),
            "docs/{file} names {unknown:?}"
        );
    }
    let dashboard = fs::read_to_string(root().join("docs/grafana-dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    assert!(queries.filter(|query| query["expr"].is_string()).count() > 10);

    // One row each, with type, unit and help's gist, and no other.
    let text = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows: BTreeMap<&str, Vec<&str>> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `strongroom_"))
        .map(|line| {
            let cells: Vec<&str> = line
                .split('|')
                .map(|cell| cell.trim().trim_matches('`'))
                .collect();
            (cells[0], cells[1..].to_vec())
        })
        .collect();
    let mut wrong = Vec::new();
    for family in &scrape.0 {
        let suffix = match family.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let name = format!(
            "{}{suffix}",
            family.name.strip_prefix("strongroom_").unwrap()
        );
        let labels: BTreeSet<&str> = family
            .samples
            .iter()
            .flat_map(|(_, labels, _)| labels.keys().map(String::as_str))
            .filter(|label| *label != "le")
            .collect();
        match rows.get(name.as_str()) {
            Some(row) if row[0] == family.kind && row[1] == family.unit => {
                let told: BTreeSet<&str> = row[2]
                    .split(", ")
                    .map(|l| l.trim_matches('`'))
                    .filter(|l| !l.is_empty())
                    .collect();
                if told != labels && !labels.is_empty() {
                    wrong.push(format!("{name}: {told:?}, not {labels:?}"));
                }
            }
            row => wrong.push(format!(
                "{name} ({}, {}): {row:?}",
                family.kind, family.unit
            )),
        }
        assert!(!family.help.is_empty());
    }
    let told: BTreeSet<&str> = rows.keys().copied().collect();
    assert_eq!(told.len(), scrape.0.len(), "{told:?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
