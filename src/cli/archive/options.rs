//! The arguments, and what they come to.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::failure::Failure;
use crate::cli::place::{S3Url, pair};
use crate::cli::put::RetentionMode;
use crate::client::PutOptions;

#[derive(Args)]
#[command(
    after_help = "Each file becomes an object of its own below the prefix; modes, owners, links and\nattributes go into an encrypted manifest for each run. One DIR is archived as the\nprefix itself, several each below their own names; a slash at the end means nothing.\n`.strongroomignore` files have the syntax of .gitignore. docs/cron.md has crontab and\nsystemd examples."
)]
pub(in crate::cli) struct ArchiveArgs {
    /// Directories, and where they go: s3://BUCKET/PREFIX/
    #[arg(value_name = "DIR… s3://BUCKET/PREFIX/", required = true, num_args = 2..)]
    places: Vec<PathBuf>,
    /// Only files that match this glob (repeatable)
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Nothing that matches this glob (repeatable)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Stay on the file systems of the DIRs
    #[arg(long)]
    one_file_system: bool,
    /// Compare contents, not only size, times and inode
    #[arg(long)]
    checksum: bool,
    /// Believe no earlier run: store everything again
    #[arg(long)]
    full: bool,
    /// Leave files that changed within this time to a later run, such as 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    min_age: Option<Duration>,
    /// Pack small files, many to one object
    #[arg(long)]
    bundle: bool,
    /// Files up to this size are packed
    #[arg(long, value_name = "SIZE", default_value = "64 KiB", value_parser = bytes, requires = "bundle")]
    bundle_max: u64,
    /// Delete a file here once it is stored, read back and found the same
    #[arg(long)]
    delete_after: bool,
    /// Files stored at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Read files no faster than this, such as 10MiB/s
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bwlimit: Option<u64>,
    /// Object Lock: retain what is stored for this long, such as 7y
    #[arg(long, value_name = "TIME", value_parser = span)]
    retain: Option<jiff::Span>,
    /// Object Lock: who may shorten the retention
    #[arg(
        long,
        value_name = "MODE",
        ignore_case = true,
        default_value = "governance",
        requires = "retain"
    )]
    retention_mode: RetentionMode,
    /// S3 storage class of files and bundles
    #[arg(long, value_name = "CLASS")]
    storage_class: Option<String>,
    /// A pair for the authenticated encryption context (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    context: Vec<(String, String)>,
    /// An object tag (repeatable); visible to the provider
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    tag: Vec<(String, String)>,
    /// The ring whose active wrapping key is used
    #[arg(long, value_name = "RING")]
    key: Option<String>,
    /// The file that keeps a second run out [default: one for user and place in /run/lock]
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Store the manifest so far this often, for the case that this host is lost
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    checkpoint: Duration,
    /// Say what would be stored, and do nothing
    #[arg(long, conflicts_with_all = ["delete_after", "report"])]
    dry_run: bool,
    /// Write a summary to be mailed; `-` is standard output
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Bytes of a bundle's files, at most. Ours: 13 objects for 100,000 files of
/// 2 KiB, and several of them in memory at once.
pub(super) const BUNDLE_SIZE: usize = 16 << 20;

/// What to do.
pub(super) struct Plan {
    pub(super) dirs: Vec<PathBuf>,
    pub(super) bucket: String,
    /// Empty, or ending in a slash.
    pub(super) prefix: String,
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) one_file_system: bool,
    pub(super) checksum: bool,
    pub(super) full: bool,
    pub(super) min_age: Option<Duration>,
    /// The largest file that is packed, if any is.
    pub(super) bundle_max: Option<u64>,
    pub(super) delete_after: bool,
    pub(super) jobs: usize,
    pub(super) bytes_per_second: Option<u64>,
    /// For files and bundles.
    pub(super) put: PutOptions,
    /// For manifests and `latest`, which the next run reads: never in an
    /// archive class.
    pub(super) own: PutOptions,
    pub(super) lock: Option<PathBuf>,
    pub(super) checkpoint: Duration,
    pub(super) dry_run: bool,
    pub(super) report: Option<PathBuf>,
}

impl Plan {
    pub(super) fn new(args: ArchiveArgs) -> Result<Self, Failure> {
        let mut dirs = args.places;
        let place = dirs.pop().unwrap_or_default();
        let url: S3Url = place
            .to_str()
            .ok_or_else(|| Failure::usage(format!("{place:?} is not UTF-8")))?
            .parse()
            .map_err(|why: String| {
                Failure::usage(format!("{}: {why}", place.display()))
                    .hint("strongroom archive DIR… s3://BUCKET/PREFIX/")
            })?;
        if let Some(dir) = dirs
            .iter()
            .find(|dir| dir.as_os_str().as_encoded_bytes().starts_with(b"s3://"))
        {
            return Err(Failure::usage(format!("{} is no directory", dir.display()))
                .hint("archive takes directories, then one place"));
        }
        if !url.key.is_empty() && !url.key.ends_with('/') {
            return Err(Failure::usage(format!("{url} does not end in a slash"))
                .hint(format!("write {url}/")));
        }
        let class = args.storage_class.as_deref();
        if args.delete_after && matches!(class, Some("GLACIER" | "DEEP_ARCHIVE")) {
            return Err(Failure::usage(
                "--delete-after reads back what it stored, and objects of this storage class cannot be read",
            )
            .hint("store first, and let a lifecycle rule of the bucket move the objects later"));
        }
        let until = args.retain.map(until).transpose()?;
        let own = PutOptions {
            context: args.context,
            retention_mode: until
                .is_some()
                .then(|| args.retention_mode.name().to_owned()),
            retain_until: until,
            tags: args.tag,
            ring: args.key,
            ..PutOptions::default()
        };
        Ok(Self {
            dirs,
            bucket: url.bucket,
            prefix: url.key,
            include: args.include,
            exclude: args.exclude,
            one_file_system: args.one_file_system,
            checksum: args.checksum,
            full: args.full,
            min_age: args.min_age,
            bundle_max: args.bundle.then_some(args.bundle_max),
            delete_after: args.delete_after,
            jobs: usize::from(args.jobs),
            bytes_per_second: args.bwlimit,
            put: PutOptions {
                storage_class: args.storage_class,
                ..own.clone()
            },
            own,
            lock: args.lock,
            checkpoint: args.checkpoint,
            dry_run: args.dry_run,
            report: args.report,
        })
    }

    /// The archive's place, for people.
    pub(super) fn place(&self) -> S3Url {
        self.place_of("")
    }

    /// An object of the archive.
    pub(super) fn place_of(&self, key: &str) -> S3Url {
        S3Url {
            bucket: self.bucket.clone(),
            key: format!("{}{key}", self.prefix),
        }
    }
}

/// The end of a retention that begins now, and then of that day in UTC: runs
/// of one day ask for the same, and so can take up each other's uploads.
fn until(span: jiff::Span) -> Result<String, Failure> {
    jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .checked_add(span)
        .and_then(|end| end.tomorrow()?.start_of_day())
        .map(|end| end.timestamp().to_string())
        .map_err(|error| Failure::usage(format!("--retain: {error}")))
}

fn span(text: &str) -> Result<jiff::Span, String> {
    let span: jiff::Span = text
        .parse()
        .map_err(|_| "write a time such as 7y, 18mo or 90d".to_owned())?;
    if span.is_positive() {
        Ok(span)
    } else {
        Err("a retention must last".to_owned())
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let size: bytesize::ByteSize = text
        .parse()
        .map_err(|_| "write a size such as 64KiB".to_owned())?;
    // What is packed is read as a whole.
    if size.0 > BUNDLE_SIZE as u64 {
        return Err(format!(
            "at most {}",
            crate::cli::ui::size(BUNDLE_SIZE as u64)
        ));
    }
    Ok(size.0)
}

fn rate(text: &str) -> Result<u64, String> {
    let size = text.strip_suffix("/s").unwrap_or(text);
    match size.parse::<bytesize::ByteSize>() {
        Ok(size) if size.0 >= 1024 => Ok(size.0),
        _ => Err("write a rate such as 10MiB/s, at least 1KiB/s".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn plan(words: &[&str]) -> Result<Plan, Failure> {
        let cli = Cli::try_parse_from(["strongroom", "archive"].iter().chain(words)).unwrap();
        match cli.command {
            Command::Archive(args) => Plan::new(*args),
            _ => panic!("not archive"),
        }
    }

    #[test]
    fn directories_then_one_place() {
        let two = plan(&["/a", "b/", "s3://b/p/"]).unwrap();
        assert_eq!(two.dirs, [PathBuf::from("/a"), PathBuf::from("b/")]);
        assert_eq!((two.bucket.as_str(), two.prefix.as_str()), ("b", "p/"));
        assert_eq!(plan(&["/a", "s3://b"]).unwrap().prefix, "");
        assert!(plan(&["/a", "s3://b/p"]).is_err(), "no slash");
        assert!(plan(&["/a", "/b"]).is_err(), "no place");
        assert!(plan(&["s3://b/p/", "s3://b/q/"]).is_err());
        assert!(
            plan(&[
                "--delete-after",
                "--storage-class",
                "DEEP_ARCHIVE",
                "/a",
                "s3://b/"
            ])
            .is_err()
        );
    }

    #[test]
    fn units_are_understood() {
        assert_eq!(rate("10MiB/s"), Ok(10 << 20));
        assert_eq!(bytes("64 KiB"), Ok(64 << 10));
        assert!(rate("0").is_err());
        assert!(bytes("1 GiB").is_err());
        for fine in ["7y", "18mo", "90d", "1h"] {
            assert!(span(fine).is_ok(), "{fine}");
        }
        for wrong in ["7", "-7y", "0d", "soon"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
        let kept = plan(&["--retain", "7y", "/a", "s3://b/"]).unwrap();
        assert_eq!(kept.own.retention_mode.as_deref(), Some("GOVERNANCE"));
        assert_eq!(kept.put.retain_until, kept.own.retain_until);
    }
}
