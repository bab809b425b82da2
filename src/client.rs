//! The client: HTTP/1.1 over the agent's Unix socket.
//!
//! What the command line uses, and other Rust programs may. One connection a
//! request: on a local socket that costs microseconds, and a request that is
//! given up takes nothing else with it.

mod archive;
mod lines;
mod queue;
mod resume;
mod rewrap;
#[cfg(test)]
mod tests;
mod transfer;
mod wire;

pub use lines::Lines;
pub use resume::{Check, Resumable};
pub use rewrap::RewrapRun;
pub use transfer::{Download, Upload};

use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    Error, ErrorKind, Evidence, GenerateKey, GrantInfo, GrantQuestion, GrantTest, ImportKey,
    Inspection, KeyDetail, KeyInfo, ListPage, RebuildLine, RebuildRequest, Receipt, RetireLine,
    RetireRequest, Standing, Status, VerifyLine, VerifyRequest, header,
};
use wire::{encode, problem};

/// Largest JSON answer we read, in bytes. A page of 1,000 keys of 1,024 bytes
/// stays below 8 MiB with every byte escaped.
const MAX_JSON: usize = 16 << 20;

/// What a put may ask for; every field is one request header (docs/api.md).
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// Pairs for the encryption context.
    pub context: Vec<(String, String)>,
    /// The object's media type.
    pub content_type: Option<String>,
    /// S3 storage class.
    pub storage_class: Option<String>,
    /// RFC 3339 instant until which Object Lock retains it.
    pub retain_until: Option<String>,
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub retention_mode: Option<String>,
    /// Whether Object Lock holds it.
    pub legal_hold: bool,
    /// Object tags.
    pub tags: Vec<(String, String)>,
    /// The ring whose active key wraps it.
    pub ring: Option<String>,
    /// Fails with `already-exists` rather than overwrite.
    pub no_clobber: bool,
}

/// What a get may ask for.
#[derive(Clone, Debug, Default)]
pub struct GetOptions {
    /// The value of `Range`, such as `bytes=0-99`.
    pub range: Option<String>,
    /// An S3 version id.
    pub version_id: Option<String>,
    /// The place, `s3://BUCKET/KEY`, that a copied object is bound to.
    pub bound_to: Option<String>,
    /// Opens a message that is bound to no place.
    pub allow_unbound: bool,
    /// Opens a version 1 message, which has no key commitment.
    pub allow_uncommitted: bool,
    /// Looks for the message in the catalogues of other writers, too.
    pub ask_writers: bool,
}

/// What an answer's headers say of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Plaintext bytes of this answer's body (of the range, if one was asked for).
    pub length: u64,
    /// The media type.
    pub content_type: Option<String>,
    /// S3's version id.
    pub version_id: Option<String>,
    /// The message id, hexadecimal.
    pub message_id: Option<String>,
    /// The wrapping key that opened it.
    pub wrapping_key: Option<String>,
    /// What the agent's catalogue says of the message.
    pub standing: Option<Standing>,
    /// Whether another writer stored it.
    pub foreign_write: bool,
}

/// A client of the agent that listens on one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Stores an object; the body ends the upload only if it ends properly.
    ///
    /// # Errors
    /// The agent's answer, also one given before the body was read; an agent
    /// that cannot be reached; a body that broke off.
    pub async fn put(
        &self,
        bucket: &str,
        key: &str,
        options: &PutOptions,
        upload: Upload,
    ) -> Result<Receipt, Error> {
        let headers = put_headers(options)?;
        let path = object_path(bucket, key);
        let answer = self
            .send(Method::PUT, &path, headers, upload)
            .await?
            .success()
            .await?;
        answer.json().await
    }

    /// Begins to fetch an object.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn get(
        &self,
        bucket: &str,
        key: &str,
        options: &GetOptions,
    ) -> Result<Download, Error> {
        let answer = self.read(Method::GET, bucket, key, options).await?;
        let answer = answer.success().await?;
        Ok(Download::new(self.clone(), answer))
    }

    /// Has the agent write an object to a file, from the file's end on, which
    /// must be its position too. All of it is there when this returns, and
    /// verified; after an error it holds whatever.
    ///
    /// # Errors
    /// As for [`Client::get`]; [`ErrorKind::DescriptorRefused`] for files that
    /// the agent does not write, of network file systems for example.
    pub async fn get_to_file(
        &self,
        bucket: &str,
        key: &str,
        options: &GetOptions,
        file: &std::fs::File,
    ) -> Result<ObjectInfo, Error> {
        let upload = Upload::from_file(file, 0)
            .map_err(|error| Error::new(ErrorKind::DescriptorRefused, error.to_string()))?;
        let path = read_path(bucket, key, options);
        let answer = self.send(Method::GET, &path, get_headers(options)?, upload);
        let answer = answer.await?.success().await?;
        let written = wire::text(
            answer.headers(),
            &HeaderName::from_static(header::DESCRIPTOR),
        );
        let length = written.and_then(|text| text.parse().ok());
        // An agent that knew nothing of descriptors would send a body.
        let length = length.ok_or_else(|| {
            Error::new(ErrorKind::DescriptorRefused, "the agent wrote to no file")
        })?;
        Ok(ObjectInfo {
            length,
            ..object_info(answer.headers())
        })
    }

    /// What the headers of a get would say.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn head(
        &self,
        bucket: &str,
        key: &str,
        options: &GetOptions,
    ) -> Result<ObjectInfo, Error> {
        let answer = self.read(Method::HEAD, bucket, key, options).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(object_info(answer.headers()));
        }
        // An answer to HEAD has no body; the agent remembers why.
        let why = self.failure_of(answer.request_id()).await;
        Err(why.unwrap_or_else(|| wire::by_status(status)))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<(), Error> {
        let path = object_path(bucket, key);
        self.call(Method::DELETE, &path, Upload::empty())
            .await
            .map(drop)
    }

    /// One page of a listing.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        continuation: Option<&str>,
    ) -> Result<ListPage, Error> {
        let mut path = format!("/v1/objects/{}?prefix={}", encode(bucket), encode(prefix));
        for (name, value) in [("delimiter", delimiter), ("continuation", continuation)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encode(value)));
            }
        }
        self.fetch(&path).await
    }

    /// What is known of an object without decrypting it.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn inspect(
        &self,
        bucket: &str,
        key: &str,
        version_id: Option<&str>,
    ) -> Result<Inspection, Error> {
        let mut path = format!("{}?inspect", object_path(bucket, key));
        if let Some(version) = version_id {
            path.push_str(&format!("&version_id={}", encode(version)));
        }
        self.fetch(&path).await
    }

    /// The agent's state.
    ///
    /// # Errors
    /// An agent that cannot be reached.
    pub async fn status(&self) -> Result<Status, Error> {
        self.fetch("/v1/status").await
    }

    /// The configured wrapping keys.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, Error> {
        self.fetch("/v1/keys").await
    }

    /// The auditor's report over a period of RFC 3339 instants.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn evidence(&self, from: &str, to: &str) -> Result<Evidence, Error> {
        let path = format!("/v1/evidence?from={}&to={}", encode(from), encode(to));
        self.fetch(&path).await
    }

    /// Generates a wrapping key in a token. The configuration is the
    /// caller's to change.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn generate_key(&self, request: &GenerateKey) -> Result<KeyInfo, Error> {
        self.call(Method::POST, "/v1/keys", json_body(request)?)
            .await?
            .json()
            .await
    }

    /// One wrapping key, with what depends on it.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn key(&self, name: &str) -> Result<KeyDetail, Error> {
        self.fetch(&format!("/v1/keys/{}", encode(name))).await
    }

    /// Whether a key may be retired; then, once the configuration has it as
    /// disabled, that it was.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn retire(&self, request: &RetireRequest) -> Result<Lines<RetireLine>, Error> {
        let answer = self.call(Method::POST, "/v1/keys/retire", json_body(request)?);
        Ok(Lines::new(answer.await?))
    }

    /// Verifies what is stored.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn verify(&self, request: &VerifyRequest) -> Result<Lines<VerifyLine>, Error> {
        let answer = self.call(Method::POST, "/v1/verify", json_body(request)?);
        Ok(Lines::new(answer.await?))
    }

    /// What the catalogue knows, line by line.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn catalog(&self) -> Result<Lines<serde_json::Value>, Error> {
        let answer = self.call(Method::GET, "/v1/catalog", Upload::empty());
        Ok(Lines::new(answer.await?))
    }

    /// Takes the catalogue for good although the evidence knows another; says
    /// what was known against it.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn accept_catalog(&self) -> Result<serde_json::Value, Error> {
        self.call(Method::POST, "/v1/catalog/accept", Upload::empty())
            .await?
            .json()
            .await
    }

    /// Has the agent store a copy of its catalogue.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn backup_catalog(
        &self,
        bucket: &str,
        key: &str,
        options: &PutOptions,
    ) -> Result<Receipt, Error> {
        let headers = put_headers(options)?;
        let path = format!(
            "/v1/catalog/backup?bucket={}&key={}",
            encode(bucket),
            encode(key)
        );
        let answer = self.send(Method::POST, &path, headers, Upload::empty());
        answer.await?.success().await?.json().await
    }

    /// Has the agent look for what its catalogue lost.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn rebuild_catalog(
        &self,
        request: &RebuildRequest,
    ) -> Result<Lines<RebuildLine>, Error> {
        let answer = self.call(Method::POST, "/v1/catalog/rebuild", json_body(request)?);
        Ok(Lines::new(answer.await?))
    }

    /// Takes a step of a key's import; the answer is the step's own.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn import_key<T: serde::de::DeserializeOwned>(
        &self,
        request: &ImportKey,
    ) -> Result<T, Error> {
        self.call(Method::POST, "/v1/keys/import", json_body(request)?)
            .await?
            .json()
            .await
    }

    /// The grants in force.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn grants(&self) -> Result<Vec<GrantInfo>, Error> {
        self.fetch("/v1/grants").await
    }

    /// How a request would be decided.
    ///
    /// # Errors
    /// The agent's answer, or an agent that cannot be reached.
    pub async fn grants_test(&self, question: &GrantQuestion) -> Result<GrantTest, Error> {
        let groups: Vec<String> = question.groups.iter().map(u32::to_string).collect();
        let mut path = format!(
            "/v1/grants/test?uid={}&gid={}&groups={}&operation={}",
            question.uid,
            question.gid,
            groups.join(","),
            question.operation
        );
        if let Some((bucket, key)) = &question.place {
            path.push_str(&format!("&bucket={}&key={}", encode(bucket), encode(key)));
        }
        if let Some(ring) = &question.ring {
            path.push_str(&format!("&ring={}", encode(ring)));
        }
        self.fetch(&path).await
    }

    /// Makes the agent read its configuration again.
    ///
    /// # Errors
    /// The new configuration was refused, and the old one stays; or the
    /// agent cannot be reached.
    pub async fn reload(&self) -> Result<(), Error> {
        self.call(Method::POST, "/v1/reload", Upload::empty())
            .await
            .map(drop)
    }

    /// Why a request failed whose answer could not say so.
    async fn failure_of(&self, request_id: Option<&str>) -> Option<Error> {
        let path = format!("/v1/requests/{}", encode(request_id?));
        let answer = self
            .send(Method::GET, &path, HeaderMap::new(), Upload::empty())
            .await
            .ok()?;
        if answer.status() == StatusCode::NOT_FOUND {
            return None;
        }
        problem(&answer.bytes().await.ok()?)
    }

    async fn read(
        &self,
        method: Method,
        bucket: &str,
        key: &str,
        options: &GetOptions,
    ) -> Result<wire::Answer, Error> {
        let path = read_path(bucket, key, options);
        self.send(method, &path, get_headers(options)?, Upload::empty())
            .await
    }

    async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, Upload::empty())
            .await?
            .json()
            .await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        upload: Upload,
    ) -> Result<wire::Answer, Error> {
        self.send(method, path, HeaderMap::new(), upload)
            .await?
            .success()
            .await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        upload: Upload,
    ) -> Result<wire::Answer, Error> {
        wire::send(&self.socket, method, path, headers, upload).await
    }
}

impl wire::Answer {
    /// The whole body, within [`MAX_JSON`].
    async fn bytes(self) -> Result<bytes::Bytes, Error> {
        let (body, _connection) = self.into_body();
        match http_body_util::Limited::new(body, MAX_JSON).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(_) => Err(Error::new(
                ErrorKind::AgentAway,
                "the agent's answer broke off",
            )),
        }
    }

    async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let bytes = self.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(
                ErrorKind::Internal,
                format!("cannot understand the agent's answer: {error}"),
            )
            .hint("the agent and this program may be of different releases")
        })
    }

    /// Turns every answer but a 2xx into the error it tells of.
    async fn success(self) -> Result<Self, Error> {
        let status = self.status();
        if status.is_success() {
            return Ok(self);
        }
        let retry = wire::text(self.headers(), &http::header::RETRY_AFTER);
        let bytes = self.bytes().await.unwrap_or_default();
        let error = problem(&bytes).unwrap_or_else(|| wire::by_status(status));
        Err(match retry {
            Some(seconds) => {
                let hint = format!("{} (try again in {seconds} s)", error.hint_text());
                error.hint(hint)
            }
            None => error,
        })
    }
}

fn object_path(bucket: &str, key: &str) -> String {
    format!("/v1/objects/{}/{}", encode(bucket), encode(key))
}

fn json_body(value: &impl Serialize) -> Result<Upload, Error> {
    let text = serde_json::to_vec(value)
        .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    Ok(Upload::from_bytes(text.into()))
}

fn put_headers(options: &PutOptions) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (key, value) in &options.context {
        add(&mut headers, header::CONTEXT, &format!("{key}={value}"))?;
    }
    let tags: Vec<String> = options
        .tags
        .iter()
        .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
        .collect();
    let tags = (!tags.is_empty()).then(|| tags.join("&"));
    let single = [
        ("content-type", options.content_type.as_deref()),
        (header::STORAGE_CLASS, options.storage_class.as_deref()),
        (header::RETAIN_UNTIL, options.retain_until.as_deref()),
        (header::RETENTION_MODE, options.retention_mode.as_deref()),
        (header::LEGAL_HOLD, options.legal_hold.then_some("ON")),
        (header::TAGS, tags.as_deref()),
        (header::KEY, options.ring.as_deref()),
        ("if-none-match", options.no_clobber.then_some("*")),
    ];
    for (name, value) in single {
        if let Some(value) = value {
            add(&mut headers, name, value)?;
        }
    }
    Ok(headers)
}

fn get_headers(options: &GetOptions) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    let yes = |set: bool| set.then_some("true");
    let single = [
        ("range", options.range.as_deref()),
        (header::BOUND_TO, options.bound_to.as_deref()),
        (header::ALLOW_UNBOUND, yes(options.allow_unbound)),
        (header::ALLOW_UNCOMMITTED, yes(options.allow_uncommitted)),
        (header::ASK_WRITERS, yes(options.ask_writers)),
    ];
    for (name, value) in single {
        if let Some(value) = value {
            add(&mut headers, name, value)?;
        }
    }
    Ok(headers)
}

fn add(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Error> {
    // Bytes, not text: a header value may be UTF-8, only not a line break.
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
        Error::new(
            ErrorKind::Malformed,
            format!("{name}: {value:?} has a character that no header can carry"),
        )
        .hint("leave out line breaks and control characters")
    })?;
    headers.append(HeaderName::from_static(name), value);
    Ok(())
}

fn read_path(bucket: &str, key: &str, options: &GetOptions) -> String {
    let mut path = object_path(bucket, key);
    if let Some(version) = &options.version_id {
        path.push_str(&format!("?version_id={}", encode(version)));
    }
    path
}

fn object_info(headers: &HeaderMap) -> ObjectInfo {
    let ours = |name: &'static str| wire::text(headers, &HeaderName::from_static(name));
    ObjectInfo {
        length: ours("content-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        content_type: ours("content-type"),
        version_id: ours(header::VERSION_ID),
        message_id: ours(header::MESSAGE_ID),
        wrapping_key: ours(header::WRAPPING_KEY),
        standing: ours(header::STANDING).and_then(|word| Standing::from_word(&word)),
        foreign_write: ours(header::FOREIGN_WRITE).as_deref() == Some("true"),
    }
}
