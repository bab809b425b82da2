//! A part of the report besides the large file: what was found, and how it
//! stands to what was aimed at.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::store::Store;
use super::{Options, linear, list, memory, range, small, start};

/// A figure beside what was aimed at.
#[derive(Clone, Debug)]
pub struct Aim {
    pub what: String,
    pub aim: String,
    pub found: String,
    pub met: bool,
    /// Whether the README says it.
    pub headline: bool,
}

impl Aim {
    /// Must not be more.
    pub fn at_most(what: impl Into<String>, aim: f64, found: f64, unit: &str) -> Self {
        Self::of(what.into(), "at most", aim, found, unit, found <= aim)
    }

    /// Must not be less.
    pub fn at_least(what: impl Into<String>, aim: f64, found: f64, unit: &str) -> Self {
        Self::of(what.into(), "at least", aim, found, unit, found >= aim)
    }

    fn of(what: String, word: &str, aim: f64, found: f64, unit: &str, met: bool) -> Self {
        Self {
            what,
            aim: format!("{word} {}{unit}", short(aim)),
            found: format!("{}{unit}", short(found)),
            met,
            headline: false,
        }
    }

    /// For the README, too.
    pub fn headline(mut self) -> Self {
        self.headline = true;
        self
    }
}

/// Three digits that count, or all before the point.
pub fn short(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.places$}")
}

/// What one part found.
#[derive(Clone, Debug, Default)]
pub struct Section {
    pub title: &'static str,
    /// Markdown.
    pub text: String,
    pub aims: Vec<Aim>,
}

type Part = fn(&RefCell<Store>, &Options) -> Section;

/// All, with the word that asks for each.
pub const ALL: &[(&str, Part)] = &[
    ("small", small::run),
    ("range", range::run),
    ("memory", memory::run),
    ("linear", linear::run),
    ("list", list::run),
    ("start", start::run),
];

/// Runs one; what ends it early is in its place in the report.
pub fn run(name: &'static str, part: Part, store: &RefCell<Store>, options: &Options) -> Section {
    eprintln!("== {name}");
    catch_unwind(AssertUnwindSafe(|| part(store, options))).unwrap_or_else(|why| {
        let why = why
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| why.downcast_ref::<&str>().copied());
        let why = why.unwrap_or("it panicked").lines().next().unwrap_or("");
        Section {
            title: name,
            text: format!("Failed: {why}\n"),
            ..Section::default()
        }
    })
}
