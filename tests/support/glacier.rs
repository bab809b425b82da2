//! A store with archive classes, of which SeaweedFS has none: a relay before
//! it. What is stored with GLACIER or DEEP_ARCHIVE cannot be read until it was
//! asked for and some time passed; the clock is the test's.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Classes whose objects must be asked for.
const ARCHIVE: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// How far an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nobody asked for it.
    Archived,
    /// The store is on it.
    Restoring,
    /// A copy can be read.
    Ready,
}

/// An archived object.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its class.
    pub class: String,
    /// How far it is.
    pub stage: Stage,
    /// The bodies of the requests that asked for it.
    pub asked: Vec<String>,
}

#[derive(Default)]
struct State {
    /// By path, `/bucket/key` as on the wire.
    items: HashMap<String, Item>,
    /// Reads that were refused.
    refused: usize,
    /// How often an object is refused after it was asked for before it is
    /// ready; for ever without.
    patience: Option<usize>,
    /// Keys that are listed and are not there, encoded as in a URL.
    listed: Vec<String>,
}

/// The relay; it ends with the test's process.
pub struct Glacier {
    /// Its endpoint.
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Glacier {
    /// Before the server at `url`.
    pub fn before(url: &str) -> Self {
        let server = url
            .strip_prefix("http://")
            .unwrap()
            .trim_end_matches('/')
            .to_owned();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                while let Ok((client, _)) = listener.accept().await {
                    let (server, state) = (server.clone(), Arc::clone(&shared));
                    tokio::spawn(async move {
                        let service = hyper::service::service_fn(move |request| {
                            let (server, state) = (server.clone(), Arc::clone(&state));
                            async move {
                                Ok::<_, Infallible>(answer(&server, &state, request).await)
                            }
                        });
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(client), service)
                            .await;
                    });
                }
            });
        });
        Self {
            url: format!("http://{}", told.recv().unwrap()),
            state,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Moves what is stored there to an archive class, as a lifecycle rule
    /// does.
    pub fn archive(&self, bucket: &str, key: &str, class: &str) {
        let item = Item {
            class: class.to_owned(),
            stage: Stage::Archived,
            asked: Vec::new(),
        };
        self.state().items.insert(format!("/{bucket}/{key}"), item);
    }

    /// An archived object.
    pub fn item(&self, bucket: &str, key: &str) -> Option<Item> {
        self.state().items.get(&format!("/{bucket}/{key}")).cloned()
    }

    /// Objects at this stage.
    pub fn count(&self, stage: &Stage) -> usize {
        let state = self.state();
        state.items.values().filter(|i| i.stage == *stage).count()
    }

    /// Time passes: what was asked for is ready, `most` objects of it.
    pub fn ready(&self, most: usize) {
        let mut state = self.state();
        let asked = state.items.values_mut();
        for item in asked.filter(|i| i.stage == Stage::Restoring).take(most) {
            item.stage = Stage::Ready;
        }
    }

    /// From now on what was asked for is ready after so many refusals.
    pub fn ready_after(&self, refusals: usize) {
        self.state().patience = Some(refusals);
    }

    /// Lists a key that is not there.
    pub fn list(&self, key: &str) {
        let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC);
        self.state().listed.push(key.to_string());
    }

    /// Reads that were refused since the last call.
    pub fn refused(&self) -> usize {
        std::mem::take(&mut self.state().refused)
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(server: &str, state: &Mutex<State>, request: Request<Incoming>) -> Answer {
    let (mut parts, body) = request.into_parts();
    let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else {
        return error(StatusCode::BAD_REQUEST, "IncompleteBody");
    };
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let has = |name: &str| query.split('&').any(|q| q.split('=').next() == Some(name));
    let is_object = path.trim_start_matches('/').contains('/');
    if parts.method == Method::POST && has("restore") {
        return ask(state, &path, &body);
    }
    if parts.method == Method::GET && is_object && !has("uploadId") {
        let mut state = state.lock().unwrap();
        let patience = state.patience;
        let mut refuse = false;
        if let Some(item) = state.items.get_mut(&path) {
            refuse = item.stage != Stage::Ready;
            if item.stage == Stage::Restoring
                && let Some(left) = patience
            {
                if left == 0 {
                    item.stage = Stage::Ready;
                    refuse = false;
                } else {
                    state.patience = Some(left - 1);
                }
            }
        }
        if refuse {
            state.refused += 1;
            return error(StatusCode::FORBIDDEN, "InvalidObjectState");
        }
    }
    let class = parts
        .headers
        .get("x-amz-storage-class")
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    parts.headers.remove("expect");
    parts.headers.remove("transfer-encoding");
    let method = parts.method.clone();
    let Some(mut reply) = forward(server, parts, body).await else {
        return error(StatusCode::BAD_GATEWAY, "InternalError");
    };
    let listed = state.lock().unwrap().listed.clone();
    if has("list-type") && !listed.is_empty() {
        return forge(reply, &listed).await;
    }
    let mut state = state.lock().unwrap();
    if matches!(method, Method::PUT | Method::POST) && reply.status().is_success() && is_object {
        match class.filter(|class| ARCHIVE.contains(&class.as_str())) {
            Some(class) => {
                let item = Item {
                    class,
                    stage: Stage::Archived,
                    asked: Vec::new(),
                };
                state.items.insert(path.clone(), item);
            }
            None if method == Method::PUT && !has("uploadId") => {
                state.items.remove(&path);
            }
            None => {}
        }
    }
    if let Some(item) = state.items.get(&path)
        && matches!(method, Method::GET | Method::HEAD)
        && reply.status().is_success()
    {
        describe(reply.headers_mut(), item);
    }
    reply
}

/// A listing with more in it than there is.
async fn forge(reply: Answer, keys: &[String]) -> Answer {
    let (mut head, body) = reply.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let end = "</ListBucketResult>";
    let mut text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains(end), "{text}");
    for key in keys {
        let entry = format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&#34;0&#34;</ETag><Size>700</Size></Contents>{end}"
        );
        text = text.replace(end, &entry);
    }
    head.headers.remove("content-length");
    Response::from_parts(head, Full::new(text.into()))
}

fn ask(state: &Mutex<State>, path: &str, body: &Bytes) -> Answer {
    let mut state = state.lock().unwrap();
    let Some(item) = state.items.get_mut(path) else {
        return error(StatusCode::FORBIDDEN, "InvalidObjectState");
    };
    item.asked.push(String::from_utf8_lossy(body).into_owned());
    match item.stage {
        Stage::Archived => {
            item.stage = Stage::Restoring;
            status(StatusCode::ACCEPTED)
        }
        Stage::Restoring => error(StatusCode::CONFLICT, "RestoreAlreadyInProgress"),
        Stage::Ready => status(StatusCode::OK),
    }
}

fn describe(headers: &mut HeaderMap, item: &Item) {
    let class = HeaderValue::from_str(&item.class).unwrap();
    headers.insert("x-amz-storage-class", class);
    let state = match item.stage {
        Stage::Archived => return,
        Stage::Restoring => "ongoing-request=\"true\"",
        Stage::Ready => "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2096 00:00:00 GMT\"",
    };
    headers.insert("x-amz-restore", HeaderValue::from_static(state));
}

async fn forward(server: &str, parts: http::request::Parts, body: Bytes) -> Option<Answer> {
    let stream = TcpStream::connect(server).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .ok()?;
    tokio::spawn(connection);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = parts.method;
    *request.uri_mut() = parts.uri.path_and_query()?.as_str().parse().ok()?;
    // The signature is over the Host header that the client sent.
    *request.headers_mut() = parts.headers;
    let (mut head, body) = sender.send_request(request).await.ok()?.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    head.headers.remove("transfer-encoding");
    head.headers.remove("connection");
    Some(Response::from_parts(head, Full::new(body)))
}

fn status(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

fn error(code: StatusCode, name: &str) -> Answer {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{name}</Code><Message>the double says so</Message></Error>"
    );
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = code;
    answer
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/xml"));
    answer
}
