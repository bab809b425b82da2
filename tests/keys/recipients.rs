//! Recipients: who holds an object's data key besides the ring's own key, and
//! what is stored while one of them is away.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;
use strongroom::api::Inspection;
use strongroom::message::{Context, DataKey, Header, Parsed, Permit};
use strongroom::secret::Secret32;

use super::support::hsm::{KEY, TOKEN};
use super::support::process::{run, signal};
use super::support::{Agent, Hsm, Weed, value};
use super::*;

fn header(message: &[u8]) -> Box<Header> {
    match Header::parse(message, Permit { uncommitted: false }).unwrap() {
        Parsed::Header(header) => header,
        Parsed::NeedMore => panic!("no whole header"),
    }
}

/// The name and kind of each encrypted data key, in order.
fn holders(message: &[u8]) -> Vec<String> {
    let header = header(message);
    let name = |edk: &strongroom::message::Edk| match edk.raw_aes_parts() {
        Some(parts) => format!("aes {}", parts.key_name),
        None => format!("rsa {}", edk.raw_rsa_parts().unwrap().key_name),
    };
    header.edks().iter().map(name).collect()
}

/// What the private half makes of the RSA recipient's EDK, by OpenSSL.
fn opens(message: &[u8], private: &Path) {
    let header = header(message);
    let mut rsa = header.edks().iter().filter_map(|edk| edk.raw_rsa_parts());
    let mut command = Command::new("openssl");
    command.args(["pkeyutl", "-decrypt", "-inkey"]).arg(private);
    command.args([
        "-pkeyopt",
        "rsa_padding_mode:oaep",
        "-pkeyopt",
        "rsa_oaep_md:sha256",
    ]);
    command.args(["-pkeyopt", "rsa_mgf1_md:sha256"]);
    let opened = run(&mut command, rsa.next().unwrap().ciphertext).ok();
    let secret = Secret32::from_slice(&opened.stdout).unwrap();
    let verified = header.verify(DataKey::unwrapped(secret), &Context::new());
    assert!(verified.is_ok());
}

fn put(agent: &Agent, bucket: &str, name: &str) -> super::support::Reply {
    agent.http(
        "PUT",
        &format!("/v1/objects/{bucket}/{name}"),
        &[],
        name.as_bytes(),
    )
}

fn get(agent: &Agent, bucket: &str, name: &str) -> super::support::Reply {
    agent.http("GET", &format!("/v1/objects/{bucket}/{name}"), &[], b"")
}

#[test]
fn rule_21_every_recipient_holds_the_data_key_and_each_can_open_it() {
    let (hsm, weed) = (two_sites(), Weed::shared());
    let (private, public) = rsa_pair(hsm.dir(), "escrow", 3072);
    let bucket = weed.bucket("recipients");
    let agent = Agent::start(&hsm, weed, |config| {
        // The file's order is not the header's.
        add(config, &rsa_recipient("escrow", &public));
        add(config, &key_recipient());
    });
    await_token(&agent, SITE, "ready");
    let receipt = stored(&agent, &bucket, "a");
    assert_eq!(receipt.wrapping_key, KEY);
    assert_eq!(receipt.recipients, [DR, "escrow"]);
    let message = weed.raw_get(&bucket, "a").unwrap();
    assert_eq!(holders(&message), ["aes archive", "aes dr-1", "rsa escrow"]);
    opens(&message, &private);
    let record = &records(&agent, &["\"event\":\"put\"", "\"phase\":\"begin\""])[0];
    assert_eq!(record["wrapping_key"], KEY);
    assert_eq!(record["recipients"], serde_json::json!([DR, "escrow"]));
    // Each key's own count.
    assert!(key(&agent, DR).wraps_used > 0);
    let path = format!("/v1/objects/{bucket}/a?inspect");
    let found: Inspection = agent.http("GET", &path, &[], b"").parse();
    let told: Vec<_> = found
        .encrypted_data_keys
        .iter()
        .map(|k| k.holder.as_str())
        .collect();
    assert_eq!(told[..2], ["token primary", "token site"]);
    assert!(told[2].contains("private key"), "{told:?}");

    // A copy is a put like any other.
    let (a, b) = (format!("s3://{bucket}/a"), format!("s3://{bucket}/b"));
    agent.cli(["cp", &a, &b]).ok();
    let copy = weed.raw_get(&bucket, "b").unwrap();
    assert_eq!(holders(&copy), holders(&message));

    // The first token is lost: the second one's key opens it.
    lock(&agent, &hsm, TOKEN);
    assert_eq!(get(&agent, &bucket, "a").body, b"a");
}

#[test]
fn a_required_recipient_that_is_away_stops_puts_and_names_itself() {
    let (hsm, weed) = (two_sites(), Weed::shared());
    let bucket = weed.bucket("policies");
    let agent = Agent::start(&hsm, weed, |config| add(config, &key_recipient()));
    await_token(&agent, SITE, "ready");
    stored(&agent, &bucket, "before");
    lock(&agent, &hsm, SITE);
    let begun = Instant::now();
    put(&agent, &bucket, "a").fails("token-locked", &["recipient \"dr\"", "\"dr-1\""]);
    let ready = agent.http("GET", "/v1/ready", &[], b"");
    assert_eq!(ready.status, 503);
    assert!(
        ready.text().contains("recipient \\\"dr\\\""),
        "{}",
        ready.text()
    );
    assert!(weed.raw_get(&bucket, "a").is_none());
    // Reads need it not.
    assert_eq!(get(&agent, &bucket, "before").body, b"before");
    assert!(begun.elapsed().as_secs() < 10);

    // Best effort: left out at once, and the receipt and the record say so.
    agent.reconfigure(|config| set_policy(config, "required", list(&[])));
    reload(&agent);
    let receipt = stored(&agent, &bucket, "b");
    assert!(receipt.recipients.is_empty());
    assert_eq!(receipt.missing_recipients, ["dr"]);
    let last = records(&agent, &["\"event\":\"put\"", "\"phase\":\"end\""]);
    assert_eq!(last.last().unwrap()["missing"], serde_json::json!(["dr"]));
    assert_eq!(
        holders(&weed.raw_get(&bucket, "b").unwrap()),
        ["aes archive"]
    );
    assert_eq!(agent.try_status().unwrap().health, "degraded");

    // A number of holders: the ring's own key is one of them.
    agent.reconfigure(|config| set_policy(config, "min", value(2)));
    reload(&agent);
    put(&agent, &bucket, "c").fails("token-locked", &["1 of the 2 holders", "recipient \"dr\""]);
    agent.reconfigure(|config| set_policy(config, "min", value(1)));
    reload(&agent);
    stored(&agent, &bucket, "c");
}

#[test]
fn a_recipient_costs_one_round_trip_more_or_less_and_not_the_sum() {
    let (hsm, weed) = (two_sites(), Weed::shared());
    let bucket = weed.bucket("latency");
    let shim = support::shim::Shim::new(&module());
    let agent = Agent::start(&hsm, weed, |config| {
        shim.configure(config);
        add(config, &key_recipient());
    });
    await_token(&agent, SITE, "ready");
    stored(&agent, &bucket, "warm");
    let slow = support::shim::Plan {
        encrypt_latency_us: 600_000,
        ..support::shim::Plan::default()
    };
    let best = |agent: &Agent| {
        let each = (0..3).map(|n| {
            let begun = Instant::now();
            stored(agent, &bucket, &format!("k{n}"));
            begun.elapsed()
        });
        each.min().unwrap()
    };
    let fast = best(&agent);
    shim.plan(&slow);
    let both = best(&agent);
    shim.clear();
    assert!(both.as_millis() >= 600, "{both:?}");
    // One after the other would be 1,200 ms beyond the rest of a put.
    assert!(
        both < fast + std::time::Duration::from_millis(1100),
        "{fast:?} {both:?}"
    );
}

#[test]
fn a_grant_for_a_ring_reads_through_a_recipient_when_the_rings_token_is_lost() {
    let (hsm, weed) = (two_sites(), Weed::shared());
    let bucket = weed.bucket("stands-in");
    let uid = rustix::process::geteuid().as_raw();
    let grant = format!(
        "[[grant]]\nuid = {uid}\noperations = [\"put\", \"get\"]\nbucket = {bucket:?}\nkey = \"archive\"\n"
    );
    let agent = Agent::start(&hsm, weed, |config| {
        add(config, &key_recipient());
        add(config, &grant);
    });
    await_token(&agent, SITE, "ready");
    stored(&agent, &bucket, "a");
    lock(&agent, &hsm, TOKEN);
    assert_eq!(get(&agent, &bucket, "a").body, b"a");
}

#[test]
fn rule_20_a_write_only_host_cannot_open_what_it_stores() {
    let (hsm, weed) = (Hsm::empty(), Weed::shared());
    let (private, public) = rsa_pair(hsm.dir(), "escrow", 2048);
    let bucket = weed.bucket("write-only");
    // No wrapping key at all.
    let agent = Agent::start(&hsm, weed, |config| {
        add(config, &rsa_recipient("escrow", &public));
        set_policy(config, "write_only", value(true));
    });
    let receipt = stored(&agent, &bucket, "a");
    assert_eq!(receipt.wrapping_key, "escrow");
    let message = weed.raw_get(&bucket, "a").unwrap();
    assert_eq!(holders(&message), ["rsa escrow"]);
    opens(&message, &private);
    get(&agent, &bucket, "a").fails("no-key", &["recovery alone", "escrow", "private key"]);
    let log = agent.log();
    assert!(log.contains("3072 bits"), "a short key is warned of");
    let doctor = agent.cli(["doctor"]).text();
    assert!(
        doctor.contains("recipient escrow: RSA, 2048 bits") && doctor.contains("3072 bits"),
        "{doctor}"
    );
}

#[test]
fn rule_24_the_confined_server_takes_a_new_public_key_by_reload() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let (_, first) = rsa_pair(hsm.dir(), "first", 2048);
    let (private, second) = rsa_pair(hsm.dir(), "second", 2048);
    let bucket = weed.bucket("new-public-key");
    let agent = Agent::start(&hsm, weed, |config| {
        add(config, &rsa_recipient("escrow", &first))
    });
    stored(&agent, &bucket, "a");
    // The same path with another key, as a key is exchanged in place.
    fs::copy(&second, &first).unwrap();
    reload(&agent);
    stored(&agent, &bucket, "b");
    opens(&weed.raw_get(&bucket, "b").unwrap(), &private);
    // A file that is none is refused, and the former key stays in use.
    fs::write(&first, fs::read(&private).unwrap()).unwrap();
    let refused = agent.http("POST", "/v1/reload", &[], b"");
    refused.fails("misconfigured", &["recipient \"escrow\"", "private key"]);
    stored(&agent, &bucket, "c");
    opens(&weed.raw_get(&bucket, "c").unwrap(), &private);
    // And by a server that was started anew.
    fs::copy(&second, &first).unwrap();
    signal(agent.server().pid, Signal::KILL);
    let again = eventually(NOTICED, || {
        let reply = agent.try_status().filter(|s| s.health == "ready");
        reply.map(|_| ())
    });
    assert!(again.is_some());
    stored(&agent, &bucket, "d");
    opens(&weed.raw_get(&bucket, "d").unwrap(), &private);
}
