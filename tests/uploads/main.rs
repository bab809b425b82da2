//! Uploads that are interrupted: they go on where they were, nothing is
//! sealed twice, and nothing is left behind.
//!
//! With STRONGROOM_SOAK=1 at full size, else at one that a continuous
//! integration bears.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod kills;
mod orphans;
mod queue;
mod recorder;
mod rules;

use recorder::Recorder;
use support::*;

const MIB: u64 = 1 << 20;
/// Plaintext bytes of the first part, of frames of 256 KiB and parts of at
/// least 5 MiB: 20 frames have 640 bytes of overhead.
const FRAME: u64 = 256 << 10;

/// One number at full size, another otherwise.
fn sized(full: u64, reduced: u64) -> u64 {
    let soak = std::env::var_os("STRONGROOM_SOAK").is_some_and(|v| v == "1");
    if soak { full } else { reduced }
}

/// Whether this run has the one token that these tests are about.
fn softhsm() -> bool {
    TokenKind::SoftHsm.is_only("the token has no part in it")
}

/// A store that is reached through a recorder.
fn recorded(weed: &Weed) -> (Recorder, Store) {
    let recorder = Recorder::before(&weed.store.url);
    let store =
        Store::at(&recorder.url).with_credentials(&weed.store.access_key, &weed.store.secret_key);
    (recorder, store)
}

fn small_parts(config: &mut DocumentMut) {
    config["s3"]["part_size"] = value("5 MiB");
    config["s3"]["upload_concurrency"] = value(2);
}

/// An upload over HTTP.
struct Upload<'a> {
    agent: &'a Agent,
    at: String,
}

impl<'a> Upload<'a> {
    /// Begins or finds one.
    #[track_caller]
    fn begin(agent: &'a Agent, place: &str, source: &str, length: u64) -> (Self, u16) {
        let length = length.to_string();
        let headers = [
            ("Upload-Length", length.as_str()),
            ("Upload-Complete", "?0"),
            ("Strongroom-Source", source),
        ];
        let reply = agent.http("POST", &format!("/v1/uploads/{place}"), &headers, b"");
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text());
        let at = reply.header("location").unwrap().to_owned();
        (Self { agent, at }, reply.status)
    }

    /// Where it stands.
    #[track_caller]
    fn offset(&self) -> u64 {
        let reply = self.agent.http("HEAD", &self.at, &[], b"");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("upload-complete"), Some("?0"));
        reply.header("upload-offset").unwrap().parse().unwrap()
    }

    fn patch(&self, offset: u64, complete: bool, body: &[u8]) -> Reply {
        let offset = offset.to_string();
        let headers = [
            ("Content-Type", "application/partial-upload"),
            ("Upload-Offset", offset.as_str()),
            ("Upload-Complete", if complete { "?1" } else { "?0" }),
        ];
        self.agent
            .request("PATCH", &self.at, &headers, Body::Bytes(body))
    }
}

/// Makes the journal forget that the store confirmed the parts from `first`
/// on, as a crash at the wrong moment does.
fn unconfirm(agent: &Agent, first: u32) {
    let journal = rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).unwrap();
    let done = journal
        .execute(
            "UPDATE upload_part SET etag = NULL, checksum = NULL, size = NULL WHERE number >= ?1",
            [first],
        )
        .unwrap();
    assert!(done > 0, "no part was confirmed");
}
