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
    assert_eq!(config.part_buffers(), 192 << 20);
    assert_eq!(config.s3.part_size.bytes(), 8 << 20);
    assert_eq!(config.message.frame_length.bytes(), 256 << 10);
    assert_eq!(config.tokens[0].call_timeout.duration().as_secs(), 10);
    assert_eq!(config.default_ring(), Some("k"));
    assert_eq!(config.keyslots.prefix, ".strongroom/keyslots/");
}

#[test]
fn part_buffers_are_what_requests_leave_of_the_budget_and_never_too_few() {
    let part_buffers = |agent: &str| {
        parse(&format!("[agent]\n{agent}\n{TOKEN}"))
            .unwrap()
            .part_buffers()
    };
    assert_eq!(
        part_buffers("memory_budget='1 GiB'\nmax_requests=16"),
        (1020 << 20)
    );
    assert_eq!(
        part_buffers("memory_budget='1 GiB'\nmax_requests=65536"),
        (768 << 20)
    );
    // One part of 8 MiB, one frame of 256 KiB and 1 MiB.
    assert_eq!(
        part_buffers("memory_budget='10 MiB'\nmax_requests=256"),
        (9 << 20) + (256 << 10)
    );
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
fn an_alias_names_one_bucket_that_is_none() {
    let with = |aliases: &[(&str, &str)]| {
        let tables = aliases.iter().map(|(bucket, holds)| {
            format!("[[bucket_alias]]\nbucket='{bucket}'\nholds='{holds}'\n")
        });
        format!("{TOKEN}{KEY}{}", tables.collect::<String>())
    };
    let config = parse(&with(&[("r1", "b"), ("r2", "b")])).unwrap();
    assert_eq!(config.bucket_aliases[1].holds, "b");
    refused(&with(&[("b", "b")]), &["bucket_alias", "two buckets"]);
    refused(&with(&[("r", "")]), &["bucket_alias", "two buckets"]);
    refused(&with(&[("r", "a"), ("r", "b")]), &["two [[bucket_alias]]"]);
    refused(&with(&[("r", "q"), ("q", "b")]), &["alias itself"]);
    refused(
        &format!("{TOKEN}{KEY}[[bucket_alias]]\nbucket='r'\n"),
        &["holds"],
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

fn grant(text: &str) -> String {
    format!("{TOKEN}{KEY}[[grant]]\n{text}\n")
}

const PUT: &str = "operations=['put']\nbucket='b'\n";

#[test]
fn a_grant_is_parsed_with_its_line_and_resolved_to_a_number() {
    let text = format!(
        "{}[[grant]]\ngroup='root'\noperations=['put', 'get', 'get-unbound']\nbucket='b'\nprefix='db/'\nkey='k'\n\
         require_storage_class='GLACIER'\nmin_retention='30 days'\nmax_size='1 GiB'\nno_overwrite=true\n\
         rate={{ requests = '600/min', bytes = '50 MiB/s' }}\n",
        grant("uid=7\noperations=['admin']"),
    );
    let config = parse(&text).unwrap();
    let [admin, all] = config.grants.as_slice() else {
        panic!("{:?}", config.grants);
    };
    let line = |grant: &Grant| text.lines().nth(grant.line - 1).unwrap();
    assert_eq!((line(admin), line(all)), ("[[grant]]", "[[grant]]"));
    assert!(admin.line < all.line && !admin.is_conditional());
    assert_eq!(
        (&all.who, all.prefix.as_str()),
        (&Who::Group("root".into()), "db/")
    );
    assert_eq!(all.min_retention.unwrap().as_secs(), 30 * 86_400);
    let rate = all.rate.unwrap();
    assert_eq!(rate.requests.unwrap().to_string(), "600/min");
    assert_eq!(rate.bytes.unwrap().to_string(), "50.0 MiB/s");
    assert_eq!(config.principals().unwrap(), [7, 0]);
}

#[test]
fn a_grant_must_name_one_existing_somebody() {
    refused(&grant(PUT), &["line ", "names nobody", "exactly one"]);
    refused(
        &grant(&format!("uid=1\ngroup='root'\n{PUT}")),
        &["more than one"],
    );
    refused(
        &grant(&format!("uid=65534\n{PUT}")),
        &["65534", "cannot name"],
    );
    refused(&grant(&format!("gid=65534\n{PUT}")), &["gid 65534"]);
    refused(&grant(&format!("uid=4294967295\n{PUT}")), &["no id"]);
    for (who, words) in [
        ("user='rot'", ["there is no user", "did you mean `root`?"]),
        (
            "group='no-such-group-at-all'",
            ["there is no group", "create the group"],
        ),
        ("user='nobody'", ["65534", "of its own"]),
    ] {
        let config = parse(&grant(&format!("{who}\n{PUT}"))).unwrap();
        let error = config.principals().unwrap_err();
        let all = format!("{} | {}", error.message, error.hint);
        assert!(words.iter().all(|word| all.contains(word)), "{all}");
        assert!(all.contains("strongroom.toml: the grant of line"), "{all}");
    }
}

#[test]
fn a_grant_that_could_not_mean_what_it_says_is_refused() {
    for (text, words) in [
        ("operations=['put']", &["names no bucket"][..]),
        (
            "operations=[]\nbucket='b'",
            &["no operation", "get-unbound"],
        ),
        ("operations=['put', 'put']\nbucket='b'", &["put twice"]),
        (
            "operations=['putt']\nbucket='b'",
            &["putt", "did you mean `put`?"],
        ),
        ("operations=['get-unbound']\nbucket='b'", &["without get"]),
        (
            "operations=['put']\nbucket='b'\nkey='kk'",
            &["ring \"kk\"", "did you mean `k`?"],
        ),
        (
            "operations=['put']\nbucket='b'\nprefix='.strongroom/keyslots/x'",
            &["keyslots.prefix"],
        ),
        (
            "operations=['get']\nbucket='b'\nmax_size='1 MiB'",
            &["max_size", "condition on put"],
        ),
        (
            "operations=['get']\nbucket='b'\nno_overwrite=true",
            &["no_overwrite"],
        ),
        (
            "operations=['put']\nbucket='b'\nmax_size=0",
            &["max_size is 0"],
        ),
        (
            "operations=['put']\nbucket='b'\nrate={}",
            &["limits nothing"],
        ),
        (
            "operations=['put']\nbucket='b'\nrate={requests='5'}",
            &["100/s"],
        ),
        (
            "operations=['put']\nbucket='b'\nrate={requests='0/s'}",
            &["100/s"],
        ),
        (
            "operations=['put']\nbucket='b'\nrate={bytes='5 MiB'}",
            &["50 MiB/s"],
        ),
        (
            "operations=['put']\nbucket='b'\nrate={bytes='1 KiB/s'}",
            &["64 KiB/s"],
        ),
        (
            "operations=['put']\nbucket='b'\nrate={byte='1 MiB/s'}",
            &["did you mean `bytes`?"],
        ),
        (
            "operations=['put']\nbucket='b'\nprefx='x'",
            &["did you mean `prefix`?"],
        ),
        (
            "operations=['admin', 'put']\nbucket='b'",
            &["granted alone"],
        ),
        ("operations=['admin']\nbucket='b'", &["granted alone"]),
    ] {
        refused(&grant(&format!("uid=7\n{text}")), words);
    }
    let twice = format!(
        "{}[[grant]]\nuid=7\noperations=['put', 'get']\nbucket='b'\n",
        grant(&format!("uid=7\nprefix='db/'\nmax_size='1 MiB'\n{PUT}"))
    );
    refused(&twice, &["never matter", "grants add up"]);
}

#[test]
fn metrics_stay_on_this_host() {
    let metrics = |listen: &str| format!("{TOKEN}{KEY}[metrics]\nlisten='{listen}'\n");
    for fine in ["127.0.0.1:9187", "127.1.2.3:1", "[::1]:9187"] {
        let config = parse(&metrics(fine)).unwrap();
        assert_eq!(config.metrics.listen.unwrap().to_string(), fine);
    }
    for open in [
        "0.0.0.0:9187",
        "10.0.0.1:9187",
        "[::]:9187",
        "[::ffff:127.0.0.1]:9187",
    ] {
        refused(&metrics(open), &["metrics.listen", "loopback"]);
    }
    refused(&metrics("127.0.0.1:0"), &["port 0"]);
    refused(&metrics("localhost:9187"), &["listen"]);
}
