//! Listing very many objects: what the agent and the command keep of them.

use std::cell::RefCell;
use std::fmt::Write as _;

use super::measure;
use super::rig::Rig;
use super::section::{Aim, Section};
use super::store::Store;
use super::support::process::Process;
use super::{BUCKET, Options};

const MIB: f64 = (1 << 20) as f64;
/// How much more memory a hundred times the objects may take: what an
/// allocator keeps for itself varies by that much from run to run.
const FLAT: f64 = 4.0;

pub fn run(store: &RefCell<Store>, _: &Options) -> Section {
    let rig = Rig::start(&store.borrow().http, |_| {});
    let processes = rig.agent.processes();
    let counts = [10_000, 1_000_000];
    for count in counts {
        let prefix = format!("{BUCKET}/list-{count}/");
        store.borrow_mut().plant(&prefix, count, 1 << 20);
    }
    let mut text = String::from(
        "| objects | seconds | S3 requests | peak of the agent, MiB | peak of the command, MiB |\n|---|---|---|---|---|\n",
    );
    let mut peaks = Vec::new();
    for count in [counts[0], counts[0], counts[1]] {
        let place = format!("s3://{BUCKET}/list-{count}/");
        store.borrow_mut().count();
        let mut command = rig.agent.command(["ls", "--recursive", &place]);
        let sample = measure::run(&mut command, &processes).unwrap();
        let agent = processes.iter().map(Process::peak_memory).sum::<u64>();
        let command = sample.peak.saturating_sub(agent) as f64 / MIB;
        let agent = agent as f64 / MIB;
        let requests = store.borrow_mut().count().requests;
        eprintln!("{count} listed: {sample}");
        // The first is to warm up.
        peaks.push((count, agent, command, sample.wall, requests));
    }
    for (count, agent, command, wall, requests) in &peaks[1..] {
        let _ = writeln!(
            text,
            "| {count} | {:.2} | {requests} | {agent:.1} | {command:.1} |",
            wall.as_secs_f64()
        );
    }
    let [_, few, many] = peaks[..] else {
        unreachable!()
    };
    Section {
        title: "Listing",
        text,
        aims: vec![
            Aim::at_most(
                "agent's memory for 1,000,000 objects listed, beyond that for 10,000",
                FLAT,
                (many.1 - few.1).max(0.0),
                " MiB",
            ),
            Aim::at_most(
                "the command's memory for the same",
                FLAT,
                (many.2 - few.2).max(0.0),
                " MiB",
            ),
        ],
    }
}
