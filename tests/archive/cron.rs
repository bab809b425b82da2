//! As cron runs it: no terminal, no environment, no home. Success says
//! nothing; each failure is one line with a hint, and a code.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use strongroom::manifest::Kind;

use crate::support::process::eventually;
use crate::support::{Agent, Hsm, Run, Weed, pattern, run, strongroom, temp_dir};
use crate::{Archive, is_skipped};

/// The command with an empty environment.
fn bare(agent: &Agent, words: &[&str]) -> Command {
    let mut command = Command::new(strongroom().get_program());
    command
        .env_clear()
        .args(words)
        .arg("--socket")
        .arg(agent.socket());
    command
}

#[track_caller]
fn one_line(run: Run, code: i32, words: &[&str]) {
    let run = run.fails(code, words);
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{}", run.stderr);
    assert!(
        lines[0].starts_with("strongroom: ") && lines[1].starts_with("hint: "),
        "{}",
        run.stderr
    );
    assert_eq!(run.text(), "");
}

#[test]
fn success_is_silent_and_each_failure_is_one_line() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::start());
    let mut agent = Agent::start(&hsm, &weed, |_| {});
    let archive = Archive::new(&agent, weed.bucket("cron"));
    let dir = temp_dir();
    fs::write(dir.path().join("a"), b"a").unwrap();
    let (url, path) = (archive.url(), dir.path().to_str().unwrap().to_owned());
    let words = ["archive", path.as_str(), url.as_str()];
    let cron = |agent: &Agent, more: &[&str]| run(&mut bare(agent, &[&words, more].concat()), b"");
    for _ in 0..2 {
        let quiet = cron(&agent, &[]).ok();
        assert_eq!((quiet.text(), quiet.stderr), (String::new(), String::new()));
    }

    let report = tempfile::NamedTempFile::new().unwrap();
    let quiet = cron(&agent, &["--report", report.path().to_str().unwrap()]).ok();
    assert_eq!(quiet.text(), "");
    let text = fs::read_to_string(report.path()).unwrap();
    assert!(
        text.contains("nothing new") && text.contains("problems    none"),
        "{text}"
    );

    // One thing that cannot be read: the rest is archived.
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        fs::write(dir.path().join("secret"), b"x").unwrap();
        fs::set_permissions(dir.path().join("secret"), fs::Permissions::from_mode(0o000)).unwrap();
        one_line(
            cron(&agent, &[]),
            1,
            &["cannot archive", "secret: permission denied"],
        );
        fs::remove_file(dir.path().join("secret")).unwrap();
    }
    let words = ["archive", "/nonexistent", url.as_str()];
    one_line(
        run(&mut bare(&agent, &words), b""),
        66,
        &["cannot archive /nonexistent"],
    );
    let words = ["archive", path.as_str(), "s3://no-such-bucket-here/x/"];
    one_line(
        run(&mut bare(&agent, &words), b""),
        66,
        &["no-such-bucket-here"],
    );

    // The store is away, then the agent.
    fs::write(dir.path().join("new"), b"new").unwrap();
    drop(weed);
    one_line(cron(&agent, &[]), 75, &["cannot"]);
    agent.stop();
    one_line(cron(&agent, &[]), 75, &["cannot reach the agent"]);
}

#[test]
fn a_second_run_stays_out() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let archive = Archive::new(&agent, weed.bucket("overlap"));
    let dir = temp_dir();
    fs::write(dir.path().join("a"), pattern(1, 4 << 20)).unwrap();
    let (url, lock) = (archive.url(), temp_dir());
    let lock = lock.path().join("lock");
    let words = [
        "archive",
        dir.path().to_str().unwrap(),
        &url,
        "--lock",
        lock.to_str().unwrap(),
    ];
    // Slow enough to be met: a minute.
    let mut first = bare(&agent, &[&words[..], &["--bwlimit", "64KiB/s"]].concat())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let met = eventually(Duration::from_secs(20), || is_held(&lock).then_some(()));
    assert!(met.is_some());
    run(
        &mut bare(&agent, &[&words[..], &["--dry-run"]].concat()),
        b"",
    )
    .ok();
    let kept_out = ["another run archives to", "/host/", lock.to_str().unwrap()];
    one_line(run(&mut bare(&agent, &words), b""), 75, &kept_out);
    // Whoever is killed lets go.
    first.kill().unwrap();
    first.wait().unwrap();
    run(&mut bare(&agent, &words), b"").ok();
}

fn is_held(path: &Path) -> bool {
    let Ok(file) = fs::File::open(path) else {
        return false;
    };
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
}

#[test]
fn retention_is_read_back() {
    if is_skipped() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let agent = Agent::start(&hsm, weed, |_| {});
    let archive = Archive::new(&agent, weed.locked_bucket("retain"));
    let dir = temp_dir();
    fs::write(dir.path().join("a"), b"a").unwrap();
    fs::write(dir.path().join("large"), pattern(1, 100_000)).unwrap();
    archive.summary(dir.path(), &["--retain", "7y", "--bundle"]);
    let year = 365 * 24 * 3600;
    for key in weed.list(&archive.bucket, "") {
        let url = format!("s3://{}/{key}", archive.bucket);
        let seen = agent.cli(["inspect", &url, "--json"]).ok().json();
        assert_eq!(seen["retention_mode"], "GOVERNANCE", "{key}: {seen}");
        let until: jiff::Timestamp = seen["retain_until"].as_str().unwrap().parse().unwrap();
        let left = until.as_second() - jiff::Timestamp::now().as_second();
        assert!(
            left > 7 * year - 86_400 && left < 7 * year + 3 * 86_400,
            "{key}: {left} s"
        );
    }
    let entry = archive.entry(b"a");
    assert!(matches!(entry.kind, Kind::File(content) if content.at.version_id.is_some()));

    // A bucket that retains nothing.
    let plain = Archive::new(&agent, weed.bucket("plain"));
    let run = plain.run(dir.path(), &["--retain", "7y"]);
    assert_ne!(run.code, Some(0), "{}", run.stderr);
}
