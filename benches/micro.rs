//! The pieces of a put and a get by themselves: frames, headers, and the token
//! behind its worker.
//!
//! `cargo bench --bench micro`; `make bench` puts the medians into
//! docs/benchmarks.md.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code)]

#[path = "../tests/token/hsm.rs"]
mod hsm;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use strongroom::message::{Context, DataKey, Draft, Edk, Header, Opener, Parsed, Permit, Sealer};
use strongroom::secret::Secret32;
use strongroom::token::{
    self, Canary, CanaryStore, Health, KeySpec, Reserved, Token, WrapCounts, WrapLedger,
};
use tokio::sync::mpsc;

/// Plaintext bytes of a frame: the least, two common ones, our default, large.
const FRAMES: [u32; 5] = [4 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20];

fn main() {
    let mut criterion = Criterion::default()
        .without_plots()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    ciphers(&mut criterion);
    frames(&mut criterion);
    headers(&mut criterion);
    keys(&mut criterion);
    criterion.final_summary();
}

/// A message's header, sealer and opener. The EDK is any 48 bytes: what opens
/// it is not asked here.
fn message(frame_length: u32) -> (Vec<u8>, Sealer, Opener) {
    let key = DataKey::fresh(&Secret32::random().unwrap()).unwrap();
    let mut context = Context::new();
    for (name, value) in [
        ("strongroom:bucket", "acme-archive"),
        ("strongroom:key", "db/2026-11-22/customers.dump"),
        ("strongroom:created", "1700000000000"),
    ] {
        context.insert(name, value).unwrap();
    }
    let mut draft = Draft::new(key, context, frame_length).unwrap();
    draft
        .add_edk(Edk::raw_aes("archive-2026", &[1; 12], &[2; 48]).unwrap())
        .unwrap();
    let secret = Secret32::from_slice(draft.data_key().expose()).unwrap();
    let (header, sealer) = draft.seal().unwrap();
    let opener = parsed(&header)
        .verify(DataKey::unwrapped(secret), &Context::new())
        .unwrap();
    (header.to_vec(), sealer, opener)
}

fn parsed(bytes: &[u8]) -> Header {
    match Header::parse(bytes, Permit::default()).unwrap() {
        Parsed::Header(header) => *header,
        Parsed::NeedMore => panic!("it is whole"),
    }
}

/// AES-256-GCM of a frame of our default length, by three libraries: the first
/// is the one that was chosen.
fn ciphers(criterion: &mut Criterion) {
    use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
    let (key, mut text) = ([7; 32], vec![7; 256 << 10]);
    let mut group = criterion.benchmark_group("AES-256-GCM of 256 KiB");
    group.throughput(Throughput::Bytes(text.len() as u64));
    // One IV for all of it: nobody gets what is sealed here.
    let iv = [1; 12];
    let aws_lc = aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, &key).unwrap();
    let aws_lc = aws_lc_rs::aead::LessSafeKey::new(aws_lc);
    group.bench_function("aws-lc-rs", |b| {
        b.iter(|| {
            let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(iv);
            aws_lc
                .seal_in_place_separate_tag(nonce, aws_lc_rs::aead::Aad::empty(), &mut text)
                .unwrap()
        });
    });
    let ring = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, &key).unwrap();
    let ring = ring::aead::LessSafeKey::new(ring);
    group.bench_function("ring", |b| {
        b.iter(|| {
            let nonce = ring::aead::Nonce::assume_unique_for_key(iv);
            ring.seal_in_place_separate_tag(nonce, ring::aead::Aad::empty(), &mut text)
                .unwrap()
        });
    });
    let rust = aes_gcm::Aes256Gcm::new_from_slice(&key).unwrap();
    group.bench_function("aes-gcm", |b| {
        b.iter(|| {
            rust.encrypt_inout_detached(&iv.into(), &[], text.as_mut_slice().into())
                .unwrap()
        });
    });
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    for (name, seals) in [("seal a frame", true), ("open a frame", false)] {
        let mut group = criterion.benchmark_group(name);
        for length in FRAMES {
            let (header, mut sealer, opener) = message(length);
            let text = usize::try_from(length).unwrap();
            let mut frame = vec![7; Sealer::FRAME_HEAD + text + Sealer::TAG_LEN];
            group.throughput(Throughput::Bytes(length.into()));
            let id = BenchmarkId::from_parameter(format!("{} KiB", length >> 10));
            if seals {
                group.bench_function(id, |b| b.iter(|| sealer.seal_frame(&mut frame).unwrap()));
                continue;
            }
            sealer.seal_frame(&mut frame).unwrap();
            let end = Sealer::FINAL_HEAD + Sealer::TAG_LEN;
            let layout = opener.layout((header.len() + frame.len() + end) as u64);
            let layout = layout.unwrap();
            // Opened in place: each time a copy, which is not measured.
            group.bench_function(id, |b| {
                b.iter_batched_ref(
                    || frame.clone(),
                    |frame| opener.open_frame(&layout, 1, frame).unwrap(),
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

fn headers(criterion: &mut Criterion) {
    let (header, ..) = message(256 << 10);
    let mut group = criterion.benchmark_group("header");
    group.bench_function("parse", |b| b.iter(|| parsed(&header)));
    group.bench_function("make, with a new data key", |b| {
        b.iter(|| message(256 << 10).0)
    });
    group.finish();
}

/// No canary, no count: nothing here survives.
struct Nothing;

impl CanaryStore for Nothing {
    fn load(&self, _: &str) -> Result<Option<Canary>, String> {
        Ok(None)
    }
    fn save(&self, _: &str, _: &Canary) -> Result<bool, String> {
        Ok(true)
    }
}

impl WrapLedger for Nothing {
    fn load(&self, _: &str) -> Result<Reserved, String> {
        self.reserve("", 0)
    }
    fn reserve(&self, _: &str, wraps: u64) -> Result<Reserved, String> {
        Ok(Reserved {
            total: wraps,
            complete: true,
        })
    }
}

fn keys(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let hsm = hsm::Hsm::new();
    hsm.generate("archive");
    let (to, _stuck) = mpsc::channel(16);
    let mut config = hsm.config();
    config.sessions = 16;
    let timeout = config.call_timeout.duration();
    let counts = Arc::new(WrapCounts::new(Arc::new(Nothing)));
    let (token, mut child) = runtime.block_on(async {
        let token = Token::new("primary", timeout, Arc::new(Nothing), counts, to);
        token.set_keys(vec![KeySpec {
            name: "archive".into(),
            label: "archive".into(),
            imported: false,
        }]);
        let (child, link) = token::spawn(&config, &hsm.exe).unwrap();
        token.attach(link, child.id());
        let mut health = token.health();
        let ready = health.wait_for(|h| *h == Health::Ready);
        let ready = tokio::time::timeout(Duration::from_secs(20), ready).await;
        ready.unwrap().unwrap();
        (token, child)
    });
    let secret = Secret32::random().unwrap();
    let aad = [7; 150];
    let wrap = || async { token.wrap("archive", &secret, &aad).await.unwrap() };
    let wrapped = runtime.block_on(wrap());
    let unwrap = || async {
        let (iv, ciphertext) = (&wrapped.iv, &wrapped.ciphertext);
        let opened = token.unwrap("archive", iv, ciphertext, &aad).await;
        opened.unwrap();
    };
    let mut group = criterion.benchmark_group("a data key, through the worker");
    group.bench_function("wrap", |b| {
        b.iter(|| runtime.block_on(wrap()));
    });
    group.bench_function("unwrap", |b| {
        b.iter(|| runtime.block_on(unwrap()));
    });
    group.finish();
    let _ = child.kill();
    let _ = child.wait();
}
