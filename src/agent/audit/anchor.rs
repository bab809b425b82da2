//! Where checkpoints are put out of the operator's reach: one small object
//! each, retained by Object Lock, or one file each on a medium that is
//! written once.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use crate::audit::{Note, ORIGIN_PREFIX, anchor_name, anchored_size, parse_notes};
use crate::config::{Anchor, Config};
use crate::store::{Attributes, Store};

/// Longest checkpoint that is read back, in bytes: ours have some 500.
const MAX_NOTE: usize = 16 << 10;

/// An anchor in use.
pub(super) struct Anchorage {
    place: Anchor,
    retention: Duration,
    store: Store,
}

impl Anchorage {
    pub(super) fn new(config: &Config, store: Store) -> Option<Self> {
        Some(Self {
            place: config.audit.anchor.clone()?,
            retention: config.audit.anchor_retention.duration(),
            store,
        })
    }

    /// Stores a checkpoint for good. Doing it twice does no harm.
    pub(super) async fn put(&self, note: &Note) -> Result<(), String> {
        let name = anchor_name(&note.checkpoint);
        match &self.place {
            Anchor::S3 { bucket, prefix } => {
                let attributes = Attributes {
                    retain_until: Some(self.until()?),
                    retention_mode: Some("COMPLIANCE".to_owned()),
                    ..Attributes::default()
                };
                let text = Bytes::from(note.text());
                let name = format!("{prefix}{name}");
                let stored = self.store.put_slot(bucket, &name, text, &attributes).await;
                stored.map_err(|error| error.to_string())
            }
            Anchor::Dir(dir) => {
                let (path, text) = (dir.join(name), note.text());
                tokio::task::spawn_blocking(move || write_once(&path, &text))
                    .await
                    .map_err(|error| error.to_string())?
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// The checkpoint of this log over so many records.
    pub(super) async fn read(&self, origin: &str, size: u64) -> Result<Note, String> {
        let log = origin.strip_prefix(ORIGIN_PREFIX).unwrap_or(origin);
        let name = format!("{log}/{size:020}.checkpoint");
        let bytes = match &self.place {
            Anchor::S3 { bucket, prefix } => {
                let name = format!("{prefix}{name}");
                let got = self.store.get_slot(bucket, &name, MAX_NOTE).await;
                got.map_err(|error| error.to_string())?.to_vec()
            }
            Anchor::Dir(dir) => {
                std::fs::read(dir.join(&name)).map_err(|error| error.to_string())?
            }
        };
        let text = String::from_utf8(bytes).unwrap_or_default();
        let note = parse_notes(&text).notes.pop();
        let note = note.filter(|note| note.checkpoint.tree.size == size);
        note.filter(|note| note.checkpoint.origin == origin)
            .ok_or_else(|| format!("{name} is no checkpoint of this log"))
    }

    fn until(&self) -> Result<String, String> {
        let until = Timestamp::now().checked_add(self.retention);
        let until = until.map_err(|error| error.to_string())?;
        Ok(format!("{until:.0}"))
    }

    /// The size of the largest tree of this log that is anchored.
    pub(super) async fn newest(&self, origin: &str) -> Result<Option<u64>, String> {
        match &self.place {
            Anchor::S3 { bucket, prefix } => {
                let log = origin.strip_prefix(ORIGIN_PREFIX).unwrap_or(origin);
                let prefix = format!("{prefix}{log}/");
                let (mut newest, mut next) = (None, None);
                loop {
                    let listed = self
                        .store
                        .list(bucket, &prefix, None, next.as_deref(), 1000);
                    let page = listed.await.map_err(|error| error.to_string())?;
                    let sizes = page.objects.iter().filter_map(|o| anchored_size(&o.key));
                    newest = newest.max(sizes.max());
                    next = page.continuation;
                    if next.is_none() {
                        return Ok(newest);
                    }
                }
            }
            Anchor::Dir(dir) => {
                let log = origin.strip_prefix(ORIGIN_PREFIX).unwrap_or(origin);
                newest_file(&dir.join(log)).map_err(|error| error.to_string())
            }
        }
    }
}

fn newest_file(dir: &PathBuf) -> std::io::Result<Option<u64>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut newest = None;
    for entry in entries {
        newest = newest.max(entry?.file_name().to_str().and_then(anchored_size));
    }
    Ok(newest)
}

fn write_once(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path);
    match made {
        Ok(mut file) => {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        }
        // An attempt whose end we did not hear of.
        Err(_) if std::fs::read_to_string(path).is_ok_and(|there| there == text) => Ok(()),
        Err(error) => Err(error),
    }
}
