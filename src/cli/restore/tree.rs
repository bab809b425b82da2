//! Writing into a tree by names that somebody else may have chosen (SECURITY
//! rule 16).
//!
//! The target is opened once; everything below it is reached from that
//! descriptor, by the kernel's own rules: no symbolic link is followed, no
//! `..` leads out (`openat2`). A file is written without a name, or under a
//! random one, and takes its place whole.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::LazyLock;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags,
};
use rustix::io::Errno;

use crate::cli::failure::{Failure, TEMPORARY};
use crate::manifest::RelPath;

/// What temporary names begin with. 16 hexadecimal digits follow: half of them
/// are the process's, so that it does not sweep away its own.
const TEMPORARY_NAME: &str = ".strongroom-restore-";
/// This process's digits in temporary names.
static PROCESS: LazyLock<String> =
    LazyLock::new(|| random_digits().unwrap_or_else(|_| "00000000".to_owned()));
/// Attempts at a path while somebody renames directories around us: the
/// kernel answers EAGAIN when it cannot be sure (openat2(2)).
const ATTEMPTS: usize = 16;
/// Until a directory gets its own mode: nobody else looks into what is half
/// restored.
const DIR_MODE: u32 = 0o700;

/// The target of a restore.
pub(super) struct Tree {
    root: Rc<OwnedFd>,
    path: PathBuf,
    /// The directory used last: entries come directory by directory.
    last: Option<(RelPath, Rc<OwnedFd>)>,
}

/// A directory of the tree, and the name of an entry in it.
#[derive(Clone)]
pub(super) struct Spot {
    dir: Rc<OwnedFd>,
    name: OsString,
}

impl Tree {
    /// Opens the target directory, and makes it if it is not there. No other
    /// restore may write into it meanwhile.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: &io::Error| {
            Failure::io(format!("cannot restore into {}", path.display()), error)
        };
        std::fs::create_dir_all(path).map_err(|e| cannot(&e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| cannot(&e.into()))?;
        match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Failure::new(
                    TEMPORARY,
                    format!("another restore writes into {} now", path.display()),
                )
                .hint("wait for it, or name another directory"));
            }
            // Some network file systems have no locks.
            Err(_) => {}
        }
        Ok(Self {
            root: Rc::new(root),
            path: path.to_owned(),
            last: None,
        })
    }

    /// A directory that is there.
    pub(super) fn dir(&mut self, path: &RelPath) -> io::Result<Rc<OwnedFd>> {
        if path.is_root() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(dir));
        }
        let dir = Rc::new(self.beneath(path)?);
        self.last = Some((path.clone(), Rc::clone(&dir)));
        Ok(dir)
    }

    /// Makes a directory, and those above it; says whether it is new. One
    /// that is there and `wanted` is opened to its owner: an earlier run may
    /// have given it a mode that closes it, and the last step sets modes again.
    pub(super) fn make_dir(
        &mut self,
        path: &RelPath,
        wanted: bool,
    ) -> io::Result<(Rc<OwnedFd>, bool)> {
        match self.dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => {
                let dir = found?;
                sweep(&dir);
                if wanted {
                    make_writable(&dir)?;
                }
                return Ok((dir, false));
            }
        }
        let spot = self.spot(path)?;
        match rustix::fs::mkdirat(&spot.dir, &spot.name, Mode::from_raw_mode(DIR_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok((self.dir(path)?, true))
    }

    /// Where an entry is to be; its directory is made if it is not there.
    pub(super) fn spot(&mut self, path: &RelPath) -> io::Result<Spot> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let name = path.components().last().unwrap_or_default();
        let dir = match self.dir(&parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_dir(&parent, false)?.0
            }
            found => found?,
        };
        Ok(Spot {
            dir,
            name: OsStr::from_bytes(name).to_owned(),
        })
    }

    /// The same where nothing is to be made.
    pub(super) fn existing_spot(&mut self, path: &RelPath) -> io::Result<Spot> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let name = path.components().last().unwrap_or_default();
        Ok(Spot {
            dir: self.dir(&parent)?,
            name: OsStr::from_bytes(name).to_owned(),
        })
    }

    /// A file without a name for the run's own use; gone when it is closed.
    pub(super) fn scratch(&self) -> io::Result<File> {
        // Names of files are as confidential as the files: not in /tmp.
        match unnamed(&self.root, OFlags::RDWR) {
            Ok(file) => Ok(file),
            Err(_) => tempfile::tempfile_in(&self.path),
        }
    }

    /// Makes everything durable: one call for all files.
    pub(super) fn sync(&self) -> io::Result<()> {
        rustix::fs::syncfs(&self.root).map_err(Into::into)
    }

    /// Opens a directory below the target, and never anything else.
    fn beneath(&self, path: &RelPath) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..ATTEMPTS {
            let opened =
                rustix::fs::openat2(&self.root, path.as_path(), flags, Mode::empty(), resolve);
            match opened {
                Err(Errno::AGAIN) => {}
                // Linux before 5.6: name by name. No component is `..`, and
                // none is followed.
                Err(Errno::NOSYS) => return self.step_by_step(path, flags),
                // The last component may be the link; O_NOFOLLOW tells it so.
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(io::Error::other(
                        "a link or a file is in a directory's place",
                    ));
                }
                found => return found.map_err(Into::into),
            }
        }
        Err(Errno::AGAIN.into())
    }

    fn step_by_step(&self, path: &RelPath, flags: OFlags) -> io::Result<OwnedFd> {
        let mut dir = self.root.try_clone()?;
        for name in path.components() {
            dir = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
        }
        Ok(dir)
    }
}

/// Removes what a restore that was killed left in a directory. Nobody else
/// is at work: the target is locked.
fn sweep(dir: &OwnedFd) {
    let Ok(entries) = Dir::read_from(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if is_temporary(name.to_bytes()) {
            // What cannot be removed is in nobody's way.
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
    }
}

fn is_temporary(name: &[u8]) -> bool {
    name.strip_prefix(TEMPORARY_NAME.as_bytes())
        .is_some_and(|rest| {
            rest.len() == 16
                && !rest.starts_with(PROCESS.as_bytes())
                && rest.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
}

fn make_writable(dir: &OwnedFd) -> io::Result<()> {
    let meta = File::from(dir.try_clone()?).metadata()?;
    let me = rustix::process::geteuid();
    if !me.is_root() && meta.uid() == me.as_raw() && meta.mode() & DIR_MODE != DIR_MODE {
        let mode = Mode::from_raw_mode(meta.mode() & 0o7777 | DIR_MODE);
        rustix::fs::fchmod(dir, mode)?;
    }
    Ok(())
}

fn unnamed(dir: &OwnedFd, access: OFlags) -> rustix::io::Result<File> {
    let flags = OFlags::TMPFILE | access | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(0o600)).map(File::from)
}

fn random_digits() -> io::Result<String> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(data_encoding::HEXLOWER.encode(&random))
}

fn temporary_name() -> io::Result<OsString> {
    let digits = random_digits()?;
    Ok(format!("{TEMPORARY_NAME}{}{digits}", *PROCESS).into())
}

impl Spot {
    /// What is there, itself and not what it points to.
    pub(super) fn look(&self) -> io::Result<Option<Metadata>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd).metadata().map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens what is there to be read, if it is a regular file.
    pub(super) fn read(&self) -> io::Result<File> {
        // NONBLOCK: a FIFO would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty())?;
        let file = File::from(fd);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("it is no regular file")),
        }
    }

    /// Where a symbolic link points to.
    pub(super) fn read_link(&self) -> io::Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(&self.dir, &self.name, Vec::new())?;
        Ok(target.into_bytes())
    }

    /// Begins a file that has no name yet.
    pub(super) fn begin(&self) -> io::Result<NewFile> {
        let (file, temporary) = match unnamed(&self.dir, OFlags::WRONLY) {
            Ok(file) => (file, None),
            // What kernels and file systems without it answer.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let name = temporary_name()?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                let fd = rustix::fs::openat(&self.dir, &name, flags, mode)?;
                (File::from(fd), Some(name))
            }
            Err(error) => return Err(error.into()),
        };
        Ok(NewFile {
            spot: self.clone(),
            file,
            temporary,
        })
    }

    /// Makes something that is no regular file, under a temporary name, and
    /// puts it into place once `finish` is through with it.
    fn make(
        &self,
        replace: bool,
        make: impl FnOnce(&OwnedFd, &OsStr) -> rustix::io::Result<()>,
        finish: impl FnOnce(&OwnedFd, &OsStr) -> io::Result<()>,
    ) -> io::Result<()> {
        let name = temporary_name()?;
        make(&self.dir, &name)?;
        finish(&self.dir, &name)
            .and_then(|()| self.rename(&name, replace))
            .inspect_err(|_| self.unlink(&name))
    }

    /// A symbolic link; its target is only written down.
    pub(super) fn symlink(
        &self,
        target: &[u8],
        replace: bool,
        finish: impl FnOnce(&OwnedFd, &OsStr) -> io::Result<()>,
    ) -> io::Result<()> {
        let target = OsStr::from_bytes(target);
        let make = |dir: &OwnedFd, name: &OsStr| rustix::fs::symlinkat(target, dir, name);
        self.make(replace, make, finish)
    }

    /// A FIFO or a device.
    pub(super) fn node(
        &self,
        kind: FileType,
        number: u64,
        replace: bool,
        finish: impl FnOnce(&OwnedFd, &OsStr) -> io::Result<()>,
    ) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o600);
        let make = |dir: &OwnedFd, name: &OsStr| rustix::fs::mknodat(dir, name, kind, mode, number);
        self.make(replace, make, finish)
    }

    /// Another name of the file at `first`.
    pub(super) fn hard_link(&self, first: &Self, replace: bool) -> io::Result<()> {
        let make = |dir: &OwnedFd, name: &OsStr| {
            // Without SYMLINK_FOLLOW: what is there itself.
            rustix::fs::linkat(&first.dir, &first.name, dir, name, AtFlags::empty())
        };
        let name = temporary_name()?;
        make(&self.dir, &name)?;
        let renamed = self.rename(&name, replace);
        // A rename of one name of a file to another of its names does
        // nothing, by POSIX.
        self.unlink(&name);
        renamed
    }

    fn rename(&self, from: &OsStr, replace: bool) -> io::Result<()> {
        let flags = match replace {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        match rustix::fs::renameat_with(&self.dir, from, &self.dir, &self.name, flags) {
            // File systems without it: what came in between is lost.
            Err(Errno::INVAL | Errno::NOSYS) if !replace => {
                rustix::fs::renameat(&self.dir, from, &self.dir, &self.name)?;
                Ok(())
            }
            result => result.map_err(Into::into),
        }
    }

    fn unlink(&self, name: &OsStr) {
        // The first error counts.
        let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
    }
}

/// A file on its way. Dropped before it is [`put`](Self::put), it leaves
/// nothing; killed, at most a temporary name.
pub(super) struct NewFile {
    spot: Spot,
    file: File,
    temporary: Option<OsString>,
}

impl NewFile {
    /// The file's descriptor.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, in place of what has it if that is meant.
    pub(super) fn put(mut self, replace: bool) -> io::Result<()> {
        if let Some(name) = &self.temporary {
            self.spot.rename(name, replace)?;
            self.temporary = None;
            return Ok(());
        }
        if !replace {
            return link(&self.file, &self.spot.dir, &self.spot.name);
        }
        // A link cannot replace a file, a rename can.
        let name = temporary_name()?;
        link(&self.file, &self.spot.dir, &name)?;
        self.temporary = Some(name.clone());
        self.spot.rename(&name, true)?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            self.spot.unlink(name);
        }
    }
}

fn link(file: &File, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::linkat(file, "", dir, name, AtFlags::EMPTY_PATH) {
        // Older kernels want a capability for that.
        Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {
            let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            rustix::fs::linkat(CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW).map_err(Into::into)
        }
        result => result.map_err(Into::into),
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
