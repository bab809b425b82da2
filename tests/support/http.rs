//! A small HTTP/1.1 client over the Unix socket that shows what a library
//! would hide: the raw target, and whether a body broke off.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use strongroom::api::Problem;

/// No read or write waits longer than this.
const PATIENCE: Duration = Duration::from_secs(120);

/// A request's body.
pub enum Body<'a> {
    /// None, and no Content-Length.
    None,
    /// These bytes, with their Content-Length.
    Bytes(&'a [u8]),
    /// What is read, announced as this Content-Length.
    Sized(u64, &'a mut (dyn Read + Send)),
    /// What is read, in chunks.
    Chunked(&'a mut (dyn Read + Send)),
}

/// A reply, whole or not.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body, unless it went to a sink.
    pub body: Vec<u8>,
    /// Bytes of body that came.
    pub received: u64,
    /// Whether the body came to its announced end.
    pub complete: bool,
}

impl Reply {
    /// The first header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Content-Length.
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length").and_then(|v| v.parse().ok())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{}: not JSON: {e}: {}", self.status, self.text()))
    }

    /// The body as one of `strongroom::api`'s types.
    #[track_caller]
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{}: {e}: {}", self.status, self.text()))
    }

    /// Asserts an error of this kind (the end of its urn), with its status from
    /// the table, and that detail, hint or title hold each of `words`.
    #[track_caller]
    pub fn fails(&self, slug: &str, words: &[&str]) -> Problem {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{}: {}",
            self.status,
            self.text()
        );
        let problem: Problem = self.parse();
        assert_eq!(
            problem.kind,
            format!("urn:strongroom:error:{slug}"),
            "{problem:?}"
        );
        let kind = strongroom::api::ErrorKind::from_slug(slug).expect("a kind of the table");
        assert_eq!(self.status, kind.status());
        let all = format!("{} | {} | {}", problem.title, problem.detail, problem.hint);
        for word in words {
            assert!(all.contains(word), "{word:?} is not in: {all}");
        }
        problem
    }
}

/// Sends one request on a fresh connection and reads the reply; its body goes
/// to `sink`.
#[track_caller]
pub fn send(
    socket: &Path,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: Body<'_>,
    sink: &mut dyn Write,
) -> std::io::Result<Reply> {
    let stream = connect(socket)?;
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nHost: strongroom\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    match &body {
        Body::None => {}
        Body::Bytes(bytes) => head += &format!("Content-Length: {}\r\n", bytes.len()),
        Body::Sized(length, _) => head += &format!("Content-Length: {length}\r\n"),
        Body::Chunked(_) => head += "Transfer-Encoding: chunked\r\n",
    }
    head += "\r\n";
    let mut writer = stream.try_clone()?;
    std::thread::scope(|scope| {
        // Written beside the reading: an agent that refuses early does not
        // read the rest, and its reply is what counts.
        scope.spawn(move || {
            let sent = writer
                .write_all(head.as_bytes())
                .and_then(|()| write_body(&mut writer, body));
            // A body that cannot be sent whole must not look whole.
            if sent.is_err() {
                let _ = writer.shutdown(std::net::Shutdown::Write);
            }
        });
        let reply = read_reply(&mut BufReader::new(&stream), method, sink);
        let _ = stream.shutdown(std::net::Shutdown::Both);
        reply
    })
}

/// A raw connection, for what no client would send.
pub fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn write_body(writer: &mut impl Write, body: Body<'_>) -> std::io::Result<()> {
    match body {
        Body::None => Ok(()),
        Body::Bytes(bytes) => writer.write_all(bytes),
        Body::Sized(length, source) => {
            let sent = copy(source, writer, |writer, bytes| writer.write_all(bytes))?;
            if sent < length {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            Ok(())
        }
        Body::Chunked(source) => {
            copy(source, writer, |writer, bytes| {
                write!(writer, "{:x}\r\n", bytes.len())?;
                writer.write_all(bytes)?;
                writer.write_all(b"\r\n")
            })?;
            writer.write_all(b"0\r\n\r\n")
        }
    }
}

fn copy<W: Write>(
    source: &mut (dyn Read + Send),
    writer: &mut W,
    mut write: impl FnMut(&mut W, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut sent = 0;
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            return Ok(sent);
        }
        write(writer, &buffer[..n])?;
        sent += n as u64;
    }
}

/// Reads one reply; `method` decides whether a body follows.
pub fn read_reply(
    reader: &mut impl BufRead,
    method: &str,
    sink: &mut dyn Write,
) -> std::io::Result<Reply> {
    loop {
        let (status, headers) = read_head(reader)?;
        if status == 100 {
            continue;
        }
        let mut reply = Reply {
            status,
            headers,
            body: Vec::new(),
            received: 0,
            complete: true,
        };
        if method == "HEAD" || matches!(status, 204 | 304) {
            return Ok(reply);
        }
        let chunked = reply
            .header("transfer-encoding")
            .is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        if chunked {
            reply.complete = read_chunks(reader, sink, &mut reply.received)?;
        } else if let Some(length) = reply.content_length() {
            reply.received = read_some(reader, sink, length)?;
            reply.complete = reply.received == length;
        } else {
            reply.received = read_some(reader, sink, u64::MAX)?;
        }
        return Ok(reply);
    }
}

type Head = (u16, Vec<(String, String)>);

fn read_head(reader: &mut impl BufRead) -> std::io::Result<Head> {
    let line = read_line(reader)?;
    let status = line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| std::io::Error::other(format!("not a status line: {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| std::io::Error::other(format!("not a header: {line:?}")))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_line(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(std::io::Error::other)
}

fn read_some(reader: &mut impl BufRead, sink: &mut dyn Write, length: u64) -> std::io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut got = 0;
    while got < length {
        let want = usize::try_from(length - got)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        match reader.read(&mut buffer[..want]) {
            Ok(0) => break,
            Ok(n) => {
                sink.write_all(&buffer[..n])?;
                got += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

fn read_chunks(
    reader: &mut impl BufRead,
    sink: &mut dyn Write,
    received: &mut u64,
) -> std::io::Result<bool> {
    loop {
        let Ok(line) = read_line(reader) else {
            return Ok(false);
        };
        let size = line.split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
        if size == 0 {
            // Trailers, if any, end with an empty line.
            while let Ok(line) = read_line(reader) {
                if line.is_empty() {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        let got = read_some(reader, sink, size)?;
        *received += got;
        if got < size || read_line(reader).is_err() {
            return Ok(false);
        }
    }
}
