//! What benches/micro.rs measured, from the files that criterion left.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A table of all of it, if there is any.
pub fn markdown() -> Option<String> {
    // target/release/deps/throughput-…
    let program = std::env::current_exe().unwrap();
    let dir: PathBuf = program.ancestors().nth(3)?.join("criterion");
    let mut found = Vec::new();
    collect(&dir, &mut found);
    found.sort_by(|a, b| a.0.cmp(&b.0));
    if found.is_empty() {
        return None;
    }
    let mut text = String::from("| | median | |\n|---|---|---|\n");
    for (_, name, nanos, bytes) in found {
        let time = match nanos {
            n if n >= 1e6 => format!("{:.2} ms", n / 1e6),
            n if n >= 1e3 => format!("{:.2} µs", n / 1e3),
            n => format!("{n:.0} ns"),
        };
        let rate = bytes.map(|bytes| format!("{:.2} GB/s", bytes / nanos));
        let _ = writeln!(text, "| {name} | {time} | {} |", rate.unwrap_or_default());
    }
    Some(text)
}

/// Group and size, to sort by; name, nanoseconds, bytes.
type Found = ((String, u64), String, f64, Option<f64>);

fn collect(dir: &Path, found: &mut Vec<Found>) {
    let json = |name: &str| -> Option<Value> {
        let text = std::fs::read_to_string(dir.join("new").join(name)).ok()?;
        serde_json::from_str(&text).ok()
    };
    if let (Some(what), Some(estimates)) = (json("benchmark.json"), json("estimates.json")) {
        let name = what["full_id"].as_str().unwrap_or_default();
        let name = name.replace('/', ": ");
        let bytes = what["throughput"]["Bytes"].as_u64();
        let nanos = estimates["median"]["point_estimate"].as_f64();
        let group = what["group_id"].as_str().unwrap_or_default().to_owned();
        found.push((
            (group, bytes.unwrap_or(0)),
            name,
            nanos.unwrap_or(f64::NAN),
            bytes.map(|b| b as f64),
        ));
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() && entry.file_name() != "new" {
            collect(&entry.path(), found);
        }
    }
}
