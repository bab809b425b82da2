//! Campaigns: what a token does in months, in minutes and under load.
//!
//! `restarts`: workers killed and token directories that vanish, again and
//! again; `corrupt`: an object that does not open, read in a loop; `pin`: a
//! wrong PIN, and everything restarted; `crash`: a module that aborts; `calls`:
//! what a request costs the token.
//!
//! With STRONGROOM_SOAK=1 at full size, else at one that a continuous
//! integration can bear; each says which, and prints what it counted.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod clients;
mod corrupt;
mod crash;
mod pin;
mod restarts;

use std::time::Duration;

use strongroom::api::TokenStatus;
use support::process::eventually;
use support::{Agent, hsm};

/// One number at full size, another otherwise.
fn sized<T: std::fmt::Debug>(full: T, reduced: T) -> T {
    let soak = std::env::var_os("STRONGROOM_SOAK").is_some_and(|v| v == "1");
    let (size, name) = match soak {
        true => (full, "full"),
        false => (reduced, "reduced, STRONGROOM_SOAK=1 for all"),
    };
    println!("{size:?} ({name})");
    size
}

/// The token of this name.
fn token(agent: &Agent, name: &str) -> Option<TokenStatus> {
    let tokens = agent.try_status()?.tokens;
    tokens.into_iter().find(|token| token.name == name)
}

/// The worker of [`hsm::TOKEN`], once it serves with one.
#[track_caller]
fn worker(agent: &Agent) -> u32 {
    let found = eventually(Duration::from_secs(60), || {
        let token = token(agent, hsm::TOKEN)?;
        token.worker_pid.filter(|_| token.health == "ready")
    });
    found.unwrap_or_else(|| {
        let tokens = agent.try_status().map(|status| status.tokens);
        panic!("the token is not ready: {tokens:?}\n{}", agent.log())
    })
}
