//! Which run is restored, and whether its manifest may be believed (SECURITY
//! rule 16).

use serde::Serialize;

use super::archived::Asking;
use super::manifest::another;
use crate::api::{Error, ErrorKind, Standing};
use crate::cli::failure::{ALTERED, Failure, NO_SUCH};
use crate::cli::place::S3Url;
use crate::cli::ui::{Ui, size};
use crate::client::{Client, Download, GetOptions};
use crate::manifest::{LATEST, Latest, OWN, RUNS, RunId, manifest_key};

/// Bytes of `latest`, at most.
const MAX_LATEST: u64 = 16 << 10;

/// Where an archive is.
pub(super) struct Archive {
    pub(super) client: Client,
    pub(super) bucket: String,
    /// Empty, or ends in a slash.
    pub(super) prefix: String,
    /// Manifests that no catalogue has are believed.
    pub(super) trust: bool,
}

/// Which state of it.
pub(super) enum When {
    /// The newest complete run.
    Latest,
    /// This run.
    Run(RunId),
    /// The newest that began at or before this instant.
    At(jiff::Timestamp),
}

/// A run's manifest, found and about to be read.
pub(super) struct Found {
    pub(super) run: RunId,
    pub(super) manifest: Download,
}

/// A line of `--list`.
#[derive(Serialize)]
struct Run<'a> {
    run: &'a str,
    started: String,
    stored_size: u64,
}

impl Archive {
    /// For messages.
    pub(super) fn url(&self) -> S3Url {
        self.place("")
    }

    pub(super) fn place(&self, below: &str) -> S3Url {
        S3Url {
            bucket: self.bucket.clone(),
            key: self.key(below),
        }
    }

    /// The key of what lies below the prefix.
    pub(super) fn key(&self, below: &str) -> String {
        format!("{}{below}", self.prefix)
    }

    /// Finds the run's manifest; `None` where there is no archive, only
    /// objects.
    pub(super) async fn find(&self, when: When, asking: &Asking) -> Result<Option<Found>, Failure> {
        let (run, version_id, message_id) = match when {
            When::Latest => match self.latest(asking).await? {
                Some(latest) => (latest.run, latest.version_id, Some(latest.message_id)),
                None if self.has_runs().await? => {
                    return Err(Failure::new(
                        NO_SUCH,
                        format!("{}: there are runs, and nothing that names the newest", self.url()),
                    )
                    .hint("no run was completed, or somebody removed it; --list shows the runs, --run takes one"));
                }
                None => return Ok(None),
            },
            When::Run(run) => (run, None, None),
            When::At(at) => match self.newest_before(at).await? {
                Some(run) => (run, None, None),
                None => return Ok(None),
            },
        };
        let key = manifest_key(&run);
        let options = GetOptions {
            version_id,
            ask_writers: true,
            ..GetOptions::default()
        };
        let download = self.open(&key, &options, asking).await?;
        let what = format!("the manifest of run {run}");
        if message_id.is_some() && download.info.message_id != message_id {
            return Err(Failure::api(
                format!("cannot restore {}", self.url()),
                &another(&what),
            ));
        }
        self.believe(&what, download.info.standing)?;
        Ok(Some(Found {
            run,
            manifest: download,
        }))
    }

    /// What names the newest complete run.
    async fn latest(&self, asking: &Asking) -> Result<Option<Latest>, Failure> {
        let options = GetOptions {
            ask_writers: true,
            ..GetOptions::default()
        };
        let place = self.place(LATEST);
        let cannot = |error: &Error| Failure::api(format!("cannot read {place}"), error);
        let mut download = match asking.get(self, LATEST, &options).await? {
            Ok(download) => download,
            Err(error) if error.kind == ErrorKind::NoSuchObject => return Ok(None),
            Err(error) => return Err(cannot(&error)),
        };
        self.believe(&place.to_string(), download.info.standing)?;
        let unsound = |why: &str| {
            Failure::new(ALTERED, format!("{place} cannot be used: {why}"))
                .hint("--list shows the runs, --run takes one")
        };
        if download.info.length > MAX_LATEST {
            return Err(unsound("it is too long"));
        }
        let mut bytes = Vec::new();
        while let Some(more) = download.next().await.map_err(|e| cannot(&e))? {
            bytes.extend_from_slice(&more);
        }
        Latest::decode(&bytes)
            .map(Some)
            .map_err(|why| unsound(&why))
    }

    async fn open(
        &self,
        below: &str,
        options: &GetOptions,
        asking: &Asking,
    ) -> Result<Download, Failure> {
        let cannot =
            |error: &Error| Failure::api(format!("cannot read {}", self.place(below)), error);
        asking
            .get(self, below, options)
            .await?
            .map_err(|e| cannot(&e))
    }

    /// Only what this host, or a writer that its configuration names, is
    /// known to have written says which files go where.
    fn believe(&self, what: &str, standing: Option<Standing>) -> Result<(), Failure> {
        if self.trust || standing.is_some_and(Standing::is_vouched_for) {
            return Ok(());
        }
        let why = match standing {
            Some(Standing::Foreign | Standing::Older) => {
                "another host wrote it, and the agent's configuration names no such [[writer]]"
            }
            _ => "this host's catalogue does not know it",
        };
        Err(Failure::new(
            ALTERED,
            format!("{what} is genuine, and nobody here vouches for it: {why}"),
        )
        .hint("on a new host, bring the catalogue back first; --trust-manifest takes the word of whoever has the key (docs/restore.md)"))
    }

    /// The newest run that began at or before an instant.
    async fn newest_before(&self, at: jiff::Timestamp) -> Result<Option<RunId>, Failure> {
        let runs = self.runs().await?;
        let first = runs.first().map(|(run, _)| run.clone());
        let found = runs.into_iter().rev().find(|(run, _)| {
            started(run).is_some_and(|started| started.as_second() <= at.as_second())
        });
        match (found, first) {
            (Some((run, _)), _) => Ok(Some(run)),
            (None, None) => Ok(None),
            (None, Some(first)) => Err(Failure::new(
                NO_SUCH,
                format!("{}: no run began at or before {at}", self.url()),
            )
            .hint(format!("the oldest is {first}"))),
        }
    }

    /// The runs that the store lists, oldest first, with their manifests'
    /// sizes.
    async fn runs(&self) -> Result<Vec<(RunId, u64)>, Failure> {
        let prefix = self.key(RUNS);
        let mut runs = Vec::new();
        let mut continuation: Option<String> = None;
        loop {
            let page = self
                .client
                .list(&self.bucket, &prefix, None, continuation.as_deref())
                .await
                .map_err(|e| Failure::api(format!("cannot list {}", self.url()), &e))?;
            for object in page.objects {
                let name = object.key.strip_prefix(&prefix);
                let name = name.and_then(|name| name.strip_suffix(".manifest"));
                if let Some(run) = name.and_then(|name| RunId::try_from(name.to_owned()).ok()) {
                    runs.push((run, object.stored_size));
                }
            }
            if page.continuation.is_none() || page.continuation == continuation {
                runs.sort();
                return Ok(runs);
            }
            continuation = page.continuation;
        }
    }

    async fn has_runs(&self) -> Result<bool, Failure> {
        let own = self.key(OWN);
        let page = self.client.list(&self.bucket, &own, None, None);
        let page = page
            .await
            .map_err(|e| Failure::api(format!("cannot list {}", self.url()), &e))?;
        // A store may list what was not asked for.
        Ok(page
            .objects
            .iter()
            .any(|object| object.key.starts_with(&own)))
    }

    /// `--list`.
    pub(super) async fn list(&self, ui: &Ui) -> Result<(), Failure> {
        let runs = self.runs().await?;
        if runs.is_empty() {
            return Err(Failure::new(
                NO_SUCH,
                format!("{}: no run of an archive is there", self.url()),
            ));
        }
        for (run, stored_size) in runs {
            let started = started(&run).map(|at| at.to_string()).unwrap_or_default();
            if ui.is_json() {
                ui.json(&Run {
                    run: run.as_str(),
                    started,
                    stored_size,
                })?;
            } else {
                ui.line(&format!(
                    "{run}  {started}  manifest of {}",
                    size(stored_size)
                ))?;
            }
        }
        Ok(())
    }
}

/// When a run began, by its name.
fn started(run: &RunId) -> Option<jiff::Timestamp> {
    let (time, _) = run.as_str().split_once('-')?;
    jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time)
        .ok()?
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp())
}

/// An instant as people write it: RFC 3339, or a date, or a date and a time,
/// both of which are of the local time zone. A date alone means its end: what
/// was there on that day.
pub(super) fn instant(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at);
    }
    let local = |at: jiff::civil::DateTime| {
        at.to_zoned(jiff::tz::TimeZone::system())
            .map(|zoned| zoned.timestamp())
            .map_err(|error| error.to_string())
    };
    // A date parses as a date and time, too: midnight.
    if let Ok(date) = text.parse::<jiff::civil::Date>()
        && text.len() == 10
    {
        return local(date.at(23, 59, 59, 0));
    }
    match text.parse::<jiff::civil::DateTime>() {
        Ok(at) => local(at),
        Err(_) => Err(
            "write an instant such as 2026-11-22T10:00:00Z, or a date or a local time such as 2026-11-22T10:00"
                .into(),
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_run_tells_when_it_began() {
        let run = RunId::try_from("20261122T113000Z-1a2b3c4d".to_owned()).unwrap();
        assert_eq!(started(&run).unwrap().to_string(), "2026-11-22T11:30:00Z");
        let odd = RunId::try_from("20269922T113000Z-1a2b3c4d".to_owned()).unwrap();
        assert!(started(&odd).is_none());
    }

    #[test]
    fn times_are_instants_or_local() {
        assert_eq!(
            instant("2026-11-22T10:00:00Z").unwrap().to_string(),
            "2026-11-22T10:00:00Z"
        );
        let day = instant("2026-11-22").unwrap();
        let noon = instant("2026-11-22T12:00").unwrap();
        assert!(day > noon);
        assert!(instant("yesterday").is_err());
    }
}
