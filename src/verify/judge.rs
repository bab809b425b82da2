//! A listed version held against the catalogue: pure comparisons, which name
//! what they find by what a listing can tell.

use jiff::Timestamp;

use super::finding::Finding;
use crate::api::Receipt;
use crate::catalog::{Match, Record};
use crate::store::{Head, ListedVersion, METADATA_MESSAGE_ID};

/// How far the store's clock may be from this host's, milliseconds: S3
/// refuses requests whose time differs by more than 15 minutes from its own
/// (Amazon S3 API reference, error RequestTimeTooSkewed).
const SKEW_MS: u64 = 15 * 60 * 1000;

/// What a version came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What is wrong, and how that shows.
    pub(super) finding: Option<(Finding, String)>,
    /// The message that it is, if it is one of the catalogue's and all is
    /// well.
    pub(super) record: Option<Record>,
    /// Messages that are accounted for by this.
    pub(super) covers: Vec<u64>,
}

impl Verdict {
    fn good(record: Option<&Record>) -> Self {
        Self {
            finding: None,
            record: record.cloned(),
            covers: record.iter().map(|record| record.id).collect(),
        }
    }

    fn bad(finding: Finding, detail: impl Into<String>, covers: &[Option<&Record>]) -> Self {
        Self {
            finding: Some((finding, detail.into())),
            record: None,
            covers: covers.iter().flatten().map(|record| record.id).collect(),
        }
    }
}

/// Judges a version by what the catalogue has of it.
pub(super) fn judge(listed: &ListedVersion, found: &Match) -> Verdict {
    match (listed.is_latest, listed.delete_marker) {
        (true, true) => marker(found),
        (true, false) => latest(listed, found),
        // A mark among older versions: somebody deleted it and it was stored
        // again since.
        (false, true) => Verdict::default(),
        (false, false) => older(listed, found),
    }
}

/// The place's current message, if it is not deleted.
fn expected(found: &Match) -> Option<&Record> {
    let place = found.place.as_ref()?;
    place.current.as_ref().filter(|_| !place.deleted)
}

/// Judges a place where the store has nothing.
pub(super) fn absent(found: &Match, marked: bool) -> Verdict {
    match expected(found) {
        None => Verdict::default(),
        Some(current) if marked => Verdict::bad(
            Finding::Deleted,
            "somebody else deleted it: a delete marker stands there",
            &[Some(current)],
        ),
        Some(current) => Verdict::bad(
            Finding::Missing,
            format!(
                "it is not in the bucket; {}",
                since(current, "this host stored it on")
            ),
            &[Some(current)],
        ),
    }
}

fn marker(found: &Match) -> Verdict {
    let mut verdict = absent(found, true);
    // Its version may be there still: it is accounted for on its own.
    verdict.covers.clear();
    verdict
}

fn latest(listed: &ListedVersion, found: &Match) -> Verdict {
    let (version, twin) = (found.version.as_ref(), found.twin.as_ref());
    let place = found.place.as_ref();
    let Some(current) = expected(found) else {
        // Without versions, having none in common proves nothing.
        let like = |v: &&Record| v.is_like(listed.size, listed.etag.as_deref());
        let ours = version.filter(|v| v.version_id().is_some() || like(v));
        let ours = ours.or(twin);
        return match ours.filter(|_| place.is_some_and(|place| place.deleted)) {
            Some(old) => Verdict::bad(
                Finding::RolledBack,
                "this host deleted it, and it is there again",
                &[Some(old)],
            ),
            None => Verdict::bad(
                Finding::Extra,
                match place.is_some_and(|place| place.deleted) {
                    true => "this host deleted what it had stored there, and did not store this",
                    false => "this host stored nothing there",
                },
                &[],
            ),
        };
    };
    let covers = [Some(current), version];
    let etag = listed.etag.as_deref();
    let same = current.is_like(listed.size, etag);
    let same_version = version.is_some_and(|version| version.id == current.id);
    if same_version && same {
        return match stored_again(listed, current) {
            Some(detail) => Verdict::bad(Finding::ReUploaded, detail, &covers),
            None => Verdict::good(Some(current)),
        };
    }
    if same_version && current.version_id().is_some() {
        // A version never changes, says S3.
        return changed(listed, current, &covers);
    }
    if let Some(old) = version.filter(|v| v.id != current.id && v.version_id().is_some()) {
        return Verdict::bad(
            Finding::RolledBack,
            format!(
                "an older version is current: {}",
                since(old, "this host stored it on")
            ),
            &covers,
        );
    }
    match twin {
        Some(twin) if twin.id == current.id => Verdict::bad(
            Finding::ReUploaded,
            "another version with the same size and entity tag: somebody stored the same bytes again",
            &covers,
        ),
        Some(old) => Verdict::bad(
            Finding::RolledBack,
            format!(
                "it has the size and entity tag of an older message, which {}",
                since(old, "this host stored on")
            ),
            &covers,
        ),
        None if current.version_id().is_none()
            && current.is_like(current.receipt.stored_size, etag)
            && etag.is_some() =>
        {
            changed(listed, current, &covers)
        }
        None => Verdict::bad(
            Finding::Replaced,
            format!(
                "what stands there is not what this host stored: {} bytes, and the receipt has {}",
                listed.size, current.receipt.stored_size
            ),
            &covers,
        ),
    }
}

fn older(listed: &ListedVersion, found: &Match) -> Verdict {
    match &found.version {
        Some(version) if version.removed => Verdict::bad(
            Finding::Extra,
            "an older version that this host deleted",
            &[Some(version)],
        ),
        Some(version) if version.is_like(listed.size, listed.etag.as_deref()) => {
            Verdict::good(Some(version))
        }
        Some(version) if version.version_id().is_some() => {
            changed(listed, version, &[Some(version)])
        }
        // Versions of before the bucket had any: the last one of them.
        _ if found.twin.is_some() && listed.version_id.as_deref() == Some("null") => {
            Verdict::good(found.twin.as_ref())
        }
        _ => Verdict::bad(
            Finding::Extra,
            "an older version that this host did not store",
            &[],
        ),
    }
}

fn changed(listed: &ListedVersion, record: &Record, covers: &[Option<&Record>]) -> Verdict {
    if listed.size == record.receipt.stored_size {
        return Verdict::bad(
            Finding::Altered,
            "its entity tag is not the receipt's",
            covers,
        );
    }
    let detail = format!(
        "it has {} bytes, and the receipt {}",
        listed.size, record.receipt.stored_size
    );
    Verdict::bad(Finding::WrongSize, detail, covers)
}

/// Where there are no versions, the same bytes that are newer than the receipt
/// were stored by somebody else.
fn stored_again(listed: &ListedVersion, current: &Record) -> Option<String> {
    if current.version_id().is_some() {
        return None;
    }
    let at: Timestamp = listed.last_modified.as_ref()?.parse().ok()?;
    let ms = u64::try_from(at.as_millisecond()).ok()?;
    (ms > current.recorded.saturating_add(SKEW_MS)).then(|| {
        format!(
            "the same size and entity tag, but stored on {at}: {}",
            since(current, "this host stored it on")
        )
    })
}

/// Compares what a HEAD tells with a message of the catalogue. The second is
/// whether there was a checksum to compare.
pub(super) fn compare(head: &Head, record: &Record) -> (Option<(Finding, String)>, bool) {
    let receipt = &record.receipt;
    let told = told(head, receipt);
    let found = if head.size != receipt.stored_size {
        Some((
            Finding::WrongSize,
            format!(
                "it has {} bytes, and the receipt {}",
                head.size, receipt.stored_size
            ),
        ))
    } else if !record.is_like(head.size, head.etag.as_deref()) {
        Some((
            Finding::Replaced,
            "its entity tag is not the receipt's".to_owned(),
        ))
    } else if told.is_some_and(|told| *told != receipt.checksum) {
        Some((
            Finding::Altered,
            format!(
                "its checksum is {}, and the receipt's {}",
                told.map_or("", String::as_str),
                receipt.checksum
            ),
        ))
    } else {
        let id = head.metadata.iter();
        let id = id.clone().find(|(name, _)| name == METADATA_MESSAGE_ID);
        match id {
            Some((_, id)) if *id == receipt.message_id => None,
            // Another writer's, whose ways are its own.
            _ if record.first_seen.is_some() => None,
            None => Some((
                Finding::ReUploaded,
                "its metadata lacks the message id that was stored with it: somebody stored the same bytes again".to_owned(),
            )),
            Some((_, id)) => Some((
                Finding::Replaced,
                format!(
                    "its metadata names the message {id}, and the receipt {}",
                    receipt.message_id
                ),
            )),
        }
    };
    (found, told.is_some())
}

/// The checksum that the store tells, if it can be held against the receipt's.
pub(super) fn told<'a>(head: &'a Head, receipt: &Receipt) -> Option<&'a String> {
    // Of one algorithm, and both of the whole or both of the parts' sums.
    let form = |sum: &str| {
        let (kind, value) = sum.split_once(':')?;
        Some((kind.to_owned(), value.contains('-')))
    };
    let told = head.checksum.as_ref();
    told.filter(|told| form(told).is_some() && form(told) == form(&receipt.checksum))
}

/// When a message was stored, or else found.
pub(super) fn since(record: &Record, stored: &str) -> String {
    let (words, ms) = match record.first_seen {
        Some(ms) => ("it was first seen on", ms),
        None => (stored, record.receipt.created),
    };
    let at = i64::try_from(ms).ok();
    let at = at.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    format!(
        "{words} {}",
        at.map_or_else(String::new, |at| at.to_string())
    )
}
