//! Grants, tried through the real socket by real users: threads of this test
//! that have taken another uid, gid and supplementary groups, which the
//! kernel tells the agent. Only root can do that; as another user these tests
//! say that they were skipped.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::{BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Gid, Signal, Uid};
use strongroom::api::{GrantTest, Operation};
use support::hsm::KEY;
use support::null_store::{NullStore, Op};
use support::process::{eventually, run, signal, tree};
use support::{Agent, Body, Hsm, KeySpec, Reply, Weed, http, tell, value};
use toml_edit::DocumentMut;

/// The socket's group: no system has it.
const CLIENTS: u32 = 20_500;
/// A ring beside [`KEY`]'s.
const SECOND: &str = "second";

/// Somebody, as the kernel knows him.
#[derive(Clone, Debug)]
struct Who {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

fn who(uid: u32) -> Who {
    Who {
        uid,
        gid: uid,
        groups: vec![CLIENTS],
    }
}

impl Who {
    /// Does something as this user: a thread's credentials are its own.
    #[track_caller]
    fn does<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::thread::set_thread_groups(&groups).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| {
            std::panic::resume_unwind(panic);
        })
    }

    #[track_caller]
    fn http(
        &self,
        agent: &Agent,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        self.does(|| agent.http(method, target, headers, body))
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: only root can be somebody else");
    }
    root
}

/// A token with two rings.
fn two_rings() -> Hsm {
    let hsm = Hsm::new();
    hsm.create(&KeySpec::new(SECOND));
    hsm.configure_key(SECOND, SECOND, "");
    hsm
}

/// Puts grants into a configuration, in place of those that it has.
fn grant(config: &mut DocumentMut, grants: &str) {
    let parsed: DocumentMut = grants.parse().unwrap();
    config.remove("grant");
    if let Some(item) = parsed.get("grant") {
        config["grant"] = item.clone();
    }
}

/// An agent that others can connect to, with these grants.
fn start(hsm: &Hsm, store: impl Into<support::Store>, grants: &str) -> Agent {
    let agent = Agent::start(hsm, store, |config| {
        config["agent"]["socket_group"] = value(CLIENTS.to_string());
        grant(config, grants);
    });
    open_to_all(&agent);
    agent
}

fn open_to_all(agent: &Agent) {
    std::fs::set_permissions(agent.dir(), Permissions::from_mode(0o755)).unwrap();
}

#[track_caller]
fn regrant(agent: &Agent, grants: &str) {
    agent.reconfigure(|config| grant(config, grants));
    let reply = agent.http("POST", "/v1/reload", &[], b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// What one row of the table may: operations, below a prefix, with a ring.
type Rights = (&'static [Operation], &'static str, Option<&'static str>);

/// Everything that objects can be asked for by name.
const OBJECTS: &[Operation] = &[
    Operation::Put,
    Operation::Get,
    Operation::Head,
    Operation::Inspect,
    Operation::List,
    Operation::Delete,
    Operation::Rewrap,
    Operation::GetUnbound,
    Operation::GetUncommitted,
];

/// Somebody, and what the grants below are to mean for him.
fn table() -> Vec<(&'static str, Who, Vec<Rights>)> {
    use Operation::*;
    let of = |uid, gid, groups: &[u32]| Who {
        uid,
        gid,
        groups: [&[CLIENTS], groups].concat(),
    };
    vec![
        ("root", of(0, 0, &[]), vec![(&[Admin], "", None)]),
        (
            "owner of the bucket",
            of(20_000, 20_000, &[]),
            vec![(OBJECTS, "", None)],
        ),
        (
            "writer of db/ under one ring",
            of(20_001, 20_001, &[]),
            vec![(&[Put, Inspect, List], "db/", Some(KEY))],
        ),
        (
            "reader of one ring, and of all below db/",
            of(20_002, 20_002, &[]),
            vec![
                (&[Get, Head], "", Some(KEY)),
                (&[Get, Head, List], "db/", None),
            ],
        ),
        (
            "by primary group",
            of(20_003, 20_200, &[]),
            vec![(
                &[Get, Head, GetUnbound, GetUncommitted],
                "db/",
                Some(SECOND),
            )],
        ),
        (
            "by supplementary group",
            of(20_004, 20_004, &[1, 20_100, 2]),
            vec![(&[Delete, Rewrap], "db/", None)],
        ),
        (
            "by user and both groups",
            of(20_001, 20_200, &[20_100]),
            vec![
                (&[Put, Inspect, List], "db/", Some(KEY)),
                (
                    &[Get, Head, GetUnbound, GetUncommitted],
                    "db/",
                    Some(SECOND),
                ),
                (&[Delete, Rewrap], "db/", None),
            ],
        ),
        (
            "administrator",
            of(20_005, 20_005, &[]),
            vec![(&[Admin], "", None)],
        ),
        ("granted nothing", of(20_006, 20_006, &[]), vec![]),
        // Whoever the kernel cannot name, whatever his groups.
        ("nobody", of(65_534, 20_200, &[20_100]), vec![]),
    ]
}

fn grants_of_the_table(bucket: &str) -> String {
    let all: Vec<String> = OBJECTS
        .iter()
        .map(|o| format!("{:?}", o.as_str()))
        .collect();
    format!(
        "[[grant]]\nuid = 20000\noperations = [{}]\nbucket = {bucket:?}\n\
         [[grant]]\nuid = 20001\noperations = [\"put\", \"inspect\", \"list\"]\nbucket = {bucket:?}\nprefix = \"db/\"\nkey = {KEY:?}\n\
         [[grant]]\nuid = 20002\noperations = [\"get\", \"head\"]\nbucket = {bucket:?}\nkey = {KEY:?}\n\
         [[grant]]\nuid = 20002\noperations = [\"get\", \"head\", \"list\"]\nbucket = {bucket:?}\nprefix = \"db/\"\n\
         [[grant]]\ngid = 20200\noperations = [\"get\", \"head\", \"get-unbound\", \"get-uncommitted\"]\nbucket = {bucket:?}\nprefix = \"db/\"\nkey = {SECOND:?}\n\
         [[grant]]\ngid = 20100\noperations = [\"delete\", \"rewrap\"]\nbucket = {bucket:?}\nprefix = \"db/\"\n\
         [[grant]]\nuid = 20005\noperations = [\"admin\"]\n",
        all.join(", ")
    )
}

/// Tries one cell of the table; the status that it was answered with.
fn attempt(agent: &Agent, who: &Who, operation: Operation, object: &str, ring: &str) -> u16 {
    let (bucket, key) = object.split_once('/').unwrap();
    let prefix = &key[..=key.find('/').unwrap()];
    let path = format!("/v1/objects/{object}");
    let allow = |name| [(name, "true")];
    let request = |method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]| {
        who.http(agent, method, target, headers, body).status
    };
    match operation {
        Operation::Put => request(
            "PUT",
            &format!("{path}.new"),
            &[("Strongroom-Key", ring)],
            b"new",
        ),
        Operation::Get => request("GET", &path, &[], b""),
        Operation::Head => request("HEAD", &path, &[], b""),
        Operation::Inspect => request("GET", &format!("{path}?inspect"), &[], b""),
        Operation::List => request(
            "GET",
            &format!("/v1/objects/{bucket}?prefix={prefix}"),
            &[],
            b"",
        ),
        Operation::Delete => request("DELETE", &format!("{path}.gone"), &[], b""),
        Operation::Rewrap => request(
            "POST",
            &format!("/v1/rewrap?bucket={bucket}&prefix={prefix}&dry_run=true"),
            &[],
            b"",
        ),
        Operation::GetUnbound => request("GET", &path, &allow("Strongroom-Allow-Unbound"), b""),
        Operation::GetUncommitted => {
            request("GET", &path, &allow("Strongroom-Allow-Uncommitted"), b"")
        }
        Operation::Admin => request("GET", "/v1/status", &[], b""),
    }
}

#[test]
fn rule_25_everybody_may_exactly_what_he_was_granted() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (two_rings(), Weed::shared());
    let bucket = weed.bucket("grants-table");
    let agent = start(&hsm, weed, &grants_of_the_table(&bucket));
    let owner = who(20_000);
    for prefix in ["db/", "other/"] {
        for ring in [KEY, SECOND] {
            let target = format!("/v1/objects/{bucket}/{prefix}{ring}");
            let reply = owner.http(&agent, "PUT", &target, &[("Strongroom-Key", ring)], b"seed");
            assert_eq!(reply.status, 201, "{}", reply.text());
        }
    }
    let (mut cells, mut granted, mut wrong) = (0, 0, Vec::new());
    for (name, who, rights) in table() {
        for operation in Operation::ALL {
            for prefix in ["db/", "other/"] {
                for ring in [KEY, SECOND] {
                    let opens = !matches!(
                        operation,
                        Operation::Inspect
                            | Operation::List
                            | Operation::Delete
                            | Operation::Rewrap
                            | Operation::Admin
                    );
                    let expected = rights.iter().any(|(operations, below, only)| {
                        operations.contains(&operation)
                            && prefix.starts_with(below)
                            && (!opens || only.is_none_or(|only| only == ring))
                    });
                    let object = format!("{bucket}/{prefix}{ring}");
                    let status = attempt(&agent, &who, operation, &object, ring);
                    let success = match operation {
                        Operation::Put => 201,
                        Operation::Delete => 204,
                        _ => 200,
                    };
                    cells += 1;
                    granted += u32::from(expected);
                    if status != if expected { success } else { 403 } {
                        wrong.push(format!(
                            "{name}: {operation} {object}: {status}, expected {expected}"
                        ));
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {cells} cells:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(
        granted > 60 && cells - granted > 200,
        "{granted} of {cells}"
    );
    tell(&format!(
        "grants: {cells} of {cells} cells as granted ({granted} allowed)"
    ));

    // The explanation agrees with the decision.
    for (name, who, rights) in table() {
        for operation in Operation::ALL {
            for (prefix, ring) in [("db/", KEY), ("db/", SECOND), ("other/", KEY)] {
                let groups: Vec<String> = who.groups.iter().map(u32::to_string).collect();
                let mut query = format!(
                    "uid={}&gid={}&groups={}&operation={operation}",
                    who.uid,
                    who.gid,
                    groups.join(",")
                );
                if operation != Operation::Admin {
                    query += &format!("&bucket={bucket}&key={prefix}x&ring={ring}");
                }
                let expected = rights.iter().any(|(operations, below, only)| {
                    operations.contains(&operation)
                        && prefix.starts_with(below)
                        && (operation != Operation::Put || only.is_none_or(|only| only == ring))
                });
                let reply = agent.http("GET", &format!("/v1/grants/test?{query}"), &[], b"");
                let test: GrantTest = reply.parse();
                assert_eq!(test.allowed, expected, "{name}: {query}: {}", test.why);
            }
        }
    }
}

/// One request on a connection that stays.
fn exchange(stream: &mut BufReader<UnixStream>, method: &str, target: &str, body: &str) -> Reply {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: s\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.get_mut().write_all(head.as_bytes()).unwrap();
    let mut kept = Vec::new();
    let mut reply = http::read_reply(stream, method, &mut kept).unwrap();
    reply.body = kept;
    reply
}

#[test]
fn rule_25_grants_are_checked_for_each_request_not_for_each_connection() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("grants-reload");
    let get = format!("[[grant]]\nuid = 20001\noperations = [\"get\"]\nbucket = {bucket:?}\n");
    let agent = start(&hsm, weed, "");
    let target = format!("/v1/objects/{bucket}/k");
    assert_eq!(agent.http("PUT", &target, &[], b"x").status, 201);
    regrant(&agent, &get);
    let connect = || BufReader::new(agent.connect());
    let (mut reader, mut stranger) = (who(20_001).does(connect), who(20_007).does(connect));
    let status = |stream: &mut _| exchange(stream, "GET", &target, "").status;
    assert_eq!((status(&mut reader), status(&mut stranger)), (200, 403));
    // Taken away, given to somebody else, and back.
    regrant(&agent, &get.replace("20001", "20007"));
    assert_eq!((status(&mut reader), status(&mut stranger)), (403, 200));
    regrant(&agent, &get);
    assert_eq!((status(&mut reader), status(&mut stranger)), (200, 403));
    // A bad file leaves the old grants in force.
    agent.reconfigure(|config| {
        grant(
            config,
            &get.replace("uid = 20001", "user = \"no-such-user\""),
        );
    });
    agent
        .http("POST", "/v1/reload", &[], b"")
        .fails("misconfigured", &["there is no user \"no-such-user\""]);
    assert_eq!((status(&mut reader), status(&mut stranger)), (200, 403));
    // Without any, it is as if there never had been one.
    regrant(&agent, "");
    exchange(&mut reader, "GET", &target, "").fails("forbidden", &["no [[grant]] is configured"]);
    assert_eq!(agent.http("GET", &target, &[], b"").body, b"x");
}

#[test]
fn rule_25_whoever_a_user_namespace_cannot_name_is_nobody() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("grants-overflow");
    // Inside, only root has a name; everybody else appears as 65534.
    let grants = format!(
        "[[grant]]\nuid = 20001\noperations = [\"get\"]\nbucket = {bucket:?}\n\
         [[grant]]\ngid = 0\noperations = [\"get\"]\nbucket = {bucket:?}\n"
    );
    let agent = Agent::prepare(&hsm, weed, |config| grant(config, &grants));
    let inner = agent.command(["agent"]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]);
    command
        .arg(inner.get_program())
        .args(inner.get_args())
        .env_clear();
    command.envs(
        inner
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let log = std::fs::File::create(agent.dir().join("log")).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    let mut child = command.current_dir(agent.dir()).spawn().unwrap();
    let ready = eventually(Duration::from_secs(20), || {
        (agent.try_status()?.health == "ready").then_some(())
    });
    let all = tree(child.id());
    let outcome = std::panic::catch_unwind(|| {
        assert!(ready.is_some(), "{}", agent.log());
        open_to_all(&agent);
        let target = format!("/v1/objects/{bucket}/k");
        let by_group = |uid| Who {
            uid,
            gid: 0,
            groups: vec![0],
        };
        // The same groups, with a name and without.
        assert_eq!(
            by_group(0).http(&agent, "GET", &target, &[], b"").status,
            404
        );
        let reply = by_group(20_001).http(&agent, "GET", &target, &[], b"");
        reply.fails("forbidden", &["uid 65534 has no grant for get"]);
    });
    signal(child.id(), Signal::TERM);
    if support::process::wait(&mut child, Duration::from_secs(20)).is_none() {
        for process in all {
            signal(process.pid, Signal::KILL);
        }
        let _ = child.wait();
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// All of a reply that a client sees, with the key and what is random masked.
fn seen(reply: &Reply, key: &str) -> String {
    let mut text = format!("{}\n", reply.status);
    for (name, value) in &reply.headers {
        if !matches!(name.as_str(), "date" | "strongroom-request-id") {
            text += &format!("{name}: {value}\n");
        }
    }
    if let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(&reply.body) {
        if reply.status == 201 {
            // A receipt's values are of the new object: which fields it has.
            let fields: BTreeSet<&String> = json.as_object().unwrap().keys().collect();
            return format!("201 {fields:?}");
        }
        json.as_object_mut().unwrap().remove("request_id");
        text += &json.to_string();
    }
    text.replace(key, "KEY")
}

#[test]
fn rule_25_a_write_only_grant_learns_nothing_but_412() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let mut compared = 0;
    for bucket in [
        weed.bucket("grants-wo"),
        weed.versioned_bucket("grants-wo-v"),
    ] {
        let agent = start(
            &hsm,
            weed,
            &format!(
                "[[grant]]\nuid = 20000\noperations = [\"put\"]\nbucket = {bucket:?}\n\
                 [[grant]]\nuid = 20001\noperations = [\"put\"]\nbucket = {bucket:?}\nprefix = \"wo/\"\n"
            ),
        );
        let (owner, writer) = (who(20_000), who(20_001));
        // As long as each other, and neither in the other.
        let (there, missing) = ("isthere", "missing");
        for prefix in ["wo/", "other/"] {
            let target = format!("/v1/objects/{bucket}/{prefix}{there}");
            assert_eq!(owner.http(&agent, "PUT", &target, &[], b"x").status, 201);
        }
        let slot = format!(".strongroom/keyslots/{there}");
        weed.raw_put(&bucket, &slot, b"a slot");
        let held = |key: &str| format!("s3://{bucket}/wo/{key}");
        for prefix in ["wo/", "other/", ".strongroom/keyslots/"] {
            for (method, query, headers, body) in [
                ("GET", "", vec![], ""),
                ("GET", "", vec![("Range", "bytes=0-0")], ""),
                ("GET", "", vec![("Strongroom-Allow-Unbound", "true")], ""),
                ("GET", "?version_id=abc", vec![], ""),
                ("HEAD", "", vec![], ""),
                ("GET", "?inspect", vec![], ""),
                ("DELETE", "", vec![], ""),
                ("POST", "", vec![], "x"),
                ("PUT", "", vec![("If-Match", "*")], "x"),
                ("PUT", "?x=1", vec![], "x"),
                (
                    "PUT",
                    "",
                    vec![("Strongroom-Retain-Until", "yesterday")],
                    "x",
                ),
                ("PUT", "", vec![("Content-Type", "text/plain")], "x"),
            ] {
                let ask = |key: &str| {
                    let target = format!("/v1/objects/{bucket}/{prefix}{key}{query}");
                    seen(
                        &writer.http(&agent, method, &target, &headers, body.as_bytes()),
                        key,
                    )
                };
                let (one, other) = (ask(there), ask(missing));
                assert_eq!(one, other, "{method} {prefix}{query} {headers:?}");
                let stored = one.starts_with("201");
                let expected = method == "PUT"
                    && prefix == "wo/"
                    && headers.first().is_some_and(|h| h.0 == "Content-Type");
                assert_eq!(stored, expected, "{method} {prefix}{query}: {one}");
                compared += 1;
                if stored {
                    weed.raw_delete(&bucket, &format!("{prefix}{missing}"));
                }
            }
            // Nor by what a copy is said to be bound to, or a listing's prefix.
            let ask = |key: &str| {
                let target = format!("/v1/objects/{bucket}/{prefix}{there}");
                let held = held(key);
                let bound = [("Strongroom-Bound-To", held.as_str())];
                let listing = format!("/v1/objects/{bucket}?prefix={prefix}{key}");
                let bound = writer.http(&agent, "GET", &target, &bound, b"");
                let listed = writer.http(&agent, "GET", &listing, &[], b"");
                (seen(&bound, key) + &seen(&listed, key)).replace(there, "KEY")
            };
            assert_eq!(ask(there), ask(missing));
            compared += 2;
        }
        // What it may learn, and no more.
        let once = [("If-None-Match", "*")];
        let put = |key: &str| {
            let target = format!("/v1/objects/{bucket}/wo/{key}");
            writer.http(&agent, "PUT", &target, &once, b"x")
        };
        put(there).fails("already-exists", &[]);
        assert_eq!(put(missing).status, 201);
    }
    tell(&format!(
        "grants: {compared} requests of a write-only user answered alike, object there or not"
    ));
}

#[test]
fn others_failures_are_not_told() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("grants-failures");
    let grants = format!(
        "[[grant]]\ngid = {CLIENTS}\noperations = [\"head\"]\nbucket = {bucket:?}\nprefix = \"a/\"\n"
    );
    let agent = start(&hsm, weed, &grants);
    let (one, other) = (who(20_001), who(20_002));
    for (key, slug) in [
        ("a/secret-name", "no-such-object"),
        ("b/secret-name", "forbidden"),
    ] {
        let target = format!("/v1/objects/{bucket}/{key}");
        let reply = one.http(&agent, "HEAD", &target, &[], b"");
        let path = format!(
            "/v1/requests/{}",
            reply.header("strongroom-request-id").unwrap()
        );
        for who in [&one, &who(0)] {
            let told = who.http(&agent, "GET", &path, &[], b"");
            assert_eq!(told.status, 200);
            assert!(
                told.text().contains(slug) && told.text().contains(key),
                "{}",
                told.text()
            );
        }
        let reply = other.http(&agent, "GET", &path, &[], b"");
        reply.fails("not-found", &[]);
        assert!(!reply.text().contains("secret-name"));
    }
}

#[test]
fn conditions_hold_for_what_their_grant_allows() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.locked_bucket("grants-conditions");
    let put = |uid: u32, more: &str| {
        format!("[[grant]]\nuid = {uid}\noperations = [\"put\"]\nbucket = {bucket:?}\n{more}\n")
    };
    let agent = start(
        &hsm,
        weed,
        &[
            put(20_001, "require_storage_class = \"STANDARD_IA\""),
            put(20_002, "min_retention = \"1 h\""),
            put(20_003, "max_size = \"100 KiB\""),
            put(20_004, "no_overwrite = true"),
        ]
        .concat(),
    );
    let target = |key: &str| format!("/v1/objects/{bucket}/{key}");
    let send = |uid, key: &str, headers: &[(&str, &str)], body: &[u8]| {
        who(uid).http(&agent, "PUT", &target(key), headers, body)
    };
    let class = |name| [("Strongroom-Storage-Class", name)];
    send(20_001, "class", &[], b"x").fails("forbidden", &["STANDARD_IA", "--storage-class"]);
    send(20_001, "class", &class("GLACIER"), b"x").fails("forbidden", &["STANDARD_IA"]);
    assert_eq!(
        send(20_001, "class", &class("STANDARD_IA"), b"x").status,
        201
    );

    let retain = |seconds: i64| {
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        until.to_string()
    };
    let governed = |until| {
        [
            ("Strongroom-Retain-Until", until),
            ("Strongroom-Retention-Mode", "GOVERNANCE"),
        ]
    };
    send(20_002, "kept", &[], b"x").fails("forbidden", &["retained for 1h"]);
    let soon = retain(3500);
    send(20_002, "kept", &governed(&soon), b"x").fails("forbidden", &["retained for 1h"]);
    let later = retain(3700);
    let reply = send(20_002, "kept", &governed(&later), b"x");
    assert_eq!(reply.status, 201, "{}", reply.text());

    let most = 100 << 10;
    assert_eq!(send(20_003, "small", &[], &vec![7; most]).status, 201);
    send(20_003, "large", &[], &vec![7; most + 1]).fails("too-large", &["100.0 KiB"]);
    // Of a body that does not say its length, the first byte too many ends it.
    for (length, key) in [(most, "chunked"), (most + 1, "large"), (8 << 20, "large")] {
        let reply = who(20_003).does(|| {
            let bytes = vec![7; length];
            agent.request("PUT", &target(key), &[], Body::Chunked(&mut &bytes[..]))
        });
        match key {
            "chunked" => assert_eq!(reply.status, 201, "{}", reply.text()),
            _ => drop(reply.fails("too-large", &["100.0 KiB"])),
        }
    }
    assert_eq!(weed.list(&bucket, "large"), Vec::<String>::new());
    assert_eq!(weed.list_uploads(&bucket), []);

    assert_eq!(send(20_004, "once", &[], b"first").status, 201);
    send(20_004, "once", &[], b"second").fails("already-exists", &[]);
    assert_eq!(weed.list_versions(&bucket, "once").len(), 1);
}

#[test]
fn no_overwrite_holds_on_a_store_that_ignores_the_condition() {
    if !is_root() {
        return;
    }
    let (hsm, store) = (Hsm::new(), NullStore::start());
    store.ignores_if_none_match(true);
    let agent = start(
        &hsm,
        support::Store::at(store.endpoint()),
        "[[grant]]\nuid = 20001\noperations = [\"put\"]\nbucket = \"bucket\"\nno_overwrite = true\n",
    );
    let put = || who(20_001).http(&agent, "PUT", "/v1/objects/bucket/k", &[], b"x");
    assert_eq!(put().status, 201);
    put().fails("already-exists", &[]);
    assert_eq!(store.count(Op::Put), 1);
}

#[test]
fn rates_refuse_requests_and_slow_bytes_down() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("grants-rates");
    let grant = |uid: u32, rate: &str| {
        format!(
            "[[grant]]\nuid = {uid}\noperations = [\"put\", \"get\"]\nbucket = {bucket:?}\nrate = {rate}\n"
        )
    };
    let agent = start(
        &hsm,
        weed,
        &[
            grant(20_001, "{ requests = \"3/h\" }"),
            grant(20_002, "{ bytes = \"256 KiB/s\" }"),
        ]
        .concat(),
    );
    let target = format!("/v1/objects/{bucket}/k");
    for _ in 0..3 {
        let reply = who(20_001).http(&agent, "PUT", &target, &[], b"x");
        assert_eq!(reply.status, 201, "{}", reply.text());
    }
    let reply = who(20_001).http(&agent, "PUT", &target, &[], b"x");
    reply.fails("busy", &["3/h"]);
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((600..=1200).contains(&wait), "{wait}");

    // A second's worth passes at once; the rest of it at its rate.
    let body = vec![7; 640 << 10];
    let began = Instant::now();
    let reply = who(20_002).http(&agent, "PUT", &target, &[], &body);
    assert_eq!(reply.status, 201, "{}", reply.text());
    let put = began.elapsed();
    let began = Instant::now();
    let reply = who(20_002).http(&agent, "GET", &target, &[], b"");
    let get = began.elapsed();
    assert!(reply.complete && reply.body == body);
    // The put used up what was there for the get.
    assert!(
        put >= Duration::from_millis(1400) && get >= Duration::from_millis(1900),
        "{put:?} {get:?}"
    );
}

#[test]
fn the_command_line_explains_lists_and_refuses() {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("grants-cli");
    let grants = format!(
        "[[grant]]\nuser = \"root\"\noperations = [\"put\", \"list\"]\nbucket = {bucket:?}\nprefix = \"db/\"\nmax_size = \"1 GiB\"\n\
         [[grant]]\ngid = 20100\noperations = [\"get\"]\nbucket = {bucket:?}\n"
    );
    let mut agent = Agent::start(&hsm, weed, |config| grant(config, &grants));
    let (inside, outside) = (format!("s3://{bucket}/db/k"), format!("s3://{bucket}/k"));
    for running in [true, false] {
        if !running {
            agent.stop();
        }
        let test = |args: &[&str]| agent.cli([&["grants", "test"], args].concat());
        let told = test(&["--uid", "0", "put", &inside]).ok().text();
        assert!(told.starts_with("allowed: the grant of line "), "{told}");
        assert!(
            told.contains("max_size = 1.0 GiB") && told.contains("yes, and it decides"),
            "{told}"
        );
        assert!(told.contains("user \"root\" (0) may put, list"), "{told}");
        let told = test(&["--user", "root", "put", &outside])
            .fails(77, &[])
            .text();
        assert!(
            told.starts_with("denied: uid 0 has no grant for put on s3://"),
            "{told}"
        );
        assert!(
            told.contains("no: is for another prefix") && told.contains("no: is for somebody else"),
            "{told}"
        );
        test(&["--uid", "4711", "--gid", "20100", "get", &outside]).ok();
        test(&["--uid", "4711", "--group", "20100", "get", &outside]).ok();
        test(&["--uid", "4711", "get", &outside]).fails(77, &[]);
        test(&["--uid", "0", "admin"]).ok();
        test(&["--uid", "4711", "admin"]).fails(77, &[]);
        let json = test(&["--json", "--uid", "4711", "--gid", "20100", "get", &outside])
            .ok()
            .json();
        assert_eq!(
            (json["allowed"].as_bool(), json["grants"][1].get("miss")),
            (Some(true), None)
        );
        assert_eq!(json["line"], json["grants"][1]["line"]);
        let listed = agent.cli(["grants", "list"]).ok().text();
        assert_eq!(listed.lines().count(), 2, "{listed}");
        assert!(
            listed.contains(&format!("on s3://{bucket}/db/*, max_size = 1.0 GiB")),
            "{listed}"
        );
    }
    agent
        .cli(["grants", "test", "--uid", "0", "put"])
        .fails(2, &["where?"]);
    agent
        .cli(["grants", "test", "--uid", "0", "steal", &inside])
        .fails(2, &["there are: put, get"]);
    agent
        .cli(["grants", "test", "--user", "no-such-user", "put", &inside])
        .fails(66, &["there is no user"]);

    agent.launch();
    agent.await_ready().unwrap();
    if rustix::process::geteuid().is_root() {
        agent.cli_in(["put", "-", &inside], b"x").ok();
        let words = [
            "uid 0 has no grant for get on s3://",
            "hint: `strongroom grants test --uid 0 get s3://",
        ];
        agent.cli(["get", &inside, "-"]).fails(77, &words);
        let question = &agent
            .cli(["inspect", &inside])
            .fails(77, &["inspect"])
            .stderr;
        assert!(question.contains("grants test --uid 0 inspect"));
    }
    assert!(
        agent
            .cli(["status"])
            .ok()
            .text()
            .contains("grants    2 in force")
    );
    let doctor = agent.cli(["doctor"]).text();
    assert!(
        doctor.contains("ok    grants: 2; their users and groups exist"),
        "{doctor}"
    );
    agent.stop();

    // An unknown name is the configuration's fault.
    agent.reconfigure(|config| grant(config, &grants.replace("\"root\"", "\"rooot\"")));
    let words = ["there is no user \"rooot\"", "hint: did you mean `root`?"];
    run(&mut agent.command(["agent"]), b"").fails(78, &words);
    agent.cli(["grants", "list"]).fails(78, &words);
    assert!(agent.cli(["doctor"]).text().contains("there is no user"));
    agent.reconfigure(|config| grant(config, ""));
    agent.cli(["grants", "list"]).ok();
    assert!(
        agent
            .cli(["doctor"])
            .text()
            .contains("no grants configured")
    );
}

#[test]
fn a_verification_needs_what_its_level_does() {
    if !is_root() {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("verified");
    let agent = start(
        &hsm,
        weed,
        &format!(
            "[[grant]]\nuid = 20001\noperations = [\"put\", \"list\"]\nbucket = {bucket:?}\nprefix = \"a/\"\n\
             [[grant]]\nuid = 20002\noperations = [\"list\", \"head\", \"get\"]\nbucket = {bucket:?}\nprefix = \"a/\"\n\
             [[grant]]\nuid = 20003\noperations = [\"get\"]\nbucket = {bucket:?}\n"
        ),
    );
    let target = format!("/v1/objects/{bucket}/a/1");
    assert_eq!(
        who(20_001).http(&agent, "PUT", &target, &[], b"x").status,
        201
    );
    for (uid, check, prefix, status) in [
        (20_001, "list", "a/", 200),
        (20_001, "head", "a/", 403),
        (20_001, "read", "a/", 403),
        (20_001, "list", "", 403),
        (20_001, "recipient", "a/", 403),
        (20_002, "head", "a/b", 200),
        (20_002, "read", "a/", 200),
        (20_003, "read", "a/", 403),
        (20_004, "list", "a/", 403),
        (0, "read", "", 200),
    ] {
        let body =
            format!("{{\"check\": {check:?}, \"bucket\": {bucket:?}, \"prefix\": {prefix:?}}}");
        let reply = who(uid).http(&agent, "POST", "/v1/verify", &[], body.as_bytes());
        assert_eq!(
            reply.status,
            status,
            "{uid} {check} {prefix}: {}",
            reply.text()
        );
        if status == 200 {
            assert!(reply.text().contains("\"summary\""), "{}", reply.text());
        }
    }
}
