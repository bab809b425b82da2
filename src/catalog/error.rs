//! Why the catalogue cannot be used, by what the operator can do about it.

use std::path::{Path, PathBuf};

use crate::api;

/// What kept a record from being written or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file is damaged, or is no SQLite database.
    #[error("the catalogue {} is damaged: {detail}", path.display())]
    Corrupt {
        /// The catalogue's file.
        path: PathBuf,
        /// What SQLite found.
        detail: String,
    },
    /// Another program's database.
    #[error("{} is a database, but not a Strongroom catalogue", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later release.
    #[error("the catalogue {} has schema version {found}; this release knows {known}", path.display())]
    Newer {
        /// The catalogue's file.
        path: PathBuf,
        /// Its schema version.
        found: i32,
        /// The newest this release knows.
        known: usize,
    },
    /// The catalogue that is there knows more than the one that was to take
    /// its place.
    #[error("the catalogue {} has {there} changes, and this copy {here}", path.display())]
    NewerThere {
        /// The catalogue's file.
        path: PathBuf,
        /// Its changes.
        there: u64,
        /// The copy's.
        here: u64,
    },
    /// No space left, or over a quota.
    #[error("the catalogue {} cannot grow: the disk is full", path.display())]
    Full {
        /// The catalogue's file.
        path: PathBuf,
    },
    /// The system refused to read or write it.
    #[error("cannot use the catalogue {}: {detail}", path.display())]
    Io {
        /// The catalogue's file.
        path: PathBuf,
        /// What SQLite or the system said.
        detail: String,
    },
    /// A value that no receipt of ours has, such as a message id that is not
    /// hexadecimal.
    #[error("not a record for the catalogue: {0}")]
    Invalid(&'static str),
    /// The catalogue was closed, or its writer could not be started.
    #[error("the catalogue is closed")]
    Closed,
}

impl CatalogError {
    /// Sorts SQLite's errors; `path` is for the message.
    pub(super) fn sqlite(path: &Path, error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let path = path.to_owned();
        let detail = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt { path, detail }
            }
            Some(ErrorCode::DiskFull) => Self::Full { path },
            _ => Self::Io { path, detail },
        }
    }

    /// What the operator can do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => {
                "stop the agent; then `strongroom catalog restore FILE` puts a backup back, or move the file (with its -wal and -shm files) aside, start the agent, and `strongroom catalog rebuild s3://BUCKET` finds what the bucket can tell (docs/catalog.md)"
            }
            Self::NotOurs { .. } => {
                "point agent.state_dir at a directory of the agent's own, or move the file away"
            }
            Self::Newer { .. } => {
                "run the release that wrote it, or a later one; or restore the copy made before the upgrade"
            }
            Self::NewerThere { .. } => {
                "what the newer one knows is lost if it goes; --force says that it shall"
            }
            Self::Full { .. } => {
                "free space on the file system of agent.state_dir; the agent goes on by itself"
            }
            Self::Io { .. } => {
                "check the owner, permissions, mount and disk of agent.state_dir; the agent's user must own it"
            }
            Self::Invalid(_) | Self::Closed => "the agent's log has the details",
        }
    }
}

impl From<CatalogError> for api::Error {
    fn from(error: CatalogError) -> Self {
        let kind = match error {
            CatalogError::Invalid(_) => api::ErrorKind::Internal,
            _ => api::ErrorKind::StateFailed,
        };
        Self::new(kind, error.to_string()).hint(error.hint())
    }
}
