//! A relay before the store that writes down every request: the store's own
//! word on what was asked of it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request's first line and range.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query, as on the wire.
    pub(crate) target: String,
    /// The value of `Range`.
    pub(crate) range: Option<String>,
}

/// The relay; it ends with the test's process.
pub(crate) struct Proxy {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Proxy {
    /// Before the server at `url`.
    pub(crate) fn before(url: &str) -> Self {
        let server = url
            .strip_prefix("http://")
            .unwrap()
            .trim_end_matches('/')
            .to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let log = seen.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(&server) else {
                    continue;
                };
                let log = log.clone();
                let (mut back, mut to) =
                    (upstream.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut back, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                thread::spawn(move || relay(client, upstream, &log));
            }
        });
        Self { url, seen }
    }

    /// What was seen since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

fn relay(mut client: TcpStream, mut upstream: TcpStream, log: &Mutex<Vec<Seen>>) {
    let mut window = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    while let Ok(n @ 1..) = client.read(&mut chunk) {
        window.extend_from_slice(&chunk[..n]);
        while let Some((seen, end)) = head(&window) {
            log.lock().unwrap().push(seen);
            window.drain(..end);
        }
        // A head is far shorter; bodies are ciphertext and hold none.
        if window.len() > 256 << 10 {
            window.drain(..window.len() - (64 << 10));
        }
        if upstream.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    let _ = upstream.shutdown(Shutdown::Both);
}

/// The first whole head in `bytes`, and where it ends.
fn head(bytes: &[u8]) -> Option<(Seen, usize)> {
    let line = find(bytes, b" HTTP/1.1\r\n")?;
    let start = ["GET /", "HEAD /", "PUT /", "POST /", "DELETE /"]
        .iter()
        .filter_map(|method| rfind(&bytes[..line], method.as_bytes()))
        .max()?;
    let end = line + find(&bytes[line..], b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[start..end]).into_owned();
    let mut words = text.split(' ');
    let range = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("range")
            .then(|| value.trim().to_owned())
    });
    let seen = Seen {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        range,
    };
    Some((seen, end))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn rfind(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).rposition(|window| window == what)
}
