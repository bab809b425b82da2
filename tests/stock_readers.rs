//! The format's other implementations read what we write, and we read what
//! they write: the stock AWS Encryption SDKs for Python and JavaScript hold the
//! same AES key that was imported into the token.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::readers::{RawKey, SDKS, Sdk};
use support::*;

/// The default frame length, in bytes (docs/configuration.md).
const F: u64 = 256 << 10;

/// Every way in which a body can end, and several parts.
const SIZES: [u64; 8] = [0, 1, F - 1, F, F + 1, 2 * F, 3 * F + 17, 40 << 20];

/// A token, an agent and the stock SDKs with one wrapping key.
struct Parties {
    key: RawKey,
    agent: Agent,
    weed: &'static Weed,
    bucket: String,
    dir: tempfile::TempDir,
    /// The token's files; they must outlive the agent.
    _hsm: Hsm,
}

impl Parties {
    #[track_caller]
    fn new(name: &str) -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).unwrap();
        let hsm = Hsm::with_key(&bytes);
        let weed = Weed::shared();
        let agent = Agent::start(&hsm, weed, |_| {});
        Self {
            key: RawKey::new(hsm::KEY, &bytes),
            bucket: weed.bucket(name),
            dir: tempfile::tempdir().unwrap(),
            agent,
            weed,
            _hsm: hsm,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn place(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    /// Lets an SDK write a message and stores it as it is.
    #[track_caller]
    fn foreign(&self, sdk: Sdk, name: &str, context: &[(&str, &str)], seed: u64, size: u64) {
        let (plain, message) = (self.path("plain"), self.path("message"));
        write_pattern(&plain, seed, size);
        let frame = u32::try_from(F).unwrap();
        sdk.encrypt(&self.key, context, frame, &plain, &message);
        let bytes = std::fs::read(&message).unwrap();
        self.weed.raw_put(&self.bucket, name, &bytes);
    }

    #[track_caller]
    fn get(&self, name: &str, to: &Path, options: &[&str]) -> Run {
        let mut command = self.agent.command(["get", &self.place(name)]);
        command.arg(to).args(options);
        run(&mut command, b"")
    }
}

fn now_ms() -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    now.as_millis().to_string()
}

#[test]
fn stock_sdks_read_what_we_write() {
    let parties = Parties::new("ours");
    for (seed, size) in (1..).zip(SIZES) {
        let plain = parties.path("plain");
        write_pattern(&plain, seed, size);
        let name = format!("size/{size}");
        let mut put = parties.agent.command(["put"]);
        put.arg(&plain).arg(parties.place(&name));
        put.args(["--context", "department=records"]);
        run(&mut put, b"").ok();

        let stored = parties.path("stored");
        parties.weed.raw_get_file(&parties.bucket, &name, &stored);
        let beginning = std::fs::read(&stored).unwrap();
        assert_eq!(beginning[..3], [0x02, 0x04, 0x78]);
        for sdk in SDKS {
            let read = parties.path("read");
            let context = sdk.decrypt(&parties.key, &stored, &read);
            data::assert_file(&read, seed, size);
            assert_eq!(context["strongroom:bucket"], parties.bucket.as_str());
            assert_eq!(context["strongroom:key"], name.as_str());
            assert_eq!(context["department"], "records");
            let created = context["strongroom:created"].as_str().unwrap();
            assert!(created.parse::<u64>().unwrap() > 1_700_000_000_000);
        }
    }
}

#[test]
fn stock_sdks_refuse_what_was_altered() {
    // Otherwise the test above would say nothing.
    let parties = Parties::new("altered");
    let target = format!("/v1/objects/{}/k", parties.bucket);
    let reply = parties.agent.http("PUT", &target, &[], b"some plaintext");
    assert_eq!(reply.status, 201, "{}", reply.text());
    let mut bytes = parties.weed.raw_get(&parties.bucket, "k").unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let stored = parties.path("stored");
    std::fs::write(&stored, bytes).unwrap();
    for sdk in SDKS {
        let run = sdk.try_decrypt(&parties.key, &stored, &parties.path("read"));
        assert_ne!(run.code, Some(0), "{sdk:?}");
    }
}

#[test]
fn we_read_what_stock_sdks_write() {
    let parties = Parties::new("theirs");
    for sdk in SDKS {
        for (seed, size) in (1..).zip(SIZES) {
            let name = format!("{sdk:?}/{size}");
            parties.foreign(sdk, &name, &[("purpose", "interchange")], seed, size);
            let read = parties.path("read");

            // Not bound to this place: the caller has to say that he trusts it.
            parties
                .get(&name, &read, &[])
                .fails(65, &["not bound", "--allow-unbound"]);
            assert!(!read.exists());

            parties.get(&name, &read, &["--allow-unbound"]).ok();
            data::assert_file(&read, seed, size);
            std::fs::remove_file(&read).unwrap();
        }
    }
}

#[test]
fn what_stock_sdks_bind_to_the_place_needs_no_permission() {
    let parties = Parties::new("bound");
    let bucket = parties.bucket.clone();
    let (created, read) = (now_ms(), parties.path("read"));
    for sdk in SDKS {
        let name = format!("{sdk:?}/bound");
        let ours = |key| {
            [
                ("strongroom:bucket", bucket.as_str()),
                ("strongroom:key", key),
                ("strongroom:created", created.as_str()),
            ]
        };
        parties.foreign(sdk, &name, &ours(&name), 1, 3 * F + 17);
        parties.get(&name, &read, &[]).ok();
        data::assert_file(&read, 1, 3 * F + 17);
        std::fs::remove_file(&read).unwrap();

        // Bound to another place: no permission helps.
        let moved = format!("{sdk:?}/moved");
        parties.foreign(sdk, &moved, &ours(&name), 1, 100);
        for options in [&[][..], &["--allow-unbound"]] {
            parties
                .get(&moved, &read, options)
                .fails(65, &["elsewhere"]);
            assert!(!read.exists());
        }
    }
}

#[test]
fn another_key_of_the_same_name_does_not_open() {
    let parties = Parties::new("other-key");
    let other = RawKey::new(hsm::KEY, &[9; 32]);
    let (plain, message) = (parties.path("plain"), parties.path("message"));
    write_pattern(&plain, 1, 100);
    Sdk::Python.encrypt(&other, &[], 4096, &plain, &message);
    let bytes = std::fs::read(&message).unwrap();
    parties.weed.raw_put(&parties.bucket, "k", &bytes);
    let read = parties.path("read");
    parties
        .get("k", &read, &["--allow-unbound"])
        .fails(65, &["no key"]);
    assert!(!read.exists());
}
