//! One grant of the configuration, and why it does not let a request pass.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::super::peer::Subject;
use super::Ask;
use super::limits::Limits;
use crate::api::{Error, ErrorKind, Operation};
use crate::config::{Grant, OVERFLOW_ID};
use crate::engine::folded;
use crate::store::Place;

/// One grant, ready to be applied.
pub(super) struct Rule {
    pub(super) grant: Grant,
    /// The uid or gid that it is for.
    pub(super) id: u32,
    /// The prefix as a store with directories would resolve it.
    pub(super) folded: String,
    pub(super) limits: Option<Arc<Limits>>,
}

/// Why a grant does not let a request pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    Somebody,
    Operation(Operation),
    Bucket,
    Prefix,
    Ring(String),
    Class(String),
    Retention(Duration),
    Size(u64),
    Rate(Duration),
}

impl Rule {
    /// A peer that the kernel cannot name belongs to nobody.
    pub(super) fn is_for(&self, subject: &Subject) -> bool {
        if subject.uid == OVERFLOW_ID {
            return false;
        }
        match self.grant.who.is_group() {
            false => subject.uid == self.id,
            true => subject.gid == self.id || subject.groups.contains(&self.id),
        }
    }

    /// Whether it allows what is asked, conditions aside. `ring` is what a put
    /// wraps under; of a read, that is not known yet.
    pub(super) fn allows(
        &self,
        subject: &Subject,
        ask: &Ask,
        ring: Option<&str>,
    ) -> Result<(), Miss> {
        if !self.is_for(subject) {
            return Err(Miss::Somebody);
        }
        let grant = &self.grant;
        let lacks = |operation: &Operation| !grant.operations.contains(operation);
        if let Some(operation) = ask.operations().find(lacks) {
            return Err(Miss::Operation(operation));
        }
        if let Some(place) = &ask.place {
            self.covers(place)?;
        }
        match (ring, &grant.ring) {
            (Some(ring), Some(granted)) if ring != granted => Err(Miss::Ring(ring.to_owned())),
            _ => Ok(()),
        }
    }

    pub(super) fn covers(&self, place: &Place) -> Result<(), Miss> {
        if self.grant.bucket != place.bucket {
            return Err(Miss::Bucket);
        }
        // Both ways: a store with directories may resolve `db/../x`.
        let inside = place.key.starts_with(&self.grant.prefix)
            && folded(&place.key).starts_with(&self.folded);
        match inside {
            true => Ok(()),
            false => Err(Miss::Prefix),
        }
    }

    pub(super) fn conditions_hold(&self, ask: &Ask) -> Result<(), Miss> {
        let Some(put) = &ask.put else { return Ok(()) };
        let grant = &self.grant;
        if let Some(class) = &grant.require_storage_class
            && put.storage_class.as_ref() != Some(class)
        {
            return Err(Miss::Class(class.clone()));
        }
        if let Some(least) = grant.min_retention {
            let until = put.retain_until.as_deref();
            let until: Option<jiff::Timestamp> = until.and_then(|text| text.parse().ok());
            let needed = jiff::Timestamp::now().checked_add(least);
            if !matches!((until, needed), (Some(until), Ok(needed)) if until >= needed) {
                return Err(Miss::Retention(least));
            }
        }
        match (put.length, grant.max_size) {
            (Some(length), Some(most)) if length > most.bytes() => Err(Miss::Size(most.bytes())),
            _ => Ok(()),
        }
    }
}

impl Miss {
    /// What the client hears of a condition that does not hold.
    pub(super) fn error(self, subject: &Subject, ask: &Ask, rule: &Rule) -> Error {
        let uid = subject.uid;
        let operation = ask.operation;
        let line = rule.grant.line;
        let granted = format!("the grant of line {line} lets uid {uid} {operation}");
        match self {
            Self::Class(class) => Error::new(
                ErrorKind::Forbidden,
                format!("{granted} only with the storage class {class}"),
            )
            .hint(format!("ask for it: --storage-class {class}")),
            Self::Retention(least) => {
                let least = humantime::format_duration(least);
                Error::new(
                    ErrorKind::Forbidden,
                    format!("{granted} only what is retained for {least} at least"),
                )
                .hint("ask for it: --retain-until and --retention-mode")
            }
            Self::Size(most) => too_large(most),
            Self::Rate(wait) => {
                let rate = rule.grant.rate.and_then(|rate| rate.requests);
                let rate = rate.map_or_else(String::new, |rate| format!(" {rate}"));
                Error::new(ErrorKind::Busy, format!("{granted}{rate}, and no more"))
                    .retry_after(wait)
            }
            Self::Somebody | Self::Operation(_) | Self::Bucket | Self::Prefix | Self::Ring(_) => {
                Error::new(
                    ErrorKind::Forbidden,
                    format!("uid {uid} has no grant for {operation}"),
                )
            }
        }
    }
}

/// What a client hears whose grant allows less; also in the middle of a body.
pub(in crate::agent) fn too_large(most: u64) -> Error {
    let most = crate::config::Length::from_bytes(most);
    Error::new(
        ErrorKind::TooLarge,
        format!("the grant allows objects of {most} at most"),
    )
    .hint("nothing was stored; ask the agent's operator for a wider grant")
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Somebody => f.write_str("is for somebody else"),
            Self::Operation(operation) => write!(f, "does not grant {operation}"),
            Self::Bucket => f.write_str("is for another bucket"),
            Self::Prefix => f.write_str("is for another prefix"),
            Self::Ring(ring) => write!(f, "is not for the ring {ring:?}"),
            Self::Class(class) => write!(f, "demands the storage class {class}"),
            Self::Retention(least) => {
                write!(
                    f,
                    "demands retention for {}",
                    humantime::format_duration(*least)
                )
            }
            Self::Size(most) => write!(f, "allows {most} bytes at most"),
            Self::Rate(_) => f.write_str("has its rate used up"),
        }
    }
}
