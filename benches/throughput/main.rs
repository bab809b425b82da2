//! Whole-process figures: Strongroom, and what people use instead of it, send
//! the same file to the same null store on this machine, in turns; then what
//! the large file does not show: small objects, ranges, memory, long files,
//! listings, starts.
//!
//! `make bench` runs it and writes docs/benchmarks.md and its plot. What is
//! counted is what a client pays: the processor time of every process but the
//! store, so for Strongroom command, server, supervisor and token worker.
//! Figures of different runs are not compared: machines differ by the hour.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod contenders;
mod linear;
mod list;
mod machine;
mod measure;
mod memory;
mod micro;
mod plain_sdk;
mod plot;
mod range;
mod report;
mod rig;
mod section;
mod small;
mod start;
mod store;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::path::PathBuf;

use contenders::{Bench, Contender};
use report::{Report, Row};
use store::Store;

/// Bytes of one GiB.
const GIB: u64 = 1 << 30;
/// The bucket of everything.
const BUCKET: &str = "bench";

const USAGE: &str = "\
usage: cargo bench --bench throughput -- [OPTION]...
  --runs N       rounds that count, after one that does not (5)
  --mib N        the large file's size (1024)
  --only A,B     contenders whose names have A or B in them; parts called A or B:
                 small, range, memory, linear, list, start
  --full         256 uploads of 1 GiB and files of 20 GiB, instead of smaller ones
  --write ROOT   put the figures into ROOT/docs/benchmarks.md and ROOT/README.md";

/// What is asked for on the command line.
struct Options {
    runs: usize,
    /// Bytes of the large file.
    size: u64,
    only: Option<Vec<String>>,
    full: bool,
    write: Option<PathBuf>,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self {
            runs: 5,
            size: GIB,
            only: None,
            full: false,
            write: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut next = || args.next().unwrap_or_else(|| panic!("{arg} wants a value"));
            match arg.as_str() {
                "--runs" => options.runs = next().parse().unwrap(),
                "--mib" => options.size = next().parse::<u64>().unwrap() << 20,
                "--only" => {
                    options.only = Some(next().split(',').map(str::to_owned).collect());
                }
                "--full" => options.full = true,
                "--write" => options.write = Some(next().into()),
                // cargo's own.
                "--bench" => {}
                _ => panic!("{arg}: no such option\n{USAGE}"),
            }
        }
        options
    }

    fn wants(&self, contender: Contender) -> bool {
        let name = contender.name();
        let only = self.only.as_ref();
        only.is_none_or(|only| only.iter().any(|word| name.contains(word)))
    }

    fn wants_part(&self, name: &str) -> bool {
        let only = self.only.as_ref();
        only.is_none_or(|only| only.iter().any(|word| word == name))
    }
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(store::ROLE) => return store::serve(),
        Some(plain_sdk::ROLE) => return plain_sdk::upload(),
        Some("--help") => return println!("{USAGE}"),
        _ => {}
    }
    let options = Options::parse();
    let store = RefCell::new(Store::start());
    let mut report = Report::new(&options);
    large_file(&store, &options, &mut report);
    for (name, part) in section::ALL {
        if options.wants_part(name) {
            report
                .sections
                .push(section::run(name, *part, &store, &options));
        }
    }
    print!("{}", report.markdown());
    if let Some(root) = &options.write {
        report.write(root);
    }
}

/// The contenders, in turns.
fn large_file(store: &RefCell<Store>, options: &Options, report: &mut Report) {
    let wanted = contenders::ALL.iter().copied();
    let wanted: Vec<Contender> = wanted.filter(|c| options.wants(*c)).collect();
    if wanted.is_empty() {
        return;
    }
    let bench = Bench::new(store, options.size);
    let (present, absent): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|c| bench.lacks(*c).is_none());
    report.versions = bench.versions(&present);
    for contender in present {
        let mut row = Row::new(contender);
        row.failed = bench
            .prepare(contender)
            .err()
            .map(|why| format!("failed: {why}"));
        report.rows.push(row);
    }
    for contender in absent {
        let lacks = bench.lacks(contender).unwrap_or_default();
        let mut row = Row::new(contender);
        row.failed = Some(format!("not measured: {lacks} is not installed"));
        report.rows.push(row);
    }
    // One round that is not counted: files into the page cache, bytecode
    // compiled, connections made.
    for round in 0..=options.runs {
        for row in report.rows.iter_mut().filter(|row| row.failed.is_none()) {
            match bench.run(row.contender) {
                Ok(sample) => {
                    eprintln!("{round} {:<34} {sample}", row.contender.name());
                    if round > 0 {
                        row.samples.push(sample);
                    }
                }
                Err(why) => {
                    eprintln!("{round} {:<34} failed: {why}", row.contender.name());
                    row.failed = Some(format!("failed: {why}"));
                }
            }
        }
    }
}
