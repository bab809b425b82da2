//! Whether a GiB costs the same in a long file as in a short one.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::File;

use super::measure::{self, Spread};
use super::rig::Rig;
use super::section::{Aim, Section};
use super::store::Store;
use super::{BUCKET, GIB, Options};

pub fn run(store: &RefCell<Store>, options: &Options) -> Section {
    let rig = Rig::start(&store.borrow().http, |_| {});
    let processes = rig.agent.processes();
    let (long, runs) = if options.full { (20, 3) } else { (4, 3) };
    // Holes: they read as zeros, and take no memory.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let sizes = [1, long];
    for gib in sizes {
        let file = File::create(dir.path().join(gib.to_string())).unwrap();
        file.set_len(gib * GIB).unwrap();
    }
    let mut samples: [Vec<measure::Sample>; 2] = Default::default();
    for round in 0..=runs {
        for (gib, samples) in sizes.into_iter().zip(&mut samples) {
            let file = dir.path().join(gib.to_string()).display().to_string();
            let object = format!("s3://{BUCKET}/linear");
            let mut command = rig.agent.command(["-q", "put", &file, &object]);
            let mut sample = measure::run(&mut command, &processes).unwrap();
            sample.bytes = gib * GIB;
            eprintln!("{round} {gib} GiB: {sample}");
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    store.borrow_mut().count();
    let mut text = String::from("| file | CPU-s/GiB | GiB/s |\n|---|---|---|\n");
    let mut medians = Vec::new();
    for (gib, samples) in sizes.into_iter().zip(&samples) {
        let cost = Spread::of(samples.iter().map(measure::Sample::cost));
        let rate = Spread::of(samples.iter().map(measure::Sample::rate));
        medians.push(cost.median);
        let _ = writeln!(text, "| {gib} GiB of zeros | {cost:.3} | {rate} |");
    }
    let ratio = medians[1] / medians[0];
    let _ = writeln!(
        text,
        "\nA GiB of the long one costs {ratio:.2} times as much."
    );
    Section {
        title: "Long files",
        text,
        aims: vec![Aim::at_most(
            format!("CPU-s/GiB at {long} GiB, times that at 1 GiB"),
            1.1,
            ratio,
            "",
        )],
    }
}
