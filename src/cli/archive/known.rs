//! What earlier runs stored: the last manifest, and what a run that broke off
//! had got to, as one stream in path order.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;

use super::options::Plan;
use crate::api::{ErrorKind, Standing};
use crate::cli::failure::{ALTERED, FAILED, Failure};
use crate::client::{Client, GetOptions, ObjectInfo};
use crate::manifest::{Entry, Head, LATEST, Latest, PARTIAL, Reader, RelPath, RunId, Writer};

/// Bytes of `latest` that are read, at most. Ours.
const MAX_LATEST: usize = 16 << 10;

/// A file read from its beginning, however often it is shared.
pub(super) struct Positioned {
    file: File,
    at: u64,
}

impl Positioned {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        Ok(Self {
            file: file.try_clone()?,
            at: 0,
        })
    }
}

impl Read for Positioned {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Earlier manifests, the newest first.
pub(super) struct Known {
    sources: Vec<Source>,
    /// The entries of a run that broke off.
    carried: Option<File>,
}

struct Source {
    reader: Reader<Positioned>,
    next: Option<Entry>,
}

impl Source {
    fn open(file: &File, name: &str) -> Result<Self, Failure> {
        let source = Positioned::new(file).map_err(|error| spool(&error))?;
        let reader = Reader::open(source).map_err(|error| unusable(name, &error))?;
        let mut source = Self { reader, next: None };
        source.advance()?;
        Ok(source)
    }

    fn advance(&mut self) -> Result<Option<Entry>, Failure> {
        let next = self
            .reader
            .next()
            .map_err(|error| unusable("the last run's manifest", &error))?;
        Ok(std::mem::replace(&mut self.next, next))
    }
}

impl Known {
    /// Nothing.
    pub(super) fn nothing() -> Self {
        Self {
            sources: Vec::new(),
            carried: None,
        }
    }

    /// The entries of a run that broke off: every checkpoint of this one has
    /// those that it has not come to.
    pub(super) fn carried_file(&self) -> Result<Option<File>, Failure> {
        let file = self.carried.as_ref().map(File::try_clone).transpose();
        file.map_err(|error| spool(&error))
    }

    /// Fetches what there is; `journal` is what a killed run had acknowledged.
    pub(super) async fn fetch(
        client: &Client,
        plan: &Plan,
        head: &Head,
        journal: Vec<Entry>,
    ) -> Result<Self, Failure> {
        let latest = latest(client, plan).await?;
        let mut sources = Vec::new();
        let mut newest: Option<RunId> = None;
        if let Some(latest) = latest {
            let options = GetOptions {
                version_id: latest.version_id.clone(),
                ..GetOptions::default()
            };
            let (file, info) = fetch(client, plan, &latest.manifest, &options)
                .await?
                .ok_or_else(|| {
                    Failure::new(
                        ALTERED,
                        format!("the last run's manifest is gone: no {}", plan.place_of(&latest.manifest)),
                    )
                    .hint("find out who deleted it; --full believes no earlier run and stores everything again")
                })?;
            if info.message_id.as_deref() != Some(&latest.message_id) {
                return Err(Failure::new(
                    ALTERED,
                    format!("{} is not what the last run wrote", plan.place_of(&latest.manifest)),
                )
                .hint("find out who can write to the bucket; --full believes no earlier run and stores everything again"));
            }
            sources.push(Source::open(&file, "the last run's manifest")?);
            newest = Some(latest.run);
        }
        let partial = fetch(client, plan, PARTIAL, &GetOptions::default()).await?;
        let mut partial = match partial {
            Some((file, _)) => Some(Source::open(
                &file,
                "the manifest of the run that broke off",
            )?),
            None => None,
        };
        // A complete run later than the one that broke off has all of it.
        if let Some(source) = &partial
            && newest.is_some_and(|newest| source.reader.head().run <= newest)
        {
            partial = None;
        }
        let carried = carry(head, partial, journal)?;
        if let Some(file) = &carried {
            sources.insert(
                0,
                Source::open(file, "what the run that broke off had stored")?,
            );
        }
        Ok(Self { sources, carried })
    }

    /// All that is known of the first path that is not after `path`, the
    /// newest first.
    pub(super) fn next_until(
        &mut self,
        path: Option<&RelPath>,
    ) -> Result<Option<Vec<Entry>>, Failure> {
        let paths = self
            .sources
            .iter()
            .filter_map(|source| source.next.as_ref());
        let Some(first) = paths.map(|entry| &entry.path).min().cloned() else {
            return Ok(None);
        };
        if path.is_some_and(|path| first > *path) {
            return Ok(None);
        }
        let mut entries = Vec::new();
        for source in &mut self.sources {
            if source
                .next
                .as_ref()
                .is_some_and(|entry| entry.path == first)
            {
                entries.extend(source.advance()?);
            }
        }
        Ok(Some(entries))
    }
}

/// What a run that broke off had come to, in one file, sorted.
fn carry(
    head: &Head,
    partial: Option<Source>,
    journal: Vec<Entry>,
) -> Result<Option<File>, Failure> {
    if partial.is_none() && journal.is_empty() {
        return Ok(None);
    }
    let failed = |error: crate::manifest::Error| spool(&io::Error::other(error));
    let file = tempfile::tempfile().map_err(|error| spool(&error))?;
    let mut writer = Writer::new(file, head).map_err(failed)?;
    let mut journal = journal.into_iter().peekable();
    if let Some(mut partial) = partial {
        while let Some(old) = partial.advance()? {
            while let Some(entry) = journal.next_if(|entry| entry.path < old.path) {
                writer.entry(&entry).map_err(failed)?;
            }
            let newer = journal.next_if(|entry| entry.path == old.path);
            writer.entry(&newer.unwrap_or(old)).map_err(failed)?;
        }
    }
    for entry in journal {
        writer.entry(&entry).map_err(failed)?;
    }
    writer.finish(false).map(Some).map_err(failed)
}

async fn latest(client: &Client, plan: &Plan) -> Result<Option<Latest>, Failure> {
    let Some((file, _)) = fetch(client, plan, LATEST, &GetOptions::default()).await? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    Positioned::new(&file)
        .and_then(|file| file.take(MAX_LATEST as u64).read_to_end(&mut bytes))
        .map_err(|error| spool(&error))?;
    Latest::decode(&bytes)
        .map(Some)
        .map_err(|why| unusable(LATEST, &why))
}

/// Fetches one of the archive's own objects to a file without a name; `None`
/// if there is none.
async fn fetch(
    client: &Client,
    plan: &Plan,
    key: &str,
    options: &GetOptions,
) -> Result<Option<(File, ObjectInfo)>, Failure> {
    let place = plan.place_of(key);
    let cannot = |error: &crate::api::Error| {
        let failure = Failure::api(format_args!("cannot read {place}"), error);
        match error.kind {
            ErrorKind::Forbidden => failure.hint(format!(
                "an archive reads its own manifests: grant get on {}",
                plan.place_of(crate::manifest::OWN)
            )),
            kind if kind.exit_code() == ALTERED => failure.hint("find out who can write to the bucket; --full believes no earlier run and stores everything again"),
            _ => failure,
        }
    };
    let mut download = match client.get(&place.bucket, &place.key, options).await {
        Ok(download) => download,
        Err(error) if error.kind == ErrorKind::NoSuchObject => return Ok(None),
        Err(error) => return Err(cannot(&error)),
    };
    let info = download.info.clone();
    // Anyone who may use the key could have written it: what it says would
    // keep files from being stored.
    if !info.standing.is_some_and(Standing::is_vouched_for) {
        return Err(Failure::new(
            ALTERED,
            format!("{place} is not in this host's catalogue"),
        )
        .hint("another host wrote it, or the catalogue was lost: rebuild it, name the other as a [[writer]], or store everything again with --full"));
    }
    let mut file = tempfile::tempfile().map_err(|error| spool(&error))?;
    while let Some(bytes) = download.next().await.map_err(|error| cannot(&error))? {
        file.write_all(&bytes).map_err(|error| spool(&error))?;
    }
    Ok(Some((file, info)))
}

pub(super) fn spool(error: &io::Error) -> Failure {
    Failure::new(
        FAILED,
        format!(
            "cannot spool a manifest: {}",
            crate::cli::failure::why(error)
        ),
    )
    .hint("it lies in TMPDIR, or /tmp: is there room?")
}

fn unusable(name: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(ALTERED, format!("{name} is no valid manifest: {why}"))
        .hint("--full believes no earlier run and stores everything again")
}
