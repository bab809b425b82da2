//! `strongroom cp` and `mv`. An object is bound to its place, so a copy in
//! the store is decrypted and encrypted anew, on its way through here.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use clap::Args;
use tokio::sync::mpsc;

use super::failure::{FAILED, Failure, USAGE};
use super::get::{self, OpenArgs};
use super::place::{Place, S3Url, is_dash};
use super::progress::{ClearOnDrop, Progress};
use super::put::{self, StoreArgs};
use super::ui::Ui;
use crate::api::{ErrorKind, Receipt};
use crate::client::{GetOptions, ObjectInfo, PutOptions, Upload};

/// Chunks between the two requests.
const QUEUE: usize = 8;

#[derive(Args)]
#[command(
    after_help = "Either end may be a file or `-`; then cp does what put or get does.\nA copy has the source's content type and none of its context pairs and tags: name them anew."
)]
pub(super) struct CpArgs {
    /// From: s3://BUCKET/KEY, or a file
    #[arg(value_name = "SRC")]
    from: OsString,
    /// To: s3://BUCKET/KEY, or a file
    #[arg(value_name = "DST")]
    to: OsString,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Args)]
#[command(
    after_help = "The source is deleted only after the store has acknowledged the copy, and only if it is still\nwhat was copied."
)]
pub(super) struct MvArgs {
    #[command(flatten)]
    cp: CpArgs,
}

pub(super) async fn copy(ui: &Ui, args: CpArgs) -> Result<(), Failure> {
    transfer(ui, args, false).await
}

pub(super) async fn rename(ui: &Ui, args: MvArgs) -> Result<(), Failure> {
    if args.cp.open.version_id.is_some() {
        return Err(
            Failure::usage("mv moves the current version; --version-id names another")
                .hint("use cp, then rm"),
        );
    }
    transfer(ui, args.cp, true).await
}

async fn transfer(ui: &Ui, args: CpArgs, is_move: bool) -> Result<(), Failure> {
    let open = args.open.options(None)?;
    let store = args.store.options();
    match (Place::parse(args.from)?, Place::parse(args.to)?) {
        (Place::S3(from), Place::S3(to)) => {
            let from = from.object()?;
            let name = OsString::from(from.last_component());
            let to =
                to.object_named_like(Some(&name).filter(|n| !n.is_empty()).map(AsRef::as_ref))?;
            if is_move && from == to {
                return Err(Failure::usage(format!("{from} is already there")));
            }
            let (receipt, info) = between(ui, &from, &to, &open, store).await?;
            if is_move {
                delete_if_unchanged(ui, &from, &info, &open).await?;
            }
            put::report(ui, &receipt)
        }
        (Place::Local(from), Place::S3(to)) => {
            if is_move && is_dash(&from) {
                return Err(Failure::usage("mv cannot delete standard input").hint("use put"));
            }
            let before = if is_move {
                Some(identity(&from)?)
            } else {
                None
            };
            let receipt = put::store_path(ui, &from, None, to, &store).await?;
            if let Some(before) = before {
                remove_file(&from, &before)?;
            }
            put::report(ui, &receipt)
        }
        (Place::S3(from), Place::Local(to)) => {
            if is_move && is_dash(&to) {
                return Err(
                    Failure::usage("mv to standard output could lose the only copy")
                        .hint("use get, then rm"),
                );
            }
            let from = from.object()?;
            let info = get::fetch(ui, &from, &to, &open, store.no_clobber).await?;
            if is_move {
                delete_if_unchanged(ui, &from, &info, &open).await?;
            }
            get::report(ui, &from, &to, &info)
        }
        (Place::Local(_), Place::Local(_)) => {
            Err(Failure::new(USAGE, "neither place is in the store")
                .hint("write s3://BUCKET/KEY for at least one of them"))
        }
    }
}

/// Copies within the store; also onto the same place, which renews data key
/// and wrapping key.
async fn between(
    ui: &Ui,
    from: &S3Url,
    to: &S3Url,
    open: &GetOptions,
    mut store: PutOptions,
) -> Result<(Receipt, ObjectInfo), Failure> {
    let client = ui.client();
    let cannot_get = |error| Failure::api(format_args!("cannot get {from}"), &error);
    let mut download = client
        .get(&from.bucket, &from.key, open)
        .await
        .map_err(cannot_get)?;
    let info = download.info.clone();
    get::note_foreign(ui, from, &info);
    if store.content_type.is_none() {
        store.content_type.clone_from(&info.content_type);
    }
    let progress = Progress::start(ui, to.last_component(), Some(info.length));
    let _clear = ClearOnDrop(progress.clone());
    let (sender, chunks) = mpsc::channel(QUEUE);
    let pump = async move {
        loop {
            match download.next().await {
                Ok(Some(bytes)) => {
                    progress.advance(bytes.len());
                    // The agent answered early; the answer says why.
                    if sender.send(Ok(bytes)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    let broken = io::Error::other("the source failed");
                    drop(sender.send(Err(broken)).await);
                    return Err(error);
                }
            }
        }
    };
    // Of the source's length: a copy that lacks a byte is never taken for whole.
    let upload = Upload::from_channel(chunks, Some(info.length));
    let (pumped, stored) = tokio::join!(pump, client.put(&to.bucket, &to.key, &store, upload));
    match (pumped, stored) {
        (_, Ok(receipt)) => Ok((receipt, info)),
        (Err(error), Err(broken)) if put::is_consequence(broken.kind) => {
            Err(cannot_get(error).and("; nothing was stored"))
        }
        (_, Err(error)) => Err(Failure::api(format_args!("cannot put {to}"), &error)),
    }
}

/// Deletes the source of a move unless it is another object by now.
async fn delete_if_unchanged(
    ui: &Ui,
    from: &S3Url,
    copied: &ObjectInfo,
    open: &GetOptions,
) -> Result<(), Failure> {
    let client = ui.client();
    let failed = |error| {
        Failure::api(
            format_args!("cannot delete {from}, which was copied"),
            &error,
        )
    };
    let now = client
        .head(&from.bucket, &from.key, open)
        .await
        .map_err(failed)?;
    if now.message_id != copied.message_id {
        return Err(Failure::new(
            ErrorKind::Conflict.exit_code(),
            format!("{from} was replaced while it was moved: the copy has what it was, and the new one stays"),
        )
        .hint("move it again"));
    }
    client.delete(&from.bucket, &from.key).await.map_err(failed)
}

/// What tells a file from its successor of the same name.
fn identity(path: &Path) -> Result<(u64, u64, i64, i64), Failure> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::symlink_metadata(path)
        .map_err(|error| Failure::io(format!("cannot read {}", path.display()), &error))?;
    Ok((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

fn remove_file(path: &Path, before: &(u64, u64, i64, i64)) -> Result<(), Failure> {
    if identity(path)? != *before {
        return Err(Failure::new(
            FAILED,
            format!("{} changed after it was stored, and stays", path.display()),
        )
        .hint("move it again"));
    }
    std::fs::remove_file(path).map_err(|error| {
        Failure::io(
            format!("cannot delete {}, which was stored", path.display()),
            &error,
        )
    })
}
