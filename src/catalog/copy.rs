//! The catalogue as a file of its own: copied while it is in use, and put back
//! while nobody uses it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::head;
use super::{Catalog, CatalogError, FILE, schema};

/// Where a file is prepared before it takes the catalogue's name.
const PREPARED: &str = "catalog.restore";
/// Rows that tell of work under way when the copy was made. It must not be
/// taken up again (docs/security.md, rule 13).
const UNDER_WAY: &[&str] = &[
    "dependents",
    "rewrap",
    "unpacked",
    "upload_part",
    "upload",
    "queue",
];

/// What was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Changes in it.
    pub changes: u64,
    /// Receipts in it.
    pub receipts: u64,
    /// Changes of the catalogue that it took the place of, if that could be
    /// opened.
    pub replaced: Option<u64>,
    /// Where that one is now.
    pub kept: Option<PathBuf>,
}

impl Catalog {
    /// Copies the catalogue, as it is at one instant, into a file that does
    /// not exist yet (mode 0600). It stays in use meanwhile.
    ///
    /// # Errors
    /// The catalogue cannot be read, or the file not written.
    pub async fn copy(&self, to: &Path) -> Result<(), CatalogError> {
        let (from, to) = (self.readers.path().to_owned(), to.to_owned());
        let copied = tokio::task::spawn_blocking(move || {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&to)
                .map_err(|error| io(&to, &error))?;
            let conn = schema::open_plain(&from)?;
            let text = to.to_string_lossy();
            conn.execute("VACUUM INTO ?1", [&text])
                .map_err(|error| CatalogError::sqlite(&from, error))?;
            Ok(())
        });
        copied.await.unwrap_or(Err(CatalogError::Closed))
    }

    /// Makes a copy the catalogue of a state directory whose agent is stopped.
    /// What is there is kept under another name. Counts of wraps are marked as
    /// lost, and work that was under way is forgotten.
    ///
    /// # Errors
    /// It is damaged, not a catalogue, or of a later release;
    /// [`CatalogError::NewerThere`] if the one that is there knows more and
    /// `force` does not say that it shall go.
    pub fn restore(state_dir: &Path, from: &Path, force: bool) -> Result<Restored, CatalogError> {
        let (prepared, path) = (state_dir.join(PREPARED), state_dir.join(FILE));
        remove(&prepared)?;
        fs::copy(from, &prepared).map_err(|error| io(from, &error))?;
        fs::set_permissions(&prepared, fs::Permissions::from_mode(0o600))
            .map_err(|error| io(&prepared, &error))?;
        let outcome = restore(state_dir, &prepared, &path, force);
        if outcome.is_err() {
            remove(&prepared)?;
        }
        outcome
    }
}

fn restore(
    state_dir: &Path,
    prepared: &Path,
    path: &Path,
    force: bool,
) -> Result<Restored, CatalogError> {
    let fail = |error| CatalogError::sqlite(prepared, error);
    let conn = schema::open_writer(prepared)?;
    schema::check_all(&conn, prepared)?;
    forget(&conn).map_err(fail)?;
    let changes = head::load(&conn).map_err(fail)?.count;
    let receipts = super::reader::counts(&conn).map_err(fail)?.receipts;
    // All in one file: what is beside it would not be renamed with it.
    conn.pragma_update(None, "journal_mode", "DELETE")
        .map_err(fail)?;
    drop(conn);
    let mut replaced = None;
    let mut kept = None;
    if path.try_exists().map_err(|error| io(path, &error))? {
        // One that cannot be opened is what this is for.
        if let Ok(there) = schema::open_writer(path) {
            let count = head::load(&there).map_err(|e| CatalogError::sqlite(path, e))?;
            replaced = Some(count.count);
            let folded = there.pragma_update(None, "journal_mode", "DELETE");
            folded.map_err(|e| CatalogError::sqlite(path, e))?;
            if count.count > changes && !force {
                return Err(CatalogError::NewerThere {
                    path: path.to_owned(),
                    there: count.count,
                    here: changes,
                });
            }
        }
        kept = Some(set_aside(path)?);
    }
    let meta = fs::metadata(state_dir).map_err(|error| io(state_dir, &error))?;
    chown(prepared, Some(meta.uid()), Some(meta.gid())).map_err(|error| io(prepared, &error))?;
    let durable = fs::File::open(prepared).and_then(|file| file.sync_all());
    durable.map_err(|error| io(prepared, &error))?;
    fs::rename(prepared, path).map_err(|error| io(path, &error))?;
    let durable = fs::File::open(state_dir).and_then(|dir| dir.sync_all());
    durable.map_err(|error| io(state_dir, &error))?;
    Ok(Restored {
        changes,
        receipts,
        replaced,
        kept,
    })
}

/// What a copy must not bring back: counts that others may have passed since,
/// and work under way.
fn forget(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("UPDATE wraps SET complete = 0", [])?;
    for table in UNDER_WAY {
        conn.execute(&format!("DELETE FROM {table}"), [])?;
    }
    Ok(())
}

/// Renames a catalogue, with the files beside it.
fn set_aside(path: &Path) -> Result<PathBuf, CatalogError> {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let mut aside = path.to_owned();
    aside.set_extension(format!("sqlite.replaced-{now}"));
    for beside in ["", "-wal", "-shm"] {
        let with = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(beside);
            PathBuf::from(name)
        };
        match fs::rename(with(path), with(&aside)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io(path, &error));
            }
            _ => {}
        }
    }
    Ok(aside)
}

fn remove(path: &Path) -> Result<(), CatalogError> {
    for beside in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(beside);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io(path, &error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn io(path: &Path, error: &std::io::Error) -> CatalogError {
    CatalogError::Io {
        path: path.to_owned(),
        detail: error.to_string(),
    }
}
