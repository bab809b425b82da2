//! While the log cannot be written nothing is stored, read, listed or
//! deleted; when it can be again, the agent goes on by itself.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use strongroom::audit::{Kind, OK};

use crate::support::process::eventually;
use crate::support::{Agent, Hsm, Reply, Weed, temp_dir, value};
use crate::{await_ready, by_request, records, sound};

/// Operations tried for each kind of trouble: 250 and more together.
const TRIED: usize = 126;
/// The name of the thread that writes the log.
const WRITER: &str = "audit";
/// How long one trouble may last before the agent notices its end.
const PATIENCE: Duration = Duration::from_secs(60);

fn sh(script: &str) -> bool {
    let status = Command::new("sh").args(["-ec", script]).status();
    status.is_ok_and(|status| status.success())
}

/// A small file system that is mounted for as long as this lives.
struct Medium {
    dir: tempfile::TempDir,
}

impl Medium {
    /// In memory, of so many KiB. `None` where this user may mount nothing.
    fn tmpfs(kib: u32) -> Option<Self> {
        let dir = temp_dir();
        let at = dir.path().join("disk");
        fs::create_dir(&at).unwrap();
        sh(&format!(
            "mount -t tmpfs -o size={kib}k,mode=700 none {}",
            at.display()
        ))
        .then_some(Self { dir })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Takes all room that is left on it.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.path().join("ballast")).unwrap();
        while ballast.write_all(&[0x55; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        sh(&format!("umount {}", self.path().display()));
    }
}

fn agent(hsm: &Hsm, weed: &Weed, dir: &Path) -> Agent {
    let dir = dir.join("log").display().to_string();
    Agent::prepare(hsm, weed, |config| {
        let audit = config.entry("audit").or_insert_with(toml_edit::table);
        audit["dir"] = value(dir);
        audit["rotate"] = value("64 KiB");
    })
}

/// Tries one kind of operation after the other.
fn attempt(agent: &Agent, bucket: &str, n: usize) -> Reply {
    let new = format!("/v1/objects/{bucket}/new-{n}");
    let old = format!("/v1/objects/{bucket}/old");
    match n % 6 {
        0 => agent.http("PUT", &new, &[], &vec![7; n * 1000 + 1]),
        1 => agent.http("GET", &old, &[], b""),
        2 => agent.http("HEAD", &old, &[], b""),
        3 => agent.http("GET", &format!("{old}?inspect"), &[], b""),
        4 => agent.http("GET", &format!("/v1/objects/{bucket}?prefix=o"), &[], b""),
        _ => agent.http("DELETE", &format!("/v1/objects/{bucket}/doomed"), &[], b""),
    }
}

fn try_all(agent: &Agent, bucket: &str) -> Vec<Reply> {
    (0..TRIED).map(|n| attempt(agent, bucket, n)).collect()
}

/// None of them may have succeeded without its records; most were refused.
#[track_caller]
fn judge(what: &str, log: &Path, replies: &[Reply], at_least: usize) {
    let told = by_request(&records(log));
    let mut refused = 0;
    for reply in replies {
        let id = reply.header("strongroom-request-id").unwrap();
        if reply.status < 300 {
            let told = told
                .get(id)
                .unwrap_or_else(|| panic!("{what}: {id} is not on record"));
            assert!(
                told.begun && told.end.as_deref() == Some(OK),
                "{what}: {told:?}"
            );
        } else {
            assert_eq!(reply.status, 503, "{what}: {}", reply.text());
            refused += 1;
        }
    }
    assert!(refused >= at_least, "{what}: {refused} of {TRIED} refused");
    let tried = replies.len();
    crate::support::tell(&format!(
        "{what}: {tried} operations, {refused} refused, 0 done and not on record"
    ));
}

/// What the agent still does, and what it says.
#[track_caller]
fn still_tells(agent: &Agent) {
    assert_eq!(agent.http("GET", "/v1/health", &[], b"").status, 200);
    assert_eq!(agent.http("GET", "/v1/ready", &[], b"").status, 503);
    let status = agent.try_status().unwrap();
    assert_eq!(
        (status.health.as_str(), status.audit.state.as_str()),
        ("audit-failed", "failed")
    );
    assert!(status.audit.detail.is_some() && status.audit.since.is_some());
}

fn prepare(agent: &Agent, bucket: &str) {
    for key in ["old", "doomed"] {
        let target = format!("/v1/objects/{bucket}/{key}");
        assert_eq!(agent.http("PUT", &target, &[], b"of old").status, 201);
    }
}

/// What must be in the store after trouble: `old`, and what was acknowledged.
#[track_caller]
fn stored(weed: &Weed, bucket: &str, replies: &[Reply]) {
    let done = |n: usize| replies[n].status == 201;
    let puts: Vec<String> = (0..TRIED)
        .filter(|n| n % 6 == 0 && done(*n))
        .map(|n| format!("new-{n}"))
        .collect();
    let mut found = weed.list(bucket, "new-");
    // A put whose end could not be recorded is stored, and was not
    // acknowledged; it is on record as soon as it can be.
    found.retain(|key| !puts.contains(key));
    assert!(found.len() <= 1, "{found:?}");
    assert_eq!(weed.list(bucket, "old"), ["old"]);
}

#[test]
fn rule_28_with_a_full_disk_nothing_is_done_that_is_not_on_record() {
    let Some(medium) = Medium::tmpfs(1024) else {
        println!("skipped: this user may mount nothing");
        return;
    };
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("full");
    let mut agent = agent(&hsm, weed, &medium.path());
    agent.launch();
    agent.await_ready().unwrap();
    prepare(&agent, &bucket);
    medium.fill();
    let replies = try_all(&agent, &bucket);
    still_tells(&agent);
    let refused = agent.cli(["put", "/etc/hostname", &format!("s3://{bucket}/cli")]);
    refused.fails(75, &["the audit log cannot be written", "hint: "]);
    medium.free();
    await_ready(&agent);
    let log = medium.path().join("log");
    judge("a full disk", &log, &replies, TRIED - 20);
    stored(weed, &bucket, &replies);
    let target = format!("/v1/objects/{bucket}/after");
    assert_eq!(agent.http("PUT", &target, &[], b"x").status, 201);
    assert!(records(&log).iter().any(|r| r.event.event == Kind::Outage));
    agent.stop();
    assert!(sound(&log).open.is_empty());
}

/// The server's descriptor of the log, and the file behind it.
#[cfg(target_arch = "x86_64")]
fn open_segment(server: u32) -> Option<(u32, PathBuf)> {
    let fds = fs::read_dir(format!("/proc/{server}/fd")).ok()?;
    fds.filter_map(Result::ok).find_map(|entry| {
        let file = fs::read_link(entry.path()).ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        let name = file.file_name()?.to_str()?.to_owned();
        (name.starts_with("audit-") && name.ends_with(".jsonl")).then_some((fd, file))
    })
}

/// A write fails in the middle of the work, again and again: the descriptor
/// is exchanged, in the running server, for one that cannot be written.
#[cfg(target_arch = "x86_64")]
#[test]
fn rule_28_with_writes_that_fail_nothing_is_done_that_is_not_on_record() {
    use crate::support::inject::Held;

    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may look into the server");
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("errors");
    let dir = temp_dir();
    let mut agent = agent(&hsm, weed, dir.path());
    agent.launch();
    agent.await_ready().unwrap();
    prepare(&agent, &bucket);
    let server = agent.server().pid;
    let mut broken = 0;
    let replies: Vec<Reply> = (0..TRIED)
        .map(|n| {
            // A prime: each kind of operation meets it.
            if n % 5 == 0
                && let Some((fd, file)) = open_segment(server)
            {
                let held = Held::stop(server, server);
                match held.replace(fd, &file, libc::O_RDONLY) {
                    Ok(()) => broken += 1,
                    // The log had just gone on in another file.
                    Err(error) => assert_eq!(error, libc::EBADF),
                }
            }
            attempt(&agent, &bucket, n)
        })
        .collect();
    await_ready(&agent);
    let log = dir.path().join("log");
    assert!(broken > 10, "{broken}");
    judge("writes that fail", &log, &replies, broken / 2);
    let target = format!("/v1/objects/{bucket}/after");
    assert_eq!(agent.http("PUT", &target, &[], b"x").status, 201);
    assert!(records(&log).iter().any(|r| r.event.event == Kind::Outage));
    agent.stop();
    assert!(sound(&log).open.is_empty());
}

/// Writes go through, and then the medium says that it has lost them.
#[cfg(target_arch = "x86_64")]
#[test]
fn rule_28_with_flushes_that_fail_nothing_is_done_that_is_not_on_record() {
    use crate::support::inject::Flushes;

    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may look into the server");
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("flushes");
    let dir = temp_dir();
    let mut agent = agent(&hsm, weed, dir.path());
    agent.launch();
    agent.await_ready().unwrap();
    prepare(&agent, &bucket);
    let tasks = format!("/proc/{}/task", agent.server().pid);
    let writer = fs::read_dir(tasks).unwrap().find_map(|task| {
        let task = task.unwrap();
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        (name.trim_end() == WRITER).then(|| task.file_name().to_str()?.parse().ok())?
    });
    let flushes = Flushes::fail(writer.expect("the writer's thread"), 7);
    let replies = try_all(&agent, &bucket);
    let failed = flushes.stop(|| {
        agent.http("HEAD", &format!("/v1/objects/{bucket}/old"), &[], b"");
    });
    await_ready(&agent);
    let log = dir.path().join("log");
    assert!(failed > 10, "{failed} flushes failed");
    judge("flushes that fail", &log, &replies, 10);
    let target = format!("/v1/objects/{bucket}/after");
    assert_eq!(agent.http("PUT", &target, &[], b"x").status, 201);
    assert!(records(&log).iter().any(|r| r.event.event == Kind::Outage));
    agent.stop();
    assert!(sound(&log).open.is_empty());
}

#[test]
fn rule_28_on_a_read_only_medium_nothing_is_done() {
    let Some(medium) = Medium::tmpfs(1024) else {
        println!("skipped: this user may mount nothing");
        return;
    };
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("read-only");
    let mut agent = agent(&hsm, weed, &medium.path());
    agent.launch();
    agent.await_ready().unwrap();
    prepare(&agent, &bucket);
    agent.stop();
    let remount = |how: &str| {
        sh(&format!(
            "mount -o remount,{how} {}",
            medium.path().display()
        ))
    };
    assert!(remount("ro"));
    agent.launch();
    let up = eventually(PATIENCE, || {
        let status = agent.try_status()?;
        let served = status.tokens.iter().all(|t| t.health == "ready");
        (served && status.audit.state == "failed").then_some(())
    });
    assert!(up.is_some(), "{}", agent.log());
    let replies = try_all(&agent, &bucket);
    assert!(replies.iter().all(|reply| reply.status == 503));
    still_tells(&agent);
    assert!(remount("rw"));
    await_ready(&agent);
    let log = medium.path().join("log");
    judge("a read-only medium", &log, &replies, TRIED - 20);
    stored(weed, &bucket, &replies);
    agent.stop();
    sound(&log);
}
