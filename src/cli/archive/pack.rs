//! Packing small files into bundles: one thread reads them, and a bundle that
//! is full is stored while the next one fills.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::content::{Opened, ReadError};
use super::options::BUNDLE_SIZE;
use super::store::{Outcome, Shared, changed, place_at, unreadable, with_content};
use super::walk::Found;
use crate::bundle::{BUNDLE_TYPE, Builder};
use crate::cli::failure::{FAILED, Failure};
use crate::client::{PutOptions, Upload};
use crate::manifest::{Entry, Kind, bundle_key};

/// Files on their way to the packer. Ours.
const QUEUE: usize = 1024;
/// Bundles that are stored at once: with the one that fills and the one that
/// waits, 64 MiB of memory.
const AT_ONCE: usize = 2;
/// How often a small file is read that changes; a moment suffices.
const ATTEMPTS: usize = 8;

enum Order {
    File(Box<Found>, Option<Box<Entry>>, oneshot::Sender<Outcome>),
    Flush,
}

/// A bundle, with the entries and offsets of its files and who waits for them.
struct Full {
    bytes: Vec<u8>,
    files: Vec<(Entry, u64, oneshot::Sender<Outcome>)>,
}

/// Where small files go.
pub(super) struct Packer {
    orders: mpsc::Sender<Order>,
}

impl Packer {
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let (orders, incoming) = mpsc::channel(QUEUE);
        let (full, bundles) = mpsc::channel(1);
        let packing = Arc::clone(shared);
        std::thread::spawn(move || pack(&packing, incoming, &full));
        tokio::spawn(store_all(Arc::clone(shared), bundles));
        Self { orders }
    }

    /// Packs a file, unless its content proves to be what `before` has. The
    /// future is ready once its bundle is stored.
    pub(super) async fn add(
        &self,
        found: Found,
        before: Option<Entry>,
    ) -> impl Future<Output = Outcome> + Send + 'static + use<> {
        let (answer, outcome) = oneshot::channel();
        let order = Order::File(Box::new(found), before.map(Box::new), answer);
        // A packer that fell over drops the answer too.
        drop(self.orders.send(order).await);
        async move {
            outcome.await.unwrap_or_else(|_| {
                Outcome::Stop(Failure::new(FAILED, "packing small files failed"))
            })
        }
    }

    /// Stores what is packed so far.
    pub(super) async fn flush(&self) {
        drop(self.orders.send(Order::Flush).await);
    }
}

fn pack(shared: &Shared, mut orders: mpsc::Receiver<Order>, full: &mpsc::Sender<Full>) {
    let mut builder = Builder::new();
    let mut files = Vec::new();
    loop {
        let order = orders.blocking_recv();
        let (found, before, answer) = match order {
            Some(Order::File(found, before, answer)) => (found, before, answer),
            Some(Order::Flush) | None => {
                if builder.count() > 0 {
                    let bytes = std::mem::take(&mut builder).finish();
                    let files = std::mem::take(&mut files);
                    if full.blocking_send(Full { bytes, files }).is_err() {
                        return;
                    }
                }
                if order.is_none() {
                    return;
                }
                continue;
            }
        };
        let (opened, bytes, sha256) = match read(shared, &found) {
            Ok(read) => read,
            Err(ReadError::Changed) => {
                drop(answer.send(changed(&found)));
                continue;
            }
            Err(error) => {
                drop(answer.send(unreadable(&found, error)));
                continue;
            }
        };
        if let Some(before) = before
            && let Kind::File(content) = &before.kind
            && content.sha256 == sha256
            && content.size == opened.size()
        {
            let mut entry = with_content(opened, sha256, &content.at);
            entry.deleted = shared.deleted_by_us(&found);
            drop(answer.send(Outcome::Kept(Box::new(entry))));
            continue;
        }
        if !builder.fits(bytes.len(), BUNDLE_SIZE) {
            let bytes = std::mem::take(&mut builder).finish();
            let files = std::mem::take(&mut files);
            if full.blocking_send(Full { bytes, files }).is_err() {
                return;
            }
        }
        match builder.add(&found.path, &bytes, sha256) {
            Ok(offset) => {
                let mut entry = opened.into_entry(sha256);
                entry.deleted = shared.deleted_by_us(&found);
                files.push((entry, offset, answer));
            }
            Err(why) => {
                let failure = Failure::new(FAILED, format!("cannot pack {}: {why}", found.shown()));
                drop(answer.send(Outcome::Problem(found.path.clone(), failure)));
            }
        }
    }
}

fn read(
    shared: &Shared,
    found: &Found,
) -> Result<(Opened, Vec<u8>, super::content::Sha256), ReadError> {
    for _ in 1..ATTEMPTS {
        let opened = Opened::open(found, &shared.names)?;
        // Grown since the walk: too large to be held in memory.
        if opened.size() > BUNDLE_SIZE as u64 {
            return Err(ReadError::Changed);
        }
        match opened.read_all(shared.pace.as_deref()) {
            Ok((bytes, sha256)) => return Ok((opened, bytes, sha256)),
            Err(ReadError::Changed) => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Err(ReadError::Changed)
}

async fn store_all(shared: Arc<Shared>, mut bundles: mpsc::Receiver<Full>) {
    let options = PutOptions {
        content_type: Some(BUNDLE_TYPE.to_owned()),
        ..shared.plan.put.clone()
    };
    let options = Arc::new(options);
    let mut tasks = tokio::task::JoinSet::new();
    let mut n = 0;
    while let Some(bundle) = bundles.recv().await {
        if tasks.len() >= AT_ONCE {
            drop(tasks.join_next().await);
        }
        let key = bundle_key(&shared.run, n);
        n += 1;
        tasks.spawn(store(
            Arc::clone(&shared),
            key,
            Arc::clone(&options),
            bundle,
        ));
    }
    drop(tasks.join_all().await);
}

async fn store(shared: Arc<Shared>, key: String, options: Arc<PutOptions>, bundle: Full) {
    let bytes = Bytes::from(bundle.bytes);
    let stored = shared
        .put(&key, &options, || Upload::from_bytes(bytes.clone()))
        .await;
    drop(bytes);
    for (mut entry, offset, answer) in bundle.files {
        let outcome = match &stored {
            Ok(receipt) => {
                place_at(&mut entry, &key, receipt, Some(offset));
                if let Some(journal) = &shared.journal {
                    journal.stored(&entry);
                }
                Outcome::Stored(Box::new(entry))
            }
            Err(failure) => Outcome::Stop(failure.clone()),
        };
        drop(answer.send(outcome));
    }
}
