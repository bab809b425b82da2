//! Worker processes: what happens when one dies or hangs, and what it alone
//! holds.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use strongroom::token::{Health, TokenError, worker};

use crate::hsm::{Hsm, PIN, SO_PIN};
use crate::support::TokenKind;
use crate::{Rig, key, secret};

#[tokio::test]
async fn a_killed_worker_is_replaced_and_requests_in_flight_get_a_temporary_error() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    let wrapped = rig.token.wrap("archive", &secret(5), b"x").await.unwrap();
    // Stopped, so that requests are surely in flight when it dies.
    rig.signal("STOP");
    let token = rig.token.clone();
    let in_flight = tokio::spawn(async move { token.wrap("archive", &secret(6), b"x").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    rig.kill();
    let error = in_flight.await.unwrap().unwrap_err();
    assert!(matches!(error, TokenError::Away { .. }), "{error:?}");
    // A request that arrives meanwhile waits for the new worker.
    let token = rig.token.clone();
    let waiting = tokio::spawn(async move {
        token
            .unwrap("archive", &wrapped.iv, &wrapped.ciphertext, b"x")
            .await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.token.status().health, "recovering");
    rig.respawn();
    assert_eq!(waiting.await.unwrap().unwrap().expose(), &[5; 32]);
    // Nobody comes: away, within call_timeout.
    rig.kill();
    let begun = Instant::now();
    let error = rig
        .token
        .wrap("archive", &secret(6), b"x")
        .await
        .unwrap_err();
    assert!(matches!(error, TokenError::Away { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_stuck_worker_fails_its_callers_in_time_and_is_reported() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    rig.signal("STOP");
    let begun = Instant::now();
    let error = rig
        .token
        .wrap("archive", &secret(6), b"x")
        .await
        .unwrap_err();
    assert_eq!(error, TokenError::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(4));
    let stuck = rig.stuck.recv().await.unwrap();
    assert_eq!(
        (stuck.token.as_str(), stuck.pid),
        ("primary", rig.child.id())
    );
    rig.respawn();
    rig.token.wrap("archive", &secret(6), b"x").await.unwrap();
}

#[tokio::test]
async fn rule_24_the_module_and_the_pin_are_in_the_worker_alone() {
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
    let maps = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    assert!(
        !maps(std::process::id()).contains(rig.hsm.kind.mapped()),
        "the module is mapped here"
    );
    let worker = rig.child.id();
    // Only root can look into a process that is not dumpable.
    if std::fs::read(format!("/proc/{worker}/environ")).is_ok() {
        assert!(maps(worker).contains(rig.hsm.kind.mapped()));
    }
    for pid in [std::process::id(), worker] {
        for file in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(
                !text.contains(PIN) && !text.contains(SO_PIN),
                "{pid}/{file}"
            );
            assert!(pid != worker || !text.contains("PATH="), "rule 27: {text}");
        }
    }
    // Nothing inherited: the link, and what the module opens (a log's socket).
    // The worker's threads hold the link more than once, so sockets are told
    // apart by their inodes.
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{worker}/fd"))
        .map(|dir| {
            dir.flatten()
                .filter_map(|fd| std::fs::read_link(fd.path()).ok())
                .collect()
        })
        .unwrap_or_default();
    let sockets: HashSet<_> = open
        .iter()
        .filter(|to| to.to_string_lossy().starts_with("socket:"))
        .collect();
    assert!(sockets.len() <= 2, "{open:?}");
    // The end of the link is the end of the worker.
    rig.token.down(Health::Down, "test", None);
    assert_eq!(rig.exit_code().await, Some(i32::from(worker::LINK_CLOSED)));
}

#[tokio::test]
async fn a_broken_token_directory_ends_the_worker_with_its_code() {
    if !TokenKind::SoftHsm.is_only("Kryoptic keeps its file open, and works on wherever it is") {
        return;
    }
    let hsm = Hsm::new();
    hsm.generate("archive");
    let mut rig = Rig::new(hsm, &[key("archive")]).await;
    std::fs::rename(rig.hsm.path("tokens"), rig.hsm.path("away")).unwrap();
    // SoftHSM notices on one call or another.
    for _ in 0..20 {
        if rig.child.try_wait().unwrap().is_some() {
            break;
        }
        let _ = rig.token.wrap("archive", &secret(1), b"x").await;
        rig.token.set_keys(vec![key("archive"), key("other")]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    std::fs::rename(rig.hsm.path("away"), rig.hsm.path("tokens")).unwrap();
    rig.respawn();
    rig.token.set_keys(vec![key("archive")]);
    rig.token.wrap("archive", &secret(1), b"x").await.unwrap();
}
