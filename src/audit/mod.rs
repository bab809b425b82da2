//! The audit log: what was done, by whom, in records that nobody can rewrite
//! unseen (docs/audit.md).
//!
//! Records are lines of JSON in segment files ([`Record`]); they are the
//! leaves of an RFC 6962 tree, over which checkpoints are signed by a key in
//! a token and stored where the operator cannot delete them. An operation has
//! a begin, durable before anything is at stake, and an end ([`Op`]). While
//! the log cannot be written, nothing is stored, read, listed or deleted.
//!
//! This room knows files and records. What a store or a token has to do with
//! them (signing, anchoring, finding out what became of an operation) is the
//! agent's.

mod disk;
mod export;
mod lines;
mod note;
mod op;
mod record;
mod segment;
mod sink;
mod tree;
mod verify;
mod writer;

pub use disk::Begun;
pub use export::{Exported, Line, Proof, check_export, export, tail};
pub use lines::each_line;
pub use note::{
    Checkpoint, Note, ORIGIN_PREFIX, PublicKey, Signed, Signer, Signing, Standing, anchor_name,
    anchored_size, parse_notes,
};
pub use op::Op;
pub use record::{ABANDONED, Actor, Event, Head, Kind, OK, Phase, Record, TreeHead};
pub use tree::{Hash, Leaves, Range, root_from_proof};
pub use verify::{AnchorFiles, Content, Fault, Files, Report, Signatures, Tail, Verdict, verify};

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc;

use tokio::sync::{oneshot, watch};

use crate::api::{Error, ErrorKind};
use crate::config::AuditAlso;
use sink::Sink;
use writer::{Job, State, Writer};

/// Where and how the log is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its directory.
    pub dir: PathBuf,
    /// Bytes after which a segment is followed by another.
    pub rotate: u64,
    /// A second sink.
    pub also: Option<AuditAlso>,
}

/// What every record says of this host.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The host's name, of letters, digits, `.`, `-` and `_`.
    pub host: String,
    /// The kernel's id of this boot.
    pub boot_id: String,
}

impl Identity {
    /// This host's. Reads `/proc`, which a confined process cannot.
    #[must_use]
    pub fn of_this_host() -> Self {
        let name = rustix::system::uname();
        let plain = |c: char| match c {
            c if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') => c,
            _ => '_',
        };
        let host: String = name
            .nodename()
            .to_string_lossy()
            .chars()
            .map(plain)
            .collect();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let unknown = || "unknown".to_owned();
        Self {
            host: Some(host).filter(|h| !h.is_empty()).unwrap_or_else(unknown),
            boot_id: boot_id.map_or_else(|_| unknown(), |id| id.trim().to_owned()),
        }
    }

    /// A name for a new log: two logs of one host, or of two hosts of one
    /// name, are never taken for each other.
    fn fresh_origin(&self) -> String {
        let mut id = [0; 8];
        // All zeros would be a name too, only not a unique one.
        let _ = getrandom::fill(&mut id);
        let id = data_encoding::HEXLOWER.encode(&id);
        format!("{ORIGIN_PREFIX}{}/{id}", self.host)
    }
}

/// Why the log cannot be written now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Since when, RFC 3339.
    pub since: String,
    /// What failed and why.
    pub why: String,
    /// What is on the disk is not what was written: it does not pass by
    /// itself.
    pub damaged: bool,
}

/// How the log stands.
#[derive(Clone, Debug, Default)]
pub struct Standings {
    /// Why it cannot be written.
    pub trouble: Option<Trouble>,
    /// Its name; empty until it has been opened.
    pub origin: String,
    /// Its tree.
    pub tree: TreeHead,
    /// Records written by this process, checkpoints not counted.
    pub eventful: u64,
    /// The last checkpoint that was kept.
    pub last: Option<Note>,
}

/// The log of a running agent. Clones share one writer.
#[derive(Clone)]
pub struct Audit {
    queue: mpsc::Sender<Job>,
    state: watch::Receiver<State>,
}

/// The begins of former processes that have no end, once the log is open.
pub type Unended = oneshot::Receiver<Vec<Begun>>;

impl Audit {
    /// Starts the writer, whose first record is `start`. A log that cannot be
    /// opened is tried again until it can.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        settings: Settings,
        identity: Identity,
        start: Event,
    ) -> std::io::Result<(Self, Unended)> {
        let (queue, jobs) = mpsc::channel();
        let (state, watched) = watch::channel(State::default());
        let (opened, unended) = oneshot::channel();
        let writer = Writer {
            dir: settings.dir,
            rotate: settings.rotate,
            identity,
            state,
            sink: settings.also.map(Sink::new).transpose()?,
            opened: Some(opened),
            disk: None,
            owed: VecDeque::from([start]),
            lost: 0,
        };
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&jobs))?;
        let audit = Self {
            queue,
            state: watched,
        };
        Ok((audit, unended))
    }

    /// An operation that begins to be looked at; `id` is its request's.
    #[must_use]
    pub fn op(&self, kind: Kind, actor: Actor, id: &str) -> Op {
        Op::new(self.clone(), kind, actor, id)
    }

    /// Writes a record; durable on return.
    ///
    /// # Errors
    /// [`ErrorKind::AuditFailed`].
    pub async fn write(&self, event: Event) -> Result<TreeHead, Error> {
        let (reply, written) = oneshot::channel();
        let job = Job::Append {
            event: Box::new(event),
            reply: Some(reply),
        };
        self.queue.send(job).map_err(|_| closed())?;
        written.await.map_err(|_| closed())?.map_err(failed)
    }

    /// Has a record written without waiting for it.
    pub fn send(&self, event: Event) {
        // A writer that is gone was closed: nothing happens any more.
        let _ = self.queue.send(Job::Append {
            event: Box::new(event),
            reply: None,
        });
    }

    /// Keeps a checkpoint in its file; durable on return.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn keep(&self, note: Note) -> Result<(), String> {
        let (reply, kept) = oneshot::channel();
        let job = Job::Keep {
            note: Box::new(note),
            reply,
        };
        let gone = |_| "the log is closed".to_owned();
        self.queue.send(job).map_err(|_| "the log is closed")?;
        kept.await.map_err(gone)?
    }

    /// Refuses while the log is known not to be written.
    ///
    /// # Errors
    /// [`ErrorKind::AuditFailed`].
    pub fn check(&self) -> Result<(), Error> {
        match &self.state.borrow().trouble {
            None => Ok(()),
            Some(trouble) => Err(refused(trouble)),
        }
    }

    /// How the log stands.
    #[must_use]
    pub fn standing(&self) -> Standings {
        let state = self.state.borrow();
        Standings {
            trouble: state.trouble.clone(),
            origin: state.origin.clone(),
            tree: state.tree,
            eventful: state.eventful,
            last: state.last.clone(),
        }
    }

    /// Writes what is still queued, and ends the writer.
    pub async fn close(&self) {
        let _ = self.queue.send(Job::Close);
        let mut state = self.state.clone();
        // It has no more to tell once it is gone.
        while state.changed().await.is_ok() {}
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::AuditFailed, "the audit log is closed")
}

fn failed(why: String) -> Error {
    Error::new(
        ErrorKind::AuditFailed,
        format!("the audit log cannot be written: {why}"),
    )
}

fn refused(trouble: &Trouble) -> Error {
    let error = failed(trouble.why.clone());
    match trouble.damaged {
        true => error.hint("`strongroom audit verify` says what is wrong; keep the directory as evidence, move it aside and restart the agent to begin another log"),
        false => error,
    }
}

#[cfg(test)]
mod tests;
