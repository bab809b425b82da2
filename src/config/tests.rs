#![allow(clippy::unwrap_used)]
use super::*;

const TOKEN: &str = "[[token]]\nname='t'\nmodule='/m.so'\ntoken_label='l'\npin_file='/pin'\n";
const KEY: &str = "[[key]]\nname='k'\ntoken='t'\nlabel='k'\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("strongroom.toml"))
}

fn refused(text: &str, words: &[&str]) {
    let error = parse(text).expect_err(text);
    let all = format!("{} | {}", error.message, error.hint);
    for word in words {
        assert!(all.contains(word), "{word:?} not in: {all}");
    }
}

#[test]
fn the_smallest_configuration_has_documented_defaults() {
    let config = parse(&format!("{TOKEN}{KEY}")).unwrap();
    assert_eq!(config.agent.memory_budget.bytes(), 256 << 20);
    assert_eq!(config.s3.part_size.bytes(), 8 << 20);
    assert_eq!(config.message.frame_length.bytes(), 256 << 10);
    assert_eq!(config.tokens[0].call_timeout.duration().as_secs(), 10);
    assert_eq!(config.default_ring(), Some("k"));
    assert_eq!(config.keyslots.prefix, ".strongroom/keyslots/");
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    refused(
        &format!("[agent]\nmemory_buget='1 GiB'\n{TOKEN}"),
        &["memory_buget", "did you mean `memory_budget`?"],
    );
    refused(&format!("[sss]\n{TOKEN}"), &["sss"]);
}

#[test]
fn wrong_types_and_limits_are_named() {
    refused(
        &format!("[agent]\nmax_requests='many'\n{TOKEN}"),
        &["max_requests"],
    );
    refused(
        &format!("[s3]\npart_size='1 MiB'\n{TOKEN}"),
        &["part_size", "5 MiB"],
    );
    refused(
        &format!("[message]\nframe_length=1\n{TOKEN}"),
        &["frame_length", "4 KiB"],
    );
    refused(
        &format!("[agent]\nmemory_budget='8 MiB'\n{TOKEN}"),
        &["memory_budget"],
    );
    refused(
        &format!("[agent]\nshutdown_grace='soon'\n{TOKEN}"),
        &["soon", "duration"],
    );
    refused(
        &format!("[agent]\nsocket_mode='0666'\n{TOKEN}"),
        &["socket_mode"],
    );
    refused("", &["no [[token]]"]);
}

#[test]
fn settings_of_later_releases_are_refused_not_ignored() {
    for text in [
        "[audit]\n",
        "[metrics]\n",
        "[recipients]\n",
        "[[recipient]]\n",
        "[[bucket_alias]]\n",
        "[[grant]]\n",
    ] {
        refused(&format!("{TOKEN}{KEY}{text}"), &["not implemented"]);
    }
    refused(
        &format!("{TOKEN}{KEY}wrap_limit='2^31'\n"),
        &["wrap_limit", "not implemented"],
    );
}

#[test]
fn rule_27_plain_http_stays_on_loopback() {
    for url in [
        "http://127.0.0.1:8333",
        "http://localhost",
        "http://[::1]:9000/",
        "https://s3.example",
    ] {
        parse(&format!("[s3]\nendpoint_url='{url}'\n{TOKEN}")).unwrap();
    }
    for url in [
        "http://10.0.0.1",
        "http://s3.example:80",
        "http://127.0.0.1@evil.example/",
        "http://localhost.evil",
    ] {
        refused(
            &format!("[s3]\nendpoint_url='{url}'\n{TOKEN}"),
            &["plain http", "allow_http"],
        );
        parse(&format!(
            "[s3]\nallow_http=true\nendpoint_url='{url}'\n{TOKEN}"
        ))
        .unwrap();
    }
    refused(
        &format!("[s3]\nendpoint_url='ftp://x'\n{TOKEN}"),
        &["https://"],
    );
}

#[test]
fn keys_must_be_unambiguous() {
    refused(&format!("{TOKEN}{KEY}{KEY}"), &["two [[key]]"]);
    refused(
        &format!("{TOKEN}[[key]]\nname='k'\ntoken='x'\nlabel='k'\n"),
        &["token \"x\"", "configured tokens: t"],
    );
    refused(
        &format!("{TOKEN}[[key]]\nname='a/b'\ntoken='t'\nlabel='k'\n"),
        &["a/b"],
    );
    refused(
        &format!("{TOKEN}[[key]]\nname='0'\ntoken='t'\nlabel='k'\n"),
        &["reserved"],
    );
    let two = format!("{TOKEN}{KEY}ring='r'\n[[key]]\nname='l'\ntoken='t'\nlabel='l'\nring='r'\n");
    refused(&two, &["ring \"r\""]);
    parse(&format!("{two}use='decrypt'\n")).unwrap();
}
