//! The worker process, `strongroom token-worker`: the one that has the PIN,
//! the module and the sessions, and no client data but what it wraps.
//!
//! Plain threads, no runtime. Its standard input is the link; it ends when
//! the link does, which also covers the death of whoever started it.

mod answer;
mod attributes;
mod exit;
mod failure;
mod gate;
mod import;
mod mechanism;
mod module;
mod probe;
mod raw;
mod recovery;
mod serve;
mod setup;
mod signer;
mod watch;

pub(super) use failure::name as code_name;

pub use exit::{ABSENT, LINK_CLOSED, LOCKED, LOST, MISCONFIGURED};

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use cryptoki::context::Pkcs11;
use rustix::event::{PollFd, PollFlags, poll};

use crate::confine::{self, Code};
use crate::log;

use super::protocol::{Failure, FailureKind, Frame, HELLO, Mode, Reply, Request, Setup, TALLY};
use super::tally;
use super::wire::{self, Inbox};

use recovery::Recovery;
use watch::Watch;

/// How long the parent may take for the first frame, which it writes right
/// after starting us; then this is no worker of anybody's.
const SETUP_PATIENCE: Duration = Duration::from_secs(10);

/// How long a module that is only asked for its tokens may take to load and
/// initialise. CloudHSM's client takes seconds when the cluster is busy.
const LOADING: Duration = Duration::from_secs(60);

/// Runs the worker; never returns while the link is open.
#[must_use]
pub fn main() -> ExitCode {
    close_inherited();
    log::init("token-worker");
    let code = confine::harden_process();
    confine::ignore_termination();
    // A panic in one thread would leave its request unanswered; the text is
    // ours and holds no payload.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("bug: {panic}");
        exit::now(exit::LOST);
    }));
    match take_link() {
        Ok((setup, link)) => run(&setup, &link, &code),
        Err(error) => {
            tracing::error!("token-worker is started by the agent alone: {error}");
            ExitCode::from(exit::MISCONFIGURED)
        }
    }
}

/// What a worker does with the frames it receives.
enum Role {
    /// Its session threads take them.
    Serving,
    Admin(Pkcs11),
    Recovering(Box<Recovery>),
}

fn run(setup: &Setup, link: &OwnedFd, code: &Code) -> ! {
    let served = match start(setup, link) {
        Ok(Role::Serving) => {
            code.let_go();
            ended(link)
        }
        Ok(Role::Admin(pkcs11)) => receive(link, |frame| administer(&pkcs11, link, frame)),
        Ok(Role::Recovering(recovery)) => receive(link, |frame| recover(&recovery, link, frame)),
        Err(failure) => {
            let code = exit::code(failure.kind);
            tracing::error!(hint = failure.hint.as_deref(), "{}", failure.detail);
            let _ = tell_calls(link);
            // The server may be gone; the exit code still says it.
            let _ = send(link, HELLO, &Reply::Failed(failure));
            exit::now(code);
        }
    };
    if let Err(error) = served {
        tracing::error!("the link broke: {error}");
    }
    exit::now(exit::LINK_CLOSED);
}

fn start(setup: &Setup, link: &OwnedFd) -> Result<Role, Failure> {
    if !setup.network {
        confine::deny_network().map_err(|error| {
            Failure::misconfigured(
                format!("network = false cannot be enforced: {error}"),
                "it needs landlock for TCP (Linux 6.7); remove it, or use a newer kernel",
            )
        })?;
    }
    match &setup.mode {
        Mode::Serve(token) => serve::start(&setup.module, token, link).map(|()| Role::Serving),
        Mode::Admin => {
            let away = |error: io::Error| Failure::new(FailureKind::Away, error.to_string());
            let watch = Watch::start(LOADING, link.try_clone().map_err(away)?).map_err(away)?;
            let pkcs11 = module::load(&setup.module, &watch)?;
            drop(watch);
            send(link, HELLO, &Reply::Done).map_err(away)?;
            Ok(Role::Admin(pkcs11))
        }
        Mode::Recover(token) => {
            let away = |error: io::Error| Failure::new(FailureKind::Away, error.to_string());
            let link_too = link.try_clone().map_err(away)?;
            let watch = Watch::start(token.call_timeout, link_too).map_err(away)?;
            let recovery = Recovery::start(&setup.module, token, watch)?;
            send(link, HELLO, &Reply::Done).map_err(away)?;
            Ok(Role::Recovering(Box::new(recovery)))
        }
    }
}

/// Waits until the link ends. Nothing here calls the module, so the end is
/// seen however stuck the session threads are.
fn ended(link: &OwnedFd) -> io::Result<()> {
    // No event is asked for: the other side's end is told unasked.
    let mut links = [PollFd::new(link, PollFlags::empty())];
    while let Err(error) = poll(&mut links, None) {
        if error != rustix::io::Errno::INTR {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Answers frames until the link ends.
fn receive(link: &OwnedFd, mut answer: impl FnMut(&Frame) -> io::Result<()>) -> io::Result<()> {
    let mut inbox = Inbox::new();
    while let Some(frame) = inbox.recv(link)? {
        answer(&frame)?;
    }
    Ok(())
}

/// Answers one frame of a recovery.
fn recover(recovery: &Recovery, link: &OwnedFd, frame: &Frame) -> io::Result<()> {
    let opened = match frame.decode()? {
        Request::Recover {
            label,
            iv,
            ciphertext,
            aad,
        } => recovery.open(label, iv, ciphertext, aad),
        _ => Err(Failure::new(FailureKind::Rejected, "not in this mode")),
    };
    match opened {
        Ok(data_key) => send(link, frame.id(), &Reply::DataKey(&data_key)),
        Err(failure) => send(link, frame.id(), &Reply::Failed(failure)),
    }
}

/// Answers one frame of an administrator.
fn administer(pkcs11: &Pkcs11, link: &OwnedFd, frame: &Frame) -> io::Result<()> {
    let reply = match frame.decode()? {
        Request::ListTokens => module::list(pkcs11).map(Reply::Tokens),
        Request::InitToken {
            slot,
            serial,
            label,
            so_pin,
            user_pin,
        } => {
            let init = setup::Init {
                slot,
                serial,
                label,
                so_pin,
                user_pin,
            };
            setup::init(pkcs11, &init).map(|entry| Reply::Tokens(vec![entry]))
        }
        _ => Err(Failure::new(FailureKind::Rejected, "not in this mode")),
    };
    send(link, frame.id(), &reply.unwrap_or_else(Reply::Failed))
}

/// Tells how the module was called since the last time.
fn tell_calls(link: &OwnedFd) -> io::Result<()> {
    wire::send(link, &Frame::encode(TALLY, &tally::take())?)
}

fn send(link: &OwnedFd, id: u64, reply: &Reply<'_>) -> io::Result<()> {
    wire::send(link, &Frame::encode(id, reply)?)
}

/// Takes the link off standard input, so that no library reads from it, and
/// reads the first frame.
fn take_link() -> io::Result<(Setup, OwnedFd)> {
    let link = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    wire::limit_waiting(&link, Some(SETUP_PATIENCE))?;
    let frame = Inbox::new()
        .recv(&link)?
        .ok_or_else(|| io::Error::other("the link ended before the first frame"))?;
    wire::limit_waiting(&link, None)?;
    Ok((frame.decode()?, link))
}

/// Closes every descriptor but the standard three: whatever the agent's own
/// parent left open is not for a vendor's library to find.
fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The directory's own descriptor was closed with the iterator.
        if Path::new(&format!("/proc/self/fd/{fd}"))
            .symlink_metadata()
            .is_ok()
        {
            #[allow(unsafe_code, reason = "descriptors that no object here owns")]
            // SAFETY: this runs first thing in a process with one thread; no
            // descriptor beyond the standard three has an owner yet.
            unsafe {
                rustix::io::close(fd);
            }
        }
    }
}
