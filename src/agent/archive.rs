//! The routes that reading back needs: asking for archived objects, listing
//! versions, and whether another writer's catalogue vouches for a message.

use http::{Response, StatusCode};

use crate::api::{Error, Standing, Tier};
use crate::audit::Kind;
use crate::get::Facts;
use crate::objects::{self, DEFAULT_DAYS, MAX_DAYS};
use crate::retire;
use crate::store::Place;

use super::objects::Granted;
use super::reply::{self, Body};
use super::request::{Query, Target, malformed};
use super::state::App;

/// `POST /v1/objects/{bucket}/{key}?restore`: 202 if the store is on it, 200
/// if the object can be read.
pub(super) async fn ask_for(
    granted: Granted,
    target: Target,
    query: Query,
) -> Result<Response<Body>, Error> {
    query.allow(&["restore", "version_id", "tier", "days"])?;
    let tier = match query.value("tier") {
        None => Tier::default(),
        Some(word) => Tier::from_word(&word).ok_or_else(|| {
            malformed(format!("{word:?} is no tier: bulk, standard or expedited"))
        })?,
    };
    let days = match query.value("days") {
        None => DEFAULT_DAYS,
        Some(text) => text
            .parse()
            .ok()
            .filter(|days| (1..=MAX_DAYS).contains(days))
            .ok_or_else(|| malformed(format!("days is {text:?}; 1 to {MAX_DAYS}")))?,
    };
    let place = target.place()?;
    let version = query.value("version_id");
    let mut op = granted.op(Kind::Restore, &place.bucket, Some(&place.key));
    op.event().version_id.clone_from(&version);
    op.event().detail = Some(format!("tier {}, {days} days", tier.as_str()));
    op.begin().await?;
    let engine = &granted.app.engine;
    let version = version.as_deref();
    let outcome = objects::ask_for(engine, &place, version, tier, days, op.event()).await;
    let state = op.finish(outcome).await?;
    let status = match state.state {
        crate::api::Availability::Readable => StatusCode::OK,
        _ => StatusCode::ACCEPTED,
    };
    reply::json(status, &state)
}

/// `GET /v1/objects/{bucket}?versions`.
pub(super) async fn versions(
    granted: Granted,
    bucket: String,
    query: Query,
) -> Result<Response<Body>, Error> {
    query.allow(&["versions", "prefix", "continuation"])?;
    let prefix = query.value("prefix").unwrap_or_default();
    let mut op = granted.op(Kind::List, &bucket, Some(&prefix));
    op.begin().await?;
    let continuation = query.value("continuation");
    let outcome = objects::versions(
        &granted.app.engine,
        &bucket,
        &prefix,
        continuation.as_deref(),
    )
    .await;
    reply::json(StatusCode::OK, &op.finish(outcome).await?)
}

/// The writer whose catalogue has a message that this host's has not
/// (SECURITY rule 16). A catalogue that cannot be read vouches for nothing.
pub(super) async fn vouched(app: &App, place: &Place, facts: &Facts) -> Option<String> {
    if facts.standing.is_vouched_for() || facts.standing == Standing::Writer {
        return None;
    }
    let writers = app
        .writers
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    for writer in writers {
        match retire::writer_has(&app.engine, &writer, place, &facts.message_id).await {
            Ok(true) => return Some(writer.name),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                writer = writer.name,
                detail = error.detail,
                "a writer's catalogue cannot be read"
            ),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::super::routes::operation;
    use super::*;
    use crate::api::Operation;

    #[test]
    fn whoever_asks_for_an_archived_object_needs_leave_to_read_it() {
        let asked = |method: Method, path: &str, query: &str| {
            let query = Query::parse(Some(query)).ok()?;
            operation(&method, &query, &Target::parse(path)?)
        };
        let object = "/v1/objects/bucket/key";
        assert_eq!(asked(Method::POST, object, "restore"), Some(Operation::Get));
        assert_eq!(asked(Method::POST, object, ""), None);
        assert_eq!(asked(Method::POST, "/v1/objects/bucket", "restore"), None);
        let versions = asked(Method::GET, "/v1/objects/bucket", "versions&prefix=a");
        assert_eq!(versions, Some(Operation::List));
    }
}
