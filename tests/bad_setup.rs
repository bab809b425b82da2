//! Set-ups that are wrong: the agent either does not start and says why, or
//! runs as `misconfigured` or `locked`, names fault and remedy to whoever
//! asks, and serves with what is in order.
//!
//! `doctor.rs` has what `strongroom doctor` says of the same faults, and
//! `processes.rs` that a wrong PIN costs one attempt.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use support::null_store::NullStore;
use support::process::{self, eventually};
use support::*;

/// A store that is not there: these agents never ask for it.
fn nowhere() -> Store {
    Store::at("http://127.0.0.1:1")
}

fn path(path: &Path) -> toml_edit::Item {
    value(path.display().to_string())
}

/// Asserts that an agent with this configuration does not start.
#[track_caller]
fn refused(hsm: &Hsm, code: i32, words: &[&str], change: impl FnOnce(&mut DocumentMut)) {
    let Err(failed) = Agent::try_start(hsm, nowhere(), change) else {
        panic!("it starts");
    };
    assert_eq!(failed.code, Some(code), "{}", failed.log);
    for word in words.iter().chain(&["hint: "]) {
        assert!(
            failed.log.contains(word),
            "{word:?} is not in:\n{}",
            failed.log
        );
    }
    assert!(
        !failed.log.contains(&hsm.pin()),
        "the PIN is in:\n{}",
        failed.log
    );
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let hsm = Hsm::new();
    let none = Agent::prepare(&hsm, nowhere(), |_| {});
    let run = none.cli(["agent", "--config", "/nonexistent/strongroom.toml"]);
    run.fails(
        78,
        &[
            "cannot read the configuration /nonexistent/strongroom.toml",
            "hint: name another file",
        ],
    );
    std::fs::write(none.config_path(), "[agent\nsocket = 1").unwrap();
    none.cli(["agent"])
        .fails(78, &["strongroom.toml: ", "line 1", "hint: "]);
    std::fs::write(none.config_path(), b"\xff\xfe").unwrap();
    none.cli(["agent"])
        .fails(78, &["cannot read the configuration", "UTF-8", "hint: "]);
    assert!(!none.socket().exists());

    refused(
        &hsm,
        78,
        &[
            "unknown field `part_sise`",
            "hint: did you mean `part_size`?",
        ],
        |c| {
            c["s3"]["part_sise"] = value("8 MiB");
        },
    );
    refused(
        &hsm,
        78,
        &["unknown field `tokens`", "hint: did you mean `token`?"],
        |c| {
            c["tokens"] = value(1);
        },
    );
    refused(
        &hsm,
        78,
        &["unknown field `pinfile`", "hint: did you mean `pin_file`?"],
        |c| {
            c["token"][0]["pinfile"] = value("/etc/pin");
        },
    );
    refused(
        &hsm,
        78,
        &[
            "max_requests = \"many\"",
            "invalid type: string",
            "docs/configuration.md",
        ],
        |c| {
            c["agent"]["max_requests"] = value("many");
        },
    );
    refused(&hsm, 78, &["invalid type: integer", "expected"], |c| {
        c["agent"]["socket"] = value(7);
    });
    refused(&hsm, 78, &["\"soon\" is not a duration"], |c| {
        c["agent"]["shutdown_grace"] = value("soon");
    });
    refused(
        &hsm,
        78,
        &["s3.part_size is 1.0 MiB; S3 takes parts from 5 MiB"],
        |c| {
            c["s3"]["part_size"] = value("1 MiB");
        },
    );
    refused(&hsm, 78, &["holds \"replica\"", "name two buckets"], |c| {
        let mut alias = toml_edit::Table::new();
        alias["bucket"] = value("replica");
        alias["holds"] = value("replica");
        let mut all = toml_edit::ArrayOfTables::new();
        all.push(alias);
        c["bucket_alias"] = toml_edit::Item::ArrayOfTables(all);
    });
    refused(
        &hsm,
        78,
        &[
            "plain http beyond this host",
            "hint: use https, or set s3.allow_http",
        ],
        |c| {
            c["s3"]["endpoint_url"] = value("http://192.0.2.1:9000");
        },
    );
    refused(
        &hsm,
        78,
        &["it must begin with https://", "hint: write the whole URL"],
        |c| {
            c["s3"]["endpoint_url"] = value("192.0.2.1:9000");
        },
    );
    refused(
        &hsm,
        78,
        &[
            "key \"archive\" names token \"other\", which is not configured",
            "configured tokens: primary",
        ],
        |c| {
            c["key"][0]["token"] = value("other");
        },
    );
    refused(
        &hsm,
        78,
        &["there is no group \"no-such-group\"", "groupadd"],
        |c| {
            c["agent"]["socket_group"] = value("no-such-group");
        },
    );
    refused(
        &hsm,
        78,
        &["socket_mode lets every local user connect"],
        |c| {
            c["agent"]["socket_mode"] = value("0666");
        },
    );
}

#[test]
fn a_module_or_pin_file_that_is_not_right_is_refused() {
    let hsm = Hsm::new();
    refused(
        &hsm,
        78,
        &[
            "token \"primary\": the PKCS#11 module /nonexistent/p11.so: No such file",
            "install the token's PKCS#11 library",
        ],
        |c| {
            c["token"][0]["module"] = value("/nonexistent/p11.so");
        },
    );
    refused(
        &hsm,
        78,
        &["the PKCS#11 module /usr: not a regular file"],
        |c| {
            c["token"][0]["module"] = value("/usr");
        },
    );
    refused(
        &hsm,
        78,
        &["module \"libp11.so\" is not an absolute path"],
        |c| {
            c["token"][0]["module"] = value("libp11.so");
        },
    );
    refused(
        &hsm,
        78,
        &["cannot read the PIN file /nonexistent/pin", "mode 0400"],
        |c| {
            c["token"][0]["pin_file"] = value("/nonexistent/pin");
        },
    );
    refused(
        &hsm,
        78,
        &["cannot read the PIN file /etc: not a regular file"],
        |c| {
            c["token"][0]["pin_file"] = value("/etc");
        },
    );
    refused(
        &hsm,
        78,
        &["no credential \"pin\"", "LoadCredential"],
        |c| {
            let token = c["token"]
                .as_array_of_tables_mut()
                .unwrap()
                .get_mut(0)
                .unwrap();
            token.remove("pin_file");
            token["pin_credential"] = value("pin");
        },
    );
    refused(
        &hsm,
        78,
        &[
            "the PIN file ",
            " is inside ",
            "which the server can read and write",
            "move it elsewhere",
        ],
        |c| {
            c["agent"]["state_dir"] = path(hsm.dir());
        },
    );
    for mode in [0o444, 0o440, 0o604, 0o420] {
        std::fs::set_permissions(hsm.pin_file(), PermissionsExt::from_mode(mode)).unwrap();
        let shown = format!("has mode {mode:04o}: other users can reach it");
        refused(&hsm, 78, &[&shown, "chmod 0400"], |_| {});
    }
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(hsm.pin_file(), PermissionsExt::from_mode(0o400)).unwrap();
        std::os::unix::fs::chown(hsm.pin_file(), Some(4711), None).unwrap();
        refused(
            &hsm,
            78,
            &["belongs to uid 4711, which is neither root nor the agent's user"],
            |_| {},
        );
    }
}

#[test]
fn a_place_that_cannot_be_used_is_refused() {
    let hsm = Hsm::new();
    let dir = temp_dir();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    refused(
        &hsm,
        1,
        &[
            "cannot create /proc/nowhere/state",
            "must be able to write agent.state_dir",
        ],
        |c| {
            c["agent"]["state_dir"] = value("/proc/nowhere/state");
        },
    );
    refused(&hsm, 1, &["cannot create ", "file: "], |c| {
        c["agent"]["state_dir"] = path(&file)
    });
    refused(
        &hsm,
        1,
        &[
            "cannot listen on ",
            "it exists and is not a socket",
            "move it away",
        ],
        |c| {
            c["agent"]["socket"] = path(&file);
        },
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    refused(
        &hsm,
        1,
        &[
            "cannot listen on /proc/nowhere/agent.sock",
            "permissions of its directory",
        ],
        |c| {
            c["agent"]["socket"] = value("/proc/nowhere/agent.sock");
        },
    );
    let long = dir.path().join("s".repeat(108));
    refused(
        &hsm,
        78,
        &[
            "agent.socket ",
            "longer than the 107 bytes that Unix sockets allow",
            "choose a shorter path",
        ],
        |c| {
            c["agent"]["socket"] = path(&long);
        },
    );
}

#[test]
fn a_state_directory_of_somebody_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    let hsm = Hsm::new();
    let agent = Agent::prepare(&hsm, nowhere(), |_| {});
    std::fs::create_dir(agent.state_dir()).unwrap();
    std::fs::set_permissions(agent.dir(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(hsm.dir(), PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(hsm.pin_file(), Some(4711), None).unwrap();
    let copy = agent.dir().join("strongroom");
    let command = agent.command(["agent"]);
    process::install(command.get_program(), &copy);
    let mut other = std::process::Command::new("setpriv");
    other
        .args(["--reuid=4711", "--regid=4711", "--clear-groups"])
        .arg(copy)
        .args(command.get_args())
        .env_clear()
        .envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))))
        .current_dir("/");
    let run = run(&mut other, b"");
    run.fails(
        1,
        &[
            "cannot lock ",
            "state/lock: Permission denied",
            "hint: the agent's user must be able to write agent.state_dir",
        ],
    );
}

#[test]
fn a_damaged_catalogue_is_refused_with_the_way_out() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    let mut agent = Agent::start(&hsm, Store::at(null.endpoint()), |_| {});
    agent.cli_in(["put", "-", "s3://bucket/k"], b"kept").ok();
    agent.stop();
    let catalog = agent.state_dir().join("catalog.sqlite");
    // All of it into the one file that is damaged below.
    rusqlite::Connection::open(&catalog)
        .unwrap()
        .pragma_update(None, "journal_mode", "DELETE")
        .unwrap();
    let good = std::fs::read(&catalog).unwrap();
    for damaged in [vec![b'x'; 20_000], good[..good.len() - 5000].to_vec(), {
        let mut bytes = good.clone();
        let middle = bytes.len() / 2;
        bytes[2000..middle].fill(0x5a);
        bytes
    }] {
        for log in ["catalog.sqlite-wal", "catalog.sqlite-shm"] {
            let _ = std::fs::remove_file(agent.state_dir().join(log));
        }
        std::fs::write(&catalog, &damaged).unwrap();
        let earlier = agent.log().len();
        agent.launch();
        let failed = agent.await_ready().unwrap_err();
        let log = &failed.log[earlier..];
        assert_eq!(failed.code, Some(1), "{log}");
        for word in [
            "the catalogue ",
            "catalog.sqlite is damaged",
            "strongroom catalog restore FILE",
            "strongroom catalog rebuild s3://BUCKET",
            "the server cannot start",
            "hint: ",
        ] {
            assert!(log.contains(word), "{word:?} is not in:\n{log}");
        }
        assert_eq!(std::fs::read(&catalog).unwrap(), damaged, "it was changed");
    }
    // The way out.
    std::fs::write(&catalog, &good).unwrap();
    agent.launch();
    agent.await_ready().unwrap();
    assert_eq!(
        agent.cli(["get", "s3://bucket/k", "-"]).ok().stdout,
        b"kept"
    );
    agent.stop();
    for file in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"] {
        let _ = std::fs::rename(agent.state_dir().join(file), agent.dir().join(file));
    }
    agent.launch();
    agent.await_ready().unwrap();
    assert_eq!(
        agent.cli(["get", "s3://bucket/k", "-"]).ok().stdout,
        b"kept"
    );
}

/// Starts an agent whose token or keys are wrong, and asserts that it runs,
/// says so wherever it is asked, and takes no upload.
#[track_caller]
fn unusable(hsm: &Hsm, health: &str, slug: &str, words: &[&str]) -> Agent {
    let mut agent = Agent::prepare(hsm, nowhere(), |_| {});
    agent.launch();
    let word = format!("{health:?}");
    let settled = eventually(Duration::from_secs(20), || {
        let run = agent.cli(["status", "--json"]);
        (run.code == Some(75) && run.text().contains(&word)).then_some(())
    });
    assert!(
        settled.is_some(),
        "not {health}: {}\n{}",
        agent.cli(["status"]).text(),
        agent.log()
    );
    let status = agent.cli(["status"]).fails(75, &[]);
    for word in words.iter().chain(&[health, "hint: "]) {
        assert!(
            status.text().contains(word),
            "{word:?} is not in:\n{}",
            status.text()
        );
    }
    agent.http("GET", "/v1/ready", &[], b"").fails(slug, words);
    assert_eq!(agent.http("GET", "/v1/health", &[], b"").status, 200);
    let put = agent.cli_in(["put", "-", "s3://bucket/k"], b"x");
    let put = put.fails(75, words);
    assert!(put.stderr.contains("hint: "), "{}", put.stderr);
    let target = "/v1/objects/bucket/k";
    let reply = agent.http("PUT", target, &[], b"x");
    reply.fails(slug, words);
    assert!(reply.header("retry-after").is_some());
    for text in [&status.text(), &put.stderr, &agent.log()] {
        assert!(!text.contains(&hsm.pin()), "the PIN is in:\n{text}");
    }
    agent
}

#[test]
fn a_wrong_pin_is_told_with_its_remedy() {
    let hsm = Hsm::new();
    hsm.write_pin(&hsm.pin_file(), "999999999999");
    let words = [
        "PIN",
        "correct the PIN file, then reload the agent (SIGHUP)",
    ];
    unusable(&hsm, "locked", "token-locked", &words);
}

#[test]
fn two_tokens_that_match_are_told_apart_by_serial() {
    let hsm = Hsm::new();
    hsm.add_token(hsm::TOKEN_LABEL);
    let words = [
        "2 tokens match label \"strongroom-test\": set serial",
        "the module offers \"strongroom-test\" (serial ",
    ];
    unusable(&hsm, "misconfigured", "misconfigured", &words);
    // The way out.
    let module = hsm::module().display().to_string();
    let list = run(
        hsm.command()
            .args(["token", "list", "--json", "--module", &module]),
        b"",
    )
    .ok();
    let serials: Vec<String> = list
        .text()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|token| token["label"] == hsm::TOKEN_LABEL)
        .map(|token| token["serial"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(serials.len(), 2, "{}", list.text());
    let ready = serials.iter().filter(|serial| {
        Agent::try_start(&hsm, nowhere(), |c| {
            c["token"][0]["serial"] = value(serial.as_str())
        })
        .is_ok()
    });
    assert_eq!(ready.count(), 1, "only one of them has the key");
}

#[test]
fn no_token_that_matches_is_told_with_what_there_is() {
    let hsm = Hsm::new();
    let config = hsm.config().replace("\"strongroom-test\"", "\"another\"");
    std::fs::write(hsm.config_path(), config).unwrap();
    let words = [
        "no token matches label \"another\"",
        "the module offers \"strongroom-test\" (serial ",
    ];
    unusable(&hsm, "misconfigured", "misconfigured", &words);
    let bare = Hsm::bare();
    bare.configure_key(hsm::KEY, hsm::KEY, "");
    let words = [
        "no token matches label \"strongroom-test\"",
        "offers no initialised token",
        "strongroom token init",
    ];
    unusable(&bare, "misconfigured", "misconfigured", &words);
}

#[test]
fn a_wrapping_key_that_could_leave_the_token_is_refused() {
    let hsm = Hsm::empty();
    hsm.create(&KeySpec::new(hsm::KEY).with("extractable", true));
    hsm.configure_key(hsm::KEY, hsm::KEY, "");
    let words = [
        "key archive: CKA_EXTRACTABLE is true; a wrapping key must never leave the token",
        "generate a new key with `strongroom key generate`",
    ];
    unusable(&hsm, "misconfigured", "misconfigured", &words);
}

#[test]
fn an_imported_key_must_be_called_so() {
    let hsm = Hsm::empty();
    hsm.create(&KeySpec::new(hsm::KEY).bytes(&[7; 32]));
    hsm.configure_key(hsm::KEY, hsm::KEY, "");
    let words = [
        "key archive: CKA_",
        " is false; it ",
        "if the key was imported on purpose, set imported = true",
    ];
    let mut agent = unusable(&hsm, "misconfigured", "misconfigured", &words);
    // The way out, without a restart.
    agent.reconfigure(|c| c["key"][0]["imported"] = value(true));
    agent.signal(rustix::process::Signal::HUP);
    agent.await_ready().unwrap();
}

#[test]
fn a_key_that_is_missing_or_there_twice_is_told() {
    let hsm = Hsm::empty();
    hsm.configure_key(hsm::KEY, hsm::KEY, "");
    let words = [
        "key archive: no key on the token is labelled \"archive\"",
        "generate it with `strongroom key generate archive`",
    ];
    unusable(&hsm, "misconfigured", "misconfigured", &words);
    hsm.create(&KeySpec::new(hsm::KEY));
    hsm.create(&KeySpec::new(hsm::KEY));
    let words = [
        "key archive: two keys are labelled \"archive\"",
        "rename or delete all but one",
    ];
    unusable(&hsm, "misconfigured", "misconfigured", &words);
}

#[test]
fn healthy_keys_work_beside_broken_ones() {
    let (hsm, null) = (Hsm::new(), NullStore::start());
    hsm.create(&KeySpec::new("leaky").with("extractable", true));
    for (name, more) in [
        ("leaky", ""),
        ("absent", ""),
        ("old", "use = \"decrypt\"\n"),
    ] {
        hsm.configure_key(name, name, more);
    }
    let agent = Agent::start(&hsm, Store::at(null.endpoint()), |_| {});
    agent
        .cli_in(["put", "-", "s3://bucket/k", "--key", hsm::KEY], b"well")
        .ok();
    assert_eq!(
        agent.cli(["get", "s3://bucket/k", "-"]).ok().stdout,
        b"well"
    );
    for (key, words) in [
        (
            "leaky",
            ["CKA_EXTRACTABLE is true", "hint: generate a new key"],
        ),
        (
            "absent",
            [
                "no key on the token is labelled \"absent\"",
                "hint: generate it with",
            ],
        ),
    ] {
        let run = agent.cli_in(["put", "-", "s3://bucket/other", "--key", key], b"x");
        run.fails(75, &words);
        let reply = agent.http(
            "PUT",
            "/v1/objects/bucket/other",
            &[("Strongroom-Key", key)],
            b"x",
        );
        reply.fails("misconfigured", &words[..1]);
    }
    let run = agent.cli_in(["put", "-", "s3://bucket/other"], b"x");
    run.fails(
        2,
        &[
            "several rings are configured and none was named",
            "hint: name one with --key",
        ],
    );
    let run = agent.cli_in(["put", "-", "s3://bucket/other", "--key", "old"], b"x");
    run.fails(
        2,
        &[
            "no active wrapping key \"old\"",
            "hint: `strongroom key list`",
        ],
    );
    assert_eq!(null.keys(), ["bucket/k"]);
    let list = agent.cli(["key", "list"]).ok().text();
    for word in [
        "archive: active",
        "leaky",
        "not ready: key leaky: CKA_EXTRACTABLE is true",
        "no key on the token is labelled \"absent\"",
    ] {
        assert!(list.contains(word), "{word:?} is not in:\n{list}");
    }
}
