//! Whole-process figures: Strongroom, and what people use instead of it, send
//! the same file to the same null store on this machine, in turns.
//!
//! `make bench` runs it and writes docs/benchmarks.md and its plots. What is
//! counted is what a client pays: the processor time of every process but the
//! store, so for Strongroom command, server, supervisor and token worker.
//! Figures of different runs are not compared: machines differ by the hour.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod contenders;
mod measure;
mod report;
mod small;
mod store;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;

use contenders::{Bench, Contender};
use measure::Sample;

/// Bytes of one GiB.
const GIB: u64 = 1 << 30;

/// What is asked for on the command line.
struct Options {
    /// Rounds of each contender; the median is reported.
    runs: usize,
    /// Bytes of the file.
    size: u64,
    /// Only contenders whose name has this in it.
    only: Option<String>,
    /// Where the report goes; nothing is written without it.
    write: Option<PathBuf>,
}

fn options() -> Options {
    let mut options = Options {
        runs: 5,
        size: GIB,
        only: None,
        write: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut next = || args.next().unwrap_or_else(|| panic!("{arg} wants a value"));
        match arg.as_str() {
            "--runs" => options.runs = next().parse().unwrap(),
            "--mib" => options.size = next().parse::<u64>().unwrap() << 20,
            "--only" => options.only = Some(next()),
            "--write" => options.write = Some(next().into()),
            // cargo's own.
            "--bench" => {}
            _ => panic!("{arg}: --runs N, --mib N, --only NAME, --write DIR"),
        }
    }
    options
}

fn main() {
    if let Some(role) = std::env::args().nth(1) {
        match role.as_str() {
            store::ROLE => return store::serve(),
            contenders::PLAIN => return contenders::plain_sdk(),
            _ => {}
        }
    }
    let options = options();
    let bench = Bench::new(options.size);
    let wanted = |contender: &&Contender| {
        let name = options.only.as_deref();
        name.is_none_or(|name| contender.name().contains(name))
    };
    let all: Vec<&Contender> = contenders::ALL.iter().filter(wanted).collect();
    let (present, absent): (Vec<_>, Vec<_>) = all.into_iter().partition(|c| bench.has(c));
    // One round that is not counted: files into the page cache, bytecode
    // compiled, connections made.
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); present.len()];
    for round in 0..=options.runs {
        for (contender, samples) in present.iter().zip(&mut samples) {
            let sample = bench.run(contender);
            eprintln!("{round} {:<28} {sample}", contender.name());
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let small = options
        .only
        .is_none()
        .then(|| small::run(&bench, options.runs));
    let rows: Vec<report::Row> = present
        .iter()
        .zip(samples)
        .map(|(contender, samples)| report::Row::new(contender, &samples, options.size))
        .collect();
    let absent: Vec<&str> = absent.iter().map(|contender| contender.name()).collect();
    let report = report::Report {
        rows,
        small,
        absent,
        size: options.size,
        runs: options.runs,
    };
    print!("{}", report.markdown());
    if let Some(dir) = &options.write {
        report.write(dir);
    }
}
