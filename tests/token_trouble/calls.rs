//! Done-when 4, seen from a client: a put costs one call of the token with
//! data, and so does a get.

use std::time::Duration;

use crate::support::shim::*;
use crate::support::tamper::read;
use crate::support::{Agent, Hsm, Weed, hsm, pattern};
use crate::{sized, worker};

#[test]
fn a_put_costs_one_token_call_and_so_does_a_get() {
    let puts = sized(1000, 300);
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let shim = Shim::new(&hsm::module());
    let agent = Agent::start(&hsm, weed, |config| shim.configure(config));
    let bucket = weed.bucket("calls");
    worker(&agent);
    let counted = || {
        [
            shim.buffered(C_Encrypt),
            shim.buffered(C_Decrypt),
            shim.calls(C_GenerateRandom),
            shim.calls(C_Encrypt) - shim.buffered(C_Encrypt),
        ]
    };
    // Not in the middle of a probe, whose calls belong together.
    let calls = || {
        let mut last = counted();
        loop {
            std::thread::sleep(Duration::from_millis(100));
            match counted() {
                now if now == last => return now,
                now => last = now,
            }
        }
    };
    let since = |before: [u64; 4]| {
        let now = calls();
        std::array::from_fn::<u64, 4, _>(|i| now[i] - before[i])
    };
    let before = calls();
    for n in 0..puts {
        let target = format!("/v1/objects/{bucket}/{n}");
        let reply = agent.http("PUT", &target, &[], &pattern(n, 100));
        assert_eq!(reply.status, 201, "{}", reply.text());
    }
    // A probe, at most every ten seconds, is one C_Encrypt and two C_Decrypt:
    // of what it wrapped, and of what the key is known to open.
    let [encrypts, decrypts, random, asked] = since(before);
    crate::support::tell(&format!(
        "{puts} puts: {encrypts} C_Encrypt, {decrypts} C_Decrypt (of probes), {random} C_GenerateRandom"
    ));
    assert_eq!(encrypts - decrypts / 2, puts);
    assert_eq!(asked, 0, "calls that only ask for a length");
    // 128 data keys a block of 4 KiB, which is fetched in four pieces.
    assert!(random <= 4 * (puts / 128 + 2), "{random}");

    let before = calls();
    for n in 0..puts {
        assert_eq!(read(&agent, &bucket, &n.to_string()).status, 200);
    }
    let [probes, decrypts, ..] = since(before);
    crate::support::tell(&format!(
        "{puts} gets: {decrypts} C_Decrypt, {probes} C_Encrypt (of probes)"
    ));
    assert_eq!(decrypts - 2 * probes, puts);
}
