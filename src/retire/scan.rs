//! One bucket: every version of every object, and which keys open it.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::mpsc::Sender;

use crate::api::{Error, ErrorKind, RetireLine, RetireReport};
use crate::engine::Engine;
use crate::keyring::Opens;
use crate::message::{Header, Parsed, Permit};
use crate::objects::read_header;
use crate::store::{ListedVersion, METADATA_HEADER, Place};

use super::{Seen, subject};

/// Versions looked at at once: enough to hide the store's latency, and fewer
/// than a token has sessions.
const AT_ONCE: usize = 8;

/// What one version turned out to be.
enum Found {
    /// It was deleted since it was listed.
    Gone,
    /// Nothing of ours.
    NoMessage,
    /// A message that holds no data key of this wrapping key.
    Independent(String),
    /// A message that another key opens, too.
    OpenedBy(String, String),
    /// A message that no other key was seen to open, and why.
    OnlyKey(String, String),
}

/// Lists a bucket and looks at each version.
pub(super) async fn bucket(
    engine: &Arc<Engine>,
    bucket: &str,
    report: &mut RetireReport,
    seen: &mut Seen,
    lines: &Sender<RetireLine>,
) {
    let mut after = None;
    loop {
        let page = match engine.store.list_versions(bucket, "", after.as_ref()).await {
            Ok(page) => page,
            Err(error) => {
                let why = format!("its versions cannot be listed: {error}");
                report.refuse("unknown", format!("s3://{bucket}"), why);
                return;
            }
        };
        let ours = |v: &ListedVersion| !v.delete_marker && !engine.is_reserved(bucket, &v.key);
        let retiring = report.key.clone();
        let versions = page.versions.into_iter().filter(ours);
        let looks = versions.map(|version| look(engine, bucket, version, &retiring));
        let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some((version, found)) = looks.next().await {
            report.versions += 1;
            count(report, seen, bucket, &version, found);
        }
        drop(looks);
        // Nobody reading is no reason to stop: the report goes on record.
        let _ = lines.try_send(RetireLine::Progress {
            versions: report.versions,
        });
        after = page.next;
        if after.is_none() {
            return;
        }
    }
}

fn count(
    report: &mut RetireReport,
    seen: &mut Seen,
    bucket: &str,
    version: &ListedVersion,
    found: Result<Found, Error>,
) {
    let place = || subject(bucket, &version.key, version.version_id.as_deref());
    match found {
        Ok(Found::Gone) => report.versions -= 1,
        Ok(Found::NoMessage) => report.no_messages += 1,
        Ok(Found::Independent(id)) => {
            seen.add(bucket, &version.key, &id);
            report.independent += 1;
        }
        Ok(Found::OpenedBy(id, key)) => {
            seen.add(bucket, &version.key, &id);
            *report.opened_by.entry(key).or_default() += 1;
        }
        Ok(Found::OnlyKey(id, why)) => {
            seen.add(bucket, &version.key, &id);
            report.refuse("only-key", place(), why);
        }
        Err(error) => report.refuse("unknown", place(), error.detail),
    }
}

async fn look(
    engine: &Arc<Engine>,
    bucket: &str,
    version: ListedVersion,
    retiring: &str,
) -> (ListedVersion, Result<Found, Error>) {
    let place = Place::new(bucket, &version.key);
    let found = match header_of(engine, &place, &version).await {
        Ok(header) => judge(engine, bucket, &header, retiring).await,
        Err(error) => match error.kind {
            ErrorKind::NoSuchObject => Ok(Found::Gone),
            ErrorKind::NotAMessage => Ok(Found::NoMessage),
            _ => Err(error),
        },
    };
    (version, found)
}

/// The header, from the object itself; of one that is archived, what was
/// stored beside it. A forged one opens nothing, and is not the message that
/// the catalogue knows.
async fn header_of(
    engine: &Engine,
    place: &Place,
    version: &ListedVersion,
) -> Result<Box<Header>, Error> {
    if version.size == 0 {
        return Err(Error::new(ErrorKind::NotAMessage, "it is empty"));
    }
    let archived = match read_header(engine, place, version.version_id.clone()).await {
        Err(error) if error.kind == ErrorKind::Archived => error,
        read => return read,
    };
    let head = engine.store.head(place, version.version_id.as_deref()).await;
    let head = head.map_err(|error| crate::fault::store_error(&error))?;
    let mut metadata = head.metadata.into_iter();
    let encoded = metadata.find(|(name, _)| name == METADATA_HEADER);
    let bytes = encoded.and_then(|(_, value)| data_encoding::BASE64.decode(value.as_bytes()).ok());
    match bytes.map(|bytes| Header::parse(&bytes, Permit { uncommitted: true })) {
        Some(Ok(Parsed::Header(header))) => Ok(header),
        _ => Err(archived),
    }
}

async fn judge(
    engine: &Arc<Engine>,
    bucket: &str,
    header: &Header,
    retiring: &str,
) -> Result<Found, Error> {
    let id = header.message_id().to_string();
    let names: Vec<&str> = header
        .edks()
        .iter()
        .filter_map(|edk| edk.raw_aes_parts())
        .map(|parts| parts.key_name)
        .collect();
    let needs = names.contains(&retiring) || has_slot(engine, bucket, &id, retiring).await?;
    if !needs {
        return Ok(Found::Independent(id));
    }
    let mut why = Vec::new();
    for name in names.iter().filter(|name| **name != retiring) {
        match engine.keyring.opens_with(header, name).await {
            Ok(Opens::Yes) => return Ok(Found::OpenedBy(id, (*name).to_owned())),
            Ok(_) => why.push(format!("what key {name:?} holds of it does not open")),
            Err(error) => why.push(format!("key {name:?} cannot be asked: {}", error.detail)),
        }
    }
    if let Some(name) = slot_opens(engine, bucket, header, retiring, &mut why).await? {
        return Ok(Found::OpenedBy(id, name));
    }
    if why.is_empty() {
        why.push("no other key holds its data key".to_owned());
    }
    Ok(Found::OnlyKey(id, why.join("; ")))
}

/// Whether there is a keyslot of this key.
async fn has_slot(
    _engine: &Engine,
    _bucket: &str,
    _message_id: &str,
    _key: &str,
) -> Result<bool, Error> {
    Ok(false)
}

/// Another key whose keyslot opens the message.
async fn slot_opens(
    _engine: &Engine,
    _bucket: &str,
    _header: &Header,
    _retiring: &str,
    _why: &mut Vec<String>,
) -> Result<Option<String>, Error> {
    Ok(None)
}
