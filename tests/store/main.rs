//! The store module against a store that fails in every way we know of.
//!
//! `wire`: requests as they are sent; `uploads` and `faults`: writing, and what
//! goes wrong with it; `reads`: pinned and ranged; `buckets`: probes, listings,
//! slots.
#![allow(clippy::unwrap_used)]

mod buckets;
mod faults;
#[path = "../support/null_store.rs"]
mod null_store;
#[path = "../support/null_tls.rs"]
mod null_tls;
mod reads;
mod uploads;
mod wire;

use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use null_store::NullStore;
use strongroom::config::S3;
use strongroom::store::{
    Attributes, Limits, METADATA_MESSAGE_ID, PartBody, Place, Store, Timing, Upload,
};

const MIB: u64 = 1 << 20;
const TINY: Limits = Limits {
    min_part: 16,
    max_part: 1 << 20,
    max_parts: 20,
};
const QUICK: Timing = Timing {
    connect: Duration::from_millis(500),
    stall: Duration::from_millis(500),
    answer: Duration::from_millis(1500),
    complete: Duration::from_millis(1500),
    backoff: Duration::from_millis(1),
    slowest: 1 << 30,
};

fn credentials() {
    static ONCE: Once = Once::new();
    // SAFETY: every test comes through here before it reads the environment,
    // and nothing writes to it afterwards.
    #[allow(unsafe_code, reason = "the SDK takes credentials from the environment")]
    ONCE.call_once(|| unsafe {
        std::env::set_var("AWS_ACCESS_KEY_ID", "test-access");
        std::env::set_var("AWS_SECRET_ACCESS_KEY", "test-secret");
        std::env::set_var("AWS_EC2_METADATA_DISABLED", "true");
        std::env::set_var("AWS_ENDPOINT_URL", "http://192.0.2.1:1");
    });
}

async fn store_with(null: &NullStore, change: impl FnOnce(&mut S3)) -> Store {
    credentials();
    let mut config = S3 {
        region: Some("eu-central-1".into()),
        endpoint_url: Some(null.endpoint()),
        force_path_style: true,
        ..S3::default()
    };
    change(&mut config);
    Store::connect_with(&config, TINY, QUICK).await.unwrap()
}

async fn start() -> (NullStore, Store) {
    let null = NullStore::start();
    let store = store_with(&null, |_| {}).await;
    (null, store)
}

fn place() -> Place {
    Place::new("bucket", "key")
}

fn ours(id: &str) -> Attributes {
    Attributes {
        metadata: vec![(METADATA_MESSAGE_ID.into(), id.into())],
        if_none_match: true,
        ..Attributes::default()
    }
}

fn memory(len: usize, seed: u8) -> PartBody {
    PartBody::Memory(bytes(len, seed))
}

fn bytes(len: usize, seed: u8) -> Bytes {
    (0..len)
        .map(|i| u8::try_from(i % 253).unwrap() ^ seed)
        .collect()
}

/// Begins an upload and sends three parts; what `complete` must yield.
async fn three_parts(store: &Store, attributes: &Attributes) -> (Upload, Vec<u8>) {
    let mut upload = store.begin(&place(), attributes, 2).await.unwrap();
    let mut whole = Vec::new();
    for (seed, len) in [(1, 100_000), (2, 100_000), (3, 7)] {
        upload.send(memory(len, seed)).await.unwrap();
        whole.extend_from_slice(&bytes(len, seed));
    }
    (upload, whole)
}
