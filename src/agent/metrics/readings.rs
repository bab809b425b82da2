//! What is read off the agent's state when somebody asks.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::agent::state::App;
use crate::token::Health;

use super::PREFIX;

/// The agent's own words besides those of tokens ([`Health`]).
const STOPPING: &str = "stopping";

pub(super) fn registry(app: &Arc<App>) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Readings(Arc::clone(app))));
    registry
}

struct Readings(Arc<App>);

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readings")
    }
}

/// One sample: its labels and its value.
type Sample<'a> = (Vec<(&'static str, &'a str)>, u64);

fn write(sample: &mut MetricEncoder<'_>, counts: bool, value: u64) -> fmt::Result {
    match counts {
        true => sample.encode_counter::<NoLabelSet, u64, f64>(&value, None),
        false => sample.encode_gauge(&value),
    }
}

struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn family<'s>(
        &mut self,
        kind: MetricType,
        (name, help): (&str, &str),
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = Sample<'s>>,
    ) -> fmt::Result {
        let counts = matches!(kind, MetricType::Counter);
        let mut encoder = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                write(&mut encoder, counts, value)?;
            } else {
                write(&mut encoder.encode_family(&labels)?, counts, value)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(MetricType::Gauge, (name, help), None, [(Vec::new(), value)])
    }

    fn bytes(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let unit = Some(&Unit::Bytes);
        self.family(MetricType::Gauge, (name, help), unit, [(Vec::new(), value)])
    }

    /// One of several words, each of which is 0 or 1.
    fn states<'s>(
        &mut self,
        name: &str,
        help: &str,
        of: impl IntoIterator<Item = (Option<&'s str>, &'s str)>,
    ) -> fmt::Result {
        let words = Health::ALL
            .map(Health::as_str)
            .into_iter()
            .chain([STOPPING]);
        let samples = of.into_iter().flat_map(|(token, now)| {
            words.clone().filter_map(move |word| {
                let mut labels: Vec<_> = token.map(|token| ("token", token)).into_iter().collect();
                // A token does not stop.
                if token.is_some() && word == STOPPING {
                    return None;
                }
                labels.push(("state", word));
                Some((labels, u64::from(word == now)))
            })
        });
        self.family(MetricType::Gauge, (name, help), None, samples)
    }
}

impl Collector for Readings {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Encoder(encoder);
        self.agent(&mut to)?;
        self.tokens(&mut to)?;
        self.keys(&mut to)?;
        self.store(&mut to)?;
        self.audit(&mut to)
    }
}

impl Readings {
    fn agent(&self, to: &mut Encoder<'_>) -> fmt::Result {
        let app = &self.0;
        for (name, help, label, value) in [
            (
                "build",
                "The agent's release",
                "version",
                env!("CARGO_PKG_VERSION"),
            ),
            (
                "confinement",
                "How the server is confined",
                "means",
                app.confinement.as_str(),
            ),
        ] {
            let mut encoder = to.0.encode_descriptor(name, help, None, MetricType::Info)?;
            encoder.encode_info(&vec![(label, value)])?;
        }
        let confined = u64::from(app.confined);
        to.gauge(
            "confined",
            "Whether the server is confined by landlock and seccomp",
            confined,
        )?;
        let up = Some(&Unit::Seconds);
        let uptime = [(Vec::new(), app.started.elapsed().as_secs())];
        let help = "Time since the server started";
        to.family(MetricType::Gauge, ("uptime", help), up, uptime)?;
        let health = [(None, app.health())];
        to.states(
            "health",
            "What an upload would meet: 1 for the state it is in",
            health,
        )?;
        let ready = u64::from(app.check_ready().is_ok());
        to.gauge("ready", "Whether a new upload would be taken", ready)?;
        let limit = app.max_requests;
        let running = limit.saturating_sub(app.permits.available_permits());
        let count = |n: usize| n as u64;
        to.gauge("requests_running", "Requests in progress", count(running))?;
        to.gauge("requests_limit", "max_requests; more get 429", count(limit))?;
        let pool = &app.engine.pool;
        to.bytes("memory_used", "Part buffers in use", pool.in_use())?;
        to.bytes("memory_budget", "memory_budget", app.memory_budget)?;
        let waiting = count(pool.waiting());
        to.gauge("memory_waiting", "Requests that wait for memory", waiting)?;
        to.bytes(
            "spool_used",
            "Spooled ciphertext",
            app.engine.spool.in_use(),
        )?;
        if let Ok(backlog) = app.engine.catalog.backlog_now() {
            let (tickets, parked) = (backlog.tickets, backlog.parked);
            to.gauge("queue_tickets", "Objects that wait for the store", tickets)?;
            to.gauge("queue_parked", "Those that the store refused", parked)?;
            to.bytes("queue_used", "Their bytes in the spool", backlog.bytes)?;
            let oldest = [(Vec::new(), backlog.oldest.unwrap_or_default() / 1000)];
            let help = "Since when the oldest waits, Unix time; 0 if none does";
            let name = ("queue_oldest_timestamp", help);
            to.family(MetricType::Gauge, name, Some(&Unit::Seconds), oldest)?;
        }
        let grants = count(app.policy.current().len());
        to.gauge("grants", "Grants in force", grants)?;
        let commits = [(Vec::new(), app.engine.catalog.commits())];
        let help = "Transactions committed to the catalogue";
        to.family(
            MetricType::Counter,
            ("catalog_commits", help),
            None,
            commits,
        )
    }

    fn tokens(&self, to: &mut Encoder<'_>) -> fmt::Result {
        let tokens = self.0.engine.keyring.tokens();
        let health: Vec<_> = tokens
            .iter()
            .map(|(name, token)| (name.as_str(), token.health().borrow().as_str()))
            .collect();
        let states = health.iter().map(|(name, now)| (Some(*name), *now));
        to.states(
            "token_health",
            "A token's state: 1 for the one it is in",
            states,
        )?;
        let each = |value: fn(&crate::token::Token) -> u64| {
            tokens
                .iter()
                .map(move |(name, token)| (vec![("token", name.as_str())], value(token)))
        };
        to.family(
            MetricType::Gauge,
            (
                "token_calls_waiting",
                "Calls that wait for a worker or a free session",
            ),
            None,
            each(|token| token.waiting() as u64),
        )?;
        to.family(
            MetricType::Counter,
            ("token_workers", "Workers that were started for a token"),
            None,
            each(crate::token::Token::workers),
        )?;
        let calls: Vec<_> = tokens
            .iter()
            .flat_map(|(name, token)| token.calls().into_iter().map(move |calls| (name, calls)))
            .collect();
        let samples = calls.iter().map(|(name, calls)| {
            let labels = vec![
                ("token", name.as_str()),
                ("function", calls.function),
                ("result", calls.result),
            ];
            (labels, calls.count)
        });
        let help = "Calls of a PKCS#11 module by function and return code";
        to.family(MetricType::Counter, ("token_calls", help), None, samples)
    }

    fn keys(&self, to: &mut Encoder<'_>) -> fmt::Result {
        let keys = self.0.engine.keyring.keys();
        for (name, help, value) in [
            (
                "key_ready",
                "Whether a wrapping key can be used now",
                (|key| u64::from(key.ready)) as fn(&crate::api::KeyInfo) -> u64,
            ),
            (
                "key_wraps_used",
                "Wraps that this host may have made under a key",
                |key| key.wraps_used,
            ),
            (
                "key_wraps_limit",
                "Wraps that this host may make under a key",
                |key| key.wrap_limit,
            ),
        ] {
            let samples = keys
                .iter()
                .map(|key| (vec![("key", key.name.as_str())], value(key)));
            to.family(MetricType::Gauge, (name, help), None, samples)?;
        }
        Ok(())
    }

    fn audit(&self, to: &mut Encoder<'_>) -> fmt::Result {
        let standing = self.0.audit.standing();
        let healthy = u64::from(standing.trouble.is_none());
        to.gauge(
            "audit_healthy",
            "Whether the audit log can be written",
            healthy,
        )?;
        let records = [(Vec::new(), standing.tree.size)];
        let help = "Records in the audit log, those of former processes included";
        to.family(MetricType::Counter, ("audit_records", help), None, records)?;
        let covered = standing.last.map_or(0, |note| note.checkpoint.tree.size);
        let checkpoints = self.0.checkpoints.lock();
        let checkpoints = checkpoints.unwrap_or_else(|e| e.into_inner()).clone();
        for (name, help, value) in [
            (
                "audit_checkpoints_healthy",
                "Whether checkpoints that are due can be made",
                checkpoints.problem.is_none(),
            ),
            (
                "audit_anchor_healthy",
                "Whether checkpoints that are due can be anchored",
                checkpoints.anchor_problem.is_none(),
            ),
            (
                "audit_alarm",
                "Whether the log, or the catalogue, is behind what was anchored",
                checkpoints.alarm.is_some(),
            ),
        ] {
            to.gauge(name, help, u64::from(value))?;
        }
        let help = "Records that the last checkpoint does not cover";
        to.gauge(
            "audit_records_unsealed",
            help,
            standing.tree.size.saturating_sub(covered),
        )
    }

    fn store(&self, to: &mut Encoder<'_>) -> fmt::Result {
        let calls = self.0.engine.store.calls();
        for (name, help, value) in [
            (
                "store_requests",
                "Requests to S3 by operation and class of status, retries included",
                (|calls| calls.count) as fn(&crate::store::Calls) -> u64,
            ),
            (
                "store_retries",
                "Those of them that were sent again",
                |calls| calls.retries,
            ),
        ] {
            let samples = calls.iter().map(|calls| {
                let labels = vec![
                    ("operation", calls.operation.as_str()),
                    ("result", calls.result),
                ];
                (labels, value(calls))
            });
            to.family(MetricType::Counter, (name, help), None, samples)?;
        }
        Ok(())
    }
}
