//! Whether a wrapping key may be retired: whether nothing is left that it
//! alone may open (SECURITY rule 11).
//!
//! Looks at everything that this host can know of: its catalogue, the listing
//! of all versions of every bucket that catalogue, grants and other writers
//! name, what is queued or under way, and the catalogues of those writers.
//! Another key counts only after it was seen to unwrap a data key that the
//! header's commitment accepts. Sources that disagree refuse. Nothing here
//! changes a key: what follows is the operator's.

mod scan;
mod writers;

use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash as _, Hasher as _};

use tokio::sync::mpsc::Sender;

use crate::api::{Error, ErrorKind, RetireLine, RetireReason, RetireReport, RetireRequest};
use crate::catalog::{CatalogError, Entry};
use crate::config::Writer;
use crate::engine::Engine;

use writers::Export;
pub use writers::has as writer_has;

/// Reasons that are told one by one; the rest is counted.
const TOLD: usize = 1000;
/// How old another writer's catalogue may be, in seconds, unless told: its
/// nightly export.
const MAX_AGE: u64 = 24 * 60 * 60;
/// Entries of the catalogue read at a time.
const PAGE: u32 = 1000;

/// What only the server knows.
pub struct Around {
    /// Buckets that grants name.
    pub buckets: Vec<String>,
    /// Hosts that the configuration names.
    pub writers: Vec<Writer>,
}

/// Messages that were seen at their places: bucket, key and message id.
#[derive(Default)]
struct Seen {
    all: HashSet<u64>,
    /// Those whose header names other keys: its word, which nothing proved.
    unproven: HashSet<u64>,
}

impl Seen {
    fn hash(bucket: &str, key: &str, message_id: &str) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (bucket, key, message_id).hash(&mut hasher);
        hasher.finish()
    }

    fn add(&mut self, bucket: &str, key: &str, message_id: &str) {
        self.all.insert(Self::hash(bucket, key, message_id));
    }

    fn add_unproven(&mut self, bucket: &str, key: &str, message_id: &str) {
        self.add(bucket, key, message_id);
        self.unproven.insert(Self::hash(bucket, key, message_id));
    }

    /// Holds what a catalogue knows against what was seen; says whether they
    /// agree.
    fn compare(&self, entry: &Entry, whose: &str, report: &mut RetireReport) -> bool {
        let hash = Self::hash(&entry.bucket, &entry.key, &entry.message_id);
        let place = subject(&entry.bucket, &entry.key, entry.version_id.as_deref());
        if !self.all.contains(&hash) {
            let why = format!(
                "{whose} knows message {} there, wrapped by {:?}, and the listing does not show it",
                entry.message_id, entry.wrapping_key
            );
            report.refuse("hidden", place, why);
            return false;
        }
        // Whoever can write there can make a header that names other keys.
        if entry.wrapping_key == report.key && self.unproven.contains(&hash) {
            let why = format!(
                "{whose} knows that this key wrapped message {}, and the header there names other keys, none of which was seen to open it",
                entry.message_id
            );
            report.refuse("only-key", place, why);
            return false;
        }
        true
    }
}

impl RetireReport {
    fn refuse(&mut self, kind: &str, subject: impl Into<String>, why: impl Into<String>) {
        self.total_reasons += 1;
        if self.reasons.len() < TOLD {
            self.reasons.push(RetireReason {
                kind: kind.to_owned(),
                subject: subject.into(),
                why: why.into(),
            });
        }
    }
}

/// Looks at everything, and says whether the key may be retired. `lines` is
/// told how far it has come.
///
/// # Errors
/// There is no such key, or the catalogue cannot be read. What else cannot be
/// looked at is a reason to refuse.
pub async fn check(
    engine: &std::sync::Arc<Engine>,
    request: &RetireRequest,
    around: &Around,
    lines: &Sender<RetireLine>,
) -> Result<RetireReport, Error> {
    let mut report = RetireReport {
        key: request.key.clone(),
        ..RetireReport::default()
    };
    own_use(engine, &mut report).await?;
    let max_age = request.max_age_seconds.unwrap_or(MAX_AGE);
    let mut exports = Vec::new();
    for writer in &around.writers {
        report.writers.push(writer.name.clone());
        match writers::read(engine, writer).await {
            Ok(export) => {
                export.judge(writer, &mut report, max_age);
                exports.push((writer, export));
            }
            Err(error) => {
                let why = format!("its catalogue cannot be read: {}", error.detail);
                report.refuse("writer", &writer.name, why);
            }
        }
    }
    let mut buckets: BTreeSet<String> = around.buckets.iter().cloned().collect();
    buckets.extend(request.buckets.iter().cloned());
    buckets.extend(engine.catalog.buckets().await.map_err(unread)?);
    for (writer, export) in &exports {
        buckets.insert(writer.bucket.clone());
        buckets.extend(export.buckets());
    }
    let mut seen = Seen::default();
    for bucket in buckets {
        scan::bucket(engine, &bucket, &mut report, &mut seen, lines).await;
        report.buckets.push(bucket);
    }
    compare(engine, &mut report, &seen).await?;
    for (writer, export) in &exports {
        export.compare(writer, &mut report, &seen);
    }
    // Once more: what began while the listing was read.
    let own = |kind: &str| matches!(kind, "in-use" | "queue" | "upload");
    if !report.reasons.iter().any(|reason| own(&reason.kind)) {
        own_use(engine, &mut report).await?;
    }
    report.may_retire = report.total_reasons == 0;
    Ok(report)
}

/// What this host itself still does with the key.
async fn own_use(engine: &Engine, report: &mut RetireReport) -> Result<(), Error> {
    let name = report.key.clone();
    let keys = engine.keyring.keys();
    let Some(key) = keys.iter().find(|key| key.name == name) else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("no wrapping key is configured as {name:?}"),
        )
        .hint("`strongroom key list` shows the configured keys"));
    };
    if key.usage == "active" {
        let why = format!(
            "it is the active key of ring {:?}: rotate it first",
            key.ring
        );
        report.refuse("in-use", &name, why);
    }
    let heir = |other: &&crate::api::KeyInfo| {
        other.usage == "active" && other.successor.as_deref() == Some(name.as_str())
    };
    if let Some(other) = keys.iter().find(heir) {
        let why = format!("it is the successor of {:?}", other.name);
        report.refuse("in-use", &name, why);
    }
    match engine.uses.of(&name) {
        0 => {}
        n => report.refuse(
            "in-use",
            &name,
            format!("{n} uploads under it are in progress"),
        ),
    }
    for waits in engine.catalog.dependents().await.map_err(unread)? {
        if waits.wrapping_key == name {
            let subject = format!("{} {}", waits.kind, waits.id);
            let why = format!("it is to become {}", waits.place);
            report.refuse(&waits.kind, subject, why);
        }
    }
    Ok(())
}

/// Everything that the catalogue knows must have been seen.
async fn compare(engine: &Engine, report: &mut RetireReport, seen: &Seen) -> Result<(), Error> {
    let mut after = 0;
    loop {
        let page = engine.catalog.entries(after, PAGE).await.map_err(unread)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = last.id;
        for entry in &page {
            if seen.compare(entry, "the catalogue", report) {
                report.catalogue += 1;
            }
        }
    }
}

fn subject(bucket: &str, key: &str, version: Option<&str>) -> String {
    match version {
        Some(version) => format!("s3://{bucket}/{key} version {version}"),
        None => format!("s3://{bucket}/{key}"),
    }
}

fn unread(error: CatalogError) -> Error {
    Error::new(ErrorKind::StateFailed, "the catalogue cannot be read").log(error)
}

impl Export {
    /// Everything that the other host knows must have been seen, too.
    fn compare(&self, writer: &Writer, report: &mut RetireReport, seen: &Seen) {
        for entry in &self.entries {
            // Each export knows the one before it, in whose place it stands.
            if entry.bucket == writer.bucket && entry.key == writer.key {
                continue;
            }
            let whose = format!("the catalogue of writer {}", writer.name);
            seen.compare(entry, &whose, report);
        }
    }
}
