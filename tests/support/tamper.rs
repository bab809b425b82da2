//! What must become of a read of an object that is not what was stored.

use std::path::Path;

use strongroom::api::{ErrorKind, Problem};
use strongroom::message::{Header, Parsed, Permit};

use super::{Agent, Reply, Weed};

/// Bytes of a regular frame beside its plaintext: sequence number and IV
/// before it, tag behind.
pub const FRAME_HEAD: usize = 16;
/// Bytes of the final frame before its plaintext: its mark and its length more.
pub const FINAL_HEAD: usize = 24;
/// Bytes of a tag.
pub const TAG: usize = 16;

/// Where the frames of an intact message stand.
pub struct Anatomy {
    /// Bytes of the header, tag included.
    pub header: usize,
    /// Plaintext bytes of a regular frame.
    pub frame_length: usize,
    /// Bytes of the object.
    pub len: usize,
}

impl Anatomy {
    /// Of a whole stored object.
    #[track_caller]
    pub fn of(raw: &[u8]) -> Self {
        let Ok(Parsed::Header(header)) = Header::parse(raw, Permit::default()) else {
            panic!("what was stored has no header");
        };
        Self {
            header: header.len(),
            frame_length: usize::try_from(header.frame_length()).unwrap(),
            len: raw.len(),
        }
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        (self.len - self.header - FINAL_HEAD - TAG) / self.stride() + 1
    }

    /// The bytes of frame `n`, counted from 0.
    pub fn frame(&self, n: usize) -> std::ops::Range<usize> {
        let start = self.header + n * self.stride();
        let end = start + self.stride();
        start..if n + 1 == self.frames() {
            self.len
        } else {
            end
        }
    }

    /// Which frame holds the byte at `offset`; `None` in the header.
    pub fn frame_at(&self, offset: usize) -> Option<usize> {
        let body = offset.checked_sub(self.header)?;
        Some((body / self.stride()).min(self.frames() - 1))
    }

    /// Plaintext bytes that are proven before frame `n` is.
    pub fn verified_before(&self, n: usize) -> usize {
        n * self.frame_length
    }

    fn stride(&self) -> usize {
        self.frame_length + FRAME_HEAD + TAG
    }
}

/// Asserts that a read failed as one of an altered object must: a problem of
/// status 422, or a body that broke off and whose problem, asked for by the
/// request's id, is one; and that what came is a beginning of `verified`.
/// Returns the problem's slug.
#[track_caller]
pub fn refused(agent: &Agent, what: &str, reply: &Reply, verified: &[u8]) -> String {
    let problem: Problem = if reply.status / 100 == 2 {
        assert!(!reply.complete, "{what}: served as if nothing were wrong");
        assert!(
            verified.starts_with(&reply.body),
            "{what}: {} bytes came, which are no beginning of the {} verified ones",
            reply.body.len(),
            verified.len()
        );
        failure(agent, reply)
    } else {
        assert_eq!(reply.status, 422, "{what}: {}", reply.text());
        reply.parse()
    };
    assert_eq!(problem.status, 422, "{what}: {problem:?}");
    let slug = problem.kind.rsplit(':').next().unwrap_or_default();
    let kind = ErrorKind::from_slug(slug);
    let kind = kind.unwrap_or_else(|| panic!("{what}: {} is not in the table", problem.kind));
    assert_eq!((kind.status(), kind.exit_code()), (422, 65), "{what}");
    assert!(
        !problem.detail.is_empty() && !problem.hint.is_empty(),
        "{what}"
    );
    slug.to_owned()
}

/// Why a broken-off reply broke off.
#[track_caller]
pub fn failure(agent: &Agent, reply: &Reply) -> Problem {
    let id = reply.header("strongroom-request-id").expect("a request id");
    let told = agent.http("GET", &format!("/v1/requests/{id}"), &[], b"");
    assert_eq!(told.status, 200, "why it broke off: {}", told.text());
    told.parse()
}

/// The same read by the command line: exit code 65, and nothing in the
/// directory of its target, which `dir` must be.
#[track_caller]
pub fn refused_by_cli(agent: &Agent, what: &str, bucket: &str, key: &str, dir: &Path) {
    let target = dir.join("target");
    let run = agent.cli([
        "get",
        &format!("s3://{bucket}/{key}"),
        &target.display().to_string(),
    ]);
    assert_eq!(run.code, Some(65), "{what}: {}", run.stderr);
    assert!(
        run.stderr.starts_with("strongroom: "),
        "{what}: {}",
        run.stderr
    );
    assert!(run.stderr.contains("\nhint: "), "{what}: {}", run.stderr);
    assert!(run.stdout.is_empty(), "{what}");
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().flatten().collect();
    assert!(left.is_empty(), "{what}: left behind: {left:?}");
}

/// Stores plaintext through the agent and returns what S3 has of it.
#[track_caller]
pub fn stored(agent: &Agent, weed: &Weed, bucket: &str, key: &str, plain: &[u8]) -> Vec<u8> {
    let reply = agent.http("PUT", &format!("/v1/objects/{bucket}/{key}"), &[], plain);
    assert_eq!(reply.status, 201, "{}", reply.text());
    weed.raw_get(bucket, key).expect("what was just stored")
}

/// Reads an object through the agent.
#[track_caller]
pub fn read(agent: &Agent, bucket: &str, key: &str) -> Reply {
    agent.http("GET", &format!("/v1/objects/{bucket}/{key}"), &[], b"")
}
