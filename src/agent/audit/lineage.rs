//! Whether the catalogue is the one that the evidence knows: each checkpoint
//! names the catalogue's head, and a catalogue that was put back from a copy
//! does not have that head in its past (docs/security.md, rule 15).

use crate::api::{Error, ErrorKind};
use crate::audit::Checkpoint;
use crate::catalog::{CatalogError, Head};

use super::super::state::App;

/// The name of the extension line.
const EXTENSION: &str = "catalog";

/// The extension line of a checkpoint that is about to be made.
pub(super) async fn line(app: &App) -> Result<String, CatalogError> {
    let head = app.engine.catalog.mark_head().await?;
    Ok(format!("{EXTENSION} {head}"))
}

/// Why the catalogue is not the one that the evidence knows; `None` if it is.
pub(in crate::agent) async fn doubt(app: &App) -> Result<Option<String>, Error> {
    let doubt = match app.audit.standing().last {
        Some(note) => against(app, &note.checkpoint).await,
        None => app.engine.catalog.doubt().await,
    };
    doubt.map_err(unread)
}

/// The same, by this checkpoint too. What is found once is remembered: the
/// next checkpoint names the head of the catalogue that is there.
pub(super) async fn against(
    app: &App,
    checkpoint: &Checkpoint,
) -> Result<Option<String>, CatalogError> {
    let catalog = &app.engine.catalog;
    if let Some(why) = catalog.doubt().await? {
        return Ok(Some(why));
    }
    let Some(named) = checkpoint.extension(EXTENSION).and_then(Head::parse) else {
        return Ok(None);
    };
    let (own, known) = catalog.compare_head(named).await?;
    if known {
        return Ok(None);
    }
    let why = match named.count.checked_sub(own.count) {
        Some(0) | None => "the catalogue has another history than the one that a signed checkpoint names: it was put back from a copy, or replaced".to_owned(),
        Some(behind) => format!(
            "the catalogue is older than the evidence: a signed checkpoint names {behind} changes that it lacks; it was put back from a copy, or lost"
        ),
    };
    tracing::error!(%named, %own, why);
    catalog.set_doubt(&why, named).await?;
    Ok(Some(why))
}

/// The operator's word that the catalogue is good as it is.
pub(in crate::agent) async fn accept(app: &App) -> Result<(), Error> {
    let last = app.audit.standing().last;
    let named = last.and_then(|note| {
        let line = note.checkpoint.extension(EXTENSION)?;
        Head::parse(line)
    });
    app.engine.catalog.accept(named).await.map_err(unread)?;
    Ok(())
}

fn unread(error: CatalogError) -> Error {
    Error::new(
        ErrorKind::StateFailed,
        "the catalogue's head cannot be compared",
    )
    .log(error)
}
