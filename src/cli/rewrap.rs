//! `strongroom rewrap`: keyslots for another wrapping key.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;

use super::failure::{FAILED, Failure, TEMPORARY};
use super::place::S3Url;
use super::progress::{ClearOnDrop, Progress};
use super::ui::{Ui, shown};
use crate::api::{ErrorKind, RewrapCounts, RewrapItem, RewrapLine, RewrapOptions};
use crate::client::Upload;

/// Chunks of a list between its reader and the connection.
const QUEUE: usize = 8;
/// Bytes of such a chunk, about.
const CHUNK: usize = 64 << 10;
/// The fields that S3 Inventory writes first when it lists all versions (S3
/// User Guide, "Amazon S3 Inventory list").
const FIELDS: &str = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker";
/// How gzip files begin (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

#[derive(Args)]
#[command(
    after_help = "Nothing of an object is read but its header, and nothing is written to it: this works for\nobjects under Object Lock and in archive classes. A run that was interrupted goes on where it\nwas when the same command is given again. Exit code 0: every version opens by the target key."
)]
pub(super) struct RewrapArgs {
    /// Which objects: all versions under this prefix
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    place: S3Url,
    /// The key or ring that is to open them [default: for each object, the active key of its ring]
    #[arg(long, value_name = "KEY|RING")]
    to: Option<String>,
    /// Do one part of the work, such as 3/16
    #[arg(long, value_name = "N/OF")]
    shard: Option<String>,
    /// Objects a second, at most, such as 100/s
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<u32>,
    /// Only find out what there is to do
    #[arg(long)]
    dry_run: bool,
    /// Put many keyslots into one object
    #[arg(long)]
    pack: bool,
    /// Take the versions from an S3 Inventory file (CSV; `-` reads standard input)
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    /// The inventory's manifest.json, which names its columns
    #[arg(long, value_name = "FILE", requires = "inventory")]
    manifest: Option<PathBuf>,
}

/// `100/s`, or the number alone.
fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse() {
        Ok(0) | Err(_) => Err("a number of objects a second, such as 100/s".to_owned()),
        Ok(rate) => Ok(rate),
    }
}

pub(super) async fn run(ui: &Ui, args: RewrapArgs) -> Result<(), Failure> {
    let place = &args.place;
    let failed = |error| Failure::api(format_args!("cannot rewrap {place}"), &error);
    let options = RewrapOptions {
        bucket: place.bucket.clone(),
        prefix: place.key.clone(),
        to: args.to,
        shard: args.shard,
        rate: args.rate,
        dry_run: args.dry_run,
        pack: args.pack,
        source: args.inventory.as_deref().map(source_name).transpose()?,
    };
    let list = match &args.inventory {
        Some(path) => inventory(path, args.manifest.as_deref(), &options)?,
        None => Upload::empty(),
    };
    let mut run = ui.client().rewrap(&options, list).await.map_err(failed)?;
    let progress = Progress::count(ui, &place.to_string());
    let _clear = ClearOnDrop(progress.clone());
    let mut end = None;
    while let Some(line) = run.next().await.map_err(failed)? {
        if ui.is_json() {
            ui.json(&line)?;
        }
        match line {
            RewrapLine::Begin { about, resumed } => {
                let done = resumed.map_or(0, |counts| counts.examined);
                progress.expect(about, done);
                if done > 0 && ui.is_verbose() && !ui.is_json() {
                    ui.line(&format!("going on behind {done} versions"))?;
                }
            }
            RewrapLine::Progress { counts } => progress.at(counts.examined),
            RewrapLine::Failed {
                key,
                version_id,
                detail,
                hint,
                ..
            } => progress.aside(|| {
                let version = version_id.map_or_else(String::new, |id| format!(" (version {id})"));
                let name = shown(&format!("s3://{}/{key}{version}", place.bucket));
                eprintln!("strongroom: {name} has no keyslot: {}", shown(&detail));
                eprintln!("hint: {}", shown(&hint));
            }),
            RewrapLine::Planted { key, slot, detail } => progress.aside(|| {
                let name = shown(&format!("s3://{}/{key}", place.bucket));
                let (slot, detail) = (shown(&slot), shown(&detail));
                eprintln!(
                    "strongroom: warning: the keyslot {slot} of {name} is not ours: {detail}"
                );
                eprintln!("hint: find out who can write to the bucket");
            }),
            line @ (RewrapLine::End { .. } | RewrapLine::Stopped { .. }) => end = Some(line),
        }
    }
    progress.finish();
    match end {
        Some(RewrapLine::End { counts, complete }) => ended(ui, &options, &counts, complete),
        Some(RewrapLine::Stopped {
            error,
            detail,
            hint,
            counts,
        }) => {
            let code = ErrorKind::from_slug(&error).map_or(FAILED, ErrorKind::exit_code);
            let what = format!(
                "rewrap of {place} stopped after {} versions: {}",
                counts.examined,
                shown(&detail)
            );
            Err(Failure::new(code, what)
                .hint(format!("{hint}; the same command goes on from there")))
        }
        _ => Err(
            Failure::new(TEMPORARY, format!("rewrap of {place} broke off"))
                .hint("the same command goes on from there"),
        ),
    }
}

fn ended(
    ui: &Ui,
    options: &RewrapOptions,
    counts: &RewrapCounts,
    complete: bool,
) -> Result<(), Failure> {
    let done = match options.dry_run {
        true => "would get a keyslot",
        false => "got a keyslot",
    };
    let mut text = format!(
        "{} versions: {} {done}, {} had one, {} failed",
        counts.examined, counts.rewrapped, counts.already, counts.failed
    );
    for (count, what) in [
        (counts.ignored, "are no messages"),
        (counts.planted, "keyslots were not ours"),
        (counts.packs, "packs written"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if !ui.is_json() {
        match options.dry_run {
            true => ui.line(&text)?,
            false => ui.done(&text)?,
        }
    }
    if complete {
        return Ok(());
    }
    Err(Failure::new(
        FAILED,
        format!(
            "{} of {} versions have no keyslot",
            counts.failed, counts.examined
        ),
    )
    .hint("each was named; give the same command again when they are mended"))
}

/// What a list is known by when a run of it goes on: the same file, unchanged.
fn source_name(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        return Ok("-".to_owned());
    }
    use std::os::unix::fs::MetadataExt as _;
    let failed = |error| Failure::io(format!("cannot read {}", path.display()), &error);
    let path = path.canonicalize().map_err(failed)?;
    let meta = path.metadata().map_err(failed)?;
    Ok(format!(
        "{} ({} bytes, {}.{})",
        path.display(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    ))
}

/// An inventory's versions on their way to the agent.
fn inventory(
    path: &Path,
    manifest: Option<&Path>,
    options: &RewrapOptions,
) -> Result<Upload, Failure> {
    let fields = match manifest {
        Some(path) => fields_of(path)?,
        None => FIELDS.to_owned(),
    };
    let columns = Columns::of(&fields).ok_or_else(|| {
        Failure::usage(format!("the inventory has no column Key: {fields:?}"))
            .hint("name its manifest.json with --manifest")
    })?;
    let file: Box<dyn Read + Send> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let opened = std::fs::File::open(path);
        Box::new(opened.map_err(|e| Failure::io(format!("cannot read {}", path.display()), &e))?)
    };
    let (sender, chunks) = mpsc::channel(QUEUE);
    let (bucket, prefix) = (options.bucket.clone(), options.prefix.clone());
    std::thread::spawn(move || {
        let keep = |item: &RewrapItem| item.key.starts_with(&prefix);
        if let Err(error) = convert(file, &columns, &bucket, keep, &sender) {
            eprintln!("strongroom: cannot read the inventory: {error}");
            drop(sender.blocking_send(Err(error)));
        }
    });
    Ok(Upload::from_channel(chunks, None))
}

fn fields_of(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::io(format!("cannot read {}", path.display()), &error))?;
    let manifest: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| Failure::usage(format!("{} is no manifest: {error}", path.display())))?;
    if manifest["fileFormat"] != "CSV" {
        return Err(Failure::usage(format!(
            "the inventory is {}, not CSV",
            manifest["fileFormat"]
        ))
        .hint("have S3 write the inventory as CSV"));
    }
    Ok(manifest["fileSchema"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// Where an inventory has what.
struct Columns {
    bucket: Option<usize>,
    key: usize,
    version_id: Option<usize>,
    delete_marker: Option<usize>,
}

impl Columns {
    fn of(fields: &str) -> Option<Self> {
        let find = |name: &str| fields.split(',').position(|field| field.trim() == name);
        Some(Self {
            bucket: find("Bucket"),
            key: find("Key")?,
            version_id: find("VersionId"),
            delete_marker: find("IsDeleteMarker"),
        })
    }

    /// `None` for what is no object's version, or another bucket's.
    fn item(&self, row: &csv::StringRecord, bucket: &str) -> io::Result<Option<RewrapItem>> {
        let field = |at: Option<usize>| at.and_then(|at| row.get(at));
        if field(self.delete_marker).is_some_and(|text| text.eq_ignore_ascii_case("true"))
            || field(self.bucket).is_some_and(|name| name != bucket)
        {
            return Ok(None);
        }
        let key = row
            .get(self.key)
            .ok_or_else(|| io::Error::other("a line without a key"))?;
        // "Key names are URL-encoded" (S3 User Guide), a space as `+`.
        let plain = key.replace('+', " ");
        let key = percent_decode_str(&plain)
            .decode_utf8()
            .map_err(|_| io::Error::other(format!("a key is not UTF-8: {key:?}")))?;
        Ok(Some(RewrapItem {
            key: key.into_owned(),
            version_id: field(self.version_id)
                .filter(|id| !id.is_empty() && *id != "null")
                .map(str::to_owned),
        }))
    }
}

fn convert(
    file: impl Read,
    columns: &Columns,
    bucket: &str,
    keep: impl Fn(&RewrapItem) -> bool,
    to: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut file = BufReader::new(file);
    if io::BufRead::fill_buf(&mut file)?.starts_with(&GZIP) {
        return Err(io::Error::other(
            "it is compressed; unpack it on the way: zcat FILE | strongroom rewrap … --inventory -",
        ));
    }
    let rows = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(file)
        .into_records();
    let mut chunk = Vec::with_capacity(CHUNK + 4096);
    for row in rows {
        let row = row.map_err(io::Error::other)?;
        let Some(item) = columns.item(&row, bucket)?.filter(|item| keep(item)) else {
            continue;
        };
        serde_json::to_writer(&mut chunk, &item)?;
        chunk.push(b'\n');
        if chunk.len() >= CHUNK {
            let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK + 4096));
            if to.blocking_send(Ok(full.into())).is_err() {
                // The agent answered early; the answer says why.
                return Ok(());
            }
        }
    }
    drop(to.blocking_send(Ok(chunk.into())));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_becomes_lines() {
        let csv = "\"b\",\"a+b%2Fc\",\"v1\",\"true\",\"false\",\"12\"\n\
                   \"b\",\"gone\",\"v2\",\"true\",\"true\",\"\"\n\
                   \"b\",\"a\",\"\",\"true\",\"false\",\"1\"\n\
                   \"other\",\"a\",\"v\",\"true\",\"false\",\"1\"\n";
        let columns =
            Columns::of("Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size").unwrap();
        let (sender, mut chunks) = mpsc::channel(8);
        convert(csv.as_bytes(), &columns, "b", |_| true, &sender).unwrap();
        let text = chunks.try_recv().unwrap().unwrap();
        assert_eq!(
            std::str::from_utf8(&text).unwrap(),
            "{\"key\":\"a b/c\",\"version_id\":\"v1\"}\n{\"key\":\"a\"}\n"
        );
        let packed = convert(&GZIP[..], &columns, "b", |_| true, &sender);
        assert!(packed.unwrap_err().to_string().contains("zcat"));
        assert!(Columns::of("Bucket, VersionId").is_none());
    }

    #[test]
    fn rates_are_objects_a_second() {
        assert_eq!(rate("100/s").unwrap(), 100);
        assert_eq!(rate("7").unwrap(), 7);
        for bad in ["0", "/s", "1/m", "-1"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
