//! The auditor's report: who held which key, who did what, and what of it is
//! proven (docs/evidence.md).
//!
//! Made from the audit log, the catalogue, and what the tokens say of their
//! keys now. Nothing in it changes from run to run but the state that it
//! describes; when it was made and the signature stand beside it.

mod tally;

use std::path::Path;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::api::{
    Answer, EVIDENCE_FORMAT, Error, ErrorKind, Evidence, EvidenceKey, EvidenceToken, Installation,
    KeyInfo, LogReport, Report, TokenStatus,
};
use crate::audit::{
    self, Checkpoint, Files, Hash, Note, PublicKey, Range, Record, Signer, Standing, TreeHead,
    parse_notes,
};
use crate::crypto::digest::{SHA256, digest};
use crate::engine::Engine;
use tally::Tally;

/// What the first line of a report's note begins with: never a checkpoint's.
pub const EVIDENCE_PREFIX: &str = "strongroom/evidence/";
/// The period of a report that was asked for without one.
const DEFAULT_PERIOD: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Records' times have microseconds, and so have the period's, so that they
/// compare as text.
const TIME: &str = "%Y-%m-%dT%H:%M:%S%.6fZ";

/// From an instant, inclusive, to another, exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// RFC 3339 in UTC with microseconds.
    pub from: String,
    /// The same.
    pub to: String,
}

impl Period {
    /// From what a person wrote: dates (their first instant, UTC) or RFC 3339
    /// instants. Without `to` it ends now, without `from` it is 30 days long.
    ///
    /// # Errors
    /// One is neither, or they are the wrong way round.
    pub fn parse(from: Option<&str>, to: Option<&str>) -> Result<Self, String> {
        let to = to.map_or_else(|| Ok(Timestamp::now()), instant)?;
        let from = match from {
            Some(text) => instant(text)?,
            None => to
                .checked_sub(DEFAULT_PERIOD)
                .map_err(|error| error.to_string())?,
        };
        if from >= to {
            return Err("--from must be before --to".to_owned());
        }
        Ok(Self {
            from: from.strftime(TIME).to_string(),
            to: to.strftime(TIME).to_string(),
        })
    }
}

fn instant(text: &str) -> Result<Timestamp, String> {
    if let Ok(instant) = text.parse() {
        return Ok(instant);
    }
    let wrong =
        |_| format!("{text:?} is neither a date such as 2026-01-31 nor an RFC 3339 instant");
    let date: Date = text.parse().map_err(wrong)?;
    let midnight = date.to_zoned(TimeZone::UTC).map_err(wrong)?;
    Ok(midnight.timestamp())
}

/// What the report says that only the server knows.
pub struct Surroundings<'a> {
    /// The audit log's directory.
    pub audit_dir: &'a Path,
    /// The log's name.
    pub origin: String,
    /// How the server is confined.
    pub confinement: String,
    /// The grants in force, in words.
    pub grants: Vec<String>,
    /// Who has access, in words.
    pub access: String,
    /// How many records an anchored checkpoint covers, as the agent knows.
    pub anchored: u64,
    /// Whether checkpoints are to be anchored at all.
    pub anchors: bool,
    /// The key that signs.
    pub audit_key: Option<crate::api::AuditKey>,
}

/// Makes the report.
///
/// # Errors
/// The log or the catalogue cannot be read.
pub async fn report(
    engine: &Engine,
    period: &Period,
    around: Surroundings<'_>,
) -> Result<Report, Error> {
    let pinned = around.audit_key.as_ref().and_then(|key| {
        let point = data_encoding::HEXLOWER.decode(key.public_key.as_bytes());
        PublicKey::from_point(&point.ok()?)
    });
    let (tally, log) = {
        let (dir, period) = (around.audit_dir.to_owned(), period.clone());
        let read = move || read_log(&dir, &period, pinned.as_ref());
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, "the log was not read").log(error))??
    };
    let unread = |error: crate::catalog::CatalogError| {
        Error::new(ErrorKind::StateFailed, "the catalogue cannot be read").log(error)
    };
    let custody = engine.catalog.custody().await.map_err(unread)?;
    let first_uses = engine.catalog.first_uses().await.map_err(unread)?;
    let tokens = engine.keyring.token_status();
    let mut keys = Vec::new();
    for info in engine.keyring.keys() {
        let wraps = engine.catalog.load_wraps(&info.name).map_err(unread)?;
        let depends = custody.iter().find(|entry| entry.key == info.name);
        let made = tally.made.get(&info.name).cloned();
        let first_use = || {
            let (_, ms) = first_uses.iter().find(|(key, _)| *key == info.name)?;
            let at = Timestamp::from_millisecond(i64::try_from(*ms).ok()?).ok()?;
            Some(at.strftime(TIME).to_string())
        };
        let made_here = made.is_some();
        let since = made.or_else(first_use);
        let (puts, gets) = tally.used.get(&info.name).copied().unwrap_or_default();
        let age_days = since.as_deref().and_then(|since| days(since, &period.to));
        let aged = |period: u64| age_days.is_some_and(|days| days * 86_400 >= period);
        keys.push(EvidenceKey {
            origin: origin(&info),
            cryptoperiod_exceeded: info.usage == "active"
                && (info.cryptoperiod_left_seconds.is_some_and(|left| left < 0)
                    || info.cryptoperiod_seconds.is_some_and(aged)),
            life: tally.lives.get(&info.name).cloned().unwrap_or_default(),
            age_days,
            since,
            made_here,
            cryptoperiod_days: info.cryptoperiod_seconds.map(|seconds| seconds / 86_400),
            wraps_reserved: wraps.reserved,
            wraps_complete: wraps.complete,
            wrap_limit: info.wrap_limit,
            objects: depends.map_or(0, |entry| entry.objects),
            stored_bytes: depends.map_or(0, |entry| entry.stored_bytes),
            puts,
            gets,
            name: info.name,
            ring: info.ring,
            usage: info.usage,
            tokens: info.tokens,
            label: info.label,
            check_value: info.check_value,
            attributes: info.attributes,
        });
    }
    let log = LogReport {
        anchored: around.anchored.min(log.size),
        caveats: [caveats(&log, &around), of_keys(&keys)].concat(),
        ..log
    };
    Ok(Report {
        format: EVIDENCE_FORMAT.to_owned(),
        from: period.from.clone(),
        to: period.to.clone(),
        installation: Installation {
            host: host_of(&around.origin),
            origin: around.origin,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            endpoint: engine.store.endpoint(),
            confinement: around.confinement,
            config_sha256: tally.config_sha256.clone().unwrap_or_default(),
            suite: "AWS Encryption SDK message version 2, suite 0x0478 (AES-256-GCM, HKDF-SHA-512, key commitment)".to_owned(),
            cryptography: format!(
                "{} (AES-256-GCM of the data, on this host); the token's own AES-256-GCM for wrapping",
                crate::crypto::NAME
            ),
        },
        questions: questions(&keys, &tokens, &around.access),
        tokens: tokens.into_iter().map(token).collect(),
        keys,
        audit_key: around.audit_key,
        grants: around.grants,
        activity: tally.activity(),
        days: tally.days(),
        verifications: tally.verifications.clone(),
        outages: tally.outages(),
        denials: tally.denials,
        refusals: tally.refusals,
        changes: tally.changes,
        log,
    })
}

/// Puts time and signature beside a report.
///
/// # Errors
/// It cannot be serialised.
pub async fn sign(report: Report, signer: Option<&dyn Signer>) -> Result<Evidence, Error> {
    let made_at = Timestamp::now().strftime(TIME).to_string();
    let report_sha256 = hash(&report)?;
    let checkpoint = checkpoint(&report, &made_at, &report_sha256);
    let signed = match signer {
        None => Err("no [audit] checkpoint_key is configured".to_owned()),
        Some(signer) => signer.sign(checkpoint.text().as_bytes()).await,
    };
    let (note, unsigned) = match signed {
        Ok(signed) => (Some(Note::signed(checkpoint, &signed).text()), None),
        Err(why) => (None, Some(why)),
    };
    Ok(Evidence {
        report,
        made_at,
        report_sha256,
        note,
        unsigned,
    })
}

/// Holds a report against its hash and signature: by `pinned`, or without it
/// by whoever signed, which proves only that it is whole.
///
/// # Errors
/// What is wrong, in words.
pub fn check(evidence: &Evidence, pinned: Option<&PublicKey>) -> Result<(), String> {
    let found = hash(&evidence.report).map_err(|error| error.detail)?;
    if found != evidence.report_sha256 {
        return Err("the report does not have the hash that stands beside it".to_owned());
    }
    let note = evidence.note.as_deref().ok_or("it is not signed")?;
    let notes = parse_notes(note);
    let [note] = &notes.notes[..] else {
        return Err("its note makes no sense".to_owned());
    };
    if note.checkpoint != checkpoint(&evidence.report, &evidence.made_at, &found) {
        return Err("its note is about another report".to_owned());
    }
    let own = || {
        let key = evidence.report.audit_key.as_ref()?;
        let point = data_encoding::HEXLOWER
            .decode(key.public_key.as_bytes())
            .ok()?;
        PublicKey::from_point(&point)
    };
    let key = pinned
        .copied()
        .or_else(own)
        .ok_or("it does not say which key signed it")?;
    match note.check(&key) {
        Standing::Proven => Ok(()),
        Standing::Unsigned => Err("it was signed by another key".to_owned()),
        Standing::Forged => Err("its signature is forged".to_owned()),
    }
}

/// What is signed: a note of a checkpoint's shape and with another first
/// line, over the tree that the report was made from.
fn checkpoint(report: &Report, made_at: &str, report_sha256: &str) -> Checkpoint {
    let name = report
        .installation
        .origin
        .strip_prefix(audit::ORIGIN_PREFIX);
    let log = &report.log;
    Checkpoint {
        origin: format!("{EVIDENCE_PREFIX}{}", name.unwrap_or("unknown")),
        tree: TreeHead {
            size: log.size,
            root: log
                .root
                .as_deref()
                .and_then(Hash::parse)
                .unwrap_or_default(),
        },
        extensions: vec![
            format!("made {made_at}"),
            format!("report-sha256 {report_sha256}"),
        ],
    }
}

fn hash(report: &Report) -> Result<String, Error> {
    let bytes = serde_json::to_vec(report).map_err(|error| {
        Error::new(ErrorKind::Internal, "the report cannot be written as JSON").log(error)
    })?;
    Ok(data_encoding::HEXLOWER.encode(digest(&SHA256, &bytes).as_ref()))
}

/// Reads and checks the whole log, counting what belongs to the period.
fn read_log(
    dir: &Path,
    period: &Period,
    key: Option<&PublicKey>,
) -> Result<(Tally, LogReport), Error> {
    let unread = |error: std::io::Error| {
        let why = format!("the audit log cannot be read: {error}");
        Error::new(ErrorKind::StateFailed, why)
    };
    let files = Files::of(dir).map_err(unread)?;
    let found = audit::verify(&files, None, key).map_err(unread)?;
    let mut tally = Tally::new(&period.from, &period.to);
    let mut tree = Range::default();
    audit::each_line(&files, |line| {
        // The verifier has told of a line that is no record.
        let Ok(record) = serde_json::from_slice::<Record>(line) else {
            return false;
        };
        if record.head.time >= period.to {
            return false;
        }
        tree.push(Hash::leaf(line));
        tally.add(&record);
        true
    })
    .map_err(unread)?;
    let covered = match key {
        Some(_) => found.covered,
        None => 0,
    };
    let log = LogReport {
        records: tally.records,
        first_seq: tally.first_seq,
        last_seq: tally.last_seq,
        size: tree.size(),
        root: Some(tree.root().to_string()),
        open: tally.open(),
        intact: found.fault.is_none(),
        problem: found.fault.as_ref().map(ToString::to_string),
        signed: covered.min(tree.size()),
        ..LogReport::default()
    };
    Ok((tally, log))
}

fn caveats(log: &LogReport, around: &Surroundings<'_>) -> Vec<String> {
    let mut caveats = Vec::new();
    let covered = log.size;
    if around.audit_key.is_none() {
        caveats.push(
            "checkpoints are not signed: the log is a self-check, and proves nothing to others"
                .to_owned(),
        );
    } else if log.signed < covered {
        caveats.push(format!(
            "the last {} records are not yet under a signed checkpoint",
            covered - log.signed
        ));
    }
    if !around.anchors {
        caveats.push(
            "not proven against the operator: no checkpoint is anchored out of its reach"
                .to_owned(),
        );
    } else if around.anchored < covered {
        caveats.push(format!(
            "the last {} records are not yet under an anchored checkpoint",
            covered - around.anchored
        ));
    }
    caveats
}

/// What a compromised key leaves open, whatever was rotated (SECURITY rule 10).
fn of_keys(keys: &[EvidenceKey]) -> Vec<String> {
    let compromised = keys.iter().filter(|key| key.usage == "compromised");
    compromised
        .map(|key| {
            format!(
                "key {:?} is compromised: whoever has it can read what it wrapped; {} objects in the catalogue are still to be copied into new messages, and are read only as their receipts have them",
                key.name, key.objects
            )
        })
        .collect()
}

/// `strongroom/audit/HOST/ID` names the host.
fn host_of(origin: &str) -> String {
    let rest = origin.strip_prefix(audit::ORIGIN_PREFIX);
    let host = rest.and_then(|rest| rest.split('/').next());
    host.unwrap_or("unknown").to_owned()
}

fn origin(info: &KeyInfo) -> String {
    let local = info.attributes.iter().find(|(name, _)| name == "CKA_LOCAL");
    match local.map(|(_, value)| value.as_str()) {
        Some("true") => format!(
            "generated in the token ({}), as it says (CKA_LOCAL)",
            info.token
        ),
        Some(_) => "imported: it existed outside the token".to_owned(),
        None => "its token does not say".to_owned(),
    }
}

fn token(status: TokenStatus) -> EvidenceToken {
    EvidenceToken {
        name: status.name,
        label: status.token_label,
        serial: status.serial,
        model: status.model,
        firmware: status.firmware,
        library: status.library,
        gcm_iv: status.gcm_iv,
        soft: status.soft,
    }
}

/// Whole days between two instants.
fn days(from: &str, to: &str) -> Option<u64> {
    let (from, to): (Timestamp, Timestamp) = (from.parse().ok()?, to.parse().ok()?);
    u64::try_from(to.duration_since(from).as_hours() / 24).ok()
}

fn questions(keys: &[EvidenceKey], tokens: &[TokenStatus], access: &str) -> Vec<Answer> {
    let answer = |question: &str, answer: String| Answer {
        question: question.to_owned(),
        answer,
    };
    let each = |of: &dyn Fn(&EvidenceKey) -> String| {
        let list: Vec<String> = keys.iter().map(of).collect();
        match list.is_empty() {
            true => "no wrapping key is configured".to_owned(),
            false => list.join("; "),
        }
    };
    let place = |key: &EvidenceKey| {
        let held: Vec<String> = key
            .tokens
            .iter()
            .map(|name| {
                let status = tokens.iter().find(|token| token.name == *name);
                let model = status.and_then(|token| token.model.as_deref());
                let serial = status.and_then(|token| token.serial.as_deref());
                format!(
                    "token {name} ({}, serial {}{})",
                    model.unwrap_or("away"),
                    serial.unwrap_or("unknown"),
                    match status {
                        Some(token) if token.soft => "; a software token",
                        _ => "",
                    }
                )
            })
            .collect();
        format!("{}: in {}", key.name, held.join(" and "))
    };
    let kept = |key: &EvidenceKey| {
        let is =
            |name: &str, value: &str| key.attributes.iter().any(|(n, v)| n == name && v == value);
        let words = match key.attributes.is_empty() {
            true => "its token is away".to_owned(),
            false if is("CKA_SENSITIVE", "true") && is("CKA_EXTRACTABLE", "false") => {
                match is("CKA_NEVER_EXTRACTABLE", "true") && is("CKA_ALWAYS_SENSITIVE", "true") {
                    true => "it cannot leave the token, and never could, as the token reports"
                        .to_owned(),
                    false => {
                        "it cannot leave the token, as the token reports; it existed outside before"
                            .to_owned()
                    }
                }
            }
            false => "the token does not report that it cannot leave".to_owned(),
        };
        format!("{}: {words}", key.name)
    };
    let rotated = |key: &EvidenceKey| {
        let age = match key.age_days {
            Some(days) => format!("{days} days old"),
            None => "of unknown age".to_owned(),
        };
        match key.cryptoperiod_days {
            Some(period) if key.cryptoperiod_exceeded => {
                format!(
                    "{}: {age}, beyond its cryptoperiod of {period} days",
                    key.name
                )
            }
            Some(period) => format!("{}: {age}, cryptoperiod {period} days", key.name),
            None => format!("{}: {age}, no cryptoperiod configured", key.name),
        }
    };
    vec![
        answer(
            "Which algorithm encrypts the data?",
            "AES-256-GCM in frames, with key commitment (AWS Encryption SDK message version 2, suite 0x0478)".to_owned(),
        ),
        answer(
            "How strong are the keys?",
            "a 256-bit data key for every object, used for that object alone, wrapped with a 256-bit AES key inside the token".to_owned(),
        ),
        answer(
            "How often are keys rotated?",
            format!("the data key with every object; wrapping keys: {}", each(&rotated)),
        ),
        answer("Where are the keys kept?", each(&place)),
        answer("How are they kept?", each(&kept)),
        answer("Who has access?", access.to_owned()),
    ]
}

#[cfg(test)]
#[path = "evidence/tests.rs"]
mod tests;
