//! A relay before the store that writes down every frame that was ever sent,
//! and finds out whether two different ones went under one nonce.
//!
//! A data key belongs to one message id, and a frame's nonce is its number:
//! so (message id, number) is (key, nonce), and a frame's bytes, head
//! included, hold everything that its AAD, ciphertext and tag say.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use strongroom::message::{Header, Parsed, Permit};

/// The relay; it ends with the test's process.
pub(crate) struct Recorder {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    /// Bytes of bodies that came, whole or not.
    bytes: AtomicU64,
    /// Parts that the store has confirmed.
    parts: AtomicU64,
    /// Bytes a second; 0 for as many as there are.
    rate: AtomicU64,
    /// Nobody is there.
    away: AtomicBool,
    /// The next completion is carried out, and its answer lost.
    lose: AtomicBool,
}

#[derive(Default)]
struct Seen {
    /// Message id and frame length, by upload id.
    uploads: HashMap<String, (Vec<u8>, usize)>,
    /// SHA-256 of each frame, by message id and number.
    frames: HashMap<(Vec<u8>, u32), [u8; 32]>,
    /// SHA-256 of each header, by message id.
    headers: HashMap<Vec<u8>, [u8; 32]>,
    again: u64,
    broken: Vec<String>,
    /// Method and target of every request.
    requests: Vec<String>,
}

impl Recorder {
    /// Before the server at `url`.
    pub(crate) fn before(url: &str) -> Self {
        let server = url.strip_prefix("http://").unwrap();
        let server = server.trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::<Shared>::default();
        let all = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if all.away.load(Ordering::SeqCst) {
                    continue;
                }
                if let Ok(upstream) = TcpStream::connect(&server) {
                    let shared = all.clone();
                    thread::spawn(move || drop(relay(client, upstream, &shared)));
                }
            }
        });
        Self { url, shared }
    }

    pub(crate) fn rate(&self, bytes: u64) {
        self.shared.rate.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn away(&self, away: bool) {
        self.shared.away.store(away, Ordering::SeqCst);
    }

    pub(crate) fn lose_completion(&self) {
        self.shared.lose.store(true, Ordering::SeqCst);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }

    pub(crate) fn parts(&self) -> u64 {
        self.shared.parts.load(Ordering::SeqCst)
    }

    /// The keys of a bucket that were made, in order: by a PUT, or by what
    /// begins a multipart upload. A retry right after it counts once.
    pub(crate) fn made(&self, bucket: &str) -> Vec<String> {
        let seen = self.shared.seen.lock().unwrap();
        let mut made: Vec<String> = Vec::new();
        for line in &seen.requests {
            let Some((method, target)) = line.split_once(' ') else {
                continue;
            };
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let key = path.strip_prefix(&format!("/{bucket}/"));
            let makes = match method {
                "PUT" => !query.contains("partNumber="),
                "POST" => query.starts_with("uploads"),
                _ => false,
            };
            if let Some(key) = key.filter(|_| makes)
                && made.last().map(String::as_str) != Some(key)
            {
                made.push(key.to_owned());
            }
        }
        made
    }

    /// No nonce was used for two frames; returns how many frames were sent,
    /// and how many of them again.
    #[track_caller]
    pub(crate) fn no_nonce_twice(&self) -> (usize, u64) {
        let seen = self.shared.seen.lock().unwrap();
        assert!(seen.broken.is_empty(), "{:?}", seen.broken);
        assert!(!seen.frames.is_empty(), "nothing was recorded");
        (seen.frames.len(), seen.again)
    }
}

impl Seen {
    /// Takes down a body, or as much of it as came.
    fn body(&mut self, target: &str, body: &[u8]) {
        let upload = query(target, "uploadId");
        let mut rest = body;
        let (id, length) = match Header::parse(body, Permit::default()) {
            Ok(Parsed::Header(header)) => {
                let id = header.message_id().as_bytes().to_vec();
                let hash = Sha256::digest(header.bytes()).into();
                if *self.headers.entry(id.clone()).or_insert(hash) != hash {
                    self.broken.push(format!("{target}: a second header"));
                }
                rest = &body[header.len()..];
                (id, header.frame_length() as usize)
            }
            _ => match upload.as_ref().and_then(|id| self.uploads.get(id)) {
                Some(known) => known.clone(),
                None => return,
            },
        };
        while rest.len() >= 24 {
            let last = rest[..4] == [0xff; 4];
            let number = if last { &rest[4..8] } else { &rest[..4] };
            let number = u32::from_be_bytes(number.try_into().unwrap());
            let text = u32::from_be_bytes(rest[20..24].try_into().unwrap()) as usize;
            let whole = if last {
                24 + text + 16
            } else {
                16 + length + 16
            };
            if rest.len() < whole {
                return;
            }
            let hash: [u8; 32] = Sha256::digest(&rest[..whole]).into();
            match self.frames.insert((id.clone(), number), hash) {
                None => {}
                Some(before) if before == hash => self.again += 1,
                Some(_) => self.broken.push(format!("{target}: frame {number} twice")),
            }
            rest = &rest[whole..];
        }
    }
}

fn query(target: &str, name: &str) -> Option<String> {
    let (_, query) = target.split_once('?')?;
    let pair = query
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|p| p.0 == name));
    pair.map(|(_, value)| value.to_owned())
}

/// One connection: requests and answers, one after the other.
fn relay(mut client: TcpStream, mut upstream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let (mut ahead, mut behind) = (Vec::new(), Vec::new());
    loop {
        let Some((head, mut body)) = head(&mut client, &mut ahead)? else {
            return Ok(());
        };
        if shared.away.load(Ordering::SeqCst) {
            return client.shutdown(Shutdown::Both);
        }
        let line = head.lines().next().unwrap_or_default();
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap_or_default());
        let (method, target) = (method.to_owned(), target.to_owned());
        let mut seen = shared.seen.lock().unwrap();
        seen.requests.push(format!("{method} {target}"));
        drop(seen);
        let length: usize = field(&head, "content-length").map_or(0, |n| n.parse().unwrap());
        upstream.write_all(head.as_bytes())?;
        let continues = field(&head, "expect").is_some();
        if continues {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let began = Instant::now();
        let mut sent = 0;
        let whole = loop {
            body.truncate(length);
            if body.len() > sent {
                shared
                    .bytes
                    .fetch_add((body.len() - sent) as u64, Ordering::SeqCst);
                if upstream.write_all(&body[sent..]).is_err() {
                    break false;
                }
                sent = body.len();
                let rate = shared.rate.load(Ordering::SeqCst);
                if let Some(due) = (sent as u64 * 1000).checked_div(rate) {
                    thread::sleep(Duration::from_millis(due).saturating_sub(began.elapsed()));
                }
            }
            if sent == length {
                break true;
            }
            let mut chunk = [0; 64 << 10];
            match client.read(&mut chunk) {
                Ok(n @ 1..) => body.extend_from_slice(&chunk[..n]),
                _ => break false,
            }
        };
        let mut seen = shared.seen.lock().unwrap();
        if method == "PUT" {
            seen.body(&target, &body);
        }
        drop(seen);
        if !whole {
            return upstream.shutdown(Shutdown::Both);
        }
        let (mut answer, mut rest) = loop {
            match self::head(&mut upstream, &mut behind)? {
                None => return client.shutdown(Shutdown::Both),
                // The one to our own `Expect`.
                Some((interim, rest)) if interim.starts_with("HTTP/1.1 1") => behind = rest,
                Some(answer) => break answer,
            }
        };
        let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
        let empty = method == "HEAD" || matches!(status.as_str(), "204" | "304");
        let body = match (empty, field(&answer, "content-length")) {
            (true, _) => Vec::new(),
            (false, Some(n)) => {
                let n: usize = n.parse().unwrap();
                while rest.len() < n {
                    more(&mut upstream, &mut rest)?;
                }
                let body = rest.drain(..n).collect();
                behind = rest;
                body
            }
            (false, None) => chunked(&mut upstream, &mut rest, &mut behind)?,
        };
        if status == "200" && target.contains("partNumber=") && method == "PUT" {
            shared.parts.fetch_add(1, Ordering::SeqCst);
        }
        if status == "200"
            && method == "POST"
            && let Some(value) = field(&head, "x-amz-meta-strongroom-header")
        {
            began_upload(shared, value, &body);
        }
        let completes = method == "POST" && target.contains("uploadId=");
        if completes && shared.lose.swap(false, Ordering::SeqCst) {
            shared.away.store(true, Ordering::SeqCst);
            return client.shutdown(Shutdown::Both);
        }
        if !empty && field(&answer, "content-length").is_none() {
            let lines: Vec<&str> = answer
                .trim_end()
                .lines()
                .filter(|line| !line.to_ascii_lowercase().starts_with("transfer-encoding"))
                .collect();
            answer = format!(
                "{}\r\nContent-Length: {}\r\n\r\n",
                lines.join("\r\n"),
                body.len()
            );
        }
        client.write_all(answer.as_bytes())?;
        client.write_all(&body)?;
    }
}

fn began_upload(shared: &Shared, header: &str, answer: &[u8]) {
    let header = data_encoding::BASE64.decode(header.as_bytes()).unwrap();
    let Ok(Parsed::Header(header)) = Header::parse(&header, Permit::default()) else {
        panic!("a header in the metadata");
    };
    let text = String::from_utf8_lossy(answer);
    let id = text
        .split("<UploadId>")
        .nth(1)
        .and_then(|t| t.split("</UploadId>").next());
    let known = (
        header.message_id().as_bytes().to_vec(),
        header.frame_length() as usize,
    );
    let id = id.expect("an upload id").to_owned();
    shared.seen.lock().unwrap().uploads.insert(id, known);
}

/// A head, and what came behind it.
fn head(from: &mut TcpStream, ahead: &mut Vec<u8>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    loop {
        if let Some(end) = ahead.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = ahead.split_off(end + 4);
            let head = String::from_utf8_lossy(&std::mem::take(ahead)).into_owned();
            return Ok(Some((head, rest)));
        }
        let before = ahead.len();
        more(from, ahead).or_else(|e| if before == 0 { Ok(()) } else { Err(e) })?;
        if ahead.is_empty() {
            return Ok(None);
        }
    }
}

fn more(from: &mut TcpStream, into: &mut Vec<u8>) -> std::io::Result<()> {
    let mut chunk = [0; 64 << 10];
    match from.read(&mut chunk)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        n => {
            into.extend_from_slice(&chunk[..n]);
            Ok(())
        }
    }
}

fn chunked(
    from: &mut TcpStream,
    rest: &mut Vec<u8>,
    behind: &mut Vec<u8>,
) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = loop {
            match rest.windows(2).position(|w| w == b"\r\n") {
                Some(end) => break end,
                None => more(from, rest)?,
            }
        };
        let size = String::from_utf8_lossy(&rest[..end]).trim().to_owned();
        let size = usize::from_str_radix(&size, 16).unwrap();
        while rest.len() < end + 2 + size + 2 {
            more(from, rest)?;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest.drain(..end + 2 + size + 2);
        if size == 0 {
            *behind = std::mem::take(rest);
            return Ok(body);
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
