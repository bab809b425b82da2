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
}
