//! Holds what the source names against the floors of docs/architecture.md:
//! a module uses only what lies below it, cryptoki is named in `token` alone
//! and the AWS SDK in `store` alone.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The floors, from the ground up.
const FLOORS: &[(&str, Floor)] = &[
    ("secret", Floor::Ground),
    ("config", Floor::Ground),
    ("api", Floor::Ground),
    ("control", Floor::Ground),
    ("confine", Floor::Ground),
    ("crypto", Floor::Ground),
    ("log", Floor::Ground),
    ("gather", Floor::Ground),
    ("wipe", Floor::Ground),
    ("manifest", Floor::Ground),
    ("bundle", Floor::Ground),
    ("components", Floor::Ground),
    ("transport", Floor::Ground),
    ("token", Floor::Parts),
    ("store", Floor::Parts),
    ("catalog", Floor::Parts),
    ("message", Floor::Parts),
    ("audit", Floor::Parts),
    ("recipient", Floor::Parts),
    ("fault", Floor::Words),
    ("binding", Floor::Words),
    ("keyring", Floor::Keyring),
    ("engine", Floor::Engine),
    ("unlock", Floor::Unlock),
    ("put", Floor::Operations),
    ("get", Floor::Operations),
    ("objects", Floor::Operations),
    ("rotate", Floor::Operations),
    ("evidence", Floor::Operations),
    ("verify", Floor::Operations),
    ("retire", Floor::Operations),
    ("rebuild", Floor::Operations),
    ("recover", Floor::Operations),
    ("ceremony", Floor::Operations),
    ("admin", Floor::Operations),
    ("doctor", Floor::Operations),
    ("supervisor", Floor::Processes),
    ("agent", Floor::Processes),
    ("client", Floor::Processes),
    ("cli", Floor::Top),
    ("main", Floor::Top),
    ("lib", Floor::Root),
];

/// Uses within one floor that are meant.
const SIDEWAYS: &[(&str, &str)] = &[
    ("main", "cli"),
    // What was freed is given back before memory is locked.
    ("confine", "wipe"),
    // Grants are written in the words of operations.
    ("config", "api"),
    // A sealed key travels through the agent.
    ("api", "transport"),
    // What they combine and carry are keys.
    ("components", "secret"),
    ("transport", "secret"),
    // Paths are hashed into names.
    ("manifest", "crypto"),
    // Both name files by the same paths.
    ("bundle", "manifest"),
    // The doctor looks at tokens by the same short-lived worker as `admin`.
    ("doctor", "admin"),
    // How a header is read is known in one place.
    ("verify", "objects"),
    ("rebuild", "objects"),
    // And how one is read.
    ("verify", "get"),
    ("retire", "objects"),
    // Other writers' catalogues are objects, read as any other.
    ("retire", "get"),
];

/// Uses of a lower floor that are forbidden all the same.
const KEPT_APART: &[(&str, &[&str])] = &[
    // The client is for other programs too: it knows the wire, not the agent.
    (
        "client",
        &[
            "token", "store", "catalog", "message", "keyring", "engine", "put", "get", "objects",
            "admin", "doctor",
        ],
    ),
    (
        "supervisor",
        &["keyring", "engine", "put", "get", "objects"],
    ),
    ("cli", &["token", "store"]),
    ("main", &["token", "store"]),
];

/// Crates (by the beginning of their names) that one module alone may name.
const OWNED: &[(&str, &str)] = &[
    ("cryptoki", "token"),
    ("aws_lc_rs", "crypto"),
    ("aws_sdk_s3", "store"),
    ("aws_config", "store"),
    ("aws_smithy", "store"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Floor {
    Ground,
    Parts,
    Words,
    Keyring,
    Engine,
    Unlock,
    Operations,
    Processes,
    Top,
    Root,
}

fn floor(module: &str) -> Option<Floor> {
    let found = FLOORS.iter().find(|(name, _)| *name == module);
    found.map(|(_, floor)| *floor)
}

/// What is wrong with one file; `path` is relative to src.
fn faults(path: &Path, text: &str) -> Vec<String> {
    let parts: Vec<String> = path
        .with_extension("")
        .components()
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .filter(|part| part != "mod")
        .collect();
    let own = parts[0].as_str();
    let Some(own_floor) = floor(own) else {
        return vec![format!("{own} is not in the table of floors")];
    };
    let code = code_only(text);
    let mut faults = Vec::new();
    for used in uses(&code, parts.len()) {
        let Some(used_floor) = floor(&used) else {
            continue; // an item of the crate's root or a macro
        };
        let meant = SIDEWAYS.contains(&(own, used.as_str()));
        let apart = KEPT_APART
            .iter()
            .any(|(name, others)| *name == own && others.contains(&used.as_str()));
        if used != own && !meant && (used_floor >= own_floor || apart) {
            faults.push(format!(
                "{own} ({own_floor:?}) uses {used} ({used_floor:?})"
            ));
        }
    }
    for (name, owner) in OWNED {
        if own != *owner && words(&code).any(|word| word.starts_with(name)) {
            faults.push(format!("{own} names {name}, which is {owner}'s alone"));
        }
    }
    faults
}

/// The top-level modules that paths in `code` reach, through `crate::`,
/// `strongroom::`, or as many `super::` as lead to the root.
fn uses(code: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ["crate", "strongroom"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            let rest = code[at + root.len()..].trim_start();
            if let Some(rest) = rest.strip_prefix("::")
                && !before.is_some_and(|c| is_word(c) || c == '$')
            {
                found.extend(heads(rest));
            }
        }
    }
    for (at, _) in code.match_indices("super") {
        let before = &code[..at];
        if before.trim_end().ends_with("::") || before.ends_with(is_word) {
            continue; // inside a longer chain, or of a longer word
        }
        let (mut rest, mut climbed) = (&code[at..], 0);
        while let Some(more) = rest
            .strip_prefix("super")
            .and_then(|r| r.trim_start().strip_prefix("::"))
        {
            (rest, climbed) = (more.trim_start(), climbed + 1);
        }
        if climbed >= depth {
            found.extend(heads(rest));
        }
    }
    found
}

/// The first names of a path or of a braced group of paths.
fn heads(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else {
        return vec![rest.chars().take_while(|c| is_word(*c)).collect()];
    };
    let (mut names, mut nested, mut start) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => nested += 1,
            '}' if nested == 0 => break,
            '}' => nested -= 1,
            ',' if nested == 0 => start = true,
            c if is_word(c) && start => {
                names.push(group[at..].chars().take_while(|c| is_word(*c)).collect());
                start = false;
            }
            _ => {}
        }
    }
    names
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c| !is_word(c)).filter(|word| !word.is_empty())
}

/// The text without comments and without what is inside string literals.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let fresh_word = !code.ends_with(is_word);
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = after_block_comment(rest);
        } else if c == '"' {
            rest = after_string(&rest[1..]);
            code.push_str("\"\"");
        } else if let Some(after) = raw_string(rest).filter(|_| fresh_word) {
            rest = after;
            code.push_str("\"\"");
        } else if let Some(after) = char_literal(rest) {
            rest = after;
            code.push_str("' '");
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    code
}

fn after_block_comment(text: &str) -> &str {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let here = &text[at..];
        let step = if here.starts_with("/*") {
            depth += 1;
            2
        } else if here.starts_with("*/") {
            depth -= 1;
            2
        } else {
            here.chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    &text[at..]
}

fn after_string(text: &str) -> &str {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

/// What follows `r"…"`, `r#"…"#`, `br"…"`, if one stands here.
fn raw_string(text: &str) -> Option<&str> {
    let rest = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes: String = rest.chars().take_while(|c| *c == '#').collect();
    let rest = rest[hashes.len()..].strip_prefix('"')?;
    let end = format!("\"{hashes}");
    rest.find(&end).map(|at| &rest[at + end.len()..])
}

/// What follows `'c'` or `'\n'`, if one stands here and not a lifetime.
fn char_literal(text: &str) -> Option<&str> {
    let rest = text.strip_prefix('\'')?;
    if let Some(escape) = rest.strip_prefix('\\') {
        let skip = escape.chars().next()?.len_utf8();
        let end = escape[skip..].find('\'')?;
        return Some(&escape[skip + end + 1..]);
    }
    let c = rest.chars().next()?;
    rest[c.len_utf8()..].strip_prefix('\'')
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn arrows_go_down_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "the source was not found");
    let mut wrong = BTreeSet::new();
    for file in files {
        let path = file.strip_prefix(&src).unwrap();
        for fault in faults(path, &std::fs::read_to_string(&file).unwrap()) {
            wrong.insert(format!("src/{}: {fault}", path.display()));
        }
    }
    let list: Vec<_> = wrong.into_iter().collect();
    assert!(list.is_empty(), "\n{}", list.join("\n"));
}

#[test]
fn this_test_can_fail() {
    for (path, text) in [
        ("store/mod.rs", "use crate::token::Token;"),
        ("message/frame.rs", "use crate::store;"),
        ("token/mod.rs", "fn f() { crate :: put::put() }"),
        ("get.rs", "use crate::{api::Error, put::{self, x}};"),
        ("put.rs", "use super::agent::Agent;"),
        ("put/parts.rs", "use super::super::{get, api};"),
        ("catalog/mod.rs", "pub(in crate::agent) fn f() {}"),
        ("client.rs", "use crate::store::Place;"),
        ("cli/put.rs", "use crate::token;"),
        ("main.rs", "strongroom::token::worker()"),
        ("put.rs", "use cryptoki_sys::CKR_OK;"),
        ("agent/mod.rs", "let c = aws_sdk_s3::Client::new();"),
        ("unheard_of.rs", ""),
    ] {
        assert_eq!(faults(Path::new(path), text).len(), 1, "{path}: {text}");
    }
}

#[test]
fn this_test_does_not_cry_wolf() {
    for (path, text) in [
        (
            "put.rs",
            "use crate::{api, token::Token, store::{self, get}};",
        ),
        (
            "store/mod.rs",
            "// crate::token\n/* crate::put /* nested */ */ let s = \"crate::put \\\" crate::get\";",
        ),
        (
            "store/mod.rs",
            "let r = r#\"crate::\"put\"#; let c = '\"'; let l: &'static str = \"aws\";",
        ),
        (
            "message/mod.rs",
            "//! cryptoki is not named here\nuse super::secret::Secret;",
        ),
        (
            "token/worker/raw.rs",
            "use super::super::error; use cryptoki::x;",
        ),
        (
            "token/worker/raw.rs",
            "mod tests { use super::super::put; }",
        ),
        ("store/pool.rs", "$crate::put!(); use super::put;"),
        ("cli/put.rs", "use crate::put; use crate::client;"),
        ("main.rs", "use strongroom::cli;"),
    ] {
        assert_eq!(faults(Path::new(path), text), [""; 0], "{path}: {text}");
    }
}
