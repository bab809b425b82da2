//! `strongroom ls`: list objects, with their plaintext sizes where this host
//! knows them.

use clap::Args;
use futures_util::StreamExt as _;
use serde::Serialize;

use super::failure::Failure;
use super::place::S3Url;
use super::ui::{Ui, shown};
use crate::api::{ErrorKind, ListEntry};
use crate::client::{Client, GetOptions};

/// Requests in flight for `--exact`.
const PARALLEL: usize = 8;

#[derive(Args)]
#[command(
    after_help = "Sizes are those of the plaintext where this host's catalogue knows the object;\nelse what it takes in the store, marked `~`. Nothing that is listed was verified."
)]
pub(super) struct LsArgs {
    /// A bucket, or the beginning of keys
    #[arg(value_name = "s3://BUCKET[/PREFIX]")]
    place: S3Url,
    /// Everything below, not one level
    #[arg(short, long)]
    recursive: bool,
    /// Open each object for its exact size
    #[arg(long)]
    exact: bool,
}

/// A line of `--json` that stands for the keys below a prefix.
#[derive(Serialize)]
struct Prefix<'a> {
    prefix: &'a str,
}

pub(super) async fn run(ui: &Ui, args: LsArgs) -> Result<(), Failure> {
    let client = ui.client();
    let place = &args.place;
    let delimiter = (!args.recursive).then_some("/");
    // As `aws s3 ls`: one level shows names, everything shows keys.
    let base = match (args.recursive, place.key.rfind('/')) {
        (false, Some(slash)) => slash + 1,
        _ => 0,
    };
    let mut continuation: Option<String> = None;
    let mut found = false;
    loop {
        let mut page = client
            .list(
                &place.bucket,
                &place.key,
                delimiter,
                continuation.as_deref(),
            )
            .await
            .map_err(|error| Failure::api(format_args!("cannot list {place}"), &error))?;
        found |= !page.objects.is_empty() || !page.prefixes.is_empty();
        if args.exact {
            measure(&client, &place.bucket, &mut page.objects).await?;
        }
        for prefix in &page.prefixes {
            if ui.is_json() {
                ui.json(&Prefix { prefix })?;
            } else {
                let name = shown(prefix.get(base..).unwrap_or(prefix));
                ui.line(&format!("{:>31} {name}", "PRE"))?;
            }
        }
        for entry in &page.objects {
            if ui.is_json() {
                ui.json(entry)?;
            } else {
                ui.line(&line(entry, base))?;
            }
        }
        // A store that repeats itself must not keep us for ever.
        if page.continuation.is_none() || page.continuation == continuation {
            break;
        }
        continuation = page.continuation;
    }
    if !found && !place.key.is_empty() {
        let error = ErrorKind::NoSuchObject;
        return Err(Failure::new(
            error.exit_code(),
            format!("nothing is stored under {place}"),
        ));
    }
    Ok(())
}

fn line(entry: &ListEntry, base: usize) -> String {
    let size = match entry.plaintext_size {
        Some(bytes) => bytes.to_string(),
        None => format!("~{}", entry.stored_size),
    };
    let name = shown(entry.key.get(base..).unwrap_or(&entry.key));
    format!("{} {size:>11} {name}", local_time(&entry.last_modified))
}

/// In the local time zone, as `ls` and `aws s3 ls` do.
fn local_time(rfc3339: &str) -> String {
    match rfc3339.parse::<jiff::Timestamp>() {
        Ok(instant) => instant
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => format!("{:19}", shown(rfc3339)),
    }
}

/// Asks for the sizes that the catalogue lacks. An object that cannot be
/// opened keeps its stored size: it is still there.
async fn measure(client: &Client, bucket: &str, entries: &mut [ListEntry]) -> Result<(), Failure> {
    let unknown: Vec<(usize, String)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.plaintext_size.is_none())
        .map(|(index, entry)| (index, entry.key.clone()))
        .collect();
    let mut answers = futures_util::stream::iter(unknown)
        .map(|(index, key)| async move {
            let options = GetOptions::default();
            let answer = client.head(bucket, &key, &options).await;
            (index, key, answer)
        })
        .buffer_unordered(PARALLEL);
    while let Some((index, key, answer)) = answers.next().await {
        match answer {
            Ok(info) => {
                if let Some(entry) = entries.get_mut(index) {
                    entry.plaintext_size = Some(info.length);
                }
            }
            Err(error) if matches!(error.kind.status(), 404 | 409 | 422) => {}
            Err(error) => {
                let place = S3Url {
                    bucket: bucket.to_owned(),
                    key,
                };
                return Err(Failure::api(format_args!("cannot measure {place}"), &error));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_from_the_store_is_marked() {
        let mut entry = ListEntry {
            key: "db/a\n".into(),
            stored_size: 512,
            plaintext_size: None,
            last_modified: "not a time".into(),
            storage_class: None,
        };
        assert_eq!(line(&entry, 3), "not a time                 ~512 a\\n");
        entry.plaintext_size = Some(100);
        assert_eq!(line(&entry, 0), "not a time                  100 db/a\\n");
    }
}
