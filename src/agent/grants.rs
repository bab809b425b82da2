//! `GET /v1/grants/test`: how a request by somebody would be decided.

use http::{Response, StatusCode};

use crate::api::{Error, Operation};

use super::peer::Subject;
use super::policy::{Ask, Policy};
use super::reply::{self, Body};
use super::request::{Query, malformed};

pub(super) fn test(policy: &Policy, query: &Query) -> Result<Response<Body>, Error> {
    query.allow(&["uid", "gid", "groups", "operation", "bucket", "key", "ring"])?;
    let uid = number(query, "uid")?.ok_or_else(|| malformed("the parameter uid is missing"))?;
    let subject = Subject {
        uid,
        gid: number(query, "gid")?.unwrap_or(u32::MAX),
        groups: groups(query)?,
    };
    let word = query.value("operation").unwrap_or_default();
    let operation = Operation::from_word(&word)
        .ok_or_else(|| malformed(format!("{word:?} is not an operation")))?;
    let mut ask = match (operation, query.value("bucket")) {
        (Operation::Admin, None) => Ask::admin(),
        (Operation::Admin, Some(_)) => return Err(malformed("admin is about no bucket")),
        (_, None) => return Err(malformed("the parameter bucket is missing")),
        (_, Some(bucket)) => Ask::at(operation, &bucket, &query.value("key").unwrap_or_default()),
    };
    ask.ring = query.value("ring");
    reply::json(StatusCode::OK, &policy.explain(&subject, &ask))
}

fn number(query: &Query, name: &str) -> Result<Option<u32>, Error> {
    query
        .value(name)
        .map(|text| {
            text.parse()
                .map_err(|_| malformed(format!("{name} is {text:?}; it must be a number")))
        })
        .transpose()
}

fn groups(query: &Query) -> Result<Vec<u32>, Error> {
    let text = query.value("groups").unwrap_or_default();
    text.split(',')
        .filter(|group| !group.is_empty())
        .map(|group| {
            group
                .parse()
                .map_err(|_| malformed(format!("groups has {group:?}; it must be a number")))
        })
        .collect()
}
