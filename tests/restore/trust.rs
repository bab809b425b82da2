//! Whose manifests are believed.

use std::fs;

use strongroom::manifest::manifest_key;

use crate::build::{Build, run_at};
use crate::support::*;
use crate::{WHY, names};

#[test]
fn rule_16_a_manifest_that_no_catalogue_knows_is_not_believed() {
    if !TokenKind::SoftHsm.is_only(WHY) {
        return;
    }
    let (hsm, weed) = (Hsm::new(), Weed::shared());
    let bucket = weed.versioned_bucket("trust");
    // Two hosts with the same key.
    let theirs = Agent::start(&hsm, weed, |_| {});
    let ours = Agent::start(&hsm, weed, |_| {});
    let mut build = Build::new(&theirs, &bucket, "h/");
    build.file("a", b"theirs");
    build.finish(&run_at("010000"));
    let dir = temp_dir();
    let out = dir.path().join("out");
    let restore = |more: &[&str]| {
        let url = build.url();
        let mut args = vec!["restore", &url, out.to_str().unwrap()];
        args.extend(more);
        ours.cli(args)
    };
    restore(&[]).fails(65, &["nobody here vouches for it", "--trust-manifest"]);
    let run = run_at("010000");
    restore(&["--run", run.as_str()]).fails(65, &["nobody here vouches for it"]);
    assert!(!out.exists());

    let target = format!("/v1/objects/{bucket}/h/{}", manifest_key(&run));
    let standing = |agent: &Agent, headers: &[(&str, &str)]| {
        let reply = agent.http("HEAD", &target, headers, b"");
        let header = |name: &str| reply.header(name).map(str::to_owned);
        (
            header("strongroom-standing").unwrap(),
            header("strongroom-writer"),
        )
    };
    assert_eq!(standing(&theirs, &[]), ("current".to_owned(), None));
    assert_eq!(standing(&ours, &[]), ("unknown".to_owned(), None));

    // A writer that the configuration names, by the catalogue it exported.
    let export = theirs.cli(["catalog", "export"]).ok();
    let put = theirs.cli_in(
        ["put", "-", &format!("s3://{bucket}/catalogues/theirs")],
        &export.stdout,
    );
    put.ok();
    ours.reconfigure(|config| {
        let mut writer = toml_edit::Table::new();
        writer["name"] = value("theirs");
        writer["catalogue"] = value(format!("s3://{bucket}/catalogues/theirs"));
        let mut writers = toml_edit::ArrayOfTables::new();
        writers.push(writer);
        config["writer"] = toml_edit::Item::ArrayOfTables(writers);
    });
    let reload = ours.http("POST", "/v1/reload", &[], b"");
    assert_eq!(reload.status, 200, "{}", reload.text());
    let ask = [("Strongroom-Ask-Writers", "true")];
    assert_eq!(
        standing(&ours, &ask),
        ("writer".to_owned(), Some("theirs".to_owned()))
    );
    restore(&[]).ok();
    assert_eq!(fs::read(out.join("a")).unwrap(), b"theirs");

    // What the writer stored since is not in what it exported.
    build.entries.clear();
    build.file("a", b"theirs, later");
    build.finish(&run_at("020000"));
    fs::remove_dir_all(&out).unwrap();
    let url = build.url();
    let restore = |more: &[&str]| {
        let mut args = vec!["restore", &url, out.to_str().unwrap()];
        args.extend(more);
        ours.cli(args)
    };
    restore(&[]).fails(65, &["nobody here vouches for it"]);
    restore(&["--trust-manifest"]).ok();
    assert_eq!(names(&out), ["a"]);
    assert_eq!(fs::read(out.join("a")).unwrap(), b"theirs, later");
}
