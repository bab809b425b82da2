//! What Prometheus is told (docs/metrics.md). No label names an object, a user
//! or anything else that a client can choose: their number is bounded by the
//! configuration.

mod listen;
mod readings;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Response, header as std_header};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::api::{Error, ErrorKind, Operation};

use super::reply::{self, Body};
use super::state::App;

pub(super) use listen::{bind, serve};

/// Before every name.
const PREFIX: &str = "strongroom";
/// Of a client that left before its answer was complete.
const GONE: &str = "gone";
/// Upper bounds of the buckets of durations, in seconds: a health check takes
/// less than the first, a large object over a slow line more than the last.
const BUCKETS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0,
];

/// What a reader is told of an object that somebody changed.
const TAMPERING: [ErrorKind; 4] = [
    ErrorKind::Altered,
    ErrorKind::Truncated,
    ErrorKind::Elsewhere,
    ErrorKind::RolledBack,
];

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What is counted as it happens; the rest is read when it is asked for.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Labels<2>, Counter>,
    durations: Family<Labels<1>, Histogram>,
    succeeded: Family<Labels<1>, Gauge<f64, AtomicU64>>,
    denials: Family<Labels<1>, Counter>,
    /// Plaintext from clients.
    pub(super) bytes_in: Counter,
    /// Plaintext to clients.
    pub(super) bytes_out: Counter,
}

impl Metrics {
    pub(super) fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix(PREFIX);
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let durations = Family::new_with_constructor(histogram);
        let requests: Family<Labels<2>, Counter> = Family::default();
        let denials: Family<Labels<1>, Counter> = Family::default();
        let succeeded = Family::default();
        registry.register(
            "denials",
            "Requests refused for want of a grant, by the operation that was missing",
            Family::clone(&denials),
        );
        registry.register(
            "requests",
            "Requests by operation, and by result: ok, an error's type, or gone",
            Family::clone(&requests),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from a request's head to the last byte of its answer",
            Unit::Seconds,
            Family::clone(&durations),
        );
        registry.register_with_unit(
            "last_success_timestamp",
            "When a request of this operation last succeeded, Unix time",
            Unit::Seconds,
            Family::clone(&succeeded),
        );
        let bytes = Family::<Labels<1>, Counter>::default();
        registry.register_with_unit(
            "plaintext",
            "Plaintext received from clients (in) and sent to them (out)",
            Unit::Bytes,
            bytes.clone(),
        );
        // What alerts watch begins at zero: the first one must be a change.
        for operation in Operation::ALL {
            drop(denials.get_or_create(&[("operation", operation.as_str())]));
        }
        for kind in TAMPERING {
            let operation = Operation::Get.as_str();
            let labels = [("operation", operation), ("result", kind.slug())];
            drop(requests.get_or_create(&labels));
        }
        let direction = |name| bytes.get_or_create(&[("direction", name)]).clone();
        Arc::new(Self {
            registry,
            requests,
            durations,
            succeeded,
            denials,
            bytes_in: direction("in"),
            bytes_out: direction("out"),
        })
    }
}

impl Metrics {
    /// Counts a refusal.
    pub(super) fn denied(&self, missing: Operation) {
        let label = [("operation", missing.as_str())];
        self.denials.get_or_create(&label).inc();
    }
}

/// One request under way. It is counted once: when its answer is complete, or
/// when nobody waits for that any more.
pub(super) struct Timer {
    metrics: Arc<Metrics>,
    operation: &'static str,
    began: Instant,
    streams: AtomicBool,
    done: AtomicBool,
}

impl Timer {
    pub(super) fn start(metrics: &Arc<Metrics>, operation: &'static str) -> Arc<Self> {
        Arc::new(Self {
            metrics: Arc::clone(metrics),
            operation,
            began: Instant::now(),
            streams: AtomicBool::new(false),
            done: AtomicBool::new(false),
        })
    }

    /// Its answer goes on after its head: whoever sends the body counts it.
    pub(super) fn streams(&self) {
        self.streams.store(true, Ordering::Relaxed);
    }

    /// The answer's head is made: `Err` with what went wrong.
    pub(super) fn answered(&self, result: Result<(), &Error>) {
        if result.is_err() || !self.streams.load(Ordering::Relaxed) {
            self.finish(result);
        }
    }

    /// The answer is complete.
    pub(super) fn finish(&self, result: Result<(), &Error>) {
        self.count(result.map_or_else(|error| error.kind.slug(), |()| "ok"));
    }

    fn count(&self, result: &'static str) {
        if self.done.swap(true, Ordering::Relaxed) {
            return;
        }
        let operation = ("operation", self.operation);
        let requests = &self.metrics.requests;
        requests
            .get_or_create(&[operation, ("result", result)])
            .inc();
        let durations = &self.metrics.durations;
        durations
            .get_or_create(&[operation])
            .observe(self.began.elapsed().as_secs_f64());
        if result == "ok" {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let succeeded = self.metrics.succeeded.get_or_create(&[operation]);
            succeeded.set(now.map_or(0.0, |now| now.as_secs_f64()));
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.count(GONE);
    }
}

/// `GET /v1/metrics`: OpenMetrics for those who ask for it, as Prometheus
/// does, and its older text format for the rest.
pub(super) fn answer(app: &Arc<App>, headers: &HeaderMap) -> Result<Response<Body>, Error> {
    let failed = |e| Error::new(ErrorKind::Internal, "metrics cannot be written").log(e);
    let mut out = String::new();
    encode_registry(&mut out, &app.metrics.registry).map_err(failed)?;
    encode_registry(&mut out, &readings::registry(app)).map_err(failed)?;
    encode_eof(&mut out).map_err(failed)?;
    let accepted = headers.get_all(std_header::ACCEPT).iter();
    let open = accepted
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    let (out, kind) = match open {
        true => (
            out,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        false => (
            text::older(&out),
            "text/plain; version=0.0.4; charset=utf-8",
        ),
    };
    let mut response = Response::new(reply::full(out));
    reply::set(&mut response, std_header::CONTENT_TYPE, kind);
    Ok(response)
}
