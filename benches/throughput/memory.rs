//! The agent's memory: at rest, with many uploads at once, and in one that is
//! much larger than memory.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{BufReader, Write as _};
use std::time::{Duration, Instant};

use super::measure::{forget_peak, shared_out};
use super::rig::Rig;
use super::section::{Aim, Section};
use super::store::Store;
use super::support::http;
use super::support::process::Process;
use super::support::value;
use super::{BUCKET, GIB, Options};

/// The default `memory_budget`, MiB, and what is allowed beyond it.
const BUDGET: f64 = 256.0;
const BEYOND: f64 = 48.0;
/// More than the default, so that all uploads run at once.
const MAX_REQUESTS: i64 = 300;
/// After a start or a load, until what ends by itself has ended.
const REST: Duration = Duration::from_secs(3);
/// Bytes of a write.
const WRITE: usize = 64 << 10;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(50);

const MIB: f64 = (1 << 20) as f64;

pub fn run(store: &RefCell<Store>, options: &Options) -> Section {
    let rig = Rig::start(&store.borrow().http, |config| {
        config["agent"]["max_requests"] = value(MAX_REQUESTS);
    });
    let processes = rig.agent.processes();
    let mut text = String::from(
        "| | seconds | peak of server + supervisor + worker, MiB (each resident peak, summed) | peak of their proportional shares, MiB |\n|---|---|---|---|\n",
    );
    let mut aims = Vec::new();
    std::thread::sleep(REST);
    let at_rest = resident(&processes);
    let idle = shared_out(&processes) as f64 / MIB;
    let _ = writeln!(
        text,
        "| at rest after the start | | {at_rest:.1} | {idle:.1} |"
    );
    aims.push(Aim::at_most(
        "agent at rest, worker included",
        25.0,
        idle,
        " MiB",
    ));
    let (many, long) = if options.full {
        (GIB, 20 * GIB)
    } else {
        (GIB / 16, 4 * GIB)
    };
    for (uploads, size, chunked) in [
        (1, GIB, false),
        (16, GIB, false),
        (256, many, false),
        (1, long, true),
    ] {
        let begun = Instant::now();
        let (sum, shares) = peak(&processes, || puts(&rig, uploads, size, chunked));
        let what = if chunked {
            format!("a stream of {} GiB", size / GIB)
        } else {
            let plural = if uploads == 1 { "" } else { "s at once" };
            format!("{uploads} upload{plural} of {} MiB", size >> 20)
        };
        let _ = writeln!(
            text,
            "| {what} | {:.1} | {sum:.0} | {shares:.0} |",
            begun.elapsed().as_secs_f64()
        );
        eprintln!("{what}: {sum:.1} MiB, {shares:.1} MiB in shares");
        aims.push(Aim::at_most(
            format!("agent's peak, {what}"),
            BUDGET + BEYOND,
            shares,
            " MiB",
        ));
    }
    std::thread::sleep(REST);
    let _ = writeln!(
        text,
        "| at rest after all that | | {:.1} | {:.1} |",
        resident(&processes),
        shared_out(&processes) as f64 / MIB
    );
    let _ = writeln!(
        text,
        "\n`memory_budget` is its default, {BUDGET} MiB. Three processes run one binary, so the sum counts its pages three times; the shares (`Pss` of proc(5), looked at every {} ms) count them once, and are what the aims are held against.",
        LOOK.as_millis()
    );
    Section {
        title: "Memory",
        text,
        aims,
    }
}

fn resident(processes: &[Process]) -> f64 {
    processes.iter().map(Process::memory).sum::<u64>() as f64 / MIB
}

/// The most memory during `work`, MiB: the sum of each process's own peak, and
/// the peak of the sum of proportional shares.
fn peak(processes: &[Process], work: impl FnOnce()) -> (f64, f64) {
    processes.iter().for_each(forget_peak);
    let done = std::sync::atomic::AtomicBool::new(false);
    let shares = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                most = shared_out(processes).max(most);
                std::thread::sleep(LOOK);
            }
            most
        });
        work();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        watch.join().unwrap()
    });
    let sum: u64 = processes.iter().map(Process::peak_memory).sum();
    (sum as f64 / MIB, shares as f64 / MIB)
}

/// Uploads of zeros, all at once.
fn puts(rig: &Rig, uploads: usize, size: u64, chunked: bool) {
    std::thread::scope(|scope| {
        for i in 0..uploads {
            scope.spawn(move || {
                put(
                    rig,
                    &format!("/v1/objects/{BUCKET}/memory/{i}"),
                    size,
                    chunked,
                )
            });
        }
    });
}

/// One of them. The answer comes when all have had their turns, which takes
/// minutes: there is no limit to waiting for it.
fn put(rig: &Rig, target: &str, size: u64, chunked: bool) {
    let stream = rig.agent.connect();
    stream.set_read_timeout(None).unwrap();
    stream.set_write_timeout(None).unwrap();
    let length = if chunked {
        "Transfer-Encoding: chunked".to_owned()
    } else {
        format!("Content-Length: {size}")
    };
    let mut to = &stream;
    write!(
        to,
        "PUT {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n{length}\r\n\r\n"
    )
    .unwrap();
    let (zeros, mut left) = ([0; WRITE], size);
    // An agent that refuses says why before it has read everything.
    while left > 0 {
        let piece = &zeros[..WRITE.min(usize::try_from(left).unwrap_or(WRITE))];
        let sent = if chunked {
            write!(to, "{:x}\r\n", piece.len())
                .and_then(|()| to.write_all(piece))
                .and_then(|()| to.write_all(b"\r\n"))
        } else {
            to.write_all(piece)
        };
        if sent.is_err() {
            break;
        }
        left -= piece.len() as u64;
    }
    if chunked && left == 0 {
        to.write_all(b"0\r\n\r\n").unwrap();
    }
    let mut answer = Vec::new();
    let reply = http::read_reply(&mut BufReader::new(&stream), "PUT", &mut answer).unwrap();
    assert_eq!(reply.status, 201, "{}", String::from_utf8_lossy(&answer));
}
