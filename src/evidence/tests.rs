//! What records come to, and what a signature covers.
#![allow(clippy::unwrap_used)]

use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};

use super::*;
use crate::api::{AuditKey, ErrorKind, Operation};
use crate::audit::{Actor, Event, Head, Kind, Phase, Record, Signed, Signing};

fn record(seq: u64, time: &str, event: Event) -> Record {
    Record {
        head: Head {
            seq,
            prev: None,
            time: format!("2026-03-{time}:00.000000Z"),
            monotonic_ns: 0,
            boot_id: String::new(),
            host: "h".into(),
            version: String::new(),
        },
        event,
    }
}

fn operation(kind: Kind, uid: u32, outcome: Result<(), ErrorKind>) -> Event {
    let mut event = Event::new(kind);
    event.phase = Some(Phase::End);
    event.peer = Some(Actor {
        uid,
        gid: uid,
        pid: None,
        comm: None,
    });
    event.wrapping_key = Some("archive".into());
    event.bucket = Some("b".into());
    event.key = Some("k".into());
    event.plaintext_size = Some(10);
    event.released = Some(4);
    event.set_result(outcome);
    event
}

fn tally(records: &[Record]) -> Tally {
    let mut tally = Tally::new("2026-03-02T00:00:00.000000Z", "2026-03-04T00:00:00.000000Z");
    for record in records {
        tally.add(record);
    }
    tally
}

#[test]
fn operations_of_the_period_are_counted_by_day_user_and_key() {
    let mut begin = operation(Kind::Put, 7, Ok(()));
    begin.phase = Some(Phase::Begin);
    begin.result = None;
    let mut denied = operation(Kind::Denied, 9, Err(ErrorKind::Forbidden));
    denied.operation = Some(Operation::Get);
    denied.phase = None;
    denied.unrecorded = Some(3);
    let found = tally(&[
        record(0, "01T23:59", operation(Kind::Put, 7, Ok(()))),
        record(1, "02T00:00", begin),
        record(2, "02T00:01", operation(Kind::Put, 7, Ok(()))),
        record(3, "02T00:02", operation(Kind::Get, 7, Ok(()))),
        record(
            4,
            "03T00:00",
            operation(Kind::Get, 8, Err(ErrorKind::RolledBack)),
        ),
        record(
            5,
            "03T00:01",
            operation(Kind::Get, 8, Err(ErrorKind::NotFound)),
        ),
        record(6, "03T00:02", denied),
        record(7, "04T00:00", operation(Kind::Put, 7, Ok(()))),
    ]);
    assert_eq!(
        (found.records, found.first_seq, found.last_seq),
        (6, Some(1), Some(6))
    );
    assert_eq!(found.used["archive"], (1, 1));
    let days: Vec<_> = found
        .days()
        .into_iter()
        .map(|d| (d.date, d.puts, d.gets, d.failures, d.denials, d.refusals))
        .collect();
    assert_eq!(
        days,
        [
            ("2026-03-02".to_owned(), 1, 1, 0, 0, 0),
            ("2026-03-03".to_owned(), 0, 0, 1, 4, 1)
        ]
    );
    let activity: Vec<_> = found
        .activity()
        .into_iter()
        .map(|a| {
            (
                a.uid,
                format!("{} {}", a.operation, a.result),
                a.count,
                a.bytes,
            )
        })
        .collect();
    let expected = [
        (7, "get ok", 1, 4),
        (7, "put ok", 1, 10),
        (8, "get not-found", 1, 4),
        (8, "get rolled-back", 1, 4),
        (9, "get denied", 1, 0),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(uid, what, count, bytes)| (*uid, (*what).to_owned(), *count, *bytes))
        .collect();
    assert_eq!(activity, expected);
    assert_eq!((found.refusals.total, found.denials.total), (1, 4));
    assert_eq!(found.refusals.shown[0].what, "rolled-back");
    assert_eq!(found.refusals.shown[0].subject.as_deref(), Some("s3://b/k"));
    assert_eq!(found.open(), 1);
}

#[test]
fn outages_are_told_with_their_ends() {
    let token = |state: &str| {
        let mut event = Event::new(Kind::Token).detail("why");
        event.token = Some("t".into());
        event.state = Some(state.into());
        event
    };
    let found = tally(&[
        record(0, "01T09:00", Event::new(Kind::Segment)),
        record(0, "01T10:00", Event::new(Kind::Start)),
        record(1, "01T10:01", token("down")),
        record(2, "02T10:00", token("recovering")),
        record(3, "02T11:00", token("ready")),
        record(4, "02T12:00", Event::new(Kind::Stop)),
        record(5, "02T12:01", Event::new(Kind::Checkpoint)),
        record(5, "02T13:00", Event::new(Kind::Start)),
        record(5, "02T13:00", token("starting")),
        record(6, "02T13:01", token("ready")),
        // Killed.
        record(7, "03T13:00", Event::new(Kind::Start)),
        record(8, "03T14:00", token("locked")),
    ]);
    let outages: Vec<_> = found
        .outages()
        .into_iter()
        .map(|o| {
            let minute = |time: &str| time[8..16].to_owned();
            let to = o.to.as_deref().map(minute);
            (o.what, minute(&o.from), to, o.why)
        })
        .collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        outages,
        [
            (
                "token t".to_owned(),
                "01T10:01".to_owned(),
                some("02T11:00"),
                "down: why".to_owned()
            ),
            (
                "agent".into(),
                "02T12:00".into(),
                some("02T13:00"),
                "stopped".into()
            ),
            (
                "agent".into(),
                "02T13:01".into(),
                some("03T13:00"),
                "ended without a stop record".into()
            ),
            (
                "token t".into(),
                "03T14:00".into(),
                None,
                "locked: why".into()
            ),
        ]
    );
}

#[test]
fn periods_are_dates_or_instants() {
    let period = Period::parse(Some("2026-01-01"), Some("2026-02-01T12:00:00+01:00")).unwrap();
    assert_eq!(period.from, "2026-01-01T00:00:00.000000Z");
    assert_eq!(period.to, "2026-02-01T11:00:00.000000Z");
    let month = Period::parse(None, Some("2026-01-31")).unwrap();
    assert_eq!(month.from, "2026-01-01T00:00:00.000000Z");
    for (from, to) in [
        ("2026-02-01", "2026-01-01"),
        ("soon", "2026-01-01"),
        ("2026-01-01", "2026-01-01"),
    ] {
        assert!(Period::parse(Some(from), Some(to)).is_err(), "{from} {to}");
    }
}

struct Key(SigningKey);

impl Key {
    fn new(byte: u8) -> Self {
        Self(SigningKey::from_slice(&[byte; 32]).unwrap())
    }

    fn point(&self) -> Vec<u8> {
        self.0
            .verifying_key()
            .to_sec1_point(false)
            .as_bytes()
            .to_vec()
    }

    fn public(&self) -> PublicKey {
        PublicKey::from_point(&self.point()).unwrap()
    }
}

impl Signer for Key {
    fn sign<'a>(&'a self, text: &'a [u8]) -> Signing<'a> {
        let signature: Signature = self.0.sign(text);
        let signed = Signed {
            signature: signature.to_bytes().into(),
            key: self.public(),
        };
        Box::pin(async move { Ok(signed) })
    }
}

#[tokio::test]
async fn rule_29_a_report_that_was_changed_or_signed_by_another_is_told() {
    let (key, other) = (Key::new(7), Key::new(8));
    let mut report = Report::default();
    report.installation.origin = "strongroom/audit/h/1".into();
    report.audit_key = Some(AuditKey {
        public_key: data_encoding::HEXLOWER.encode(&key.point()),
        ..AuditKey::default()
    });
    let evidence = sign(report, Some(&key)).await.unwrap();
    assert_eq!(check(&evidence, Some(&key.public())), Ok(()));
    assert_eq!(check(&evidence, None), Ok(()));
    // It survives being written and read.
    let text = serde_json::to_string_pretty(&evidence).unwrap();
    let back: Evidence = serde_json::from_str(&text).unwrap();
    assert_eq!(check(&back, Some(&key.public())), Ok(()));

    assert!(check(&evidence, Some(&other.public())).is_err());
    let mut changed = evidence.clone();
    changed.report.denials.total = 1;
    assert!(check(&changed, None).unwrap_err().contains("hash"));
    changed.report_sha256 = hash(&changed.report).unwrap();
    assert!(
        check(&changed, None)
            .unwrap_err()
            .contains("another report")
    );
    let mut later = evidence.clone();
    later.made_at = "2030-01-01T00:00:00.000000Z".into();
    assert!(check(&later, None).is_err());
    let unsigned = sign(evidence.report.clone(), None).await.unwrap();
    assert!(check(&unsigned, None).unwrap_err().contains("not signed"));

    // A checkpoint's signature does not pass for a report's, nor the other
    // way round: the first lines differ.
    let note = parse_notes(evidence.note.as_deref().unwrap());
    assert!(note.notes[0].checkpoint.origin.starts_with(EVIDENCE_PREFIX));
    assert!(
        !note.notes[0]
            .checkpoint
            .origin
            .starts_with(audit::ORIGIN_PREFIX)
    );
}
