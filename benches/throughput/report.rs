//! docs/benchmarks.md and its plot, from the figures of one run.

use std::fmt::Write as _;
use std::path::Path;

use super::contenders::Contender;
use super::measure::{Sample, spread};
use super::small::Small;

/// What stands between these lines of docs/benchmarks.md is written here.
const BEGIN: &str = "<!-- figures: written by `make bench` -->";
const END: &str = "<!-- end of figures -->";

/// A contender's figures: median, least, most.
pub struct Row {
    name: &'static str,
    /// GiB a second.
    rate: (f64, f64, f64),
    /// Processor seconds a GiB.
    cpu: (f64, f64, f64),
    /// Resident memory, MiB.
    peak: f64,
    requests: f64,
}

impl Row {
    pub fn new(contender: &Contender, samples: &[Sample], size: u64) -> Self {
        let gib = size as f64 / (1_u64 << 30) as f64;
        let of = |pick: &dyn Fn(&Sample) -> f64| spread(samples.iter().map(pick));
        Self {
            name: contender.name(),
            rate: of(&|s| gib / s.wall.as_secs_f64()),
            cpu: of(&|s| s.cpu.as_secs_f64() / gib),
            peak: of(&|s| s.peak as f64 / (1_u64 << 20) as f64).0,
            requests: of(&|s| s.requests as f64).0,
        }
    }
}

pub struct Report {
    pub rows: Vec<Row>,
    pub small: Option<Small>,
    pub absent: Vec<&'static str>,
    pub size: u64,
    pub runs: usize,
}

impl Report {
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} on {}: a file of {} MiB in memory to a null store on the same machine over http, {} runs of each in turns; median (least to most).\n",
            date(),
            machine(),
            self.size >> 20,
            self.runs
        );
        text += "| | GiB/s | CPU-s/GiB, all processes but the store | peak memory, MiB | requests |\n|---|---|---|---|---|\n";
        for row in &self.rows {
            let range = |(middle, least, most): (f64, f64, f64)| {
                format!("{middle:.2} ({least:.2} to {most:.2})")
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.0} | {:.0} |",
                row.name.replace('|', "\\|"),
                range(row.rate),
                range(row.cpu),
                row.peak,
                row.requests
            );
        }
        if let Some(small) = &self.small {
            let (rate, least, most) = small.rate;
            let _ = writeln!(
                text,
                "\n4 KiB puts from 64 connections, SoftHSM: {rate:.0} a second ({least:.0} to {most:.0}), p99 {:.0} ms, {:.2} ms of processor time and {:.2} requests to the store each.",
                small.p99, small.cpu, small.requests
            );
        }
        if !self.absent.is_empty() {
            let _ = writeln!(
                text,
                "\nNot measured, because it is not installed: {}.",
                self.absent.join(", ")
            );
        }
        text
    }

    pub fn write(&self, dir: &Path) {
        let path = dir.join("benchmarks.md");
        let old = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = old.split_once(BEGIN).unwrap();
        let (_, tail) = rest.split_once(END).unwrap();
        let new = format!("{head}{BEGIN}\n{}{END}{tail}", self.markdown());
        std::fs::write(path, new).unwrap();
        std::fs::write(dir.join("benchmarks.svg"), self.plot()).unwrap();
    }

    /// Two bars for each contender: throughput, and the processor's time.
    fn plot(&self) -> String {
        const WIDTH: f64 = 360.0;
        const LINE: f64 = 46.0;
        let most = |pick: fn(&Row) -> f64| self.rows.iter().map(pick).fold(0.0, f64::max);
        let (rate, cpu) = (most(|r| r.rate.0), most(|r| r.cpu.0));
        let height = self.rows.len() as f64 * LINE + 40.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 {height}\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<rect width=\"760\" height=\"{height}\" fill=\"#fff\"/>\n<text x=\"220\" y=\"20\" fill=\"#1a6\">GiB a second (longer is better)</text><text x=\"460\" y=\"20\" fill=\"#b52\">CPU seconds a GiB (shorter is better)</text>\n"
        );
        for (i, row) in self.rows.iter().enumerate() {
            let y = i as f64 * LINE + 36.0;
            let bar = |value: f64, most: f64| (value / most * WIDTH).max(1.0);
            let _ = write!(
                svg,
                "<text x=\"8\" y=\"{}\" fill=\"#222\">{}</text>\n<rect x=\"220\" y=\"{y}\" width=\"{:.1}\" height=\"15\" fill=\"#1a6\"/><text x=\"{:.1}\" y=\"{}\" fill=\"#222\">{:.2}</text>\n<rect x=\"220\" y=\"{}\" width=\"{:.1}\" height=\"15\" fill=\"#b52\"/><text x=\"{:.1}\" y=\"{}\" fill=\"#222\">{:.2}</text>\n",
                y + 20.0,
                row.name,
                bar(row.rate.0, rate),
                226.0 + bar(row.rate.0, rate),
                y + 12.0,
                row.rate.0,
                y + 17.0,
                bar(row.cpu.0, cpu),
                226.0 + bar(row.cpu.0, cpu),
                y + 29.0,
                row.cpu.0,
            );
        }
        svg + "</svg>\n"
    }
}

fn date() -> String {
    jiff::Zoned::now().date().to_string()
}

/// Processor, its number, memory and kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map_or_else(
            || "unknown".to_owned(),
            |(_, value)| value.trim().to_owned(),
        )
    };
    let memory: u64 = field(&read("/proc/meminfo"), "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or(0);
    format!(
        "{} ({} cores, {} GiB, Linux {})",
        field(&read("/proc/cpuinfo"), "model name"),
        std::thread::available_parallelism().map_or(0, usize::from),
        memory >> 20,
        read("/proc/sys/kernel/osrelease").trim()
    )
}
