//! Tables of errors, settings, defaults, routes and headers equal the code's.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use strongroom::api::ErrorKind;
use strongroom::config::Config;

use crate::support::root;
use crate::{document, documents};

/// What completes an example that shows some settings alone.
const TOKEN: &str = "\n[[token]]\nname='t'\nmodule='/m.so'\ntoken_label='l'\npin_file='/pin'\n";

#[test]
fn the_table_of_errors_is_the_codes() {
    let expected: Vec<String> = ErrorKind::ALL
        .iter()
        .map(|kind| {
            format!(
                "| `{}` | {} | {} | {} | {} |",
                kind.slug(),
                kind.status(),
                kind.exit_code(),
                kind.title(),
                kind.hint()
            )
        })
        .collect();
    let errors = document("docs/errors.md");
    let found: Vec<&str> = errors
        .prose()
        .into_iter()
        .filter(|l| l.starts_with("| `"))
        .collect();
    assert!(
        found == expected,
        "docs/errors.md should have:\n{}",
        expected.join("\n")
    );
    for kind in ErrorKind::ALL {
        let meaning = format!("- `{}`: ", kind.slug());
        assert!(
            errors.text.contains(&meaning),
            "docs/errors.md does not say what {meaning} is"
        );
        // Codes of the other table: none that no document tells of.
        let code = format!("| {} |", kind.exit_code());
        assert!(
            errors.text.contains(&code),
            "docs/errors.md lacks exit code {code}"
        );
    }
}

/// The settings of the grammar, as the source has them: (struct, setting).
fn grammar() -> BTreeSet<(String, String)> {
    let source = fs::read_to_string(root().join("src/config/grammar.rs")).unwrap();
    let mut found = BTreeSet::new();
    let (mut table, mut renamed) = (None, None);
    for line in source.lines() {
        let code = line
            .trim()
            .trim_start_matches("pub(super) ")
            .trim_start_matches("pub ");
        if let Some(name) = code.strip_prefix("struct ") {
            table = Some(name.trim_end_matches(" {").to_owned());
        } else if line == "}" {
            table = None;
        } else if let Some(rest) = code.strip_prefix("#[serde(rename = \"") {
            renamed = rest.split('"').next().map(str::to_owned);
        } else if let (Some(table), Some((name, _))) = (&table, code.split_once(": "))
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            found.insert((
                table.clone(),
                renamed.take().unwrap_or_else(|| name.to_owned()),
            ));
        }
    }
    assert!(found.len() > 40, "{found:?}");
    found
}

#[test]
fn every_setting_is_documented_and_no_other() {
    let documented = document("docs/configuration.md");
    let spans: BTreeSet<String> = documented.spans().into_iter().collect();
    let grammar = grammar();
    for (table, setting) in &grammar {
        let names = match table.as_str() {
            "File" => vec![format!("[{setting}]"), format!("[[{setting}]]")],
            _ => vec![setting.clone()],
        };
        assert!(
            names.iter().any(|name| spans.contains(name)),
            "docs/configuration.md does not name {setting} of {table}"
        );
    }
    for (heading, cells) in documented.rows() {
        if !heading.starts_with("`[") || !cells[0].starts_with('`') {
            continue;
        }
        let setting = cells[0].trim_matches('`');
        assert!(
            grammar.iter().any(|(_, known)| known == setting),
            "docs/configuration.md: {heading} has no {setting}"
        );
    }
}

#[test]
fn documented_defaults_are_the_defaults() {
    let parse = |text: &str| {
        Config::parse(text, Path::new("docs")).unwrap_or_else(|e| panic!("{e}\n{text}"))
    };
    let mut text = String::new();
    let mut table = String::new();
    for (heading, cells) in document("docs/configuration.md").rows() {
        let single = heading.trim_matches('`');
        if !single.starts_with('[') || single.starts_with("[[") || !cells[0].starts_with('`') {
            continue;
        }
        let default = match cells[2].trim_matches('`') {
            // What another place decides.
            words if words.contains(' ') && !words.starts_with('"') => continue,
            "none" | "AWS" => continue,
            plain @ ("true" | "false") => plain.to_owned(),
            number if number.parse::<u64>().is_ok() => number.to_owned(),
            quoted if quoted.starts_with('"') => quoted.to_owned(),
            word => format!("{word:?}"),
        };
        if table != single {
            table = single.to_owned();
            text.push_str(&format!("{table}\n"));
        }
        text.push_str(&format!("{} = {default}\n", cells[0].trim_matches('`')));
    }
    assert!(text.lines().count() > 15, "{text}");
    let shape = |c: &Config| {
        format!(
            "{:#?}{:#?}{:#?}{:#?}{:#?}",
            c.agent, c.s3, c.message, c.spool, c.keyslots
        )
    };
    assert_eq!(
        shape(&parse(&format!("{text}{TOKEN}"))),
        shape(&parse(TOKEN)),
        "{text}"
    );
}

#[test]
fn every_configuration_shown_is_valid() {
    let mut shown = 0;
    for document in documents() {
        for block in document.blocks().iter().filter(|b| b.language == "toml") {
            let more = if block.text.contains("[[token]]") {
                ""
            } else {
                TOKEN
            };
            let text = format!("{}{more}", block.text);
            Config::parse(&text, Path::new("example"))
                .unwrap_or_else(|e| panic!("{}:{}: {e}: {}", document.name, block.line, e.hint));
            shown += 1;
        }
    }
    assert!(shown >= 3);
}

#[test]
fn every_route_and_header_is_in_the_api() {
    let api = document("docs/api.md").text.to_lowercase();
    let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
    let quoted = |source: &str, start: &str| -> BTreeSet<String> {
        let strings = source.split('"').skip(1).step_by(2);
        strings
            .filter(|s| s.starts_with(start))
            .map(str::to_owned)
            .collect()
    };
    let routes = quoted(&read("src/agent/routes.rs"), "/v1/");
    let headers = quoted(&read("src/api.rs"), "strongroom-");
    assert!(
        routes.len() > 8 && headers.len() > 10,
        "{routes:?} {headers:?}"
    );
    for name in routes.iter().chain(&headers) {
        assert!(
            api.contains(name.trim_end_matches('/')),
            "docs/api.md does not name {name}"
        );
    }
}
