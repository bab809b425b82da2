//! `strongroom key import`: the ceremony that brings a key into a token
//! (docs/ceremonies.md). `begin` and `finish` on the online host, `combine` on
//! the offline machine.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::edit::{self, NewKey};
use super::failure::{CONFIG, FAILED, Failure};
use super::hidden;
use super::ui::{Ui, shown};
use crate::admin::{self, Imported};
use crate::api::{Error, ErrorKind, ImportBegun, ImportKey, ImportStep, KeyInfo};
use crate::ceremony::{CeremonyError, Custodian, Envelope, MAX_FILE, Request};
use crate::client::Client;
use crate::components::{self, CheckValue, Component};
use crate::config::{self, Config};
use crate::transport::Fingerprint;

#[derive(Args)]
pub(super) struct ImportArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Online, first: make an RSA key pair in the token, and write the request for a key
    Begin(BeginArgs),
    /// Offline, second: combine the components, and seal the key for the token
    Combine(CombineArgs),
    /// Online, third: unwrap the key in the token, and enter it into the configuration
    Finish(FinishArgs),
    /// Online: give an import up, and destroy its RSA key pair
    Cancel(CancelArgs),
}

#[derive(Args)]
struct BeginArgs {
    /// The key's name: in the configuration, and for ever in every object it wraps
    name: String,
    /// The configured token that is to hold it
    #[arg(long)]
    token: String,
    /// Its label in the token [default: its name]
    #[arg(long)]
    label: Option<String>,
    /// The ring it belongs to [default: its name]
    #[arg(long)]
    ring: Option<String>,
    /// Where to write the request
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
}

#[derive(Args)]
#[command(
    after_help = "Asks for each custodian's component, unseen, and its check value. Prints the protocol, to be signed."
)]
struct CombineArgs {
    /// The request of `key import begin`
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Where to write the envelope
    #[arg(long, value_name = "FILE")]
    envelope: PathBuf,
    /// A custodian's name, for the protocol (repeatable, two or more)
    #[arg(long = "custodian", value_name = "NAME", required = true)]
    custodians: Vec<String>,
    /// A custodian's component, in the same order, from a pipe or a file in memory [default: asked for]
    #[arg(long, value_name = "FILE")]
    component_file: Vec<PathBuf>,
    /// The check value that the whole key must have [default: asked for]
    #[arg(long, value_name = "HEX")]
    check_value: Option<String>,
    /// The request's fingerprint as the online side read it out, at least half of it [default: asked for]
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
}

#[derive(Args)]
struct FinishArgs {
    /// The envelope of `key import combine`
    envelope: PathBuf,
    /// The envelope's fingerprint as the protocol has it, at least half of it [default: asked for]
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
}

#[derive(Args)]
struct CancelArgs {
    /// The label of the key that was to come (its name, unless begun with another)
    label: String,
    /// The configured token
    #[arg(long)]
    token: String,
}

pub(super) async fn run(ui: &Ui, args: ImportArgs) -> Result<(), Failure> {
    match args.action {
        Action::Begin(args) => begin(ui, args).await,
        Action::Combine(args) => combine(ui, args),
        Action::Finish(args) => finish(ui, &args).await,
        Action::Cancel(args) => cancel(ui, &args).await,
    }
}

async fn begin(ui: &Ui, args: BeginArgs) -> Result<(), Failure> {
    let config = Config::load(&ui.config())?;
    let token = token(&config, &args.token)?;
    let label = args.label.unwrap_or_else(|| args.name.clone());
    let entry = NewKey {
        name: &args.name,
        token: &args.token,
        label: &label,
        ring: args.ring.as_deref(),
        audit: false,
        imported: true,
    };
    // What the last step will enter must load: before anybody travels.
    edit::Change::prepare(&ui.config(), &entry)?;
    if args.request.exists() {
        return Err(Failure::new(
            FAILED,
            format!("{} exists already", args.request.display()),
        ));
    }
    let begun: ImportBegun = match step(ui, &config, token, &label, ImportStep::Begin).await? {
        (Imported::Begun(begun), _) => begun,
        _ => return Err(strange()),
    };
    let request = Request {
        format: Request::FORMAT.to_owned(),
        name: args.name,
        label,
        token: args.token,
        ring: args.ring,
        time: now(),
        public_key: begun.public_key,
        oaep_hash: begun.hash,
    };
    let print = request
        .fingerprint()
        .map_err(|error| unusable("request", &error))?;
    write_new(&args.request, &request)?;
    if ui.is_json() {
        return ui.json(&serde_json::json!({
            "request": args.request, "fingerprint": print.to_string(), "oaep_hash": request.oaep_hash,
        }));
    }
    ui.line(&format!(
        "import of {} into token {} has begun\nrequest      {}\nfingerprint  {print}\nread the fingerprint out to the offline side; the key pair waits in the token until `key import finish` or `key import cancel`",
        shown(&request.name),
        shown(&request.token),
        args.request.display(),
    ))
}

fn combine(ui: &Ui, args: CombineArgs) -> Result<(), Failure> {
    let text = read(&args.request)?;
    let request = Request::parse(&text).map_err(|error| unusable("request", &error))?;
    let files = args.component_file.len();
    if files > 0 && files != args.custodians.len() {
        return Err(Failure::usage(format!(
            "{} custodians and {files} component files",
            args.custodians.len()
        )));
    }
    hidden::harden();
    hidden::note_network(ui);
    let print = request
        .fingerprint()
        .map_err(|error| unusable("request", &error))?;
    confirm(
        args.fingerprint.as_deref(),
        print,
        "fingerprint of the token's key, as the online side reads it out",
    )?;
    let mut given: Vec<Component> = Vec::new();
    let mut custodians = Vec::new();
    for (n, name) in args.custodians.iter().enumerate() {
        let component = match args.component_file.get(n) {
            Some(path) => hidden::component_file(path)?,
            None => hidden::component(&shown(name))?,
        };
        custodians.push(Custodian {
            name: name.clone(),
            check_value: component.check_value().to_string(),
        });
        given.push(component);
    }
    let expected = match args.check_value {
        Some(text) => text,
        None => hidden::ask_openly(
            "check value of the whole key",
            "without a terminal, give it with --check-value",
        )?,
    };
    let expected: CheckValue = expected
        .parse()
        .map_err(|why: &str| Failure::usage(format!("{expected:?}: {why}")))?;
    let key = components::combine(&given).map_err(|error| {
        Failure::new(FAILED, format!("the components make no key: {error}"))
            .hint("one of them is wrong; nothing was written")
    })?;
    drop(given);
    let envelope = request
        .seal(&key, expected, custodians, now())
        .map_err(|error| unusable("key", &error))?;
    drop(key);
    let print = write_new(&args.envelope, &envelope)?;
    if ui.is_json() {
        return ui.json(&serde_json::json!({
            "envelope": args.envelope,
            "fingerprint": print.to_string(),
            "check_value": envelope.check_value,
            "custodians": envelope.custodians,
        }));
    }
    ui.line(&protocol(&envelope, print)?)
}

/// What the people in the room sign.
fn protocol(envelope: &Envelope, print: Fingerprint) -> Result<String, Failure> {
    let request = &envelope.request;
    let pair = request
        .fingerprint()
        .map_err(|error| unusable("request", &error))?;
    let mut text = format!(
        "PROTOCOL OF A KEY IMPORT\n\n\
         key                    {}\n\
         into token             {}, label {}\n\
         requested              {}\n\
         combined               {}\n\
         fingerprint of the token's key\n  {pair}\n\
         wrapped by             RFC 3394 (AES-256), RSA-OAEP with {}\n\
         check value of the key {}\n\
         fingerprint of the envelope\n  {print}\n\n\
         custodian                      check value   signature\n",
        shown(&request.name),
        shown(&request.token),
        shown(&request.label),
        shown(&request.time),
        shown(&envelope.time),
        request.oaep_hash,
        envelope.check_value,
    );
    for custodian in &envelope.custodians {
        text.push_str(&format!(
            "{:<30} {:<13} ______________________\n",
            shown(&custodian.name),
            custodian.check_value
        ));
    }
    text.push_str("\nplace, date ________________________   witness ______________________");
    Ok(text)
}

async fn finish(ui: &Ui, args: &FinishArgs) -> Result<(), Failure> {
    let path = ui.config();
    let config = Config::load(&path)?;
    let text = read(&args.envelope)?;
    let envelope = Envelope::parse(&text).map_err(|error| unusable("envelope", &error))?;
    let request = &envelope.request;
    let token = token(&config, &request.token)?;
    // Anybody could seal a key of his own for the token's public key: it is
    // the people of the ceremony who say which envelope is theirs.
    let print = Fingerprint::of(text.as_bytes());
    confirm(
        args.fingerprint.as_deref(),
        print,
        "fingerprint of the envelope, as the signed protocol has it",
    )?;
    let change = edit::Change::prepare(
        &path,
        &NewKey {
            name: &request.name,
            token: &request.token,
            label: &request.label,
            ring: request.ring.as_deref(),
            audit: false,
            imported: true,
        },
    )?;
    let wanted = envelope
        .step()
        .map_err(|error| unusable("envelope", &error))?;
    let (info, through_agent) = match step(ui, &config, token, &request.label, wanted).await? {
        (Imported::Finished(info), through_agent) => (*info, through_agent),
        _ => return Err(strange()),
    };
    let client = Client::new(&ui.socket(Some(&config.agent.socket)));
    change
        .apply()
        .map_err(|failure| super::key::orphaned(failure, &request.label))?;
    if through_agent {
        super::key::reload(&client, &change, &path, &request.label).await?;
    }
    let info = KeyInfo {
        name: request.name.clone(),
        ring: request.ring.clone().unwrap_or_else(|| request.name.clone()),
        ..info
    };
    if ui.is_json() {
        return ui.json(&info);
    }
    ui.line(&format!(
        "imported {} into token {}, label {}, {}\ncheck value of the key {}\nthe token proved that it is the key of the envelope {print}\nits transport key and RSA key pair are destroyed; {} names the key{}",
        shown(&info.name),
        shown(&info.token),
        shown(&info.label),
        now(),
        envelope.check_value,
        path.display(),
        if through_agent {
            ", and the agent uses it"
        } else {
            ""
        }
    ))
}

async fn cancel(ui: &Ui, args: &CancelArgs) -> Result<(), Failure> {
    let config = Config::load(&ui.config())?;
    let token = token(&config, &args.token)?;
    step(ui, &config, token, &args.label, ImportStep::Cancel).await?;
    ui.done(&format!(
        "cancelled the import of {}; its RSA key pair is destroyed",
        shown(&args.label)
    ))
}

/// Takes a step through the agent or, where none runs, without it; and which
/// of the two it was.
async fn step(
    ui: &Ui,
    config: &Config,
    token: &config::Token,
    label: &str,
    step: ImportStep,
) -> Result<(Imported, bool), Failure> {
    let client = Client::new(&ui.socket(Some(&config.agent.socket)));
    let request = ImportKey {
        label: label.to_owned(),
        token: token.name.clone(),
        step,
    };
    let taken = match &request.step {
        ImportStep::Begin => client.import_key(&request).await.map(Imported::Begun),
        ImportStep::Finish { .. } => client.import_key(&request).await.map(Imported::Finished),
        ImportStep::Cancel => client
            .import_key::<serde_json::Value>(&request)
            .await
            .map(|_| Imported::Cancelled),
    };
    let cannot = |error: &Error| {
        let failure = Failure::api("cannot import the key", error);
        match error.kind {
            // The table speaks of requests, and of other people's labels.
            ErrorKind::Malformed => failure.hint("nothing was changed; check that envelope, token and label belong together (docs/ceremonies.md)"),
            _ => failure,
        }
    };
    match taken {
        Ok(taken) => Ok((taken, true)),
        Err(error) if error.kind == ErrorKind::AgentAway => {
            let taken = admin::import_key(token, label, request.step);
            Ok((taken.map_err(|error| cannot(&error))?, false))
        }
        Err(error) => Err(cannot(&error)),
    }
}

fn confirm(given: Option<&str>, ours: Fingerprint, what: &str) -> Result<(), Failure> {
    let typed = match given {
        Some(given) => given.to_owned(),
        None => hidden::ask_openly(what, "without a terminal, give it with --fingerprint")?,
    };
    if ours.is(&typed) {
        return Ok(());
    }
    Err(Failure::new(
        FAILED,
        format!("the fingerprint does not match: the file at hand has {ours}"),
    )
    .hint("type at least its first eight groups as the other side has them; if they differ, the file was exchanged on the way"))
}

fn token<'a>(config: &'a Config, name: &str) -> Result<&'a config::Token, Failure> {
    let found = config.tokens.iter().find(|token| token.name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = config.tokens.iter().map(|t| t.name.as_str()).collect();
        Failure::new(CONFIG, format!("no token is configured as {name:?}"))
            .hint(format!("configured: {}", known.join(", ")))
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    let cannot =
        |error: &std::io::Error| Failure::io(format!("cannot read {}", path.display()), error);
    let meta = fs::metadata(path).map_err(|error| cannot(&error))?;
    if meta.len() > MAX_FILE {
        return Err(cannot(&std::io::Error::other("it is too long")));
    }
    fs::read_to_string(path).map_err(|error| cannot(&error))
}

/// Writes a file that must not exist yet; gives its fingerprint.
fn write_new(path: &Path, value: &impl serde::Serialize) -> Result<Fingerprint, Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(FAILED, format!("cannot write JSON: {error}")))?;
    text.push('\n');
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| Failure::io(format!("cannot write {}", path.display()), &error))?;
    Ok(Fingerprint::of(text.as_bytes()))
}

fn unusable(what: &str, error: &CeremonyError) -> Failure {
    Failure::new(FAILED, format!("cannot use the {what}: {error}"))
}

fn strange() -> Failure {
    Failure::new(FAILED, "the token took another step than it was asked to")
}

fn now() -> String {
    let now = Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}
