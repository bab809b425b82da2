//! Who may do what: the configuration's grants, applied to one request.
//!
//! Default deny. Grants are tried in the file's order; a request passes when
//! one of them allows all of it, and that one's conditions hold for it. What
//! is looked at is in the request alone: nothing here asks the store, so a
//! refusal cannot tell whether an object exists.

mod explain;
mod limits;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};

use crate::api::{Error, ErrorKind, Operation};
use crate::config::{Config, OVERFLOW_ID};
use crate::engine::folded;
use crate::store::Place;

use super::peer::Subject;
use limits::Limits;
use rule::{Miss, Rule};

pub(super) use limits::Meter;
pub(super) use rule::too_large;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What.
    pub operation: Operation,
    /// What else the same grant must allow: `get-unbound`, `get-uncommitted`.
    pub also: Vec<Operation>,
    /// Where; of a listing, its prefix. None for `admin`.
    pub place: Option<Place>,
    /// The place that a copied object is bound to, read by its former name.
    pub held: Option<Place>,
    /// The ring that a put names.
    pub ring: Option<String>,
    /// What a put says of itself, to be held against conditions.
    pub put: Option<PutFacts>,
}

/// What conditions look at.
#[derive(Clone, Debug, Default)]
pub struct PutFacts {
    /// The storage class asked for.
    pub storage_class: Option<String>,
    /// Until when Object Lock is to retain the object, RFC 3339.
    pub retain_until: Option<String>,
    /// Plaintext bytes, if they were declared.
    pub length: Option<u64>,
}

impl Ask {
    /// For one operation on `s3://bucket/key`.
    #[must_use]
    pub fn at(operation: Operation, bucket: &str, key: &str) -> Self {
        Self::new(operation, Some(Place::new(bucket, key)))
    }

    /// For administration.
    #[must_use]
    pub fn admin() -> Self {
        Self::new(Operation::Admin, None)
    }

    /// For one operation at one place, or about the agent.
    pub(super) fn new(operation: Operation, place: Option<Place>) -> Self {
        Self {
            operation,
            also: Vec::new(),
            place,
            held: None,
            ring: None,
            put: None,
        }
    }

    /// The same at the place that the object is bound to.
    fn at_held(&self) -> Option<Self> {
        let held = self.held.clone()?;
        Some(Self {
            place: Some(held),
            held: None,
            ..self.clone()
        })
    }

    fn operations(&self) -> impl Iterator<Item = Operation> {
        std::iter::once(self.operation).chain(self.also.iter().copied())
    }
}

/// What a request was granted. Only [`Policy::decide`] makes one.
#[derive(Debug)]
pub(super) struct Rights {
    /// The operation that was granted.
    pub(super) operation: Operation,
    /// The rings whose keys may wrap or open; any if none are named.
    pub(super) rings: Option<Vec<String>>,
    /// Plaintext bytes of a put, at most.
    pub(super) max_size: Option<u64>,
    /// Whether a put may not replace an object.
    pub(super) no_overwrite: bool,
    /// What slows its bytes down.
    pub(super) limits: Option<Arc<Limits>>,
}

impl Rights {
    fn unlimited(operation: Operation) -> Self {
        Self {
            operation,
            rings: None,
            max_size: None,
            no_overwrite: false,
            limits: None,
        }
    }
}

/// Why a request was refused.
#[derive(Debug)]
pub(super) struct Denied {
    /// The operation that is missing, or whose conditions do not hold.
    pub(super) operation: Operation,
    error: Error,
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        denied.error
    }
}

/// The grants of one configuration.
pub struct Policy {
    rules: Vec<Rule>,
    /// The agent's own user.
    own: u32,
    /// Ring and name of each active key, in the file's order.
    keys: Vec<(String, String)>,
    /// The ring of a put that names none.
    default_ring: Option<String>,
}

impl Policy {
    /// The grants of a configuration, each for the uid or gid that its name
    /// stands for ([`Config::principals`]); `own` is the agent's user.
    #[must_use]
    pub fn new(config: &Config, principals: &[u32], own: u32) -> Self {
        let rules = config.grants.iter().zip(principals);
        let active = config.keys.iter().filter(|key| key.is_active());
        Self {
            rules: rules
                .map(|(grant, id)| Rule {
                    id: *id,
                    folded: folded(&grant.prefix),
                    limits: grant.rate.map(Limits::new),
                    grant: grant.clone(),
                })
                .collect(),
            own,
            keys: active
                .map(|key| (key.ring().to_owned(), key.name.clone()))
                .collect(),
            default_ring: config.default_ring().map(str::to_owned),
        }
    }

    /// Every bucket that a grant names.
    pub(super) fn buckets(&self) -> Vec<String> {
        let buckets = self.rules.iter().map(|rule| rule.grant.bucket.clone());
        buckets.filter(|bucket| !bucket.is_empty()).collect()
    }

    /// How many grants there are.
    pub(super) fn len(&self) -> usize {
        self.rules.len()
    }

    /// Decides about one request. Counts it against the rate of the grant
    /// that lets it pass.
    pub(super) fn decide(&self, subject: &Subject, ask: &Ask) -> Result<Rights, Denied> {
        if self.is_master(subject, ask.operation) {
            return Ok(Rights::unlimited(ask.operation));
        }
        let mut rights = self.choose(subject, ask)?;
        if let Some(held) = ask.at_held() {
            let there = self.matching(subject, &held)?;
            rights.rings = both(rights.rings, rings(&there));
        }
        Ok(rights)
    }

    /// Whether somebody may administer, or is granted anything at all: others
    /// are told nothing.
    pub(super) fn knows(&self, subject: &Subject) -> bool {
        self.is_master(subject, Operation::Admin)
            || self.rules.iter().any(|rule| rule.is_for(subject))
    }

    /// Whether somebody is granted an operation anywhere.
    pub(super) fn somewhere(&self, subject: &Subject, operation: Operation) -> Result<(), Denied> {
        let grants =
            |rule: &Rule| rule.is_for(subject) && rule.grant.operations.contains(&operation);
        if self.is_master(subject, operation) || self.rules.iter().any(grants) {
            return Ok(());
        }
        Err(self.denied(subject, &Ask::new(operation, None), operation))
    }

    /// What is granted without a grant: administration to root and the agent's
    /// own user, who can edit the configuration; everything to them while
    /// nothing is granted to anybody.
    fn is_master(&self, subject: &Subject, operation: Operation) -> bool {
        subject.uid != OVERFLOW_ID
            && (subject.uid == 0 || subject.uid == self.own)
            && (operation == Operation::Admin || self.rules.is_empty())
    }

    /// The grants that allow what is asked, conditions aside.
    fn matching(&self, subject: &Subject, ask: &Ask) -> Result<Vec<&Rule>, Denied> {
        let ring = self.ring(ask);
        let found: Vec<&Rule> = self
            .rules
            .iter()
            .filter(|rule| rule.allows(subject, ask, ring).is_ok())
            .collect();
        if found.is_empty() {
            return Err(self.denied(subject, ask, self.missing(subject, ask)));
        }
        Ok(found)
    }

    /// The first grant whose conditions hold, too.
    fn choose(&self, subject: &Subject, ask: &Ask) -> Result<Rights, Denied> {
        let mut found = self.matching(subject, ask)?;
        if ask.put.as_ref().is_some_and(|put| put.length.is_none()) {
            // How long it gets, only its end will tell: the widest first.
            let size = |rule: &&Rule| rule.grant.max_size.map_or(u64::MAX, |s| s.bytes());
            found.sort_by_key(|rule| std::cmp::Reverse(size(rule)));
        }
        let rings = rings(&found);
        let mut refused = None;
        for rule in &found {
            let held = rule.conditions_hold(ask).and_then(|()| {
                rule.limits
                    .as_ref()
                    .map_or(Ok(()), |l| l.admit().map_err(Miss::Rate))
            });
            match held {
                Ok(()) => {
                    let of_put = ask.operation == Operation::Put;
                    return Ok(Rights {
                        operation: ask.operation,
                        rings: match of_put {
                            // A put wraps under one ring, by this grant.
                            true => rule.grant.ring.clone().map(|ring| vec![ring]),
                            false => rings,
                        },
                        max_size: rule.grant.max_size.map(|size| size.bytes()),
                        no_overwrite: of_put && rule.grant.no_overwrite,
                        limits: rule.limits.clone(),
                    });
                }
                // What passes with time is the better answer.
                Err(miss @ Miss::Rate(_)) => refused = Some((miss, *rule)),
                Err(miss) => {
                    refused.get_or_insert((miss, *rule));
                }
            }
        }
        let Some((miss, rule)) = refused else {
            return Err(self.denied(subject, ask, ask.operation));
        };
        Err(Denied {
            operation: ask.operation,
            error: miss.error(subject, ask, rule),
        })
    }

    /// The ring that a put will wrap under, found as the keyring finds it.
    fn ring<'a>(&'a self, ask: &'a Ask) -> Option<&'a str> {
        if ask.operation != Operation::Put {
            return None;
        }
        let mut keys = self.keys.iter();
        match &ask.ring {
            Some(name) => keys
                .find(|(ring, key)| ring == name || key == name)
                .map(|(ring, _)| ring.as_str()),
            // Without one, put itself will say what is wrong.
            None => self.default_ring.as_deref(),
        }
    }

    /// Which of several operations is the one that lacks.
    fn missing(&self, subject: &Subject, ask: &Ask) -> Operation {
        let granted = |count: usize| {
            let fewer = Ask {
                also: ask.also[..count].to_vec(),
                ..ask.clone()
            };
            let ring = self.ring(&fewer);
            let allows = |rule: &Rule| rule.allows(subject, &fewer, ring).is_ok();
            self.rules.iter().any(allows)
        };
        let first = (0..=ask.also.len()).find(|count| !granted(*count));
        ask.operations()
            .nth(first.unwrap_or_default())
            .unwrap_or(ask.operation)
    }

    fn denied(&self, subject: &Subject, ask: &Ask, operation: Operation) -> Denied {
        let uid = subject.uid;
        let mut detail = format!("uid {uid} has no grant for {operation}");
        if let Some(place) = &ask.place {
            detail.push_str(&format!(" on {place}"));
        }
        if ask.operation == Operation::Put
            && let Some(ring) = self.ring(ask)
        {
            detail.push_str(&format!(" with the ring {ring:?}"));
        }
        let hint = match self.rules.is_empty() {
            true => "no [[grant]] is configured: only root and the agent's own user may use it"
                .to_owned(),
            false => format!(
                "`strongroom grants test --uid {uid} {operation}{}` explains it",
                ask.place
                    .as_ref()
                    .map_or_else(String::new, |place| format!(" {}", quoted(place))),
            ),
        };
        Denied {
            operation,
            error: Error::new(ErrorKind::Forbidden, detail).hint(hint),
        }
    }
}

/// The rings that grants allow between them; any if one of them does.
fn rings(rules: &[&Rule]) -> Option<Vec<String>> {
    let named: Option<BTreeSet<String>> =
        rules.iter().map(|rule| rule.grant.ring.clone()).collect();
    named.map(|rings| rings.into_iter().collect())
}

/// The rings that two sets have in common.
fn both(one: Option<Vec<String>>, other: Option<Vec<String>>) -> Option<Vec<String>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.into_iter().filter(|r| other.contains(r)).collect()),
        (one, None) => one,
        (None, other) => other,
    }
}

/// A place as a shell takes it.
fn quoted(place: &Place) -> String {
    let text = place.to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-=+@,".contains(c);
    if text.chars().all(plain) {
        return text;
    }
    let shown: String = text.chars().flat_map(char::escape_debug).collect();
    format!("'{}'", shown.replace('\'', "'\\''"))
}

/// The policy in force; replaced whole, so that a request is judged by one
/// configuration.
pub(super) struct Policies(RwLock<Arc<Policy>>);

impl Policies {
    pub(super) fn new(policy: Policy) -> Self {
        Self(RwLock::new(Arc::new(policy)))
    }

    pub(super) fn current(&self) -> Arc<Policy> {
        self.0.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub(super) fn replace(&self, policy: Policy) {
        *self.0.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(policy);
    }
}
