//! What is on record, and what an auditor can prove of it.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use strongroom::audit::{Kind, OK, Phase};

use crate::support::process::{eventually, signal};
use crate::support::{Agent, Hsm, TokenKind, Weed, pattern, temp_dir, value};
use crate::{LABEL, by_request, config_audit, make_key, records, sound};

#[test]
fn rule_28_what_was_done_is_on_record_and_nothing_of_what_was_in_it() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("recorded");
    let mut agent = Agent::start(&hsm, weed, |_| {});
    let secret = b"PLAINTEXT-CANARY-6d1f";
    let target = format!("/v1/objects/{bucket}/k");
    let large = format!("/v1/objects/{bucket}/large");
    let context = [("Strongroom-Context", "name=CONTEXT-CANARY-77")];
    let replies = [
        agent.http("PUT", &target, &context, secret),
        agent.http("GET", &target, &[], b""),
        agent.http("GET", &target, &[("Range", "bytes=2-5")], b""),
        agent.http("HEAD", &target, &[], b""),
        agent.http("GET", &format!("{target}?inspect"), &[], b""),
        agent.http("GET", &format!("/v1/objects/{bucket}?prefix=k"), &[], b""),
        agent.http("PUT", &large, &[], &pattern(1, 12 << 20)),
        agent.http("DELETE", &target, &[], b""),
    ];
    let mut bytes = weed.raw_get(&bucket, "large").unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    weed.raw_put(&bucket, "large", &bytes);
    let broken = agent.http("GET", &format!("/v1/objects/{bucket}/missing"), &[], b"");
    broken.fails("no-such-object", &[]);
    let tampered = agent.http("GET", &large, &[("Range", "bytes=6000000-7000000")], b"");
    tampered.fails("altered", &[]);
    agent.stop();

    let dir = agent.state_dir().join("audit");
    let all = records(&dir);
    let told = by_request(&all);
    for reply in &replies {
        assert!((200..300).contains(&reply.status), "{reply:?}");
        let id = reply.header("strongroom-request-id").unwrap();
        let told = &told[id];
        assert!(
            told.begun && told.end.as_deref() == Some(OK),
            "{id}: {told:?}"
        );
    }
    let id = tampered.header("strongroom-request-id").unwrap();
    let end = all
        .iter()
        .rfind(|r| r.event.op.as_deref() == Some(id))
        .unwrap();
    assert!(end.event.tamper && end.event.result.as_deref() == Some("altered"));
    let put = all
        .iter()
        .find(|r| r.event.event == Kind::Put && r.event.phase == Some(Phase::End));
    let put = &put.unwrap().event;
    assert_eq!(put.plaintext_size, Some(secret.len() as u64));
    assert!(put.stored_size > put.plaintext_size);
    // Kryoptic has no check values.
    let has_check_value = hsm.kind() == TokenKind::SoftHsm;
    assert_eq!(put.check_value.is_some(), has_check_value);
    assert!(put.message_id.is_some() && put.checksum.is_some() && put.duration_us.is_some());
    for kind in [
        Kind::Put,
        Kind::Get,
        Kind::Head,
        Kind::Inspect,
        Kind::List,
        Kind::Delete,
    ] {
        let done = all.iter().find(|r| {
            let event = &r.event;
            event.event == kind
                && event.phase == Some(Phase::End)
                && event.result.as_deref() == Some(OK)
        });
        let event = done.map(|r| &r.event);
        assert!(
            event.is_some_and(|event| event
                .s3_request_id
                .as_ref()
                .is_some_and(|id| !id.is_empty())),
            "{kind:?}: {event:?}"
        );
    }
    assert_eq!(
        put.peer.as_ref().unwrap().uid,
        rustix::process::geteuid().as_raw()
    );
    let kinds: Vec<Kind> = all.iter().map(|r| r.event.event).collect();
    assert_eq!(kinds[..2], [Kind::Segment, Kind::Start]);
    assert!(kinds.contains(&Kind::Token) && kinds.contains(&Kind::Key));
    assert!(
        kinds.ends_with(&[Kind::Stop, Kind::Checkpoint]),
        "{kinds:?}"
    );
    for file in fs::read_dir(&dir).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for canary in ["PLAINTEXT-CANARY", "CONTEXT-CANARY", &hsm.pin()] {
            assert!(!text.contains(canary), "{canary}");
        }
    }
    let report = sound(&dir);
    assert!(report.clean_stop && report.open.is_empty());
}

#[test]
fn rule_29_an_auditor_with_key_and_anchor_can_prove_the_log_or_say_where_it_is_wrong() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let key = make_key(&hsm);
    let (bucket, lock) = (weed.bucket("audited"), weed.locked_bucket("anchor"));
    let mut agent = Agent::start(&hsm, weed, |config| {
        let audit = config_audit(config);
        audit["anchor"] = value(format!("s3://{lock}/log/"));
        audit["anchor_retention"] = value("1h");
        audit["rotate"] = value("64 KiB");
    });
    for n in 0..3 {
        let target = format!("/v1/objects/{bucket}/{n}");
        assert_eq!(agent.http("PUT", &target, &[], b"x").status, 201);
    }
    agent.stop();

    let (dir, here) = (agent.state_dir().join("audit"), agent.dir().to_owned());
    let (pinned, anchors) = (here.join("audit.pem"), here.join("anchors"));
    fs::write(&pinned, &key).unwrap();
    fs::create_dir(&anchors).unwrap();
    let names = weed.list(&lock, "log/");
    assert!(!names.is_empty(), "{}", agent.log());
    for name in &names {
        let text = weed.raw_get(&lock, name).unwrap();
        fs::write(anchors.join(name.replace('/', "_")), text).unwrap();
        let head = weed.raw_head(&lock, name);
        let mode = head.object_lock_mode().unwrap();
        assert_eq!(mode.as_str(), "COMPLIANCE");
    }
    let text = |path: &std::path::Path| path.display().to_string();
    let log = text(&dir);
    let verify = |dir: &str, more: &[&str]| {
        let mut args = vec!["audit", "verify", "--json", "--dir", dir];
        args.extend(more);
        agent.cli(args)
    };
    let (anchored, pinned) = (text(&anchors), text(&pinned));
    let full = ["--anchor", &anchored, "--key", &pinned];
    let said = verify(&log, &full).ok().json();
    assert_eq!(said["verdict"], "verified", "{said}");
    // Offline, on a copy, without configuration or agent; and what is not
    // proven is said.
    assert_eq!(
        verify(&log, &["--key", &pinned]).ok().json()["verdict"],
        "not-proven"
    );
    assert_eq!(verify(&log, &[]).ok().json()["signatures"], "not-pinned");
    agent
        .cli(["audit", "verify", "--dir", &log, "--anchor", "s3://b/p/"])
        .fails(2, &["proves nothing against this host", "aws s3 cp"]);

    // An export's records are proven one by one.
    let out = text(&here.join("export.jsonl"));
    agent
        .cli(["audit", "export", "--dir", &log, "--out", &out])
        .ok();
    let check = [
        "audit", "verify", "--json", "--export", &out, "--key", &pinned,
    ];
    let said = agent.cli(check).ok().json();
    assert_eq!(said["signed"], true, "{said}");
    assert!(said["proven"].as_u64().unwrap() > 5 && said["uncovered"] == 0);
    let forged = fs::read_to_string(&out)
        .unwrap()
        .replacen("\\\"put\\\"", "\\\"get\\\"", 1);
    fs::write(&out, forged).unwrap();
    agent.cli(check).fails(65, &["the export is altered: line"]);

    // One record altered, and the log cut short.
    let file = dir.join("audit-00000000000000000000.jsonl");
    let original = fs::read_to_string(&file).unwrap();
    let line = original
        .lines()
        .position(|l| l.contains("\"put\""))
        .unwrap();
    fs::write(&file, original.replacen("\"put\"", "\"get\"", 1)).unwrap();
    let run = agent.cli([
        "audit", "verify", "--dir", &log, full[0], full[1], full[2], full[3],
    ]);
    assert_eq!(run.code, Some(65));
    let place = format!("line {}, record {line}", line + 1);
    assert!(
        run.text().contains("ALTERED") && run.text().contains(&place),
        "{}",
        run.text()
    );
    let keep = original.lines().take(3).collect::<Vec<_>>().join("\n") + "\n";
    fs::write(&file, keep).unwrap();
    let run = verify(&log, &full);
    assert_eq!(
        (run.code, &run.json()["fault"]["seq"]),
        (Some(65), &3.into())
    );

    // The agent does not go on with such a log either.
    agent.launch();
    let why = crate::support::process::eventually(std::time::Duration::from_secs(20), || {
        let status = agent.try_status()?;
        (status.audit.state == "failed").then_some(status.audit.detail?)
    });
    assert!(why.unwrap().contains("the log has 3"));
    fs::write(&file, original).unwrap();
    crate::await_ready(&agent);
    let status = agent.try_status().unwrap();
    assert!(status.audit.checkpoints.signed && status.audit.checkpoints.anchor);
    agent.stop();
    assert!(
        !fs::read_to_string(dir.join("checkpoints"))
            .unwrap()
            .contains(LABEL)
    );
    sound(&dir);
}

#[test]
fn an_outage_that_ends_at_once_is_on_record() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut agent = Agent::start(&hsm, weed, |_| {});
    let states = |agent: &Agent| -> Vec<String> {
        let all = records(&agent.state_dir().join("audit"));
        let tokens = all.into_iter().filter(|r| r.event.event == Kind::Token);
        tokens
            .filter_map(|r| r.event.state)
            .filter(|state| state != "starting")
            .collect()
    };
    let up = eventually(Duration::from_secs(30), || {
        (states(&agent) == ["ready"]).then_some(())
    });
    assert!(up.is_some(), "{:?}", states(&agent));
    let worker = agent.workers().remove(0);
    signal(worker.pid, Signal::KILL);
    let other = eventually(Duration::from_secs(30), || {
        let status = agent.try_status()?;
        let token = &status.tokens[0];
        (token.health == "ready" && token.worker_pid != Some(worker.pid)).then_some(())
    });
    assert!(other.is_some(), "{}", agent.log());
    // What the status says first, the log says a moment later.
    let again = eventually(Duration::from_secs(30), || {
        let states = states(&agent);
        (states.len() > 2 && states.last().is_some_and(|state| state == "ready")).then_some(())
    });
    assert!(again.is_some(), "{:?}", states(&agent));
    agent.stop();
    let states = states(&agent);
    let between = &states[1..states.len() - 1];
    assert!(between.contains(&"recovering".to_owned()), "{states:?}");
    assert!(between.iter().all(|state| state != "ready"), "{states:?}");
}

/// In a mount namespace with a journal of the test's own.
#[test]
fn a_second_sink_gets_each_record_and_holds_nothing_up() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may mount");
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("journal");
    let dir = temp_dir();
    let journal = UnixDatagram::bind(dir.path().join("socket")).unwrap();
    journal
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut agent = Agent::prepare(&hsm, weed, |config| {
        let audit = config_audit(config);
        audit.remove("checkpoint_key");
        audit["also"] = value("journald");
    });
    let inner = agent.command(["agent"]);
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
                  mount --bind \"$1\" /run/systemd/journal && shift && exec \"$@\"";
    command.args(["--mount", "sh", "-ec", script, "sh"]);
    command.arg(dir.path());
    command.arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
    command.current_dir(agent.dir());
    agent.launch_as(command);
    agent.await_ready().unwrap();
    let target = format!("/v1/objects/{bucket}/k");
    let put = agent.http("PUT", &target, &[], b"x");
    let id = put.header("strongroom-request-id").unwrap();
    let mut room = vec![0; 64 << 10];
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let len = journal.recv(&mut room).expect("no record came");
        let text = String::from_utf8_lossy(&room[..len]).into_owned();
        assert!(
            text.starts_with("SYSLOG_IDENTIFIER=strongroom-audit\n"),
            "{text}"
        );
        if text.contains(id) {
            seen.push(text);
        }
    }
    assert!(seen[0].contains("\"phase\":\"begin\"") && seen[1].contains("\"result\":\"ok\""));
    // Nobody reads any longer: its queue fills up, and then it is gone.
    for gone in [false, true] {
        if gone {
            fs::remove_file(dir.path().join("socket")).unwrap();
        }
        for _ in 0..20 {
            assert_eq!(agent.http("HEAD", &target, &[], b"").status, 200);
        }
    }
    assert!(agent.log().contains("audit.also cannot take a record"));
    agent.stop();
    sound(&agent.state_dir().join("audit"));
}
