//! Part sizes that grow and parts that are spooled, with limits so tiny that
//! a few megabytes reach what takes tebibytes in earnest: the real pipeline
//! and a real token worker, against a store that records every request.
//!
//! The pipeline runs in a child, this test binary again, since a soft token
//! finds its files by the process's environment.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use strongroom::api::{Error, ErrorKind, Receipt};
use strongroom::catalog::Catalog;
use strongroom::config::Config;
use strongroom::engine::{Engine, Settings};
use strongroom::get::{GetRequest, Wanted, get};
use strongroom::keyring::Keyring;
use strongroom::put::{Plaintext, PutRequest, put};
use strongroom::store::{Attributes, Limits, Place, Pool, Spool, Store};
use support::null_store::{NullStore, Op};
use support::{Agent, Hsm, Pattern, pattern, run, value};
use tokio::sync::{mpsc, watch};

/// Bytes of one KiB.
const KIB: u64 = 1 << 10;
/// Two parts of each size, from 16 KiB to 512 KiB and then 1 MiB.
const LIMITS: Limits = Limits {
    min_part: KIB,
    max_part: 1 << 20,
    max_parts: 40,
};
/// The first part's size, in bytes.
const PART: u64 = 16 * KIB;
/// The largest part kept in memory, in bytes.
const MEMORY_PART: u64 = 64 * KIB;
/// All memory for parts, in bytes: less than the larger parts by themselves.
const BUDGET: u64 = 400 * KIB;
/// Plaintext bytes of a frame.
const FRAME: u32 = 4096;

/// The variable that makes [`pipeline_child`] do something: a directory.
const CHILD: &str = "STRONGROOM_TEST_PIPELINE";
/// What it prints at its end.
const DONE: &str = "pipeline done";

/// Plaintext of a pattern, announced or not.
struct Source {
    pattern: Pattern,
    left: u64,
}

impl Source {
    fn new(seed: u64, len: u64) -> Self {
        Self {
            pattern: Pattern::new(seed, len),
            left: len,
        }
    }
}

impl Plaintext for Source {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        // Never as much as is asked for: pieces like a socket's.
        let room = into.len().min(10_007);
        let n = std::io::Read::read(&mut self.pattern, &mut into[..room]).unwrap();
        self.left -= n as u64;
        Ok(n)
    }

    async fn ended(&mut self) -> Result<bool, Error> {
        Ok(self.left == 0)
    }
}

#[test]
fn parts_grow_and_spool_within_tiny_limits() {
    let hsm = Hsm::new();
    let store = NullStore::start();
    // For its configuration file and directory; nothing of it runs.
    let agent = Agent::prepare(&hsm, support::Store::at(store.endpoint()), |config| {
        config["message"]["frame_length"] = value(i64::from(FRAME));
    });
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "pipeline_child", "--nocapture"])
        .env(CHILD, agent.dir())
        .env(hsm.kind().variable(), hsm.conf())
        .env("AWS_ACCESS_KEY_ID", "test-access-key")
        .env("AWS_SECRET_ACCESS_KEY", "test-secret-key")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let done = run(&mut command, b"").ok();
    assert!(done.text().contains(DONE), "{}{}", done.text(), done.stderr);

    // What the store saw of each object.
    let parts = |key: &str| -> Vec<u64> {
        let requests = store.requests();
        let path = format!("/bucket/{key}?");
        let mut parts: Vec<(u32, u64)> = requests
            .iter()
            .filter(|r| r.op == Op::Part && r.target.starts_with(&path))
            .map(|r| {
                let (_, rest) = r.target.split_once("partNumber=").unwrap();
                let number = rest.split('&').next().unwrap().parse().unwrap();
                (number, r.body_len)
            })
            .collect();
        // Several are in flight, and may come in any order.
        parts.sort_unstable();
        parts.into_iter().map(|(_, len)| len).collect()
    };

    let grown = parts("grown");
    println!("an unannounced 5 MiB: parts of {grown:?} bytes");
    let (last, full) = grown.split_last().unwrap();
    for (n, len) in full.iter().enumerate() {
        let target = (PART << (n / 2)).min(LIMITS.max_part);
        let frame = u64::from(FRAME) + 40;
        // Up to a frame more than the plan wants, never more than the store takes.
        let least = target.min(LIMITS.max_part - frame);
        let most = (target + frame).min(LIMITS.max_part);
        assert!((least..=most).contains(len), "part {}: {len}", n + 1);
    }
    assert!(*last > 0 && full.iter().filter(|len| **len > MEMORY_PART).count() >= 4);
    assert!(
        full.iter().any(|len| *len > BUDGET),
        "no part was larger than all memory"
    );
    assert!(full.len() > 12, "the largest size was not reached");

    let announced = parts("announced");
    println!("an announced 5 MiB: parts of {announced:?} bytes");
    let (last, full) = announced.split_last().unwrap();
    assert!(announced.len() <= 40 && full.iter().all(|len| *len > MEMORY_PART));
    // All but the last are as large as each other, to within the frame that
    // the header moves across a part's end.
    let (least, most) = (full.iter().min().unwrap(), full.iter().max().unwrap());
    assert!(most - least <= u64::from(FRAME) + 32 && last <= most);

    assert_eq!(store.keys(), ["bucket/announced", "bucket/grown"]);
    assert_eq!(store.open_uploads(), 0);
    assert_eq!(
        store.count(Op::Abort),
        2,
        "one for each that failed in its middle"
    );
}

/// Not a test by itself: the child of the one above.
#[test]
fn pipeline_child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(pipeline(&dir));
    println!("{DONE}");
}

struct Rig {
    engine: Arc<Engine>,
    audit: strongroom::audit::Audit,
    _cancel: watch::Sender<bool>,
    _stuck: mpsc::Receiver<strongroom::token::Stuck>,
    worker: std::process::Child,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.worker.kill();
        let _ = self.worker.wait();
    }
}

async fn rig(dir: &Path, spool_max: u64) -> Rig {
    let config = Config::load(&dir.join("strongroom.toml")).unwrap();
    let state = tempfile::tempdir_in(dir).unwrap().keep();
    let catalog = Catalog::open(&state).unwrap();
    let store = Store::connect(&config.s3, LIMITS).await.unwrap();
    let (stuck_to, stuck) = mpsc::channel(8);
    let (cancel, cancelled) = watch::channel(false);
    let keyring = Keyring::new(&config, Vec::new(), catalog.clone(), stuck_to);
    let token = &config.tokens[0];
    let binary = Path::new(env!("CARGO_BIN_EXE_strongroom"));
    let (worker, link) = strongroom::token::spawn(token, binary).unwrap();
    keyring
        .token(&token.name)
        .unwrap()
        .attach(link, worker.id());
    let settings = Settings {
        part_size: PART,
        memory_part: MEMORY_PART,
        concurrency: 2,
        ..Settings::new(&config, LIMITS)
    };
    let (audit, _) = strongroom::audit::Audit::start(
        strongroom::audit::Settings {
            dir: state.join("audit"),
            rotate: 1 << 20,
            also: None,
        },
        strongroom::audit::Identity::of_this_host(),
        strongroom::audit::Event::new(strongroom::audit::Kind::Start),
    )
    .unwrap();
    let pool = Pool::new(BUDGET);
    let spool = Spool::new(state, spool_max);
    let engine = Engine::new(keyring, store, catalog, pool, spool, settings, cancelled);
    for _ in 0..1000 {
        if engine.keyring.keys().iter().any(|key| key.ready) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Rig {
        engine,
        audit,
        _cancel: cancel,
        _stuck: stuck,
        worker,
    }
}

async fn store(rig: &Rig, key: &str, len: u64, announced: bool) -> Result<Receipt, Error> {
    let request = PutRequest {
        place: Place::new("bucket", key),
        attributes: Attributes::default(),
        context: Vec::new(),
        ring: None,
        rings: None,
        no_overwrite: false,
        length: announced.then_some(len),
    };
    let actor = strongroom::audit::Actor {
        uid: 0,
        gid: 0,
        pid: None,
        comm: None,
    };
    let mut op = rig.audit.op(strongroom::audit::Kind::Put, actor, key);
    let mut source = Source::new(len, len);
    let source = strongroom::put::Source::Stream(&mut source);
    let stored = put(&rig.engine, request, source, &mut op).await;
    assert_eq!(rig.engine.pool.in_use(), 0, "{key}: memory was kept");
    assert_eq!(rig.engine.spool.in_use(), 0, "{key}: spool was kept");
    stored
}

async fn fetch(rig: &Rig, key: &str, wanted: Wanted) -> Vec<u8> {
    let request = GetRequest {
        place: Place::new("bucket", key),
        version_id: None,
        wanted,
        allow_unbound: false,
        allow_uncommitted: false,
        bound_to: None,
        rings: None,
    };
    let (facts, mut body) = get(&rig.engine, request).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(bytes.len() as u64, facts.span.end - facts.span.start);
    bytes
}

async fn pipeline(dir: &Path) {
    let len = 5 << 20;
    let roomy = rig(dir, 64 << 20).await;
    for (key, announced) in [("grown", false), ("announced", true)] {
        let receipt = store(&roomy, key, len, announced).await.unwrap();
        assert_eq!(receipt.plaintext_size, len);
        let whole = pattern(len, len);
        assert!(fetch(&roomy, key, Wanted::Whole).await == whole, "{key}");
        let part = fetch(&roomy, key, Wanted::Span(1_000_000, Some(1_999_999))).await;
        assert!(part == whole[1_000_000..2_000_000], "{key}: a range");
    }
    // More than 40 parts of 1 MiB hold: refused at once where it is known,
    // else when the last part is full.
    for announced in [true, false] {
        let stored = store(&roomy, "too-long", 41 << 20, announced).await;
        let refused = stored.unwrap_err();
        println!("beyond the limits: {:?}: {refused}", refused.kind);
        let kinds = [ErrorKind::TooLarge, ErrorKind::Malformed];
        assert!(kinds.contains(&refused.kind), "{refused}");
    }
    // A spool that cannot hold one part fails the put, and only that.
    let tight = rig(dir, 100 * KIB).await;
    for announced in [true, false] {
        let error = store(&tight, "spool", len, announced).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::SpoolFull, "{error}");
    }
}
