//! Every PKCS#11 function that a token worker calls, made to fail in every
//! way that tokens and their libraries fail, while a client puts and gets.
//!
//! A *cell* is one function and one fault, at work or while a worker starts.
//! In each: what the client gets is success or a 503, in time; a refused put
//! leaves nothing in S3, and what was stored opens to what was put; no
//! rejected PIN is tried twice. When the fault is over, the next request works
//! within 5 s; what a person must mend is told within 5 s, and a reload after
//! mending it brings the token back.
//!
//! `cell`: one of them; `faults`: what is done and what it calls for.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod cell;
mod faults;

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::shim::*;

use cell::{Rig, Stage};
use faults::{Fault, faults};

/// Functions of a worker's start, each broken while one starts.
const AT_START: [Function; 19] = [
    C_Initialize,
    C_GetInfo,
    C_GetSlotList,
    C_GetTokenInfo,
    C_GetMechanismInfo,
    C_OpenSession,
    C_Login,
    C_GenerateRandom,
    C_FindObjectsInit,
    C_FindObjects,
    C_FindObjectsFinal,
    C_GetAttributeValue,
    C_EncryptInit,
    C_Encrypt,
    C_DecryptInit,
    C_Decrypt,
    C_GenerateKey,
    C_DestroyObject,
    C_GetSessionInfo,
];
/// Functions of a request, each broken while a worker serves.
const AT_WORK: [Function; 5] = [
    C_EncryptInit,
    C_Encrypt,
    C_DecryptInit,
    C_Decrypt,
    C_GenerateRandom,
];

/// Agents at a time. They wait more than they work.
const PARALLEL: usize = 12;

/// One agent's share: a function at one stage, or a part of its faults.
struct Row {
    stage: Stage,
    function: Function,
    faults: Vec<Fault>,
}

#[test]
fn whatever_a_token_does_nothing_is_lost_and_it_comes_back() {
    let rows: Vec<Row> = (AT_START.iter().map(|f| (Stage::Start, *f)))
        .chain(AT_WORK.iter().map(|f| (Stage::Work, *f)))
        .flat_map(|(stage, function)| {
            let all = faults(stage);
            // Two agents a function, so that the longest row is shorter.
            let half = all.len().div_ceil(2);
            let parts: Vec<_> = all.chunks(half).map(<[Fault]>::to_vec).collect();
            parts.into_iter().map(move |faults| Row {
                stage,
                function,
                faults,
            })
        })
        .collect();
    let only = std::env::var("STRONGROOM_TEST_CELL").unwrap_or_default();
    let (next, cells) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let never = Mutex::new(Vec::new());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let named = |fault: &&Fault| row.name(fault).contains(&only);
                    let faults: Vec<_> = row.faults.iter().filter(named).collect();
                    if faults.is_empty() {
                        continue;
                    }
                    let mut rig = Rig::new();
                    let mut happened = 0;
                    for fault in faults {
                        cells.fetch_add(1, Ordering::Relaxed);
                        match rig.run(row.stage, row.function, fault) {
                            Ok(seen) => happened += seen,
                            Err(why) => {
                                let text = format!("{}: {why}", row.name(fault));
                                println!("FAILED {text}\n{}", rig.recent_log());
                                failures.lock().unwrap().push(text);
                                rig = Rig::new();
                            }
                        }
                    }
                    if let Err(why) = rig.finish() {
                        failures.lock().unwrap().push(why);
                    }
                    if happened == 0 {
                        never.lock().unwrap().push(row.function.name());
                    }
                }
            });
        }
    });
    let (cells, failures) = (cells.into_inner(), failures.into_inner().unwrap());
    for failure in &failures {
        println!("{failure}");
    }
    println!("never called: {:?}", never.into_inner().unwrap());
    // Past the test runner, which shows nothing of a test that passes.
    let _ = writeln!(
        std::io::stderr(),
        "cells: {cells}, failed: {}",
        failures.len()
    );
    assert!(failures.is_empty() && (cells > 200 || !only.is_empty()));
}

/// What `verify_wraps` is for, and what there is without it: a probe notices
/// within 10 s that the key is not the key any longer.
#[test]
fn a_token_that_wraps_with_another_key_is_noticed_by_the_next_probe() {
    let mut rig = Rig::new();
    let plan = Plan::default()
        .always(C_EncryptInit, Action::SwapHandle("decoy".into()))
        .always(C_DecryptInit, Action::SwapHandle("decoy".into()));
    rig.is_noticed(&plan);
}

/// A data key that a token garbles once on its way out does not make an
/// intact object an altered one.
#[test]
fn a_data_key_garbled_once_is_asked_for_again() {
    let mut rig = Rig::new();
    rig.reads_in_spite_of(&Plan::default().once(C_Decrypt, Action::Corrupt));
    rig.reads_in_spite_of(&Plan::default().once(C_Decrypt, Action::Return(0x005)));
    rig.reads_in_spite_of(&Plan::default().once(C_Decrypt, Action::Return(0x040)));
}

impl Row {
    fn name(&self, fault: &Fault) -> String {
        format!("{:?} {} {}", self.stage, self.function.name(), fault.name)
    }
}
