//! The benchmarks' document is a whole one, and the README claims nothing that
//! it does not have.

use crate::document;
use crate::support::root;

/// What stands between two lines of a document.
fn between(name: &str, begin: &str, end: &str) -> String {
    let text = document(name).text;
    let (_, rest) = text.split_once(begin).unwrap();
    rest.split_once(end).unwrap().0.to_owned()
}

fn figures() -> String {
    between(
        "docs/benchmarks.md",
        "<!-- figures: written by `make bench` -->",
        "<!-- end of figures -->",
    )
}

#[test]
fn the_benchmarks_say_when_where_what_and_what_not() {
    let figures = figures();
    let taken = figures.trim().lines().next().unwrap();
    assert!(taken.starts_with("Taken 20"), "{taken}");
    for word in [" cores", "Linux ", "Strongroom "] {
        assert!(taken.contains(word), "no{word}: {taken}");
    }
    // Each has figures, or the reason why there are none.
    for contender in [
        "strongroom put FILE",
        "cat \\| strongroom put -",
        "strongroom get to a file",
        "aws-sdk-s3 (Rust), not encrypted",
        "aws s3 cp, not encrypted",
        "age \\| aws s3 cp -",
        "Python ESDK \\| aws s3 cp -",
        "rclone crypt",
        "strongroom put FILE, TLS",
        "strongroom get to a file, TLS",
        "age \\| aws s3 cp -, TLS",
    ] {
        let row = format!("\n| {contender} | ");
        assert!(figures.contains(&row), "no row of {contender}");
    }
    for part in [
        "What was aimed at",
        "One large file",
        "Small objects",
        "A range",
        "Memory",
        "Long files",
        "Listing",
        "Starting",
        "Pieces",
    ] {
        assert!(figures.contains(&format!("\n## {part}\n")), "no {part}");
    }
    let all = document("docs/benchmarks.md").text;
    let (_, not) = all.split_once("\n## What was not measured\n").unwrap();
    for missing in ["AWS", "HSM", "network", "cores"] {
        assert!(not.contains(missing), "not a word of {missing}");
    }
}

#[test]
fn the_plot_is_readable_on_light_and_dark() {
    let plot = std::fs::read_to_string(root().join("docs/benchmarks.svg")).unwrap();
    assert!(plot.contains("prefers-color-scheme:dark"));
    assert!(plot.contains(">strongroom put FILE<") && plot.trim_end().ends_with("</svg>"));
}

#[test]
fn the_readme_claims_no_speed_that_was_not_measured() {
    let figures = figures();
    let claims = between(
        "README.md",
        "<!-- speed: written by `make bench` -->",
        "<!-- end of speed -->",
    );
    let taken = figures.trim().lines().next().unwrap();
    let (when, where_) = taken
        .strip_prefix("Taken ")
        .and_then(|rest| rest.split_once(", with "))
        .unwrap()
        .0
        .split_once(" on ")
        .unwrap();
    for word in [when, where_] {
        assert!(claims.contains(word), "README.md does not say {word}");
    }
    let mut seen = 0;
    let rows = claims.lines().filter(|line| line.starts_with("| "));
    for row in rows.filter(|line| !line.starts_with("| | ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, numbers @ ..] = &cells[..] else {
            continue;
        };
        let Some(measured) = figures
            .lines()
            .find(|line| line.starts_with(&format!("| {name} | ")))
        else {
            panic!("README.md claims {row}");
        };
        for number in numbers {
            let median = format!(" {number} (");
            assert!(measured.contains(&median), "README.md: {row}\n{measured}");
        }
        seen += 1;
    }
    assert!(seen >= 3, "{claims}");
}
