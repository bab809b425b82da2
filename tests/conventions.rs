//! Tokens that choose the IV of AES-GCM in their own ways: each that is known
//! stores and reads back, each that cannot serve is refused at the start, and
//! IVs that must not be used never get into an object.
//!
//! The tokens are imitated by tests/token-shim on top of a real one.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use support::process::eventually;
use support::readers::{RawKey, Sdk};
use support::shim::*;
use support::*;

/// CKR_TEMPLATE_INCONSISTENT and CKR_GENERAL_ERROR.
const TEMPLATE: u64 = 0xD1;
const GENERAL: u64 = 0x05;

/// A token whose key's bytes are known, and the module before it.
struct Rig {
    hsm: Hsm,
    shim: Shim,
    weed: &'static Weed,
    bucket: String,
    key: [u8; 32],
}

impl Rig {
    fn new(name: &str) -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).unwrap();
        let weed = Weed::shared();
        let hsm = Hsm::with_key(&key);
        Self {
            shim: Shim::new(&hsm::module()),
            bucket: weed.bucket(name),
            hsm,
            weed,
            key,
        }
    }

    /// The configuration's change that puts the module in, with `gcm_iv`.
    fn configure(&self, gcm_iv: &str) -> impl Fn(&mut DocumentMut) {
        move |config| {
            self.shim.configure(config);
            config["token"][0]["gcm_iv"] = value(gcm_iv);
        }
    }

    #[track_caller]
    fn start(&self, gcm_iv: &str) -> Agent {
        Agent::start(&self.hsm, self.weed, self.configure(gcm_iv))
    }

    /// Asserts that the token is refused at the start with these words.
    #[track_caller]
    fn refused(&self, gcm_iv: &str, words: &[&str]) {
        let mut agent = Agent::prepare(&self.hsm, self.weed, self.configure(gcm_iv));
        agent.launch();
        let told = misconfigured(&agent);
        for word in words {
            assert!(told.contains(word), "{word:?} is not in: {told}");
        }
        self.put(&agent, "refused").fails("misconfigured", &[]);
        assert!(self.weed.list(&self.bucket, "refused").is_empty());
    }

    fn path(&self, name: &str) -> String {
        format!("/v1/objects/{}/{name}", self.bucket)
    }

    fn put(&self, agent: &Agent, name: &str) -> Reply {
        agent.http("PUT", &self.path(name), &[], name.as_bytes())
    }

    #[track_caller]
    fn stored(&self, agent: &Agent, name: &str) {
        let reply = self.put(agent, name);
        assert_eq!(reply.status, 201, "{name}: {}", reply.text());
    }

    #[track_caller]
    fn reads(&self, agent: &Agent, name: &str) {
        let reply = agent.http("GET", &self.path(name), &[], b"");
        assert_eq!((reply.status, &reply.body[..]), (200, name.as_bytes()));
    }

    /// The stock Python SDK opens it with the bytes of the key.
    #[track_caller]
    fn reads_elsewhere(&self, name: &str) {
        let dir = temp_dir();
        let (message, plain) = (dir.path().join("message"), dir.path().join("plain"));
        self.weed.raw_get_file(&self.bucket, name, &message);
        Sdk::Python.decrypt(&RawKey::new(hsm::KEY, &self.key), &message, &plain);
        assert_eq!(std::fs::read(plain).unwrap(), name.as_bytes());
    }
}

/// Waits until the token is misconfigured; what status tells of it.
#[track_caller]
fn misconfigured(agent: &Agent) -> String {
    let told = eventually(Duration::from_secs(20), || {
        let token = agent.try_status()?.tokens.into_iter().next()?;
        let words = format!("{:?} hint: {:?}", token.detail, token.hint);
        (token.health == "misconfigured").then_some(words.replace("\\\"", "\""))
    });
    told.unwrap_or_else(|| panic!("not misconfigured: {:?}", agent.try_status()))
}

fn gcm_iv(agent: &Agent) -> Option<String> {
    agent.try_status().unwrap().tokens[0].gcm_iv.clone()
}

/// Every convention that works: its plan, and what it is called.
fn vendors() -> [(&'static str, Plan, &'static str); 5] {
    let mut both = Plan::vendor(Kind::VendorPrefix);
    both.vendor.as_mut().unwrap().gcm_too = true;
    [
        ("plain", Plan::default(), "host"),
        ("cloudhsm", both, "zero-writeback"),
        (
            "nshield",
            Plan::vendor(Kind::ZeroWriteback),
            "zero-writeback",
        ),
        ("cloudkms", Plan::vendor(Kind::Gcp), "zero-writeback"),
        (
            "cloudhsm-vendor",
            Plan::vendor(Kind::VendorPrefix),
            "vendor-prefix",
        ),
    ]
}

#[test]
fn every_vendor_stores_and_reads_what_all_others_stored() {
    let rig = Rig::new("vendors");
    let mut agent = Agent::prepare(&rig.hsm, rig.weed, rig.configure("auto"));
    for (name, plan, convention) in vendors() {
        rig.shim.plan(&plan);
        agent.launch();
        agent
            .await_ready()
            .unwrap_or_else(|failed| panic!("{name}:\n{}", failed.log));
        assert_eq!(gcm_iv(&agent).as_deref(), Some(convention), "{name}");
        let shown = agent.cli(["status"]).ok().text();
        assert!(shown.contains(&format!("gcm_iv {convention}")), "{shown}");
        rig.stored(&agent, name);
        agent.stop();
    }
    for (name, plan, _) in vendors() {
        rig.shim.plan(&plan);
        agent.launch();
        agent
            .await_ready()
            .unwrap_or_else(|failed| panic!("{name}:\n{}", failed.log));
        for (other, ..) in vendors() {
            rig.reads(&agent, other);
        }
        agent.stop();
    }
    for (name, ..) in vendors() {
        rig.reads_elsewhere(name);
    }
}

#[test]
fn a_key_is_generated_under_every_convention() {
    for (name, plan, _) in vendors() {
        let hsm = Hsm::empty();
        let shim = Shim::new(&hsm::module());
        shim.plan(&plan);
        let text = hsm.config();
        let mut config: DocumentMut = text.parse().unwrap();
        shim.configure(&mut config);
        std::fs::write(hsm.config_path(), config.to_string()).unwrap();
        let mut command = hsm.command();
        command.args([
            "key",
            "generate",
            hsm::KEY,
            "--token",
            hsm::TOKEN,
            "--config",
        ]);
        command.arg(hsm.config_path());
        run(&mut command, b"").ok();
        let (weed, bucket) = (Weed::shared(), Weed::shared().bucket(name));
        let agent = Agent::start(&hsm, weed, |_| {});
        let path = format!("/v1/objects/{bucket}/k");
        assert_eq!(
            agent.http("PUT", &path, &[], b"hello").status,
            201,
            "{name}"
        );
        assert_eq!(agent.http("GET", &path, &[], b"").body, b"hello", "{name}");
    }
}

#[test]
fn a_configured_convention_is_held_against_the_token() {
    let rig = Rig::new("configured");
    let mut both = Plan::vendor(Kind::VendorPrefix);
    both.vendor.as_mut().unwrap().gcm_too = true;
    for gcm_iv_is in ["zero-writeback", "vendor-prefix"] {
        rig.shim.plan(&both);
        let agent = rig.start(gcm_iv_is);
        assert_eq!(gcm_iv(&agent).as_deref(), Some(gcm_iv_is));
        rig.stored(&agent, gcm_iv_is);
    }
    rig.refused(
        "host",
        &[
            "does not follow gcm_iv = \"host\" (C_EncryptInit: CKR_MECHANISM_PARAM_INVALID)",
            "it follows \"zero-writeback\"",
            "set gcm_iv = \"zero-writeback\"",
        ],
    );
    rig.shim.clear();
    rig.refused(
        "zero-writeback",
        &[
            "the token wrote no IV, or one of zeros",
            "it follows \"host\"",
        ],
    );
    rig.refused(
        "vendor-prefix",
        &["it does not offer the mechanism", "it follows \"host\""],
    );
}

#[test]
fn tokens_that_cannot_wrap_for_us_are_refused_with_what_to_do() {
    let rig = Rig::new("refused");
    rig.shim.plan(&Plan::vendor(Kind::LunaFips));
    for gcm_iv in ["auto", "host"] {
        let words = ["appends an IV of 16 bytes", "FIPS mode", "docs/tokens.md"];
        rig.refused(gcm_iv, &words);
    }
    rig.shim.plan(&Plan::vendor(Kind::NoGcm));
    let logins = rig.shim.calls(C_Login);
    rig.refused("auto", &["has no AES-GCM", "use a token that has it"]);
    assert_eq!(rig.shim.calls(C_Login), logins, "no login is spent on it");
}

#[test]
fn a_token_without_session_keys_needs_the_setting() {
    let rig = Rig::new("no-session-keys");
    rig.shim
        .plan(&Plan::default().always(C_GenerateKey, Action::Return(TEMPLATE)));
    rig.refused(
        "auto",
        &[
            "makes no session key",
            "C_GenerateKey: CKR_TEMPLATE_INCONSISTENT",
            "set gcm_iv",
        ],
    );
    let agent = rig.start("host");
    rig.stored(&agent, "set");
    rig.reads(&agent, "set");
    // Then the gate holds the token to it.
    let plan = Plan::vendor(Kind::ZeroWriteback);
    rig.shim
        .plan(&plan.always(C_GenerateKey, Action::Return(TEMPLATE)));
    rig.refused("host", &["key archive", "CKR_MECHANISM_PARAM_INVALID"]);
}

#[test]
fn rule_17_the_convention_is_probed_with_a_throwaway_key() {
    let rig = Rig::new("throwaway");
    let plan = Plan::vendor(Kind::ZeroWriteback);
    rig.shim.plan(&plan);
    let agent = rig.start("auto");
    let keys = (
        rig.shim.calls(C_GenerateKey),
        rig.shim.calls(C_DestroyObject),
    );
    assert_eq!(keys, (1, 1));
    let list = std::process::Command::new("pkcs11-tool")
        .env(rig.hsm.kind().variable(), rig.hsm.conf())
        .arg("--module")
        .arg(hsm::module())
        .args(["--login", "--pin", &rig.hsm.pin(), "--list-objects"])
        .args(["--token-label", hsm::TOKEN_LABEL])
        .output()
        .unwrap();
    let objects = String::from_utf8_lossy(&list.stdout).into_owned();
    assert_eq!(objects.matches("Secret Key Object").count(), 1, "{objects}");
    drop(agent);

    // If it cannot be made, nothing is tried with the wrapping key instead:
    // a token might take the host's IV for the zeros it expects.
    let used = rig.shim.calls(C_EncryptInit);
    rig.shim
        .plan(&plan.always(C_GenerateKey, Action::Return(TEMPLATE)));
    rig.refused("auto", &["makes no session key"]);
    assert_eq!(rig.shim.calls(C_EncryptInit), used);
}

#[test]
fn an_ill_token_is_tried_again_and_a_slow_key_waited_for() {
    let rig = Rig::new("ill");
    rig.shim
        .plan(&Plan::default().once(C_EncryptInit, Action::Return(GENERAL)));
    let agent = rig.start("auto");
    assert_eq!(rig.shim.happened(0), 1);
    rig.stored(&agent, "recovered");
    drop(agent);
    let cold = Plan {
        warm_up_ms: 1500,
        ..Plan::vendor(Kind::ZeroWriteback)
    };
    rig.shim.plan(&cold);
    let agent = rig.start("auto");
    assert_eq!(gcm_iv(&agent).as_deref(), Some("zero-writeback"));
    rig.stored(&agent, "warm");
}

#[test]
fn a_token_with_bad_ivs_is_refused_at_the_start() {
    let rig = Rig::new("bad-start");
    for kind in [Kind::ZeroWriteback, Kind::VendorPrefix] {
        for (iv, words) in [
            (IvMode::Zero, "one of zeros"),
            (IvMode::Untold, "wrote no IV"),
            (IvMode::Same, "the same IV twice"),
        ] {
            rig.shim.plan(&Plan::vendor_iv(kind, iv));
            rig.refused("auto", &["follows no IV convention", words]);
        }
    }
}

#[test]
fn bad_ivs_at_work_are_refused_and_nothing_is_stored() {
    let rig = Rig::new("bad-work");
    for (kind, name) in [(Kind::ZeroWriteback, "wb"), (Kind::VendorPrefix, "vp")] {
        for (iv, words) in [
            (IvMode::Zero, "one of zeros"),
            (IvMode::Untold, "wrote no IV"),
            (IvMode::Same, "the same IV twice"),
        ] {
            rig.shim.plan(&Plan::vendor(kind));
            let agent = rig.start("auto");
            let name = format!("{name}/{iv:?}");
            rig.stored(&agent, &format!("{name}/good"));
            rig.shim.plan(&Plan::vendor_iv(kind, iv));
            // The first of a series of equals cannot be told from a good one.
            if iv == IvMode::Same {
                rig.stored(&agent, &format!("{name}/good-too"));
            }
            for _ in 0..3 {
                let reply = rig.put(&agent, &format!("{name}/bad"));
                reply.fails("misconfigured", &[words]);
            }
            assert!(misconfigured(&agent).contains(words));
            assert!(
                rig.weed
                    .list(&rig.bucket, &format!("{name}/bad"))
                    .is_empty()
            );

            rig.shim.plan(&Plan::vendor(kind));
            agent.signal(rustix::process::Signal::HUP);
            let back = eventually(Duration::from_secs(5), || {
                let reply = rig.put(&agent, &format!("{name}/back"));
                (reply.status == 201).then_some(())
            });
            assert!(back.is_some(), "{:?}", agent.try_status());
            rig.reads(&agent, &format!("{name}/good"));
        }
    }
}

#[test]
fn fewer_sessions_than_configured_still_serve() {
    let rig = Rig::new("sessions");
    for max in [1, 3] {
        let few = Plan {
            max_sessions: Some(max),
            ..Plan::default()
        };
        rig.shim.plan(&few);
        let agent = Agent::start(&rig.hsm, rig.weed, |config| {
            rig.shim.configure(config);
            config["token"][0]["sessions"] = value(8);
        });
        std::thread::scope(|scope| {
            for client in 0..8 {
                let (rig, agent) = (&rig, &agent);
                scope.spawn(move || {
                    let name = format!("{max}/{client}");
                    rig.stored(agent, &name);
                    rig.reads(agent, &name);
                });
            }
        });
    }
}
