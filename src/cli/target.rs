//! Where the bytes of a get go: standard output, or a file that appears
//! whole or not at all.
//!
//! The file is written without a name (`O_TMPFILE`) in the directory of its
//! target and linked there when all is known to be right: whatever happens
//! before, `kill -9` included, nothing is left behind. File systems without
//! such files get a hidden temporary one.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use bytes::Bytes;
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use super::failure::{EXISTS, FAILED, Failure, NO_SUCH};
use super::place::is_dash;
use super::ui;

/// Chunks between the connection and the disk.
const QUEUE: usize = 8;

/// A target that was checked and is ready to be written.
#[derive(Debug)]
pub(super) enum Target {
    /// Standard output, or a device or FIFO, which get the bytes as they come.
    Stream(File),
    /// A file to be.
    File(NewFile),
}

impl Target {
    /// Checks a target and prepares to write it; `name` is the last component
    /// of the object's key, for a target that ends in a slash.
    pub(super) fn prepare(path: &Path, name: &str, no_clobber: bool) -> Result<Self, Failure> {
        if is_dash(path) {
            return io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .map(|fd| Self::Stream(fd.into()))
                .map_err(|error| Failure::io("cannot write to standard output", &error));
        }
        let path = complete(path, name)?;
        let cannot =
            |error: &io::Error| Failure::io(format!("cannot write {}", path.display()), error);
        // Through a symbolic link, as other tools do; what it names is
        // replaced, not the link.
        let path = match std::fs::canonicalize(&path) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.clone(),
            Err(error) => return Err(cannot(&error)),
        };
        let mode = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => {
                return Err(Failure::new(
                    FAILED,
                    format!("cannot write {}: it is a directory", path.display()),
                )
                .hint(format!(
                    "end it with a slash to keep the object's name: {}/",
                    path.display()
                )));
            }
            Ok(_) if no_clobber => return Err(exists(&path)),
            Ok(meta) if !meta.is_file() => {
                let file = File::options().write(true).open(&path);
                return file.map(Self::Stream).map_err(|error| cannot(&error));
            }
            Ok(meta) => {
                // Replacing it would get around the file's own permissions.
                rustix::fs::access(&path, Access::WRITE_OK)
                    .map_err(|error| cannot(&error.into()))?;
                Some(meta.permissions())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(cannot(&error)),
        };
        NewFile::create(&path, mode, no_clobber).map(Self::File)
    }

    /// The file, still empty, into which the agent may write by itself.
    pub(super) fn file(&mut self) -> Option<&File> {
        match self {
            Self::Stream(_) => None,
            Self::File(new) => Some(new.file()),
        }
    }

    /// Whether bytes are beyond recall once they are written.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }
}

/// Appends the object's name to a target that ends in a slash.
fn complete(path: &Path, name: &str) -> Result<PathBuf, Failure> {
    if !path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Ok(path.to_owned());
    }
    if matches!(name, "" | "." | "..") || name.contains('\0') {
        return Err(Failure::usage(format!(
            "the object's key ends in {name:?}, which names no file"
        ))
        .hint("write the whole path of the target"));
    }
    Ok(path.join(name))
}

fn exists(path: &Path) -> Failure {
    Failure::new(EXISTS, format!("{} already exists", path.display()))
        .hint("nothing was written; leave out --no-clobber to replace it")
}

/// A file that has no name yet, or a temporary one.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    directory: File,
    name: OsString,
    content: Content,
    /// The permissions of the file it replaces.
    mode: Option<Permissions>,
    no_clobber: bool,
}

#[derive(Debug)]
enum Content {
    Unnamed(File),
    Named(tempfile::NamedTempFile),
}

impl NewFile {
    fn create(path: &Path, mode: Option<Permissions>, no_clobber: bool) -> Result<Self, Failure> {
        let Some(name) = path.file_name() else {
            return Err(Failure::usage(format!("{} names no file", path.display())));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let cannot = |error: &io::Error| {
            let what = format!("cannot write {}", path.display());
            match error.kind() {
                io::ErrorKind::NotFound => Failure::new(
                    NO_SUCH,
                    format!("{what}: there is no directory {}", parent.display()),
                )
                .hint("make it first"),
                io::ErrorKind::PermissionDenied => Failure::io(what, error).hint(format!(
                    "a file is put into place whole: {} must be writable",
                    parent.display()
                )),
                _ => Failure::io(what, error),
            }
        };
        let directory = File::open(parent).map_err(|error| cannot(&error))?;
        let content = match unnamed(&directory) {
            Ok(file) => Content::Unnamed(file),
            // What kernels and file systems without it answer.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                named(parent, name)
                    .map(Content::Named)
                    .map_err(|e| cannot(&e))?
            }
            Err(error) => return Err(cannot(&error.into())),
        };
        Ok(Self {
            path: path.to_owned(),
            directory,
            name: name.to_owned(),
            content,
            mode,
            no_clobber,
        })
    }

    fn file(&mut self) -> &mut File {
        match &mut self.content {
            Content::Unnamed(file) => file,
            Content::Named(file) => file.as_file_mut(),
        }
    }

    /// Makes the file durable and gives it its name, in place of whatever
    /// had it.
    fn commit(self) -> Result<(), Failure> {
        let path = self.path.clone();
        self.place().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&path),
            _ => Failure::io(format!("cannot write {}", path.display()), &error),
        })
    }

    fn place(mut self) -> io::Result<()> {
        if let Some(mode) = self.mode.take() {
            // Set-user-id and its kin do not go over to new content.
            let mode = Permissions::from_mode(mode.mode() & 0o777);
            self.file().set_permissions(mode)?;
        }
        self.file().sync_all()?;
        match self.content {
            Content::Unnamed(file) => match link(&file, &self.directory, &self.name) {
                Err(Errno::EXIST) if !self.no_clobber => {
                    replace(&file, &self.directory, &self.name)?;
                }
                result => result?,
            },
            Content::Named(file) if self.no_clobber => {
                file.persist_noclobber(&self.path).map_err(|e| e.error)?;
            }
            Content::Named(file) => {
                file.persist(&self.path).map_err(|e| e.error)?;
            }
        }
        self.directory.sync_all()
    }
}

/// A link cannot replace a file, a rename can: so there is a temporary name
/// for an instant.
fn replace(file: &File, directory: &File, name: &OsStr) -> io::Result<()> {
    let temporary = temporary_name(name)?;
    link(file, directory, &temporary)?;
    rustix::fs::renameat(directory, &temporary, directory, name).map_err(|error| {
        // The first error counts.
        let _ = rustix::fs::unlinkat(directory, &temporary, AtFlags::empty());
        error.into()
    })
}

fn unnamed(directory: &File) -> rustix::io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, ".", flags, Mode::from_raw_mode(0o666)).map(File::from)
}

fn named(directory: &Path, name: &OsStr) -> io::Result<tempfile::NamedTempFile> {
    let mut prefix = OsString::from(".");
    prefix.push(short(name));
    prefix.push(".");
    // The umask still applies.
    tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
}

fn temporary_name(name: &OsStr) -> io::Result<OsString> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let mut temporary = OsString::from(".");
    temporary.push(short(name));
    temporary.push(".");
    temporary.push(data_encoding::HEXLOWER.encode(&random));
    Ok(temporary)
}

/// Names may have 255 bytes; what is added must still fit.
fn short(name: &OsStr) -> &OsStr {
    if name.len() <= 200 {
        name
    } else {
        OsStr::new("strongroom")
    }
}

fn link(file: &File, directory: &File, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::linkat(file, "", directory, name, AtFlags::EMPTY_PATH) {
        // Older kernels want a capability for that.
        Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, path, directory, name, AtFlags::SYMLINK_FOLLOW)
        }
        result => result,
    }
}

enum Step {
    Write(Bytes),
    Finish,
}

/// Writes a target on a thread of its own, so that disk and network work at
/// the same time. Dropped before [`Writer::finish`], it leaves nothing.
pub(super) struct Writer {
    steps: Option<mpsc::Sender<Step>>,
    outcome: oneshot::Receiver<Result<(), Failure>>,
    /// Waited for, so that a temporary file is gone when the command ends.
    /// Nobody waits for a stream: its reader may never read on.
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(target: Target) -> Self {
        let (steps, queue) = mpsc::channel(QUEUE);
        let (sender, outcome) = oneshot::channel();
        let is_stream = target.is_stream();
        let thread = std::thread::spawn(move || {
            // Nobody may be left to hear it.
            drop(sender.send(write(target, queue)));
        });
        Self {
            steps: Some(steps),
            outcome,
            thread: (!is_stream).then_some(thread),
        }
    }

    /// Hands over the next bytes.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        self.step(Step::Write(bytes)).await
    }

    /// All bytes came, and all is well: the file gets its name.
    pub(super) async fn finish(mut self) -> Result<(), Failure> {
        self.step(Step::Finish).await?;
        (&mut self.outcome).await.unwrap_or_else(|_| Err(lost()))
    }

    async fn step(&mut self, step: Step) -> Result<(), Failure> {
        if let Some(steps) = &self.steps
            && steps.send(step).await.is_ok()
        {
            return Ok(());
        }
        // The thread has ended before its time, and says why.
        match (&mut self.outcome).await {
            Ok(Err(failure)) => Err(failure),
            _ => Err(lost()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.steps = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lost() -> Failure {
    Failure::new(FAILED, "the writing thread is lost")
}

fn write(mut target: Target, mut queue: mpsc::Receiver<Step>) -> Result<(), Failure> {
    loop {
        match queue.blocking_recv() {
            Some(Step::Write(bytes)) => match &mut target {
                Target::Stream(file) => file.write_all(&bytes).map_err(|e| stream_error(&e))?,
                Target::File(new) => {
                    let written = new.file().write_all(&bytes);
                    written.map_err(|error| {
                        Failure::io(format!("cannot write {}", new.path.display()), &error)
                            .hint("nothing was left behind")
                    })?;
                }
            },
            Some(Step::Finish) => {
                return match target {
                    Target::Stream(_) => ui::stdout(|_| Ok(())),
                    Target::File(new) => new.commit(),
                };
            }
            // Given up: what was written disappears with its file.
            None => return Ok(()),
        }
    }
}

fn stream_error(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::broken_pipe(),
        _ => Failure::io("cannot write the output", error),
    }
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
