//! The harness of the end-to-end tests: the real binary, a real token and a
//! real S3 server, each in a temporary directory of its own.
//!
//! Everything here blocks, and works in plain `#[test]`s as in
//! `#[tokio::test]`s. What a machine lacks makes a test fail with words that
//! name `make test`; nothing is skipped in silence.
//!
//! ```ignore
//! mod support;
//! use support::*;
//!
//! let (hsm, weed) = (Hsm::new(), Weed::shared());
//! let bucket = weed.bucket("round-trip");
//! let agent = Agent::start(&hsm, weed, |config| config["s3"]["part_size"] = value("5 MiB"));
//! agent.cli(["put", "-", &format!("s3://{bucket}/k")]).ok();
//! let reply = agent.http("GET", &format!("/v1/objects/{bucket}/k"), &[], b"");
//! assert_eq!(reply.status, 200);
//! ```
// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports, unreachable_pub, clippy::unwrap_used)]

pub mod agent;
pub mod data;
pub mod glacier;
pub mod hsm;
pub mod http;
pub mod inject;
pub mod launch;
pub mod memory;
pub mod null_store;
pub mod null_tls;
pub mod process;
pub mod readers;
pub mod shim;
pub mod tamper;
pub mod token;
pub mod weed;

pub use agent::Agent;
pub use data::{Compare, Pattern, pattern, write_pattern};
pub use hsm::{Hsm, KeySpec};
pub use http::{Body, Reply};
pub use process::{Run, run, strongroom};
pub use token::TokenKind;
pub use toml_edit::{DocumentMut, value};
pub use weed::{Store, Weed};

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where tests/setup/install put what it installed.
pub fn cache() -> PathBuf {
    std::env::var_os("STRONGROOM_CACHE").map_or_else(|| root().join(".cache"), PathBuf::from)
}

/// Ends a test because the machine lacks something.
pub fn lacking(what: &str) -> ! {
    panic!(
        "{what} is not installed here: run `make test`, which installs it (or tests/setup/install)"
    );
}

/// Tells a figure that a test reached, past the test runner, which shows
/// nothing of a test that passes.
pub fn tell(figure: &str) {
    let _ = writeln!(std::io::stderr(), "figure: {figure}");
}

/// Configures a bucket that holds another one's replicas.
pub fn alias(config: &mut DocumentMut, bucket: &str, holds: &str) {
    let mut alias = toml_edit::Table::new();
    alias["bucket"] = value(bucket);
    alias["holds"] = value(holds);
    let mut all = toml_edit::ArrayOfTables::new();
    all.push(alias);
    config["bucket_alias"] = toml_edit::Item::ArrayOfTables(all);
}

/// A temporary directory with a path short enough for a Unix socket in it.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("strongroom-test-")
        .tempdir()
        .unwrap()
}
