//! README and docs against the code: examples run, tables equal what they
//! tell of, links resolve, commands and options exist.
#![allow(clippy::unwrap_used)]

#[path = "docs/benchmarks.rs"]
mod benchmarks;
#[path = "docs/commands.rs"]
mod commands;
#[path = "docs/examples.rs"]
mod examples;
#[path = "docs/markdown.rs"]
mod markdown;
#[path = "docs/recovery.rs"]
mod recovery;
mod support;
#[path = "docs/tables.rs"]
mod tables;
#[path = "docs/tokens.rs"]
mod tokens;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use markdown::Document;
use support::root;

fn document(name: &str) -> Document {
    Document::read(root(), name)
}

/// Every document, the README first.
fn documents() -> Vec<Document> {
    let top = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ]
    .map(str::to_owned);
    let mut docs: Vec<String> = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    docs.sort();
    assert!(docs.len() >= 10, "{docs:?}");
    top.into_iter()
        .chain(docs)
        .map(|name| document(&name))
        .collect()
}

#[test]
fn every_relative_link_resolves() {
    let mut seen = 0;
    for from in documents() {
        for link in from.links() {
            if link.contains("://") {
                continue;
            }
            seen += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = match file {
                "" => from.path.clone(),
                file => from.path.parent().unwrap().join(file),
            };
            assert!(path.exists(), "{}: no file {link}", from.name);
            if !anchor.is_empty() {
                let target = Document::read(Path::new("/"), path.to_str().unwrap());
                assert!(
                    target.anchors().iter().any(|a| a == anchor),
                    "{}: no heading {link}",
                    from.name
                );
            }
        }
    }
    assert!(seen > 40, "{seen}");
}

/// All text below a directory of the source.
fn sources(dir: &Path, out: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("node_modules") {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_rule_of_this_release_names_tests_that_exist() {
    let mut code = String::new();
    sources(&root().join("src"), &mut code);
    sources(&root().join("tests"), &mut code);
    let named: BTreeSet<String> = document("docs/security.md")
        .spans()
        .into_iter()
        .filter(|span| span.starts_with("rule_"))
        .collect();
    for name in &named {
        assert!(
            code.contains(&format!("fn {name}(")),
            "docs/security.md names {name}, which is no test"
        );
    }
    for rule in [1, 2, 3, 4, 5, 6, 7, 15, 17, 18, 19, 21, 23, 24, 27] {
        let prefix = format!("rule_{rule:02}_");
        assert!(
            named.iter().any(|name| name.starts_with(&prefix)),
            "docs/security.md names no test of rule {rule}"
        );
    }
}

#[test]
fn the_threat_model_names_tests_that_exist() {
    let mut code = String::new();
    sources(&root().join("src"), &mut code);
    sources(&root().join("tests"), &mut code);
    let named: BTreeSet<String> = document("docs/threat-model.md")
        .spans()
        .into_iter()
        .filter(|span| {
            span.contains('_')
                && span
                    .bytes()
                    .all(|b| b == b'_' || b.is_ascii_lowercase() || b.is_ascii_digit())
        })
        .collect();
    assert!(named.len() >= 30, "{named:?}");
    for name in named {
        assert!(
            code.contains(&format!("fn {name}(")),
            "docs/threat-model.md names {name}, which is no test"
        );
    }
}

#[test]
fn documents_that_the_source_refers_to_exist() {
    let mut code = String::new();
    sources(&root().join("src"), &mut code);
    let mut seen = 0;
    for rest in code.split("docs/").skip(1) {
        let name: String = rest
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
            .collect();
        if let Some(name) = name
            .strip_suffix('.')
            .or(Some(&name))
            .filter(|n| n.ends_with(".md"))
        {
            seen += 1;
            assert!(
                root().join("docs").join(name).exists(),
                "the source refers to docs/{name}"
            );
        }
    }
    assert!(seen > 10, "{seen}");
}
