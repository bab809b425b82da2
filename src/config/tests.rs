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
        "[metrics]\n",
        "[recipients]\n",
        "[[recipient]]\n",
        "[[bucket_alias]]\n",
        "[[grant]]\n",
    ] {
        refused(&format!("{TOKEN}{KEY}{text}"), &["not implemented"]);
    }
    refused(
        &format!("{TOKEN}{KEY}cryptoperiod='1y'\n"),
        &["cryptoperiod", "not implemented"],
    );
}

#[test]
fn the_audit_log_has_one_signer_and_a_place_it_can_be_written() {
    let token2 = TOKEN.replace("name='t'", "name='u'");
    let config = parse(&format!(
        "[audit]\ncheckpoint_key='a'\nanchor='s3://b/p/'\nalso='journald'\n{TOKEN}"
    ));
    let config = config.unwrap();
    assert_eq!(config.checkpoint_token().unwrap().name, "t");
    assert_eq!(config.audit_dir(), Path::new("/var/lib/strongroom/audit"));
    assert_eq!(
        config.audit.anchor_retention.duration().as_secs(),
        31_557_600
    );
    for (text, words) in [
        ("anchor='s3://b/p/'", &["anchor", "checkpoint_key"][..]),
        (
            "checkpoint_key='a'\nanchor='s3://b/p'",
            &["s3://b/p", "PREFIX/"],
        ),
        ("checkpoint_key='a'\nanchor='file://x'", &["file://x"]),
        ("checkpoint_key='a'\ncheckpoint_token='v'", &["\"v\""]),
        ("checkpoint_key='a'", &["checkpoint_token"]),
        ("rotate='1 KiB'", &["rotate", "64 KiB"]),
        ("dir='audit'", &["audit.dir"]),
    ] {
        refused(&format!("[audit]\n{text}\n{TOKEN}{token2}"), words);
    }
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

#[test]
fn rule_19_a_wrap_limit_is_within_what_gcm_bears() {
    let limit = |text: &str| parse(&format!("{TOKEN}{KEY}{text}\n"));
    for (text, wraps) in [
        ("", 1 << 31),
        ("wrap_limit = '2^31'", 1 << 31),
        ("wrap_limit = '2^32'", 1 << 32),
        ("wrap_limit = 65536", 65_536),
        ("wrap_limit = '1000000'", 1_000_000),
    ] {
        assert_eq!(limit(text).unwrap().keys[0].wrap_limit.wraps(), wraps);
    }
    for text in ["65535", "'2^33'", "'2^64'", "'2^99'", "'4294967297'", "0"] {
        refused(
            &format!("{TOKEN}{KEY}wrap_limit = {text}\n"),
            &["wrap_limit"],
        );
    }
    for text in ["'many'", "'2^x'", "-1", "1.5", "true"] {
        refused(&format!("{TOKEN}{KEY}wrap_limit = {text}\n"), &["2^31"]);
    }
}

#[test]
fn rule_19_a_successor_is_of_the_ring_at_hand_and_the_chain_ends() {
    let key = |name: &str, more: &str| {
        format!("[[key]]\nname='{name}'\ntoken='t'\nlabel='{name}'\nring='r'\n{more}\n")
    };
    let ring =
        |a: &str, b: &str, c: &str| format!("{TOKEN}{}{}{}", key("a", a), key("b", b), key("c", c));
    let (to_b, to_c) = ("successor='b'", "use='decrypt'\nsuccessor='c'");
    let end = "use='decrypt'";
    parse(&ring(to_b, to_c, end)).unwrap();
    // A host that was rotated by hand.
    parse(&ring("use='decrypt'\nsuccessor='b'", "", end)).unwrap();
    refused(
        &ring("successor='x'", end, end),
        &["\"x\" is not configured"],
    );
    refused(&ring(to_b, "use='disabled'", end), &["disabled"]);
    refused(&ring("successor='a'", end, end), &["leads back"]);
    refused(
        &ring(to_b, to_c, "use='decrypt'\nsuccessor='a'"),
        &["leads back"],
    );
    // Not active, but in a circle all the same.
    refused(
        &ring("", to_c, "use='decrypt'\nsuccessor='b'"),
        &["leads back"],
    );
    let other = format!("{TOKEN}{KEY}successor='a'\n{}", key("a", ""));
    refused(&other, &["of ring \"r\", not of \"k\""]);
}

#[test]
fn a_key_is_on_one_token_or_on_several_in_order() {
    let second = TOKEN.replace("name='t'", "name='u'");
    let on = |tokens: &str| {
        parse(&format!(
            "{TOKEN}{second}[[key]]\nname='k'\ntoken={tokens}\nlabel='k'\n"
        ))
    };
    for (text, tokens) in [
        ("'t'", vec!["t"]),
        ("['u']", vec!["u"]),
        ("['u', 't']", vec!["u", "t"]),
    ] {
        let key = on(text).unwrap().keys.remove(0);
        assert_eq!(key.tokens, tokens);
        assert_eq!(key.token(), tokens[0]);
    }
    for (text, words) in [
        ("[]", "empty"),
        ("['t', 't']", "\"t\" is named twice"),
        ("['t', 'x']", "token \"x\", which is not configured"),
        ("7", "a name, or a list"),
    ] {
        let error = on(text).unwrap_err();
        assert!(error.message.contains(words), "{}", error.message);
    }
}
