//! Done-when 6: a wrong PIN costs one login, whatever is restarted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::http::{Body, send};
use crate::support::process::{eventually, signal};
use crate::support::shim::*;
use crate::support::{Agent, Hsm, Weed, hsm};
use crate::{sized, worker};

#[test]
fn rule_22_a_wrong_pin_costs_one_login_whatever_is_tried_and_restarted() {
    let time = sized(Duration::from_secs(60), Duration::from_secs(12));
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let shim = Shim::new(&hsm::module());
    let bucket = weed.bucket("pin");
    let right = hsm.pin();
    hsm.write_pin(&hsm.pin_file(), "999999999999");
    let mut agent = Agent::prepare(&hsm, weed, |config| shim.configure(config));
    agent.launch();
    locked(&agent);

    let (stop, refused, away) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let (socket, target) = (agent.socket(), format!("/v1/objects/{bucket}/k"));
    let mut respawns = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let (body, mut sink) = (Body::Bytes(b"x"), std::io::sink());
                    match send(&socket, "PUT", &target, &[], body, &mut sink) {
                        Ok(reply) => {
                            assert_eq!(reply.status, 503);
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        // While there is no agent, or a new server.
                        Err(_) => drop(away.fetch_add(1, Ordering::Relaxed)),
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
        for respawn in ["stop", "server", "kill", "server", "stop", "reload"] {
            std::thread::sleep(time / 7);
            match respawn {
                "stop" => {
                    agent.stop();
                    agent.launch();
                }
                "server" => signal(agent.server().pid, Signal::KILL),
                "kill" => {
                    agent.kill();
                    agent.launch();
                }
                // Nothing has changed: nothing is to be tried.
                _ => agent.signal(Signal::HUP),
            }
            locked(&agent);
            respawns.push(respawn);
        }
        std::thread::sleep(time / 7);
        stop.store(true, Ordering::Relaxed);
    });
    let (refused, away) = (refused.into_inner(), away.into_inner());
    let logins = (shim.calls(C_Login), shim.rejected());
    crate::support::tell(&format!(
        "{time:?}: {refused} puts got 503, {away} found no server; then {respawns:?}: \
         {} C_Login, {} refused",
        logins.0, logins.1
    ));
    assert_eq!(logins, (1, 1));
    assert!(refused > 50);

    hsm.write_pin(&hsm.pin_file(), &right);
    agent.signal(Signal::HUP);
    worker(&agent);
    let put = agent.http("PUT", &target, &[], b"x");
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!((shim.calls(C_Login), shim.rejected()), (2, 1));
    assert_eq!(weed.list(&bucket, ""), ["k"]);
}

/// Status says `locked`, and what to do.
#[track_caller]
fn locked(agent: &Agent) {
    let told = eventually(Duration::from_secs(20), || {
        let token = agent.try_status()?.tokens.remove(0);
        let hint = token.hint.unwrap_or_default();
        (token.health == "locked" && hint.contains("correct the PIN file")).then_some(())
    });
    assert!(told.is_some(), "{:?}\n{}", agent.try_status(), agent.log());
}
