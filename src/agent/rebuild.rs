//! `POST /v1/catalog/rebuild` and `POST /v1/catalog/backup`: the catalogue
//! from a bucket, and into one.

use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tracing::Instrument as _;

use crate::api::{Error, ErrorKind, Operation, RebuildLine, RebuildRequest, Receipt, header};
use crate::audit::{Kind, Op};
use crate::put::{self, Plaintext, PutRequest, Source};
use crate::rebuild;
use crate::store::Place;

use super::lines;
use super::peer::Peer;
use super::reply::{self, Body};
use super::request::{self, Query, malformed};
use super::routes::permit;
use super::state::App;

/// Looks at a bucket; the answer tells of it line by line.
pub(super) async fn answer(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
    request: RebuildRequest,
) -> Result<Response<Body>, Error> {
    if request.bucket.is_empty() {
        return Err(malformed("bucket is missing"));
    }
    let permit = permit(app)?;
    let mut op = app.audit.op(Kind::Admin, peer.actor(), request_id);
    let event = op.event();
    event.operation = Some(Operation::Admin);
    event.bucket = Some(request.bucket.clone());
    event.key = Some(request.prefix.clone());
    event.detail = Some("rebuild the catalogue from what the bucket has".to_owned());
    op.begin().await?;
    let (app, request_id) = (Arc::clone(app), request_id.to_owned());
    Ok(lines::answer(move |out| async move {
        let _permit = permit;
        let done = rebuild::rebuild(&app.engine, &request, &out).await;
        if let Ok(sum) = &done {
            op.event().detail = Some(format!(
                "rebuilt the catalogue from what the bucket has: {} of {} versions recorded as first seen now, {} known, {} refused",
                sum.recorded, sum.listed, sum.known, sum.refused
            ));
        }
        let last = match op.finish(done).await {
            Ok(sum) => RebuildLine::Summary(sum),
            Err(error) => RebuildLine::Problem(error.problem(&request_id)),
        };
        // A client that left wants none.
        let _ = out.send(last).await;
    }))
}

/// Stores a copy of the catalogue as any other object.
pub(super) async fn backup(
    app: &Arc<App>,
    peer: &Peer,
    request_id: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    query.allow(&["bucket", "key"])?;
    let missing = |name| malformed(format!("{name} is missing"));
    let place = Place::new(
        query.value("bucket").ok_or_else(|| missing("bucket"))?,
        query.value("key").ok_or_else(|| missing("key"))?,
    );
    let permit = permit(app)?;
    let mut op = app.audit.op(Kind::Put, peer.actor(), request_id);
    op.event().operation = Some(Operation::Admin);
    op.event().bucket = Some(place.bucket.clone());
    op.event().key = Some(place.key.clone());
    op.event().detail = Some("a copy of the catalogue".to_owned());
    let request = PutRequest {
        place,
        attributes: request::attributes(headers)?,
        context: request::context(headers)?,
        ring: request::text(headers, header::KEY)?,
        rings: None,
        no_overwrite: false,
        length: None,
    };
    let app = Arc::clone(app);
    // A task of its own: when the client goes, an upload must still be
    // completed or aborted, and recorded.
    let work = async move {
        let _permit = permit;
        let stored = store(&app, request, &mut op).await;
        op.finish(stored).await
    };
    let receipt = tokio::spawn(work.instrument(tracing::Span::current()))
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "the backup ended abnormally").log(e))??;
    reply::json(StatusCode::CREATED, &receipt)
}

async fn store(app: &App, mut request: PutRequest, op: &mut Op) -> Result<Receipt, Error> {
    app.check_ready()?;
    let failed = |error: std::io::Error| {
        Error::new(
            ErrorKind::StateFailed,
            format!("the catalogue cannot be copied: {error}"),
        )
        .hint("check space and permissions of the spool directory")
    };
    // Below the spool, which only the agent can enter.
    let dir = tempdir(app.engine.spool.dir()).map_err(failed)?;
    let path = dir.path().join("catalog.sqlite");
    app.engine.catalog.copy(&path).await?;
    let file = File::open(&path).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    // From here on it has no name, and is gone whatever happens.
    drop(dir);
    request.length = Some(length);
    let mut source = Copied { file, left: length };
    put::put(&app.engine, request, Source::Stream(&mut source), op).await
}

/// A directory of mode 0700 that goes with its value.
fn tempdir(parent: &Path) -> std::io::Result<Scratch> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    let name = format!("backup-{}", data_encoding::HEXLOWER.encode(&random));
    let path = parent.join(name);
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(Scratch(path))
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "a copy of the catalogue is left behind");
        }
    }
}

/// The copy as plaintext.
struct Copied {
    file: File,
    left: u64,
}

impl Plaintext for Copied {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(into.len());
        if most == 0 {
            return Ok(0);
        }
        match self.file.read(&mut into[..most]).await {
            Ok(0) => Err(Error::new(
                ErrorKind::StateFailed,
                "the catalogue's copy ended early",
            )),
            Ok(count) => {
                self.left -= count as u64;
                Ok(count)
            }
            Err(error) => Err(Error::new(
                ErrorKind::StateFailed,
                format!("the catalogue's copy cannot be read: {error}"),
            )),
        }
    }

    async fn ended(&mut self) -> Result<bool, Error> {
        Ok(self.left == 0)
    }
}
