//! Resumable uploads over HTTP, after the IETF's draft
//! (draft-ietf-httpbis-resumable-upload) where it fits: docs/uploads.md says
//! where it does not.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header as std_header};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use crate::api::{Error, ErrorKind, Operation, UploadInfo, header};
use crate::audit::Kind;
use crate::catalog::JournalledUpload;
use crate::put::PutRequest;
use crate::put::resume::{self, Append, Appended};

use super::conversation::RequestBody;
use super::metrics::Timer;
use super::objects::Granted;
use super::peer::Peer;
use super::policy::{Ask, Denied, PutFacts};
use super::reply::{self, Body};
use super::request::{self, Query, Target, malformed};
use super::routes::permit;
use super::source::HttpSource;
use super::state::App;

/// The routes begin so.
pub(super) const UPLOADS: &str = "/v1/uploads/";
/// The media type of a part of an upload (the draft, section "Media Type").
const PARTIAL_UPLOAD: &str = "application/partial-upload";
/// Longest description of a source, in bytes: a path of PATH_MAX would fit
/// thrice over, and it is kept for each upload.
const MAX_SOURCE: usize = 16 << 10;
/// Uploads in an answer: as many as one user may have kept.
const MOST_LISTED: u32 = 1000;

/// A request under [`UPLOADS`].
pub(super) struct Asked<'a> {
    pub(super) app: &'a Arc<App>,
    pub(super) peer: &'a Arc<Peer>,
    pub(super) request_id: &'a str,
    pub(super) timer: &'a Arc<Timer>,
    pub(super) method: &'a Method,
    /// The path behind [`UPLOADS`].
    pub(super) rest: &'a str,
    pub(super) query: Query,
    pub(super) headers: &'a HeaderMap,
}

impl Asked<'_> {
    pub(super) async fn answer(self, body: RequestBody) -> Result<Response<Body>, Error> {
        self.query.allow(&[])?;
        if self.rest.contains('/') {
            return match *self.method {
                Method::POST => self.create().await,
                _ => Err(self.not_allowed()),
            };
        }
        let upload = self.upload().await?;
        match *self.method {
            Method::HEAD => {
                self.granted(&upload)?;
                Ok(described(StatusCode::OK, &upload))
            }
            Method::GET => {
                self.granted(&upload)?;
                reply::json(StatusCode::OK, &info(&upload, true))
            }
            Method::DELETE => {
                if !self.is_admin() {
                    self.granted(&upload)?;
                }
                resume::give_up(&self.app.engine, &upload).await?;
                self.record(&upload, "given up").await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            Method::PATCH => self.append(upload, body).await,
            _ => Err(self.not_allowed()),
        }
    }

    async fn create(self) -> Result<Response<Body>, Error> {
        let target = Target::parse(&format!("/v1/objects/{}", self.rest))
            .ok_or_else(|| malformed("the path names no place"))??;
        let length = number(self.headers, header::UPLOAD_LENGTH)?;
        let mut ask = request::ask(Operation::Put, &target, &self.query, self.headers)?;
        if let Some(put) = &mut ask.put {
            put.length = length;
        }
        let granted = self.grant(&ask)?;
        if boolean(self.headers, header::UPLOAD_COMPLETE)? != Some(false)
            || request::length(self.headers)?.is_some_and(|length| length > 0)
        {
            return Err(
                malformed("an upload is begun without content, with Upload-Complete: ?0")
                    .hint("send the content with PATCH, or all of it at once with PUT /v1/objects"),
            );
        }
        let source = request::text(self.headers, header::SOURCE)?.unwrap_or_default();
        if source.is_empty() || source.len() > MAX_SOURCE {
            return Err(malformed(format!(
                "Strongroom-Source is needed, with 1 to {MAX_SOURCE} bytes"
            )));
        }
        let request = PutRequest {
            place: target.place()?,
            attributes: request::attributes(self.headers)?,
            context: request::context(self.headers)?,
            ring: request::text(self.headers, header::KEY)?,
            rings: granted.rights.rings.clone(),
            no_overwrite: granted.rights.no_overwrite,
            length,
        };
        let place = request.place.clone();
        let mut op = granted.op(Kind::Upload, &place.bucket, Some(&place.key));
        op.event().plaintext_size = length;
        op.event().state = Some("begun".to_owned());
        if let Err(error) = self.app.check_ready() {
            return op.finish(Err(error)).await;
        }
        let (app, uid) = (self.app.clone(), self.peer.uid());
        // A task of its own: a client that leaves must not keep the journal
        // from knowing what was begun.
        let work = async move {
            let _granted = granted;
            let outcome = resume::create(&app.engine, uid, &source, request, &mut op).await;
            let found = outcome.as_ref().is_ok_and(|standing| standing.found);
            match found {
                // Nothing was done.
                true => {
                    op.event().state = Some("found".to_owned());
                    op.finish(outcome).await
                }
                false => op.finish(outcome).await,
            }
        };
        let standing = tokio::spawn(work.instrument(tracing::Span::current()))
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, "it ended abnormally").log(e))??;
        let mut response = empty(match standing.found {
            true => StatusCode::OK,
            false => StatusCode::CREATED,
        });
        let at = format!("{UPLOADS}{}", standing.ticket);
        reply::set(&mut response, std_header::LOCATION, &at);
        stand(&mut response, standing.offset, standing.length, false);
        Ok(response)
    }

    async fn append(
        self,
        upload: JournalledUpload,
        body: RequestBody,
    ) -> Result<Response<Body>, Error> {
        let granted = self.granted(&upload)?;
        if request::text(self.headers, "content-type")?.as_deref() != Some(PARTIAL_UPLOAD) {
            return Err(malformed(format!(
                "the Content-Type must be {PARTIAL_UPLOAD}"
            )));
        }
        let offset = number(self.headers, header::UPLOAD_OFFSET)?
            .ok_or_else(|| malformed("Upload-Offset is missing"))?;
        let complete = boolean(self.headers, header::UPLOAD_COMPLETE)?
            .ok_or_else(|| malformed("Upload-Complete is missing"))?;
        let length = upload.journal.length;
        let meter = granted.meter(&granted.app.metrics.bytes_in);
        let mut op = granted.op(Kind::Put, &upload.bucket, Some(&upload.key));
        let Granted {
            app,
            permit,
            request_id,
            rights,
            ..
        } = granted;
        let engine = app.engine.clone();
        // Dropped with this handler, which hyper drops when the client goes.
        let (present, client) = oneshot::channel();
        let mut source = HttpSource::new(body, engine.pool.clone(), client, rights.max_size, meter);
        let (answer, outcome) = oneshot::channel();
        let ticket = upload.journal.ticket.clone();
        let work = async move {
            let _permit = permit;
            let request = Append {
                ticket: &ticket,
                offset,
                complete,
                rings: rights.rings.as_deref(),
                no_overwrite: rights.no_overwrite,
            };
            let outcome = resume::append(&engine, &request, &mut source, &mut op).await;
            if !matches!(outcome, Ok(Appended::Stored(_)) | Err(_)) {
                op.event().event = Kind::Upload;
                op.event().state = Some("resumed".to_owned());
            }
            let kind = outcome.as_ref().map(|_| ()).map_err(|error| error.kind);
            let recorded = op.end(kind).await;
            let outcome = outcome.and_then(|appended| recorded.map(|()| appended));
            if let Err(Err(error)) = answer.send(outcome) {
                tracing::info!(
                    request_id,
                    ticket,
                    kind = error.kind.slug(),
                    detail = error.detail,
                    log = error.log,
                    "an upload was interrupted, and its client is gone"
                );
            }
        };
        tokio::spawn(work.instrument(tracing::Span::current()));
        let outcome = outcome
            .await
            .map_err(|_| Error::new(ErrorKind::Internal, "the upload ended abnormally"))?;
        drop(present);
        match outcome? {
            Appended::Stored(receipt) => {
                tracing::info!(
                    bucket = receipt.bucket,
                    key = receipt.key,
                    bytes = receipt.plaintext_size,
                    message_id = receipt.message_id,
                    wrapping_key = receipt.wrapping_key,
                    "stored"
                );
                let mut response = reply::json(StatusCode::CREATED, &*receipt)?;
                stand(&mut response, length, length, true);
                Ok(response)
            }
            Appended::Kept(offset) => {
                let mut response = empty(StatusCode::NO_CONTENT);
                stand(&mut response, offset, length, false);
                Ok(response)
            }
            Appended::Elsewhere(at) => {
                let error = Error::new(
                    ErrorKind::UploadOffset,
                    format!("the upload stands at byte {at}, not at {offset}"),
                );
                let mut response = reply::problem(&error, self.request_id);
                stand(&mut response, at, length, false);
                Ok(response)
            }
        }
    }

    /// The upload that the path names: its owner's, or for administrators
    /// anybody's.
    async fn upload(&self) -> Result<JournalledUpload, Error> {
        let found = self.app.engine.catalog.resumable(self.rest).await?;
        found
            .filter(|upload| upload.journal.uid == self.peer.uid() || self.is_admin())
            .ok_or_else(|| Error::new(ErrorKind::UploadGone, "there is no such upload of yours"))
    }

    fn is_admin(&self) -> bool {
        let policy = self.app.policy.current();
        policy.decide(&self.peer.subject, &Ask::admin()).is_ok()
    }

    /// `put` at its place, as if it were asked for now.
    fn granted(&self, upload: &JournalledUpload) -> Result<Granted, Error> {
        let (attributes, ring) = resume::asked_of(upload);
        let mut ask = Ask::at(Operation::Put, &upload.bucket, &upload.key);
        ask.ring = ring;
        ask.put = Some(PutFacts {
            storage_class: attributes.storage_class,
            retain_until: attributes.retain_until,
            length: Some(upload.journal.length),
        });
        self.grant(&ask)
    }

    fn grant(&self, ask: &Ask) -> Result<Granted, Error> {
        let policy = self.app.policy.current();
        let rights = policy.decide(&self.peer.subject, ask);
        let rights = rights.map_err(|denied: Denied| {
            self.app.metrics.denied(denied.operation);
            Error::from(denied)
        })?;
        Ok(Granted {
            app: self.app.clone(),
            permit: permit(self.app)?,
            request_id: self.request_id.to_owned(),
            peer: self.peer.clone(),
            rights,
            timer: Arc::clone(self.timer),
        })
    }

    async fn record(&self, upload: &JournalledUpload, state: &str) -> Result<(), Error> {
        let audit = &self.app.audit;
        let mut op = audit.op(Kind::Upload, self.peer.actor(), self.request_id);
        let event = op.event();
        event.bucket = Some(upload.bucket.clone());
        event.key = Some(upload.key.clone());
        event.message_id = Some(upload.journal.message_id.clone());
        event.state = Some(state.to_owned());
        op.finish(Ok(())).await
    }

    fn not_allowed(&self) -> Error {
        let Self { method, rest, .. } = self;
        Error::new(
            ErrorKind::MethodNotAllowed,
            format!("{method} {UPLOADS}{rest}"),
        )
    }
}

/// `GET /v1/uploads`: one's own, or for administrators all.
pub(super) async fn list(app: &App, peer: &Peer) -> Result<Response<Body>, Error> {
    let policy = app.policy.current();
    let admin = policy.decide(&peer.subject, &Ask::admin());
    if !policy.knows(&peer.subject) {
        admin.map_err(Error::from)?;
        return Err(Error::new(ErrorKind::Forbidden, "nothing is granted"));
    }
    let of = admin.is_err().then(|| peer.uid());
    let kept = app.engine.catalog.resumables(of, None, MOST_LISTED).await?;
    let kept: Vec<UploadInfo> = kept.iter().map(|upload| info(upload, false)).collect();
    reply::json(StatusCode::OK, &kept)
}

fn info(upload: &JournalledUpload, whole: bool) -> UploadInfo {
    let journal = &upload.journal;
    UploadInfo {
        id: journal.ticket.clone(),
        bucket: upload.bucket.clone(),
        key: upload.key.clone(),
        uid: journal.uid,
        source: journal.source.clone(),
        length: journal.length,
        offset: whole.then(|| resume::standing(upload, true).offset),
        created: journal.created,
        expires: resume::expires(upload.touched),
    }
}

fn described(status: StatusCode, upload: &JournalledUpload) -> Response<Body> {
    let standing = resume::standing(upload, true);
    let mut response = empty(status);
    stand(&mut response, standing.offset, standing.length, false);
    response
}

/// Where an upload stands, in the draft's headers.
fn stand(response: &mut Response<Body>, offset: u64, length: u64, complete: bool) {
    let complete = if complete { "?1" } else { "?0" };
    reply::set(response, header::UPLOAD_OFFSET, &offset.to_string());
    reply::set(response, header::UPLOAD_LENGTH, &length.to_string());
    reply::set(response, header::UPLOAD_COMPLETE, complete);
    reply::set(response, std_header::CACHE_CONTROL, "no-store");
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(reply::full(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// A structured field's integer (RFC 9651).
fn number(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, Error> {
    let Some(text) = request::text(headers, name)? else {
        return Ok(None);
    };
    // At most 15 digits, says the RFC; objects are shorter.
    let digits = !text.is_empty() && text.len() <= 15 && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(Some(number)),
        _ => Err(malformed(format!(
            "{name} is {text:?}; it must be a number"
        ))),
    }
}

/// A structured field's boolean.
fn boolean(headers: &HeaderMap, name: &'static str) -> Result<Option<bool>, Error> {
    match request::text(headers, name)?.as_deref() {
        None => Ok(None),
        Some("?0") => Ok(Some(false)),
        Some("?1") => Ok(Some(true)),
        Some(other) => Err(malformed(format!(
            "{name} is {other:?}; it must be ?0 or ?1"
        ))),
    }
}
