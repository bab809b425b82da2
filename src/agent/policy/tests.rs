#![allow(clippy::unwrap_used)]
use super::*;
use std::path::Path;

const BASE: &str = "[[token]]\nname='t'\nmodule='/m.so'\ntoken_label='l'\npin_file='/pin'\n\
    [[key]]\nname='k'\ntoken='t'\nlabel='k'\nring='r'\n\
    [[key]]\nname='k2'\ntoken='t'\nlabel='k2'\n";

/// The agent's own user in these tests.
const OWN: u32 = 500;

fn policy(grants: &str) -> Policy {
    let config = Config::parse(&format!("{BASE}{grants}"), Path::new("test")).unwrap();
    Policy::new(&config, &config.principals().unwrap(), OWN)
}

fn subject(uid: u32, gid: u32, groups: &[u32]) -> Subject {
    Subject {
        uid,
        gid,
        groups: groups.to_vec(),
    }
}

fn user(uid: u32) -> Subject {
    subject(uid, uid, &[])
}

fn at(operation: Operation, key: &str) -> Ask {
    Ask::at(operation, "bkt", key)
}

fn put(key: &str) -> Ask {
    Ask {
        ring: Some("r".into()),
        put: Some(PutFacts {
            length: Some(5),
            ..PutFacts::default()
        }),
        ..at(Operation::Put, key)
    }
}

#[track_caller]
fn refused(policy: &Policy, who: &Subject, ask: &Ask, words: &[&str]) -> Error {
    let error = Error::from(policy.decide(who, ask).unwrap_err());
    for word in words {
        assert!(error.detail.contains(word), "{word:?}: {}", error.detail);
    }
    error
}

#[test]
fn without_grants_root_and_the_own_user_may_everything_and_nobody_else_anything() {
    let policy = policy("");
    for operation in Operation::ALL {
        for uid in [0, OWN] {
            policy.decide(&user(uid), &at(operation, "x")).unwrap();
        }
        for who in [user(1001), user(OVERFLOW_ID), subject(1001, 0, &[0, OWN])] {
            let error = refused(&policy, &who, &at(operation, "x"), &[operation.as_str()]);
            assert!(error.hint_text().contains("no [[grant]]"));
        }
    }
}

#[test]
fn with_grants_root_keeps_administration_alone() {
    let policy = policy("[[grant]]\nuid=7\noperations=['put']\nbucket='bkt'\n");
    for uid in [0, OWN] {
        policy.decide(&user(uid), &Ask::admin()).unwrap();
        assert!(policy.knows(&user(uid)));
        refused(
            &policy,
            &user(uid),
            &put("x"),
            &["has no grant for put on s3://bkt/x"],
        );
    }
    refused(
        &policy,
        &user(7),
        &Ask::admin(),
        &["uid 7 has no grant for admin"],
    );
    assert!(policy.knows(&user(7)) && !policy.knows(&user(8)));
    policy.somewhere(&user(7), Operation::Put).unwrap();
    policy.somewhere(&user(7), Operation::Get).unwrap_err();
}

#[test]
fn rule_25_users_groups_and_nobody() {
    let policy = policy(
        "[[grant]]\nuid=7\noperations=['get']\nbucket='bkt'\n\
         [[grant]]\ngid=70\noperations=['list']\nbucket='bkt'\n",
    );
    policy.decide(&user(7), &at(Operation::Get, "x")).unwrap();
    for who in [subject(9, 70, &[]), subject(9, 9, &[1, 70])] {
        policy.decide(&who, &at(Operation::List, "")).unwrap();
        refused(&policy, &who, &at(Operation::Get, "x"), &["get"]);
    }
    // A gid is no uid, and a uid no gid.
    refused(&policy, &user(70), &at(Operation::Get, "x"), &[]);
    refused(&policy, &subject(8, 7, &[7]), &at(Operation::Get, "x"), &[]);
    // Nobody has no groups either.
    refused(
        &policy,
        &subject(OVERFLOW_ID, 70, &[70]),
        &at(Operation::List, ""),
        &[],
    );
}

#[test]
fn a_prefix_is_plain_text_and_no_detour_leaves_it() {
    let policy = policy(
        "[[grant]]\nuid=7\noperations=['get', 'list']\nbucket='bkt'\nprefix='db/'\n\
         [[grant]]\nuid=8\noperations=['get']\nbucket='bkt'\nprefix='db'\n",
    );
    for key in ["db/", "db/x", "db/a/../b", "db//x", "db/./x"] {
        policy.decide(&user(7), &at(Operation::Get, key)).unwrap();
    }
    for key in [
        "db",
        "d",
        "dbx",
        "/db/x",
        "x/db/y",
        "db/../x",
        "db/x/../../y",
        "DB/x",
        "",
    ] {
        refused(&policy, &user(7), &at(Operation::Get, key), &["get"]);
    }
    policy
        .decide(&user(8), &at(Operation::Get, "db-other/x"))
        .unwrap();
    // A listing must stay below what is granted.
    policy
        .decide(&user(7), &at(Operation::List, "db/"))
        .unwrap();
    policy
        .decide(&user(7), &at(Operation::List, "db/2026"))
        .unwrap();
    for prefix in ["", "d", "db", "db/../", "other/"] {
        refused(&policy, &user(7), &at(Operation::List, prefix), &["list"]);
    }
    refused(
        &policy,
        &user(7),
        &Ask::at(Operation::Get, "other", "db/x"),
        &[],
    );
}

#[test]
fn rule_07_unbound_uncommitted_and_former_places_need_their_own_grant() {
    let policy = policy(
        "[[grant]]\nuid=7\noperations=['get', 'get-unbound']\nbucket='bkt'\nprefix='a/'\n\
         [[grant]]\nuid=7\noperations=['get', 'get-uncommitted']\nbucket='bkt'\nprefix='b/'\nkey='r'\n\
         [[grant]]\nuid=7\noperations=['get']\nbucket='bkt'\nprefix='c/'\nkey='k2'\n",
    );
    let get = |key: &str, also: &[Operation]| Ask {
        also: also.to_vec(),
        ..at(Operation::Get, key)
    };
    let (unbound, uncommitted) = (Operation::GetUnbound, Operation::GetUncommitted);
    policy.decide(&user(7), &get("a/x", &[unbound])).unwrap();
    policy
        .decide(&user(7), &get("b/x", &[uncommitted]))
        .unwrap();
    for (key, also) in [
        ("a/x", &[uncommitted][..]),
        ("b/x", &[unbound]),
        ("a/x", &[unbound, uncommitted]),
        ("c/x", &[unbound]),
    ] {
        let lacks = also.last().unwrap().as_str();
        refused(
            &policy,
            &user(7),
            &get(key, also),
            &[&format!("no grant for {lacks}")],
        );
    }
    let held = |key: &str, held: &str| Ask {
        held: Some(Place::new("bkt", held)),
        ..at(Operation::Get, key)
    };
    let rights = policy.decide(&user(7), &held("a/x", "b/x")).unwrap();
    assert_eq!(rights.rings, Some(vec!["r".to_owned()]));
    refused(&policy, &user(7), &held("a/x", "d/x"), &["s3://bkt/d/x"]);
    refused(&policy, &user(7), &held("d/x", "a/x"), &["s3://bkt/d/x"]);
    // No ring is good for both places.
    let rights = policy.decide(&user(7), &held("b/x", "c/x")).unwrap();
    assert_eq!(rights.rings, Some(Vec::new()));
}

#[test]
fn rings_bind_puts_before_and_reads_after() {
    let policy = policy(
        "[[grant]]\nuid=7\noperations=['put', 'get', 'delete', 'inspect']\nbucket='bkt'\nkey='r'\n\
         [[grant]]\nuid=7\noperations=['get']\nbucket='bkt'\nprefix='p/'\nkey='k2'\n",
    );
    let with = |ring: &str| Ask {
        ring: Some(ring.into()),
        ..put("x")
    };
    // The ring, or its active key's name.
    for name in ["r", "k"] {
        let rights = policy.decide(&user(7), &with(name)).unwrap();
        assert_eq!(rights.rings, Some(vec!["r".to_owned()]));
    }
    refused(&policy, &user(7), &with("k2"), &["with the ring \"k2\""]);
    let get = |key: &str| {
        policy
            .decide(&user(7), &at(Operation::Get, key))
            .unwrap()
            .rings
    };
    assert_eq!(get("x"), Some(vec!["r".to_owned()]));
    assert_eq!(get("p/x"), Some(vec!["k2".to_owned(), "r".to_owned()]));
    policy
        .decide(&user(7), &at(Operation::Delete, "x"))
        .unwrap();
}

#[test]
fn conditions_are_the_deciding_grants() {
    let policy = policy(
        "[[grant]]\nuid=7\noperations=['put']\nbucket='bkt'\nrequire_storage_class='GLACIER'\n\
         [[grant]]\nuid=7\noperations=['put']\nbucket='bkt'\nmax_size='10 B'\nno_overwrite=true\n\
         [[grant]]\nuid=8\noperations=['put']\nbucket='bkt'\nmin_retention='30 d'\n\
         [[grant]]\nuid=9\noperations=['put']\nbucket='bkt'\nmax_size='1 KiB'\n\
         [[grant]]\nuid=9\noperations=['put']\nbucket='bkt'\nprefix='big/'\nrequire_storage_class='GLACIER'\n",
    );
    let facts = |length, class: Option<&str>, until: Option<String>| Ask {
        put: Some(PutFacts {
            length,
            storage_class: class.map(str::to_owned),
            retain_until: until,
        }),
        ..put("big/x")
    };
    let decide = |uid, ask: &Ask| policy.decide(&user(uid), ask);
    let rights = decide(7, &facts(Some(11), Some("GLACIER"), None)).unwrap();
    assert_eq!((rights.max_size, rights.no_overwrite), (None, false));
    let rights = decide(7, &facts(Some(10), None, None)).unwrap();
    assert_eq!((rights.max_size, rights.no_overwrite), (Some(10), true));
    let error = refused(
        &policy,
        &user(7),
        &facts(Some(11), None, None),
        &["GLACIER"],
    );
    assert_eq!(error.kind, ErrorKind::Forbidden);

    let days = |days: i64| {
        let hours = jiff::SignedDuration::from_hours(24 * days + 1);
        Some((jiff::Timestamp::now() + hours).to_string())
    };
    decide(8, &facts(None, None, days(30))).unwrap();
    for until in [days(29), None, Some("never".to_owned())] {
        refused(
            &policy,
            &user(8),
            &facts(None, None, until),
            &["retained for 30days"],
        );
    }
    let error = refused(&policy, &user(9), &facts(Some(1025), None, None), &[]);
    assert!(matches!(error.kind, ErrorKind::TooLarge));
    // Of unknown length: by the widest grant that fits.
    let unknown = facts(None, Some("GLACIER"), None);
    assert_eq!(decide(9, &unknown).unwrap().max_size, None);
    assert_eq!(
        decide(9, &facts(None, None, None)).unwrap().max_size,
        Some(1024)
    );
}

#[test]
fn a_rate_is_its_grants_and_another_grant_may_still_let_pass() {
    let policy = policy(
        "[[grant]]\nuid=7\noperations=['get']\nbucket='bkt'\nrate={requests='2/h'}\n\
         [[grant]]\ngid=70\noperations=['get']\nbucket='bkt'\nrate={requests='1/h'}\n",
    );
    let get = at(Operation::Get, "x");
    for _ in 0..2 {
        policy.decide(&user(7), &get).unwrap();
    }
    let error = refused(&policy, &user(7), &get, &["2/h"]);
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.retry_after.is_some_and(|wait| wait.as_secs() > 1000));
    policy.decide(&subject(7, 70, &[]), &get).unwrap();
    refused(&policy, &subject(7, 70, &[]), &get, &["1/h"]);
    // An explanation costs nothing.
    for _ in 0..9 {
        assert!(policy.explain(&user(7), &get).allowed);
    }
}

#[test]
fn a_refusal_names_what_is_missing_and_how_to_find_out() {
    let policy = policy("[[grant]]\nuid=7\noperations=['put']\nbucket='bkt'\nprefix='a/'\n");
    let error = refused(
        &policy,
        &user(1001),
        &at(Operation::Get, "it's\nodd"),
        &["uid 1001 has no grant for get on s3://bkt/it's\nodd"],
    );
    assert_eq!(
        error.hint_text(),
        r"`strongroom grants test --uid 1001 get 's3://bkt/it\'\''s\nodd'` explains it"
    );
    let test = policy.explain(&user(7), &put("b/x"));
    assert!(!test.allowed && test.line.is_none());
    assert_eq!(
        test.grants[0].miss.as_deref(),
        Some("is for another prefix")
    );
    let test = policy.explain(&user(7), &put("a/x"));
    assert_eq!(
        (test.allowed, test.line),
        (true, Some(test.grants[0].grant.line))
    );
    let text = format!("{BASE}[[grant]]");
    assert_eq!(test.grants[0].grant.line, text.lines().count());
}

#[test]
fn the_six_questions_name_who_may_read() {
    let some = policy(
        "[[grant]]\nuid=7\noperations=['put']\nbucket='bkt'\n\
         [[grant]]\nuser='root'\noperations=['get']\nbucket='bkt'\nprefix='a/'\n",
    );
    let place = |key| Place::new("bkt", key);
    assert!(
        some.readers(&place("a/x"))
            .ends_with("user \"root\" (uid 0)")
    );
    assert!(some.readers(&place("b/x")).contains("nobody"));
    assert!(
        policy("")
            .readers(&place("b/x"))
            .contains("root and the agent's own user")
    );
}
