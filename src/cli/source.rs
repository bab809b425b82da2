//! Where the bytes of a put come from: a file, a FIFO, standard input, or a
//! command.
//!
//! A thread reads, so that slow disks and silent pipes never hold up the
//! connection. The last chunk is held back until the source is known to be
//! whole: a file must not have changed while it was read, a command must have
//! succeeded. Otherwise the body breaks off and nothing is stored.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::failure::{FAILED, Failure, why};
use super::place::is_dash;
use super::progress::Progress;
use crate::client::Upload;

/// Bytes a read asks for: large enough that system calls cost nothing, small
/// enough to stay in the second-level cache on its way to the socket.
pub(super) const CHUNK: usize = 512 << 10;
/// Bytes of a file from which on its descriptor is passed. Shorter ones go
/// through the socket in less time than asking about a descriptor takes.
const WORTH_PASSING: u64 = 256 << 10;
/// Chunks between the reader and the connection.
const QUEUE: usize = 4;
/// Wished capacity of a pipe in bytes: the most that `fs.pipe-max-size` gives
/// an ordinary user by default. The kernel's own default is 64 KiB.
const PIPE_SIZE: usize = 1 << 20;

/// A source, opened and not yet read.
#[derive(Debug)]
pub(super) struct Source {
    /// What messages call it.
    name: String,
    /// How many bytes it will give, where that is known before.
    pub(super) length: Option<u64>,
    feed: Feed,
    /// Bytes that were read in order to find out what it is.
    begun: Vec<u8>,
}

#[derive(Debug)]
enum Feed {
    File(File, Fingerprint),
    Stream(File),
    Command(Child, ChildStdout),
}

/// What changes when a file's content does.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl Source {
    /// Opens a path, or standard input for `-`; `size` is what the user says
    /// it will give. Blocks on a FIFO until someone writes to it.
    pub(super) fn open(path: &Path, size: Option<u64>) -> Result<Self, Failure> {
        let (name, file) = if is_dash(path) {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            ("standard input".to_owned(), stdin.map(File::from))
        } else {
            (path.display().to_string(), File::open(path))
        };
        let cannot = |error: &io::Error| Failure::io(format!("cannot read {name}"), error);
        let mut file = file.map_err(|error| cannot(&error))?;
        let meta = file.metadata().map_err(|error| cannot(&error))?;
        if meta.is_dir() {
            return Err(
                Failure::new(FAILED, format!("cannot read {name}: it is a directory")).hint(
                    "put takes one file; `tar -c DIR | strongroom put - s3://BUCKET/DIR.tar` stores a directory as one object",
                ),
            );
        }
        let mut begun = Vec::new();
        if meta.is_file() {
            let left = bytes_left(&mut file, meta.len()).map_err(|error| cannot(&error))?;
            // Files of /proc and /sys have a size of 0 and content all the same.
            let generated = left == 0 && {
                (&mut file)
                    .take(1)
                    .read_to_end(&mut begun)
                    .map_err(|error| cannot(&error))?
                    == 1
            };
            if !generated {
                if size.is_some_and(|size| size != left) {
                    return Err(Failure::new(
                        FAILED,
                        format!("{name} has {left} bytes, not what --size says"),
                    )
                    .hint("leave --size out: the size of a file is known"));
                }
                // Only advice; a file system that cannot take it reads as well.
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
                let fingerprint = Fingerprint::of(&file).map_err(|error| cannot(&error))?;
                return Ok(Self {
                    name,
                    length: Some(left),
                    feed: Feed::File(file, fingerprint),
                    begun,
                });
            }
        }
        if meta.file_type().is_fifo() {
            // Only faster; what the system refuses stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(&file, PIPE_SIZE);
        }
        Ok(Self {
            name,
            length: size,
            feed: Feed::Stream(file),
            begun,
        })
    }

    /// Starts a command; its standard output is the source.
    pub(super) fn command(words: &[OsString], size: Option<u64>) -> Result<Self, Failure> {
        let Some((program, arguments)) = words.split_first() else {
            return Err(Failure::usage("--from-command: no command is given")
                .hint("strongroom put s3://BUCKET/KEY --from-command pg_dump mydb"));
        };
        let name = format!("the command {}", program.display());
        let cannot = |error: &io::Error| Failure::io(format!("cannot start {name}"), error);
        let mut child = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| cannot(&error))?;
        let Some(output) = child.stdout.take() else {
            return Err(Failure::new(FAILED, format!("cannot read from {name}")));
        };
        let _ = rustix::pipe::fcntl_setpipe_size(&output, PIPE_SIZE);
        Ok(Self {
            name,
            length: size,
            feed: Feed::Command(child, output),
            begun: Vec::new(),
        })
    }

    /// The file whose descriptor the agent may be given, to read it itself,
    /// and how many bytes that are: if it is one, and long enough to win by
    /// it.
    pub(super) fn descriptor(&self) -> Option<(&File, u64)> {
        match (&self.feed, self.length) {
            (Feed::File(file, _), Some(length))
                if length >= WORTH_PASSING && self.begun.is_empty() =>
            {
                Some((file, length))
            }
            _ => None,
        }
    }

    /// Why a passed file was not stored: that it changed, if it did.
    pub(super) fn blame(&self) -> Option<Failure> {
        let Feed::File(file, before) = &self.feed else {
            return None;
        };
        let changed_since = Fingerprint::of(file).is_ok_and(|now| now != *before);
        changed_since.then(|| changed(&self.name))
    }

    /// Starts reading. The body breaks off if the source fails; the reason is
    /// then in the [`Verdict`].
    pub(super) fn start(self, progress: Progress) -> (Upload, Verdict) {
        let verdict = Verdict::default();
        // Announced as empty, a body is whole before anything could be held
        // back: what there is to check is checked first.
        if self.length == Some(0) {
            let upload = match self.drain() {
                Ok(()) => Upload::empty(),
                Err(failure) => {
                    verdict.set(failure);
                    broken()
                }
            };
            return (upload, verdict);
        }
        let (sender, chunks) = mpsc::channel(QUEUE);
        let upload = Upload::from_channel(chunks, self.length);
        let slot = verdict.clone();
        std::thread::spawn(move || {
            let aborted = sender.clone();
            let send = |chunk: Bytes| {
                let bytes = chunk.len();
                let sent = sender.blocking_send(Ok(chunk)).is_ok();
                progress.advance(bytes);
                sent
            };
            // A body without declared length ends when its senders are gone:
            // they must not be gone because this thread fell over.
            let pumped = catch_unwind(AssertUnwindSafe(|| self.pump(send)))
                .unwrap_or_else(|_| Err(Failure::new(FAILED, "reading the source failed")));
            if let Err(failure) = pumped {
                slot.set(failure);
                // The other side may have gone first.
                drop(aborted.blocking_send(Err(io::Error::other("the source failed"))));
            }
        });
        (upload, verdict)
    }

    /// Checks a source of no bytes.
    fn drain(self) -> Result<(), Failure> {
        self.pump(|_| true)
    }

    /// Reads to the end, handing on each chunk once the next one is there,
    /// and the last one once the source has proved whole. Ends early, without
    /// an error, when `send` says that nobody listens any more.
    fn pump(self, mut send: impl FnMut(Bytes) -> bool) -> Result<(), Failure> {
        let Self {
            name,
            length,
            mut feed,
            begun,
        } = self;
        let mut pool = Pool::default();
        let mut total: u64 = 0;
        let mut held: Option<Bytes> = (!begun.is_empty()).then(|| Bytes::from(begun));
        loop {
            total += held.as_ref().map_or(0, |chunk| chunk.len() as u64);
            // One byte more than there should be tells a source that goes on.
            let want = length.map_or(CHUNK, |length| {
                usize::try_from(length.saturating_sub(total))
                    .unwrap_or(CHUNK)
                    .clamp(1, CHUNK)
            });
            let chunk = pool
                .read(feed.reader(), want)
                .map_err(|error| Failure::io(format!("cannot read {name}"), &error))?;
            if chunk.is_empty() {
                break;
            }
            if length.is_some_and(|length| total >= length) {
                return Err(feed.not_as_announced(&name, "it goes on after the announced end"));
            }
            if let Some(previous) = held.replace(chunk)
                && !send(previous)
            {
                feed.abandon();
                return Ok(());
            }
        }
        if length.is_some_and(|length| total < length) {
            return Err(feed.not_as_announced(&name, &format!("it ended after {total} bytes")));
        }
        feed.confirm(&name)?;
        if let Some(last) = held {
            send(last);
        }
        Ok(())
    }
}

impl Feed {
    fn reader(&mut self) -> &mut dyn Read {
        match self {
            Self::File(file, _) | Self::Stream(file) => file,
            Self::Command(_, output) => output,
        }
    }

    /// A source whose end is not where it was announced.
    fn not_as_announced(&mut self, name: &str, how: &str) -> Failure {
        let what = match self {
            Self::File(..) => return changed(name),
            Self::Stream(_) | Self::Command(..) => format!("{name} has not the size given: {how}"),
        };
        self.abandon();
        Failure::new(FAILED, what).hint("nothing was stored; correct --size, or leave it out")
    }

    /// Says that all was well, once the end was reached.
    fn confirm(&mut self, name: &str) -> Result<(), Failure> {
        match self {
            Self::Stream(_) => Ok(()),
            Self::File(file, before) => {
                let after = Fingerprint::of(file)
                    .map_err(|error| Failure::io(format!("cannot read {name}"), &error))?;
                if after == *before {
                    Ok(())
                } else {
                    Err(changed(name))
                }
            }
            Self::Command(child, _) => {
                let status = child.wait().map_err(|error| {
                    Failure::new(FAILED, format!("{name} is lost: {}", why(&error)))
                })?;
                if status.success() {
                    return Ok(());
                }
                // "exit status: 3" or "signal: 9 (SIGKILL)".
                Err(Failure::new(FAILED, format!("{name} failed: {status}"))
                    .hint("nothing was stored; what the command wrote was discarded"))
            }
        }
    }

    /// Nobody wants the rest.
    fn abandon(&mut self) {
        if let Self::Command(child, _) = self {
            // It may have ended by itself meanwhile.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn changed(name: &str) -> Failure {
    Failure::new(
        FAILED,
        format!("cannot store {name}: it changed while it was read"),
    )
    .hint("nothing was stored; store it when nothing writes to it, or store a snapshot or a copy")
}

/// What is left of a regular file behind its current position: it may come
/// from a shell's `<`, with its beginning read by someone else.
fn bytes_left(file: &mut File, size: u64) -> io::Result<u64> {
    let position = io::Seek::stream_position(file)?;
    Ok(size.saturating_sub(position))
}

/// A body that breaks off at once.
fn broken() -> Upload {
    let (sender, chunks) = mpsc::channel(1);
    drop(sender.try_send(Err(io::Error::other("the source failed"))));
    Upload::from_channel(chunks, None)
}

/// Why a source failed, for the one who waits for the agent's answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<Failure>>>);

impl Verdict {
    fn set(&self, failure: Failure) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    /// The failure, if there was one.
    pub(super) fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Read buffers, used again as soon as the connection is done with them:
/// fresh ones would cost a page fault for every 4 KiB.
#[derive(Default)]
pub(super) struct Pool {
    lent: std::collections::VecDeque<Bytes>,
}

impl Pool {
    /// Reads up to `want` bytes; an empty chunk is the end.
    pub(super) fn read(&mut self, from: &mut dyn Read, want: usize) -> io::Result<Bytes> {
        let mut buffer = self.buffer();
        let count = loop {
            match from.read(&mut buffer[..want]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        let whole = buffer.freeze();
        let chunk = whole.slice(..count);
        self.lent.push_back(whole);
        Ok(chunk)
    }

    fn buffer(&mut self) -> BytesMut {
        match self.lent.pop_front().map(Bytes::try_into_mut) {
            Some(Ok(free)) => free,
            Some(Err(busy)) => {
                self.lent.push_front(busy);
                BytesMut::zeroed(CHUNK)
            }
            None => BytesMut::zeroed(CHUNK),
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
