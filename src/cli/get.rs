//! `strongroom get`: fetch an object and decrypt it.

use std::fs::File;
use std::io::Seek as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::failure::Failure;
use super::place::{S3Url, is_dash, range};
use super::progress::{ClearOnDrop, LOOK, Progress};
use super::target::{Target, Writer};
use super::ui::{Ui, shown, size};
use crate::api::{Error, ErrorKind};
use crate::client::{GetOptions, ObjectInfo};

#[derive(Args)]
#[command(
    after_help = "A file appears whole or not at all. On standard output bytes come as they are verified:\nonly an exit code of 0 says that all of them came."
)]
pub(super) struct GetArgs {
    /// The object
    #[arg(value_name = "s3://BUCKET/KEY")]
    from: S3Url,
    /// A file, a directory with a slash at its end, or `-` for standard output
    #[arg(value_name = "DST")]
    to: PathBuf,
    /// Only these bytes: 0-99, 100- or -100
    #[arg(long, value_name = "RANGE", value_parser = range, allow_hyphen_values = true)]
    range: Option<String>,
    /// Fail rather than replace a file
    #[arg(long)]
    no_clobber: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// How an object is opened; also of `cp` and `mv`.
#[derive(Args, Default)]
pub(super) struct OpenArgs {
    /// The place an object was written for, if it was copied here since
    #[arg(long, value_name = "s3://OLD/KEY")]
    bound_to: Option<S3Url>,
    /// Open a message that is bound to no place; you vouch for where it came from
    #[arg(long)]
    allow_unbound: bool,
    /// Open a version 1 message, which has no key commitment; you vouch for its writer
    #[arg(long)]
    allow_uncommitted: bool,
    /// This version of the object
    #[arg(long, value_name = "ID")]
    pub(super) version_id: Option<String>,
}

impl OpenArgs {
    /// The options of the request.
    pub(super) fn options(self, range: Option<String>) -> Result<GetOptions, Failure> {
        let bound_to = self.bound_to.map(S3Url::object).transpose()?;
        Ok(GetOptions {
            range,
            version_id: self.version_id,
            // As it stands: `Display` is for people, and escapes.
            bound_to: bound_to.map(|old| format!("s3://{}/{}", old.bucket, old.key)),
            allow_unbound: self.allow_unbound,
            allow_uncommitted: self.allow_uncommitted,
            ask_writers: false,
        })
    }
}

pub(super) async fn run(ui: &Ui, args: GetArgs) -> Result<(), Failure> {
    if ui.is_json() && is_dash(&args.to) {
        return Err(Failure::usage("--json and - both want standard output")
            .hint("name a file, or leave out --json"));
    }
    let from = args.from.object()?;
    let options = args.open.options(args.range)?;
    let info = fetch(ui, &from, &args.to, &options, args.no_clobber).await?;
    report(ui, &from, &args.to, &info)
}

/// Fetches an object to a path.
pub(super) async fn fetch(
    ui: &Ui,
    from: &S3Url,
    to: &Path,
    options: &GetOptions,
    no_clobber: bool,
) -> Result<ObjectInfo, Failure> {
    // Before the agent is troubled: what can be known here is said here.
    let mut target = Target::prepare(to, from.last_component(), no_clobber)?;
    let is_stream = target.is_stream();
    let cannot = |error| Failure::api(format_args!("cannot get {from}"), &error);
    if let Some(file) = target.file() {
        match pass(ui, from, options, file).await {
            Ok(info) => {
                note_foreign(ui, from, &info);
                Writer::start(target).finish().await?;
                return Ok(info);
            }
            // Some file systems' files the agent does not write.
            Err(error) if error.kind == ErrorKind::DescriptorRefused => empty(file, to)?,
            Err(error) => return Err(cannot(error).and("; nothing was written")),
        }
    }
    let mut download = ui
        .client()
        .get(&from.bucket, &from.key, options)
        .await
        .map_err(cannot)?;
    note_foreign(ui, from, &download.info);
    let progress = Progress::start(ui, from.last_component(), Some(download.info.length));
    let _clear = ClearOnDrop(progress.clone());
    let mut writer = Writer::start(target);
    loop {
        match download.next().await {
            Ok(Some(bytes)) => {
                progress.advance(bytes.len());
                writer.write(bytes).await?;
            }
            Ok(None) => break,
            Err(error) if is_stream => {
                return Err(cannot(error).and("; the output is incomplete"));
            }
            Err(error) => return Err(cannot(error).and("; nothing was written")),
        }
    }
    writer.finish().await?;
    Ok(download.info.clone())
}

/// Has the agent write the file. Its position, which agent and command share,
/// tells how far that is.
async fn pass(
    ui: &Ui,
    from: &S3Url,
    options: &GetOptions,
    file: &File,
) -> Result<ObjectInfo, Error> {
    let progress = Progress::start(ui, from.last_component(), None);
    let _clear = ClearOnDrop(progress.clone());
    let watch = async {
        loop {
            tokio::time::sleep(LOOK).await;
            // Its length is what it is to have.
            if let (Ok(at), Ok(meta)) = ((&*file).stream_position(), file.metadata()) {
                progress.of(at, meta.len());
            }
        }
    };
    let client = ui.client();
    tokio::select! {
        written = client.get_to_file(&from.bucket, &from.key, options, file) => written,
        never = watch => never,
    }
}

/// Takes back what may have been written.
fn empty(mut file: &File, to: &Path) -> Result<(), Failure> {
    let emptied = file.set_len(0).and_then(|()| file.rewind());
    emptied.map_err(|error| Failure::io(format!("cannot write {}", to.display()), &error))
}

/// Says that this host's catalogue did not know the message.
pub(super) fn note_foreign(ui: &Ui, from: &S3Url, info: &ObjectInfo) {
    if info.foreign_write {
        ui.note(&format!(
            "{from} was written by another host, or not recorded by this one; it is genuine, but whether it is the newest cannot be told here"
        ));
    }
}

/// What `--json` prints of a fetched object.
#[derive(Serialize)]
struct Fetched<'a> {
    bucket: &'a str,
    key: &'a str,
    path: &'a Path,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapping_key: Option<&'a str>,
    foreign_write: bool,
}

/// Tells of a fetched object.
pub(super) fn report(ui: &Ui, from: &S3Url, to: &Path, info: &ObjectInfo) -> Result<(), Failure> {
    if is_dash(to) {
        return Ok(());
    }
    if ui.is_json() {
        return ui.json(&Fetched {
            bucket: &from.bucket,
            key: &from.key,
            path: to,
            size: info.length,
            content_type: info.content_type.as_deref(),
            version_id: info.version_id.as_deref(),
            message_id: info.message_id.as_deref(),
            wrapping_key: info.wrapping_key.as_deref(),
            foreign_write: info.foreign_write,
        });
    }
    let key = info.wrapping_key.as_deref().unwrap_or("a key of ours");
    ui.done(&format!(
        "fetched {from}: {} to {}, opened by {}",
        size(info.length),
        shown(&to.display().to_string()),
        shown(key)
    ))
}
