//! `strongroom rm`: delete one object, or all below a prefix.

use clap::Args;
use futures_util::StreamExt as _;
use serde::Serialize;

use super::failure::Failure;
use super::place::S3Url;
use super::ui::Ui;
use crate::client::Client;

/// Requests in flight.
const PARALLEL: usize = 8;

#[derive(Args)]
pub(super) struct RmArgs {
    /// The object; with --recursive, the beginning of keys
    #[arg(value_name = "s3://BUCKET/KEY")]
    place: S3Url,
    /// Delete every object whose key begins so
    #[arg(short, long)]
    recursive: bool,
}

/// A line of `--json`.
#[derive(Serialize)]
struct Deleted<'a> {
    bucket: &'a str,
    key: &'a str,
    deleted: bool,
}

pub(super) async fn run(ui: &Ui, args: RmArgs) -> Result<(), Failure> {
    let client = ui.client();
    if !args.recursive {
        return delete(ui, &client, args.place.object()?).await;
    }
    let place = args.place;
    let mut continuation: Option<String> = None;
    let mut first: Option<Failure> = None;
    loop {
        let page = client
            .list(&place.bucket, &place.key, None, continuation.as_deref())
            .await
            .map_err(|error| Failure::api(format_args!("cannot list {place}"), &error))?;
        let mut deletions = futures_util::stream::iter(page.objects)
            .map(|entry| {
                let object = S3Url {
                    bucket: place.bucket.clone(),
                    key: entry.key,
                };
                delete(ui, &client, object)
            })
            .buffer_unordered(PARALLEL);
        while let Some(result) = deletions.next().await {
            // One that cannot be deleted does not save the others; the first
            // failure is the command's, the rest are told as they come.
            match (result, &first) {
                (Ok(()), _) => {}
                (Err(failure), None) => first = Some(failure),
                (Err(failure), Some(_)) => failure.report(),
            }
        }
        if page.continuation.is_none() || page.continuation == continuation {
            break;
        }
        continuation = page.continuation;
    }
    first.map_or(Ok(()), Err)
}

async fn delete(ui: &Ui, client: &Client, place: S3Url) -> Result<(), Failure> {
    client
        .delete(&place.bucket, &place.key)
        .await
        .map_err(|error| Failure::api(format_args!("cannot delete {place}"), &error))?;
    if ui.is_json() {
        return ui.json(&Deleted {
            bucket: &place.bucket,
            key: &place.key,
            deleted: true,
        });
    }
    ui.done(&format!("deleted {place}"))
}
