//! `strongroom grants`: who may do what. The agent answers; where none runs,
//! the configuration does.

use std::os::unix::fs::MetadataExt as _;

use clap::{Args, Subcommand};

use super::failure::{DENIED, Failure, NO_SUCH};
use super::place::S3Url;
use super::ui::{Ui, shown};
use crate::agent::{Ask, Policy, Subject};
use crate::api::{ErrorKind, GrantInfo, GrantQuestion, GrantTest, Operation};
use crate::config::Config;

#[derive(Args)]
pub(super) struct GrantsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the grants in the order in which they are tried
    List,
    /// Explain whether somebody may do something, and by which grant
    Test(TestArgs),
}

#[derive(Args)]
struct TestArgs {
    /// The user's number
    #[arg(long, value_name = "UID", required_unless_present = "user")]
    uid: Option<u32>,
    /// The user's name
    #[arg(long, value_name = "NAME", conflicts_with = "uid")]
    user: Option<String>,
    /// The number of the primary group [default: the user's]
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// A supplementary group, name or number; repeatable [default: the user's]
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// The ring that a put would name
    #[arg(long, value_name = "RING")]
    key: Option<String>,
    /// The operation: put, get, head, inspect, list, delete, rewrap, get-unbound, get-uncommitted, admin
    #[arg(value_name = "OPERATION", value_parser = operation)]
    operation: Operation,
    /// The object; of a listing, its prefix; none for admin
    #[arg(value_name = "s3://BUCKET/KEY")]
    place: Option<S3Url>,
}

fn operation(word: &str) -> Result<Operation, String> {
    Operation::from_word(word).ok_or_else(|| {
        let words = Operation::ALL.map(Operation::as_str).join(", ");
        format!("there are: {words}")
    })
}

pub(super) async fn run(ui: &Ui, args: GrantsArgs) -> Result<(), Failure> {
    match args.action {
        Action::List => list(ui).await,
        Action::Test(args) => test(ui, args).await,
    }
}

async fn list(ui: &Ui) -> Result<(), Failure> {
    let grants = match ui.client().grants().await {
        Ok(grants) => grants,
        Err(error) if error.kind == ErrorKind::AgentAway => configured(ui)?.list(),
        Err(error) => return Err(Failure::api("cannot list the grants", &error)),
    };
    if ui.is_json() {
        return grants.iter().try_for_each(|grant| ui.json(grant));
    }
    if grants.is_empty() {
        ui.note("no grants configured: only root and the agent's own user may use it");
    }
    grants.iter().try_for_each(|grant| ui.line(&line(grant)))
}

async fn test(ui: &Ui, args: TestArgs) -> Result<(), Failure> {
    let question = question(args)?;
    let decision = match ui.client().grants_test(&question).await {
        Ok(decision) => decision,
        Err(error) if error.kind == ErrorKind::AgentAway => {
            let subject = Subject {
                uid: question.uid,
                gid: question.gid,
                groups: question.groups.clone(),
            };
            let mut ask = match &question.place {
                Some((bucket, key)) => Ask::at(question.operation, bucket, key),
                None => Ask::admin(),
            };
            ask.ring.clone_from(&question.ring);
            let policy = configured(ui)?;
            ui.note("no agent runs: decided by the configuration file");
            policy.explain(&subject, &ask)
        }
        Err(error) => return Err(Failure::api("cannot test the grants", &error)),
    };
    if ui.is_json() {
        ui.json(&decision)?;
    } else {
        ui.line(&text(&decision))?;
    }
    match decision.allowed {
        true => Ok(()),
        // The text above says it all.
        false => Err(Failure::silent(DENIED)),
    }
}

/// The grants of the configuration, for the agent that would run with it: its
/// user owns the state directory.
fn configured(ui: &Ui) -> Result<Policy, Failure> {
    let config = Config::load(&ui.config())?;
    let principals = config.principals()?;
    let own = config
        .agent
        .state_dir
        .metadata()
        .map_or_else(|_| rustix::process::geteuid().as_raw(), |meta| meta.uid());
    Ok(Policy::new(&config, &principals, own))
}

fn question(args: TestArgs) -> Result<GrantQuestion, Failure> {
    let known = match (&args.user, args.uid) {
        (Some(name), _) => Some(uzers::get_user_by_name(name).ok_or_else(|| {
            Failure::new(NO_SUCH, format!("there is no user {name:?} on this host"))
                .hint("name the user by number: --uid")
        })?),
        (None, Some(uid)) => uzers::get_user_by_uid(uid),
        (None, None) => None,
    };
    let uid = known.as_ref().map_or(args.uid, |user| Some(user.uid()));
    let uid = uid.ok_or_else(|| Failure::usage("name a user: --uid or --user"))?;
    let gid = args
        .gid
        .or_else(|| known.as_ref().map(uzers::User::primary_group_id));
    let groups = match (args.group.is_empty(), args.gid, &known) {
        // Whoever names groups means these and no others.
        (true, None, Some(user)) => user
            .groups()
            .unwrap_or_default()
            .iter()
            .map(uzers::Group::gid)
            .collect(),
        _ => args
            .group
            .iter()
            .map(|name| group(name))
            .collect::<Result<_, _>>()?,
    };
    let place = match (args.operation, args.place) {
        (Operation::Admin, None) => None,
        (Operation::Admin, Some(_)) => {
            return Err(Failure::usage(
                "admin is about the agent, not about a place",
            ));
        }
        (_, Some(place)) => Some((place.bucket, place.key)),
        (operation, None) => {
            return Err(Failure::usage(format!(
                "{operation} where? name s3://BUCKET/KEY"
            )));
        }
    };
    Ok(GrantQuestion {
        uid,
        // A user that this host does not know has no group to be matched by.
        gid: gid.unwrap_or(u32::MAX),
        groups,
        operation: args.operation,
        place,
        ring: args.key,
    })
}

fn group(name: &str) -> Result<u32, Failure> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    uzers::get_group_by_name(name)
        .map(|group| group.gid())
        .ok_or_else(|| {
            Failure::new(NO_SUCH, format!("there is no group {name:?} on this host"))
                .hint("name the group by number")
        })
}

fn text(decision: &GrantTest) -> String {
    let verdict = if decision.allowed {
        "allowed"
    } else {
        "denied"
    };
    let mut lines = vec![format!("{verdict}: {}", shown(&decision.why))];
    for check in &decision.grants {
        let mark = match (&check.miss, decision.line == Some(check.grant.line)) {
            (Some(miss), _) => format!("no: {miss}"),
            (None, true) => "yes, and it decides".to_owned(),
            (None, false) => "yes".to_owned(),
        };
        lines.push(format!("  {}\n    {}", line(&check.grant), shown(&mark)));
    }
    lines.join("\n")
}

/// One grant in one line.
fn line(grant: &GrantInfo) -> String {
    let operations: Vec<&str> = grant.operations.iter().map(|o| o.as_str()).collect();
    let mut text = format!("line {}: {}", grant.line, grant.who);
    if !grant.who.ends_with(&format!(" {}", grant.id)) {
        text.push_str(&format!(" ({})", grant.id));
    }
    text.push_str(&format!(" may {}", operations.join(", ")));
    if !grant.bucket.is_empty() {
        text.push_str(&format!(" on s3://{}/{}*", grant.bucket, grant.prefix));
    }
    if let Some(key) = &grant.key {
        text.push_str(&format!(" with the ring {key}"));
    }
    for condition in &grant.conditions {
        text.push_str(&format!(", {condition}"));
    }
    shown(&text)
}
