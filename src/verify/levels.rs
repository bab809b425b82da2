//! The levels of `verify`: the catalogue against the listing, and then each
//! object by HEAD, or by reading all of it (docs/verify.md).
//!
//! The listing comes in the store's own order. Each listed version is looked
//! up in the catalogue and its message marked; what is left unmarked at the
//! end, of the messages that were recorded before the listing began, is looked
//! for. Memory is a page, and a bit for each message.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::sync::mpsc::Sender;

use super::chance;
use super::finding::Finding;
use super::judge::{Verdict, judge};
use super::look::{self, again, unread};
use super::seen::Seen;
use crate::api::{Error, ErrorKind, VerifiedObject, VerifyLine, VerifyRequest, VerifySummary};
use crate::catalog::{Match, Record, Waiting};
use crate::crypto::digest::{Context, SHA256};
use crate::engine::Engine;
use crate::fault::store_error;
use crate::store::{ListedVersion, Place, VersionMarker};

/// Objects looked at by HEAD at once: enough to hide the store's latency.
const HEADS: usize = 16;
/// Objects read at once. Each has a part in flight for every one of
/// `upload_concurrency`; memory is taken from the common budget.
const READS: usize = 4;
/// Attempts at reading an object while store, token or memory are away, and
/// the pause between them: a worker that is replaced is back by then.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(5);
/// Messages of the catalogue looked for at a time.
const PAGE: u32 = 1000;

/// How closely it is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The catalogue against the listing.
    List,
    /// And against what the store tells of each object by HEAD.
    Head,
    /// And everything is read, decrypted and authenticated.
    Read,
}

impl Level {
    /// By its name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "list" => Self::List,
            "head" => Self::Head,
            "read" => Self::Read,
            _ => return None,
        })
    }

    /// What being good proves at this level.
    #[must_use]
    pub fn proves(self) -> &'static str {
        match self {
            Self::List => {
                "by the store's own listing, everything this host stored is there, current, and of the size and entity tag that were acknowledged"
            }
            Self::Head => {
                "by the store's own word, everything this host stored is there and current, with the sizes, checksums and message ids that were acknowledged"
            }
            Self::Read => {
                "everything was read, decrypted and authenticated, and is the message that this host stored there last"
            }
        }
    }
}

/// What a run may do and leaves alone.
#[derive(Debug, Default)]
pub struct Scope {
    /// The rings whose keys may open what is read; any when absent.
    pub rings: Option<Vec<String>>,
    /// Prefixes with objects of the agent's own.
    pub own: Vec<Place>,
    /// Why the catalogue is not the one that the evidence knows.
    pub doubt: Option<String>,
}

/// Verifies what is under a prefix; tells each finding, then the sum. A
/// receiver that goes away ends it.
///
/// # Errors
/// The store, the token or the catalogue is away: then nothing is proved.
pub async fn levels(
    engine: &Arc<Engine>,
    level: Level,
    request: &VerifyRequest,
    scope: Scope,
    lines: &Sender<VerifyLine>,
) -> Result<VerifySummary, Error> {
    // Before the listing begins: what is recorded later need not be in it.
    let horizon = engine.catalog.counts().await.map_err(unread)?.receipts;
    let run = Run {
        engine,
        level,
        request,
        scope: &scope,
    };
    let mut tale = Tale {
        lines,
        digest: Context::new(&SHA256),
        sum: VerifySummary {
            check: request.check.clone(),
            bucket: request.bucket.clone(),
            prefix: request.prefix.clone(),
            proves: level.proves().to_owned(),
            began: Some(format!("{:.3}", Timestamp::now())),
            ..VerifySummary::default()
        },
    };
    if let Some(why) = &scope.doubt {
        let found = (Finding::CatalogueRolledBack, why.clone());
        tale.tell(&request.bucket, "", None, found).await?;
    }
    let seen = run.listing(&mut tale).await?;
    run.unseen(&mut tale, &seen, horizon).await?;
    let mut sum = tale.sum;
    sum.digest = Some(data_encoding::HEXLOWER.encode(tale.digest.finish().as_ref()));
    Ok(sum)
}

/// What was found so far, and whom it is told.
struct Tale<'a> {
    lines: &'a Sender<VerifyLine>,
    digest: Context,
    sum: VerifySummary,
}

impl Tale<'_> {
    async fn tell(
        &mut self,
        bucket: &str,
        key: &str,
        version_id: Option<String>,
        (finding, detail): (Finding, String),
    ) -> Result<(), Error> {
        let object = VerifiedObject {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            version_id,
            result: finding.word().to_owned(),
            detail,
        };
        let line = serde_json::to_vec(&object).map_err(|error| {
            Error::new(ErrorKind::Internal, "a finding cannot be written").log(error)
        })?;
        self.digest.update(&line);
        self.digest.update(b"\n");
        *self.sum.findings.entry(object.result.clone()).or_default() += 1;
        self.sum.bad += 1;
        self.send(VerifyLine::Object(object)).await
    }

    async fn progress(&self) -> Result<(), Error> {
        self.send(VerifyLine::Progress {
            listed: self.sum.listed,
            checked: self.sum.checked,
        })
        .await
    }

    async fn send(&self, line: VerifyLine) -> Result<(), Error> {
        let left = |_| Error::new(ErrorKind::Incomplete, "the client left before the end");
        self.lines.send(line).await.map_err(left)
    }
}

struct Run<'a> {
    engine: &'a Arc<Engine>,
    level: Level,
    request: &'a VerifyRequest,
    scope: &'a Scope,
}

/// What became of one listed version.
struct Outcome {
    verdict: Verdict,
    looked: Looked,
}

/// How closely it was looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looked {
    /// In the listing.
    Listed,
    /// By HEAD or by reading, with a checksum that the store told, or without.
    Closely { checksum: bool },
    /// It is archived.
    Unchecked,
}

impl Run<'_> {
    /// Goes through the listing; says which messages it accounts for.
    async fn listing(&self, tale: &mut Tale<'_>) -> Result<Seen, Error> {
        let VerifyRequest { bucket, prefix, .. } = self.request;
        let at_once = match self.level {
            Level::Read => READS,
            Level::List | Level::Head => HEADS,
        };
        let share = self.request.sample.unwrap_or(1.0);
        let mut seen = Seen::default();
        let mut after: Option<VersionMarker> = None;
        loop {
            let store = &self.engine.store;
            let page = store.list_versions(bucket, prefix, after.as_ref()).await;
            let page = page.map_err(|e| store_error(&e))?;
            let listed: Vec<ListedVersion> = page
                .versions
                .into_iter()
                .filter(|version| self.takes(version))
                .collect();
            let asked = listed.iter().map(look::asked).collect();
            let found = self.engine.catalog.compare(bucket, asked).await;
            let found = found.map_err(unread)?;
            let checks = listed.into_iter().zip(found).map(|(listed, found)| {
                let picked = self.level != Level::List && chance(share);
                async move {
                    let outcome = self.check(&listed, &found, picked).await;
                    (listed, outcome)
                }
            });
            // In the listing's order, so that the digest is the same each time.
            let mut checks = stream::iter(checks).buffered(at_once);
            while let Some((listed, outcome)) = checks.next().await {
                let Outcome { verdict, looked } = outcome?;
                for id in verdict.covers {
                    seen.add(id);
                }
                if !listed.delete_marker {
                    tale.sum.listed += 1;
                }
                match looked {
                    Looked::Listed => {}
                    Looked::Unchecked => tale.sum.unchecked += 1,
                    Looked::Closely { checksum } => {
                        tale.sum.checked += 1;
                        tale.sum.without_checksum += u64::from(!checksum);
                    }
                }
                match verdict.finding {
                    None if looked == Looked::Unchecked => {}
                    None => tale.sum.good += u64::from(!listed.delete_marker),
                    Some((Finding::Extra, _)) if self.request.allow_extra => tale.sum.extra += 1,
                    Some(found) => {
                        let version = listed.version_id.filter(|_| !listed.is_latest);
                        tale.tell(bucket, &listed.key, version, found).await?;
                    }
                }
            }
            tale.progress().await?;
            match page.next {
                None => return Ok(seen),
                // It would never end.
                next if next == after => {
                    return Err(Error::new(
                        ErrorKind::StoreFailed,
                        "the store's listing goes round in a circle",
                    ));
                }
                next => after = next,
            }
        }
    }

    fn takes(&self, version: &ListedVersion) -> bool {
        let VerifyRequest { bucket, prefix, .. } = self.request;
        (version.is_latest || !self.request.current_only)
            && version.key.starts_with(prefix.as_str())
            && !self.is_own(bucket, &version.key)
    }

    /// Keyslots and the like, which are no receipts'.
    fn is_own(&self, bucket: &str, key: &str) -> bool {
        let anchors =
            |own: &Place| own.bucket == bucket && key.starts_with(&own.key) && !own.key.is_empty();
        self.engine.is_reserved(bucket, key) || self.scope.own.iter().any(anchors)
    }

    /// Looks at one listed version as closely as the level asks.
    async fn check(
        &self,
        listed: &ListedVersion,
        found: &Match,
        picked: bool,
    ) -> Result<Outcome, Error> {
        let place = Place::new(&self.request.bucket, &listed.key);
        let mut verdict = judge(listed, found);
        let mut now = None;
        if verdict.finding.is_some() {
            let covers = std::mem::take(&mut verdict.covers);
            let judged = again(self.engine, &place, listed).await?;
            verdict = judged.0;
            verdict.covers.extend(covers);
            now = Some(judged.1);
        }
        let listed = now.as_ref().unwrap_or(listed);
        let mut looked = Looked::Listed;
        match (&verdict.finding, verdict.record.clone()) {
            // An older version by another writer, or a mark, needs no name.
            (Some(_), _) if listed.delete_marker => {}
            (Some(found), _) if self.level != Level::List && listed.is_latest => {
                let found = found.clone();
                verdict.finding = Some(self.named(&place, listed, found).await?);
                looked = Looked::Closely { checksum: true };
            }
            (None, Some(record)) if picked => {
                (verdict.finding, looked) = self.closely(&place, listed, &record).await?;
            }
            _ => {}
        }
        Ok(Outcome { verdict, looked })
    }

    /// A better name for what is wrong: by its header, and at the level `read`
    /// by what opens.
    async fn named(
        &self,
        place: &Place,
        listed: &ListedVersion,
        found: (Finding, String),
    ) -> Result<(Finding, String), Error> {
        let named = look::by_header(self.engine, place, listed, found).await?;
        let certain = matches!(
            named.0,
            Finding::Swapped | Finding::Replaced | Finding::Missing | Finding::Deleted
        );
        if self.level != Level::Read || certain {
            return Ok(named);
        }
        let rings = self.scope.rings.clone();
        match look::by_reading(self.engine, place, listed, rings, None).await {
            // What does not open is what it is, whatever its header says; an
            // extra object may be anything.
            // By its length it is known already.
            Ok(Some((Finding::Altered, _))) if named.0 == Finding::Truncated => Ok(named),
            Ok(Some(read)) if named.0 != Finding::Extra || read.0 == Finding::Swapped => Ok(read),
            Ok(_) => Ok(named),
            Err(error) if is_gone(&error) => Ok(named),
            Err(error) => Err(error),
        }
    }

    /// What is in order by the listing, more closely.
    async fn closely(
        &self,
        place: &Place,
        listed: &ListedVersion,
        record: &Record,
    ) -> Result<(Option<(Finding, String)>, Looked), Error> {
        let version = listed.version_id.as_deref();
        let Some((found, checksum)) = look::by_head(self.engine, place, version, record).await?
        else {
            // Gone since it was listed: was that us?
            let (verdict, _) = again(self.engine, place, listed).await?;
            return Ok((verdict.finding, Looked::Listed));
        };
        let looked = Looked::Closely { checksum };
        if let Some(found) = found {
            // Without versions it may have been replaced by this host.
            let (verdict, now) = again(self.engine, place, listed).await?;
            let found = match (verdict.finding, verdict.record) {
                (Some(found), _) => found,
                (None, Some(now)) if now.id == record.id => found,
                (None, _) => return Ok((None, Looked::Listed)),
            };
            let named = match listed.is_latest {
                true => self.named(place, &now, found).await?,
                false => found,
            };
            return Ok((Some(named), looked));
        }
        if self.level != Level::Read {
            return Ok((None, looked));
        }
        let found = match self.read(place, listed, record).await {
            Ok(None) => return Ok((None, looked)),
            Ok(Some(found)) => Some(found),
            Err(error) if error.kind == ErrorKind::Archived => {
                return Ok((None, Looked::Unchecked));
            }
            Err(error) if is_gone(&error) => None,
            Err(error) => return Err(error),
        };
        // It may have been replaced or deleted by this host while it was read.
        let (verdict, _) = again(self.engine, place, listed).await?;
        Ok(match (verdict.finding, verdict.record, found) {
            (Some(now), ..) => (Some(now), looked),
            (None, Some(now), Some(found)) if now.id == record.id => (Some(found), looked),
            _ => (None, Looked::Listed),
        })
    }

    /// Reads a version, again after a moment if what it needs is away or busy:
    /// a run of hours must not end for that.
    async fn read(
        &self,
        place: &Place,
        listed: &ListedVersion,
        record: &Record,
    ) -> Result<Option<(Finding, String)>, Error> {
        let mut attempt = 1;
        loop {
            let rings = self.scope.rings.clone();
            let read = look::by_reading(self.engine, place, listed, rings, Some(record)).await;
            match read {
                Err(error) if attempt < ATTEMPTS && may_pass(&error) => {}
                other => return other,
            }
            attempt += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Looks for the messages that the listing did not show.
    async fn unseen(&self, tale: &mut Tale<'_>, seen: &Seen, horizon: u64) -> Result<(), Error> {
        let VerifyRequest { bucket, prefix, .. } = self.request;
        let mut after = None;
        loop {
            let catalog = &self.engine.catalog;
            let page = catalog.waiting(bucket, prefix, after, horizon, PAGE).await;
            let page = page.map_err(unread)?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some((last.key.clone(), last.id));
            let left = page.into_iter().filter(|waiting| {
                !seen.has(waiting.id)
                    && !self.is_own(bucket, &waiting.key)
                    && (waiting.current || !self.request.current_only)
            });
            let looks = left.map(|waiting| async move {
                let found = self.look_for(&waiting).await;
                (waiting, found)
            });
            let mut looks = stream::iter(looks).buffered(HEADS);
            while let Some((waiting, found)) = looks.next().await {
                if let Some(found) = found? {
                    let version = waiting.version_id.filter(|_| !waiting.current);
                    tale.tell(bucket, &waiting.key, version, found).await?;
                }
            }
            tale.progress().await?;
        }
    }

    async fn look_for(&self, waiting: &Waiting) -> Result<Option<(Finding, String)>, Error> {
        let place = Place::new(&self.request.bucket, &waiting.key);
        if let (false, Some(version)) = (waiting.current, &waiting.version_id) {
            return look::version_gone(self.engine, &place, version).await;
        }
        let listed = ListedVersion {
            key: waiting.key.clone(),
            version_id: waiting.version_id.clone(),
            is_latest: true,
            ..ListedVersion::default()
        };
        Ok(again(self.engine, &place, &listed).await?.0.finding)
    }
}

/// What waiting may mend.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Busy | ErrorKind::TokenAway | ErrorKind::StoreAway
    )
}

/// What is not there, or not as it was, for a moment's reason.
fn is_gone(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::NoSuchObject | ErrorKind::Conflict | ErrorKind::Archived
    )
}
