//! The whole of it: objects of every kind rewrapped to a key on a second
//! token, the first token destroyed, everything read back.

use strongroom::api::{Inspection, RewrapLine};

use super::proxy::Proxy;
use super::*;

/// Every version in a bucket that is no keyslot: key, version id, entity tag.
fn data_versions(weed: &Weed, bucket: &str) -> Vec<(String, String, Option<String>)> {
    let (mut all, mut after, mut version) = (Vec::new(), None, None);
    loop {
        let list = weed.client.list_object_versions().bucket(bucket);
        let list = list.set_key_marker(after).set_version_id_marker(version);
        let page = weed.wait(list.send()).unwrap();
        for version in page.versions() {
            let key = version.key().unwrap();
            if !key.starts_with(".strongroom/") {
                all.push((
                    key.to_owned(),
                    version.version_id().unwrap().to_owned(),
                    version.e_tag().map(str::to_owned),
                ));
            }
        }
        if page.is_truncated() != Some(true) {
            break;
        }
        after = page.next_key_marker().map(str::to_owned);
        version = page.next_version_id_marker().map(str::to_owned);
    }
    all.sort();
    all
}

/// Whether a request is about the bucket, and about no object.
fn about_the_bucket(target: &str) -> bool {
    ["versions", "list-type", "object-lock"]
        .iter()
        .any(|word| target.contains(word))
}

/// The catalogue has the header of what this host stored: where nothing can be
/// under Object Lock, no object is asked for.
#[test]
fn what_this_host_stored_is_listed_and_not_asked_for() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let proxy = Proxy::before(&weed.store.url);
    let bucket = weed.bucket("rotation-known");
    let mut agent = Agent::start(&hsm, weed, |config| {
        config["s3"]["endpoint_url"] = value(proxy.url.as_str());
    });
    fill(&agent, &bucket, "ours/", 150, &[]);
    // Twice the same size: the newer one is there. And one that another
    // object of the same size was put over.
    put(&agent, &bucket, "twice", &[], b"the first one");
    put(&agent, &bucket, "twice", &[], b"the other one");
    put(&agent, &bucket, "swapped", &[], b"this");
    put(&agent, &bucket, "other", &[], b"that");
    let other = weed.raw_get(&bucket, "other").unwrap();
    weed.raw_put(&bucket, "swapped", &other);
    hand_over(&agent);
    proxy.take();
    let place = format!("s3://{bucket}/");
    let run = agent.cli(["rewrap", &place, "--pack", "--json"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.text().contains("\"swapped\""), "{}", run.text());
    let seen = proxy.take();
    let asked: Vec<_> = seen
        .iter()
        .filter(|seen| !seen.target.contains(".strongroom") && !about_the_bucket(&seen.target))
        .collect();
    assert!(!asked.is_empty());
    assert!(
        asked.iter().all(|seen| seen.target.contains("swapped")),
        "{asked:?}"
    );
    destroy_old(&mut agent, &hsm);
    assert_eq!(get(&agent, &bucket, "twice").body, b"the other one");
    assert_eq!(get(&agent, &bucket, "other").body, b"that");
    for n in [0, 77, 149] {
        assert_eq!(
            get(&agent, &bucket, &format!("ours/{n:07}")).body,
            body_of(n)
        );
    }
}

#[test]
fn rule_09_all_versions_are_rewrapped_and_no_object_is_touched() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let proxy = Proxy::before(&weed.store.url);
    let bucket = weed.locked_bucket("rotation");
    let mut agent = Agent::start(&hsm, weed, |config| {
        config["s3"]["endpoint_url"] = value(proxy.url.as_str());
        config["s3"]["part_size"] = value("5 MiB");
    });
    let count = sized(2000, 100);
    let plain = count * 8 / 10;
    fill(&agent, &bucket, "plain/", plain, &[]);
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 400);
    let until = format!("{:.0}", until);
    let locked = [
        ("Strongroom-Retain-Until", until.as_str()),
        ("Strongroom-Retention-Mode", "COMPLIANCE"),
    ];
    fill(&agent, &bucket, "locked/", count / 10, &locked);
    let cold = [("Strongroom-Storage-Class", "DEEP_ARCHIVE")];
    fill(&agent, &bucket, "cold/", count / 10, &cold);
    // Two versions of one object, one behind a mark of deletion, a header too
    // long for metadata, several parts.
    put(&agent, &bucket, "twice", &[], b"the first");
    put(&agent, &bucket, "twice", &[], b"the second");
    put(&agent, &bucket, "gone", &[], b"deleted later");
    let deleted = agent.http("DELETE", &format!("/v1/objects/{bucket}/gone"), &[], b"");
    assert_eq!(deleted.status, 204);
    let pair = format!("note={}", "x".repeat(3000));
    put(
        &agent,
        &bucket,
        "long-header",
        &[("Strongroom-Context", &pair)],
        b"slot 0",
    );
    put(
        &agent,
        &bucket,
        "long-cold",
        &[("Strongroom-Context", &pair), cold[0]],
        b"slot 0, cold",
    );
    let large = sized(5 << 30, 12 << 20) as u64;
    let path = agent.dir().join("large");
    write_pattern(&path, 7, large);
    let place = format!("s3://{bucket}/large");
    agent.cli(["put", path.to_str().unwrap(), &place]).ok();
    // And something that is no message.
    weed.raw_put(&bucket, "foreign.txt", b"plain text of somebody else");

    let before = data_versions(weed, &bucket);
    hand_over(&agent);
    let dry = rewrap_all(&agent, &format!("s3://{bucket}/"), &["--dry-run"]);
    assert_eq!(
        slots(weed, &bucket)
            .iter()
            .filter(|s| s.ends_with(NEXT))
            .count(),
        0
    );
    proxy.take();
    let done = rewrap_all(&agent, &format!("s3://{bucket}/"), &[]);
    let seen = proxy.take();
    let messages = (plain + count / 10 * 2 + 2 + 1 + 2 + 1) as u64;
    assert_eq!(
        (done.rewrapped, done.already, done.ignored),
        (messages, 0, 1),
        "{done:?}"
    );
    assert_eq!((dry.rewrapped, dry.ignored), (messages, 1), "{dry:?}");

    // No body was read: what has a receipt is not read at all, and of the
    // other one a beginning shorter than its header could be.
    let reads: Vec<_> = seen
        .iter()
        .filter(|seen| seen.method == "GET" && !seen.target.contains(".strongroom"))
        .filter(|seen| !about_the_bucket(&seen.target))
        .collect();
    assert!(
        reads.iter().all(|seen| seen.target.contains("foreign.txt")
            && seen.range.as_deref() == Some("bytes=0-2047")),
        "{reads:?}"
    );
    let writes = seen
        .iter()
        .filter(|seen| matches!(&*seen.method, "PUT" | "POST" | "DELETE"));
    let elsewhere: Vec<_> = writes
        .filter(|seen| !seen.target.contains(".strongroom"))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    assert_eq!(data_versions(weed, &bucket), before);

    // A slot lives as long as its object.
    let locked_id = message_id(&agent, &bucket, "locked/0000000");
    let slot = format!(".strongroom/keyslots/{locked_id}/{NEXT}");
    let head = weed.raw_head(&bucket, &slot);
    assert_eq!(
        head.object_lock_mode()
            .map(|m| m.as_str().to_owned())
            .as_deref(),
        Some("COMPLIANCE")
    );
    let kept = head.object_lock_retain_until_date().unwrap().secs();
    assert!(
        kept >= until.parse::<jiff::Timestamp>().unwrap().as_second(),
        "{kept} {until}"
    );

    let found: Inspection = agent
        .http(
            "GET",
            &format!("/v1/objects/{bucket}/plain/0000000?inspect"),
            &[],
            b"",
        )
        .parse();
    let listed = found
        .keyslots
        .iter()
        .any(|slot| slot.name == NEXT && slot.at_hand);
    assert!(listed, "{found:?}");

    destroy_old(&mut agent, &hsm);
    all_read(&agent, &bucket, "plain/", plain);
    all_read(&agent, &bucket, "locked/", count / 10);
    all_read(&agent, &bucket, "cold/", count / 10);
    for (key, body) in [
        ("twice", &b"the second"[..]),
        ("long-header", b"slot 0"),
        ("long-cold", b"slot 0, cold"),
    ] {
        assert_eq!(get(&agent, &bucket, key).body, body, "{key}");
    }
    let versions = weed.list_versions(&bucket, "twice");
    let first = versions.iter().find(|v| !v.latest).unwrap();
    let old = get(&agent, &bucket, &format!("twice?version_id={}", first.id));
    assert_eq!(old.body, b"the first");
    let back = agent.dir().join("back");
    agent.cli(["get", &place, back.to_str().unwrap()]).ok();
    support::data::assert_file(&back, 7, large);
    let ranged = agent.http(
        "GET",
        &format!("/v1/objects/{bucket}/large"),
        &[("Range", "bytes=6000000-6000099")],
        b"",
    );
    let mut part = support::data::Pattern::range(7, 6_000_000, 6_000_100);
    let mut expected = Vec::new();
    std::io::Read::read_to_end(&mut part, &mut expected).unwrap();
    assert_eq!((ranged.status, ranged.body), (206, expected));
    // Nothing is left to do, and nothing is done twice.
    let again = rewrap_all(&agent, &format!("s3://{bucket}/"), &["--to", NEXT]);
    assert_eq!((again.rewrapped, again.already), (0, messages), "{again:?}");
    // The copy is a new message, under the new key.
    agent
        .cli([
            "cp",
            &format!("s3://{bucket}/twice"),
            &format!("s3://{bucket}/copy"),
        ])
        .ok();
    let copy: Inspection = agent
        .http(
            "GET",
            &format!("/v1/objects/{bucket}/copy?inspect"),
            &[],
            b"",
        )
        .parse();
    assert_eq!(copy.encrypted_data_keys[0].name, NEXT);
}

fn message_id(agent: &Agent, bucket: &str, key: &str) -> String {
    let found: Inspection = agent
        .http(
            "GET",
            &format!("/v1/objects/{bucket}/{key}?inspect"),
            &[],
            b"",
        )
        .parse();
    found.message_id
}

#[test]
fn rule_09_what_must_not_be_rewrapped_is_named_and_left() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.versioned_bucket("rotation-refused");
    let agent = Agent::start(&hsm, weed, |_| {});
    put(&agent, &bucket, "good", &[], b"good");
    put(&agent, &bucket, "moved", &[], b"moved");
    put(&agent, &bucket, "altered", &[], b"altered");
    // At another place; under another's metadata; with another header.
    let metadata = |key: &str| -> Vec<(String, String)> {
        let head = weed.raw_head(&bucket, key);
        head.metadata().unwrap().clone().into_iter().collect()
    };
    let moved = weed.raw_get(&bucket, "moved").unwrap();
    weed.raw_put_with(&bucket, "elsewhere", &moved, &metadata("moved"));
    let mut altered = weed.raw_get(&bucket, "altered").unwrap();
    let at = altered.windows(2).position(|w| w == b"al").unwrap();
    altered[at] ^= 1;
    weed.raw_put_with(&bucket, "altered", &altered, &metadata("altered"));
    // Good's metadata on a body that is not good's: the header is read.
    weed.raw_put_with(
        &bucket,
        "good",
        b"\x02\x04\x78 rubbish of some length",
        &metadata("good"),
    );
    hand_over(&agent);
    let (lines, code) = rewrap(&agent, &format!("s3://{bucket}/"), &[]);
    let counts = counts(&lines);
    assert_eq!(code, Some(1), "{lines:?}");
    let failed: Vec<(&str, &str)> = lines
        .iter()
        .filter_map(|line| match line {
            RewrapLine::Failed { key, error, .. } => Some((key.as_str(), error.as_str())),
            _ => None,
        })
        .collect();
    assert!(failed.contains(&("elsewhere", "elsewhere")), "{failed:?}");
    assert!(
        failed.iter().any(|(key, _)| *key == "altered"),
        "{failed:?}"
    );
    assert!(failed.iter().any(|(key, _)| *key == "good"), "{failed:?}");
    // The versions before them are as they were.
    assert_eq!((counts.failed, counts.rewrapped), (3, 3), "{lines:?}");
}

#[test]
fn a_list_and_shards_do_the_same_work() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.bucket("rotation-list");
    let agent = Agent::start(&hsm, weed, |_| {});
    fill(&agent, &bucket, "a%20b/", 30, &[]);
    put(&agent, &bucket, "other", &[], b"not under the prefix");
    hand_over(&agent);
    let place = format!("s3://{bucket}/a b/");
    let inventory = agent.dir().join("inventory.csv");
    let mut text: String = (0..10)
        .map(|n| format!("\"{bucket}\",\"a+b%2F{n:07}\",\"\",\"true\",\"false\"\n"))
        .collect();
    text += &format!("\"{bucket}\",\"other\",\"\",\"true\",\"false\"\n");
    fs::write(&inventory, text).unwrap();
    let some = rewrap_all(
        &agent,
        &place,
        &["--inventory", inventory.to_str().unwrap()],
    );
    assert_eq!(some.rewrapped, 10, "{some:?}");
    let (mut rewrapped, mut already) = (0, 0);
    for shard in ["1/3", "2/3", "3/3"] {
        let counts = rewrap_all(&agent, &place, &["--shard", shard]);
        rewrapped += counts.rewrapped;
        already += counts.already;
    }
    assert_eq!((rewrapped, already), (20, 10));
    agent
        .cli(["rewrap", &place, "--shard", "4/3"])
        .fails(2, &["shard"]);
    agent
        .cli(["rewrap", &place, "--to", "nobody"])
        .fails(2, &["no active wrapping key"]);
    agent
        .cli(["rewrap", &format!("s3://{bucket}/.strongroom/keyslots/")])
        .fails(77, &["keyslot prefix"]);
}
