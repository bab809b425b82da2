//! `--bundle`: few objects, each file readable by itself, and fast.

use std::fs;
use std::time::Instant;

use strongroom::bundle::{TRAILER, Trailer};
use strongroom::manifest::{BUNDLES, Kind};

use crate::support::null_store::NullStore;
use crate::support::{Agent, Hsm, Store, Weed, pattern, temp_dir};
use crate::{Archive, is_skipped, soak, support};

/// Bytes of each file.
const SIZE: u64 = 2048;

#[test]
fn small_files_share_objects() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let dir = temp_dir();
    let count = if soak() { 100_000_u32 } else { 150 };
    for n in 0..count {
        let sub = dir.path().join(format!("{:02}", n % 50));
        if n < 50 {
            fs::create_dir(&sub).unwrap();
        }
        fs::write(sub.join(format!("{n}")), pattern(u64::from(n), SIZE)).unwrap();
    }
    fs::write(dir.path().join("large"), pattern(1, 200_000)).unwrap();
    // One object each, of a part of them where there are many.
    let singly = Archive::new(&agent, weed.bucket("singly"));
    let sample = if soak() { "/0[01]/**" } else { "/[0-4]*/**" };
    let began = Instant::now();
    let stored = singly.summary(dir.path(), &["--include", sample])["stored"]
        .as_f64()
        .unwrap();
    let one_each = began.elapsed().mul_f64(f64::from(count) / stored);

    let archive = Archive::new(&agent, weed.bucket("bundled"));
    let began = Instant::now();
    let summary = archive.summary(dir.path(), &["--bundle"]);
    let bundled = began.elapsed();
    assert_eq!(summary["stored"], count + 1);
    let objects = weed.list(&archive.bucket, "");
    let ratio = one_each.as_secs_f64() / bundled.as_secs_f64();
    support::tell(&format!(
        "archive of {count} files of 2 KiB: {} objects with --bundle in {bundled:.1?}, one object each, by {stored} of them, in {one_each:.1?} ({ratio:.0} times as long)",
        objects.len()
    ));
    assert!(objects.len() <= 200, "{}", objects.len());
    // At this size, on a busy machine, there is nothing to hold it to.
    assert!(!soak() || ratio >= 10.0, "{ratio}");

    for path in ["00/0", "07/7", "49/149"] {
        let entry = archive.entry(path.as_bytes());
        let n = path[3..].parse().unwrap();
        assert_eq!(archive.content(&entry), pattern(n, SIZE));
    }
    let Kind::File(large) = archive.entry(b"large").kind else {
        panic!()
    };
    assert_eq!((large.at.key.as_str(), large.at.offset), ("large", None));

    // The index within says the same as the manifest.
    let Kind::File(first) = archive.entry(b"00/0").kind else {
        panic!()
    };
    let whole = archive.read(&first.at.key);
    let trailer = Trailer::decode(&whole[whole.len() - TRAILER..], whole.len() as u64).unwrap();
    let start = usize::try_from(trailer.offset).unwrap();
    let members = trailer
        .members(&whole[start..whole.len() - TRAILER])
        .unwrap();
    let member = members
        .iter()
        .find(|member| member.path.as_bytes() == b"00/0")
        .unwrap();
    assert_eq!(
        (Some(member.offset), member.sha256),
        (first.at.offset, first.sha256)
    );

    // What did not change stays where it is.
    fs::write(dir.path().join("00/0"), b"changed").unwrap();
    let second = archive.summary(dir.path(), &["--bundle"]);
    assert_eq!(second["stored"], 1, "{second}");
    let bundles = format!("{}{BUNDLES}", archive.prefix);
    let now = weed.list(&archive.bucket, &bundles).len();
    assert_eq!(
        now,
        objects
            .iter()
            .filter(|key| key.starts_with(&bundles))
            .count()
            + 1
    );
    assert_eq!(archive.content(&archive.entry(b"00/0")), b"changed");
    assert_eq!(archive.content(&archive.entry(b"00/50")), pattern(50, SIZE));
}

#[test]
fn one_file_of_a_bundle_takes_three_requests_and_a_mebibyte() {
    if is_skipped() {
        return;
    }
    let (hsm, store) = (Hsm::new(), NullStore::start());
    let agent = Agent::start(&hsm, Store::at(store.endpoint()), |_| {});
    let dir = temp_dir();
    for n in 0..3000_u64 {
        fs::write(dir.path().join(format!("{n}")), pattern(n, SIZE)).unwrap();
    }
    let archive = Archive::new(&agent, "bundled");
    archive.summary(dir.path(), &["--bundle"]);
    let entry = archive.entry(b"1500");
    let before = store.requests().len();
    assert_eq!(archive.content(&entry), pattern(1500, SIZE));
    let requests = store.requests().split_off(before);
    assert!(requests.len() <= 3, "{} requests", requests.len());
    let fetched: u64 = requests
        .iter()
        .filter(|request| request.method == "GET")
        .map(|request| {
            let range = request.headers["range"].to_str().unwrap();
            let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
            1 + to.parse::<u64>().unwrap() - from.parse::<u64>().unwrap()
        })
        .sum();
    crate::support::tell(&format!(
        "one file of 2 KiB out of a bundle: {} requests, {fetched} bytes asked for",
        requests.len()
    ));
    assert!((1..=1 << 20).contains(&fetched), "{fetched} bytes");
}
