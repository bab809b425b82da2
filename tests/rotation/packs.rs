//! Many keyslots in one object.

use super::*;

#[test]
fn objects_are_read_through_packs() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let (bucket, keys) = (weed.bucket("packs"), weed.bucket("packs-keys"));
    let mut agent = Agent::start(&hsm, weed, |config| {
        config["keyslots"]["bucket"] = value(keys.as_str());
    });
    let count = sized(20_000, 300);
    fill(&agent, &bucket, "dir/", count, &[]);
    put(&agent, &bucket, "dir-", &[], b"sorts before dir/");
    let long = ["x".repeat(200).as_str(); 3].join("/");
    put(&agent, &bucket, &long, &[], b"a long name");
    hand_over(&agent);
    let place = format!("s3://{bucket}/");
    let mut total = strongroom::api::RewrapCounts::default();
    for shard in ["1/2", "2/2"] {
        let counts = rewrap_all(&agent, &place, &["--pack", "--shard", shard]);
        total.rewrapped += counts.rewrapped;
        total.packs += counts.packs;
    }
    assert_eq!(total.rewrapped, count as u64 + 2);
    let stored = slots(weed, &keys);
    assert_eq!(stored.len() as u64, total.packs, "{stored:?}");
    assert!(total.packs <= 2 + count as u64 / 7000, "{total:?}");
    assert!(slots(weed, &bucket).is_empty());
    destroy_old(&mut agent, &hsm);
    all_read(&agent, &bucket, "dir/", count);
    assert_eq!(get(&agent, &bucket, "dir-").body, b"sorts before dir/");
    assert_eq!(get(&agent, &bucket, &long).body, b"a long name");

    // A pack is believed as little as a slot.
    for name in &stored {
        let mut bytes = weed.raw_get(&keys, name).unwrap();
        for byte in bytes.iter_mut().skip(40).step_by(92) {
            *byte ^= 1;
        }
        weed.raw_put(&keys, name, &bytes);
    }
    get(&agent, &bucket, "dir/0000001").fails("no-key", &["no keyslot"]);
    for name in &stored {
        let bytes = weed.raw_get(&keys, name).unwrap();
        weed.raw_put(&keys, name, &bytes[..bytes.len() / 2]);
    }
    get(&agent, &bucket, "dir/0000001").fails("no-key", &["no keyslot"]);
}

#[test]
fn rule_08_a_pack_has_the_longest_retention_of_its_objects() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.locked_bucket("packs-locked");
    let agent = Agent::start(&hsm, weed, |_| {});
    let day = |n: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * n);
        format!("{at:.0}")
    };
    for (key, until) in [("a", day(10)), ("b", day(400)), ("c", day(100))] {
        let headers = [
            ("Strongroom-Retain-Until", until.as_str()),
            ("Strongroom-Retention-Mode", "GOVERNANCE"),
        ];
        put(&agent, &bucket, key, &headers, key.as_bytes());
    }
    put(&agent, &bucket, "d", &[], b"d");
    hand_over(&agent);
    let counts = rewrap_all(&agent, &format!("s3://{bucket}/"), &["--pack"]);
    assert_eq!((counts.packs, counts.rewrapped), (1, 4));
    let pack = slots(weed, &bucket).pop().unwrap();
    let head = weed.raw_head(&bucket, &pack);
    let kept = head.object_lock_retain_until_date().unwrap().secs();
    assert!(kept >= day(399).parse::<jiff::Timestamp>().unwrap().as_second());
}
