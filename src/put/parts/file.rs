//! A file that the client passed open: read where its frames are sealed, each
//! byte once, by a thread that may wait for a disk (SECURITY rule 26).
//!
//! Nothing of it is mapped, and nothing is read twice: whoever writes to it
//! meanwhile cannot have two texts sealed under one nonce. Its size and times
//! are compared when the last byte was read, and an object is made only of a
//! file that did not change.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{SeekFrom, fstat};
use rustix::io::Errno;

use super::{Assembly, FINAL_OVERHEAD, FRAME_OVERHEAD, misuse};
use crate::api::{Error, ErrorKind};
use crate::fault::message_error;
use crate::message::Sealer;
use crate::store::{Buffer, Running};

/// How long reading what one part holds may take, in all: 8 MiB in that time
/// are slower than any disk that works, and others may wait for the memory.
const PATIENCE: Duration = Duration::from_secs(60);

/// A file that somebody else opened. Sharing it with a thread that waits for
/// its file system keeps it open for as long as that waits.
pub type Lent = Arc<dyn AsFd + Send + Sync>;

/// What lets a file's bytes pass, as a body's would have to: the limits of a
/// grant, and whether the client is still there.
pub trait Gate: Send {
    /// Waits until so many bytes more may pass.
    fn pass(
        &mut self,
        bytes: usize,
    ) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + '_>>;
}

/// The bytes of a file from a position to the end it has now.
pub struct SourceFile {
    file: Lent,
    at: u64,
    end: u64,
    state: State,
    gate: Box<dyn Gate>,
}

/// What changes when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl State {
    fn of(file: &Lent) -> rustix::io::Result<Self> {
        let stat = fstat(file)?;
        Ok(Self {
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

impl SourceFile {
    /// The file from `at` on. Asks its file system, which may take its time.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(file: Lent, at: u64, gate: Box<dyn Gate>) -> io::Result<Self> {
        let state = State::of(&file)?;
        let end = u64::try_from(state.size).unwrap_or(0).max(at);
        Ok(Self {
            file,
            at,
            end,
            state,
            gate,
        })
    }

    /// Bytes that are left of it.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.end - self.at
    }
}

/// A part on its way through the thread that reads.
struct Filling {
    file: Lent,
    at: u64,
    end: u64,
    state: State,
    buffer: Buffer,
    sealer: Sealer,
    frame_length: usize,
    sealed: usize,
    /// Sealed bytes from which on the part takes no more frames.
    enough: u64,
    running: Option<Running>,
}

impl Filling {
    /// Frame by frame, so that what was read is sealed and summed while it lies
    /// in the processor's cache. The text of the last frame, if it got so far.
    fn run(mut self) -> Result<(Self, Option<usize>), Error> {
        let frame = self.frame_length as u64;
        loop {
            let left = self.end - self.at;
            let text = usize::try_from(left.min(frame)).unwrap_or(self.frame_length);
            let is_last = left <= frame;
            let around = if is_last {
                FINAL_OVERHEAD
            } else {
                FRAME_OVERHEAD
            };
            let end = self.sealed + text + around;
            if end > self.buffer.capacity() {
                return Err(misuse());
            }
            self.buffer.resize(self.buffer.len().max(end));
            let start = self.sealed + Sealer::FRAME_HEAD;
            let into = &mut self.buffer.as_mut_slice()[start..start + text];
            read_exact(&self.file, into, self.at)?;
            self.at += text as u64;
            if is_last {
                self.tell();
                // Only now: what was read before must be what it still is.
                return match State::of(&self.file) {
                    Ok(state) if state == self.state => Ok((self, Some(text))),
                    Ok(_) => Err(changed()),
                    Err(error) => Err(unreadable(error)),
                };
            }
            self.sealer
                .seal_frame(&mut self.buffer.as_mut_slice()[self.sealed..end])
                .map_err(|e| message_error(&e))?;
            if let Some(running) = &mut self.running {
                running.up_to(&self.buffer.as_slice()[..end]);
            }
            self.sealed = end;
            if self.sealed as u64 >= self.enough {
                self.tell();
                return Ok((self, None));
            }
        }
    }

    /// The position is shared with the client, who sees by it how far we are.
    /// Nothing here reads by it.
    fn tell(&self) {
        let _ = rustix::fs::seek(&self.file, SeekFrom::Start(self.at));
    }
}

fn read_exact(file: &Lent, mut into: &mut [u8], mut at: u64) -> Result<(), Error> {
    while !into.is_empty() {
        match rustix::io::pread(file, &mut *into, at) {
            Ok(0) => return Err(changed()),
            Ok(count) => {
                into = &mut into[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    Ok(())
}

fn changed() -> Error {
    Error::new(ErrorKind::Incomplete, "the file changed while it was read").hint(
        "nothing was stored; store it when nothing writes to it, or store a snapshot or a copy",
    )
}

fn unreadable(error: Errno) -> Error {
    Error::new(
        ErrorKind::Incomplete,
        format!("the file cannot be read: {}", io::Error::from(error)),
    )
}

impl Assembly<'_> {
    /// Reads and seals frames of `file` until the part takes no more, or
    /// until only the last one's text is left, which is then in place: true.
    pub(super) async fn fill_from(
        &mut self,
        file: &mut SourceFile,
        sealer: Sealer,
    ) -> Result<(Sealer, bool), Error> {
        let filling = Filling {
            file: file.file.clone(),
            at: file.at,
            end: file.end,
            state: file.state,
            buffer: self.buffer.take().ok_or_else(misuse)?,
            sealer,
            frame_length: self.frame_length,
            sealed: self.sealed,
            enough: self.enough(),
            running: self.running.take(),
        };
        // Given up, it goes on until the file system answers, and then gives
        // its memory back by itself.
        let work = tokio::task::spawn_blocking(move || filling.run());
        let (filled, last) = tokio::time::timeout(PATIENCE, work)
            .await
            .map_err(|_| {
                Error::new(
                    ErrorKind::TooSlow,
                    "the passed file's file system did not answer in time",
                )
            })?
            .map_err(|e| Error::new(ErrorKind::Internal, "reading ended abnormally").log(e))??;
        let read = filled.at - file.at;
        file.at = filled.at;
        self.sealed = filled.sealed;
        self.filled = last.unwrap_or(0);
        self.buffer = Some(filled.buffer);
        self.running = filled.running;
        file.gate
            .pass(usize::try_from(read).unwrap_or(usize::MAX))
            .await?;
        Ok((filled.sealer, last.is_some()))
    }

    /// Bytes in the buffer with which the part, or what of it goes to the
    /// spool at once, is full.
    fn enough(&self) -> u64 {
        let spooled = self.spool.as_ref().map(|file| file.len());
        let before = spooled.unwrap_or(0);
        let frame = (self.frame_length + FINAL_OVERHEAD) as u64;
        let settings = &self.engine.settings;
        let most = (settings.limits.max_part + 1).saturating_sub(before + frame);
        let full = self.target.saturating_sub(before).min(most);
        match spooled {
            Some(_) => full.min(settings.part_size),
            None => full,
        }
    }
}
