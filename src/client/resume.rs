//! A file's upload that goes on where it was interrupted (docs/uploads.md).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::sync::mpsc;

use super::wire::{self, encode};
use super::{Client, PutOptions, Upload, add, object_path, put_headers};
use crate::api::{Error, ErrorKind, Receipt, UploadInfo, header};

/// Files below this many bytes are sent with one PUT: sending two parts of
/// the default size again costs less than the requests that avoid it.
const RESUMABLE_FROM: u64 = 16 << 20;
/// Bytes read at a time, and such chunks before the connection.
const CHUNK: usize = 512 << 10;
const QUEUE: usize = 4;
/// How often an upload that cannot go on is begun again: once is normal after
/// a change of the configuration.
const BEGINNINGS: usize = 3;
/// How often it is asked where it stands, and how long apart: the request of
/// a client that was killed may be in progress for as long as its last parts
/// take.
const ASKED: (usize, Duration) = (80, Duration::from_millis(500));

/// Whether a file is still what it was.
pub type Check = Arc<dyn Fn(&File) -> Result<(), Error> + Send + Sync>;

/// A file to be sent, and what its sender is told.
pub struct Resumable {
    /// It, opened for reading.
    pub file: Arc<File>,
    /// Its bytes.
    pub length: u64,
    /// What tells this file, unchanged, from any other: opaque to the agent,
    /// and compared as a whole. At most 16 KiB without line breaks.
    pub fingerprint: String,
    /// Asked before the last byte is sent: whether the file is still what it
    /// was. An error breaks the upload off.
    pub check: Check,
    /// Told how many of its bytes are on their way or through.
    pub progress: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Resumable {
    /// A file as it is now: told from any other, and from what it may become,
    /// by device, inode, size, and the times of its last changes.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: File) -> io::Result<Self> {
        let (length, fingerprint) = fingerprint(&file)?;
        let before = fingerprint.clone();
        let check = move |file: &File| {
            match self::fingerprint(file) {
            Ok((_, now)) if now == before => Ok(()),
            Ok(_) => Err(Error::new(
                ErrorKind::Conflict,
                "it changed while it was read",
            )
            .hint("nothing was stored; store it when nothing writes to it, or store a snapshot or a copy")),
            Err(error) => Err(Error::new(
                ErrorKind::Incomplete,
                format!("it cannot be looked at: {error}"),
            )),
        }
        };
        Ok(Self {
            file: Arc::new(file),
            length,
            fingerprint,
            check: Arc::new(check),
            progress: Arc::new(|_| ()),
        })
    }
}

fn fingerprint(file: &File) -> io::Result<(u64, String)> {
    let meta = file.metadata()?;
    let text = format!(
        "file dev={} ino={} size={} mtime={}.{:09} ctime={}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    );
    Ok((meta.size(), text))
}

/// Why a source broke off.
type Reason = Arc<Mutex<Option<Error>>>;

impl Client {
    /// Stores a file. What an interrupted call, of this process or another of
    /// the same user, had sent of the same file to the same place with the
    /// same options is not sent again.
    ///
    /// # Errors
    /// The agent's answer; what `check` said; an agent or a store that is
    /// away: the same call goes on later.
    pub async fn resumable_put(
        &self,
        bucket: &str,
        key: &str,
        options: &PutOptions,
        source: &Resumable,
    ) -> Result<Receipt, Error> {
        if source.length < RESUMABLE_FROM {
            return self.put_whole(bucket, key, options, source).await;
        }
        let mut outcome = Err(Error::new(ErrorKind::UploadGone, "the upload cannot go on"));
        for _ in 0..BEGINNINGS {
            let begun = self.begin_upload(bucket, key, options, source).await;
            let (at, offset) = match begun {
                // A host that cannot open its own data keys.
                Err(error) if error.kind == ErrorKind::NotImplemented => {
                    return self.put_whole(bucket, key, options, source).await;
                }
                begun => begun?,
            };
            outcome = self.go_on(&at, offset, source).await;
            if !matches!(&outcome, Err(error) if error.kind == ErrorKind::UploadGone) {
                break;
            }
        }
        outcome
    }

    /// The uploads that may be resumed: one's own, or for administrators all.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn uploads(&self) -> Result<Vec<UploadInfo>, Error> {
        self.fetch("/v1/uploads").await
    }

    /// Gives one of them up.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn abort_upload(&self, id: &str) -> Result<(), Error> {
        let path = format!("/v1/uploads/{}", encode(id));
        self.call(Method::DELETE, &path, Upload::empty())
            .await
            .map(drop)
    }

    async fn put_whole(
        &self,
        bucket: &str,
        key: &str,
        options: &PutOptions,
        source: &Resumable,
    ) -> Result<Receipt, Error> {
        let reason = Reason::default();
        let upload = source.from(0, &reason);
        let sent = self.put(bucket, key, options, upload).await;
        sent.map_err(|error| cause(&reason, error))
    }

    /// Makes or finds the upload: its path, and where it stands.
    async fn begin_upload(
        &self,
        bucket: &str,
        key: &str,
        options: &PutOptions,
        source: &Resumable,
    ) -> Result<(String, u64), Error> {
        let mut headers = put_headers(options)?;
        add(&mut headers, header::SOURCE, &source.fingerprint)?;
        add(
            &mut headers,
            header::UPLOAD_LENGTH,
            &source.length.to_string(),
        )?;
        add(&mut headers, header::UPLOAD_COMPLETE, "?0")?;
        let path = object_path(bucket, key).replacen("/v1/objects/", "/v1/uploads/", 1);
        let answer = self
            .send(Method::POST, &path, headers, Upload::empty())
            .await?
            .success()
            .await?;
        let at = wire::text(answer.headers(), &http::header::LOCATION);
        let at = at.ok_or_else(|| strange("no Location"))?;
        let offset = offset(answer.headers()).ok_or_else(|| strange("no Upload-Offset"))?;
        Ok((at, offset))
    }

    async fn go_on(&self, at: &str, mut offset: u64, source: &Resumable) -> Result<Receipt, Error> {
        let mut asked = 0;
        loop {
            let reason = Reason::default();
            let mut headers = HeaderMap::new();
            add(&mut headers, header::UPLOAD_OFFSET, &offset.to_string())?;
            add(&mut headers, header::UPLOAD_COMPLETE, "?1")?;
            headers.insert(
                http::header::CONTENT_TYPE,
                HeaderValue::from_static("application/partial-upload"),
            );
            let upload = source.from(offset, &reason);
            let answer = self.send(Method::PATCH, at, headers, upload).await;
            let answer = answer.map_err(|error| cause(&reason, error))?;
            asked += 1;
            if answer.status() == StatusCode::CONFLICT
                && let Some(stands) = self::offset(answer.headers())
                && asked < ASKED.0
            {
                offset = stands;
                continue;
            }
            match answer.success().await {
                Ok(answer) => return answer.json().await,
                Err(error) if error.kind == ErrorKind::Busy && asked < ASKED.0 => {
                    tokio::time::sleep(ASKED.1).await;
                }
                Err(error) => return Err(cause(&reason, error)),
            }
        }
    }
}

impl Resumable {
    /// Its bytes from `offset` on, as a body.
    fn from(&self, offset: u64, reason: &Reason) -> Upload {
        (self.progress)(offset);
        let fail = |error: Error| {
            *reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        };
        let (sender, chunks) = mpsc::channel(QUEUE);
        let left = self.length.saturating_sub(offset);
        if left == 0 {
            // Whole before anything could be held back.
            return match (self.check)(&self.file) {
                Ok(()) => Upload::empty(),
                Err(error) => {
                    fail(error);
                    drop(sender.try_send(Err(io::Error::other("the source failed"))));
                    Upload::from_channel(chunks, None)
                }
            };
        }
        let (file, length) = (self.file.clone(), self.length);
        let (check, progress, reason) = (self.check.clone(), self.progress.clone(), reason.clone());
        std::thread::spawn(move || {
            let mut at = offset;
            let broken = loop {
                let most = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
                let chunk = match read(&file, at, most) {
                    Ok(chunk) => chunk,
                    Err(error) => break error,
                };
                at += chunk.len() as u64;
                // The last byte ends the body: it waits for the verdict.
                if at == length
                    && let Err(error) = check(&file)
                {
                    break error;
                }
                if sender.blocking_send(Ok(chunk)).is_err() {
                    return;
                }
                progress(at);
                if at == length {
                    return;
                }
            };
            *reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(broken);
            drop(sender.blocking_send(Err(io::Error::other("the source failed"))));
        });
        Upload::from_channel(chunks, Some(left))
    }
}

fn read(file: &File, at: u64, most: usize) -> Result<Bytes, Error> {
    let mut chunk = BytesMut::zeroed(most);
    loop {
        match file.read_at(&mut chunk, at) {
            Ok(0) => {
                return Err(Error::new(
                    ErrorKind::Incomplete,
                    format!("the file ends at byte {at}: it was shortened while it was read"),
                ));
            }
            Ok(n) => {
                chunk.truncate(n);
                return Ok(chunk.freeze());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(Error::new(
                    ErrorKind::Incomplete,
                    format!("the file cannot be read: {error}"),
                ));
            }
        }
    }
}

/// The source's own reason, where the agent could only see the consequence.
fn cause(reason: &Reason, error: Error) -> Error {
    let mut reason = reason.lock().unwrap_or_else(PoisonError::into_inner);
    match reason.take() {
        Some(reason) if matches!(error.kind, ErrorKind::Incomplete | ErrorKind::AgentAway) => {
            reason
        }
        _ => error,
    }
}

fn offset(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::UPLOAD_OFFSET)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn strange(what: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("cannot understand the agent's answer: {what}"),
    )
    .hint("the agent and this program may be of different releases")
}
