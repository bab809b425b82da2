//! Done-when 3: an object that does not open, read in a loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clients::Client;
use crate::support::shim::*;
use crate::support::tamper::{read, stored};
use crate::support::{Agent, Hsm, Weed, hsm, pattern};
use crate::{sized, worker};

#[test]
fn a_corrupt_object_in_a_loop_never_restarts_the_worker_nor_disturbs_puts() {
    let time = sized(Duration::from_secs(10), Duration::from_secs(4));
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let shim = Shim::new(&hsm::module());
    let agent = Agent::start(&hsm, weed, |config| shim.configure(config));
    let bucket = weed.bucket("corrupt");
    let mut raw = stored(&agent, weed, &bucket, "corrupt", &pattern(1, 1000));
    // The EDK's key info: name, tag and IV lengths, IV; then the wrapped key.
    let info = [hsm::KEY.as_bytes(), &[0, 0, 0, 128, 0, 0, 0, 12]].concat();
    let at = raw.windows(info.len()).position(|w| w == info).unwrap();
    raw[at + info.len() + 12 + 2 + 20] ^= 1;
    weed.raw_put(&bucket, "corrupt", &raw);

    let (pid, logins) = (worker(&agent), shim.calls(C_Login));
    let decrypts = shim.buffered(C_Decrypt);
    let stop = AtomicBool::new(false);
    let (mut reads, mut unready) = (0, 0);
    let puts: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=4)
            .map(|number| {
                let client = Client {
                    socket: agent.socket(),
                    bucket: bucket.clone(),
                    number,
                    reads: false,
                };
                let stop = &stop;
                scope.spawn(move || client.run(stop))
            })
            .collect();
        let began = Instant::now();
        while began.elapsed() < time {
            let reply = read(&agent, &bucket, "corrupt");
            if reply.status != 422 {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(reply.status, 422, "{}", reply.text());
            reads += 1;
            let health = agent.try_status().map(|s| s.tokens[0].health.clone());
            unready += usize::from(health.as_deref() != Some("ready"));
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    let wrong: Vec<_> = puts.iter().flat_map(|s| &s.wrong).collect();
    let refused: usize = puts.iter().map(|s| s.refused_puts).sum();
    let good: usize = puts.iter().map(|s| s.acknowledged.len()).sum();
    let decrypts = shim.buffered(C_Decrypt) - decrypts;
    crate::support::tell(&format!(
        "{reads} reads of a corrupt object, all 422, {decrypts} C_Decrypt; beside them {good} puts \
         succeeded, {refused} did not; not ready {unready} times; worker {pid} before, {} after",
        worker(&agent)
    ));
    assert!(wrong.is_empty() && refused == 0, "{refused} {wrong:?}");
    assert!(good > 20 && reads > 20 && unready == 0);
    assert!(decrypts >= reads, "they did not reach the token");
    assert_eq!(worker(&agent), pid);
    assert_eq!(shim.calls(C_Login), logins);
}
