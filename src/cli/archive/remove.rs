//! `--delete-after`: deletes what is stored, read back through the agent, and
//! still the same here. Any doubt keeps a file.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags};
use tokio::task::JoinSet;

use super::content::{Opened, ReadError};
use super::entries::Stamp;
use super::known::{Positioned, spool};
use super::report::Report;
use super::store::Shared;
use super::walk::{Found, Root, shown_below};
use crate::api::ErrorKind;
use crate::cli::failure::{FAILED, Failure, why};
use crate::cli::ui::Ui;
use crate::client::GetOptions;
use crate::crypto::digest::{Context, SHA256};
use crate::manifest::{Content, Entry, Kind, Reader};

/// Deletes what this run's manifest marks as deleted by it.
pub(super) async fn remove(
    ui: &Ui,
    shared: &Arc<Shared>,
    roots: &[Arc<Root>],
    manifest: &File,
    report: &mut Report,
) -> Result<(), Failure> {
    let source = Positioned::new(manifest).map_err(|error| spool(&error))?;
    let failed = |error: crate::manifest::Error| spool(&std::io::Error::other(error));
    let mut entries = Reader::open(source).map_err(failed)?;
    let mut tasks: JoinSet<(Entry, Result<bool, Failure>)> = JoinSet::new();
    loop {
        let entry = entries.next().map_err(failed)?;
        while tasks.len() >= shared.plan.jobs || entry.is_none() && !tasks.is_empty() {
            if let Some(Ok((entry, result))) = tasks.join_next().await {
                match result {
                    Ok(true) => report.deleted(ui, &entry)?,
                    Ok(false) => {}
                    Err(failure) if failure.code() == FAILED => report.problem(ui, &failure)?,
                    Err(failure) => return Err(failure),
                }
            }
        }
        let Some(entry) = entry else { return Ok(()) };
        if entry.deleted.as_deref() != Some(shared.run.as_str()) {
            continue;
        }
        let root = roots.iter().find(|root| entry.path.is_within(&root.name));
        if let (Some(root), Kind::File(content)) = (root, &entry.kind) {
            let (shared, root, content) = (Arc::clone(shared), Arc::clone(root), content.clone());
            tasks.spawn(async move {
                let result = one(&shared, &root, &entry, &content).await;
                (entry, result)
            });
        }
    }
}

/// Whether the file was deleted; `false` if it is not there any more.
async fn one(
    shared: &Arc<Shared>,
    root: &Arc<Root>,
    entry: &Entry,
    content: &Content,
) -> Result<bool, Failure> {
    let within = entry.path.as_path();
    let within = within.strip_prefix(root.name.as_path()).unwrap_or(within);
    let shown = shown_below(&root.path, within);
    read_back(shared, content, &shown).await?;
    let (root, within, entry) = (Arc::clone(root), within.to_owned(), entry.clone());
    let sha256 = content.sha256;
    let keeping = Arc::clone(shared);
    let deleted =
        tokio::task::spawn_blocking(move || delete(&keeping, &root, &within, &entry, &sha256))
            .await;
    match deleted {
        Ok(Ok(deleted)) => Ok(deleted),
        Ok(Err(why)) => Err(kept(&shown, &why)),
        Err(_) => Err(kept(&shown, "its thread failed")),
    }
}

fn kept(shown: &str, why: &str) -> Failure {
    Failure::new(FAILED, format!("did not delete {shown}: {why}"))
        .hint("it is still here; the next run stores it, or deletes it")
}

/// Reads what is stored, all of it, and compares it with what was read here.
async fn read_back(shared: &Shared, content: &Content, shown: &str) -> Result<(), Failure> {
    let at = &content.at;
    let place = shared.plan.place_of(&at.key);
    let refused = |error: &crate::api::Error| {
        let failure = Failure::api(
            format_args!("did not delete {shown}: cannot read back {place}"),
            error,
        );
        // Away is away for all of them; anything else is this file's fault.
        match error.kind {
            kind if kind.exit_code() == 75 && kind != ErrorKind::Archived => failure,
            _ => {
                let (what, hint) = failure.parts();
                Failure::new(FAILED, what).hint(hint.unwrap_or_default())
            }
        }
    };
    let range = at.offset.filter(|_| content.size > 0).map(|offset| {
        let last = offset.saturating_add(content.size - 1);
        format!("bytes={offset}-{last}")
    });
    let is_empty_part = at.offset.is_some() && content.size == 0;
    let options = GetOptions {
        range,
        version_id: at.version_id.clone(),
        ..GetOptions::default()
    };
    let mut download = shared
        .client
        .get(&place.bucket, &place.key, &options)
        .await
        .map_err(|error| refused(&error))?;
    if download.info.message_id.as_deref() != Some(&at.message_id) {
        return Err(kept(shown, &format!("{place} is not what was stored")));
    }
    if is_empty_part {
        return Ok(());
    }
    let mut hash = Context::new(&SHA256);
    let mut length = 0;
    while let Some(bytes) = download.next().await.map_err(|error| refused(&error))? {
        length += bytes.len() as u64;
        hash.update(&bytes);
    }
    if length != content.size || hash.finish().as_ref() != content.sha256 {
        return Err(kept(shown, &format!("{place} has another content")));
    }
    Ok(())
}

/// Deletes a file that is still the one that was stored. Blocks.
fn delete(
    shared: &Shared,
    root: &Arc<Root>,
    within: &Path,
    entry: &Entry,
    sha256: &[u8; 32],
) -> Result<bool, String> {
    const CHANGED: &str = "it has changed since it was stored";
    let system = |error: std::io::Error| why(&error);
    let name = within.file_name().ok_or("it has no name")?;
    let directory = within.parent().unwrap_or(Path::new(""));
    let directory = root
        .open(directory, OFlags::PATH | OFlags::DIRECTORY)
        .map_err(system)?;
    let meta = match root.open(within, OFlags::PATH) {
        Ok(file) => File::from(file).metadata().map_err(system)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(system(error)),
    };
    let found = Found {
        path: entry.path.clone(),
        root: Arc::clone(root),
        within: within.to_owned(),
        meta,
    };
    if Stamp::of(&found.meta) != Stamp::then(entry) || shared.deleted_by_us(&found).is_none() {
        return Err(CHANGED.to_owned());
    }
    let read = Opened::open(&found, &shared.names)
        .and_then(|opened| opened.read(shared.pace.as_deref(), |_| true));
    match read {
        Ok(now) if now == *sha256 => {}
        Ok(_) | Err(ReadError::Changed) => return Err(CHANGED.to_owned()),
        Err(ReadError::Gone) => return Ok(false),
        Err(ReadError::Io(error)) => return Err(why(&error)),
    }
    // The name once more, and then the name: what is between cannot be closed.
    let last = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| system(error.into()))?;
    let then = Stamp::then(entry);
    if !then.is_of(&last) {
        return Err(CHANGED.to_owned());
    }
    rustix::fs::unlinkat(&directory, name, AtFlags::empty())
        .map_err(|error| system(error.into()))?;
    Ok(true)
}
