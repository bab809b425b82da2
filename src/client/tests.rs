#![allow(clippy::unwrap_used)]
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::*;

struct Server {
    _dir: tempfile::TempDir,
    client: Client,
}

/// Accepts connections and hands each to `serve`.
fn server<F>(serve: impl Fn(UnixStream) -> F + Send + 'static) -> Server
where
    F: Future<Output = ()> + Send + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    Server {
        _dir: dir,
        client: Client::new(&path),
    }
}

/// An HTTP server that answers what `answer` says to a request and its body
/// (`None` if the body broke off).
fn http_server(
    answer: impl Fn(&Request<()>, Option<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static,
) -> Server {
    let answer = Arc::new(answer);
    server(move |stream| {
        let answer = Arc::clone(&answer);
        async move {
            let service = hyper::service::service_fn(move |request: Request<_>| {
                let answer = Arc::clone(&answer);
                async move {
                    let (parts, body) = request.into_parts();
                    let body: hyper::body::Incoming = body;
                    let body = body.collect().await.ok().map(|whole| whole.to_bytes());
                    Ok::<_, Infallible>(answer(&Request::from_parts(parts, ()), body))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
}

fn json(status: u16, value: &impl Serialize) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(serde_json::to_vec(value).unwrap().into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn receipt() -> Receipt {
    Receipt {
        bucket: "b".into(),
        key: "k".into(),
        version_id: None,
        etag: None,
        plaintext_size: 5,
        stored_size: 500,
        checksum: "crc64nvme:A".into(),
        message_id: "00".repeat(32),
        wrapping_key: "archive".into(),
        recipients: Vec::new(),
        missing_recipients: Vec::new(),
        created: 1,
    }
}

#[tokio::test]
async fn a_put_carries_its_options_and_brings_the_receipt() {
    let seen = Arc::new(Mutex::new(None));
    let record = Arc::clone(&seen);
    let server = http_server(move |request, body| {
        let fields: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        *record.lock().unwrap() = Some((request.uri().to_string(), fields, body));
        json(201, &receipt())
    });
    let options = PutOptions {
        context: vec![("a".into(), "1".into()), ("b".into(), "zwei ü".into())],
        tags: vec![("team".into(), "a&b".into())],
        legal_hold: true,
        no_clobber: true,
        ring: Some("archive".into()),
        ..PutOptions::default()
    };
    let upload = Upload::from_bytes(Bytes::from_static(b"hello"));
    let got = server
        .client
        .put("b", "a/../c d", &options, upload)
        .await
        .unwrap();
    assert_eq!(got, receipt());
    let (uri, fields, body) = seen.lock().unwrap().take().unwrap();
    assert_eq!(uri, "/v1/objects/b/a%2F..%2Fc%20d");
    assert_eq!(body.unwrap(), "hello");
    for field in [
        "strongroom-context: a=1",
        "strongroom-context: b=zwei ü",
        "strongroom-tags: team=a%26b",
        "strongroom-legal-hold: ON",
        "strongroom-key: archive",
        "if-none-match: *",
        "content-length: 5",
    ] {
        assert!(fields.iter().any(|f| f == field), "{field:?} in {fields:?}");
    }
}

#[tokio::test]
async fn an_early_answer_is_read_although_the_server_hung_up() {
    for round in 0..50 {
        // Answers after the header alone and closes with the body unread:
        // the client's writes fail.
        let server = server(move |mut stream| async move {
            let mut head = vec![0; 64];
            stream.read_exact(&mut head).await.unwrap();
            let problem = Error::new(ErrorKind::AlreadyExists, "s3://b/k exists").problem("r1");
            let text = serde_json::to_string(&problem).unwrap();
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            let answer = format!(
                "HTTP/1.1 412 x\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let (sender, chunks) = mpsc::channel(1);
        tokio::spawn(async move {
            let chunk = Bytes::from(vec![7; 1 << 20]);
            while sender.send(Ok(chunk.clone())).await.is_ok() {}
        });
        let error = server
            .client
            .put(
                "b",
                "k",
                &PutOptions::default(),
                Upload::from_channel(chunks, None),
            )
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}");
        assert_eq!(error.detail, "s3://b/k exists");
    }
}

#[tokio::test]
async fn a_body_that_fails_never_looks_whole_to_the_server() {
    for length in [None, Some(10)] {
        let whole = Arc::new(Mutex::new(None));
        let record = Arc::clone(&whole);
        let server = http_server(move |_, body| {
            *record.lock().unwrap() = Some(body);
            json(201, &receipt())
        });
        let (sender, chunks) = mpsc::channel(4);
        sender.send(Ok(Bytes::from_static(b"hello"))).await.unwrap();
        sender
            .send(Err(std::io::Error::other("changed")))
            .await
            .unwrap();
        drop(sender);
        let error = server
            .client
            .put(
                "b",
                "k",
                &PutOptions::default(),
                Upload::from_channel(chunks, length),
            )
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Incomplete, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(!matches!(*whole.lock().unwrap(), Some(Some(_))));
    }
}

/// Promises 10 bytes, sends 4, hangs up; knows (or not) why when asked.
fn breaking_server(why: Option<ErrorKind>) -> Server {
    server(move |mut stream| async move {
        let mut head = vec![0; 4096];
        let n = stream.read(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head[..n]).into_owned();
        let answer = if head.starts_with("GET /v1/requests/r%2F1 ") {
            match why {
                Some(kind) => {
                    let text =
                        serde_json::to_string(&Error::new(kind, "frame 3").problem("r/1")).unwrap();
                    format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
                        text.len()
                    )
                }
                None => "HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n".into(),
            }
        } else {
            "HTTP/1.1 200 OK\r\nstrongroom-request-id: r/1\r\ncontent-length: 10\r\n\r\nabcd".into()
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
}

#[tokio::test]
async fn a_broken_get_learns_the_reason_from_the_agent() {
    for (why, expected) in [
        (Some(ErrorKind::Altered), ErrorKind::Altered),
        (None, ErrorKind::StoreAway),
    ] {
        let server = breaking_server(why);
        let mut download = server
            .client
            .get("b", "k", &GetOptions::default())
            .await
            .unwrap();
        assert_eq!(download.info.length, 10);
        assert_eq!(download.next().await.unwrap().unwrap(), "abcd");
        let error = download.next().await.unwrap_err();
        assert_eq!(error.kind, expected, "{error}");
    }
}

#[tokio::test]
async fn a_whole_get_ends_with_none() {
    let server = http_server(|request, _| {
        assert_eq!(request.headers()["range"], "bytes=0-99");
        assert_eq!(request.uri().query(), Some("version_id=v%261"));
        Response::builder()
            .status(206)
            .header(header::FOREIGN_WRITE, "true")
            .body(Full::new(Bytes::from_static(b"0123")))
            .unwrap()
    });
    let options = GetOptions {
        range: Some("bytes=0-99".into()),
        version_id: Some("v&1".into()),
        ..GetOptions::default()
    };
    let mut download = server.client.get("b", "k", &options).await.unwrap();
    assert!(download.info.foreign_write);
    assert_eq!(download.next().await.unwrap().unwrap(), "0123");
    assert_eq!(download.next().await.unwrap(), None);
}

#[tokio::test]
async fn errors_keep_kind_hint_request_and_retry_time() {
    let server = http_server(|_, _| {
        let error = Error::new(ErrorKind::TokenAway, "the worker restarts").hint("wait");
        let mut response = json(503, &error.problem("r9"));
        response
            .headers_mut()
            .insert("retry-after", HeaderValue::from_static("5"));
        response
    });
    let error = server.client.status().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::TokenAway);
    assert_eq!(error.detail, "the worker restarts (request r9)");
    assert_eq!(error.hint_text(), "wait (try again in 5 s)");
}

#[tokio::test]
async fn an_answer_without_a_problem_is_an_error_by_its_status() {
    let server = http_server(|_, _| {
        Response::builder()
            .status(404)
            .body(Full::default())
            .unwrap()
    });
    let error = server
        .client
        .head("b", "k", &GetOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSuchObject);
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_told_from_one_that_died() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let client = Client::new(&path);
    let error = client.status().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AgentAway);
    assert!(error.detail.contains("no socket"), "{error}");
    drop(UnixListener::bind(&path).unwrap());
    let error = client.status().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AgentAway);
    assert!(error.detail.contains("nobody listens"), "{error}");
}

#[test]
fn a_line_break_in_an_option_is_refused_before_anything_is_sent() {
    let options = PutOptions {
        context: vec![("a".into(), "1\r\nx: y".into())],
        ..PutOptions::default()
    };
    let error = put_headers(&options).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Malformed);
}
