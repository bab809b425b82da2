//! A replica of a bucket, with its keyslots and packs, after the old key is
//! gone and the bucket with it.

use super::*;

#[test]
fn a_replica_is_opened_by_the_slots_that_it_holds() {
    let (hsm, weed) = (two_tokens(None), Weed::shared());
    let (home, replica) = (weed.bucket("slots-home"), weed.bucket("slots-replica"));
    let mut agent = Agent::start(&hsm, weed, |config| {
        alias(config, &replica, &home);
    });
    fill(&agent, &home, "one/", 2, &[]);
    fill(&agent, &home, "packed/", 4, &[]);
    hand_over(&agent);
    rewrap_all(&agent, &format!("s3://{home}/one/"), &[]);
    rewrap_all(&agent, &format!("s3://{home}/packed/"), &["--pack"]);
    for key in weed.list(&home, "") {
        let raw = weed.raw_get(&home, &key).unwrap();
        weed.raw_put(&replica, &key, &raw);
        weed.raw_delete(&home, &key);
    }
    destroy_old(&mut agent, &hsm);
    for (prefix, count) in [("one", 2), ("packed", 4)] {
        for n in 0..count {
            let reply = get(&agent, &replica, &format!("{prefix}/{n:07}"));
            assert_eq!(reply.status, 200, "{prefix} {n}: {}", reply.text());
            assert_eq!(reply.body, body_of(n));
        }
    }
}
