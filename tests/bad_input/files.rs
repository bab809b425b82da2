//! Sources that cannot be read, or change, or end early; targets that cannot
//! be written; ranges that make no sense.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::support::null_store::{NullStore, Op};
use super::support::process::{self, eventually, signal, wait};
use super::support::*;
use super::{Rig, entries, unprivileged};

#[test]
fn a_source_that_cannot_be_read_is_told_before_anything_is_sent() {
    let rig = Rig::new();
    let (url, before) = (rig.url("k"), rig.null.requests().len());
    let dir = rig.path("");
    let dir = dir.to_str().unwrap().trim_end_matches('/');
    let missing = rig.path("missing").display().to_string();
    for command in ["put", "cp"] {
        let run = rig.agent.cli([command, dir, &url]);
        run.fails(
            1,
            &["cannot read ", dir, "it is a directory", "hint: ", "tar -c"],
        );
        let run = rig.agent.cli([command, &missing, &url]);
        run.fails(66, &["cannot read ", &missing, "no such file"]);
    }
    let run = rig.agent.cli(["mv", &missing, &url]);
    run.fails(66, &["cannot read ", &missing]);
    let secret = rig.path("secret");
    std::fs::write(&secret, b"not for everybody").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o000)).unwrap();
    let bin = temp_dir();
    std::fs::set_permissions(rig.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let put = rig.agent.command(["put", secret.to_str().unwrap(), &url]);
    let refused = process::run(unprivileged(&put, bin.path()).current_dir("/"), b"");
    refused.fails(
        1,
        &[
            "cannot read ",
            secret.to_str().unwrap(),
            "permission denied",
        ],
    );
    let run = rig
        .agent
        .cli(["put", &url, "--from-command", "--", "no-such-command"]);
    run.fails(
        66,
        &["cannot start the command no-such-command", "no such file"],
    );
    let run = rig.agent.cli(["put", &url, "--from-command"]);
    run.fails(2, &["no command is given", "hint: "]);
    rig.nothing_sent_since(before);
}

#[test]
fn a_command_that_fails_after_100_mb_stores_nothing() {
    let rig = Rig::before(NullStore::start_with(1 << 20, true));
    let url = rig.url("dump");
    for (script, words) in [
        (
            "head -c 100000000 /dev/zero; exit 3",
            ["the command sh failed: ", "exit status: 3"],
        ),
        (
            "head -c 100000000 /dev/zero; kill -9 $$",
            ["the command sh failed: ", "signal: 9"],
        ),
    ] {
        let parts = rig.null.count(Op::Part);
        let run = rig
            .agent
            .cli(["put", &url, "--from-command", "--", "sh", "-c", script]);
        let run = run.fails(1, &words);
        assert!(
            run.stderr.contains("hint: nothing was stored"),
            "{}",
            run.stderr
        );
        assert!(run.stdout.is_empty());
        // It was on its way: what came of it was taken back.
        assert!(rig.null.count(Op::Part) > parts + 5);
        rig.nothing_left();
    }
    assert_eq!(rig.null.count(Op::Abort), 2);
    // Without any output, and before the first part.
    for script in ["exit 9", "echo short; exit 9"] {
        let run = rig
            .agent
            .cli(["put", &url, "--from-command", "--", "sh", "-c", script]);
        run.fails(1, &["exit status: 9", "nothing was stored"]);
    }
    rig.nothing_left();
    rig.still_works();
}

/// A process's descriptors of a file.
fn open(child: &Child, path: &Path) -> Vec<PathBuf> {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", child.id()));
    let fds = fds.into_iter().flatten().flatten().map(|fd| fd.path());
    fds.filter(|fd| std::fs::read_link(fd).is_ok_and(|file| file == path))
        .collect()
}

/// Whether a process waits for something that is not there at once.
fn sleeps(child: &Child) -> bool {
    let stat = format!("/proc/{}/stat", child.id());
    (0..4).all(|_| {
        std::thread::sleep(Duration::from_millis(50));
        // The state follows the name, which is in parentheses (proc(5)).
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('S'))
    })
}

/// How far a process has read a file.
fn offset(child: &Child, path: &Path) -> u64 {
    let open = open(child, path);
    let Some(open) = open.first() else { return 0 };
    let info = open.display().to_string().replace("/fd/", "/fdinfo/");
    let text = std::fs::read_to_string(info).unwrap_or_default();
    let position = text.lines().find_map(|line| line.strip_prefix("pos:"));
    position
        .and_then(|p| p.trim().parse().ok())
        .unwrap_or_default()
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_stored() {
    type Change = fn(&Path);
    const SIZE: u64 = 32 << 20;
    let rig = Rig::new();
    let server = rig.agent.server().pid;
    let changes: [(&str, Change); 4] = [
        ("shrinks", |path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(SIZE - 1000).unwrap();
        }),
        ("grows", |path| {
            use std::io::Write as _;
            let mut file = std::fs::File::options().append(true).open(path).unwrap();
            file.write_all(b"more").unwrap();
        }),
        ("is emptied", |path| {
            drop(std::fs::File::create(path).unwrap())
        }),
        ("is rewritten", |path| {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(b"other", 0).unwrap();
        }),
    ];
    let ways = |(how, change)| [(how, change, true), (how, change, false)];
    // Of a queued one the bytes are sent, else its descriptor.
    for (how, change, queued) in changes.into_iter().flat_map(ways) {
        let path = rig.path("file");
        write_pattern(&path, 1, SIZE);
        // The agent stands still, so the client stops in the middle.
        signal(server, Signal::STOP);
        let mut child = rig
            .agent
            .command(["put", path.to_str().unwrap(), &rig.url("k")])
            .args(queued.then_some("--queue"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let begun = eventually(Duration::from_secs(20), || {
            let begun = match queued {
                true => offset(&child, &path) > 0,
                // It has passed the file, and waits for the answer.
                false => !open(&child, &path).is_empty() && sleeps(&child),
            };
            begun.then_some(())
        });
        let read = offset(&child, &path);
        change(&path);
        signal(server, Signal::CONT);
        let status = wait(&mut child, Duration::from_secs(60));
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(
            begun.is_some() && read < SIZE,
            "{how}: read {read} bytes before it changed"
        );
        if how == "is rewritten" && !queued {
            // The last case. The agent had not looked at it yet, and stores
            // what it then finds.
            assert_eq!(status.unwrap().code(), Some(0), "{how}: {stderr}");
            assert!(rig.read("k") == std::fs::read(&path).unwrap());
            let gone = rig.agent.http("DELETE", &rig.target("k"), &[], b"");
            assert_eq!(gone.status, 204);
            continue;
        }
        assert_eq!(status.unwrap().code(), Some(1), "{how}: {stderr}");
        for word in [
            "cannot store ",
            path.to_str().unwrap(),
            "it changed while it was read",
            "hint: nothing was stored",
        ] {
            assert!(stderr.contains(word), "{how}: {stderr}");
        }
        rig.nothing_left();
    }
    rig.still_works();
}

#[test]
fn a_pipe_that_ends_early_or_late_stores_nothing() {
    let rig = Rig::new();
    let url = rig.url("k");
    let part = 9 << 20;
    for (announced, given, word) in [
        (100, 50, "it ended after 50 bytes"),
        (100, 0, "it ended after 0 bytes"),
        (100, 150, "it goes on after the announced end"),
        (0, 1, "it goes on after the announced end"),
        (2 * part, part, "it ended after 9437184 bytes"),
        (part, 2 * part, "it goes on after the announced end"),
    ] {
        let size = announced.to_string();
        let args = ["put", "-", &url, "--size", &size];
        let run = rig.agent.cli_reading(args, &mut Pattern::new(1, given));
        run.fails(
            1,
            &[
                "standard input has not the size given",
                word,
                "hint: nothing was stored",
            ],
        );
    }
    let script = "head -c 1000 /dev/zero";
    let run = rig.agent.cli([
        "put",
        &url,
        "--size",
        "2000",
        "--from-command",
        "sh",
        "-c",
        script,
    ]);
    run.fails(
        1,
        &["the command sh has not the size given: it ended after 1000 bytes"],
    );
    let file = rig.path("file");
    std::fs::write(&file, b"ten bytes!").unwrap();
    let run = rig
        .agent
        .cli(["put", file.to_str().unwrap(), &url, "--size", "9"]);
    run.fails(
        1,
        &[
            "has 10 bytes, not what --size says",
            "hint: leave --size out",
        ],
    );
    rig.nothing_left();
    rig.agent
        .cli_reading(
            ["put", "-", &url, "--size", "100"],
            &mut Pattern::new(1, 100),
        )
        .ok();
    assert_eq!(rig.read("k"), pattern(1, 100));
}

#[test]
fn a_target_that_cannot_be_written_leaves_nothing() {
    let rig = Rig::new();
    rig.put("k", b"new content");
    let url = rig.url("k");
    let before = rig.null.requests().len();
    let (dir, file, below) = (rig.path("dir"), rig.path("file"), rig.path("nowhere/file"));
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(&file, b"old content").unwrap();
    let get = |to: &Path, more: &[&str]| {
        let to = to.display().to_string();
        rig.agent.cli([&["get", &url, &to], more].concat())
    };
    let shown = format!("{}/", dir.display());
    get(&dir, &[]).fails(
        1,
        &[
            "cannot write ",
            "it is a directory",
            "hint: end it with a slash",
            &shown,
        ],
    );
    get(&file, &["--no-clobber"]).fails(73, &["file already exists", "hint: nothing was written"]);
    get(&below, &[]).fails(
        66,
        &["there is no directory ", "nowhere", "hint: make it first"],
    );
    get(&rig.path("file/x"), &[]).fails(1, &["cannot write ", "not a directory"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"old content");

    // A directory that is not ours to write to, and a file in one that is.
    std::fs::set_permissions(rig.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o555)).unwrap();
    let bin = temp_dir();
    let closed = dir.join("out").display().to_string();
    let command = rig.agent.command(["get", &url, &closed]);
    let refused = process::run(unprivileged(&command, bin.path()).current_dir("/"), b"");
    refused.fails(
        1,
        &[
            "cannot write ",
            &closed,
            "permission denied",
            "hint: ",
            "must be writable",
        ],
    );
    assert_eq!(entries(&dir), [""; 0]);
    let open = rig.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    let kept = open.join("kept");
    std::fs::write(&kept, b"read-only").unwrap();
    std::fs::set_permissions(&kept, PermissionsExt::from_mode(0o444)).unwrap();
    let command = rig.agent.command(["get", &url, kept.to_str().unwrap()]);
    let refused = process::run(unprivileged(&command, bin.path()).current_dir("/"), b"");
    refused.fails(1, &["cannot write ", "permission denied"]);
    assert_eq!(std::fs::read(&kept).unwrap(), b"read-only");
    assert_eq!(entries(&open), ["kept"]);
    // All of this was known before the agent was troubled.
    rig.nothing_sent_since(before);

    // What can be written is.
    get(&file, &[]).ok();
    assert_eq!(std::fs::read(&file).unwrap(), b"new content");
    get(Path::new(&shown), &[]).fails(
        if rustix::process::geteuid().is_root() {
            0
        } else {
            1
        },
        &[],
    );
    get(&rig.path("fresh"), &["--no-clobber"]).ok();
    assert_eq!(entries(rig.dir.path()), ["dir", "file", "fresh", "open"]);
}

#[test]
fn a_disk_that_fills_up_leaves_nothing() {
    let rig = Rig::new();
    rig.put("large", &pattern(1, 12 << 20));
    let unshare = if rustix::process::geteuid().is_root() {
        "unshare -m"
    } else {
        "unshare -rm"
    };
    let works = Command::new("sh")
        .args(["-c", &format!("{unshare} true")])
        .status();
    if !works.is_ok_and(|status| status.success()) {
        println!("skipped: no mount namespaces for this user");
        return;
    }
    let mount = rig.path("small");
    std::fs::create_dir(&mount).unwrap();
    // Three times the room that there is; an older file must survive.
    let script = format!(
        "{unshare} bash -c 'mount -t tmpfs -o size=4m none \"$0\"; cd \"$0\"; echo old >out; \
         strongroom get {} out; code=$?; ls -A; cat out; exit $code' {}",
        rig.url("large"),
        mount.display()
    );
    let run = rig.agent.bash(&script);
    let run = run.fails(
        1,
        &[
            "cannot write ",
            "no space left",
            "hint: nothing was left behind",
        ],
    );
    assert_eq!(run.text(), "out\nold\n");
    rig.still_works();
}

#[test]
fn ranges_that_make_no_sense_are_refused() {
    let rig = Rig::new();
    rig.put("k", b"ten bytes!");
    rig.put("empty", b"");
    let (url, out) = (rig.url("k"), rig.path("out").display().to_string());
    let before = rig.null.requests().len();
    for (range, word) in [
        ("5-3", "the range ends before it begins"),
        ("-0", "the last 0 bytes"),
        ("abc", "write 0-99"),
        ("", "write 0-99"),
        ("-", "write 0-99"),
        ("7", "write 0-99"),
        ("1-2,4-5", "write 0-99"),
        ("+1-2", "write 0-99"),
        ("0x1-2", "write 0-99"),
        ("99999999999999999999-", "write 0-99"),
    ] {
        let args = ["get", &url, &out, &format!("--range={range}")];
        rig.agent.cli(args).fails(2, &[word]);
    }
    for range in [
        "bytes=5-3",
        "bytes=abc",
        "bytes=-",
        "bytes=",
        "bytes=7",
        "bytes=a-b",
        "bytes=+1-2",
    ] {
        let reply = rig
            .agent
            .http("GET", &rig.target("k"), &[("Range", range)], b"");
        reply.fails("malformed", &["Range is", range]);
    }
    rig.nothing_sent_since(before);
    for range in ["10-", "10-20", "99999-"] {
        let run = rig.agent.cli(["get", &url, &out, "--range", range]);
        run.fails(
            1,
            &["the object has 10 bytes", "hint: ask for a range inside"],
        );
    }
    let run = rig
        .agent
        .cli(["get", &rig.url("empty"), &out, "--range", "0-"]);
    run.fails(1, &["the object has 0 bytes"]);
    assert_eq!(entries(rig.dir.path()), [""; 0]);
    for range in [
        "bytes=10-",
        "bytes=10-20",
        "bytes=-0",
        "bytes=99999999999999999999-",
    ] {
        let reply = rig
            .agent
            .http("GET", &rig.target("k"), &[("Range", range)], b"");
        reply.fails("range", &["the object has 10 bytes"]);
    }
    // What reaches beyond the end is cut, as everywhere.
    let run = rig.agent.cli(["get", &url, "-", "--range", "4-1000"]).ok();
    assert_eq!(run.stdout, b"bytes!");
    let run = rig.agent.cli(["get", &url, "-", "--range", "-6"]).ok();
    assert_eq!(run.stdout, b"bytes!");
}
