//! A store that answers S3's calls and keeps next to nothing: it shows what
//! went over the wire, fails on request, and costs little enough to measure
//! the agent's own limit.
//!
//! Bodies up to `remember` bytes are kept, and then also verified against
//! their checksums; longer ones are read, counted and dropped.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::null_tls;

/// Bytes read at once beneath TLS, which by itself asks for 4 KiB at a time.
const TLS_READ: usize = 256 << 10;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// A running null store, on a thread of its own (named `null-store`, so that
/// a benchmark can tell its share); it ends when this is dropped.
pub struct NullStore {
    pub addr: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<()>,
}

/// What the store does, by S3's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Put,
    Create,
    Part,
    Complete,
    Abort,
    Get,
    Head,
    Delete,
    List,
    Other,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Refuses with this status and code; nothing is done.
    Status(u16, &'static str),
    /// Cuts the connection after the body; nothing is done.
    Cut,
    /// Never reads the body and never answers.
    Stall,
    /// Works, but tells another checksum.
    WrongChecksum,
    /// Works, then cuts the connection instead of answering.
    LostReply,
    /// A 200 with an error in its body; nothing is done.
    ErrorIn200(&'static str),
    /// Breaks a GET's body off in the middle.
    ShortBody,
    /// Works, later.
    Slow(Duration),
}

/// A request, as it was on the wire.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub op: Op,
    pub method: String,
    /// The request target: raw path and query.
    pub target: String,
    pub headers: HeaderMap,
    /// Bytes of the body that were read.
    pub body_len: u64,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Vec<Object>>,
    uploads: HashMap<String, Pending>,
    requests: Vec<Recorded>,
    record: bool,
    faults: Vec<Rule>,
    seen: HashMap<Op, u32>,
    remember: usize,
    versioned: bool,
    ignores_if_none_match: bool,
    tells_no_checksum: bool,
    serial: u64,
    latency: Duration,
    sent: u64,
}

struct Rule {
    op: Op,
    from: u32,
    times: u32,
    fault: Fault,
}

/// A stored object.
#[derive(Clone)]
pub struct Object {
    /// `None` if it was too long to keep: it reads as [`synthetic`] bytes.
    pub body: Option<Bytes>,
    pub size: u64,
    pub etag: String,
    pub version: String,
    /// Headers to give back: content type, metadata, lock, checksum.
    pub headers: Vec<(String, String)>,
}

struct Pending {
    path: String,
    headers: Vec<(String, String)>,
    parts: BTreeMap<u32, Object>,
}

/// The byte at position `at` of an object that was not kept.
pub fn synthetic(at: u64) -> u8 {
    u8::try_from(at % 251).unwrap_or_default()
}

impl NullStore {
    /// Starts on a free port; keeps and verifies bodies up to 64 MiB.
    pub fn start() -> Self {
        Self::start_with(64 << 20, true)
    }

    /// `remember`: bytes of a body that are kept; `record`: keep requests.
    pub fn start_with(remember: usize, record: bool) -> Self {
        let state = Arc::new(State::default());
        {
            let mut inner = state.lock();
            inner.remember = remember;
            inner.record = record;
        }
        let (stop, _) = watch::channel(());
        Self {
            addr: listen(&state, &stop, None),
            state,
            stop,
        }
    }

    /// Answers over TLS too, from a thread of its own: where, and the
    /// certificate to trust, in PEM.
    pub fn tls(&self) -> (SocketAddr, String) {
        let (acceptor, authority) = null_tls::make();
        (listen(&self.state, &self.stop, Some(acceptor)), authority)
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// From the `from`-th request of this kind on (1 is the next), `times` of
    /// them go wrong.
    pub fn inject(&self, op: Op, from: u32, times: u32, fault: Fault) {
        let mut inner = self.state.lock();
        let from = inner.seen.get(&op).copied().unwrap_or_default() + from;
        inner.faults.push(Rule {
            op,
            from,
            times,
            fault,
        });
    }

    pub fn versioned(&self, on: bool) {
        self.state.lock().versioned = on;
    }

    pub fn ignores_if_none_match(&self, on: bool) {
        self.state.lock().ignores_if_none_match = on;
    }

    pub fn tells_no_checksum(&self, on: bool) {
        self.state.lock().tells_no_checksum = on;
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state.lock().requests.clone()
    }

    /// Requests of one kind so far.
    pub fn count(&self, op: Op) -> u32 {
        self.state.lock().seen.get(&op).copied().unwrap_or_default()
    }

    /// Every answer comes so much later from now on: a round trip's time.
    pub fn latency(&self, latency: Duration) {
        self.state.lock().latency = latency;
    }

    /// Bytes of objects that were sent in answers so far.
    pub fn sent(&self) -> u64 {
        self.state.lock().sent
    }

    /// Requests of any kind so far.
    pub fn total(&self) -> u64 {
        self.state.lock().seen.values().map(|&n| u64::from(n)).sum()
    }

    /// Bytes of a body that are kept from now on; longer ones are dropped.
    pub fn remember(&self, bytes: usize) {
        self.state.lock().remember = bytes;
    }

    /// Uploads that were neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }

    /// The newest object at `bucket/key` (decoded).
    pub fn object(&self, path: &str) -> Option<Object> {
        self.state.lock().objects.get(path)?.last().cloned()
    }

    /// All keys, as `bucket/key`.
    pub fn keys(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    /// Puts an object there behind everybody's back.
    pub fn plant(&self, path: &str, body: impl Into<Bytes>) {
        let body = body.into();
        let size = body.len() as u64;
        self.state.lock().store(path, Some(body), size, Vec::new());
    }

    /// Plants `size` bytes of [`synthetic`] data.
    pub fn plant_synthetic(&self, path: &str, size: u64) {
        self.state.lock().store(path, None, size, Vec::new());
    }
}

/// Serves on a free port, on a thread of its own.
fn listen(
    state: &Arc<State>,
    stop: &watch::Sender<()>,
    acceptor: Option<TlsAcceptor>,
) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let (state, mut stopped) = (state.clone(), stop.subscribe());
    std::thread::Builder::new()
        .name("null-store".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, state, acceptor) => {}
                    _ = stopped.changed() => {}
                }
            });
        })
        .unwrap();
    addr
}

async fn serve(listener: TcpListener, state: Arc<State>, acceptor: Option<TlsAcceptor>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (state, acceptor) = (state.clone(), acceptor.clone());
        connections.spawn(async move {
            match acceptor {
                None => converse(stream, state).await,
                Some(acceptor) => {
                    let stream = BufReader::with_capacity(TLS_READ, stream);
                    if let Ok(stream) = acceptor.accept(stream).await {
                        converse(stream, state).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let service = hyper::service::service_fn(move |request| {
        let state = state.clone();
        async move { state.answer(request).await }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(1 << 20)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Ends the connection without an answer.
#[derive(Debug)]
struct Cut;
impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}
impl std::error::Error for Cut {}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Cut> {
        let (head, mut body) = request.into_parts();
        let query = parse_query(head.uri.query().unwrap_or_default());
        let path = decode(head.uri.path().strip_prefix('/').unwrap_or_default());
        let op = op_of(&head.method, &path, &query);
        let (fault, remember, latency) = {
            let mut inner = self.lock();
            let seen = inner.seen.entry(op).or_default();
            *seen += 1;
            let now = *seen;
            let fault = inner
                .faults
                .iter()
                .find(|r| r.op == op && (r.from..r.from.saturating_add(r.times)).contains(&now))
                .map(|r| r.fault.clone());
            if inner.record {
                inner.requests.push(Recorded {
                    op,
                    method: head.method.to_string(),
                    target: head.uri.to_string(),
                    headers: head.headers.clone(),
                    body_len: 0,
                });
            }
            (fault, inner.remember, inner.latency)
        };
        let recorded = self.lock().requests.len();
        if matches!(fault, Some(Fault::Stall)) {
            std::future::pending::<()>().await;
        }
        let mut len = 0;
        let mut kept = Some(BytesMut::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Cut)?.into_data() else {
                continue;
            };
            len += data.len() as u64;
            if len > remember as u64 && op != Op::Complete {
                kept = None;
            }
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(&data);
            }
        }
        if let Some(entry) = self.lock().requests.get_mut(recorded.wrapping_sub(1)) {
            entry.body_len = len;
        }
        let kept = kept.map(BytesMut::freeze);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match fault {
            Some(Fault::Cut) => return Err(Cut),
            Some(Fault::Status(status, code)) => return Ok(refuse(status, code)),
            Some(Fault::ErrorIn200(code)) => return Ok(refuse(200, code)),
            Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
            _ => {}
        }
        let mut answer = self
            .lock()
            .work(op, &path, &query, &head.headers, kept, len);
        match fault {
            Some(Fault::LostReply) => return Err(Cut),
            Some(Fault::WrongChecksum) => {
                if let Some(value) = answer.headers_mut().get_mut("x-amz-checksum-crc64nvme") {
                    *value = "AAAAAAAAAAA=".parse().unwrap();
                } else {
                    let body = answer
                        .into_body()
                        .collect()
                        .await
                        .map_err(|_| Cut)?
                        .to_bytes();
                    let text = String::from_utf8_lossy(&body).into_owned();
                    let begin = text.find("<ChecksumCRC64NVME>").unwrap_or(text.len());
                    let end = text.find("</ChecksumCRC64NVME>").unwrap_or(text.len());
                    let begin = (begin + "<ChecksumCRC64NVME>".len()).min(text.len());
                    let text = format!("{}AAAAAAAAAAA={}", &text[..begin], &text[end..]);
                    answer = self::answer(200, text.into());
                }
            }
            Some(Fault::ShortBody) => {
                let (mut parts, body) = answer.into_parts();
                let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
                parts.headers.insert("content-length", body.len().into());
                let half = body.slice(..body.len() / 2);
                let broken = stream::iter([Ok(Frame::data(half))]).chain(stream::once(async {
                    // Lets the first half reach the client.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(std::io::Error::other("cut"))
                }));
                answer = Response::from_parts(parts, StreamBody::new(broken).boxed_unsync());
            }
            _ => {}
        }
        Ok(answer)
    }
}

impl Inner {
    fn store(
        &mut self,
        path: &str,
        body: Option<Bytes>,
        size: u64,
        headers: Vec<(String, String)>,
    ) -> Object {
        self.serial += 1;
        let object = Object {
            body,
            size,
            etag: format!("\"{:032x}\"", self.serial),
            version: format!("v{}", self.serial),
            headers,
        };
        let versions = self.objects.entry(path.to_owned()).or_default();
        if !self.versioned {
            versions.clear();
        }
        versions.push(object.clone());
        object
    }

    fn taken(&self, path: &str, headers: &HeaderMap) -> bool {
        headers.contains_key("if-none-match")
            && !self.ignores_if_none_match
            && self.objects.contains_key(path)
    }

    fn work(
        &mut self,
        op: Op,
        path: &str,
        query: &HashMap<String, String>,
        headers: &HeaderMap,
        body: Option<Bytes>,
        len: u64,
    ) -> Answer {
        match path.split('/').next() {
            Some("missing") => return refuse(404, "NoSuchBucket"),
            Some("denied") => return refuse(403, "AccessDenied"),
            _ => {}
        }
        if let Some(code) = body.as_ref().and_then(|body| verify(headers, body)) {
            return refuse(400, code);
        }
        match op {
            Op::Put if self.taken(path, headers) => refuse(412, "PreconditionFailed"),
            Op::Put => {
                let object = self.store(path, body, len, kept_headers(headers));
                self.describe(Response::builder(), &object, headers)
            }
            Op::Create => {
                self.serial += 1;
                let id = format!("upload-{}", self.serial);
                let pending = Pending {
                    path: path.to_owned(),
                    headers: kept_headers(headers),
                    parts: BTreeMap::new(),
                };
                self.uploads.insert(id.clone(), pending);
                xml(
                    200,
                    format!(
                        "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                    ),
                )
            }
            Op::Part => self.part(query, headers, body, len),
            Op::Complete => self.complete(path, query, headers, &body.unwrap_or_default()),
            Op::Abort => match self.uploads.remove(&query["uploadId"]) {
                Some(_) => empty(204),
                None => refuse(404, "NoSuchUpload"),
            },
            Op::Get | Op::Head => self.read(op, path, query, headers),
            Op::Delete => self.delete(path, query),
            Op::List => self.list(path, query),
            Op::Other if query.contains_key("versioning") => xml(
                200,
                format!(
                    "<VersioningConfiguration>{}</VersioningConfiguration>",
                    if self.versioned {
                        "<Status>Enabled</Status>"
                    } else {
                        ""
                    }
                ),
            ),
            Op::Other if query.contains_key("object-lock") => {
                refuse(404, "ObjectLockConfigurationNotFoundError")
            }
            Op::Other => empty(200),
        }
    }

    fn part(
        &mut self,
        query: &HashMap<String, String>,
        headers: &HeaderMap,
        body: Option<Bytes>,
        len: u64,
    ) -> Answer {
        let number: u32 = query["partNumber"].parse().unwrap();
        let Some(pending) = self.uploads.get_mut(&query["uploadId"]) else {
            return refuse(404, "NoSuchUpload");
        };
        let object = Object {
            body,
            size: len,
            etag: format!("\"part-{number}\""),
            version: String::new(),
            headers: Vec::new(),
        };
        pending.parts.insert(number, object.clone());
        self.describe(Response::builder(), &object, headers)
    }

    fn complete(
        &mut self,
        path: &str,
        query: &HashMap<String, String>,
        headers: &HeaderMap,
        listed: &[u8],
    ) -> Answer {
        let id = &query["uploadId"];
        let Some(pending) = self.uploads.get(id) else {
            return refuse(404, "NoSuchUpload");
        };
        assert_eq!(pending.path, path);
        if self.taken(path, headers) {
            return refuse(412, "PreconditionFailed");
        }
        let listed = String::from_utf8_lossy(listed);
        let complete = listed.matches("<PartNumber>").count() == pending.parts.len()
            && pending.parts.iter().all(|(n, part)| {
                listed.contains(&format!("<PartNumber>{n}</PartNumber>"))
                    && listed.contains(part.etag.trim_matches('"'))
            });
        let size: u64 = pending.parts.values().map(|p| p.size).sum();
        let declared = headers
            .get("x-amz-mp-object-size")
            .and_then(|v| v.to_str().ok());
        if !complete || declared.is_some_and(|d| d != size.to_string()) {
            return refuse(400, "InvalidPart");
        }
        let all: Option<Vec<_>> = pending.parts.values().map(|p| p.body.clone()).collect();
        let body = all.map(|parts| Bytes::from(parts.concat()));
        if let Some(code) = body.as_ref().and_then(|body| verify(headers, body)) {
            return refuse(400, code);
        }
        let mut kept = pending.headers.clone();
        kept.extend(
            kept_headers(headers)
                .into_iter()
                .filter(|(n, _)| n.starts_with("x-amz-checksum-")),
        );
        self.uploads.remove(id);
        let object = self.store(path, body, size, kept);
        let checksum = headers
            .get("x-amz-checksum-crc64nvme")
            .filter(|_| !self.tells_no_checksum)
            .and_then(|v| v.to_str().ok())
            .map(|v| format!("<ChecksumCRC64NVME>{v}</ChecksumCRC64NVME>"))
            .unwrap_or_default();
        let mut answer = xml(
            200,
            format!(
                "<CompleteMultipartUploadResult><ETag>{}</ETag>{checksum}</CompleteMultipartUploadResult>",
                object.etag
            ),
        );
        if self.versioned {
            answer
                .headers_mut()
                .insert("x-amz-version-id", object.version.parse().unwrap());
        }
        answer
    }

    /// The answer to a put: entity tag, version and checksum.
    fn describe(
        &self,
        builder: http::response::Builder,
        object: &Object,
        headers: &HeaderMap,
    ) -> Answer {
        let mut builder = builder.header("etag", &object.etag);
        if self.versioned && !object.version.is_empty() {
            builder = builder.header("x-amz-version-id", &object.version);
        }
        for (name, value) in headers {
            if is_checksum(name.as_str()) && !self.tells_no_checksum {
                builder = builder.header(name, value);
            }
        }
        builder.body(full(Bytes::new())).unwrap()
    }

    fn read(
        &mut self,
        op: Op,
        path: &str,
        query: &HashMap<String, String>,
        headers: &HeaderMap,
    ) -> Answer {
        if key_of(path).is_empty() {
            return empty(200);
        }
        let versions = self.objects.get(path);
        let found = match query.get("versionId") {
            Some(id) => versions.and_then(|v| v.iter().find(|o| o.version == *id)),
            None => versions.and_then(|v| v.last()),
        };
        let Some(object) = found else {
            return match (op, query.contains_key("versionId")) {
                (Op::Head, _) => empty(404),
                (_, true) => refuse(404, "NoSuchVersion"),
                (_, false) => refuse(404, "NoSuchKey"),
            };
        };
        let wanted_etag = headers.get("if-match").and_then(|v| v.to_str().ok());
        if wanted_etag.is_some_and(|etag| etag != object.etag) {
            return refuse(412, "PreconditionFailed");
        }
        let range = headers.get("range").and_then(|v| v.to_str().ok());
        let (start, end) = match range.map(|r| parse_range(r, object.size)) {
            None => (0, object.size),
            Some(Some(span)) => span,
            Some(None) => return refuse(416, "InvalidRange"),
        };
        if op == Op::Get {
            self.sent += end - start;
        }
        let mut builder = Response::builder()
            .status(if range.is_some() { 206 } else { 200 })
            .header("etag", &object.etag)
            .header("last-modified", "Sat, 21 Nov 2026 21:00:00 GMT")
            .header("content-length", end - start);
        if range.is_some() {
            builder = builder.header(
                "content-range",
                format!("bytes {start}-{}/{}", end - 1, object.size),
            );
        }
        if self.versioned {
            builder = builder.header("x-amz-version-id", &object.version);
        }
        for (name, value) in &object.headers {
            if !(self.tells_no_checksum && is_checksum(name)) {
                builder = builder.header(name, value);
            }
        }
        let body = match (&object.body, op) {
            (_, Op::Head) => Bytes::new(),
            (Some(body), _) => {
                body.slice(usize::try_from(start).unwrap()..usize::try_from(end).unwrap())
            }
            (None, _) => (start..end).map(synthetic).collect(),
        };
        builder.body(full(body)).unwrap()
    }

    fn delete(&mut self, path: &str, query: &HashMap<String, String>) -> Answer {
        match query.get("versionId") {
            Some(id) => {
                if let Some(versions) = self.objects.get_mut(path) {
                    versions.retain(|o| o.version != *id);
                }
            }
            None => {
                self.objects.remove(path);
            }
        }
        self.objects.retain(|_, versions| !versions.is_empty());
        empty(204)
    }

    fn list(&self, bucket: &str, query: &HashMap<String, String>) -> Answer {
        let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let bucket = format!("{}/", bucket.trim_end_matches('/'));
        let (prefix, delimiter) = (get("prefix"), get("delimiter"));
        let max: usize = get("max-keys").parse().unwrap_or(1000);
        let (mut text, mut last, mut count) = (String::new(), String::new(), 0);
        let mut truncated = false;
        let after = data_encoding::HEXLOWER.decode(get("continuation-token").as_bytes());
        let after = String::from_utf8(after.unwrap()).unwrap();
        // Pages of a million keys: not from the beginning for each.
        let begin = format!("{bucket}{}", after.as_str().max(prefix));
        let begin = (Bound::Included(begin.as_str()), Bound::Unbounded);
        for (path, versions) in self.objects.range::<str, _>(begin) {
            let rest = path.strip_prefix(&bucket);
            let Some((key, rest)) = rest.and_then(|k| Some((k, k.strip_prefix(prefix)?))) else {
                break;
            };
            let rolled = rest.find(delimiter).filter(|_| !delimiter.is_empty());
            let entry = rolled.map_or(key, |i| &key[..prefix.len() + i + delimiter.len()]);
            if entry <= after.as_str() || entry == last {
                continue;
            }
            if count == max {
                truncated = true;
                break;
            }
            count += 1;
            last = entry.to_owned();
            let shown = encode(entry);
            let size = versions.last().map_or(0, |o| o.size);
            text += &match rolled {
                Some(_) => format!("<CommonPrefixes><Prefix>{shown}</Prefix></CommonPrefixes>"),
                None => format!("<Contents><Key>{shown}</Key><Size>{size}</Size></Contents>"),
            };
        }
        let next = if truncated {
            let token = data_encoding::HEXLOWER.encode(last.as_bytes());
            format!("<NextContinuationToken>{token}</NextContinuationToken>")
        } else {
            String::new()
        };
        xml(
            200,
            format!(
                "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{truncated}</IsTruncated>{next}{text}</ListBucketResult>"
            ),
        )
    }
}

fn op_of(method: &Method, path: &str, query: &HashMap<String, String>) -> Op {
    let has = |name| query.contains_key(name);
    match *method {
        Method::PUT if has("partNumber") => Op::Part,
        Method::PUT => Op::Put,
        Method::POST if has("uploads") => Op::Create,
        Method::POST => Op::Complete,
        Method::DELETE if has("uploadId") => Op::Abort,
        Method::DELETE => Op::Delete,
        Method::HEAD => Op::Head,
        Method::GET if has("list-type") => Op::List,
        Method::GET if key_of(path).is_empty() => Op::Other,
        _ => Op::Get,
    }
}

fn key_of(path: &str) -> &str {
    path.split_once('/').map_or("", |(_, key)| key)
}

fn kept_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let kept = |name: &str| {
        name == "content-type"
            || name.starts_with("x-amz-meta-")
            || name.starts_with("x-amz-object-lock-")
            || name == "x-amz-storage-class"
            || is_checksum(name)
    };
    headers
        .iter()
        .filter(|(name, _)| kept(name.as_str()))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect()
}

fn is_checksum(name: &str) -> bool {
    name.starts_with("x-amz-checksum-")
        && !name.ends_with("-algorithm")
        && !name.ends_with("-type")
        && !name.ends_with("-mode")
}

/// The code of what is wrong with a body, if its headers say otherwise.
fn verify(headers: &HeaderMap, body: &[u8]) -> Option<&'static str> {
    // A completion's checksum covers the object, not the list of parts.
    let is_list = body.starts_with(b"<");
    let base64 = data_encoding::BASE64;
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body);
    if header("x-amz-checksum-crc64nvme")
        .is_some_and(|v| !is_list && v != base64.encode(&crc.to_be_bytes()))
    {
        return Some("BadDigest");
    }
    let sha = ring::digest::digest(&ring::digest::SHA256, body);
    let hex = data_encoding::HEXLOWER.encode(sha.as_ref());
    match header("x-amz-content-sha256") {
        Some("UNSIGNED-PAYLOAD") | None => None,
        // Recomposed objects are verified with the list's headers.
        Some(_) if headers.contains_key("x-amz-mp-object-size") => None,
        Some(v) if v == hex => None,
        Some(_) => Some("XAmzContentSHA256Mismatch"),
    }
}

fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let span = if start.is_empty() {
        (size.saturating_sub(end.parse().ok()?), size)
    } else {
        let last: u64 = end.parse().unwrap_or(u64::MAX);
        (start.parse().ok()?, last.saturating_add(1).min(size))
    };
    (span.0 < span.1).then_some(span)
}

fn parse_query(query: &str) -> HashMap<String, String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

/// As S3 encodes keys in listings: a space is `+`.
fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
        .to_string()
        .replace("%20", "+")
}

fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, std::io::Error> {
    Full::new(bytes)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn empty(status: u16) -> Answer {
    answer(status, Bytes::new())
}

fn xml(status: u16, text: String) -> Answer {
    answer(
        status,
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{text}").into(),
    )
}

fn refuse(status: u16, code: &str) -> Answer {
    xml(
        status,
        format!("<Error><Code>{code}</Code><Message>the null store was told to</Message></Error>"),
    )
}

fn answer(status: u16, body: Bytes) -> Answer {
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("x-amz-request-id", "NULL")
        .body(full(body))
        .unwrap()
}
