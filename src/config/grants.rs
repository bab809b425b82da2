//! `[[grant]]`, validated: each names one user or group, says what is
//! allowed, and carries no condition that could never matter.

use std::fmt;
use std::time::Duration;

use toml::Spanned;

use crate::api::Operation;

use super::grammar::{self, Rate};
use super::units::{Length, nearest};
use super::{Config, err};

/// The id that stands for whoever a user namespace cannot name (SECURITY rule
/// 25): it could be anybody, so it is granted nothing. Linux's default,
/// /proc/sys/kernel/overflowuid and overflowgid.
pub const OVERFLOW_ID: u32 = 65_534;

/// One grant.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The line of its `[[grant]]` in the file.
    pub line: usize,
    /// To whom.
    pub who: Who,
    /// What.
    pub operations: Vec<Operation>,
    /// Where; empty for `admin`, which is about the agent.
    pub bucket: String,
    /// Which keys of the bucket: those that begin so.
    pub prefix: String,
    /// The only ring whose keys may wrap or open; any when absent.
    pub ring: Option<String>,
    /// The storage class that a put must ask for.
    pub require_storage_class: Option<String>,
    /// How long a put must have its object retained, at least.
    pub min_retention: Option<Duration>,
    /// Plaintext bytes of one put, at most.
    pub max_size: Option<Length>,
    /// What all requests by this grant together may take.
    pub rate: Option<Rate>,
    /// Whether a put may not replace an object.
    pub no_overwrite: bool,
}

impl Grant {
    /// Whether it sets any condition on what it allows.
    #[must_use]
    pub fn is_conditional(&self) -> bool {
        self.require_storage_class.is_some()
            || self.min_retention.is_some()
            || self.max_size.is_some()
            || self.rate.is_some()
            || self.no_overwrite
    }

    /// Whether all that `other` allows on conditions is allowed by this one
    /// without any.
    fn makes_idle(&self, other: &Self) -> bool {
        other.is_conditional()
            && !self.is_conditional()
            && self.who == other.who
            && self.bucket == other.bucket
            && other.prefix.starts_with(&self.prefix)
            && (self.ring.is_none() || self.ring == other.ring)
            && other.operations.iter().all(|o| self.operations.contains(o))
    }
}

/// To whom something is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A user, by name.
    User(String),
    /// A user.
    Uid(u32),
    /// Members of a group, by name.
    Group(String),
    /// Members of a group.
    Gid(u32),
}

impl Who {
    /// Whether it is about groups.
    #[must_use]
    pub fn is_group(&self) -> bool {
        matches!(self, Self::Group(_) | Self::Gid(_))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user {name:?}"),
            Self::Uid(uid) => write!(f, "uid {uid}"),
            Self::Group(name) => write!(f, "group {name:?}"),
            Self::Gid(gid) => write!(f, "gid {gid}"),
        }
    }
}

type Fault = (String, String);

/// The file's grants, each with its line.
pub(super) fn from_file(
    grants: Vec<Spanned<grammar::Grant>>,
    text: &str,
) -> Result<Vec<Grant>, Fault> {
    grants
        .into_iter()
        .map(|grant| {
            let before = text.get(..grant.span().start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            validated(grant.into_inner(), line)
                .map_err(|(message, hint)| (format!("the grant of line {line}: {message}"), hint))
        })
        .collect()
}

fn validated(grant: grammar::Grant, line: usize) -> Result<Grant, Fault> {
    let who: Vec<Who> = [
        grant.user.map(Who::User),
        grant.uid.map(Who::Uid),
        grant.group.map(Who::Group),
        grant.gid.map(Who::Gid),
    ]
    .into_iter()
    .flatten()
    .collect();
    let [who] = <[Who; 1]>::try_from(who).map_err(|who| {
        (
            match who.len() {
                0 => "it names nobody".to_owned(),
                _ => "it names more than one of user, uid, group and gid".to_owned(),
            },
            "give it exactly one of `user`, `uid`, `group` and `gid`; make a grant for each"
                .to_owned(),
        )
    })?;
    check_id(&who, None)?;
    check_operations(&grant.operations)?;
    let has = |operation| grant.operations.contains(&operation);
    let of_put = [
        (
            "require_storage_class",
            grant.require_storage_class.is_some(),
        ),
        ("min_retention", grant.min_retention.is_some()),
        ("max_size", grant.max_size.is_some()),
        ("no_overwrite", grant.no_overwrite),
    ];
    let set = of_put.iter().find(|(_, set)| *set);
    if let Some((name, _)) = set
        && !has(Operation::Put)
    {
        return err(
            format!("`{name}` is a condition on put, which it does not grant"),
            format!("remove `{name}`, or add \"put\" to its operations"),
        );
    }
    if grant.max_size.is_some_and(|size| size.bytes() == 0) {
        return err(
            "max_size is 0: it would grant empty objects alone",
            "write a length such as \"1 GiB\"",
        );
    }
    if let Some(Rate {
        requests: None,
        bytes: None,
    }) = grant.rate
    {
        return err(
            "its rate limits nothing",
            "write rate = { requests = \"100/s\" }, or { bytes = \"50 MiB/s\" }, or both",
        );
    }
    if has(Operation::Admin) {
        let of_objects = grant.bucket.is_some()
            || grant.prefix.is_some()
            || grant.key.is_some()
            || grant.rate.is_some();
        if grant.operations.len() > 1 || of_objects {
            return err(
                "admin is about the agent, not about objects, and is granted alone",
                "make a grant of its own with operations = [\"admin\"] and no bucket, prefix, key or rate",
            );
        }
    }
    let bucket = match grant.bucket {
        Some(bucket) if !bucket.is_empty() => bucket,
        None if has(Operation::Admin) => String::new(),
        _ => return err("it names no bucket", "give it the name of one `bucket`"),
    };
    Ok(Grant {
        line,
        who,
        operations: grant.operations,
        bucket,
        prefix: grant.prefix.unwrap_or_default(),
        ring: grant.key,
        require_storage_class: grant.require_storage_class,
        min_retention: grant.min_retention.map(super::Timeout::duration),
        max_size: grant.max_size,
        rate: grant.rate,
        no_overwrite: grant.no_overwrite,
    })
}

fn check_operations(operations: &[Operation]) -> Result<(), Fault> {
    let words = || Operation::ALL.map(Operation::as_str).join(", ");
    if operations.is_empty() {
        return err("it grants no operation", format!("there are: {}", words()));
    }
    let twice = |(i, operation): (usize, &Operation)| operations[..i].contains(operation);
    if let Some((_, operation)) = operations.iter().enumerate().find(|entry| twice(*entry)) {
        return err(
            format!("it names the operation {operation} twice"),
            "name it once",
        );
    }
    let reads = [Operation::GetUnbound, Operation::GetUncommitted];
    let bare = operations
        .iter()
        .find(|operation| reads.contains(operation));
    if let Some(operation) = bare
        && !operations.contains(&Operation::Get)
        && !operations.contains(&Operation::Head)
    {
        return err(
            format!("{operation} without get or head allows nothing"),
            "a read needs both in one grant: add \"get\" to its operations",
        );
    }
    Ok(())
}

/// Nobody in particular is granted nothing. `id` is what a name stands for.
pub(super) fn check_id(who: &Who, id: Option<u32>) -> Result<(), Fault> {
    let id = match who {
        Who::Uid(id) | Who::Gid(id) => Some(*id),
        Who::User(_) | Who::Group(_) => id,
    };
    match id {
        Some(OVERFLOW_ID) => err(
            format!("{who} is {OVERFLOW_ID}, which stands for everybody the kernel cannot name"),
            "grant it to a user or a group of its own",
        ),
        // (uid_t) -1 is no user: setresuid(2) means "unchanged" by it.
        Some(u32::MAX) => err(
            format!("{who} is no id"),
            "write the id of a user or a group",
        ),
        _ => Ok(()),
    }
}

impl Config {
    pub(super) fn check_grants(&self) -> Result<(), Fault> {
        for grant in &self.grants {
            let fault = |what: String, hint: String| {
                err(format!("the grant of line {}: {what}", grant.line), hint)
            };
            if let Some(ring) = &grant.ring
                && !self.keys.iter().any(|key| key.ring() == ring)
            {
                let rings = || self.keys.iter().map(super::Key::ring);
                let known: Vec<&str> = rings().collect();
                return fault(
                    format!("`key` names the ring {ring:?}, to which no [[key]] belongs"),
                    nearest(ring, rings())
                        .unwrap_or_else(|| format!("configured rings: {}", known.join(", "))),
                );
            }
            let reserved = &self.keyslots.prefix;
            if grant.prefix.starts_with(reserved.as_str()) {
                return fault(
                    format!(
                        "its prefix {:?} lies under keyslots.prefix, which clients cannot reach",
                        grant.prefix
                    ),
                    "choose another prefix".into(),
                );
            }
            let wider = |other: &&Grant| other.line != grant.line && other.makes_idle(grant);
            if let Some(wider) = self.grants.iter().find(wider) {
                return fault(
                    format!(
                        "its conditions never matter: the grant of line {} allows {} the same without them",
                        wider.line, grant.who
                    ),
                    "grants add up: remove one of the two, or narrow the wider one".into(),
                );
            }
        }
        Ok(())
    }
}
