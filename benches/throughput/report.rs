//! docs/benchmarks.md, its plot and the README's paragraph, from the figures of
//! one run.

use std::fmt::Write as _;
use std::path::Path;

use super::contenders::{Contender, What};
use super::measure::{Sample, Spread};
use super::section::{Aim, Section};
use super::{Options, machine, micro, plot};

/// What stands between these lines of docs/benchmarks.md is written here.
const FIGURES: [&str; 2] = [
    "<!-- figures: written by `make bench` -->",
    "<!-- end of figures -->",
];
/// The same of README.md.
const SPEED: [&str; 2] = [
    "<!-- speed: written by `make bench` -->",
    "<!-- end of speed -->",
];

/// A contender's figures.
pub struct Row {
    pub contender: Contender,
    pub samples: Vec<Sample>,
    /// Why there are none.
    pub failed: Option<String>,
}

impl Row {
    pub fn new(contender: Contender) -> Self {
        Self {
            contender,
            samples: Vec::new(),
            failed: None,
        }
    }

    fn of(&self, pick: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(self.samples.iter().map(pick))
    }

    /// Seconds from start to end.
    fn wall(&self) -> Spread {
        self.of(|s| s.wall.as_secs_f64())
    }

    /// GiB a second.
    pub fn rate(&self) -> Spread {
        self.of(Sample::rate)
    }

    /// Processor seconds a GiB.
    pub fn cost(&self) -> Spread {
        self.of(Sample::cost)
    }
}

pub struct Report {
    pub rows: Vec<Row>,
    /// Of the programs of others.
    pub versions: Vec<String>,
    pub sections: Vec<Section>,
    size: u64,
    runs: usize,
    full: bool,
}

impl Report {
    pub fn new(options: &Options) -> Self {
        Self {
            rows: Vec::new(),
            versions: Vec::new(),
            sections: Vec::new(),
            size: options.size,
            runs: options.runs,
            full: options.full,
        }
    }

    pub fn markdown(&self) -> String {
        let mut text = format!(
            "Taken {} on {}, with Strongroom {}{}{}. The machine: {}.\n\n",
            machine::date(),
            machine::name(),
            env!("CARGO_PKG_VERSION"),
            // Whoever works on it links faster.
            match option_env!("CARGO_PROFILE_RELEASE_LTO") {
                Some("off") => " built without link-time optimisation",
                _ => "",
            },
            if self.full {
                ""
            } else {
                " (without `FULL=1`: 256 uploads of 64 MiB and files of 4 GiB, where that makes them 1 GiB and 20 GiB)"
            },
            machine::details()
        );
        text += &self.aims();
        if !self.rows.is_empty() {
            text += &self.large_file();
        }
        for section in &self.sections {
            let _ = write!(text, "## {}\n\n{}\n", section.title, section.text);
        }
        if let Some(table) = micro::markdown() {
            let _ = write!(
                text,
                "## Pieces\n\nBy criterion, one thread; wrap and unwrap through a worker with SoftHSM.\n\n{table}"
            );
        }
        text
    }

    fn aims(&self) -> String {
        let mut aims = self.aims_of_the_large_file();
        aims.extend(self.sections.iter().flat_map(|s| s.aims.iter().cloned()));
        let mut text = String::new();
        if aims.is_empty() {
            return text;
        }
        text += "## What was aimed at\n\n| | aim | measured | |\n|---|---|---|---|\n";
        for Aim {
            what,
            aim,
            found,
            met,
            ..
        } in aims
        {
            let met = if met { "met" } else { "**missed**" };
            let _ = writeln!(text, "| {} | {aim} | {found} | {met} |", cell(&what));
        }
        text + "\n"
    }

    fn row(&self, what: What, tls: bool) -> Option<&Row> {
        let wanted = Contender { what, tls };
        let row = self.rows.iter().find(|row| row.contender == wanted);
        row.filter(|row| !row.samples.is_empty())
    }

    /// Those of them whose contenders were measured.
    fn aims_of_the_large_file(&self) -> Vec<Aim> {
        let mut aims = Vec::new();
        for (tls, most) in [(false, 0.8), (true, 1.3)] {
            let Some(put) = self.row(What::Put, tls) else {
                continue;
            };
            let name = put.contender.name();
            let cost = put.cost().median;
            aims.push(Aim::at_most(format!("`{name}`"), most, cost, " CPU-s/GiB"));
            let against: &[(What, f64)] = if tls {
                &[(What::Age, 4.0)]
            } else {
                &[(What::Age, 6.0), (What::Rclone, 10.0)]
            };
            for (what, times) in against {
                if let Some(other) = self.row(*what, tls) {
                    let ratio = put.rate().median / other.rate().median;
                    let what = format!("its throughput, to that of `{}`", other.contender.name());
                    aims.push(Aim::at_least(what, *times, ratio, " times"));
                }
            }
            if let Some(other) = self.row(What::PlainSdk, tls).filter(|_| !tls) {
                let (most, what) = (other.cost().median, other.contender.name());
                let what = format!("its CPU-s/GiB, below that of {what}");
                aims.push(Aim::at_most(what, most, cost, ""));
            }
        }
        if let Some(get) = self.row(What::Get, false) {
            let name = format!("`{}`", get.contender.name());
            aims.push(Aim::at_most(&*name, 1.0, get.cost().median, " CPU-s/GiB"));
            aims.push(Aim::at_least(&*name, 1.0, get.rate().median, " GiB/s"));
        }
        aims
    }

    fn large_file(&self) -> String {
        let mut text = format!(
            "## One large file\n\n{} MiB, in memory, to or from a null store on the same machine. {} runs of each in turns after one that is not counted: median (least to most).\n\n![Throughput and processor time of each](benchmarks.svg)\n\n| | seconds | GiB/s | CPU-s/GiB of all processes but the store | peak memory, MiB | S3 requests | the store's own CPU-s/GiB |\n|---|---|---|---|---|---|---|\n",
            self.size >> 20,
            self.runs
        );
        for row in &self.rows {
            let name = cell(&row.contender.name());
            if let Some(why) = &row.failed {
                let _ = writeln!(text, "| {name} | {} | | | | | |", cell(why));
                continue;
            }
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {} | {:.0} | {:.0} | {:.2} |",
                row.wall(),
                row.rate(),
                row.cost(),
                row.of(|s| s.peak as f64 / f64::from(1 << 20)).median,
                row.of(|s| s.requests as f64).median,
                row.of(|s| s.store_cpu.as_secs_f64() / s.gib()).median,
            );
        }
        if !self.versions.is_empty() {
            let _ = writeln!(text, "\nVersions: {}.", self.versions.join("; "));
        }
        text + "\n"
    }

    /// The README's paragraph: nothing that the document does not have.
    fn speed(&self) -> String {
        let mut text = format!(
            "**Speed**, measured {} on {}, {} MiB in memory to a null store on the same machine, medians of {} runs, all processes of the client's side counted:\n\n| | GiB/s | CPU-s/GiB |\n|---|---|---|\n",
            machine::date(),
            machine::name(),
            self.size >> 20,
            self.runs
        );
        let headlines = [What::Put, What::Get, What::PlainSdk, What::Age];
        for row in self.rows.iter().filter(|row| !row.samples.is_empty()) {
            if !headlines.contains(&row.contender.what) {
                continue;
            }
            let name = cell(&row.contender.name());
            let (rate, cost) = (row.rate().median, row.cost().median);
            let _ = writeln!(text, "| {name} | {rate:.2} | {cost:.2} |");
        }
        let aims = self.sections.iter().flat_map(|s| &s.aims);
        for Aim { what, found, .. } in aims.filter(|aim| aim.headline) {
            let _ = writeln!(text, "\n{what}: {found}.");
        }
        text + "\nHow, how much it varied, and what was not measured: [docs/benchmarks.md](docs/benchmarks.md).\n"
    }

    /// Puts the figures into the documents of the repository at `root`, and
    /// draws the plot.
    pub fn write(&self, root: &Path) {
        let docs = root.join("docs");
        replace(&docs.join("benchmarks.md"), FIGURES, &self.markdown());
        replace(&root.join("README.md"), SPEED, &self.speed());
        let what = format!(
            "{} MiB, {}, {}",
            self.size >> 20,
            machine::date(),
            machine::name()
        );
        let rows: Vec<&Row> = self.rows.iter().filter(|r| !r.samples.is_empty()).collect();
        std::fs::write(docs.join("benchmarks.svg"), plot::svg(&rows, &what)).unwrap();
    }
}

/// Puts `text` between two lines of a document.
fn replace(path: &Path, [begin, end]: [&str; 2], text: &str) {
    let old = std::fs::read_to_string(path).unwrap();
    let (head, rest) = old.split_once(begin).unwrap();
    let (_, tail) = rest.split_once(end).unwrap();
    std::fs::write(path, format!("{head}{begin}\n\n{text}\n{end}{tail}")).unwrap();
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
