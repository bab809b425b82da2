//! Open files passed to the agent (SECURITY rule 26): the same guarantees as
//! of bytes on the socket, and no way to make the agent read what is no file.
//!
//! What has to do with a token is one wrap a put: SoftHSM alone.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod changes;
mod whole;

use std::fs::File;
use std::io::{BufReader, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use support::null_store::NullStore;
use support::process::eventually;
use support::{Agent, Hsm, Reply, Store, TokenKind, value, write_pattern};

/// Bytes of a part of these agents: the smallest that S3 allows.
const PART: u64 = 5 << 20;

/// A store in this process, a token, an agent and a directory.
struct Rig {
    store: NullStore,
    agent: Agent,
    dir: tempfile::TempDir,
    _hsm: Hsm,
}

impl Rig {
    /// None where the tests run against another token.
    fn new() -> Option<Self> {
        if !TokenKind::SoftHsm.is_only("descriptors have nothing to do with the token") {
            return None;
        }
        let (store, hsm) = (NullStore::start(), Hsm::new());
        let agent = Agent::start(&hsm, Store::at(store.endpoint()), |config| {
            config["s3"]["part_size"] = value("5 MiB");
            config["s3"]["upload_concurrency"] = value(1);
        });
        Some(Self {
            store,
            agent,
            dir: support::temp_dir(),
            _hsm: hsm,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of this pattern, open for reading.
    fn file(&self, seed: u64, len: u64) -> File {
        let path = self.path(&format!("file-{seed}-{len}"));
        write_pattern(&path, seed, len);
        File::open(path).unwrap()
    }

    /// Puts what the descriptor has, and says that it has `len` bytes.
    fn put(&self, key: &str, file: impl AsFd, len: u64) -> Reply {
        let len = len.to_string();
        let headers = [("Strongroom-Descriptor", len.as_str())];
        self.request("PUT", &target(key), &headers, &[file.as_fd()])
    }

    /// One request, all of it in one message, with descriptors beside it.
    fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        beside: &[BorrowedFd<'_>],
    ) -> Reply {
        let stream = self.agent.connect();
        pass(&stream, &head(method, target, headers), beside);
        let mut body = Vec::new();
        let mut reader = BufReader::new(&stream);
        let mut reply = support::http::read_reply(&mut reader, method, &mut body).unwrap();
        reply.body = body;
        reply
    }

    /// What is stored there, by way of the socket.
    fn read(&self, key: &str) -> Vec<u8> {
        let reply = self.agent.http("GET", &target(key), &[], b"");
        assert_eq!((reply.status, reply.complete), (200, true), "{key}");
        reply.body
    }

    /// That nothing is there, and nothing under way.
    fn is_empty(&self, key: &str) {
        let none = eventually(std::time::Duration::from_secs(20), || {
            (self.store.open_uploads() == 0).then_some(())
        });
        assert!(none.is_some(), "{key}: an upload is left");
        let reply = self.agent.http("GET", &target(key), &[], b"");
        reply.fails("no-such-object", &[]);
    }

    /// Open descriptors of the server.
    fn descriptors(&self) -> usize {
        let pid = self.agent.server().pid;
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    }
}

fn target(key: &str) -> String {
    format!("/v1/objects/bucket/{key}")
}

fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nHost: strongroom\r\nConnection: close\r\n");
    if method == "PUT" && !headers.iter().any(|(name, _)| *name == "Content-Length") {
        head += "Content-Length: 0\r\n";
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// Sends bytes with descriptors beside their first.
fn pass(stream: &UnixStream, bytes: &str, beside: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !beside.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(beside)));
    }
    let flags = SendFlags::NOSIGNAL;
    let iov = [IoSlice::new(bytes.as_bytes())];
    let sent = rustix::net::sendmsg(stream, &iov, &mut control, flags).unwrap();
    (&*stream).write_all(&bytes.as_bytes()[sent..]).unwrap();
}
