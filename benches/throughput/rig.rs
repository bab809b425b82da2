//! An agent with a token, before the null store.

use super::store::Store;
use super::support::{self, Agent, DocumentMut, Hsm, value};

/// A running agent; token and agent end with it.
pub struct Rig {
    pub agent: Agent,
    _hsm: Hsm,
}

impl Rig {
    /// Over http, without signing payloads: what a site does whose channel to
    /// the store is protected otherwise.
    pub fn start(endpoint: &str, change: impl FnOnce(&mut DocumentMut)) -> Self {
        Self::with(endpoint, |config| {
            config["s3"]["payload_signing"] = value("never");
            change(config);
        })
    }

    /// Over TLS, with the defaults.
    pub fn over_tls(store: &Store) -> Self {
        let authority = store.authority.path().display().to_string();
        Self::with(&store.https, |config| {
            config["s3"]["ca_bundle"] = value(authority);
        })
    }

    fn with(endpoint: &str, change: impl FnOnce(&mut DocumentMut)) -> Self {
        let mut rig = Self::stopped(endpoint, change);
        rig.agent.launch();
        rig.agent.await_ready().unwrap();
        rig
    }

    /// Not started yet.
    pub fn stopped(endpoint: &str, change: impl FnOnce(&mut DocumentMut)) -> Self {
        let hsm = Hsm::new();
        let mut agent = Agent::prepare(&hsm, support::Store::at(endpoint), change);
        agent.set("STRONGROOM_LOG", "info");
        Self { agent, _hsm: hsm }
    }

    /// The sum of a metric's values whose labels have `label` in them.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.agent.http("GET", "/v1/metrics", &[], b"").text();
        let of = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.starts_with(['{', ' ']) || labels.is_empty())
                .then_some(())
                .filter(|()| labels.contains(label))?;
            value.parse::<f64>().ok()
        };
        text.lines().filter_map(of).sum()
    }
}
