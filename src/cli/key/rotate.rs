//! `strongroom key rotate`: a ring's new key.
//!
//! The token makes the key; one change of the configuration makes it active
//! and the old one decrypt-only; the agent takes it over without a restart.
//! What does not work out is undone: the configuration is as it was, and the
//! token holds one key more.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Zoned;

use super::edits::{self, Successor};
use crate::admin;
use crate::api::{Error, ErrorKind, GenerateKey, KeyInfo};
use crate::cli::edit::Change;
use crate::cli::failure::{CONFIG, FAILED, Failure, NO_SUCH};
use crate::cli::ui::Ui;
use crate::client::Client;
use crate::config::{Config, Key};

/// How long the token may take until the new key works: a CloudHSM cluster
/// takes seconds to have it on all its HSMs.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct RotateArgs {
    /// The ring, or a key of it
    #[arg(value_name = "RING|KEY")]
    ring: String,
    /// The new key's name [default: the ring's, with the year]
    #[arg(long, value_name = "NEW")]
    name: Option<String>,
    /// The configured token that is to hold it [default: the old key's]
    #[arg(long)]
    token: Option<String>,
    /// The key is in the token already: another host of the fleet made it
    #[arg(long, requires = "name")]
    existing: bool,
    /// First step of a fleet: the new key only opens as yet
    #[arg(long, visible_alias = "decrypt-only-first")]
    stage: bool,
    /// Second step of a fleet, once every host has the new key: it wraps from now on
    #[arg(long, conflicts_with_all = ["stage", "existing", "token"])]
    activate: bool,
}

pub(super) async fn run(ui: &Ui, args: &RotateArgs) -> Result<(), Failure> {
    let path = ui.config();
    let config = Config::load(&path)?;
    let old = active(&config, &args.ring)?;
    let client = Client::new(&ui.socket(Some(&config.agent.socket)));
    let (name, change, made) = if args.activate {
        let new = staged(&config, old, args.name.as_deref())?;
        let edit = |text: &str| edits::activated(text, &old.name, &new.name);
        (new.name.clone(), Change::prepare_with(&path, edit)?, false)
    } else {
        enter(&client, &config, &path, old, args).await?
    };
    let orphan = match made {
        true => format!("; the token holds the new key under the label {name:?}"),
        false => String::new(),
    };
    let running = take_over(&client, &change, &path, Some(&name))
        .await
        .map_err(|failure| failure.and(&orphan))?;
    let info = KeyInfo {
        name: name.clone(),
        ring: old.ring().to_owned(),
        usage: if args.stage { "decrypt" } else { "active" }.to_owned(),
        ..KeyInfo::default()
    };
    if ui.is_json() {
        let told = client.keys().await.unwrap_or_default();
        return ui.json(told.iter().find(|key| key.name == name).unwrap_or(&info));
    }
    let agent = if running {
        ""
    } else {
        "; the agent was not running"
    };
    ui.done(&match args.stage {
        true => format!(
            "key {name} of ring {} opens from now on; once every host has it, `strongroom key rotate {} --activate`{agent}",
            old.ring(),
            old.ring()
        ),
        false => format!(
            "key {name} wraps for ring {} from now on; {} opens what it wrapped{agent}",
            old.ring(),
            old.name
        ),
    })
}

/// The key that the ring has now.
fn active<'a>(config: &'a Config, name: &str) -> Result<&'a Key, Failure> {
    let by_name = config.keys.iter().find(|key| key.name == name);
    let ring = by_name.map_or(name, Key::ring);
    let mut of_ring = config.keys.iter().filter(|key| key.ring() == ring);
    if let Some(key) = of_ring.clone().find(|key| key.is_active()) {
        return Ok(key);
    }
    let known: Vec<&str> = config.keys.iter().map(Key::ring).collect();
    Err(match of_ring.next() {
        Some(_) => Failure::new(FAILED, format!("no key of ring {ring:?} is active"))
            .hint("set use = \"active\" for one of its keys, and reload the agent"),
        None => Failure::new(
            NO_SUCH,
            format!("no ring or wrapping key is configured as {name:?}"),
        )
        .hint(format!("configured rings: {}", known.join(", "))),
    })
}

/// The key that was staged to follow: the named one, the successor, or the
/// only one entered after the active key.
fn staged<'a>(config: &'a Config, old: &Key, name: Option<&str>) -> Result<&'a Key, Failure> {
    let waits = |key: &&Key| key.ring() == old.ring() && key.name != old.name && key.opens();
    let wanted = name.or(old.successor.as_deref());
    let behind = config.keys.iter().skip_while(|key| key.name != old.name);
    let mut found: Vec<&Key> = match wanted {
        Some(name) => config
            .keys
            .iter()
            .filter(|key| key.name == name)
            .filter(waits)
            .collect(),
        None => behind.filter(waits).collect(),
    };
    match (found.pop(), found.len()) {
        (Some(key), 0) => Ok(key),
        (Some(_), _) => Err(Failure::usage("several keys of the ring could follow")
            .hint("name the one that is to be active with --name")),
        (None, _) => Err(Failure::new(
            CONFIG,
            format!("no key of ring {:?} waits to be active", old.ring()),
        )
        .hint("`strongroom key rotate RING --stage` makes one")),
    }
}

/// Prepares the change and makes the key. The configuration is checked before
/// the token makes a key, since a key cannot be unmade.
async fn enter(
    client: &Client,
    config: &Config,
    path: &Path,
    old: &Key,
    args: &RotateArgs,
) -> Result<(String, Change, bool), Failure> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => next_name(config, old)?,
    };
    let token = match (&args.token, &old.tokens[..]) {
        (Some(token), _) => token,
        (None, [only]) => only,
        (None, _) => {
            return Err(Failure::usage(format!(
                "key {:?} is on several tokens; a new key is made in one",
                old.name
            ))
            .hint("name it with --token; `strongroom key import` brings one key onto several"));
        }
    };
    let Some(holder) = config.tokens.iter().find(|known| known.name == *token) else {
        return Err(Failure::new(
            CONFIG,
            format!("no token is configured as {token:?}"),
        ));
    };
    let change = Change::prepare_with(path, |text| {
        let new = Successor {
            old: &old.name,
            name: &name,
            token,
            ring: old.ring(),
            active: !args.stage,
        };
        edits::rotated(text, &new)
    })?;
    if args.existing {
        return Ok((name, change, false));
    }
    let request = GenerateKey {
        label: name.clone(),
        name: Some(name.clone()),
        token: token.clone(),
        audit: false,
    };
    let cannot = |error: &Error| Failure::api("cannot generate the key", error);
    match client.generate_key(&request).await {
        Ok(_) => {}
        Err(error) if error.kind == ErrorKind::AgentAway => {
            admin::generate_key(holder, &name).map_err(|error| cannot(&error))?;
        }
        Err(error) => return Err(cannot(&error)),
    }
    Ok((name, change, true))
}

/// The ring's name with the year; with month and day where that is taken.
fn next_name(config: &Config, old: &Key) -> Result<String, Failure> {
    let ring = old.ring();
    let year = |text: &str| text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit());
    let base = match ring.rsplit_once('-') {
        Some((base, end)) if year(end) => base,
        _ => ring,
    };
    let today = Zoned::now();
    let names = ["%Y", "%Y-%m", "%Y-%m-%d"].map(|form| format!("{base}-{}", today.strftime(form)));
    let free = |name: &&String| !config.keys.iter().any(|key| key.name == **name);
    names
        .iter()
        .find(free)
        .cloned()
        .ok_or_else(|| Failure::usage("today's names are all taken").hint("choose one with --name"))
}

/// Writes a change, has the agent take it over, and waits until `key` works;
/// or else puts everything back. False if no agent runs.
pub(super) async fn take_over(
    client: &Client,
    change: &Change,
    path: &Path,
    key: Option<&str>,
) -> Result<bool, Failure> {
    change.apply()?;
    let failure = match client.reload().await {
        Err(error) if error.kind == ErrorKind::AgentAway => return Ok(false),
        Err(error) => Failure::api("the agent refused the new configuration", &error),
        Ok(()) => match key {
            None => return Ok(true),
            Some(key) => match works(client, key).await {
                Ok(()) => return Ok(true),
                Err(failure) => failure,
            },
        },
    };
    Err(match change.undo() {
        Ok(()) => {
            // The old one, which the agent had before: nothing new to refuse.
            let _ = client.reload().await;
            failure.and(&format!("; {} is as it was", path.display()))
        }
        Err(undo) => {
            undo.report();
            failure
        }
    })
}

/// Waits until a token has let the key in.
async fn works(client: &Client, name: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let keys = client.keys().await;
        let keys = keys.map_err(|error| Failure::api("cannot ask for the new key", &error))?;
        let key = keys.iter().find(|key| key.name == name);
        if key.is_some_and(|key| key.ready) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = key.and_then(|key| key.problem.clone());
            let why = why.unwrap_or_else(|| "its token has not let it in".to_owned());
            return Err(
                Failure::new(FAILED, format!("key {name:?} does not work: {why}"))
                    .hint("`strongroom doctor` looks at the token and the key"),
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}
