//! Rewrap: a keyslot under another wrapping key for every version of every
//! object (docs/rotation.md).
//!
//! No object is read beyond its header, and none is written. Versions are
//! worked on at once and accounted for in the list's order, so that one
//! number says how far a run is; the catalogue keeps it, and a run that was
//! cut short goes on from there. Memory does not grow with the bucket.

mod header;
mod list;
mod object;
mod packing;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::api::{Error, ErrorKind, RewrapCounts, RewrapLine, RewrapOptions};
use crate::audit::Op;
use crate::catalog::{CatalogError, Checkpoint};
use crate::config::Key;
use crate::engine::Engine;
use crate::store::Place;

pub use list::{Items, Listed, check_item};
use object::Outcome;
use packing::Packing;

/// Versions worked on at once: enough to keep a store busy that answers in
/// tens of milliseconds, few enough to be done with in a moment.
const AT_ONCE: usize = 64;
/// How often progress is told and recorded.
const TELL: Duration = Duration::from_secs(1);

/// Makes the records of one part of the run, each with an id of its own.
pub type Records = Arc<dyn Fn() -> Op + Send + Sync>;

/// A run of rewrap.
pub struct Request {
    /// What was asked.
    pub options: RewrapOptions,
    /// The rings that may be used; any when absent.
    pub rings: Option<Vec<String>>,
    /// The list, if it does not come from the store.
    pub items: Option<Items>,
}

/// Which part of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    index: u32,
    of: u32,
}

impl Shard {
    const ALL: Self = Self { index: 0, of: 1 };

    /// `3/16`: the third of sixteen.
    fn parse(text: &str) -> Result<Self, Error> {
        let parsed = text.split_once('/').and_then(|(index, of)| {
            let (index, of) = (index.parse::<u32>().ok()?, of.parse::<u32>().ok()?);
            (1..=of).contains(&index).then(|| Self {
                index: index - 1,
                of,
            })
        });
        parsed.ok_or_else(|| {
            Error::new(
                ErrorKind::Malformed,
                format!("the shard {text:?} is not one such as 3/16"),
            )
        })
    }

    /// Whether an object belongs to it. All its versions do, or none.
    fn has(self, key: &str) -> bool {
        crate::unlock::object_hash(key) % u64::from(self.of) == u64::from(self.index)
    }
}

/// What each version needs; shared by those in work.
pub(crate) struct Run {
    engine: Arc<Engine>,
    bucket: String,
    /// The key that is to open all of it, if one was named.
    target: Option<Key>,
    rings: Option<Vec<String>>,
    dry: bool,
    pack: bool,
    /// Whether nothing in the bucket can be under Object Lock.
    unlocked: bool,
    records: Records,
    /// Looks for a slot before it makes one, for so many versions more: after
    /// a restart, and wherever one was found.
    probes: AtomicUsize,
}

/// Checks what can be checked before the first line is told.
///
/// # Errors
/// A malformed shard, a key that is not active, a reserved prefix.
pub fn check(engine: &Engine, request: &Request) -> Result<(), Error> {
    let options = &request.options;
    engine.check_reserved(&Place::new(&options.bucket, &options.prefix))?;
    if let Some(shard) = &options.shard {
        Shard::parse(shard)?;
    }
    if options.rate == Some(0) {
        return Err(Error::new(ErrorKind::Malformed, "a rate of 0 never ends"));
    }
    target(engine, request).map(drop)
}

fn target(engine: &Engine, request: &Request) -> Result<Option<Key>, Error> {
    let Some(name) = &request.options.to else {
        return Ok(None);
    };
    let key = engine.keyring.active(Some(name))?;
    crate::keyring::permitted(&key, request.rings.as_deref())?;
    Ok(Some(key))
}

/// Runs to the end, or until the receiver of `lines` is gone, or something
/// is away. The last line says which, unless nobody listens.
pub async fn rewrap(
    engine: Arc<Engine>,
    request: Request,
    records: Records,
    lines: mpsc::Sender<RewrapLine>,
) {
    let mut progress = Progress::new(&engine, &request.options);
    let outcome = progress.run(request, records, &lines).await;
    let saved = progress.save().await.map_err(Error::from);
    let counts = progress.counts.clone();
    let last = match outcome.and_then(|ended| saved.map(|()| ended)) {
        Ok(true) => {
            // Kept, it would make the next run skip what failed.
            if let Err(error) = progress.clear().await {
                tracing::warn!(%error, "a run that has ended stays in the catalogue");
            }
            let complete = counts.failed == 0;
            RewrapLine::End { counts, complete }
        }
        // Nobody listens any more.
        Ok(false) => return,
        Err(error) => RewrapLine::Stopped {
            counts,
            error: error.kind.slug().to_owned(),
            hint: error.hint_text().to_owned(),
            detail: error.detail,
        },
    };
    let _ = lines.send(last).await;
}

/// How far it is.
struct Progress {
    engine: Arc<Engine>,
    /// The run's name in the catalogue; none of a dry run.
    name: Option<String>,
    counts: RewrapCounts,
    /// The key whose versions are being gone through.
    key: String,
    /// As it was before the first of them.
    boundary: Checkpoint,
    /// The last such state behind which nothing waits for a pack.
    safe: Checkpoint,
    told: Instant,
}

impl Progress {
    fn new(engine: &Arc<Engine>, options: &RewrapOptions) -> Self {
        let name = serde_json::json!([
            options.bucket,
            options.prefix,
            options.to,
            options.shard,
            options.source,
            options.pack,
        ]);
        Self {
            engine: engine.clone(),
            name: (!options.dry_run).then(|| name.to_string()),
            counts: RewrapCounts::default(),
            key: String::new(),
            boundary: Checkpoint::default(),
            safe: Checkpoint::default(),
            told: Instant::now(),
        }
    }

    /// True at the end of the list, false if nobody listens any more.
    async fn run(
        &mut self,
        request: Request,
        records: Records,
        lines: &mpsc::Sender<RewrapLine>,
    ) -> Result<bool, Error> {
        let options = &request.options;
        let shard = options.shard.as_deref().map(Shard::parse).transpose()?;
        let shard = shard.unwrap_or(Shard::ALL);
        let resumed = self.resume().await?;
        let begin = RewrapLine::Begin {
            about: self.about(options, shard).await,
            resumed: resumed.then(|| self.counts.clone()),
        };
        if lines.send(begin).await.is_err() {
            return Ok(false);
        }
        let run = Arc::new(Run {
            engine: self.engine.clone(),
            bucket: options.bucket.clone(),
            target: target(&self.engine, &request)?,
            rings: request.rings.clone(),
            dry: options.dry_run,
            pack: options.pack,
            // If the store does not say, something may be.
            unlocked: self.engine.store.object_lock(&options.bucket).await == Some(false),
            records,
            probes: AtomicUsize::new(2 * AT_ONCE),
        });
        let mut packing = Packing::new(run.clone(), shard);
        let ended = self.go_through(run, shard, request, &mut packing, lines);
        let ended = ended.await;
        // What was wrapped before it stopped is not lost either way.
        self.counts.packs += packing.flush().await?;
        self.safe.clone_from(&self.boundary);
        ended
    }

    async fn go_through(
        &mut self,
        run: Arc<Run>,
        shard: Shard,
        request: Request,
        packing: &mut Packing,
        lines: &mpsc::Sender<RewrapLine>,
    ) -> Result<bool, Error> {
        let mut pace = Pace::new(request.options.rate);
        let list = match request.items {
            Some(items) => list::given(items, self.safe.position, run.clone(), shard),
            None => list::stored(&self.safe.after, request.options.prefix, run.clone(), shard),
        };
        let works = list
            .then(move |listed| pace.next(listed))
            .map(move |listed| {
                let run = run.clone();
                // A task of its own: they share the cores, and what one has
                // begun it ends, whatever becomes of the others.
                tokio::spawn(async move {
                    let listed = listed?;
                    let outcome = object::rewrap(&run, &listed).await;
                    Ok::<_, Error>((listed, outcome))
                })
            })
            .buffered(AT_ONCE);
        tokio::pin!(works);
        let engine = self.engine.clone();
        loop {
            let work = tokio::select! {
                biased;
                () = engine.cancelled() => return Err(stopping()),
                () = lines.closed() => return Ok(false),
                work = works.next() => work,
            };
            let Some(work) = work else { return Ok(true) };
            let (listed, outcome) = work.map_err(|e| {
                Error::new(ErrorKind::Internal, "a part of the run ended abnormally").log(e)
            })??;
            // Everything before it is done, and nothing behind it counts.
            let outcome = outcome.unless_away()?;
            if !self.take(&listed, outcome, packing, lines).await? {
                return Ok(false);
            }
        }
    }

    /// Accounts for one version; false if nobody listens any more.
    async fn take(
        &mut self,
        listed: &Listed,
        outcome: Outcome,
        packing: &mut Packing,
        lines: &mpsc::Sender<RewrapLine>,
    ) -> Result<bool, Error> {
        if self.key != listed.key {
            self.boundary = Checkpoint {
                after: std::mem::replace(&mut self.key, listed.key.clone()),
                position: listed.position,
                counts: serde_json::to_string(&self.counts).unwrap_or_default(),
            };
            if packing.is_due() {
                self.counts.packs += packing.flush().await?;
            }
            if packing.is_empty() {
                self.safe.clone_from(&self.boundary);
            }
        }
        for line in outcome.lines(listed) {
            if lines.send(line).await.is_err() {
                return Ok(false);
            }
        }
        outcome.count(&mut self.counts);
        if let Some(done) = outcome.wrapped {
            self.counts.packs += packing.add(done, &listed.key).await?;
        }
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            self.save().await.map_err(Error::from)?;
            let counts = self.counts.clone();
            return Ok(lines.send(RewrapLine::Progress { counts }).await.is_ok());
        }
        Ok(true)
    }

    /// Versions there are about.
    async fn about(&self, options: &RewrapOptions, shard: Shard) -> Option<u64> {
        let catalog = &self.engine.catalog;
        let count = catalog.messages_under(&options.bucket, &options.prefix);
        let count = count.await.ok()??;
        Some(count.div_ceil(u64::from(shard.of)))
    }

    async fn resume(&mut self) -> Result<bool, Error> {
        let Some(name) = &self.name else {
            return Ok(false);
        };
        let Some(at) = self.engine.catalog.rewrap_checkpoint(name).await? else {
            return Ok(false);
        };
        self.counts = serde_json::from_str(&at.counts).unwrap_or_default();
        self.key.clone_from(&at.after);
        self.boundary.clone_from(&at);
        self.safe = at;
        Ok(true)
    }

    async fn save(&self) -> Result<(), CatalogError> {
        match &self.name {
            Some(name) => {
                self.engine
                    .catalog
                    .save_rewrap(name, self.safe.clone())
                    .await
            }
            None => Ok(()),
        }
    }

    async fn clear(&self) -> Result<(), CatalogError> {
        match &self.name {
            Some(name) => self.engine.catalog.clear_rewrap(name).await,
            None => Ok(()),
        }
    }
}

impl Run {
    /// Whether to look for a slot before making one.
    fn probes(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        let order = Ordering::Relaxed;
        self.probes.fetch_update(order, order, less).is_ok()
    }

    /// One was found: there may be more.
    fn found(&self) {
        self.probes.store(2 * AT_ONCE, Ordering::Relaxed);
    }
}

/// Holds back the next version until its turn has come.
struct Pace {
    between: Option<Duration>,
    next: Instant,
}

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        Self {
            between: rate.map(|rate| Duration::from_secs(1) / rate.max(1)),
            next: Instant::now(),
        }
    }

    fn next<T>(&mut self, value: T) -> impl Future<Output = T> + use<T> {
        let at = self.between.map(|between| {
            let at = self.next.max(Instant::now());
            self.next = at + between;
            at
        });
        async move {
            if let Some(at) = at {
                tokio::time::sleep_until(at).await;
            }
            value
        }
    }
}

fn stopping() -> Error {
    Error::new(
        ErrorKind::ShuttingDown,
        "the agent stopped before the run was complete",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shards_part_the_objects() {
        let shards: Vec<_> = (1..=16)
            .map(|index| Shard::parse(&format!("{index}/16")).unwrap())
            .collect();
        for n in 0..1000 {
            let key = format!("db/{n}");
            assert_eq!(shards.iter().filter(|shard| shard.has(&key)).count(), 1);
            assert!(Shard::ALL.has(&key));
        }
        for bad in ["0/16", "17/16", "1/0", "1", "a/b", "-1/2"] {
            assert!(Shard::parse(bad).is_err(), "{bad}");
        }
    }
}
