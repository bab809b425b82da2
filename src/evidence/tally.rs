//! Counts a log's records into a report. Everything here can be recomputed
//! from the log with a few lines of any language (docs/evidence.md).

use std::collections::BTreeMap;

use crate::api::{Activity, Day, EvidenceVerification, LifeEvent, Listing, Outage, Shown};
use crate::audit::{Kind, OK, Phase, Record};

/// Records of one kind that a report shows; the rest is counted, and in the
/// log. 500 fill some twenty printed pages.
const SHOWN: usize = 500;
/// Users, operations and results that are told apart, against a log made to
/// fill memory.
const ACTIVITIES: usize = 100_000;

/// What the records of a period come to.
#[derive(Default)]
pub(super) struct Tally {
    from: String,
    to: String,
    pub(super) records: u64,
    pub(super) first_seq: Option<u64>,
    pub(super) last_seq: Option<u64>,
    activity: BTreeMap<(u32, String, String), (u64, u64)>,
    days: BTreeMap<String, Day>,
    pub(super) denials: Listing,
    pub(super) refusals: Listing,
    pub(super) changes: Listing,
    /// Runs of `verify`.
    pub(super) verifications: Vec<EvidenceVerification>,
    /// Stored and read, by wrapping key.
    pub(super) used: BTreeMap<String, (u64, u64)>,
    /// When the log tells of a key's making.
    pub(super) made: BTreeMap<String, String>,
    /// What happened to each wrapping key.
    pub(super) lives: BTreeMap<String, Vec<LifeEvent>>,
    /// The configuration at the end of the period.
    pub(super) config_sha256: Option<String>,
    /// Begins without an end so far, by `seq`.
    open: BTreeMap<u64, ()>,
    outages: Vec<Outage>,
    /// What is away now: since when, and why.
    away: BTreeMap<String, (String, String)>,
    /// The last record, and whether the agent said that it stopped.
    last: Option<(String, bool)>,
}

impl Tally {
    /// Of records from `from`, inclusive, to `to`, exclusive: RFC 3339 in UTC
    /// with microseconds, as records have it, so that they compare as text.
    pub(super) fn new(from: &str, to: &str) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            ..Self::default()
        }
    }

    /// Takes the next record of the log; those before the period tell what
    /// was away when it began.
    pub(super) fn add(&mut self, record: &Record) {
        let time = record.head.time.as_str();
        if time >= self.to.as_str() {
            return;
        }
        self.follow(record);
        if record.event.event == Kind::Key
            && let (Some(key), Some(state)) = (&record.event.wrapping_key, &record.event.state)
        {
            if matches!(state.as_str(), "generated" | "imported") {
                self.made.insert(key.clone(), time.to_owned());
            }
            self.live(record, key, state);
        }
        if let Some(hash) = &record.event.config_sha256 {
            self.config_sha256 = Some(hash.clone());
        }
        if time < self.from.as_str() {
            return;
        }
        self.records += 1;
        self.first_seq.get_or_insert(record.head.seq);
        self.last_seq = Some(record.head.seq);
        self.count(record);
    }

    /// Takes an event of a key's life; that a token let it in again after a
    /// restart is none.
    fn live(&mut self, record: &Record, key: &str, state: &str) {
        if matches!(state, "opened" | "refused") {
            return;
        }
        let life = self.lives.entry(key.to_owned()).or_default();
        if life.len() < SHOWN {
            life.push(LifeEvent {
                seq: record.head.seq,
                time: record.head.time.clone(),
                uid: record.event.peer.as_ref().map(|peer| peer.uid),
                state: state.to_owned(),
                detail: record.event.detail.clone(),
            });
        }
    }

    /// Begins and ends, and what comes and goes.
    fn follow(&mut self, record: &Record) {
        let event = &record.event;
        let time = &record.head.time;
        match event.phase {
            Some(Phase::Begin) => {
                self.open.insert(record.head.seq, ());
            }
            _ => {
                if let Some(begin) = event.begin {
                    self.open.remove(&begin);
                }
            }
        }
        match event.event {
            Kind::Start => {
                // Of its tokens this process knows nothing yet.
                for (what, (since, why)) in std::mem::take(&mut self.away) {
                    self.over(what, since, time.clone(), why);
                }
                if let Some((last, stopped)) = self.last.take() {
                    let why = match stopped {
                        true => "stopped",
                        false => "ended without a stop record",
                    };
                    self.over("agent".into(), last, time.clone(), why.into());
                }
            }
            Kind::Token => {
                let name = event.token.as_deref().unwrap_or_default();
                let what = format!("token {name}");
                let state = event.state.as_deref().unwrap_or_default();
                // A token that starts is away only if it does not get there.
                if matches!(state, "ready" | "degraded" | "starting") {
                    if let Some((since, why)) = self.away.remove(&what) {
                        self.over(what, since, time.clone(), why);
                    }
                } else {
                    let why = match &event.detail {
                        Some(detail) => format!("{state}: {detail}"),
                        None => state.to_owned(),
                    };
                    self.away.entry(what).or_insert((time.clone(), why));
                }
            }
            Kind::Outage => {
                if let Some(since) = &event.since {
                    let why = event.detail.clone().unwrap_or_default();
                    self.over("audit log".into(), since.clone(), time.clone(), why);
                }
            }
            _ => {}
        }
        // The log's own records come before the first start, and after a stop.
        match event.event {
            Kind::Segment | Kind::Checkpoint => {}
            kind => self.last = Some((time.clone(), kind == Kind::Stop)),
        }
    }

    fn over(&mut self, what: String, from: String, to: String, why: String) {
        if to >= self.from {
            self.outages.push(Outage {
                what,
                from,
                to: Some(to),
                why,
            });
        }
    }

    fn count(&mut self, record: &Record) {
        let event = &record.event;
        let date = record.head.time.get(..10).unwrap_or_default();
        let day = self.days.entry(date.to_owned()).or_insert_with(|| Day {
            date: date.to_owned(),
            ..Day::default()
        });
        match event.event {
            Kind::Denied => {
                // Some stand for others that came too fast to be written out.
                let others = event.unrecorded.unwrap_or(0);
                day.denials += 1 + others;
                self.denials.total += others;
                let operation = event.operation.map_or("?", |operation| operation.as_str());
                self.act(record, operation, "denied");
                list(&mut self.denials, record, "denied");
            }
            Kind::Key | Kind::Config | Kind::Start | Kind::Stop | Kind::Repaired => {
                let what = match event.event {
                    Kind::Key => "key",
                    Kind::Config => "configuration",
                    Kind::Start => "agent started",
                    Kind::Stop => "agent stopped",
                    _ => "log repaired",
                };
                list(&mut self.changes, record, what);
            }
            kind if is_operation(kind) && event.phase != Some(Phase::Begin) => {
                let result = event.result.clone().unwrap_or_default();
                match (kind, result == OK) {
                    (Kind::Put, true) => day.puts += 1,
                    (Kind::Get, true) => day.gets += 1,
                    (Kind::Delete, true) => day.deletes += 1,
                    (_, true) => {}
                    (_, false) if event.tamper => day.refusals += 1,
                    (_, false) => day.failures += 1,
                }
                if result == OK
                    && let Some(key) = &event.wrapping_key
                {
                    let used = self.used.entry(key.clone()).or_default();
                    match kind {
                        Kind::Put => used.0 += 1,
                        Kind::Get => used.1 += 1,
                        _ => {}
                    }
                }
                if kind == Kind::Verify {
                    self.verified(record, &result);
                }
                if event.tamper {
                    list(&mut self.refusals, record, &result);
                }
                self.act(record, word(kind), &result);
            }
            _ => {}
        }
    }

    fn verified(&mut self, record: &Record, result: &str) {
        if self.verifications.len() >= SHOWN {
            return;
        }
        let event = &record.event;
        let [bucket, prefix] = [&event.bucket, &event.key].map(|s| s.as_deref().unwrap_or(""));
        self.verifications.push(EvidenceVerification {
            seq: record.head.seq,
            time: record.head.time.clone(),
            uid: event.peer.as_ref().map(|peer| peer.uid),
            subject: format!("s3://{bucket}/{prefix}"),
            result: result.to_owned(),
            found: event.verified.as_deref().cloned(),
        });
    }

    fn act(&mut self, record: &Record, operation: &str, result: &str) {
        let event = &record.event;
        let Some(peer) = &event.peer else { return };
        let entry = (peer.uid, operation.to_owned(), result.to_owned());
        if self.activity.len() >= ACTIVITIES && !self.activity.contains_key(&entry) {
            return;
        }
        let bytes = match event.event {
            Kind::Put if result == OK => event.plaintext_size,
            Kind::Get => event.released,
            _ => None,
        };
        let (count, total) = self.activity.entry(entry).or_default();
        *count += 1;
        *total += bytes.unwrap_or_default();
    }

    /// Begins in the log that have no end and were not resolved.
    pub(super) fn open(&self) -> u64 {
        self.open.len() as u64
    }

    /// Who did what, by user, operation and result.
    pub(super) fn activity(&self) -> Vec<Activity> {
        let entries = self.activity.iter();
        entries
            .map(|((uid, operation, result), (count, bytes))| Activity {
                uid: *uid,
                operation: operation.clone(),
                result: result.clone(),
                count: *count,
                bytes: *bytes,
            })
            .collect()
    }

    /// Each day of the period that has records.
    pub(super) fn days(&self) -> Vec<Day> {
        self.days.values().cloned().collect()
    }

    /// What was away, in the order in which it went.
    pub(super) fn outages(&self) -> Vec<Outage> {
        let lasting = self.away.iter().map(|(what, (since, why))| Outage {
            what: what.clone(),
            from: since.clone(),
            to: None,
            why: why.clone(),
        });
        let mut all: Vec<_> = self.outages.iter().cloned().chain(lasting).collect();
        all.sort_by(|a, b| (&a.from, &a.what).cmp(&(&b.from, &b.what)));
        all
    }
}

fn is_operation(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Put
            | Kind::Get
            | Kind::Head
            | Kind::Inspect
            | Kind::List
            | Kind::Delete
            | Kind::Rewrap
            | Kind::Verify
            | Kind::Restore
            | Kind::Admin
    )
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Put => "put",
        Kind::Get => "get",
        Kind::Head => "head",
        Kind::Inspect => "inspect",
        Kind::List => "list",
        Kind::Delete => "delete",
        Kind::Rewrap => "rewrap",
        Kind::Verify => "verify",
        Kind::Restore => "restore",
        _ => "admin",
    }
}

fn list(listing: &mut Listing, record: &Record, what: &str) {
    listing.total += 1;
    if listing.shown.len() >= SHOWN {
        return;
    }
    let event = &record.event;
    let place = match (&event.bucket, &event.key) {
        (Some(bucket), Some(key)) => Some(format!("s3://{bucket}/{key}")),
        (Some(bucket), None) => Some(format!("s3://{bucket}")),
        _ => None,
    };
    let of_key = || event.wrapping_key.as_ref().map(|key| format!("key {key}"));
    let of_token = || event.token.as_ref().map(|token| format!("token {token}"));
    let mut words = vec![what.to_owned()];
    words.extend(event.state.clone());
    words.extend(event.detail.clone());
    if event.event == Kind::Config {
        words.extend(event.config_sha256.clone());
    }
    listing.shown.push(Shown {
        seq: record.head.seq,
        time: record.head.time.clone(),
        uid: event.peer.as_ref().map(|peer| peer.uid),
        operation: event.operation,
        subject: place.or_else(of_key).or_else(of_token),
        what: words.join(": "),
    });
}
