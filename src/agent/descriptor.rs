//! A descriptor that a client passes beside its request (SECURITY rule 26):
//! the agent then reads or writes the file itself, with none of it on the
//! socket.
//!
//! It comes with the connection's first byte (`SCM_RIGHTS`) and belongs to the
//! request that begins there. Whatever is passed later the kernel closes
//! unseen: only the first read of a connection can receive.
//!
//! Asking about a stranger's file, reading it, and even closing it waits for
//! its file system, which may be a program of the stranger's (FUSE). None of
//! the three happens on a thread that serves others, and the number of
//! descriptors that are not closed yet is bounded: beyond it none is received,
//! and clients send bytes instead.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use tokio::sync::oneshot;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::api::{Error, ErrorKind};
use crate::put::{Gate, SourceFile};

use super::deliver::TargetFile;
use super::policy::Meter;
use super::request;

/// Connections whose descriptors may be open at a time. At most one thread
/// each waits for a file system, of the 512 that the runtime has for waiting;
/// more files than this are never in part buffers at once.
const MOST: usize = 64;
/// How long a file system may take to say what it is. Local ones answer from
/// memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// File systems whose files are read: local ones, whose answers no user's
/// program can hold back (`f_type`, statfs(2) and linux/magic.h). Not FUSE,
/// not proc, sysfs and their kind, whose files are made up as they are read;
/// not NFS and SMB, on which a read may hang for hours; not overlayfs and
/// ecryptfs, below which may be any of these. Their files are sent as bytes.
const ALLOWED: &[(i64, &str)] = &[
    (0xEF53, "ext2, ext3, ext4"),
    (0x5846_5342, "XFS"),
    (0x9123_683E, "btrfs"),
    (0xF2F5_2010, "F2FS"),
    (0xCA45_1A4E, "bcachefs"),
    (0x2FC1_2FC1, "ZFS"),
    (0x3153_464A, "JFS"),
    (0x0102_1994, "tmpfs"),
];

/// Permits of descriptors that are not closed yet.
static OPEN: Semaphore = Semaphore::const_new(MOST);

/// What came beside a connection's first byte.
#[derive(Debug, Default)]
pub(super) struct Passed {
    fds: Vec<OwnedFd>,
    /// There were more than there was room for.
    cut: bool,
    permit: Option<SemaphorePermit<'static>>,
}

impl Passed {
    fn is_none(&self) -> bool {
        self.fds.is_empty() && !self.cut
    }
}

impl AsFd for Passed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // Only a `Lent` of exactly one is used as a file.
        self.fds[0].as_fd()
    }
}

impl Drop for Passed {
    /// A file system may take its time over a close, too.
    fn drop(&mut self) {
        let (fds, permit) = (std::mem::take(&mut self.fds), self.permit.take());
        if fds.is_empty() {
            return;
        }
        let close = move || {
            drop(fds);
            drop(permit);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(close)),
            Err(_) => close(),
        }
    }
}

/// Where a connection leaves what it received for the request it came with.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbox(Arc<Mutex<Passed>>);

impl Inbox {
    fn put(&self, passed: Passed) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = passed;
    }

    /// What came, once: the first request's.
    pub(super) fn take(&self) -> Passed {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads a connection's first bytes, with what was passed beside them.
pub(super) fn receive(socket: BorrowedFd<'_>, into: &mut [u8], inbox: &Inbox) -> io::Result<usize> {
    let Ok(permit) = OPEN.try_acquire() else {
        // A plain read: the kernel closes what is passed.
        return Ok(rustix::io::read(socket, into)?);
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(into)];
    let got = rustix::net::recvmsg(socket, &mut iov, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let mut passed = Passed::default();
    passed.cut = got.flags.contains(ReturnFlags::CTRUNC);
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            passed.fds.extend(fds);
        }
    }
    if !passed.is_none() {
        passed.permit = Some(permit);
        inbox.put(passed);
    }
    Ok(got.bytes)
}

/// The descriptor of a request that announced one: exactly one came, and
/// nothing is known of it yet.
#[derive(Debug)]
pub(super) struct Descriptor {
    passed: Passed,
    /// What the client says it holds, from its position on.
    length: u64,
}

impl Descriptor {
    /// What a request passed, if its headers announce it.
    ///
    /// # Errors
    /// What is announced did not come, or something else came. It is closed.
    pub(super) fn of(passed: Passed, headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let length = request::descriptor(headers)?;
        match (length, passed.fds.len()) {
            _ if passed.cut || passed.fds.len() > 1 => {
                Err(request::malformed("more than one descriptor was passed"))
            }
            (None, 0) => Ok(None),
            (None, _) => Err(request::malformed(
                "a descriptor was passed beside a request that does not announce it",
            )
            .hint("announce it: Strongroom-Descriptor: LENGTH")),
            (Some(_), 0) => Err(refused("none came with the connection's first byte")),
            (Some(length), _) => Ok(Some(Self { passed, length })),
        }
    }

    /// Refuses it where only bytes on the socket will do.
    pub(super) fn none(descriptor: Option<Self>) -> Result<(), Error> {
        match descriptor {
            None => Ok(()),
            Some(_) => Err(refused("only a plain PUT or GET of an object takes one")),
        }
    }

    /// Judges the file; from here on it is the source of a put.
    ///
    /// # Errors
    /// It is not one that the agent reads, or not as long as announced.
    pub(super) async fn source(
        self,
        client: oneshot::Receiver<()>,
        meter: Meter,
    ) -> Result<SourceFile, Error> {
        let gate = Box::new(Present { client, meter });
        aside(move || {
            let at = judge(&self.passed, OFlags::RDONLY)?;
            let file = SourceFile::new(Arc::new(self.passed), at, gate)
                .map_err(|error| refused(format!("it cannot be looked at: {error}")))?;
            announced(self.length, file.left()).map(|()| file)
        })
        .await
    }

    /// Judges the file; from here on it is where a get's plaintext goes.
    ///
    /// # Errors
    /// It is not one that the agent writes, or something is in it already.
    pub(super) async fn target(self) -> Result<TargetFile, Error> {
        aside(move || {
            let at = judge(&self.passed, OFlags::WRONLY)?;
            let size = rustix::fs::fstat(&self.passed).map_err(unseen)?.st_size;
            let left = u64::try_from(size).unwrap_or(0).saturating_sub(at);
            if left > 0 {
                return Err(refused("something is in the file already"));
            }
            announced(self.length, left)?;
            Ok(TargetFile::new(self.passed, at))
        })
        .await
    }
}

/// Does what may wait for a file system.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    timeout(PATIENCE, tokio::task::spawn_blocking(work))
        .await
        .map_err(|_| refused("its file system did not answer in time"))?
        .map_err(|e| Error::new(ErrorKind::Internal, "a judgement ended abnormally").log(e))?
}

fn announced(length: u64, left: u64) -> Result<(), Error> {
    if length == left {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Incomplete,
        format!("{length} bytes were announced, and the file has {left} from its position on"),
    )
    .hint("nothing was stored; was it written to meanwhile?"))
}

fn unseen(error: rustix::io::Errno) -> Error {
    refused(format!(
        "it cannot be looked at: {}",
        io::Error::from(error)
    ))
}

/// Whether we read, or write, such a file, and where from.
fn judge(file: &impl AsFd, how: OFlags) -> Result<u64, Error> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(unseen)?;
    let mode = flags & OFlags::RWMODE;
    if flags.contains(OFlags::PATH) || mode != how && mode != OFlags::RDWR {
        return Err(refused("it is not open for what is asked of it"));
    }
    if flags.contains(OFlags::DIRECT) {
        return Err(refused("O_DIRECT asks for aligned buffers"));
    }
    if how == OFlags::WRONLY && flags.contains(OFlags::APPEND) {
        return Err(refused("O_APPEND takes no heed of places"));
    }
    // First: only a file system on the list is asked anything else.
    let kind = rustix::fs::fstatfs(file).map_err(unseen)?.f_type;
    if !ALLOWED.iter().any(|(allowed, _)| *allowed == kind) {
        return Err(refused(format!(
            "its file system, of type {kind:#x}, is not one that the agent reads"
        )));
    }
    let stat = rustix::fs::fstat(file).map_err(unseen)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused("it is no regular file"));
    }
    rustix::fs::seek(file, SeekFrom::Current(0)).map_err(unseen)
}

pub(super) fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::DescriptorRefused,
        format!("the passed descriptor is refused: {why}"),
    )
}

/// The limits of the grant, and whether the client is still there.
struct Present {
    /// Closed once the client's connection is gone.
    client: oneshot::Receiver<()>,
    meter: Meter,
}

impl Gate for Present {
    fn pass(
        &mut self,
        bytes: usize,
    ) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send + '_>> {
        Box::pin(async move {
            // As with a body: a killed client never looks like a finished one.
            let pass = self.meter.pass(bytes);
            tokio::select! {
                biased;
                _ = &mut self.client => Err(gone()),
                passed = pass => passed,
            }
        })
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::Incomplete,
        "the client left before its file was read",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rule_26_file_systems_that_a_user_can_serve_are_not_on_the_list() {
        // FUSE, proc, sysfs, overlayfs, NFS, SMB 1 to 3, 9p, ecryptfs
        // (linux/magic.h).
        for kind in [
            0x6573_5546,
            0x9FA0,
            0x6265_6572,
            0x794C_7630,
            0x6969,
            0x517B,
            0xFF53_4D42,
            0xFE53_4D42,
            0x0102_1997,
            0xF15F,
        ] {
            assert!(!ALLOWED.iter().any(|(allowed, _)| *allowed == kind));
        }
    }
}
