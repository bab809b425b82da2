//! `strongroom recover`: open a downloaded object offline, with a key that no
//! agent has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::failure::{FAILED, Failure, WRONG_KEY};
use super::hidden;
use super::place::{S3Url, is_dash};
use super::progress::{ClearOnDrop, Progress};
use super::target::{Target, Writer};
use super::ui::{Ui, shown, size};
use crate::components;
use crate::message::Permit;
use crate::recover::{self, Error, Facts, Key, KeyError, Object, RecoveryKey, Unlocked};

/// Longest file with a private key, in bytes: RSA-16384 in PEM has 13 KiB.
const MAX_KEY_FILE: u64 = 64 << 10;

#[derive(Args)]
#[command(
    after_help = "Needs no agent, no store and no configuration. A file appears whole or not at all.\nExit code 67 says that this key does not open this object, 65 that the object is altered or another one."
)]
pub(super) struct RecoverArgs {
    /// The object, as it was downloaded
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A file, a directory with a slash at its end, or `-` for standard output
    #[arg(short, long, value_name = "DST")]
    output: PathBuf,
    /// Fail rather than replace a file
    #[arg(long)]
    no_clobber: bool,
    #[command(flatten)]
    key: KeyArgs,
    /// The object's keyslot, as it was downloaded, for a key that it was rewrapped to
    #[arg(long, value_name = "FILE")]
    keyslot: Option<PathBuf>,
    /// The place that the object must have been written for
    #[arg(long, value_name = "s3://BUCKET/KEY")]
    expect: Option<S3Url>,
    /// Open a version 1 message, which has no key commitment; you vouch for its writer
    #[arg(long)]
    allow_uncommitted: bool,
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct KeyArgs {
    /// The private half of an RSA recipient, in PEM: PKCS#8, encrypted PKCS#8 or PKCS#1
    #[arg(long, value_name = "FILE", conflicts_with_all = ["module", "components", "component_file"])]
    private_key: Option<PathBuf>,
    /// A file (mode 0400) with the private key's passphrase [default: asked for]
    #[arg(long, value_name = "FILE", requires = "private_key")]
    passphrase_file: Option<PathBuf>,
    /// The PKCS#11 library of a token that holds the key
    #[arg(long, value_name = "PATH", requires_all = ["token_label", "key_label", "pin_file"], conflicts_with_all = ["components", "component_file"])]
    module: Option<PathBuf>,
    /// The token's label
    #[arg(long, value_name = "LABEL", requires = "module")]
    token_label: Option<String>,
    /// The key's label in the token: an RSA private key's, or a wrapping key's
    #[arg(long, value_name = "LABEL", requires = "module")]
    key_label: Option<String>,
    /// A file (mode 0400) with the token's user PIN
    #[arg(long, value_name = "FILE", requires = "module")]
    pin_file: Option<PathBuf>,
    /// The wrapping key's components, so many, typed one after the other
    #[arg(long, value_name = "COUNT", conflicts_with = "component_file")]
    components: Option<usize>,
    /// A component, from a pipe or a file in memory (repeatable)
    #[arg(long, value_name = "FILE")]
    component_file: Vec<PathBuf>,
}

pub(super) async fn run(ui: &Ui, args: RecoverArgs) -> Result<(), Failure> {
    if ui.is_json() && is_dash(&args.output) {
        return Err(Failure::usage("--json and - both want standard output")
            .hint("name a file, or leave out --json"));
    }
    let expected = args.expect.map(S3Url::object).transpose()?;
    let name = shown(&args.file.display().to_string());
    let cannot = |error: Error| failure(&name, error);
    let permit = Permit {
        uncommitted: args.allow_uncommitted,
    };
    // What can be known without a secret is said before one is asked for.
    let mut object = Object::open(&args.file, permit).map_err(cannot)?;
    if let Some(slot) = &args.keyslot {
        let name = shown(&slot.display().to_string());
        object
            .add_keyslot(slot)
            .map_err(|error| failure(&name, error))?;
    }
    hidden::harden();
    let mut key = args.key.read()?;
    let place = expected
        .as_ref()
        .map(|url| (url.bucket.as_str(), url.key.as_str()));
    let mut unlocked = object.unlock(&mut key, place).map_err(cannot)?;
    // Nothing more is opened with it.
    drop(key);
    let facts = unlocked.facts().clone();
    let last = facts
        .place
        .as_ref()
        .map_or("", |(_, key)| key.rsplit('/').next().unwrap_or_default());
    let target = Target::prepare(&args.output, last, args.no_clobber)?;
    note(ui, &name, &facts, place.is_some());
    release(ui, &name, &mut unlocked, target).await?;
    report(ui, &name, &args.output, &facts)
}

async fn release(
    ui: &Ui,
    name: &str,
    unlocked: &mut Unlocked,
    target: Target,
) -> Result<(), Failure> {
    let is_stream = target.is_stream();
    let progress = Progress::start(ui, name, Some(unlocked.facts().length));
    let _clear = ClearOnDrop(progress.clone());
    let mut writer = Writer::start(target);
    loop {
        match unlocked.next_piece() {
            Ok(Some(bytes)) => {
                progress.advance(bytes.len());
                writer.write(bytes).await?;
            }
            Ok(None) => return writer.finish().await,
            Err(error) if is_stream => {
                return Err(failure(name, error).and("; the output is incomplete"));
            }
            Err(error) => return Err(failure(name, error).and("; nothing was written")),
        }
    }
}

impl KeyArgs {
    /// The key, from wherever it is.
    fn read(self) -> Result<Key, Failure> {
        if let Some(path) = &self.private_key {
            return private_key(path, self.passphrase_file.as_deref());
        }
        if let (Some(module), Some(token_label), Some(key_label), Some(pin_file)) =
            (self.module, self.token_label, self.key_label, self.pin_file)
        {
            let key = RecoveryKey {
                module,
                token_label,
                key_label,
                pin_file,
            };
            return Key::in_token(key).map_err(|error| unusable(&error));
        }
        let mut given = Vec::new();
        for n in 1..=self.components.unwrap_or_default() {
            given.push(hidden::component(&format!("custodian {n}"))?);
        }
        for path in &self.component_file {
            given.push(hidden::component_file(path)?);
        }
        let key = components::combine(&given)
            .map_err(|error| Failure::new(FAILED, format!("no key: {error}")))?;
        Ok(Key::Aes(key))
    }
}

fn private_key(path: &Path, passphrase_file: Option<&Path>) -> Result<Key, Failure> {
    let cannot =
        |error: &std::io::Error| Failure::io(format!("cannot read {}", path.display()), error);
    let meta = fs::metadata(path).map_err(|error| cannot(&error))?;
    if meta.len() > MAX_KEY_FILE {
        return Err(Failure::new(
            FAILED,
            format!("{} is too long for a private key", path.display()),
        ));
    }
    let bytes = fs::read(path).map_err(|error| cannot(&error))?;
    let pem = zeroize::Zeroizing::new(
        String::from_utf8(bytes)
            .map_err(|_| Failure::new(FAILED, format!("{} is not PEM", path.display())))?,
    );
    let given = passphrase_file.map(hidden::passphrase_file).transpose()?;
    let named = |error: &KeyError| unusable(error).and(&format!(" ({})", path.display()));
    match recover::read_private_key(&pem, given.as_ref()) {
        Err(KeyError::Encrypted) => {
            let asked = hidden::ask(
                &format!("passphrase of {}: ", path.display()),
                "without a terminal, name a file with --passphrase-file",
            )?;
            recover::read_private_key(&pem, Some(&asked)).map_err(|error| named(&error))
        }
        other => other.map_err(|error| named(&error)),
    }
}

fn unusable(error: &KeyError) -> Failure {
    match error {
        KeyError::Token(error) => Failure::api("cannot use the key in the token", error),
        error => Failure::new(FAILED, format!("cannot use the private key: {error}")),
    }
}

fn failure(name: &str, error: Error) -> Failure {
    let what = format!("cannot recover {name}");
    match error {
        Error::WrongKey { detail, hint } => {
            Failure::new(WRONG_KEY, format!("{what}: {}", shown(&detail))).hint(shown(&hint))
        }
        Error::Object(error) => Failure::api(what, &error),
        Error::Key(error) => unusable(&error),
        Error::Io(error) => Failure::io(what, &error),
    }
}

/// What whoever recovers an object should know before he trusts it.
fn note(ui: &Ui, name: &str, facts: &Facts, compared: bool) {
    if !facts.origin_proven {
        ui.note(&format!(
            "{name}: its origin is not proven: it was opened with an RSA key, and anybody who has the public half could have written it"
        ));
    }
    if compared {
        return;
    }
    match &facts.place {
        Some((bucket, key)) => ui.note(&format!(
            "{name} was written for s3://{}/{}{}; --expect compares that",
            shown(bucket),
            shown(key),
            facts
                .created
                .map_or_else(String::new, |ms| format!(", {}", time(ms)))
        )),
        None => ui.note(&format!("{name} is bound to no place")),
    }
}

/// What `--json` prints of a recovered object.
#[derive(Serialize)]
struct Recovered<'a> {
    path: &'a Path,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    message_id: &'a str,
    wrapping_key: &'a str,
    /// `proven` or `unproven`.
    origin: &'a str,
    committed: bool,
    context: BTreeMap<&'a str, &'a str>,
}

fn report(ui: &Ui, name: &str, to: &Path, facts: &Facts) -> Result<(), Failure> {
    if is_dash(to) {
        return Ok(());
    }
    if ui.is_json() {
        let place = facts.place.as_ref();
        return ui.json(&Recovered {
            path: to,
            size: facts.length,
            bucket: place.map(|(bucket, _)| bucket.as_str()),
            key: place.map(|(_, key)| key.as_str()),
            created: facts.created.map(time),
            message_id: &facts.message_id,
            wrapping_key: &facts.wrapping_key,
            origin: match facts.origin_proven {
                true => "proven",
                false => "unproven",
            },
            committed: facts.committed,
            context: facts
                .context
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
        });
    }
    ui.done(&format!(
        "recovered {name}: {} to {}, opened by {}",
        size(facts.length),
        shown(&to.display().to_string()),
        shown(&facts.wrapping_key)
    ))
}

/// A time for people and programs: RFC 3339, to the second.
fn time(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .and_then(|time| time.round(jiff::Unit::Second).ok())
        .map_or_else(|| format!("{unix_ms} ms"), |time| time.to_string())
}
