//! The ceremony: one key of three components on SoftHSM and on Kryoptic, and
//! everything that must stop it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use strongroom::api::KeyInfo;

use crate::support::hsm::TOKEN;
use crate::support::process::Run;
use crate::support::{Agent, DocumentMut, Hsm, TokenKind, Weed, run, strongroom, temp_dir, value};
use crate::{by_components, components, digits, in_memory};

/// The second token: of the other implementation.
const OTHER: &str = "other";
/// The key of the ceremony.
const SHARED: &str = "shared-2026";

/// A token of each implementation in one configuration. The first is the one
/// that this run is about.
struct Both {
    hsm: Hsm,
    dir: tempfile::TempDir,
    other: TokenKind,
    other_conf: PathBuf,
}

impl Both {
    fn new() -> Self {
        let (hsm, dir) = (Hsm::empty(), temp_dir());
        let other = match TokenKind::chosen() {
            TokenKind::SoftHsm => TokenKind::Kryoptic,
            TokenKind::Kryoptic => TokenKind::SoftHsm,
        };
        let other_conf = other.configure(dir.path());
        let text = format!(
            "{}\n[[token]]\nname = {OTHER:?}\nmodule = {:?}\ntoken_label = {OTHER:?}\npin_file = {:?}\nnetwork = false\n",
            hsm.config(),
            other.module().display().to_string(),
            hsm.pin_file().display().to_string(),
        );
        fs::write(hsm.config_path(), text).unwrap();
        let both = Self {
            hsm,
            dir,
            other,
            other_conf,
        };
        let mut init = both.command(&["token", "init", "--label", OTHER]);
        init.arg("--module").arg(other.module());
        init.arg("--so-pin-file").arg(both.hsm.so_pin_file());
        init.arg("--pin-file").arg(both.hsm.pin_file());
        run(&mut init, b"").ok();
        both
    }

    /// A command with both tokens and no agent.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.hsm.command();
        command
            .env(self.other.variable(), &self.other_conf)
            .env("STRONGROOM_CONFIG", self.hsm.config_path())
            .env("STRONGROOM_SOCKET", self.dir.path().join("no.sock"))
            .args(args);
        command
    }

    fn agent(&self, change: impl FnOnce(&mut DocumentMut)) -> Agent {
        let mut agent = Agent::prepare(&self.hsm, Weed::shared(), change);
        agent.set(self.other.variable(), self.other_conf.to_str().unwrap());
        agent.launch();
        agent
            .await_ready()
            .unwrap_or_else(|failed| panic!("not ready:\n{}", failed.log));
        agent
    }
}

/// Runs the offline step: a machine with neither token nor configuration.
fn combine(request: &Path, envelope: &Path, files: &[PathBuf], more: &[&str]) -> Run {
    let mut command = strongroom();
    command
        .env("STRONGROOM_CONFIG", "/nonexistent")
        .args(["key", "import", "combine", "--json", "--request"])
        .arg(request)
        .arg("--envelope")
        .arg(envelope);
    for (n, _) in files.iter().enumerate() {
        command
            .arg("--custodian")
            .arg(format!("Custodian {}", n + 1));
    }
    run(command.args(by_components(files)).args(more), b"")
}

fn text<'a>(json: &'a Value, field: &str) -> &'a str {
    json[field].as_str().unwrap()
}

/// One whole ceremony; `run` runs an online command.
#[track_caller]
fn ceremony(
    dir: &Path,
    token: &str,
    files: &[PathBuf],
    check: &str,
    online: impl Fn(&[&str]) -> Run,
) -> KeyInfo {
    let request = dir.join(format!("request-{token}"));
    let envelope = dir.join(format!("envelope-{token}"));
    let (request_at, envelope_at) = (request.to_str().unwrap(), envelope.to_str().unwrap());
    let begun = online(&[
        "key",
        "import",
        "begin",
        SHARED,
        "--token",
        token,
        "--request",
        request_at,
        "--json",
    ])
    .ok()
    .json();
    let print = text(&begun, "fingerprint");
    let sealed = combine(
        &request,
        &envelope,
        files,
        &["--fingerprint", print, "--check-value", check],
    )
    .ok()
    .json();
    assert_eq!(text(&sealed, "check_value"), check);
    let print = text(&sealed, "fingerprint");
    let info = online(&[
        "key",
        "import",
        "finish",
        envelope_at,
        "--fingerprint",
        print,
        "--json",
    ])
    .ok();
    serde_json::from_slice(&info.stdout).unwrap()
}

/// Whether any file below `dir` holds one of `needles`.
fn holds(dir: &Path, needles: &[Vec<u8>]) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = holds(&path, needles) {
                return Some(found);
            }
        } else if let Ok(bytes) = fs::read(&path)
            && needles
                .iter()
                .any(|needle| bytes.windows(needle.len()).any(|window| window == needle))
        {
            return Some(path);
        }
    }
    None
}

#[test]
fn rule_23_three_components_make_one_key_on_two_vendors_tokens() {
    let both = Both::new();
    let (memory, work) = (in_memory(), temp_dir());
    let (files, check) = components(memory.path(), 3);
    let bucket = Weed::shared().bucket("import");

    // On the first token without an agent, …
    let info = ceremony(work.path(), TOKEN, &files, &check, |args| {
        run(&mut both.command(args), b"")
    });
    assert_eq!(info.check_value.as_deref(), Some(&*check.to_lowercase()));
    let has = |name: &str| {
        let found = info.attributes.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.clone())
    };
    for (name, wanted) in [
        ("CKA_SENSITIVE", "true"),
        ("CKA_EXTRACTABLE", "false"),
        ("CKA_WRAP", "false"),
        ("CKA_UNWRAP", "false"),
        ("CKA_SIGN", "false"),
        ("CKA_DERIVE", "false"),
        ("CKA_MODIFIABLE", "false"),
        ("CKA_LOCAL", "false"),
        ("CKA_ALLOWED_MECHANISMS", "CKM_AES_GCM"),
        ("CKA_COPYABLE", "false"),
    ] {
        assert_eq!(has(name).as_deref(), Some(wanted), "{name}");
    }
    assert!(both.hsm.config().contains("imported = true"));

    // … on the second through one, which uses it at once.
    let agent = both.agent(|_| {});
    let put = |name: &str| {
        let path = format!("/v1/objects/{bucket}/{name}");
        let reply = agent.http("PUT", &path, &[], name.as_bytes());
        assert_eq!(reply.status, 201, "{}", reply.text());
    };
    put("by-the-first");
    let second = ceremony(work.path(), OTHER, &files, &check, |args| agent.cli(args));
    assert_eq!(second.check_value, info.check_value);
    let config = fs::read_to_string(agent.config_path()).unwrap();
    assert!(
        config.contains(&format!("token = [{TOKEN:?}, {OTHER:?}]")),
        "{config}"
    );
    let keys: Vec<KeyInfo> = agent.http("GET", "/v1/keys", &[], b"").parse();
    let key = keys.iter().find(|key| key.name == SHARED).unwrap();
    assert_eq!(key.tokens, [TOKEN, OTHER]);

    // Each opens what the other wrapped.
    let only = |token: &str| {
        agent.reconfigure(|config| {
            let keys = config["key"].as_array_of_tables_mut().unwrap();
            keys.get_mut(0).unwrap()["token"] = value(token);
        });
        agent.cli(["status"]).ok();
        assert_eq!(agent.http("POST", "/v1/reload", &[], b"").status, 200);
        let ready = crate::support::process::eventually(std::time::Duration::from_secs(20), || {
            (agent.http("GET", "/v1/ready", &[], b"").status == 200).then_some(())
        });
        assert!(ready.is_some(), "{}", agent.log());
    };
    only(OTHER);
    put("by-the-second");
    let read = |name: &str| {
        let path = format!("/v1/objects/{bucket}/{name}");
        let reply = agent.http("GET", &path, &[], b"");
        assert_eq!(reply.body, name.as_bytes(), "{}", reply.text());
    };
    read("by-the-first");
    only(TOKEN);
    read("by-the-second");

    // And the components alone open both.
    for name in ["by-the-first", "by-the-second"] {
        let object = work.path().join("object");
        fs::write(&object, Weed::shared().raw_get(&bucket, name).unwrap()).unwrap();
        let out = work.path().join("out");
        crate::recover(&object, &out, by_components(&files)).ok();
        assert_eq!(fs::read(&out).unwrap(), name.as_bytes());
    }

    // On record, and nowhere is a component.
    let mut needles = Vec::new();
    for file in &files {
        let grouped = digits(file);
        let plain = grouped.replace(' ', "");
        needles.push(data_encoding::HEXUPPER.decode(plain.as_bytes()).unwrap());
        needles.push(plain.to_lowercase().into_bytes());
        needles.push(plain.into_bytes());
        needles.push(grouped.into_bytes());
    }
    for dir in [agent.dir(), both.hsm.dir(), both.dir.path(), work.path()] {
        assert_eq!(holds(dir, &needles), None);
    }
    assert!(
        holds(memory.path(), &needles).is_some(),
        "the scan is not blind"
    );
    let imported = b"\"state\":\"imported\"".to_vec();
    assert!(holds(&agent.state_dir(), &[imported]).is_some());
    // Neither token keeps what carried the key.
    for token in [TOKEN, OTHER] {
        agent
            .cli(["key", "import", "cancel", SHARED, "--token", token])
            .fails(2, &["no import under the label"]);
    }
}

#[test]
fn rule_23_what_is_wrong_with_a_ceremony_stops_it() {
    let hsm = Hsm::empty();
    let (memory, other, work) = (in_memory(), in_memory(), temp_dir());
    let (files, check) = components(memory.path(), 3);
    let (others, other_check) = components(other.path(), 3);
    let online = |args: &[&str]| {
        let mut command = hsm.command();
        command
            .env("STRONGROOM_CONFIG", hsm.config_path())
            .env("STRONGROOM_SOCKET", work.path().join("no.sock"));
        run(command.args(args), b"")
    };
    let request = work.path().join("request");
    let begin = |name: &str, request: &Path| {
        online(&[
            "key",
            "import",
            "begin",
            name,
            "--token",
            TOKEN,
            "--request",
            request.to_str().unwrap(),
            "--json",
        ])
    };
    let begun = begin(SHARED, &request).ok().json();
    let print = text(&begun, "fingerprint").to_owned();
    begin(SHARED, &work.path().join("again")).fails(73, &["has begun", "cancel"]);

    // Offline: nothing is sealed.
    let envelope = work.path().join("envelope");
    let refused = |files: &[PathBuf], more: &[&str], words: &[&str]| {
        combine(&request, &envelope, files, more).fails(1, words);
        assert!(!envelope.exists());
    };
    let as_told = ["--fingerprint", &print, "--check-value", &check];
    let not_theirs = print.replace(|c: char| c.is_ascii_digit(), "0");
    refused(
        &files,
        &["--fingerprint", &not_theirs, "--check-value", &check],
        &["the fingerprint does not match"],
    );
    refused(
        &files,
        &["--fingerprint", &print[..9], "--check-value", &check],
        &["the fingerprint does not match"],
    );
    let mixed = [files[0].clone(), files[1].clone(), others[2].clone()];
    refused(&mixed, &as_told, &["a component is wrong"]);
    refused(&others, &as_told, &["a component is wrong", &other_check]);
    let twice = [files[0].clone(), files[1].clone(), files[1].clone()];
    refused(&twice, &as_told, &["components 2 and 3 are the same"]);
    let sheet = |name: &str, digits: &str, check: &str| {
        let path = memory.path().join(name);
        fs::write(
            &path,
            format!("component: {digits}\ncheck value: {check}\n"),
        )
        .unwrap();
        path
    };
    let zero = sheet("zero", &"0".repeat(64), "DC95C0");
    refused(
        &[files[0].clone(), zero],
        &as_told,
        &["component 2 is zero"],
    );
    let sum = xor(&digits(&files[0]), &digits(&files[1]));
    let sum_check = strongroom::components::Component::parse(&sum)
        .unwrap()
        .check_value();
    let sum = sheet("sum", &sum, &sum_check.to_string());
    let cancelling = [files[0].clone(), sum, files[1].clone()];
    refused(
        &cancelling,
        &as_told,
        &["components 1, 2, 3 cancel each other out"],
    );
    let mistyped = digits(&files[0]).replacen(|c: char| c != '0', "0", 1);
    let mistyped = sheet("mistyped", &mistyped, "000000");
    refused(
        &[mistyped, files[1].clone()],
        &as_told,
        &["not the one of that check value"],
    );

    // Sealed; altered on its way back.
    let sealed = combine(&request, &envelope, &files, &as_told).ok().json();
    let print = text(&sealed, "fingerprint").to_owned();
    let finish = |path: &Path, print: &str| {
        online(&[
            "key",
            "import",
            "finish",
            path.to_str().unwrap(),
            "--fingerprint",
            print,
        ])
    };
    let original = fs::read_to_string(&envelope).unwrap();
    let altered = work.path().join("altered");
    for (field, words) in [
        ("transport_key", &["does not unwrap the transport key"][..]),
        ("key", &["does not unwrap the key"]),
        ("proof", &["does not open its proof"]),
    ] {
        let mut json: Value = serde_json::from_str(&original).unwrap();
        let text = json["sealed"][field].as_str().unwrap().to_owned();
        let swapped = if text.starts_with('A') { "B" } else { "A" };
        json["sealed"][field] = format!("{swapped}{}", &text[1..]).into();
        let changed = serde_json::to_string_pretty(&json).unwrap();
        fs::write(&altered, &changed).unwrap();
        // People would notice …
        finish(&altered, &print).fails(1, &["the fingerprint does not match"]);
        // … and if they did not, the token does.
        let its = strongroom::transport::Fingerprint::of(changed.as_bytes()).to_string();
        finish(&altered, &its).fails(2, words);
    }
    // Somebody's own key, sealed for the token: only people can tell.
    let theirs = work.path().join("theirs");
    combine(
        &request,
        &theirs,
        &others,
        &[
            "--fingerprint",
            text(&begun, "fingerprint"),
            "--check-value",
            &other_check,
        ],
    )
    .ok();
    finish(&theirs, &print).fails(1, &["the fingerprint does not match"]);
    assert!(!hsm.config().contains(SHARED), "{}", hsm.config());

    // The right one is taken once.
    finish(&envelope, &print).ok();
    assert!(hsm.config().contains(SHARED));
    finish(&envelope, &print).fails(78, &["already"]);
    online(&["key", "import", "cancel", SHARED, "--token", TOKEN]).fails(2, &["no import"]);
    // Of an import that was given up nothing is left, and it can begin anew.
    begin("other", &work.path().join("one")).ok();
    online(&["key", "import", "cancel", "other", "--token", TOKEN]).ok();
    begin("other", &work.path().join("two")).ok();
    let stale = work.path().join("stale");
    let one = work.path().join("one");
    let one_print = strongroom::ceremony::Request::parse(&fs::read_to_string(&one).unwrap())
        .unwrap()
        .fingerprint()
        .unwrap()
        .to_string();
    let sealed = combine(
        &one,
        &stale,
        &files,
        &["--fingerprint", &one_print, "--check-value", &check],
    )
    .ok()
    .json();
    finish(&stale, text(&sealed, "fingerprint")).fails(2, &["sealed for another key pair"]);
}

fn xor(one: &str, two: &str) -> String {
    let bytes = |text: &str| {
        data_encoding::HEXUPPER
            .decode(text.replace(' ', "").as_bytes())
            .unwrap()
    };
    let sum: Vec<u8> = bytes(one)
        .iter()
        .zip(bytes(two))
        .map(|(a, b)| a ^ b)
        .collect();
    data_encoding::HEXUPPER.encode(&sum)
}
