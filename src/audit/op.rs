//! One operation's records: its begin, and the end that follows whatever
//! happens.

use std::time::Instant;

use super::Audit;
use super::record::{ABANDONED, Actor, Event, Kind, OK, Phase};
use crate::api::{Error, ErrorKind};

/// An operation under way. Dropped without [`end`](Self::end), it is recorded
/// as [`settle`](Self::settle) last said, or as abandoned: no begin is left
/// without an end by a process that lives.
pub struct Op {
    audit: Audit,
    event: Event,
    started: Instant,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Fresh,
    Begun,
    Ended,
}

impl Op {
    pub(super) fn new(audit: Audit, kind: Kind, actor: Actor, id: &str) -> Self {
        let mut event = Event::new(kind);
        event.op = Some(id.to_owned());
        event.peer = Some(actor);
        Self {
            audit,
            event,
            started: Instant::now(),
            stage: Stage::Fresh,
        }
    }

    /// What the records say; to be filled in as it becomes known.
    pub fn event(&mut self) -> &mut Event {
        &mut self.event
    }

    /// Records that it begins; durable on return.
    ///
    /// # Errors
    /// [`ErrorKind::AuditFailed`]: then it must not be done.
    pub async fn begin(&mut self) -> Result<(), Error> {
        self.check()?;
        let mut event = self.event.clone();
        event.phase = Some(Phase::Begin);
        // If this is not waited for, the begin may be written all the same.
        self.stage = Stage::Begun;
        let written = self.audit.write(event).await;
        written.inspect_err(|error| self.settle(Err(error.kind)))?;
        Ok(())
    }

    /// Refuses while the log is known not to be written.
    ///
    /// # Errors
    /// [`ErrorKind::AuditFailed`].
    pub fn check(&mut self) -> Result<(), Error> {
        let open = self.audit.check();
        open.inspect_err(|error| self.settle(Err(error.kind)))
    }

    /// What its end is to say if nobody comes to tell.
    pub fn settle(&mut self, outcome: Result<(), ErrorKind>) {
        self.event.set_result(outcome);
    }

    /// Records how it ended; durable on return. An operation that never began
    /// has this one record alone.
    ///
    /// # Errors
    /// [`ErrorKind::AuditFailed`]: the record is owed, and will be written
    /// when it can be.
    pub async fn end(mut self, outcome: Result<(), ErrorKind>) -> Result<(), Error> {
        self.event.set_result(outcome);
        let event = self.take_end();
        self.audit.write(event).await.map(|_| ())
    }

    /// [`Self::end`] for operations that changed nothing: `outcome`, or why it
    /// could not be recorded. The first error is the one that is told.
    ///
    /// # Errors
    /// Those of `outcome`, or [`ErrorKind::AuditFailed`].
    pub async fn finish<T>(self, outcome: Result<T, Error>) -> Result<T, Error> {
        let kind = outcome.as_ref().map(|_| ()).map_err(|error| error.kind);
        let recorded = self.end(kind).await;
        let value = outcome?;
        recorded.map(|()| value)
    }

    fn take_end(&mut self) -> Event {
        let mut event = std::mem::take(&mut self.event);
        event.phase = (self.stage == Stage::Begun).then_some(Phase::End);
        event.duration_us =
            Some(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX));
        event.result.get_or_insert_with(|| ABANDONED.to_owned());
        if event.result.as_deref() != Some(OK) {
            // Nothing is stored that could be looked for.
            event.version_id = event.version_id.filter(|_| event.event != Kind::Put);
        }
        self.stage = Stage::Ended;
        event
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if self.stage != Stage::Ended {
            let event = self.take_end();
            self.audit.send(event);
        }
    }
}
