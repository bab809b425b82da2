//! Commands and options that the docs show exist.

use std::collections::BTreeMap;

use crate::documents;
use crate::support::{self, run};

/// `--help` of a command and of those below it, by their words.
fn help(path: &[String], all: &mut BTreeMap<Vec<String>, String>) {
    let text = run(support::strongroom().args(path).arg("--help"), b"")
        .ok()
        .text();
    let commands: Vec<String> = text
        .split_once("\nCommands:\n")
        .map(|(_, rest)| rest.split("\n\n").next().unwrap_or_default())
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    all.insert(path.to_vec(), text);
    for command in commands {
        help(&[path, &[command]].concat(), all);
    }
}

/// Whether a help text has this option, whole.
fn has_option(help: &str, option: &str) -> bool {
    help.split(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '[' | ']' | '.' | '`'))
        .any(|word| word == option)
}

#[test]
fn every_command_and_option_that_the_docs_show_exists() {
    let mut commands = BTreeMap::new();
    help(&[], &mut commands);
    assert!(commands.len() > 15, "{:?}", commands.keys());
    let mut shown = 0;
    for document in documents() {
        let blocks = document.blocks();
        let shells = blocks
            .iter()
            .filter(|b| matches!(b.language.as_str(), "sh" | "text" | "ini"));
        let lines = shells.flat_map(|b| {
            let joined = b.text.replace("\\\n", " ");
            joined.lines().map(str::to_owned).collect::<Vec<_>>()
        });
        for line in lines.chain(document.spans()) {
            shown += usize::from(check_line(&document.name, &line, &commands));
            // An option in the prose is some command's.
            if let Some(option) = line
                .split(['=', ' '])
                .next()
                .filter(|o| o.starts_with("--"))
            {
                assert!(
                    option == "--" || commands.values().any(|help| has_option(help, option)),
                    "{}: no command has {option}",
                    document.name
                );
            }
        }
    }
    assert!(
        shown > 15,
        "only {shown} commands found: is this test blind?"
    );
}

/// Checks the command that a line shows, if it shows one.
fn check_line(document: &str, line: &str, commands: &BTreeMap<Vec<String>, String>) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_ours = |w: &str| w == "strongroom" || w.ends_with("/bin/strongroom");
    for (i, _) in words.iter().enumerate().filter(|(_, w)| is_ours(w)) {
        let mut path = Vec::new();
        let mut rest = words[i + 1..].iter().peekable();
        while let Some(word) = rest.peek() {
            let deeper = [&path[..], &[(**word).to_owned()]].concat();
            if !commands.contains_key(&deeper) {
                break;
            }
            path = deeper;
            rest.next();
        }
        let top_level = i == 0 && words.get(1).is_some_and(|w| w.starts_with("--"));
        if path.is_empty() && !top_level {
            // A user or a directory of that name, except where a command stands.
            assert!(
                i > 0 || words.len() == 1,
                "{document}: no such command: {line}"
            );
            continue;
        }
        for word in rest {
            if matches!(*word, "|" | ">" | ";" | "&&" | "--") {
                break;
            }
            let option = word.split('=').next().unwrap_or_default();
            if option.starts_with("--") {
                assert!(
                    has_option(&commands[&path], option),
                    "{document}: `strongroom {}` has no {option}: {line}",
                    path.join(" ")
                );
            }
            // What follows is another program's.
            if option == "--from-command" {
                break;
            }
        }
        return true;
    }
    false
}
