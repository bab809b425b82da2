//! Rollback, deletion, swap and re-upload by somebody with access to the
//! bucket: all of them found, each named rightly, and at the level that
//! docs/verify.md says.

use super::*;

/// What each attack is called at each level.
type Named = BTreeMap<&'static str, [BTreeMap<String, String>; 3]>;

const LEVELS: [&str; 3] = ["list", "head", "read"];

/// Expects `words` of `key` at the levels; an empty word: nothing is found.
fn expect(named: &mut Named, attack: &'static str, key: &str, words: [&str; 3]) {
    let levels = named.entry(attack).or_default();
    for (level, word) in levels.iter_mut().zip(words) {
        if !word.is_empty() {
            level.insert(key.to_owned(), word.to_owned());
        }
    }
}

/// Verifies each attack's own prefix at each level, and then the bucket.
fn hold(agent: &Agent, bucket: &str, named: &Named) {
    let mut all: [BTreeMap<String, String>; 3] = Default::default();
    for (attack, levels) in named {
        for ((level, expected), all) in LEVELS.iter().zip(levels).zip(&mut all) {
            let place = format!("s3://{bucket}/{attack}/");
            verify(agent, &place, &["--level", level]).is(expected);
            all.extend(expected.clone());
        }
    }
    for (level, expected) in LEVELS.iter().zip(&all) {
        verify(agent, &format!("s3://{bucket}/"), &["--level", level]).is(expected);
    }
    tell(&format!(
        "verify: {} attacks found by reading, {} by the listing alone",
        all[2].len(),
        all[0].len()
    ));
}

#[test]
fn rule_06_every_attack_on_a_bucket_without_versions_is_found_and_named() {
    if !TokenKind::SoftHsm.is_only("the store is what is attacked") {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = &weed.bucket("attacked");
    let agent = Agent::start(&hsm, weed, |_| {});
    let count = sized(100, 10);
    let mut named = Named::new();
    for i in 0..count {
        let key = format!("rollback/{i}");
        put(&agent, bucket, &key, b"first");
        let old = Copy::of(bucket, &key);
        put(&agent, bucket, &key, b"other");
        old.put(bucket, &key);
        expect(&mut named, "rollback", &key, ["rolled-back"; 3]);

        let key = format!("deletion/{i}");
        put(&agent, bucket, &key, b"gone");
        weed.raw_delete(bucket, &key);
        expect(&mut named, "deletion", &key, ["missing"; 3]);

        let (one, two) = (format!("swap/{i}-a"), format!("swap/{i}-b"));
        put(&agent, bucket, &one, b"one");
        put(&agent, bucket, &two, b"two");
        let copies = (Copy::of(bucket, &one), Copy::of(bucket, &two));
        copies.0.put(bucket, &two);
        copies.1.put(bucket, &one);
        for key in [one, two] {
            expect(&mut named, "swap", &key, ["replaced", "swapped", "swapped"]);
        }

        // The same bytes, without what stood beside them.
        let key = format!("re-upload/{i}");
        put(&agent, bucket, &key, b"again");
        weed.raw_put(bucket, &key, &Copy::of(bucket, &key).bytes);
        let words = ["", "re-uploaded", "re-uploaded"];
        expect(&mut named, "re-upload", &key, words);

        // Deleted here on purpose, and put back.
        let key = format!("undeleted/{i}");
        put(&agent, bucket, &key, b"deleted");
        let old = Copy::of(bucket, &key);
        agent.cli(["rm", &format!("s3://{bucket}/{key}")]).ok();
        old.put(bucket, &key);
        expect(&mut named, "undeleted", &key, ["rolled-back"; 3]);

        let key = format!("garbage/{i}");
        put(&agent, bucket, &key, b"mine");
        weed.raw_put(bucket, &key, b"theirs");
        expect(&mut named, "garbage", &key, ["replaced"; 3]);

        let key = format!("extra/{i}");
        weed.raw_put(bucket, &key, b"theirs");
        expect(&mut named, "extra", &key, ["extra"; 3]);

        let key = format!("cut/{i}");
        put(&agent, bucket, &key, b"to be cut off");
        let mut copy = Copy::of(bucket, &key);
        copy.bytes.pop();
        copy.put(bucket, &key);
        let words = ["replaced", "truncated", "truncated"];
        expect(&mut named, "cut", &key, words);

        let key = format!("flipped/{i}");
        put(&agent, bucket, &key, b"to be altered");
        let mut copy = Copy::of(bucket, &key);
        let last = copy.bytes.len() - 20;
        copy.bytes[last] ^= 1;
        copy.put(bucket, &key);
        let words = ["replaced", "re-uploaded", "altered"];
        expect(&mut named, "flipped", &key, words);
    }
    hold(&agent, bucket, &named);
}

#[test]
fn rule_06_every_attack_on_a_bucket_with_versions_is_found_and_named() {
    if !TokenKind::SoftHsm.is_only("the store is what is attacked") {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = &weed.versioned_bucket("attacked-versions");
    let agent = Agent::start(&hsm, weed, |_| {});
    let count = sized(100, 8);
    let mut named = Named::new();
    let versions = |key: &str| {
        let versions = weed.list_versions(bucket, key).into_iter();
        let versions = versions.filter(|version| version.key == key);
        versions.collect::<Vec<_>>()
    };
    let latest = |key: &str| versions(key).into_iter().find(|v| v.latest).unwrap().id;
    for i in 0..count {
        // The newest version is taken away: the one before is current.
        let key = format!("rollback/{i}");
        put(&agent, bucket, &key, b"first");
        put(&agent, bucket, &key, b"other");
        weed.raw_delete_version(bucket, &key, &latest(&key));
        expect(&mut named, "rollback", &key, ["rolled-back"; 3]);

        // The old one is stored again on top.
        let key = format!("replay/{i}");
        put(&agent, bucket, &key, b"first");
        let old = Copy::of(bucket, &key);
        put(&agent, bucket, &key, b"other");
        old.put(bucket, &key);
        expect(&mut named, "replay", &key, ["rolled-back"; 3]);

        let key = format!("deletion/{i}");
        put(&agent, bucket, &key, b"marked");
        weed.raw_delete(bucket, &key);
        expect(&mut named, "deletion", &key, ["deleted"; 3]);

        let key = format!("purge/{i}");
        put(&agent, bucket, &key, b"gone");
        weed.raw_delete_version(bucket, &key, &latest(&key));
        expect(&mut named, "purge", &key, ["missing"; 3]);

        let key = format!("history/{i}");
        put(&agent, bucket, &key, b"first");
        let old = latest(&key);
        put(&agent, bucket, &key, b"other");
        weed.raw_delete_version(bucket, &key, &old);
        let version = format!("{key}@{old}");
        expect(&mut named, "history", &version, ["version-missing"; 3]);

        let (one, two) = (format!("swap/{i}-a"), format!("swap/{i}-b"));
        put(&agent, bucket, &one, b"one");
        put(&agent, bucket, &two, b"two");
        let copies = (Copy::of(bucket, &one), Copy::of(bucket, &two));
        copies.0.put(bucket, &two);
        copies.1.put(bucket, &one);
        for key in [one, two] {
            expect(&mut named, "swap", &key, ["replaced", "swapped", "swapped"]);
        }

        let key = format!("re-upload/{i}");
        put(&agent, bucket, &key, b"again");
        Copy::of(bucket, &key).put(bucket, &key);
        expect(&mut named, "re-upload", &key, ["re-uploaded"; 3]);

        let key = format!("undeleted/{i}");
        put(&agent, bucket, &key, b"deleted");
        agent.cli(["rm", &format!("s3://{bucket}/{key}")]).ok();
        let marker = versions(&key).into_iter().find(|v| v.delete_marker);
        weed.raw_delete_version(bucket, &key, &marker.unwrap().id);
        expect(&mut named, "undeleted", &key, ["rolled-back"; 3]);
    }
    hold(&agent, bucket, &named);
}

/// A store that lies about what it has: size, entity tag and metadata are
/// right, the bytes are not.
#[test]
fn altered_bytes_under_a_true_listing_are_found_by_reading() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = &weed.bucket("lying");
    let agent = Agent::start(&hsm, weed, |_| {});
    let place = &format!("s3://{bucket}/");
    let mut expected = BTreeMap::new();
    let catalog = rusqlite::Connection::open(agent.state_dir().join("catalog.sqlite")).unwrap();
    catalog
        .busy_timeout(std::time::Duration::from_secs(10))
        .unwrap();
    for i in 0..20 {
        let key = format!("{i:02}");
        put(&agent, bucket, &key, &pattern(i, 100 + i * 50_000));
        if i % 2 == 0 {
            continue;
        }
        let mut copy = Copy::of(bucket, &key);
        let at = usize::try_from(i).unwrap() * copy.bytes.len() / 20;
        copy.bytes[at] ^= 0x40;
        copy.put(bucket, &key);
        // The store's tag of these bytes passes for the receipt's.
        let etag = weed.raw_head(bucket, &key).e_tag.unwrap();
        let forged = catalog.execute(
            "UPDATE message SET etag = ?2 WHERE place = (SELECT id FROM place WHERE bucket = ?3 AND key = ?1)",
            [&key, &etag, bucket],
        );
        assert_eq!(forged.unwrap(), 1);
        expected.insert(key, "altered".to_owned());
    }
    verify(&agent, place, &["--level", "list"]).is(&BTreeMap::new());
    verify(&agent, place, &["--level", "head"]).is(&BTreeMap::new());
    let read = verify(&agent, place, &["--level", "read"]);
    // A bit of the header's EDKs or commitment leaves no key that opens it.
    let found: BTreeMap<_, _> = read
        .found
        .iter()
        .map(|(key, word)| {
            assert!(
                ["altered", "truncated", "unreadable"].contains(&word.as_str()),
                "{key} {word}"
            );
            (key.clone(), "altered".to_owned())
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(read.code(), 65);
    // And what a sample misses it does not claim to have seen.
    let some = verify(&agent, place, &["--level", "read", "--sample", "50%"]);
    assert!(some.sum.unwrap().checked <= 20);
}
