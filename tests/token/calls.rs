//! What a working token does: wrap, unwrap, random bytes.

use std::time::{Duration, Instant};

use strongroom::config;
use strongroom::token::{Health, TokenError};

use crate::hsm::Hsm;
use crate::{Rig, key, secret};

#[tokio::test]
async fn data_keys_are_wrapped_and_unwrapped_and_each_wrap_has_its_own_iv() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let rig = Rig::new(hsm, &[key("archive")]).await;
    assert_eq!(
        *rig.token.health().borrow(),
        Health::Ready,
        "{:?}",
        rig.token.status()
    );
    let status = rig.token.status();
    assert!(
        status.soft && status.worker_pid == Some(rig.child.id()),
        "{status:?}"
    );
    let state = &rig.token.keys()[0];
    assert!(state.ready && state.problem.is_none() && !state.attributes.is_empty());
    let mut ivs = std::collections::HashSet::new();
    for aad in [&b"context"[..], b"", &[7; 16_000]] {
        for _ in 0..50 {
            let wrapped = rig.token.wrap("archive", &secret(1), aad).await.unwrap();
            assert!(ivs.insert(wrapped.iv), "rule 17: a repeated IV");
            let opened = rig
                .token
                .unwrap("archive", &wrapped.iv, &wrapped.ciphertext, aad)
                .await;
            assert_eq!(opened.unwrap().expose(), &[1; 32]);
        }
    }
    rig.token.probe().await.unwrap();
    assert!(rig.token.last_proof().unwrap().elapsed() < Duration::from_secs(5));
    let unknown = rig.token.wrap("other", &secret(1), b"").await.unwrap_err();
    assert_eq!(unknown, TokenError::UnknownKey("other".into()));
    let long = rig
        .token
        .wrap("archive", &secret(1), &[0; 70_000])
        .await
        .unwrap_err();
    assert!(matches!(long, TokenError::Rejected { .. }), "{long:?}");
}

#[tokio::test]
async fn a_corrupt_data_key_fails_alone_and_the_worker_stays() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let rig = Rig::new(hsm, &[key("archive")]).await;
    let good = rig
        .token
        .wrap("archive", &secret(9), b"context")
        .await
        .unwrap();
    let token = rig.token.clone();
    let parallel = tokio::spawn(async move {
        for _ in 0..500 {
            token.wrap("archive", &secret(2), b"context").await.unwrap();
        }
    });
    for round in 0..200 {
        let (mut iv, mut ciphertext, mut aad) = (good.iv, good.ciphertext.to_vec(), *b"context");
        match round % 4 {
            0 => iv[round % 12] ^= 1,
            1 => ciphertext[round % 48] ^= 1,
            2 => aad[round % 7] ^= 1,
            _ => drop(ciphertext.pop()),
        }
        let error = rig
            .token
            .unwrap("archive", &iv, &ciphertext, &aad)
            .await
            .err()
            .unwrap();
        assert_eq!(error, TokenError::BadCiphertext);
    }
    parallel.await.unwrap();
    assert_eq!(rig.token.status().worker_pid, Some(rig.child.id()));
}

#[tokio::test]
async fn random_bytes_come_once() {
    let rig = Rig::new(Hsm::new(), &[]).await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        assert!(seen.insert(*rig.token.random().await.unwrap().expose()));
    }
}

/// `cargo test --release --test token -- --ignored --nocapture throughput`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let config = config::Token {
        sessions: 16,
        ..hsm.config()
    };
    let rig = Rig::with(hsm, &config, &[key("archive")]).await;
    let aad = [7; 150];
    let begun = Instant::now();
    for _ in 0..2000 {
        rig.token.wrap("archive", &secret(1), &aad).await.unwrap();
    }
    println!("one at a time: {:?} a wrap", begun.elapsed() / 2000);
    for clients in [8, 16, 64] {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|_| {
                let token = rig.token.clone();
                tokio::spawn(async move {
                    for _ in 0..20_000 / clients {
                        token.wrap("archive", &secret(1), &aad).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let rate = 20_000.0 / begun.elapsed().as_secs_f64();
        println!("{clients} callers, 16 sessions: {rate:.0} wraps/s");
    }
}
