//! `strongroom put`: encrypt a file or a stream and store it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Seek as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::failure::Failure;
use super::place::{S3Url, instant, is_dash, pair};
use super::progress::{ClearOnDrop, LOOK, Progress};
use super::queue;
use super::source::Source;
use super::ui::{Ui, size};
use crate::api::{Error, ErrorKind, Queued, Receipt};
use crate::client::{PutOptions, Resumable, Upload};

#[derive(Args)]
#[command(
    override_usage = "strongroom put [OPTIONS] <SRC|-> <s3://BUCKET/KEY>\n       strongroom put [OPTIONS] <s3://BUCKET/KEY> --from-command <CMD>...",
    after_help = "A key that ends in `/` (or a bucket alone) takes the source's file name.\nNothing is stored unless all of it is: a file that changes while it is read, a command\nthat fails or a killed `put` leave no object."
)]
pub(super) struct PutArgs {
    /// A file, a FIFO, `<(command)` or `-` for standard input; then the place
    #[arg(required = true, value_names = ["SRC", "s3://BUCKET/KEY"], num_args = 1..)]
    places: Vec<OsString>,
    /// Store the output of this command (all that follows); nothing if it fails
    #[arg(long, value_name = "CMD", num_args = 0.., allow_hyphen_values = true)]
    from_command: Option<Vec<OsString>>,
    /// The number of bytes to come from a pipe; any other number stores nothing
    #[arg(long, value_name = "BYTES")]
    size: Option<u64>,
    /// Go on where an interrupted put of the same unchanged file stopped
    #[arg(long, conflicts_with_all = ["from_command", "size"])]
    resume: bool,
    /// If the store is away, leave the sealed object with the agent, which sends it later
    #[arg(long, conflicts_with = "resume")]
    queue: bool,
    #[command(flatten)]
    options: StoreArgs,
}

/// How an object is stored; also of `cp` and `mv`.
#[derive(Args, Default)]
pub(super) struct StoreArgs {
    /// A pair for the authenticated encryption context (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    /// The object's media type
    #[arg(long, value_name = "TYPE")]
    pub(super) content_type: Option<String>,
    /// S3 storage class, such as GLACIER_IR
    #[arg(long, value_name = "CLASS")]
    storage_class: Option<String>,
    /// Object Lock: retain until this date or instant
    #[arg(long, value_name = "WHEN", value_parser = instant, requires = "retention_mode")]
    retain_until: Option<String>,
    /// Object Lock: who may shorten the retention
    #[arg(
        long,
        value_name = "MODE",
        ignore_case = true,
        requires = "retain_until"
    )]
    retention_mode: Option<RetentionMode>,
    /// Object Lock: hold until released
    #[arg(long)]
    legal_hold: bool,
    /// An object tag (repeatable); visible to the provider
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    tag: Vec<(String, String)>,
    /// The ring whose active wrapping key is used
    #[arg(long, value_name = "RING")]
    key: Option<String>,
    /// Fail rather than replace what exists
    #[arg(long)]
    pub(super) no_clobber: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RetentionMode {
    /// Those with a special permission may
    Governance,
    /// Nobody may
    Compliance,
}

impl RetentionMode {
    /// S3's name for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }
}

impl StoreArgs {
    /// The options of the request.
    pub(super) fn options(self) -> PutOptions {
        PutOptions {
            context: self.context,
            content_type: self.content_type,
            storage_class: self.storage_class,
            retain_until: self.retain_until,
            retention_mode: self.retention_mode.map(|mode| mode.name().to_owned()),
            legal_hold: self.legal_hold,
            tags: self.tag,
            ring: self.key,
            no_clobber: self.no_clobber,
        }
    }
}

/// What the positional arguments and `--from-command` come to.
#[derive(Debug, PartialEq, Eq)]
enum From {
    Path(PathBuf),
    Command(Vec<OsString>),
}

impl PutArgs {
    /// Where from and where to. A `--` before the command is welcome: it may
    /// reach us among the command's words.
    fn places(&mut self) -> Result<(From, S3Url), Failure> {
        let mut places = std::mem::take(&mut self.places).into_iter();
        let (from, to) = if let Some(mut words) = self.from_command.take() {
            let to = places.next().unwrap_or_default();
            words.extend(places);
            if words.first().is_some_and(|word| word == "--") {
                words.remove(0);
            }
            (From::Command(words), to)
        } else {
            match (places.next(), places.next(), places.next()) {
                (Some(from), Some(to), None) => (From::Path(from.into()), to),
                (_, _, Some(more)) => {
                    return Err(Failure::usage(format!(
                        "put takes one source and one place, not also {more:?}"
                    ))
                    .hint("quote names with spaces; call put once for each file"));
                }
                _ => {
                    return Err(Failure::usage("put takes a source and a place")
                        .hint("strongroom put SRC s3://BUCKET/KEY"));
                }
            }
        };
        let to = to
            .to_str()
            .ok_or_else(|| Failure::usage(format!("{to:?} is not UTF-8")))?;
        let url = to
            .parse()
            .map_err(|why: String| Failure::usage(format!("{}: {why}", super::ui::shown(to))))?;
        Ok((from, url))
    }
}

pub(super) async fn run(ui: &Ui, mut args: PutArgs) -> Result<(), Failure> {
    let (from, to) = args.places()?;
    let options = args.options.options();
    if args.queue {
        let (source, to) = match from {
            From::Path(path) => open(&path, args.size, to).await?,
            From::Command(words) => (
                Source::command(&words, args.size)?,
                to.object_named_like(None)?,
            ),
        };
        return match store_queued(ui, source, &to, &options).await? {
            Queued::Stored(receipt) => report(ui, &receipt),
            Queued::Ticket(ticket) if ui.is_json() => ui.json(&ticket),
            Queued::Ticket(ticket) => ui.done(&format!("queued {}", queue::text(&ticket))),
        };
    }
    let receipt = match from {
        From::Path(path) if args.resume => resume(ui, &path, to, &options).await?,
        From::Path(path) => store_path(ui, &path, args.size, to, &options).await?,
        From::Command(words) => {
            let to = to.object_named_like(None)?;
            let source = Source::command(&words, args.size)?;
            store(ui, source, &to, &options).await?
        }
    };
    report(ui, &receipt)
}

/// Stores a file, and goes on where that was interrupted before.
async fn resume(ui: &Ui, path: &Path, to: S3Url, options: &PutOptions) -> Result<Receipt, Failure> {
    let to = to.object_named_like(path.file_name())?;
    let name = path.display();
    let file = File::open(path).and_then(|file| Ok((file.metadata()?.is_file(), file)));
    let (regular, file) =
        file.map_err(|error| Failure::io(format!("cannot read {name}"), &error))?;
    if !regular {
        return Err(
            Failure::usage(format!("--resume: {name} is no regular file"))
                .hint("only a file can be read again: leave --resume out"),
        );
    }
    let source =
        Resumable::of(file).map_err(|error| Failure::io(format!("cannot read {name}"), &error))?;
    let progress = Progress::start(ui, to.last_component(), Some(source.length));
    let _clear = ClearOnDrop(progress.clone());
    let source = Resumable {
        progress: Arc::new(move |at| progress.at(at)),
        ..source
    };
    let stored = ui
        .client()
        .resumable_put(&to.bucket, &to.key, options, &source)
        .await;
    stored.map_err(|error| Failure::api(format_args!("cannot put {to}"), &error))
}

/// Stores what a path names.
pub(super) async fn store_path(
    ui: &Ui,
    path: &Path,
    size: Option<u64>,
    to: S3Url,
    options: &PutOptions,
) -> Result<Receipt, Failure> {
    let (source, to) = open(path, size, to).await?;
    store(ui, source, &to, options).await
}

/// The source that a path names, and the object it becomes.
async fn open(path: &Path, size: Option<u64>, to: S3Url) -> Result<(Source, S3Url), Failure> {
    let name = if is_dash(path) {
        None
    } else {
        path.file_name()
    };
    let to = to.object_named_like(name)?;
    // Opening a FIFO waits for its writer.
    let path = path.to_owned();
    let source = tokio::task::spawn_blocking(move || Source::open(&path, size))
        .await
        .unwrap_or_else(|_| Err(Failure::new(1, "cannot open the source")))?;
    Ok((source, to))
}

async fn store_queued(
    ui: &Ui,
    source: Source,
    to: &S3Url,
    options: &PutOptions,
) -> Result<Queued, Failure> {
    let progress = Progress::start(ui, to.last_component(), source.length);
    let _clear = ClearOnDrop(progress.clone());
    let (upload, verdict) = source.start(progress);
    let client = ui.client();
    let answer = client.put_queued(&to.bucket, &to.key, options, upload);
    answer.await.map_err(|error| match verdict.take() {
        Some(failure) if is_consequence(error.kind) => failure,
        _ => Failure::api(format_args!("cannot put {to}"), &error),
    })
}

async fn store(
    ui: &Ui,
    source: Source,
    to: &S3Url,
    options: &PutOptions,
) -> Result<Receipt, Failure> {
    let progress = Progress::start(ui, to.last_component(), source.length);
    let _clear = ClearOnDrop(progress.clone());
    if let Some((file, length)) = source.descriptor() {
        let stored = pass(ui, file, length, to, options, &progress).await;
        match stored {
            // Some file systems' files the agent does not read; bytes it takes.
            Err(error) if error.kind == ErrorKind::DescriptorRefused => {}
            Err(error) if error.kind == ErrorKind::Incomplete => {
                let cannot = || Failure::api(format_args!("cannot put {to}"), &error);
                return Err(source.blame().unwrap_or_else(cannot));
            }
            stored => {
                return stored
                    .map_err(|error| Failure::api(format_args!("cannot put {to}"), &error));
            }
        }
    }
    let (upload, verdict) = source.start(progress);
    let answer = ui.client().put(&to.bucket, &to.key, options, upload).await;
    answer.map_err(|error| match verdict.take() {
        // A source that failed breaks the body off; the agent can only tell
        // that it broke.
        Some(failure) if is_consequence(error.kind) => failure,
        _ => Failure::api(format_args!("cannot put {to}"), &error),
    })
}

/// Has the agent read the file. Its position, which agent and command share,
/// tells how far that is.
async fn pass(
    ui: &Ui,
    file: &File,
    length: u64,
    to: &S3Url,
    options: &PutOptions,
    progress: &Progress,
) -> Result<Receipt, Error> {
    let upload = Upload::from_file(file, length)
        .map_err(|error| Error::new(ErrorKind::DescriptorRefused, error.to_string()))?;
    let position = || (&*file).stream_position().unwrap_or(0);
    let start = position();
    let watch = async {
        loop {
            tokio::time::sleep(LOOK).await;
            progress.at(position().saturating_sub(start));
        }
    };
    let client = ui.client();
    let receipt = tokio::select! {
        stored = client.put(&to.bucket, &to.key, options, upload) => stored?,
        never = watch => never,
    };
    // An agent that knows nothing of descriptors sees an empty body.
    if receipt.plaintext_size == length {
        return Ok(receipt);
    }
    let size = receipt.plaintext_size;
    Err(Error::new(
        ErrorKind::Incomplete,
        format!("the agent stored {size} bytes instead of {length}"),
    )
    .hint("is it of another version than this command?"))
}

/// Whether an error may be the consequence of a body that broke off.
pub(super) fn is_consequence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Incomplete | ErrorKind::AgentAway)
}

/// Tells of a stored object.
pub(super) fn report(ui: &Ui, receipt: &Receipt) -> Result<(), Failure> {
    if ui.is_json() {
        return ui.json(receipt);
    }
    let place = S3Url {
        bucket: receipt.bucket.clone(),
        key: receipt.key.clone(),
    };
    let mut text = format!(
        "stored {place}: {}, data key wrapped by {}",
        size(receipt.plaintext_size),
        receipt.wrapping_key
    );
    if ui.is_verbose() {
        text.push_str(&format!(
            "\n  {} bytes of plaintext, {} in the store, checksum {}\n  message id {}",
            receipt.plaintext_size, receipt.stored_size, receipt.checksum, receipt.message_id
        ));
        if let Some(version) = &receipt.version_id {
            text.push_str(&format!("\n  version {}", super::ui::shown(version)));
        }
    }
    ui.done(&text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn parse(words: &[&str]) -> PutArgs {
        let cli = Cli::try_parse_from(["strongroom", "put"].iter().chain(words)).unwrap();
        match cli.command {
            Command::Put(args) => args,
            _ => panic!("not put"),
        }
    }

    #[test]
    fn a_commands_own_options_are_its_own() {
        let command = |words: &[&str]| From::Command(words.iter().map(OsString::from).collect());
        let url: S3Url = "s3://b/k".parse().unwrap();
        let mut args = parse(&[
            "s3://b/k",
            "--from-command",
            "pg_dump",
            "-Fc",
            "--json",
            "db",
        ]);
        assert_eq!(
            args.places().unwrap(),
            (command(&["pg_dump", "-Fc", "--json", "db"]), url.clone())
        );
        for words in [
            &["s3://b/k", "--from-command", "--", "sh", "-c", "x"][..],
            &["s3://b/k", "--from-command", "sh", "-c", "x"],
        ] {
            let places = parse(words).places().unwrap();
            assert_eq!(places, (command(&["sh", "-c", "x"]), url.clone()));
        }
    }

    #[test]
    fn one_source_and_one_place() {
        let mut args = parse(&["-", "s3://b/k", "--no-clobber"]);
        assert_eq!(args.places().unwrap().0, From::Path("-".into()));
        assert!(args.options.options().no_clobber);
        assert!(parse(&["s3://b/k"]).places().is_err());
        assert!(parse(&["a", "b", "s3://b/k"]).places().is_err());
        assert!(parse(&["a", "b"]).places().is_err());
    }

    #[test]
    fn options_become_the_requests() {
        let args = parse(&[
            "a",
            "s3://b/k",
            "--context",
            "team=a",
            "--context",
            "run=7",
            "--tag",
            "x=y",
            "--retain-until",
            "2033-12-31",
            "--retention-mode",
            "COMPLIANCE",
            "--legal-hold",
            "--key",
            "archive",
        ]);
        let options = args.options.options();
        assert_eq!(options.context.len(), 2);
        assert_eq!(options.tags, [("x".into(), "y".into())]);
        assert_eq!(options.retention_mode.as_deref(), Some("COMPLIANCE"));
        assert_eq!(
            options.retain_until.as_deref(),
            Some("2033-12-31T00:00:00Z")
        );
        assert!(options.legal_hold);
        assert_eq!(options.ring.as_deref(), Some("archive"));
    }

    #[test]
    fn a_retention_without_its_mode_is_wrong_usage() {
        let words = [
            "strongroom",
            "put",
            "a",
            "s3://b/k",
            "--retain-until",
            "2033-12-31",
        ];
        assert!(Cli::try_parse_from(words).is_err());
    }
}
