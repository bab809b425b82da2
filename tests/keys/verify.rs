//! `verify --recipient`: a bad wrap for the disaster recovery site is found
//! before the disaster.

use super::support::Weed;
use super::support::shim::{Action, C_Encrypt, Plan, Shim};
use super::*;

#[test]
fn a_bad_wrap_and_a_missing_one_are_found_and_named() {
    let (hsm, weed) = (two_sites(), Weed::shared());
    let (_, public) = rsa_pair(hsm.dir(), "escrow", 2048);
    let bucket = weed.bucket("verify");
    let shim = Shim::new(&module());
    // Between the agent and the recovery site alone.
    let site = |config: &mut DocumentMut| {
        let tokens = config["token"].as_array_of_tables_mut().unwrap();
        for token in tokens
            .iter_mut()
            .filter(|t| t["name"].as_str() == Some(SITE))
        {
            token["module"] = value(shim.module().to_str().unwrap());
        }
    };
    let agent = Agent::start(&hsm, weed, |config| {
        site(config);
        add(config, &key_recipient());
    });
    await_token(&agent, SITE, "ready");
    let prefix = format!("s3://{bucket}/");
    for name in ["good/1", "good/2", "a/bad"] {
        if name == "a/bad" {
            // Of the site's wraps until the fault happened: a probe may come first.
            shim.plan(&Plan::default().with(C_Encrypt, 1, None, Action::Corrupt));
        }
        stored(&agent, &bucket, name);
    }
    shim.clear();
    await_token(&agent, SITE, "ready");

    let good = agent
        .cli([
            "verify",
            "--recipient",
            "dr",
            &format!("{prefix}good/"),
            "-v",
        ])
        .ok();
    assert!(
        good.text().contains("2 listed, 2 looked at, 2 good, 0 bad"),
        "{}",
        good.text()
    );
    let bad = agent.cli(["verify", "--recipient", DR, &prefix]);
    let bad = bad.fails(65, &["1 of 3 objects looked at would not open"]);
    assert!(
        bad.text().contains(&format!("wrong: {prefix}a/bad: ")),
        "{}",
        bad.text()
    );
    // All the same it can be read: only the recipient could not.
    assert_eq!(
        agent
            .http("GET", &format!("/v1/objects/{bucket}/a/bad"), &[], b"")
            .body,
        b"a/bad"
    );

    // Stored before the recipient was one; and what an RSA key holds is counted.
    agent.reconfigure(|config| add(config, &rsa_recipient("escrow", &public)));
    reload(&agent);
    stored(&agent, &bucket, "z");
    let told = agent.cli(["--json", "verify", "--recipient", "escrow", &prefix]);
    let told = told.fails(65, &[]);
    let lines: Vec<serde_json::Value> = told
        .text()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert_eq!(
        lines
            .iter()
            .filter(|line| line["result"] == "missing")
            .count(),
        3
    );
    let sum = lines.last().unwrap();
    assert_eq!(
        (&sum["checked"], &sum["good"]),
        (&4.into(), &1.into()),
        "{sum}"
    );
    assert!(
        sum["proves"]
            .as_str()
            .unwrap()
            .contains("only `strongroom recover`"),
        "{sum}"
    );

    // Nobody's name, no share, and a record of what was done.
    agent
        .cli(["verify", "--recipient", "nobody", &prefix])
        .fails(66, &["configured: dr, escrow"]);
    agent
        .cli(["verify", "--recipient", "dr", "--sample", "0%", &prefix])
        .fails(2, &["share"]);
    let one = agent.cli([
        "--json",
        "verify",
        "--recipient",
        "dr",
        "--sample",
        "0.0001%",
        &format!("{prefix}good/"),
    ]);
    assert_eq!(one.ok().json()["checked"], 1);
    let done = records(
        &agent,
        &["\"event\":\"admin\"", "\"phase\":\"end\"", "1 bad"],
    );
    assert_eq!(done.len(), 1, "{done:?}");
}
