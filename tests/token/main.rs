//! The token layer against a real token: worker processes, gate, canary,
//! and what happens when each is wrong.
//!
//! Each test has a token directory of its own. The worker's environment is
//! set by a small script in its place, because the environment of this test
//! process is shared by all tests.
//!
//! `calls`: wrap, unwrap, random; `keys`: generation, gate, canary; `set_up`:
//! wrong modules, labels and PINs; `signing`: the audit key; `workers`: their
//! deaths and their walls;
//! `latency`: a token that takes its time.

#![allow(clippy::unwrap_used, missing_docs)]

mod calls;
mod hsm;
mod keys;
mod latency;
mod set_up;
mod signing;
#[path = "../support/mod.rs"]
mod support;
mod workers;

use std::collections::HashMap;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use strongroom::config;
use strongroom::secret::Secret32;
use strongroom::token::{
    self, Canary, CanaryStore, Health, KeySpec, Reserved, Stuck, Token, WrapCounts, WrapLedger,
};
use tokio::sync::mpsc;

use hsm::Hsm;

fn key(label: &str) -> KeySpec {
    KeySpec {
        name: label.into(),
        label: label.into(),
        imported: false,
    }
}

#[derive(Default)]
struct Store {
    canaries: Mutex<HashMap<String, Canary>>,
    wraps: Mutex<HashMap<String, u64>>,
}

impl CanaryStore for Store {
    fn load(&self, key: &str) -> Result<Option<Canary>, String> {
        Ok(self.canaries.lock().unwrap().get(key).cloned())
    }
    fn save(&self, key: &str, canary: &Canary) -> Result<bool, String> {
        let mut canaries = self.canaries.lock().unwrap();
        let new = !canaries.contains_key(key);
        canaries.entry(key.into()).or_insert_with(|| canary.clone());
        Ok(new)
    }
}

impl WrapLedger for Store {
    fn load(&self, key: &str) -> Result<Reserved, String> {
        self.reserve(key, 0)
    }
    fn reserve(&self, key: &str, wraps: u64) -> Result<Reserved, String> {
        let mut all = self.wraps.lock().unwrap();
        let total = all.entry(key.into()).or_default();
        *total += wraps;
        Ok(Reserved {
            total: *total,
            complete: true,
        })
    }
}

/// Rigs that exist, or [`ALONE`].
static RIGS: AtomicUsize = AtomicUsize::new(0);
/// One that measures time exists, and no other may.
const ALONE: usize = usize::MAX;

/// A token handle with its worker.
struct Rig {
    hsm: Hsm,
    token: Token,
    child: Child,
    store: Arc<Store>,
    counts: Arc<WrapCounts>,
    stuck: mpsc::Receiver<Stuck>,
}

impl Rig {
    async fn new(hsm: Hsm, keys: &[KeySpec]) -> Self {
        let config = hsm.config();
        Self::with(hsm, &config, keys).await
    }

    async fn with(hsm: Hsm, config: &config::Token, keys: &[KeySpec]) -> Self {
        Self::enter(|rigs| (rigs != ALONE).then(|| rigs + 1)).await;
        Self::start(hsm, config, keys).await
    }

    /// One beside which this program's other tests do not work.
    async fn alone(hsm: Hsm, config: &config::Token, keys: &[KeySpec]) -> Self {
        Self::enter(|rigs| (rigs == 0).then_some(ALONE)).await;
        Self::start(hsm, config, keys).await
    }

    /// Waits until `RIGS` may become what `next` says.
    async fn enter(next: impl Fn(usize) -> Option<usize>) {
        let (order, begun) = (Ordering::SeqCst, Instant::now());
        while RIGS.fetch_update(order, order, &next).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(300), "a rig stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn start(hsm: Hsm, config: &config::Token, keys: &[KeySpec]) -> Self {
        let store = Arc::new(Store::default());
        let (to, stuck) = mpsc::channel(16);
        let counts = Arc::new(WrapCounts::new(store.clone()));
        let timeout = config.call_timeout.duration();
        let token = Token::new("primary", timeout, store.clone(), counts.clone(), to);
        token.set_keys(keys.to_vec());
        let (child, link) = token::spawn(config, &hsm.exe).unwrap();
        token.attach(link, child.id());
        let rig = Self {
            hsm,
            token,
            child,
            store,
            counts,
            stuck,
        };
        rig.settled().await;
        rig
    }

    async fn settled(&self) {
        let mut health = self.token.health();
        let settled = health.wait_for(|h| !matches!(h, Health::Starting | Health::Recovering));
        tokio::time::timeout(Duration::from_secs(20), settled)
            .await
            .unwrap()
            .unwrap();
    }

    fn respawn(&mut self) {
        let config = self.hsm.config();
        self.respawn_with(&config);
    }

    fn respawn_with(&mut self, config: &config::Token) {
        self.kill();
        let (child, link) = token::spawn(config, &self.hsm.exe).unwrap();
        self.token.attach(link, child.id());
        self.child = child;
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end, without keeping the runtime from working.
    async fn exit_code(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the worker lives on");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
        if name == "STOP" {
            support::process::stopped(self.child.id());
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.kill();
        let less = |rigs| Some(if rigs == ALONE { 0 } else { rigs - 1 });
        let _ = RIGS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
    }
}

fn secret(byte: u8) -> Secret32 {
    Secret32::from_slice(&[byte; 32]).unwrap()
}
