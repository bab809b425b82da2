//! Objects without a manifest: a listing of keys becomes a tree of files.

use std::fs::Metadata;
use std::pin::Pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::Options;
use super::archived::{Asking, Wanted};
use super::choose::Archive;
use super::decide::{Decision, decide, modified};
use super::fetch::{Fetcher, Job, Source};
use super::report::Outcome;
use super::select::Selection;
use super::tree::Tree;
use crate::cli::failure::{FAILED, Failure, NO_SUCH};
use crate::cli::ui::{Ui, shown};
use crate::manifest::{OWN, RelPath, Time};

/// An object that is to become a file.
#[derive(Clone, Debug)]
struct Object {
    key: String,
    version_id: Option<String>,
    /// Plaintext bytes, where the catalogue knows them.
    size: Option<u64>,
    stored: Time,
}

/// Restores objects by their keys.
pub(super) struct Plain<'a> {
    pub(super) archive: &'a Archive,
    pub(super) selection: &'a Selection,
    pub(super) options: &'a Options,
    pub(super) outcome: &'a Outcome<'a>,
    pub(super) fetcher: &'a Fetcher<'a>,
}

type Running<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = ()> + 'a>>>;

impl<'a> Plain<'a> {
    /// As the objects are now, or as they were at an instant.
    pub(super) async fn run(
        &'a self,
        tree: &mut Option<Tree>,
        at: Option<jiff::Timestamp>,
    ) -> Result<(), Failure> {
        let mut running = Running::new();
        let mut seen = 0_u64;
        let mut pages = self.pages(at);
        while let Some(objects) = pages.next().await? {
            for object in objects {
                if self.outcome.is_stopped() {
                    break;
                }
                seen += 1;
                if let Some(job) = self.job(tree, object) {
                    running.push(Box::pin(self.fetcher.fetch(vec![job])));
                }
                while running.len() >= self.options.jobs {
                    running.next().await;
                }
            }
            if self.outcome.is_stopped() {
                break;
            }
        }
        while running.next().await.is_some() {}
        if seen == 0 {
            return Err(Failure::new(
                NO_SUCH,
                format!("nothing is stored under {}", self.archive.url()),
            ));
        }
        Ok(())
    }

    /// Asks for every object that is archived, before any is waited for.
    pub(super) async fn ask_all(
        &self,
        ui: &Ui,
        asking: &Asking,
        at: Option<jiff::Timestamp>,
    ) -> Result<(), Failure> {
        let mut pages = self.pages(at);
        let objects = async || -> Result<Option<Vec<Wanted>>, Failure> {
            let Some(objects) = pages.next().await? else {
                return Ok(None);
            };
            let wanted = objects.into_iter().filter_map(|object| {
                let below = object.key.strip_prefix(&self.archive.prefix)?;
                let path = RelPath::new(below).ok()?;
                let is_wanted = !is_mark(below) && self.selection.takes(&path, false);
                is_wanted.then_some((object.key, object.version_id))
            });
            Ok(Some(wanted.collect()))
        };
        asking.ask(ui, self.archive, objects).await
    }

    fn pages(&self, at: Option<jiff::Timestamp>) -> Pages<'_> {
        Pages {
            plain: self,
            at,
            continuation: None,
            open: None,
            over: false,
        }
    }

    async fn page(
        &self,
        continuation: Option<&str>,
    ) -> Result<(Vec<Object>, Option<String>), Failure> {
        let Archive {
            client,
            bucket,
            prefix,
            ..
        } = self.archive;
        let page = client.list(bucket, prefix, None, continuation).await;
        let page = page.map_err(|error| self.cannot_list(&error))?;
        let objects = page.objects.into_iter().map(|object| Object {
            version_id: None,
            size: object.plaintext_size,
            stored: instant(&object.last_modified),
            key: object.key,
        });
        Ok((objects.collect(), page.continuation))
    }

    /// Of each key the newest version that was stored by then, unless it was
    /// deleted.
    async fn page_of_versions(
        &self,
        continuation: Option<&str>,
        at: jiff::Timestamp,
        open: &mut Option<(String, Option<Object>, bool)>,
    ) -> Result<(Vec<Object>, Option<String>), Failure> {
        let Archive {
            client,
            bucket,
            prefix,
            ..
        } = self.archive;
        let page = client.versions(bucket, prefix, continuation).await;
        let page = page.map_err(|error| self.cannot_list(&error))?;
        let at = Time {
            seconds: at.as_second(),
            nanoseconds: 0,
        };
        let mut objects = Vec::new();
        for version in page.versions {
            let stored = instant(&version.last_modified);
            if open.as_ref().is_none_or(|(key, ..)| *key != version.key) {
                objects.extend(open.take().and_then(|(_, object, _)| object));
                *open = Some((version.key.clone(), None, false));
            }
            // Newest first: the first that is old enough is the one.
            let is_old_enough = (stored.seconds, 0) <= (at.seconds, 0);
            if let Some((_, object, decided)) = open
                && !*decided
                && is_old_enough
            {
                *decided = true;
                *object = (!version.delete_marker).then_some(Object {
                    key: version.key,
                    version_id: version.version_id,
                    size: None,
                    stored,
                });
            }
        }
        Ok((objects, page.continuation))
    }

    fn cannot_list(&self, error: &crate::api::Error) -> Failure {
        Failure::api(format!("cannot list {}", self.archive.url()), error)
    }

    fn job(&self, tree: &mut Option<Tree>, object: Object) -> Option<Job> {
        let below = object.key.strip_prefix(&self.archive.prefix)?;
        if is_mark(below) {
            return None;
        }
        let label = shown(below);
        let failed = |failure: Failure| self.outcome.failed(&label, &failure);
        let path = match RelPath::new(below) {
            Ok(path) => path,
            Err(why) => {
                failed(
                    Failure::new(FAILED, format!("cannot restore {label:?}: {why}"))
                        .hint("`strongroom get` fetches it under a name of your choice"),
                );
                return None;
            }
        };
        if !self.selection.takes(&path, false) {
            return None;
        }
        let spot = match tree.as_mut() {
            None => None,
            Some(tree) => match match self.options.dry_run {
                true => tree.existing_spot(&path),
                false => tree.spot(&path),
            } {
                Ok(spot) => Some(spot),
                Err(error)
                    if self.options.dry_run && error.kind() == std::io::ErrorKind::NotFound =>
                {
                    None
                }
                Err(error) => {
                    failed(Failure::io(format!("cannot restore {label}"), &error));
                    return None;
                }
            },
        };
        let there = spot.as_ref().map(super::tree::Spot::look).transpose();
        let there = match there {
            Ok(there) => there.flatten(),
            Err(error) => {
                failed(Failure::io(format!("cannot restore {label}"), &error));
                return None;
            }
        };
        let same = |meta: &Metadata| {
            meta.is_file()
                && modified(meta) == object.stored
                && object.size.is_none_or(|size| size == meta.len())
        };
        let replace = match decide(there.as_ref(), object.stored, self.options.overwrite, same) {
            Decision::Write { replace } => replace,
            Decision::Same => {
                self.outcome.add(|counts| counts.unchanged += 1);
                return None;
            }
            Decision::Keep => {
                self.outcome.add(|counts| counts.kept += 1);
                self.outcome.told(
                    "kept",
                    &label,
                    "kept: what is here is newer, or not to be replaced",
                );
                return None;
            }
            Decision::Blocked => {
                failed(Failure::new(
                    FAILED,
                    format!("cannot restore {label}: a directory of this name is there"),
                ));
                return None;
            }
        };
        let Some(spot) = spot.filter(|_| !self.options.dry_run) else {
            self.outcome.add(|counts| {
                counts.files += 1;
                counts.bytes += object.size.unwrap_or(0);
            });
            self.outcome.done(&label, true);
            return None;
        };
        Some(Job {
            path,
            spot,
            replace,
            entry: None,
            mtime: object.stored,
            size: None,
            sha256: None,
            sparse: false,
            at: Source {
                key: object.key,
                version_id: object.version_id,
                message_id: None,
                offset: None,
            },
        })
    }
}

/// What becomes no file: an archive's own, and marks that stand for directories.
fn is_mark(below: &str) -> bool {
    below.starts_with(OWN) || below.is_empty() || below.ends_with('/')
}

/// The listing, page by page.
struct Pages<'p> {
    plain: &'p Plain<'p>,
    at: Option<jiff::Timestamp>,
    continuation: Option<String>,
    /// The versions of one key may stand on two pages.
    open: Option<(String, Option<Object>, bool)>,
    over: bool,
}

impl Pages<'_> {
    async fn next(&mut self) -> Result<Option<Vec<Object>>, Failure> {
        if self.over {
            return Ok(None);
        }
        let after = self.continuation.as_deref();
        let (mut objects, next) = match self.at {
            None => self.plain.page(after).await?,
            Some(at) => {
                let open = &mut self.open;
                self.plain.page_of_versions(after, at, open).await?
            }
        };
        // A store that repeats itself must not keep us for ever.
        self.over = next.is_none() || next == self.continuation;
        if self.over {
            objects.extend(self.open.take().and_then(|(_, object, _)| object));
        }
        self.continuation = next;
        Ok(Some(objects))
    }
}

/// The store's time, to the second: listings differ in what lies below.
fn instant(text: &str) -> Time {
    let at = text.parse::<jiff::Timestamp>().unwrap_or_default();
    Time {
        seconds: at.as_second(),
        nanoseconds: 0,
    }
}
