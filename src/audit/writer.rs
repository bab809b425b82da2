//! The one writer: a thread that writes whatever is queued together.
//!
//! Being durable costs a flush of the disk; under load it is shared by
//! everyone who waits (group commit), so that two durable records for each
//! operation do not bound the rate of operations. The queue needs no bound of
//! its own: whoever sends waits for the answer, and the agent bounds how many
//! do.
//!
//! While the log cannot be written, begins are refused. What has already
//! happened (ends, refusals, a token's health) is owed, and is written first
//! when the log can be written again, which is tried every second.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use crate::gather::Gather;

use super::disk::{Begun, Disk, DiskError};
use super::note::Note;
use super::record::{Event, Kind, Phase, TreeHead};
use super::sink::Sink;
use super::{Identity, Trouble};

/// Most records in one write, as many as `max_requests` defaults to. Even with
/// the longest names they are less than what a crash may tear.
const MAX_BATCH: usize = 256;
/// How often a log that cannot be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Records owed at most. Each operation that had begun owes one; refusals and
/// changes of health that come while the log is down share what is left, and
/// those beyond it are counted.
const MAX_OWED: usize = 16_384;

/// How a job ended.
pub(super) type Outcome<T> = Result<T, String>;

/// What the writer is asked to do.
pub(super) enum Job {
    /// Write a record.
    Append {
        event: Box<Event>,
        /// Whom to tell when it is durable.
        reply: Option<oneshot::Sender<Outcome<TreeHead>>>,
    },
    /// Keep a checkpoint.
    Keep {
        note: Box<Note>,
        reply: oneshot::Sender<Outcome<()>>,
    },
    /// Write what is owed, if it can be, and end.
    Close,
}

/// How the log is, for whoever wants to know.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) trouble: Option<Trouble>,
    /// The tree as of the last write.
    pub(super) tree: TreeHead,
    /// Records that are neither checkpoints nor the beginnings of files, so
    /// far.
    pub(super) eventful: u64,
    /// Empty until the log has been opened.
    pub(super) origin: String,
    /// The last checkpoint that was kept.
    pub(super) last: Option<Note>,
}

/// The writer thread's state.
pub(super) struct Writer {
    pub(super) dir: PathBuf,
    pub(super) rotate: u64,
    pub(super) identity: Identity,
    pub(super) sink: Option<Sink>,
    /// Gets the begins of former processes once the log is open.
    pub(super) opened: Option<oneshot::Sender<Vec<Begun>>>,
    /// Absent until it could be opened.
    pub(super) disk: Option<Disk>,
    /// Behind `disk`: its end tells that the log is closed, and may be opened.
    pub(super) state: watch::Sender<State>,
    pub(super) owed: VecDeque<Event>,
    pub(super) lost: u64,
}

type Waiting = (Event, Option<oneshot::Sender<Outcome<TreeHead>>>);

impl Writer {
    /// Runs until it is told to close, or every sender is gone.
    pub(super) fn run(mut self, queue: &Receiver<Job>) {
        self.write(Vec::new());
        let mut open = true;
        let mut gather = Gather::default();
        while open {
            let first = match self.in_trouble() || !self.owed.is_empty() {
                false => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                true => queue.recv_timeout(RETRY),
            };
            let jobs = match first {
                Ok(job) => gather.batch(job, queue, MAX_BATCH),
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut batch = Vec::with_capacity(jobs.len());
            let mut keep = Vec::new();
            for job in jobs {
                match job {
                    Job::Append { event, reply } => batch.push((*event, reply)),
                    Job::Keep { note, reply } => keep.push((note, reply)),
                    Job::Close => open = false,
                }
            }
            self.write(batch);
            for (note, reply) in keep {
                let _ = reply.send(self.keep(*note));
            }
        }
    }

    fn in_trouble(&self) -> bool {
        self.state.borrow().trouble.is_some()
    }

    /// Writes what is owed, then this batch, and answers whoever waits.
    fn write(&mut self, batch: Vec<Waiting>) {
        let events: Vec<&Event> = batch.iter().map(|(event, _)| event).collect();
        let written = self.pay().and_then(|()| self.append(&events));
        match written {
            Ok(heads) => {
                for ((_, reply), head) in batch.into_iter().zip(heads) {
                    if let Some(reply) = reply {
                        // A caller that went away needs no answer; its end
                        // will come.
                        let _ = reply.send(Ok(head));
                    }
                }
            }
            Err(error) => self.refuse(&error, batch),
        }
    }

    /// Writes what is owed, and that there was an outage.
    fn pay(&mut self) -> Result<(), DiskError> {
        let trouble = self.state.borrow().trouble.clone();
        if let Some(trouble) = trouble {
            let mut event = Event::new(Kind::Outage).detail(trouble.why);
            event.since = Some(trouble.since);
            event.lost = Some(self.lost).filter(|lost| *lost > 0);
            self.append(&[&event])?;
            self.lost = 0;
            self.state.send_modify(|state| state.trouble = None);
            tracing::info!("the audit log is written again");
        }
        while !self.owed.is_empty() {
            let count = self.owed.len().min(MAX_BATCH);
            let some: Vec<Event> = self.owed.iter().take(count).cloned().collect();
            self.append(&some.iter().collect::<Vec<_>>())?;
            self.owed.drain(..count);
        }
        Ok(())
    }

    fn append(&mut self, events: &[&Event]) -> Result<Vec<TreeHead>, DiskError> {
        if self.disk.is_none() {
            self.open()?;
        }
        let Some(disk) = self.disk.as_mut().filter(|_| !events.is_empty()) else {
            return Ok(Vec::new());
        };
        let heads = disk.append(&self.identity, events)?;
        let tree = disk.head();
        let eventful = events.iter().filter(|e| e.event != Kind::Checkpoint);
        let eventful = eventful.count() as u64;
        self.state.send_modify(|state| {
            state.tree = tree;
            state.eventful += eventful;
        });
        if let Some(sink) = &mut self.sink {
            for (event, head) in events.iter().zip(&heads) {
                sink.send(head.size - 1, event);
            }
        }
        Ok(heads)
    }

    fn open(&mut self) -> Result<(), DiskError> {
        let (mut disk, opening) = Disk::open(&self.dir, self.rotate, &self.identity)?;
        if opening.cut > 0 {
            let mut event = Event::new(Kind::Repaired).detail(
                "the last write was torn by a crash: nobody had been told that it was durable",
            );
            event.bytes = Some(opening.cut);
            disk.append(&self.identity, &[&event])?;
        }
        self.state.send_modify(|state| {
            state.origin = disk.origin().to_owned();
            state.tree = disk.head();
            state.last.clone_from(&opening.last);
        });
        if let Some(start) = self.owed.iter_mut().find(|e| e.event == Kind::Start) {
            start.last = opening.last.as_ref().map(|note| note.checkpoint.tree);
        }
        if let Some(opened) = self.opened.take() {
            let _ = opened.send(opening.open);
        }
        self.disk = Some(disk);
        Ok(())
    }

    /// The log cannot be written: begins are refused, and what has happened
    /// is owed.
    fn refuse(&mut self, error: &DiskError, batch: Vec<Waiting>) {
        let why = error.to_string();
        let damaged = matches!(error, DiskError::Damaged(_));
        self.state.send_modify(|state| {
            let now = Timestamp::now();
            let trouble = state.trouble.get_or_insert_with(|| {
                tracing::error!(
                    why,
                    "the audit log cannot be written: nothing is stored or read"
                );
                Trouble {
                    since: format!("{now:.6}"),
                    why: String::new(),
                    damaged,
                }
            });
            trouble.why.clone_from(&why);
            trouble.damaged = damaged;
        });
        for (mut event, reply) in batch {
            let begins = event.phase == Some(Phase::Begin) || event.event == Kind::Checkpoint;
            if !begins {
                if self.owed.len() < MAX_OWED {
                    event.occurred = Some(format!("{:.6}", Timestamp::now()));
                    self.owed.push_back(event);
                } else {
                    self.lost += 1;
                }
            }
            if let Some(reply) = reply {
                let _ = reply.send(Err(why.clone()));
            }
        }
    }

    fn keep(&mut self, note: Note) -> Outcome<()> {
        let disk = self.disk.as_mut().ok_or("the log is not open")?;
        disk.keep(&note).map_err(|error| error.to_string())?;
        self.state.send_modify(|state| state.last = Some(note));
        Ok(())
    }
}
