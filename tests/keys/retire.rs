//! Retirement: refused while anything is left that the key alone may open,
//! wherever it is left; and what the auditor sees of it.

use strongroom::api::{Receipt, RetireReport};

use super::support::hsm::KEY;
use super::support::{Weed, tamper::read};
use super::*;

fn retire(agent: &Agent, more: &[&str]) -> (Option<i32>, RetireReport) {
    let args = [&["--json", "key", "retire", KEY][..], more].concat();
    let run = agent.cli(args);
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let report = text
        .lines()
        .next()
        .unwrap_or_else(|| panic!("{}", run.text()));
    (run.code, serde_json::from_str(report).unwrap())
}

/// That it is refused for this reason alone, about this subject.
#[track_caller]
fn refused(agent: &Agent, kind: &str, subject: &str) {
    let (code, report) = retire(agent, &[]);
    assert_eq!(code, Some(1));
    assert!(!report.may_retire);
    let told: Vec<_> = report
        .reasons
        .iter()
        .map(|r| (r.kind.as_str(), r.subject.as_str()))
        .collect();
    assert_eq!(report.total_reasons, 1, "{told:?}");
    assert!(told[0].0 == kind && told[0].1.contains(subject), "{told:?}");
    assert_ne!(key(agent, KEY).usage, "disabled");
}

/// Something in the catalogue that is no object yet, as its holder enters it.
fn wait_for(agent: &mut Agent, kind: &str) {
    agent.stop();
    let path = agent.state_dir().join("catalog.sqlite");
    let catalog = rusqlite::Connection::open(path).unwrap();
    catalog
        .execute(
            "INSERT INTO dependents VALUES (?1, 'id-1', 'archive', 's3://b/later', 1)",
            [kind],
        )
        .unwrap();
    drop(catalog);
    agent.launch();
    agent.await_ready().unwrap();
}

fn done_with(agent: &mut Agent) {
    agent.stop();
    let path = agent.state_dir().join("catalog.sqlite");
    let catalog = rusqlite::Connection::open(path).unwrap();
    catalog.execute("DELETE FROM dependents", []).unwrap();
    drop(catalog);
    agent.launch();
    agent.await_ready().unwrap();
}

#[test]
fn rule_11_a_key_is_retired_only_when_nothing_is_left_that_it_alone_opens() {
    let (hsm, weed) = (two_sites(), Weed::shared());
    let bucket = weed.versioned_bucket("retire");
    let exports = weed.bucket("retire-exports");
    let mut agent = Agent::start(&hsm, weed, |config| {
        // What both keys hold is no obstacle: the recipient was seen to open it.
        add(config, &key_recipient());
        set_policy(config, "required", list(&[]));
    });
    await_token(&agent, SITE, "ready");
    stored(&agent, &bucket, "held-by-both");
    agent.reconfigure(|config| {
        config.remove("recipient");
        config.remove("recipients");
    });
    // The other site's key stays configured: it opens, and wraps for its ring.
    reload(&agent);
    let target = format!("/v1/objects/{bucket}/noncurrent");
    let by_ring = [("Strongroom-Key", "archive")];
    let put = |agent: &Agent, body: &[u8]| -> Receipt {
        let reply = agent.http("PUT", &target, &by_ring, body);
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.parse()
    };
    let old = put(&agent, b"one");

    // 0. In use.
    let (code, report) = retire(&agent, &[]);
    assert_eq!(code, Some(1));
    assert!(
        report
            .reasons
            .iter()
            .any(|r| r.kind == "in-use" && r.why.contains("rotate it first"))
    );
    agent
        .cli([
            "key",
            "rotate",
            "archive",
            "--name",
            "archive-b",
            "--token",
            "primary",
        ])
        .ok();

    // 1. A noncurrent version.
    assert_eq!(put(&agent, b"two").wrapping_key, "archive-b");
    refused(&agent, "only-key", "noncurrent version ");
    let all = format!("s3://{bucket}/");
    agent.cli(["rewrap", &all, "--to", "archive-b"]).ok();
    let (code, report) = retire(&agent, &["--dry-run"]);
    assert_eq!(code, Some(0), "{report:?}");
    assert!(report.opened_by["archive-b"] >= 1, "{report:?}");

    // 2. and 3. The queue, and an upload to be resumed.
    for kind in ["queue", "upload"] {
        wait_for(&mut agent, kind);
        await_token(&agent, SITE, "ready");
        refused(&agent, kind, "id-1");
        done_with(&mut agent);
        await_token(&agent, SITE, "ready");
    }

    // 4. Another named writer.
    let mut other = Agent::start(&hsm, weed, |_| {});
    await_token(&other, SITE, "ready");
    let theirs = other.http(
        "PUT",
        &format!("/v1/objects/{bucket}/theirs"),
        &by_ring,
        b"theirs",
    );
    assert_eq!(theirs.status, 201);
    let export = |other: &Agent| {
        let bytes = other.cli(["catalog", "export", "-"]).ok().stdout;
        let url = format!("s3://{exports}/host-b");
        other
            .cli_in(["put", "-", &url, "--key", "dr-1"], &bytes)
            .ok();
        bytes
    };
    let writer = format!("[[writer]]\nname = \"host-b\"\ncatalogue = \"s3://{exports}/host-b\"\n");
    agent.reconfigure(|config| add(config, &writer));
    reload(&agent);
    // Its catalogue is missing; then it wraps under the key, and has an object.
    let (_, report) = retire(&agent, &[]);
    let kinds: Vec<_> = report.reasons.iter().map(|r| r.kind.as_str()).collect();
    assert_eq!(kinds, ["writer", "only-key"], "{:?}", report.reasons);
    export(&other);
    let (_, report) = retire(&agent, &[]);
    assert!(
        report
            .reasons
            .iter()
            .any(|r| r.kind == "writer" && r.why.contains("wraps under this key"))
    );
    other
        .cli([
            "key",
            "rotate",
            "archive",
            "--name",
            "archive-b",
            "--existing",
            "--token",
            "primary",
        ])
        .ok();
    // Its object gets a keyslot in a pack.
    let theirs = format!("s3://{bucket}/theirs");
    agent
        .cli(["rewrap", &theirs, "--to", "archive-b", "--pack"])
        .ok();
    let whole = export(&other);
    let (code, report) = retire(&agent, &["--dry-run"]);
    assert_eq!(code, Some(0), "{report:?}");
    // One that was cut off, and an old one.
    let cut = &whole[..whole.len() - 20];
    let url = format!("s3://{exports}/host-b");
    other.cli_in(["put", "-", &url, "--key", "dr-1"], cut).ok();
    refused(&agent, "writer", "host-b");
    other
        .cli_in(["put", "-", &url, "--key", "dr-1"], &whole)
        .ok();
    std::thread::sleep(Duration::from_secs(2));
    let (code, report) = retire(&agent, &["--max-age", "1s", "--dry-run"]);
    assert_eq!(code, Some(1));
    assert!(
        report.reasons[0].why.contains("later uses"),
        "{:?}",
        report.reasons
    );
    other.stop();

    // 5. A listing that hides what the catalogue knows.
    let hidden = agent.http(
        "PUT",
        &format!("/v1/objects/{bucket}/hidden"),
        &by_ring,
        b"x",
    );
    let receipt: Receipt = hidden.parse();
    weed.raw_delete_version(&bucket, "hidden", receipt.version_id.as_deref().unwrap());
    refused(&agent, "hidden", "hidden");
    let gone = format!(
        "/v1/objects/{bucket}/hidden?version_id={}",
        receipt.version_id.as_deref().unwrap()
    );
    assert_eq!(agent.http("DELETE", &gone, &[], b"").status, 204);

    // Nothing is left.
    let (code, report) = retire(&agent, &[]);
    assert_eq!(code, Some(0), "{report:?}");
    assert!(
        report.opened_by[DR] + report.opened_by["archive-b"] >= 3,
        "{report:?}"
    );
    assert_eq!(report.writers, ["host-b"]);
    assert_eq!(key(&agent, KEY).usage, "disabled");
    let text = fs::read_to_string(agent.config_path()).unwrap();
    assert!(text.contains("use = \"disabled\" # retired 2"), "{text}");
    // What it alone had opened is read by keyslots, or by the recipient.
    let version = old.version_id.unwrap();
    let one = agent.http("GET", &format!("{target}?version_id={version}"), &[], b"");
    assert_eq!(one.body, b"one", "{}", one.text());
    assert_eq!(read(&agent, &bucket, "theirs").body, b"theirs");
    assert_eq!(read(&agent, &bucket, "held-by-both").body, b"held-by-both");

    // The evidence shows birth, rotation, the refusals and the retirement.
    let report = agent.cli(["evidence"]).ok().json();
    let keys = report["report"]["keys"].as_array().unwrap();
    let life = |name: &str| -> Vec<String> {
        let key = keys.iter().find(|key| key["name"] == name).unwrap();
        let life = key["life"].as_array().unwrap().iter();
        life.map(|event| event["state"].as_str().unwrap().to_owned())
            .collect()
    };
    let old = life(KEY);
    for state in [
        "decrypt",
        "retirement-refused",
        "needless",
        "disabled",
        "retired",
    ] {
        assert!(old.iter().any(|known| known == state), "{state}: {old:?}");
    }
    assert!(
        old.iter()
            .filter(|state| *state == "retirement-refused")
            .count()
            >= 5
    );
    let new = life("archive-b");
    assert_eq!(new[..2], ["generated", "rotated"], "{new:?}");
}

/// Headers are not authenticated until a key has opened them: one that names
/// other keys, at a place where the catalogue knows a message of this key,
/// proves nothing.
#[test]
fn rule_11_a_header_that_hides_the_key_is_no_proof() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("retire-forged");
    let agent = Agent::start(&hsm, weed, |_| {});
    stored(&agent, &bucket, "precious");
    agent
        .cli(["key", "rotate", "archive", "--name", "archive-b"])
        .ok();
    let genuine = weed.raw_get(&bucket, "precious").unwrap();
    let mut forged = genuine.clone();
    let at = forged.windows(7).position(|w| w == b"archive").unwrap();
    forged[at] = b'b';
    weed.raw_put(&bucket, "precious", &forged);
    let (code, report) = retire(&agent, &["--dry-run"]);
    assert_eq!((code, report.may_retire), (Some(1), false), "{report:?}");
    let reason = &report.reasons[0];
    assert!(
        reason.kind == "only-key" && reason.subject.contains("precious"),
        "{report:?}"
    );
}
