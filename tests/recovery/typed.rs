//! Components as custodians bring them: typed at a terminal, and never seen on
//! it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::objects::{Holders, message};
use crate::support::process::Run;
use crate::support::{cache, lacking, root, run, temp_dir};
use crate::{components, digits, in_memory};

/// Runs a command on a terminal, with what is typed at each prompt.
fn typed(answers: &[(&str, &str)], args: &[&str]) -> Run {
    let python = cache().join("venv/bin/python");
    if !python.exists() {
        lacking("Python");
    }
    let answers: Vec<[&str; 2]> = answers.iter().map(|(p, a)| [*p, *a]).collect();
    let mut command = Command::new(python);
    command
        .arg(root().join("tests/readers/typed.py"))
        .arg(serde_json::to_string(&answers).unwrap())
        .arg(env!("CARGO_BIN_EXE_strongroom"))
        .args(args);
    run(&mut command, b"")
}

fn check_value(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("check value: "));
    line.unwrap().to_owned()
}

#[test]
fn rule_23_a_typed_component_is_not_shown_and_a_mistyped_one_is_noticed() {
    let (memory, work) = (in_memory(), temp_dir());
    let (files, _) = components(memory.path(), 2);
    let sheets: Vec<(String, String)> = files
        .iter()
        .map(|file| (digits(file), check_value(file)))
        .collect();
    let key = sheets
        .iter()
        .fold([0; 32], |mut sum: [u8; 32], (digits, _)| {
            let hex = digits.replace(' ', "");
            let bytes = data_encoding::HEXUPPER.decode(hex.as_bytes()).unwrap();
            sum.iter_mut().zip(bytes).for_each(|(s, b)| *s ^= b);
            sum
        });
    let (object, out) = (work.path().join("object"), work.path().join("out"));
    let holders = Holders {
        aes: Some(("archive", key)),
        ..Holders::default()
    };
    fs::write(&object, message(b"typed", ("acme", "k"), &holders).0).unwrap();
    let (first, second) = (&sheets[0], &sheets[1]);
    let mistyped = first.0.replacen(|c: char| c != '0', "0", 1);
    let done = typed(
        &[
            ("component of custodian 1: ", &mistyped),
            ("custodian 1 has it: ", &first.1),
            // Asked for again.
            ("component of custodian 1: ", &first.0),
            ("custodian 1 has it: ", &first.1),
            ("component of custodian 2: ", &second.0.to_lowercase()),
            ("custodian 2 has it: ", &second.1),
        ],
        &[
            "recover",
            object.to_str().unwrap(),
            "-o",
            out.to_str().unwrap(),
            "--components",
            "2",
        ],
    )
    .ok();
    assert_eq!(fs::read(&out).unwrap(), b"typed");
    let shown = done.text();
    assert!(shown.contains("is it mistyped?"), "{shown}");
    for (digits, check) in &sheets {
        assert!(
            shown.contains(check.as_str()),
            "the terminal echoes what it may"
        );
        for part in [&digits[..9], &digits.to_lowercase()[..9]] {
            assert!(!shown.contains(part), "a component was shown");
        }
    }
    // Each component is shown alone, and taken away.
    let made = typed(
        &[
            ("custodian 1 alone at the screen? Enter: ", ""),
            ("written down? Enter: ", ""),
            ("custodian 2 alone at the screen? Enter: ", ""),
            ("written down? Enter: ", ""),
        ],
        &["key", "components", "generate", "--count", "2"],
    )
    .ok()
    .text();
    assert_eq!(made.matches("component: ").count(), 2);
    assert_eq!(made.matches("\x1b[3J").count(), 2);
}
