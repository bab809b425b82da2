//! Examples: the marked blocks of README and API run against a real agent.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::markdown::{Block, Mark};
use crate::support::{self, Agent, Hsm, Weed, lacking, pattern, run};
use crate::{document, documents};

/// The socket and the bucket that examples name.
const SOCKET: &str = "/run/strongroom/agent.sock";
const BUCKET: &str = "acme-archive";

#[test]
fn the_readmes_examples_run() {
    examples_run("README.md", 8);
}

#[test]
fn the_apis_examples_run() {
    examples_run("docs/api.md", 8);
}

/// Runs the marked blocks of a document in order, in one directory.
fn examples_run(name: &str, at_least: usize) {
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.bucket("docs");
    let agent = Agent::start(&hsm, weed, |_| {});
    let dir = support::temp_dir();
    let mut report = b"%PDF-1.7\n".to_vec();
    report.extend(pattern(7, 48_204));
    fs::write(dir.path().join("report.pdf"), report).unwrap();

    let examples = document(name).blocks();
    let marked: Vec<(&Block, &Mark)> = examples
        .iter()
        .filter_map(|b| Some((b, b.mark.as_ref()?)))
        .collect();
    assert!(
        marked.len() >= at_least,
        "{name}: {} examples",
        marked.len()
    );
    for (block, mark) in marked {
        let script = block
            .text
            .replace(SOCKET, agent.socket().to_str().unwrap())
            .replace(BUCKET, &bucket);
        let done = run(shell(&agent, dir.path()).arg(&script), b"");
        let what = format!(
            "{name}:{}\n{script}---\n{}{}",
            block.line,
            done.text(),
            done.stderr
        );
        assert_eq!(done.code, Some(mark.exit), "another exit code: {what}");
        assert!(
            done.text().contains(&mark.words),
            "no {:?}: {what}",
            mark.words
        );
    }
}

/// A shell that finds `strongroom`, this agent and nothing else of ours.
fn shell(agent: &Agent, dir: &Path) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_strongroom"));
    let path = std::env::var("PATH").unwrap_or_default();
    if !path
        .split(':')
        .any(|dir| Path::new(dir).join("curl").exists())
    {
        lacking("curl");
    }
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c"])
        .env_clear()
        .env(
            "PATH",
            format!("{}:{path}", binary.parent().unwrap().display()),
        )
        .env("HOME", dir)
        .env("STRONGROOM_SOCKET", agent.socket())
        .env("STRONGROOM_CONFIG", agent.config_path())
        .current_dir(dir);
    command
}

/// The Python of docs/formats.md, as it stands, opens an object as it lies in
/// the store.
#[test]
fn the_stock_sdk_reads_an_object_as_the_formats_say() {
    let bytes = [42; 32];
    let (hsm, weed) = (Hsm::with_key(&bytes), Weed::shared());
    let bucket = weed.bucket("docs-formats");
    let agent = Agent::start(&hsm, weed, |_| {});
    let dir = support::temp_dir();
    let plain = pattern(8, 700_000);
    let target = format!("/v1/objects/{bucket}/docs/report.pdf");
    assert_eq!(agent.http("PUT", &target, &[], &plain).status, 201);
    let object = weed.raw_get(&bucket, "docs/report.pdf").unwrap();
    fs::write(dir.path().join("object"), object).unwrap();
    fs::write(dir.path().join("wrapping.key"), bytes).unwrap();

    let blocks = document("docs/formats.md").blocks();
    let block = blocks.iter().find(|b| b.language == "python").unwrap();
    let script = block
        .text
        .replace(BUCKET, &bucket)
        .replace("archive-2026", support::hsm::KEY);
    let python = support::cache().join("venv/bin/python");
    if !python.exists() {
        lacking("the stock Python SDK");
    }
    let mut command = Command::new(python);
    run(command.args(["-c", &script]).current_dir(dir.path()), b"").ok();
    assert!(fs::read(dir.path().join("plaintext")).unwrap() == plain);
}

#[test]
fn every_curl_example_is_marked_to_be_run() {
    for document in documents() {
        for block in document.blocks() {
            let curl = block.language == "sh" && block.text.contains("--unix-socket");
            let run_here = matches!(document.name.as_str(), "README.md" | "docs/api.md");
            assert!(
                !curl || (run_here && block.mark.is_some()),
                "{}:{}: no <!-- run --> before this example, or no test of this document",
                document.name,
                block.line
            );
        }
    }
}
