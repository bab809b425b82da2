//! Starting: an agent until it is ready, a command until it has ended.

use std::cell::RefCell;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::Options;
use super::measure::Spread;
use super::rig::Rig;
use super::section::{Aim, Section};
use super::store::Store;
use super::support::{http, process};

/// Starts of each; they are short.
const STARTS: usize = 9;
const HELPS: usize = 50;
/// How often an agent that starts is asked whether it is ready.
const POLL: Duration = Duration::from_millis(2);
/// For how long.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run(store: &RefCell<Store>, _: &Options) -> Section {
    let mut rig = Rig::stopped(&store.borrow().http, |_| {});
    // The very first makes catalogue, audit log and canary.
    let mut ready: Vec<f64> = (0..=STARTS).map(|_| until_ready(&mut rig)).collect();
    let first = ready.remove(0);
    let helps = (0..=HELPS).map(|_| {
        let mut command = process::strongroom();
        command.arg("--help").stdout(Stdio::null());
        let begun = Instant::now();
        assert!(command.status().unwrap().success());
        begun.elapsed().as_secs_f64() * 1e3
    });
    let helps: Vec<f64> = helps.collect();
    let binary = std::fs::metadata(process::strongroom().get_program());
    let binary = binary.unwrap().len() as f64 / 1e6;
    let (ready, help) = (
        Spread::of(ready.into_iter()),
        Spread::of(helps.into_iter().skip(1)),
    );
    let text = format!(
        "| | |\n|---|---|\n| agent from start to ready, SoftHSM, ms | {ready:.0} |\n| the same, the very first with this state directory, ms | {first:.0} |\n| `strongroom --help`, ms | {help:.1} |\n| the stripped binary, MB | {binary:.1} |\n"
    );
    eprintln!("{text}");
    Section {
        title: "Starting",
        text,
        aims: vec![
            Aim::at_most("agent from start to ready", 200.0, ready.median, " ms"),
            Aim::at_most("`strongroom --help`", 10.0, help.median, " ms"),
            Aim::at_most("stripped binary", 25.0, binary, " MB"),
        ],
    }
}

/// Milliseconds from its start until it answers that it is ready.
fn until_ready(rig: &mut Rig) -> f64 {
    let socket = rig.agent.socket();
    let begun = Instant::now();
    rig.agent.launch();
    while !is_ready(&socket) {
        assert!(begun.elapsed() < PATIENCE, "{}", rig.agent.log());
        std::thread::sleep(POLL);
    }
    let elapsed = begun.elapsed().as_secs_f64() * 1e3;
    rig.agent.stop();
    elapsed
}

fn is_ready(socket: &Path) -> bool {
    let mut sink = std::io::sink();
    let reply = http::send(socket, "GET", "/v1/ready", &[], http::Body::None, &mut sink);
    reply.is_ok_and(|reply| reply.status == 200)
}
