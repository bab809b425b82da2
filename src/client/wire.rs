//! One connection, one request: connecting to the right server, and hearing
//! its answer even when it comes early.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::Upload;
use crate::api::{Error, ErrorKind, Problem, header};

/// Everything but RFC 3986's unreserved characters, `/` included: `..`, `//`
/// and `%2F` in a key survive every URL library on the way.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) fn encode(text: &str) -> String {
    let encoded = utf8_percent_encode(text, RESERVED).to_string();
    // Whole segments of dots would still be folded.
    match encoded.as_str() {
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        _ => encoded,
    }
}

/// The task that drives a connection; dropping it hangs up.
pub(super) struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer whose body was not read yet.
pub(super) struct Answer {
    response: Response<Incoming>,
    connection: Connection,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn request_id(&self) -> Option<&str> {
        self.headers().get(header::REQUEST_ID)?.to_str().ok()
    }

    pub(super) fn into_body(self) -> (Incoming, Connection) {
        (self.response.into_body(), self.connection)
    }
}

pub(super) async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    mut headers: HeaderMap,
    upload: Upload,
) -> Result<Answer, Error> {
    let mut stream = connect(socket).await?;
    if let Some((file, length)) = upload.file {
        headers.insert(HeaderName::from_static(header::DESCRIPTOR), length.into());
        stream.beside = Some(file);
    }
    headers.insert(http::header::HOST, HeaderValue::from_static("strongroom"));
    if let Some(length) = upload.length
        && (length > 0 || method != Method::GET && method != Method::HEAD)
    {
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    let mut request = Request::new(upload.body);
    *request.method_mut() = method;
    *request.uri_mut() = path
        .parse()
        .map_err(|_| Error::new(ErrorKind::Malformed, "the object's name is too long"))?;
    *request.headers_mut() = headers;

    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let connection = Connection(tokio::spawn(async move {
        // Whatever goes wrong is reported by the request itself.
        drop(driver.await);
    }));
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(&error))?;
    Ok(Answer {
        response,
        connection,
    })
}

fn broken(error: &hyper::Error) -> Error {
    if error.is_user() {
        return Error::new(ErrorKind::Incomplete, "the body broke off");
    }
    Error::new(
        ErrorKind::AgentAway,
        "the agent closed the connection before it answered",
    )
    .hint("nothing was acknowledged; `strongroom status` shows whether the agent runs")
}

async fn connect(socket: &Path) -> Result<Patient, Error> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| cannot_connect(socket, &error))?;
    check_server(socket, &stream)?;
    Ok(Patient {
        stream,
        write_side_gone: false,
        beside: None,
    })
}

fn cannot_connect(socket: &Path, error: &io::Error) -> Error {
    let path = socket.display();
    let away = |why: String| Error::new(ErrorKind::AgentAway, why);
    match error.kind() {
        io::ErrorKind::NotFound => away(format!("cannot reach the agent: no socket at {path}"))
            .hint("start the agent (`systemctl start strongroom`, or `strongroom agent`), or name its socket with --socket or STRONGROOM_SOCKET"),
        io::ErrorKind::ConnectionRefused => {
            away(format!("cannot reach the agent: nobody listens at {path}"))
                .hint("the agent has stopped; `systemctl status strongroom` says why")
        }
        io::ErrorKind::PermissionDenied => {
            away(format!("cannot reach the agent: no permission for {path}"))
                .hint("join the group that owns the socket (agent.socket_group), then log in anew")
        }
        _ => away(format!("cannot reach the agent at {path}: {error}")),
    }
}

/// Plaintext is sent only to a server of root, of our own user, or of the
/// user whose directory holds the socket (SECURITY rule 25). Who merely could
/// put a socket there, as anyone can in `/tmp`, is not trusted.
fn check_server(socket: &Path, stream: &UnixStream) -> Result<(), Error> {
    let fail = |why: String| {
        Error::new(
            ErrorKind::AgentAway,
            format!("will not talk to the server at {}: {why}", socket.display()),
        )
        .hint("put the socket into a directory that only root or the agent's user can write to")
    };
    let server = stream
        .peer_cred()
        .map_err(|error| fail(format!("its user is unknown: {error}")))?
        .uid();
    let directory = socket
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let stat = |path: &Path| {
        std::fs::metadata(path).map_err(|error| fail(format!("{}: {error}", path.display())))
    };
    let me = rustix::process::geteuid().as_raw();
    if server == 0 || server == me {
        return Ok(());
    }
    let dir = stat(directory)?;
    if trusted_owner(server, me, stat(socket)?.uid(), dir.uid(), dir.mode()) {
        return Ok(());
    }
    Err(fail(format!(
        "it runs as uid {server}, which is neither root, nor you, nor the owner of the socket in a directory of its own"
    )))
}

fn trusted_owner(server: u32, me: u32, socket: u32, dir: u32, dir_mode: u32) -> bool {
    let others_cannot_write = dir_mode & 0o022 == 0;
    socket == server && (dir == server || (dir == 0 || dir == me) && others_cannot_write)
}

/// A problem document, with the request id where the log has more to tell.
pub(super) fn problem(bytes: &[u8]) -> Option<Error> {
    let problem: Problem = serde_json::from_slice(bytes).ok()?;
    let id = problem.request_id.clone();
    let mut error = Error::from(problem);
    if error.kind.status() >= 500 && !id.is_empty() {
        error.detail = format!("{} (request {id})", error.detail);
    }
    Some(error)
}

/// The error of an answer that does not explain itself.
pub(super) fn by_status(status: StatusCode) -> Error {
    let kind = ErrorKind::ALL
        .iter()
        .copied()
        .find(|kind| kind.status() == status.as_u16())
        .unwrap_or(ErrorKind::Internal);
    Error::new(kind, kind.title())
}

pub(super) fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// A stream that outlives its write side: when the server has answered early
/// and hung up (403, 412, 429), writing fails, but its answer is still there
/// to be read. Writing then waits for good, and reading ends the connection.
struct Patient {
    stream: UnixStream,
    write_side_gone: bool,
    /// A descriptor that goes with the first byte.
    beside: Option<OwnedFd>,
}

impl Patient {
    fn patiently<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                self.write_side_gone = true;
                Poll::Pending
            }
            other => other,
        }
    }
}

impl Patient {
    /// Writes the first bytes, with the descriptor beside them.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        beside: &OwnedFd,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let fds = [beside.as_fd()];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&fds));
                let bytes = [IoSlice::new(bytes)];
                let flags = SendFlags::NOSIGNAL;
                Ok(rustix::net::sendmsg(
                    &self.stream,
                    &bytes,
                    &mut control,
                    flags,
                )?)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            // The server hung up with our bytes unread; what it had written
            // before came first. hyper knows what to make of an end.
            Poll::Ready(Err(error))
                if error.kind() == io::ErrorKind::ConnectionReset
                    && buf.filled().len() == before =>
            {
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.write_side_gone {
            return Poll::Pending;
        }
        let result = match self.beside.take() {
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
            Some(beside) => {
                let result = self.poll_pass(cx, &beside, buf);
                if result.is_pending() {
                    self.beside = Some(beside);
                }
                result
            }
        };
        self.patiently(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.beside.is_some() {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[], |first| first));
        }
        if self.write_side_gone {
            return Poll::Pending;
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.patiently(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_so_that_nothing_on_the_way_folds_them() {
        assert_eq!(encode("db/2026 ü.dump"), "db%2F2026%20%C3%BC.dump");
        assert_eq!(encode("a/../b//c%2F"), "a%2F..%2Fb%2F%2Fc%252F");
        assert_eq!(encode(".."), "%2E%2E");
    }

    #[test]
    fn rule_25_a_socket_that_anyone_could_have_put_there_is_not_trusted() {
        let (agent, me, mallory) = (900, 1000, 1001);
        // /run/strongroom, made by systemd for the agent.
        assert!(trusted_owner(agent, me, agent, agent, 0o755));
        assert!(trusted_owner(agent, me, agent, 0, 0o755));
        // /tmp: the socket is Mallory's own, and that proves nothing.
        assert!(!trusted_owner(mallory, me, mallory, 0, 0o1777));
        assert!(!trusted_owner(mallory, me, mallory, agent, 0o770));
        // Someone serves a socket that was made by another user.
        assert!(!trusted_owner(mallory, me, agent, agent, 0o755));
    }
}
