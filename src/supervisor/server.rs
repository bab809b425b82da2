//! The server process as the supervisor sees it.

use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::control::{AsyncControl, HEARTBEAT, SupervisorControl, ToServer, ToSupervisor};

use super::SupervisorError;
use super::backoff::Backoff;
use super::workers::describe;

/// Requests in progress are lost anyway; the first restart is for the next
/// ones, the last for an operator who mends the host.
const DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A server that ends this often without ever having served cannot start on
/// this host: better a dead agent that says so than one that only looks alive.
const MAX_STILLBORN: u32 = 5;
/// How long a message to the server may wait. It reads them all the time; one
/// that does not is stuck.
const SEND: Duration = Duration::from_secs(5);
/// A server that serves and has not been heard of for this long is stuck: six
/// of its heartbeats. It is killed and started again; clients see one broken
/// connection instead of a socket that never answers.
const MUTE: Duration = HEARTBEAT.saturating_mul(6);
/// How long no server at all may have been heard of before systemd's watchdog
/// is let run down: one that is mute is found and replaced sooner.
const LOST: Duration = MUTE.saturating_add(Duration::from_secs(15));
/// Belongs to the supervisor alone: systemd's channels, and where it put the
/// PIN.
const OWN_ENVIRONMENT: &[&str] = &[
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
];

type Link = AsyncControl<ToServer, ToSupervisor>;

#[derive(Debug)]
pub(super) struct Server {
    exe: PathBuf,
    arguments: Vec<OsString>,
    child: Option<Child>,
    link: Option<Link>,
    since: Instant,
    /// When to start it, if it does not run.
    next: Instant,
    backoff: Backoff,
    served: bool,
    /// When it last said something, once it serves.
    heard: Option<Instant>,
    /// When any server was last heard of; at first, when we began.
    last_sign: Instant,
    stillborn: u32,
    killed: bool,
    /// What it must be told, in order.
    pub(super) outbox: Vec<ToServer>,
}

impl Server {
    pub(super) fn new(exe: PathBuf, arguments: Vec<OsString>) -> Self {
        let now = Instant::now();
        Self {
            exe,
            arguments,
            child: None,
            link: None,
            since: now,
            next: now,
            backoff: Backoff::new(DELAYS.0, DELAYS.1),
            served: false,
            heard: None,
            last_sign: now,
            stillborn: 0,
            killed: false,
            outbox: Vec::new(),
        }
    }

    pub(super) fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Whether it runs and has said that it serves.
    pub(super) fn is_serving(&self) -> bool {
        self.runs() && self.heard.is_some()
    }

    /// Whether we killed it, and not it itself ended.
    pub(super) fn killed(&self) -> bool {
        self.killed
    }

    pub(super) fn serves(&mut self) {
        self.served = true;
        self.heard = Some(Instant::now());
    }

    /// When it is given up, if it says nothing until then.
    pub(super) fn mute_at(&self) -> Option<Instant> {
        let heard = self.heard.filter(|_| self.runs() && !self.killed)?;
        Some(heard + MUTE)
    }

    /// Whether a server was heard of lately, however often it was replaced.
    pub(super) fn is_well(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_sign) < LOST
    }

    pub(super) fn due(&self, now: Instant) -> bool {
        self.child.is_none() && self.next <= now
    }

    pub(super) fn next(&self, stopping: bool) -> Option<Instant> {
        (self.child.is_none() && !stopping).then_some(self.next)
    }

    /// Starts it and tells it to; false if that failed, to be tried again.
    pub(super) async fn start(
        &mut self,
        start: &ToServer,
        listener: BorrowedFd<'_>,
        now: Instant,
    ) -> bool {
        self.outbox.clear();
        match self.spawn() {
            Ok((child, link)) => {
                tracing::info!(server = child.id(), "server started");
                self.child = Some(child);
                self.link = Some(link);
                self.since = now;
                self.heard = None;
                self.killed = false;
                self.send(start, Some(listener)).await;
                true
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the server");
                self.next = now + self.backoff.after(Duration::ZERO);
                false
            }
        }
    }

    fn spawn(&self) -> io::Result<(Child, Link)> {
        let (ours, theirs) = SupervisorControl::pair()?;
        let link = ours.into_async()?;
        let mut command = Command::new(&self.exe);
        command
            .arg0("strongroom")
            .args(&self.arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            // Control-C at a terminal is for us; we let requests finish.
            .process_group(0);
        for name in OWN_ENVIRONMENT {
            command.env_remove(name);
        }
        Ok((command.spawn()?, link))
    }

    /// Sends what can be sent; a server that does not listen is killed.
    pub(super) async fn send(&mut self, message: &ToServer, fd: Option<BorrowedFd<'_>>) {
        let Some(link) = &self.link else { return };
        let why = match tokio::time::timeout(SEND, link.send(message, fd)).await {
            Ok(Ok(())) => return,
            // It has ended, or is about to.
            Ok(Err(error)) if is_end(&error) => {
                self.link = None;
                return;
            }
            Ok(Err(error)) => format!("the control channel broke: {error}"),
            Err(_) => "it does not read the control channel".to_owned(),
        };
        self.kill(&why);
    }

    /// The next message; waits for ever while there is no server.
    pub(super) async fn recv(&mut self) -> ToSupervisor {
        loop {
            let Some(link) = &mut self.link else {
                return pending().await;
            };
            match link.recv().await {
                Ok(Some((message, _))) => {
                    self.last_sign = Instant::now();
                    self.heard = self.heard.map(|_| self.last_sign);
                    return message;
                }
                // It has ended, or is about to.
                Ok(None) => self.link = None,
                Err(error) => self.kill(&format!("it sent nonsense: {error}")),
            }
        }
    }

    pub(super) fn kill(&mut self, why: &str) {
        self.link = None;
        if let Some(child) = &mut self.child
            && !self.killed
        {
            tracing::error!(server = child.id(), "killing the server: {why}");
            self.killed = true;
            // It fails only for a process that has already ended.
            let _ = child.kill();
        }
    }

    /// How it ended, if it has.
    pub(super) fn reap(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        self.link = None;
        Some(status)
    }

    /// Decides what follows from an end that nobody asked for.
    pub(super) fn ended(
        &mut self,
        status: ExitStatus,
        now: Instant,
    ) -> Result<(), SupervisorError> {
        let how = describe(status);
        self.killed = false;
        if !self.served {
            self.stillborn += 1;
            if self.stillborn >= MAX_STILLBORN {
                return Err(SupervisorError::failed(
                    format!("the server cannot start ({how})"),
                    "its last log lines say why",
                ));
            }
        }
        let delay = self
            .backoff
            .after(now.saturating_duration_since(self.since));
        tracing::error!(
            delay_ms = delay.as_millis(),
            "the server ended ({how}); it is started again"
        );
        self.next = now + delay;
        Ok(())
    }
}

/// Whether the other end is gone; a socket whose reader left something unread
/// is reset (unix(7)), which is no fault of a server that was told to stop.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_left_something_unread_has_ended_and_is_not_at_fault() {
        let (ours, theirs) = SupervisorControl::pair().unwrap();
        let link = ours.into_async().unwrap();
        link.send(&ToServer::Stop, None).await.unwrap();
        drop(theirs);
        let error = link.send(&ToServer::Stop, None).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(is_end(&error));
        let error = link.send(&ToServer::Stop, None).await.unwrap_err();
        assert!(is_end(&error), "{error}");
    }

    #[test]
    fn a_server_that_is_not_heard_of_is_not_well_however_often_it_is_replaced() {
        let mut server = Server::new("/nonexistent".into(), Vec::new());
        let begun = server.last_sign;
        assert!(server.is_well(begun + MUTE));
        // A replacement that says nothing is no sign of life.
        server.since = begun + LOST;
        server.heard = Some(begun + LOST);
        assert!(!server.is_well(begun + LOST));
        server.last_sign = begun + LOST;
        assert!(server.is_well(begun + LOST));
    }
}
