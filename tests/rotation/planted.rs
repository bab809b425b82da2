//! Keyslots of somebody else's: no wrong plaintext, no crash, and none that
//! keeps a rewrap from being done.

use std::time::Instant;

use strongroom::api::{Inspection, RewrapLine};
use strongroom::message::{Edk, MessageId, Slot};

use super::*;

fn id_of(agent: &Agent, bucket: &str, key: &str) -> String {
    let target = format!("/v1/objects/{bucket}/{key}?inspect");
    let found: Inspection = agent.http("GET", &target, &[], b"").parse();
    found.message_id
}

/// A slot that is well-formed and holds garbage for this message and key.
fn garbage(id: &str, key: &str, fill: u8) -> Vec<u8> {
    let edk = Edk::raw_aes(key, &[fill; 12], &[fill; 48]).unwrap();
    let id = MessageId::from_hex(id).unwrap();
    Slot::new(id, edk).unwrap().bytes().unwrap()
}

#[test]
fn rule_08_slots_planted_before_rewrap_are_noticed_and_passed_by() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.bucket("planted");
    let mut agent = Agent::start(&hsm, weed, |_| {});
    let count = 100;
    fill(&agent, &bucket, "", count, &[]);
    let ids: Vec<String> = (0..count)
        .map(|n| id_of(&agent, &bucket, &format!("{n:07}")))
        .collect();
    for (n, id) in ids.iter().enumerate() {
        let bytes = match n % 4 {
            0 => garbage(id, NEXT, 1),
            1 => garbage(&ids[(n + 1) % count], NEXT, 2),
            2 => b"rubbish".to_vec(),
            _ => vec![0x53; 100_000],
        };
        let name = format!(".strongroom/keyslots/{id}/{NEXT}");
        weed.raw_put(&bucket, &name, &bytes);
        // Some have several before their own.
        for more in 1..n % 5 {
            weed.raw_put(&bucket, &format!("{name}.{more}"), b"more rubbish");
        }
    }
    hand_over(&agent);
    let (lines, code) = rewrap(&agent, &format!("s3://{bucket}/"), &[]);
    let counts = counts(&lines);
    assert_eq!((code, counts.failed), (Some(0), 0), "{lines:?}");
    assert_eq!(counts.rewrapped, count as u64);
    let named: std::collections::BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| match line {
            RewrapLine::Planted { slot, .. } => Some(slot.as_str()),
            _ => None,
        })
        .collect();
    for id in &ids {
        let name = format!(".strongroom/keyslots/{id}/{NEXT}");
        assert!(named.contains(name.as_str()), "{name} went unnoticed");
    }
    destroy_old(&mut agent, &hsm);
    all_read(&agent, &bucket, "", count);
}

#[test]
fn rule_08_a_wrong_slot_only_makes_a_read_fail() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let (bucket, other) = (weed.bucket("wrong"), weed.bucket("wrong-other"));
    let mut agent = Agent::start(&hsm, weed, |_| {});
    put(&agent, &bucket, "a", &[], b"object a");
    put(&agent, &bucket, "b", &[], b"object b");
    put(&agent, &other, "a", &[], b"object a of another bucket");
    hand_over(&agent);
    rewrap_all(&agent, &format!("s3://{bucket}/"), &[]);
    rewrap_all(&agent, &format!("s3://{other}/"), &[]);
    let slot = |bucket: &str, key: &str| {
        let id = id_of(&agent, bucket, key);
        format!(".strongroom/keyslots/{id}/{NEXT}")
    };
    let (a, b, foreign) = (slot(&bucket, "a"), slot(&bucket, "b"), slot(&other, "a"));
    let good = weed.raw_get(&bucket, &a).unwrap();
    let of_b = weed.raw_get(&bucket, &b).unwrap();
    let of_foreign = weed.raw_get(&other, &foreign).unwrap();
    let id = a.split('/').nth(2).unwrap().to_owned();
    destroy_old(&mut agent, &hsm);
    assert_eq!(get(&agent, &bucket, "a").body, b"object a");

    // B's key under a's id: well-formed, authentic to the token for b alone.
    let mut relabelled = of_b.clone();
    relabelled[5..37].copy_from_slice(&good[5..37]);
    let mut wrong = vec![
        ("another object's".to_owned(), of_b),
        ("another bucket's".to_owned(), of_foreign),
        ("another object's key under this id".to_owned(), relabelled),
        ("empty".to_owned(), Vec::new()),
        ("oversize".to_owned(), vec![1; 1 << 20]),
        ("extended".to_owned(), [good.clone(), vec![0]].concat()),
        ("of another key's name".to_owned(), garbage(&id, "other", 1)),
    ];
    let bits = sized(good.len() * 8, 60);
    for n in 0..bits {
        let bit = n * good.len() * 8 / bits;
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        wrong.push((format!("bit {bit} flipped"), flipped));
    }
    for len in (0..good.len()).step_by(sized(1, 17)) {
        wrong.push((format!("cut to {len}"), good[..len].to_vec()));
    }
    let begun = Instant::now();
    for (what, bytes) in &wrong {
        weed.raw_put(&bucket, &a, bytes);
        let reply = get(&agent, &bucket, "a");
        // A flipped bit of a length may leave the same key and still fail.
        let problem = reply.fails("no-key", &["keyslot"]);
        assert_eq!(problem.status, 422, "{what}");
    }
    tell(&format!(
        "wrong keyslots: {} read in {:.1} s",
        wrong.len(),
        begun.elapsed().as_secs_f64()
    ));
    // Missing is told, too; and the good one still opens.
    weed.raw_delete(&bucket, &a);
    get(&agent, &bucket, "a").fails("no-key", &["no keyslot", NEXT]);
    weed.raw_put(&bucket, &a, &good);
    assert_eq!(get(&agent, &bucket, "a").body, b"object a");
}

#[test]
fn rule_08_clients_cannot_reach_slots() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let bucket = weed.bucket("reserved");
    let agent = Agent::start(&hsm, weed, |_| {});
    put(&agent, &bucket, "a", &[], b"a");
    hand_over(&agent);
    rewrap_all(&agent, &format!("s3://{bucket}/"), &[]);
    let slot = slots(weed, &bucket).pop().unwrap();
    for method in ["GET", "PUT", "DELETE"] {
        let target = format!("/v1/objects/{bucket}/{slot}");
        agent
            .http(method, &target, &[], b"")
            .fails("reserved", &["keyslot prefix"]);
    }
    let listed = agent.http("GET", &format!("/v1/objects/{bucket}"), &[], b"");
    assert!(!listed.text().contains("keyslots"), "{}", listed.text());
}
