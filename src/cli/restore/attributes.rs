//! Modes, owners, times and extended attributes: which of them a manifest may
//! set by itself, and which only on request (SECURITY rule 16).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};

use crate::manifest::{Entry, Time};

/// Permission bits that give nobody else's rights.
const PLAIN_MODE: u32 = 0o777;
/// With set-user-id, set-group-id and sticky.
const ANY_MODE: u32 = 0o7777;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// Owners, groups and access control lists.
    pub(super) owner: bool,
    /// By number, not by name.
    pub(super) numeric: bool,
    /// Set-user-id, set-group-id and sticky.
    pub(super) special_modes: bool,
    /// Capabilities, security labels, and what else only root may set.
    pub(super) privileged_xattrs: bool,
    /// Extended attributes at all.
    pub(super) xattrs: bool,
    /// Device nodes.
    pub(super) devices: bool,
}

/// Sets attributes; remembers who is who on this host.
#[derive(Default)]
pub(super) struct Attributes {
    wishes: Wishes,
    users: HashMap<String, Option<u32>>,
    groups: HashMap<String, Option<u32>>,
}

impl Attributes {
    pub(super) fn new(wishes: Wishes) -> Self {
        Self {
            wishes,
            ..Self::default()
        }
    }

    /// What the user asked for.
    pub(super) fn wishes(&self) -> Wishes {
        self.wishes
    }

    /// Everything of a regular file or a directory. The order matters:
    /// attributes while we may write, the owner before the bits that a change
    /// of owner clears, times last.
    pub(super) fn set(&mut self, fd: impl AsFd, entry: &Entry) -> io::Result<()> {
        let fd = fd.as_fd();
        for (name, value) in self.plain_xattrs(entry) {
            set_xattr(fd, name, value)?;
        }
        if let Some((user, group)) = self.owner(entry)? {
            rustix::fs::fchown(fd, Some(user), Some(group)).map_err(|e| told("owner", e.into()))?;
        }
        rustix::fs::fchmod(fd, self.mode(entry)).map_err(|e| told("mode", e.into()))?;
        for (name, value) in self.late_xattrs(entry) {
            set_xattr(fd, name, value)?;
        }
        rustix::fs::futimens(fd, &times(entry.mtime)?).map_err(|e| told("times", e.into()))
    }

    /// Owner and time of a symbolic link itself.
    pub(super) fn set_link(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> io::Result<()> {
        self.set_owner_at(dir, name, entry)?;
        let times = times(entry.mtime)?;
        rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| told("times", e.into()))
    }

    /// Owner, mode and time of a FIFO or device, without opening it.
    pub(super) fn set_node(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> io::Result<()> {
        self.set_owner_at(dir, name, entry)?;
        // A mode is set through a name, and names can be exchanged; this one
        // is the thing's own.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let path = format!("/proc/self/fd/{}", node.as_raw_fd());
        rustix::fs::chmod(path, self.mode(entry)).map_err(|e| told("mode", e.into()))?;
        let times = times(entry.mtime)?;
        rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| told("times", e.into()))
    }

    fn set_owner_at(&mut self, dir: &OwnedFd, name: &OsStr, entry: &Entry) -> io::Result<()> {
        if let Some((user, group)) = self.owner(entry)? {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(dir, name, Some(user), Some(group), flags)
                .map_err(|e| told("owner", e.into()))?;
        }
        Ok(())
    }

    fn mode(&self, entry: &Entry) -> Mode {
        let mask = match self.wishes.special_modes {
            true => ANY_MODE,
            false => PLAIN_MODE,
        };
        Mode::from_raw_mode(entry.mode & mask)
    }

    /// By name where this host has such a user, else by number.
    fn owner(&mut self, entry: &Entry) -> io::Result<Option<(Uid, Gid)>> {
        if !self.wishes.owner {
            return Ok(None);
        }
        let user = known(&mut self.users, entry.user.as_deref(), |name| {
            uzers::get_user_by_name(name).map(|user| user.uid())
        });
        let group = known(&mut self.groups, entry.group.as_deref(), |name| {
            uzers::get_group_by_name(name).map(|group| group.gid())
        });
        let (user, group) = match self.wishes.numeric {
            true => (entry.uid, entry.gid),
            false => (user.unwrap_or(entry.uid), group.unwrap_or(entry.gid)),
        };
        // To chown(2), -1 means "as it is".
        if user == u32::MAX || group == u32::MAX {
            return Err(told("owner", io::ErrorKind::InvalidInput.into()));
        }
        Ok(Some((Uid::from_raw(user), Gid::from_raw(group))))
    }

    fn plain_xattrs<'a>(&self, entry: &'a Entry) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let wanted = self.wishes.xattrs;
        entry
            .xattrs
            .iter()
            .filter(move |(name, _)| wanted && name.starts_with("user."))
            .map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// Those that a change of owner or mode would undo.
    fn late_xattrs<'a>(&self, entry: &'a Entry) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let Wishes {
            xattrs,
            owner,
            privileged_xattrs,
            ..
        } = self.wishes;
        entry
            .xattrs
            .iter()
            .filter(move |(name, _)| {
                // A list names other users.
                let list = name.starts_with("system.posix_acl_");
                let privileged = name.starts_with("security.") || name.starts_with("trusted.");
                xattrs && (list && owner || privileged && privileged_xattrs)
            })
            .map(|(name, value)| (name.as_str(), value.as_slice()))
    }
}

fn known(
    cache: &mut HashMap<String, Option<u32>>,
    name: Option<&str>,
    look: impl FnOnce(&str) -> Option<u32>,
) -> Option<u32> {
    /// Names that are remembered; a manifest may name any number.
    const MOST: usize = 4096;
    let name = name?;
    if let Some(known) = cache.get(name) {
        return *known;
    }
    if cache.len() >= MOST {
        cache.clear();
    }
    let id = look(name);
    cache.insert(name.to_owned(), id);
    id
}

fn set_xattr(fd: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
    rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
        .map_err(|error| told(&format!("extended attribute {name:?}"), error.into()))
}

/// The modification time alone.
fn times(mtime: Time) -> io::Result<Timestamps> {
    Ok(Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanoseconds.into(),
        },
    })
}

/// Sets the modification time of a file of which nothing else is known.
pub(super) fn set_time(file: &File, mtime: Time) -> io::Result<()> {
    rustix::fs::futimens(file, &times(mtime)?).map_err(|e| told("times", e.into()))
}

/// Which attribute it was.
fn told(what: &str, error: io::Error) -> io::Error {
    let why = crate::cli::failure::why(&error);
    io::Error::new(error.kind(), format!("its {what} cannot be set: {why}"))
}
