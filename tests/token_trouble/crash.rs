//! Done-when 7: a module that calls abort() in the middle of a wrap.

use std::io::{BufReader, Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::support::process::eventually;
use crate::support::shim::*;
use crate::support::tamper::read;
use crate::support::{Agent, Hsm, Weed, hsm, pattern, value};
use crate::{token, worker};

#[test]
fn an_abort_inside_c_encrypt_takes_down_only_its_worker() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    hsm.add_token("other");
    let shim = Shim::new(&hsm::module());
    let label = format!("{:?}", hsm::TOKEN_LABEL);
    let other = hsm.config().replace(&label, "\"other\"");
    let (table, _) = other.split_once("[[key]]").unwrap();
    let table = table.replace(&format!("{:?}", hsm::TOKEN), "\"other\"");
    std::fs::write(hsm.config_path(), format!("{}\n{table}", hsm.config())).unwrap();
    let agent = Agent::start(&hsm, weed, |config| {
        let tokens = config["token"].as_array_of_tables_mut().unwrap();
        tokens.get_mut(0).unwrap()["module"] = value(shim.module().to_str().unwrap());
    });
    let bucket = weed.bucket("abort");
    let put = |key: &str| {
        let target = format!("/v1/objects/{bucket}/{key}");
        agent.http("PUT", &target, &[], b"kept").status
    };
    assert_eq!(put("before"), 201);
    let large = pattern(1, 40 << 20);
    let target = format!("/v1/objects/{bucket}/large");
    assert_eq!(agent.http("PUT", &target, &[], &large).status, 201);

    let pids = || {
        let status = agent.try_status()?;
        let worker = |name| token(&agent, name)?.worker_pid;
        let workers = (worker(hsm::TOKEN)?, worker("other")?);
        Some((agent.pid(), status.server_pid, workers.0, workers.1))
    };
    worker(&agent);
    let before = eventually(Duration::from_secs(20), pids).expect("two workers");
    // A read that is under way does not notice.
    let mut reading = agent.connect();
    let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    reading.write_all(head.as_bytes()).unwrap();
    let mut reading = BufReader::new(reading);
    let mut first = [0; 4096];
    reading.read_exact(&mut first).unwrap();

    shim.plan(&Plan::default().once(C_Encrypt, Action::Abort));
    let began = Instant::now();
    let status = put("during");
    let failed_after = began.elapsed();
    let works = eventually(Duration::from_secs(5), || {
        (put("after") == 201).then_some(())
    });
    let back_after = began.elapsed();
    assert_eq!(shim.happened(0), 1);
    assert!(status == 503 && works.is_some(), "{status}, {works:?}");
    worker(&agent);
    let after = eventually(Duration::from_secs(20), pids).expect("two workers");
    crate::support::tell(&format!(
        "abort() in C_Encrypt: 503 after {failed_after:.1?}, 201 again after {back_after:.1?}; \
         supervisor, server, worker, other token's worker: {before:?}, then {after:?}"
    ));
    assert_eq!((before.0, before.1, before.3), (after.0, after.1, after.3));
    assert_ne!(before.2, after.2, "its worker lives");

    let mut rest = first.to_vec();
    reading.read_to_end(&mut rest).unwrap();
    let body = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert!(rest[body..] == large, "a read under way was disturbed");
    assert_eq!(read(&agent, &bucket, "before").body, b"kept");
    let mut there = weed.list(&bucket, "");
    there.sort();
    assert_eq!(there, ["after", "before", "large"]);
}
