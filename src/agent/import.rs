//! `POST /v1/keys/import`: the steps of a key's import that a token takes.

use http::{Response, StatusCode};

use crate::admin;
use crate::api::{Error, ErrorKind, ImportBegun, ImportKey, ImportStep};
use crate::token::Arrival;

use super::audit;
use super::peer::Peer;
use super::reply::{self, Body};
use super::state::App;

/// Takes a step, and puts on record that it was taken.
pub(super) async fn answer(
    app: &App,
    peer: &Peer,
    wanted: ImportKey,
) -> Result<Response<Body>, Error> {
    let token = app.engine.keyring.token(&wanted.token).ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("no token {:?} is configured", wanted.token),
        )
    })?;
    app.audit.check()?;
    let ImportKey {
        label,
        token: name,
        step,
    } = wanted;
    let record = |state, check_value| {
        let (actor, token, label) = (peer.actor(), &name, &label);
        async move { audit::imported(app, actor, token, label, state, check_value).await }
    };
    match step {
        ImportStep::Begin => {
            let begun = token.begin_import(&label).await?;
            record("import begun", None).await?;
            let answer = ImportBegun {
                public_key: begun.public_key,
                hash: begun.hash,
            };
            reply::json(StatusCode::CREATED, &answer)
        }
        ImportStep::Cancel => {
            token.cancel_import(&label).await?;
            record("import cancelled", None).await?;
            reply::json(StatusCode::OK, &serde_json::json!({ "cancelled": true }))
        }
        ImportStep::Finish {
            pair,
            hash,
            sealed,
            check_value,
        } => {
            let arrival = Arrival {
                label,
                pair,
                hash,
                sealed,
                check_value,
            };
            let opened = token.finish_import(&arrival).await?;
            let info = admin::imported_key_info(&name, &arrival, opened);
            let label = &arrival.label;
            let value = info.check_value.clone();
            audit::imported(app, peer.actor(), &name, label, "imported", value).await?;
            reply::json(StatusCode::CREATED, &info)
        }
    }
}
