//! `strongroom key`: wrapping keys over their lives. Generating, listing and
//! showing them is here; `rotate`, `disable` and `retire` change the
//! configuration by `edits`.

mod edits;
mod retire;
mod rotate;

use std::path::Path;

use clap::{Args, Subcommand};

use super::edit::{self, NewKey};
use super::failure::{CONFIG, Failure};
use super::status::key_line;
use super::ui::{Ui, shown, size};
use super::{components, import};
use crate::admin;
use crate::api::{Error, ErrorKind, GenerateKey, KeyDetail, KeyInfo};
use crate::client::Client;
use crate::config::Config;

#[derive(Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Generate a key in a token and enter it into the configuration
    Generate(GenerateArgs),
    /// Bring a key from outside into a token: a ceremony of several people
    Import(import::ImportArgs),
    /// Components of a key, for its custodians
    Components(components::ComponentsArgs),
    /// List the configured wrapping keys
    List,
    /// Show a wrapping key: attributes as the token reports them, age, wraps, and what depends on it
    Show {
        /// Its configured name
        name: String,
    },
    /// Make a new key of the ring wrap; the old one goes on opening what it wrapped
    Rotate(rotate::RotateArgs),
    /// Stop a key at once: it neither wraps nor opens (an emergency brake)
    Disable(retire::DisableArgs),
    /// Disable a key that nothing depends on any more, having looked at everything
    Retire(retire::RetireArgs),
}

#[derive(Args)]
struct GenerateArgs {
    /// The key's name: in the configuration, and for ever in every object it wraps
    name: String,
    /// The configured token that is to hold it
    #[arg(long)]
    token: String,
    /// Its label in the token [default: its name]
    #[arg(long)]
    label: Option<String>,
    /// The ring it belongs to [default: its name]
    #[arg(long, conflicts_with = "audit")]
    ring: Option<String>,
    /// Not a wrapping key, but the one that signs the audit log's checkpoints; prints its public key, for the auditor to keep
    #[arg(long)]
    audit: bool,
}

pub(super) async fn run(ui: &Ui, args: KeyArgs) -> Result<(), Failure> {
    match args.action {
        Action::Generate(args) => generate(ui, &args).await,
        Action::Import(args) => import::run(ui, args).await,
        Action::Components(args) => components::run(ui, args),
        Action::List => {
            for key in keys(ui).await? {
                if ui.is_json() {
                    ui.json(&key)?;
                } else {
                    ui.line(&key_line(&key))?;
                }
            }
            Ok(())
        }
        Action::Show { name } => show(ui, &name).await,
        Action::Rotate(args) => rotate::run(ui, &args).await,
        Action::Disable(args) => retire::disable(ui, &args).await,
        Action::Retire(args) => retire::run(ui, args).await,
    }
}

async fn show(ui: &Ui, name: &str) -> Result<(), Failure> {
    let what = format!("cannot show {name:?}");
    match ui.client().key(name).await {
        Ok(key) if ui.is_json() => ui.json(&key),
        Ok(key) => ui.line(&text(&key)),
        Err(error) => Err(Failure::api(what, &error)),
    }
}

async fn keys(ui: &Ui) -> Result<Vec<KeyInfo>, Failure> {
    ui.client()
        .keys()
        .await
        .map_err(|error| Failure::api("cannot list the keys", &error))
}

fn text(key: &KeyDetail) -> String {
    let info = &key.info;
    let mut text = key_line(info);
    let mut field = |name: &str, value: &str| {
        text.push_str(&format!("\n  {name:<22} {}", shown(value)));
    };
    for (name, value) in &info.attributes {
        field(name, value);
    }
    if let Some(value) = &info.check_value {
        field("check value", value);
    }
    if let (Some(first), Some(days)) = (&info.first_used, info.age_days) {
        field("first used here", &format!("{first}, {days} days ago"));
    }
    field("cryptoperiod", &cryptoperiod(info));
    let mut wraps = format!("{} of {} used", info.wraps_used, info.wrap_limit);
    if !info.wraps_complete {
        wraps.push_str(" at the least: the count does not go back to its first use");
    }
    field("wraps", &wraps);
    field(
        "depend on it",
        &format!(
            "{} objects of {} in this host's catalogue, {} queued or to be resumed, {} uploads in progress",
            key.objects,
            size(key.stored_bytes),
            key.dependents,
            key.uploads
        ),
    );
    text
}

fn cryptoperiod(key: &KeyInfo) -> String {
    const DAY: i64 = 24 * 60 * 60;
    match (key.cryptoperiod_seconds, key.cryptoperiod_left_seconds) {
        (None, _) => "none configured".to_owned(),
        (Some(period), None) => format!("{} days", period / 86_400),
        (Some(period), Some(left)) if left < 0 => {
            format!("{} days, over since {} days", period / 86_400, -left / DAY)
        }
        (Some(period), Some(left)) => {
            format!("{} days, {} days left", period / 86_400, left / DAY)
        }
    }
}

/// The configuration is made and checked in memory before the token makes a
/// key, since a key cannot be unmade; it is written only afterwards.
async fn generate(ui: &Ui, args: &GenerateArgs) -> Result<(), Failure> {
    let path = ui.config();
    let config = Config::load(&path)?;
    let Some(token) = config.tokens.iter().find(|token| token.name == args.token) else {
        let known: Vec<&str> = config.tokens.iter().map(|t| t.name.as_str()).collect();
        return Err(Failure::new(
            CONFIG,
            format!("no token is configured as {:?}", args.token),
        )
        .hint(format!("configured: {}", known.join(", "))));
    };
    let label = args.label.as_deref().unwrap_or(&args.name);
    let change = edit::Change::prepare(
        &path,
        &NewKey {
            name: &args.name,
            token: &args.token,
            label,
            ring: args.ring.as_deref(),
            audit: args.audit,
            imported: false,
        },
    )?;
    let client = Client::new(&ui.socket(Some(&config.agent.socket)));
    let request = GenerateKey {
        label: label.to_owned(),
        name: Some(args.name.clone()),
        token: args.token.clone(),
        audit: args.audit,
    };
    let cannot = |error: &Error| Failure::api("cannot generate the key", error);
    let (info, through_agent) = match client.generate_key(&request).await {
        Ok(info) => (info, true),
        Err(error) if error.kind == ErrorKind::AgentAway => {
            let made = match args.audit {
                true => admin::generate_audit_key(token, label),
                false => admin::generate_key(token, label),
            };
            let info = made.map_err(|error| cannot(&error))?;
            (info, false)
        }
        Err(error) => return Err(cannot(&error)),
    };
    change.apply().map_err(|failure| orphaned(failure, label))?;
    if through_agent {
        reload(&client, &change, &path, label).await?;
    }
    if args.audit {
        return match &info.public_key {
            _ if ui.is_json() => ui.json(&info),
            Some(pem) => ui.line(pem.trim_end()),
            None => Ok(()),
        };
    }
    // The token knows nothing of the configuration.
    let info = KeyInfo {
        name: args.name.clone(),
        token: args.token.clone(),
        label: label.to_owned(),
        ring: args.ring.clone().unwrap_or_else(|| args.name.clone()),
        usage: "active".to_owned(),
        ..info
    };
    if ui.is_json() {
        return ui.json(&info);
    }
    ui.done(&format!(
        "generated {} in token {}, and entered it into {}{}",
        info.name,
        info.token,
        path.display(),
        if through_agent {
            "; the agent uses it"
        } else {
            "; the agent was not running"
        }
    ))
}

pub(super) async fn reload(
    client: &Client,
    change: &edit::Change,
    path: &Path,
    label: &str,
) -> Result<(), Failure> {
    let Err(error) = client.reload().await else {
        return Ok(());
    };
    let failure = Failure::api("the agent refused the new configuration", &error);
    Err(match change.undo() {
        Ok(()) => orphaned(
            failure.and(&format!("; {} is as it was", path.display())),
            label,
        ),
        Err(undo) => {
            undo.report();
            failure
        }
    })
}

/// The key is there, the configuration does not name it.
pub(super) fn orphaned(failure: Failure, label: &str) -> Failure {
    failure.and(&format!(
        "; the token holds the new key under the label {label:?}"
    ))
}
