//! The main job, end to end: programs hand bytes to the agent by the command
//! line and by HTTP, the agent stores them encrypted, and gives them back.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use strongroom::api::{Inspection, KeyInfo, ListPage, Receipt, Status};
use support::*;

/// The frame length these agents are configured with, in bytes: the smallest,
/// so that small objects have many frames.
const F: u64 = 4096;

/// Every way in which a body can end, and several parts.
const SIZES: [u64; 8] = [0, 1, F - 1, F, F + 1, 2 * F, 3 * F + 17, 40 << 20];

/// A token, a bucket and an agent.
struct Rig {
    weed: &'static Weed,
    bucket: String,
    agent: Agent,
    /// The token's files; they must outlive the agent.
    _hsm: Hsm,
    dir: tempfile::TempDir,
}

impl Rig {
    #[track_caller]
    fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    #[track_caller]
    fn with(name: &str, change: impl FnOnce(&mut DocumentMut)) -> Self {
        let weed = Weed::shared();
        let hsm = Hsm::new();
        Self {
            weed,
            bucket: weed.bucket(name),
            agent: Agent::start(&hsm, weed, |config| {
                config["message"]["frame_length"] = value(i64::try_from(F).unwrap());
                change(config);
            }),
            _hsm: hsm,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    fn target(&self, key: &str) -> String {
        format!("/v1/objects/{}/{key}", self.bucket)
    }

    #[track_caller]
    fn put(&self, key: &str, headers: &[(&str, &str)], body: &[u8]) -> Receipt {
        let reply = self.agent.http("PUT", &self.target(key), headers, body);
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.parse()
    }

    #[track_caller]
    fn get(&self, key: &str) -> Vec<u8> {
        let reply = self.agent.http("GET", &self.target(key), &[], b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.complete);
        reply.body
    }

    #[track_caller]
    fn inspect(&self, key: &str) -> Inspection {
        let target = format!("{}?inspect", self.target(key));
        let reply = self.agent.http("GET", &target, &[], b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.parse()
    }

    /// Asserts that the receipt tells the truth about what is stored.
    #[track_caller]
    fn check_receipt(&self, receipt: &Receipt, key: &str, seed: u64, size: u64) {
        assert_eq!((&receipt.bucket, receipt.key.as_str()), (&self.bucket, key));
        assert_eq!(receipt.plaintext_size, size);
        assert_eq!(receipt.wrapping_key, hsm::KEY);
        assert_eq!(receipt.message_id.len(), 64);
        let stored = self.weed.raw_get(&self.bucket, key).unwrap();
        assert_eq!(receipt.stored_size, stored.len() as u64);
        assert_eq!(stored[..3], [0x02, 0x04, 0x78]);
        let id: String = stored[3..35].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(receipt.message_id, id);
        // 16 bytes of the pattern do not turn up by chance.
        let plain = pattern(seed, size.min(16));
        assert!(plain.len() < 16 || !stored.windows(16).any(|window| window == plain));
    }
}

#[test]
fn files_go_there_and_back() {
    let rig = Rig::new("files");
    for (seed, size) in (1..).zip(SIZES) {
        let (plain, back) = (rig.path("plain"), rig.path("back"));
        write_pattern(&plain, seed, size);
        let (key, url) = (format!("files/{size}"), rig.url(&format!("files/{size}")));
        let put = rig
            .agent
            .cli(["put", plain.to_str().unwrap(), &url, "--json"]);
        let receipt: Receipt = serde_json::from_slice(&put.ok().stdout).unwrap();
        rig.check_receipt(&receipt, &key, seed, size);

        rig.agent.cli(["get", &url, back.to_str().unwrap()]).ok();
        data::assert_file(&back, seed, size);
        let run = rig.agent.cli(["get", &url, "-"]).ok();
        assert_eq!(
            data::sha256(&run.stdout[..]),
            data::sha256(Pattern::new(seed, size))
        );
    }
    assert!(rig.weed.list_uploads(&rig.bucket).is_empty());
}

#[test]
fn sized_and_chunked_bodies_go_there_and_back() {
    let rig = Rig::new("bodies");
    for (seed, size) in (1..).zip(SIZES) {
        for chunked in [false, true] {
            let key = format!("{size}/{chunked}");
            let mut source = Pattern::new(seed, size);
            let body = if chunked {
                Body::Chunked(&mut source)
            } else {
                Body::Sized(size, &mut source)
            };
            let reply = rig.agent.request("PUT", &rig.target(&key), &[], body);
            assert_eq!(reply.status, 201, "{}", reply.text());
            let receipt: Receipt = reply.parse();
            rig.check_receipt(&receipt, &key, seed, size);

            let mut sink = Compare::with(Pattern::new(seed, size));
            let target = rig.target(&key);
            let reply = rig.agent.stream("GET", &target, &[], Body::None, &mut sink);
            assert_eq!(reply.status, 200);
            assert_eq!(reply.content_length(), Some(size));
            assert!(reply.complete);
            sink.finish();
            let id = reply.header("strongroom-message-id");
            assert_eq!(id, Some(receipt.message_id.as_str()));
            assert_eq!(reply.header("strongroom-wrapping-key"), Some(hsm::KEY));
            assert!(reply.header("strongroom-request-id").is_some());
        }
    }
    assert!(rig.weed.list_uploads(&rig.bucket).is_empty());
}

#[test]
fn pipes_of_unknown_length_are_stored_whole() {
    let rig = Rig::new("pipes");
    let size = (9 << 20) + 5;
    let url = rig.url("stdin");
    rig.agent
        .cli_reading(["put", "-", &url], &mut Pattern::new(1, size))
        .ok();

    let fifo = rig.path("fifo");
    run(std::process::Command::new("mkfifo").arg(&fifo), b"").ok();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = std::fs::File::options().write(true).open(&fifo).unwrap();
            std::io::copy(&mut Pattern::new(1, size), &mut writer).unwrap();
        });
        let url = rig.url("fifo");
        rig.agent.cli(["put", fifo.to_str().unwrap(), &url]).ok();
    });

    let plain = rig.path("plain");
    write_pattern(&plain, 1, size);
    let script = format!(
        "strongroom put <(cat {}) {}",
        plain.display(),
        rig.url("substitution")
    );
    rig.agent.bash(&script).ok();

    for key in ["stdin", "fifo", "substitution"] {
        let back = rig.path("back");
        let url = rig.url(key);
        rig.agent.cli(["get", &url, back.to_str().unwrap()]).ok();
        data::assert_file(&back, 1, size);
    }
}

#[test]
fn the_output_of_a_command_is_stored_only_if_it_succeeds() {
    let rig = Rig::new("commands");
    let url = rig.url("good");
    let good = [
        "put",
        &url,
        "--from-command",
        "--",
        "sh",
        "-c",
        "echo one; echo two",
    ];
    rig.agent.cli(good).ok();
    assert_eq!(rig.get("good"), b"one\ntwo\n");

    // The bytes before the failure are more than a part.
    let url = rig.url("bad");
    let script = "head -c 20000000 /dev/zero; exit 3";
    rig.agent
        .cli(["put", &url, "--from-command", "--", "sh", "-c", script])
        .fails(1, &["3", "hint: "]);
    assert_eq!(rig.weed.list(&rig.bucket, ""), ["good"]);
    // The agent aborts once it notices that the client is gone.
    let gone = || rig.weed.list_uploads(&rig.bucket).is_empty().then_some(());
    process::eventually(Duration::from_secs(5), gone).expect("an upload is left");
}

#[test]
fn ranges_are_cut_from_the_plaintext() {
    let rig = Rig::new("ranges");
    let size = 3 * F + 17;
    rig.put("k", &[], &pattern(1, size));
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=4095-4096", F - 1, F + 1),
        ("bytes=4096-8191", F, 2 * F),
        ("bytes=100-", 100, size),
        ("bytes=-5", size - 5, size),
        ("bytes=-999999", 0, size),
        ("bytes=12304-999999", size - 1, size),
    ] {
        let reply = rig
            .agent
            .http("GET", &rig.target("k"), &[("Range", range)], b"");
        assert_eq!(reply.status, 206, "{range}: {}", reply.text());
        let mut sink = Compare::with(Pattern::range(1, start, end));
        sink.write_all(&reply.body).unwrap();
        sink.finish();
        let content_range = format!("bytes {start}-{}/{size}", end - 1);
        assert_eq!(reply.header("content-range"), Some(content_range.as_str()));
        assert_eq!(reply.content_length(), Some(end - start));
    }
    for range in ["bytes=12305-", "bytes=99999-100000"] {
        let reply = rig
            .agent
            .http("GET", &rig.target("k"), &[("Range", range)], b"");
        reply.fails("range", &[]);
    }
    let url = rig.url("k");
    let run = rig
        .agent
        .cli(["get", &url, "-", "--range", "4090-4100"])
        .ok();
    let mut sink = Compare::with(Pattern::range(1, 4090, 4101));
    sink.write_all(&run.stdout).unwrap();
    sink.finish();
}

#[test]
fn head_answers_like_get_without_a_body() {
    let rig = Rig::new("head");
    rig.put("k", &[("Content-Type", "text/x-test")], &pattern(1, 5000));
    let head = rig.agent.http("HEAD", &rig.target("k"), &[], b"");
    let get = rig.agent.http("GET", &rig.target("k"), &[], b"");
    assert_eq!((head.status, get.status), (200, 200));
    assert!(head.body.is_empty());
    for name in [
        "content-length",
        "content-type",
        "etag",
        "strongroom-message-id",
    ] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    assert_eq!(head.content_length(), Some(5000));
    assert_eq!(head.header("content-type"), Some("text/x-test"));
    assert_eq!(
        rig.agent.http("HEAD", &rig.target("no"), &[], b"").status,
        404
    );
}

#[test]
fn what_is_deleted_is_gone() {
    let rig = Rig::new("delete");
    rig.put("a", &[], b"a");
    rig.put("b", &[], b"b");
    assert_eq!(
        rig.agent.http("DELETE", &rig.target("a"), &[], b"").status,
        204
    );
    let url = rig.url("b");
    rig.agent.cli(["rm", &url]).ok();
    assert!(rig.weed.list(&rig.bucket, "").is_empty());
    let reply = rig.agent.http("GET", &rig.target("a"), &[], b"");
    reply.fails("no-such-object", &[]);
    rig.agent
        .cli(["get", &url, rig.path("back").to_str().unwrap()])
        .fails(66, &["no such object", "hint: "]);
    assert!(!rig.path("back").exists());
}

#[test]
fn listings_come_in_pages_with_plaintext_sizes() {
    let rig = Rig::new("list");
    for key in ["a/1", "a/2", "b/1", "top"] {
        rig.put(key, &[], &pattern(1, 5000));
    }
    let list = |query: &str| -> ListPage {
        let target = format!("/v1/objects/{}{query}", rig.bucket);
        let reply = rig.agent.http("GET", &target, &[], b"");
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.parse()
    };
    let keys = |page: &ListPage| {
        page.objects
            .iter()
            .map(|o| o.key.clone())
            .collect::<Vec<_>>()
    };
    let all = list("");
    assert_eq!(keys(&all), ["a/1", "a/2", "b/1", "top"]);
    assert!(all.objects.iter().all(|o| o.plaintext_size == Some(5000)));
    assert!(all.objects.iter().all(|o| o.stored_size > 5000));
    assert_eq!(keys(&list("?prefix=a/")), ["a/1", "a/2"]);
    let tops = list("?delimiter=/");
    assert_eq!(keys(&tops), ["top"]);
    assert_eq!(tops.prefixes, ["a/", "b/"]);

    let text = rig.agent.cli(["ls", &rig.url("a/")]).ok().text();
    assert!(
        text.contains("a/1") || text.lines().any(|l| l.ends_with(" 1")),
        "{text}"
    );
    assert!(text.contains("5000") && !text.contains('~'), "{text}");
    assert!(!text.contains("top"));
}

#[test]
fn inspect_answers_the_six_questions() {
    let rig = Rig::new("inspect");
    let receipt = rig.put(
        "k",
        &[("Strongroom-Context", "department=records")],
        &pattern(1, 5000),
    );
    let seen = rig.inspect("k");
    assert_eq!((seen.format_version, seen.suite.as_str()), (2, "0x0478"));
    assert_eq!(seen.message_id, receipt.message_id);
    assert_eq!(u64::from(seen.frame_length), F);
    assert_eq!(seen.plaintext_size, Some(5000));
    assert_eq!(seen.catalogue, "current");
    for (key, value) in [
        ("strongroom:bucket", rig.bucket.as_str()),
        ("strongroom:key", "k"),
        ("department", "records"),
    ] {
        assert!(
            seen.context.contains(&(key.to_owned(), value.to_owned())),
            "{key}"
        );
    }
    assert_eq!(seen.encrypted_data_keys.len(), 1);
    assert_eq!(seen.encrypted_data_keys[0].name, hsm::KEY);
    assert!(seen.encrypted_data_keys[0].at_hand);
    assert_eq!(seen.questions.len(), 6);
    assert!(seen.questions.iter().all(|q| !q.answer.is_empty()));

    let text = rig.agent.cli(["inspect", &rig.url("k")]).ok().text();
    for answer in &seen.questions {
        let first = answer.answer.split_whitespace().next().unwrap();
        assert!(text.contains(first), "{first:?} is not in:\n{text}");
    }
    assert!(text.contains(hsm::KEY) && text.contains(hsm::TOKEN));
}

#[test]
fn the_agent_tells_its_state() {
    let rig = Rig::new("state");
    assert_eq!(rig.agent.http("GET", "/v1/health", &[], b"").status, 200);
    assert_eq!(rig.agent.http("GET", "/v1/ready", &[], b"").status, 200);
    let status: Status = rig.agent.http("GET", "/v1/status", &[], b"").parse();
    assert_eq!(status.health, "ready");
    assert_eq!(status.supervisor_pid, rig.agent.pid());
    assert_eq!(status.endpoint, rig.weed.store.url);
    assert_eq!(status.tokens.len(), 1);
    assert_eq!(status.tokens[0].health, "ready");
    assert!(status.tokens[0].soft, "both are soft tokens");
    let workers = rig.agent.workers();
    assert_eq!(workers.len(), 1);
    assert_eq!(status.tokens[0].worker_pid, Some(workers[0].pid));
    assert_eq!(rig.agent.server().parent, rig.agent.pid());

    let keys: Vec<KeyInfo> = rig.agent.http("GET", "/v1/keys", &[], b"").parse();
    assert_eq!(keys.len(), 1);
    assert_eq!(
        (keys[0].name.as_str(), keys[0].usage.as_str()),
        (hsm::KEY, "active")
    );
    assert!(keys[0].ready);

    let text = rig.agent.cli(["status"]).ok().text();
    assert!(
        text.contains("ready") && text.contains(hsm::TOKEN),
        "{text}"
    );
    let text = rig.agent.cli(["key", "list"]).ok().text();
    assert!(text.contains(hsm::KEY), "{text}");
    rig.agent.cli(["status", "--json"]).ok().json();
}

#[test]
fn nothing_is_overwritten_on_request() {
    let rig = Rig::new("conditional");
    rig.put("k", &[("If-None-Match", "*")], b"first");
    let headers = [("If-None-Match", "*")];
    let reply = rig.agent.http("PUT", &rig.target("k"), &headers, b"second");
    reply.fails("already-exists", &[]);
    // More than a part: the condition holds at the end as well.
    let mut large = Pattern::new(1, 20 << 20);
    let reply = rig
        .agent
        .request("PUT", &rig.target("k"), &headers, Body::Chunked(&mut large));
    reply.fails("already-exists", &[]);
    let url = rig.url("k");
    rig.agent
        .cli_in(["put", "-", &url, "--no-clobber"], b"third")
        .fails(73, &["already exists"]);
    assert_eq!(rig.get("k"), b"first");
    assert!(rig.weed.list_uploads(&rig.bucket).is_empty());

    rig.put("k", &[], b"fourth");
    assert_eq!(rig.get("k"), b"fourth");
}

#[test]
fn context_content_type_tags_and_class_reach_s3() {
    let rig = Rig::new("options");
    let url = rig.url("k");
    let options = [
        "put",
        "-",
        &url,
        "--context",
        "a=1",
        "--context",
        "b=x=y",
        "--content-type",
        "text/x-test",
        "--tag",
        "project=vault",
        "--storage-class",
        "STANDARD_IA",
    ];
    rig.agent.cli_in(options, b"data").ok();
    let head = rig.weed.raw_head(&rig.bucket, "k");
    assert_eq!(head.content_type(), Some("text/x-test"));
    assert_eq!(
        head.storage_class().map(|c| c.as_str().to_owned()),
        Some("STANDARD_IA".into())
    );
    let tags = rig.weed.client.get_object_tagging().bucket(&rig.bucket);
    let tags = rig.weed.wait(tags.key("k").send()).unwrap();
    assert_eq!(tags.tag_set()[0].key(), "project");
    let context = rig.inspect("k").context;
    assert!(context.contains(&("a".into(), "1".into())));
    assert!(context.contains(&("b".into(), "x=y".into())));
    assert_eq!(rig.get("k"), b"data");
}

#[test]
fn rule_05_reserved_context_pairs_are_refused() {
    let rig = Rig::new("reserved");
    for pair in [
        "strongroom:key=other",
        "strongroom:new=1",
        "aws-crypto-public-key=x",
    ] {
        let headers = [("Strongroom-Context", pair)];
        let reply = rig.agent.http("PUT", &rig.target("k"), &headers, b"data");
        reply.fails("malformed", &[pair.split('=').next().unwrap()]);
    }
    assert!(rig.weed.list(&rig.bucket, "").is_empty());
}

#[test]
fn the_frame_length_is_configurable() {
    for frame in [4096, 65_536, 16 << 20] {
        let rig = Rig::with("frames", |config| {
            config["message"]["frame_length"] = value(frame);
            config["s3"]["part_size"] = value("5 MiB");
        });
        let size = (6 << 20) + 7;
        let mut source = Pattern::new(1, size);
        let target = rig.target("k");
        let reply = rig
            .agent
            .request("PUT", &target, &[], Body::Sized(size, &mut source));
        assert_eq!(reply.status, 201, "{}", reply.text());
        let seen = rig.inspect("k");
        assert_eq!(i64::from(seen.frame_length), frame);
        assert_eq!(seen.plaintext_size, Some(size));
        let mut sink = Compare::with(Pattern::new(1, size));
        rig.agent.stream("GET", &target, &[], Body::None, &mut sink);
        sink.finish();
    }
}

#[test]
fn copies_and_moves_are_encrypted_anew() {
    let rig = Rig::new("copies");
    let first = rig.put("a", &[("Content-Type", "text/x-test")], &pattern(1, 5000));
    let (a, b, c) = (rig.url("a"), rig.url("b"), rig.url("c"));
    rig.agent.cli(["cp", &a, &b]).ok();
    rig.agent.cli(["mv", &a, &c]).ok();
    assert_eq!(rig.weed.list(&rig.bucket, ""), ["b", "c"]);
    for key in ["b", "c"] {
        assert_eq!(rig.get(key), pattern(1, 5000));
        let seen = rig.inspect(key);
        assert_ne!(seen.message_id, first.message_id);
        assert!(
            seen.context
                .contains(&("strongroom:key".into(), key.into()))
        );
        let head = rig.weed.raw_head(&rig.bucket, key);
        assert_eq!(head.content_type(), Some("text/x-test"));
    }
}

#[test]
fn keys_are_decoded_once() {
    let rig = Rig::new("keys");
    for (key, target) in [
        ("with space/ü.txt", "with%20space/%C3%BC.txt"),
        ("db/2026.dump", "db%2F2026.dump"),
        ("a+b", "a+b"),
        ("100%25", "100%2525"),
    ] {
        let url = rig.url(key);
        rig.agent.cli_in(["put", "-", &url], key.as_bytes()).ok();
        assert_eq!(rig.get(target), key.as_bytes());
        assert!(
            rig.weed.list(&rig.bucket, "").contains(&key.to_owned()),
            "{key}"
        );
    }
}

#[test]
fn a_stopped_agent_leaves_no_process_and_starts_again() {
    let mut rig = Rig::new("restart");
    rig.put("k", &[], b"data");
    rig.agent.restart();
    assert_eq!(rig.get("k"), b"data");
    assert_eq!(rig.inspect("k").catalogue, "current");
    rig.agent.stop();
    let url = rig.url("k");
    rig.agent
        .cli(["get", &url, "-"])
        .fails(75, &["agent", "hint: "]);
}
