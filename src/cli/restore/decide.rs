//! What becomes of something that is to be at a place where something may be.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use super::Overwrite;
use crate::manifest::Time;

/// What becomes of something that is to be at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is made; whether in place of something.
    Write {
        /// Something is there.
        replace: bool,
    },
    /// It is there already.
    Same,
    /// What is there stays.
    Keep,
    /// A directory is in the way.
    Blocked,
}

/// Decides by what is there; `same` says whether that is it already.
pub(super) fn decide(
    there: Option<&Metadata>,
    mtime: Time,
    overwrite: Overwrite,
    same: impl FnOnce(&Metadata) -> bool,
) -> Decision {
    let Some(there) = there else {
        return Decision::Write { replace: false };
    };
    if there.is_dir() {
        return Decision::Blocked;
    }
    if same(there) {
        return Decision::Same;
    }
    match overwrite {
        Overwrite::Never => Decision::Keep,
        Overwrite::Older if modified(there) > mtime => Decision::Keep,
        Overwrite::Older | Overwrite::Always => Decision::Write { replace: true },
    }
}

/// When something here was last changed.
pub(super) fn modified(meta: &Metadata) -> Time {
    Time {
        seconds: meta.mtime(),
        nanoseconds: u32::try_from(meta.mtime_nsec()).unwrap_or_default(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_newer_here_stays_unless_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"here").unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        let at = |seconds: i64| Time {
            seconds: modified(&meta).seconds + seconds,
            ..modified(&meta)
        };
        let decide = |mtime, overwrite, same| decide(Some(&meta), mtime, overwrite, |_| same);
        let write = Decision::Write { replace: true };
        assert_eq!(decide(at(1), Overwrite::Older, false), write);
        assert_eq!(decide(at(0), Overwrite::Older, false), write);
        assert_eq!(decide(at(-1), Overwrite::Older, false), Decision::Keep);
        assert_eq!(decide(at(-1), Overwrite::Always, false), write);
        assert_eq!(decide(at(1), Overwrite::Never, false), Decision::Keep);
        assert_eq!(decide(at(1), Overwrite::Always, true), Decision::Same);
        let inside = std::fs::metadata(dir.path()).unwrap();
        let blocked = super::decide(Some(&inside), at(1), Overwrite::Always, |_| false);
        assert_eq!(blocked, Decision::Blocked);
        let fresh = super::decide(None, at(1), Overwrite::Never, |_| false);
        assert_eq!(fresh, Decision::Write { replace: false });
    }
}
