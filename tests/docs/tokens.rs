//! docs/tokens.md against the token layer: failure classes, health, and what a
//! worker's environment may hold.

use std::collections::BTreeSet;
use std::fs;

use crate::document;
use crate::support::root;

fn source(name: &str) -> String {
    fs::read_to_string(root().join("src/token").join(name)).unwrap()
}

#[test]
fn every_return_code_is_in_its_class() {
    let source = source("worker/failure.rs");
    let (_, table) = source.split_once("\ntable! {").unwrap();
    let (table, _) = table.split_once("\n}").unwrap();
    let mut expected = BTreeSet::new();
    for class in table.split(';').filter(|c| !c.trim().is_empty()) {
        let (name, codes) = class.split_once(':').unwrap();
        // `ModuleLost` is "module lost".
        let mut words = String::new();
        for c in name.trim().chars() {
            if c.is_uppercase() && !words.is_empty() {
                words.push(' ');
            }
            words.extend(c.to_lowercase());
        }
        for code in codes.split_whitespace() {
            expected.insert((words.clone(), code.trim_start_matches("CKR_").to_owned()));
        }
    }
    assert_eq!(expected.len(), 103, "the table of the source");
    let found: BTreeSet<(String, String)> = document("docs/tokens.md")
        .rows()
        .into_iter()
        .filter(|(heading, cells)| heading == "Failure classes" && cells[0] != "class")
        .flat_map(|(_, cells)| {
            let codes: Vec<String> = cells[1].split(", ").map(str::to_owned).collect();
            codes.into_iter().map(move |code| (cells[0].clone(), code))
        })
        .collect();
    let differing: Vec<_> = expected.symmetric_difference(&found).collect();
    assert!(differing.is_empty(), "docs/tokens.md: {differing:?}");
}

#[test]
fn every_health_is_told_with_what_to_do() {
    let source = source("health.rs");
    let expected: BTreeSet<&str> = source
        .split("Self::")
        .filter_map(|arm| arm.split_once(" => \"")?.1.split('"').next())
        .collect();
    assert_eq!(expected.len(), 8, "{expected:?}");
    let rows = document("docs/tokens.md").rows();
    let rows: Vec<_> = rows
        .iter()
        .filter(|(heading, cells)| heading == "Health" && cells[0].starts_with('`'))
        .map(|(_, cells)| cells)
        .collect();
    let found: BTreeSet<&str> = rows.iter().map(|c| c[0].trim_matches('`')).collect();
    assert_eq!(found, expected);
    for cells in rows {
        assert!(
            cells.len() == 4 && cells.iter().all(|c| !c.is_empty()),
            "{cells:?}"
        );
    }
}

#[test]
fn the_workers_environment_is_told_whole() {
    let source = source("spawn.rs");
    let spans: BTreeSet<String> = document("docs/tokens.md").spans().into_iter().collect();
    let mut names = 0;
    for list in ["const ENVIRONMENT", "const PREFIXES"] {
        let (_, rest) = source.split_once(list).unwrap();
        let (list, _) = rest.split_once("];").unwrap();
        for name in list.split('"').skip(1).step_by(2) {
            assert!(spans.contains(name), "docs/tokens.md does not name {name}");
            names += 1;
        }
    }
    assert!(names > 15, "{names}");
}
