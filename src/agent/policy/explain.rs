//! What the grants are, and how they decide, in words: `GET /v1/grants`,
//! `GET /v1/grants/test`, and the command line where no agent runs.

use crate::api::{GrantCheck, GrantInfo, GrantTest, Operation};
use crate::config::Grant;
use crate::store::Place;

use super::{Ask, Policy, Rule};
use crate::agent::peer::Subject;

impl Policy {
    /// All grants, in the order in which they are tried.
    #[must_use]
    pub fn list(&self) -> Vec<GrantInfo> {
        self.rules.iter().map(Rule::info).collect()
    }

    /// How a request would be decided. Conditions are told, not judged, and
    /// no rate is charged.
    #[must_use]
    pub fn explain(&self, subject: &Subject, ask: &Ask) -> GrantTest {
        let ring = self.ring(ask);
        let checks: Vec<GrantCheck> = self
            .rules
            .iter()
            .map(|rule| GrantCheck {
                grant: rule.info(),
                miss: rule
                    .allows(subject, ask, ring)
                    .err()
                    .map(|miss| miss.to_string()),
            })
            .collect();
        let deciding = checks.iter().find(|check| check.miss.is_none());
        let line = deciding.map(|check| check.grant.line);
        let (allowed, why) = if self.is_master(subject, ask.operation) {
            let why = match ask.operation {
                Operation::Admin => "root and the agent's own user administer it",
                _ => "no [[grant]] is configured: root and the agent's own user may do everything",
            };
            (true, why.to_owned())
        } else if let Some(check) = deciding {
            let conditions = check.grant.conditions.join(", ");
            let why = format!("the grant of line {} allows it", check.grant.line);
            (
                true,
                match conditions.is_empty() {
                    true => why,
                    false => format!("{why}, on conditions: {conditions}"),
                },
            )
        } else {
            let denied = self.denied(subject, ask, self.missing(subject, ask));
            (false, denied.error.detail)
        };
        GrantTest {
            allowed,
            why,
            uid: subject.uid,
            gid: subject.gid,
            groups: subject.groups.clone(),
            operation: ask.operation,
            place: ask.place.as_ref().map(Place::to_string),
            line: line.filter(|_| allowed && !self.is_master(subject, ask.operation)),
            grants: checks,
        }
    }

    /// Who may read an object, for the last of the six questions.
    pub(in crate::agent) fn readers(&self, place: &Place) -> String {
        if self.rules.is_empty() {
            return "on this host root and the agent's own user, through its socket".to_owned();
        }
        let reads = |rule: &&Rule| {
            let grant = &rule.grant;
            grant.operations.contains(&Operation::Get) && rule.covers(place).is_ok()
        };
        let readers: Vec<String> = self.rules.iter().filter(reads).map(Rule::holder).collect();
        match readers.is_empty() {
            true => "on this host nobody has a grant to read it".to_owned(),
            false => format!(
                "on this host, through the agent's socket, by its grants: {}",
                readers.join(", ")
            ),
        }
    }
}

impl Rule {
    fn info(&self) -> GrantInfo {
        let grant = &self.grant;
        GrantInfo {
            line: grant.line,
            who: grant.who.to_string(),
            id: self.id,
            operations: grant.operations.clone(),
            bucket: grant.bucket.clone(),
            prefix: grant.prefix.clone(),
            key: grant.ring.clone(),
            conditions: conditions(grant),
        }
    }

    /// To whom, with the number that a name stands for.
    fn holder(&self) -> String {
        use crate::config::Who;
        match &self.grant.who {
            Who::User(_) => format!("{} (uid {})", self.grant.who, self.id),
            Who::Group(_) => format!("{} (gid {})", self.grant.who, self.id),
            who => who.to_string(),
        }
    }
}

/// A grant's conditions as they are written.
fn conditions(grant: &Grant) -> Vec<String> {
    let rate = grant.rate.as_ref();
    let time = |d: std::time::Duration| humantime::format_duration(d).to_string();
    [
        ("require_storage_class", grant.require_storage_class.clone()),
        ("min_retention", grant.min_retention.map(time)),
        ("max_size", grant.max_size.map(|size| size.to_string())),
        (
            "rate.requests",
            rate.and_then(|r| r.requests).map(|r| r.to_string()),
        ),
        (
            "rate.bytes",
            rate.and_then(|r| r.bytes).map(|r| r.to_string()),
        ),
        (
            "no_overwrite",
            grant.no_overwrite.then(|| "true".to_owned()),
        ),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(format!("{name} = {}", value?)))
    .collect()
}
