//! What is done with objects short of reading or writing them: delete, list,
//! inspect.

mod archive;

pub use archive::{DEFAULT_DAYS, MAX_DAYS, archive_state, ask_for, versions};

use crate::api::{
    Answer, Availability, Error, ErrorKind, InspectedKey, InspectedSlot, Inspection, KeyInfo,
    ListEntry, ListPage,
};
use crate::audit::Event;
use crate::binding::CONTEXT_CREATED;
use crate::catalog::Standing;
use crate::engine::Engine;
use crate::fault::{message_error, store_error};
use crate::message::{Edk, Header, Parsed, Permit};
use crate::store::{ByteRange, Head, METADATA_HEADER, Place, Select};
use crate::unlock;

/// The longest header we read, in bytes (SECURITY rule 4).
const MAX_HEADER: usize = 64 << 10;
/// Entries of a listing page: the most that S3 returns (ListObjectsV2).
const PAGE: u32 = 1000;

/// Deletes an object, or one version of it. What is not there is deleted
/// already, as in S3: a request whose answer was lost can be repeated.
/// `event` is told the store's id of the request, as in all of these.
///
/// # Errors
/// The store refuses, or the deletion could not be recorded.
pub async fn delete(
    engine: &Engine,
    place: &Place,
    version: Option<&str>,
    event: &mut Event,
) -> Result<(), Error> {
    engine.check_reserved(place)?;
    let _guard = engine.lock_place(place).await;
    let deleted = engine
        .store
        .delete(place, version)
        .await
        .map_err(|e| store_error(&e))?;
    event.s3_request_id = deleted.request_id;
    engine
        .catalog
        .record_delete(&place.bucket, &place.key, version)
        .await
        .map_err(|e| {
            Error::new(
                ErrorKind::StateFailed,
                "the object is deleted, but the catalogue could not record it",
            )
            .log(e)
        })
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// The bucket.
    pub bucket: String,
    /// Only keys that begin so.
    pub prefix: Option<String>,
    /// Groups keys up to this.
    pub delimiter: Option<String>,
    /// From a former page.
    pub continuation: Option<String>,
}

/// One page of a bucket, without the reserved prefix.
///
/// # Errors
/// The store refuses, or the prefix is reserved.
pub async fn list(
    engine: &Engine,
    request: &ListRequest,
    event: &mut Event,
) -> Result<ListPage, Error> {
    let bucket = &request.bucket;
    if let Some(prefix) = &request.prefix {
        engine.check_reserved(&Place::new(bucket, prefix))?;
    }
    let page = engine
        .store
        .list(
            bucket,
            request.prefix.as_deref().unwrap_or_default(),
            request.delimiter.as_deref(),
            request.continuation.as_deref(),
            PAGE,
        )
        .await
        .map_err(|e| store_error(&e))?;
    event.s3_request_id = page.request_id;
    let visible: Vec<_> = page
        .objects
        .into_iter()
        .filter(|object| !engine.is_reserved(bucket, &object.key))
        .collect();
    let asked: Vec<_> = visible
        .iter()
        .map(|object| (object.key.clone(), object.size, object.etag.clone()))
        .collect();
    // The catalogue only decorates a listing; without it sizes are stored sizes.
    let sizes = engine
        .catalog
        .sizes(bucket, &asked)
        .await
        .unwrap_or_else(|error| {
            tracing::warn!(%error, "the catalogue could not tell sizes");
            vec![None; asked.len()]
        });
    let objects = visible
        .into_iter()
        .zip(sizes)
        .map(|(object, plaintext_size)| ListEntry {
            key: object.key,
            stored_size: object.size,
            plaintext_size,
            last_modified: object.last_modified.unwrap_or_default(),
            storage_class: object.storage_class,
        })
        .collect();
    let prefixes = page
        .prefixes
        .into_iter()
        .filter(|prefix| !engine.is_reserved(bucket, prefix) && !holds_only_slots(engine, prefix))
        .collect();
    Ok(ListPage {
        objects,
        prefixes,
        continuation: page.continuation,
    })
}

/// A common prefix above the reserved one, inside our own name space.
fn holds_only_slots(engine: &Engine, prefix: &str) -> bool {
    engine.settings.keyslot_prefix.starts_with(prefix) && prefix.starts_with(".strongroom/")
}

/// What is known of an object without decrypting it; `readers` says who may
/// read it here.
///
/// # Errors
/// The store refuses, or it is no message.
pub async fn inspect(
    engine: &Engine,
    place: &Place,
    version: Option<&str>,
    readers: &str,
    event: &mut Event,
) -> Result<Inspection, Error> {
    engine.check_reserved(place)?;
    let head = engine
        .store
        .head(place, version)
        .await
        .map_err(|e| store_error(&e))?;
    event.s3_request_id.clone_from(&head.request_id);
    let away = archive_state(&head).state != Availability::Readable;
    let archive = (head.restore.is_some() || away).then(|| archive_state(&head));
    let header = match away.then(|| kept_header(&head)).flatten() {
        Some(header) => header,
        None => read_header(engine, place, version.map(str::to_owned)).await?,
    };
    let keys = engine.keyring.keys();
    let message_id = header.message_id().to_string();
    let created = header
        .context()
        .get(CONTEXT_CREATED)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let home = engine.settings.home(place);
    let standing = engine
        .catalog
        .classify(&home.bucket, &home.key, &message_id, created)
        .await
        .map_err(|e| Error::new(ErrorKind::StateFailed, "the catalogue cannot be read").log(e))?;
    let keyslots = unlock::told(engine, &header, place)
        .await
        .into_iter()
        .map(|(name, slot)| InspectedSlot {
            at_hand: keys.iter().any(|key| key.name == name && key.ready),
            name,
            slot,
        })
        .collect();
    let first_seen = engine
        .catalog
        .first_seen(&home.bucket, &home.key, &message_id)
        .await
        .map_err(|e| Error::new(ErrorKind::StateFailed, "the catalogue cannot be read").log(e))?;
    let encrypted_data_keys: Vec<InspectedKey> = header
        .edks()
        .iter()
        .map(|edk| {
            let provider = edk.provider_id().to_owned();
            let name = match edk.raw_aes_parts() {
                Some(parts) => parts.key_name.to_owned(),
                None => String::from_utf8_lossy(edk.provider_info()).into_owned(),
            };
            let known = edk
                .raw_aes_parts()
                .and_then(|p| keys.iter().find(|k| k.name == p.key_name));
            InspectedKey {
                provider,
                name,
                at_hand: known.is_some_and(|k| k.ready),
                token: known.map(|k| k.token.clone()),
                holder: holder(edk, known),
            }
        })
        .collect();
    Ok(Inspection {
        bucket: place.bucket.clone(),
        key: place.key.clone(),
        version_id: head.version_id,
        stored_size: head.size,
        plaintext_size: computed_size(&header, head.size),
        last_modified: head.last_modified,
        archive,
        storage_class: head.storage_class,
        retain_until: head.retain_until,
        retention_mode: head.retention_mode,
        format_version: header.version(),
        suite: header.suite().to_string(),
        message_id,
        frame_length: header.frame_length(),
        context: header
            .context()
            .iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
        questions: questions(engine, &header, &encrypted_data_keys, &keys, readers),
        encrypted_data_keys,
        keyslots,
        catalogue: {
            let standing = match standing {
                Standing::Unknown => "unknown",
                Standing::Current(_) => "current",
                Standing::Superseded { .. } => "superseded",
                Standing::Older { .. } => "older than the receipt",
                Standing::Newer => "newer than the receipt: another writer's",
            };
            let since = first_seen.and_then(|ms| i64::try_from(ms).ok());
            let since = since.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            match since {
                Some(at) => format!("{standing}, first seen on {at:.0}: no receipt of this host's"),
                None => standing.to_owned(),
            }
        },
        verified: "nothing: this is what the object says of itself; `get` verifies it".to_owned(),
    })
}

/// Who can open one of an object's encrypted data keys.
fn holder(edk: &Edk, known: Option<&KeyInfo>) -> String {
    match known {
        Some(key) => format!("token {}", key.tokens.join(", ")),
        None => match edk.raw_rsa_parts() {
            Some(_) => "whoever has the RSA private key, away from this host".to_owned(),
            None => "not configured here".to_owned(),
        },
    }
}

/// `q, r = divmod(L - H - 40, F + 32)` (FORMATS): not authenticated here.
pub(crate) fn computed_size(header: &Header, stored: u64) -> Option<u64> {
    let frame = u64::from(header.frame_length());
    if frame == 0 || header.is_signed() {
        return None;
    }
    let body = stored.checked_sub(header.len() as u64)?.checked_sub(40)?;
    let (q, r) = (body / (frame + 32), body % (frame + 32));
    (r <= frame).then(|| q * frame + r)
}

/// The header that is kept beside an object which cannot be read now.
fn kept_header(head: &Head) -> Option<Box<Header>> {
    let (_, text) = head.metadata.iter().find(|(n, _)| n == METADATA_HEADER)?;
    let bytes = data_encoding::BASE64.decode(text.as_bytes()).ok()?;
    match Header::parse(&bytes, Permit { uncommitted: true }).ok()? {
        Parsed::Header(header) => Some(header),
        Parsed::NeedMore => None,
    }
}

/// The header of an object or a version of it, as the store serves it.
///
/// # Errors
/// The store refuses, or it is no message.
pub async fn read_header(
    engine: &Engine,
    place: &Place,
    version_id: Option<String>,
) -> Result<Box<Header>, Error> {
    let mut buffer = engine.reserve(MAX_HEADER).await?;
    let select = Select {
        version_id,
        range: Some(ByteRange::new(0, MAX_HEADER as u64 - 1)),
        pin: None,
    };
    engine
        .store
        .fetch(place, select, &mut buffer)
        .await
        .map_err(|e| store_error(&e))?;
    // Looking at a version 1 header releases nothing.
    match Header::parse(buffer.as_slice(), Permit { uncommitted: true })
        .map_err(|e| message_error(&e))?
    {
        Parsed::Header(header) => Ok(header),
        Parsed::NeedMore => Err(Error::new(
            ErrorKind::Truncated,
            "it ends inside its header",
        )),
    }
}

/// How often the keys of an object are rotated.
fn rotation(edks: &[InspectedKey], keys: &[KeyInfo]) -> String {
    const DAY: u64 = 24 * 60 * 60;
    let mut text = "the data key with every write".to_owned();
    for edk in edks.iter().filter(|edk| edk.token.is_some()) {
        let key = keys.iter().find(|key| key.name == edk.name);
        if key.is_some_and(|key| key.usage == "compromised") {
            text.push_str(&format!(
                "; {}: compromised, so what it wrapped is read only as this agent's receipt has it, until it is copied into a new message",
                edk.name
            ));
        }
        match key.and_then(|key| key.cryptoperiod_seconds) {
            Some(period) => {
                let days = period / DAY;
                text.push_str(&format!("; {}: cryptoperiod {days} days", edk.name));
            }
            None => text.push_str(&format!("; {}: no cryptoperiod is configured", edk.name)),
        }
    }
    text
}

fn questions(
    engine: &Engine,
    header: &Header,
    edks: &[InspectedKey],
    keys: &[KeyInfo],
    readers: &str,
) -> Vec<Answer> {
    let tokens = engine.keyring.token_status();
    let mut held: Vec<String> = Vec::new();
    let mut kept: Vec<String> = Vec::new();
    for edk in edks {
        let Some(key) = keys
            .iter()
            .find(|k| edk.token.is_some() && k.name == edk.name)
        else {
            held.push(format!("{} ({}): {}", edk.name, edk.provider, edk.holder));
            continue;
        };
        for name in &key.tokens {
            let token = tokens.iter().find(|t| t.name == *name);
            let what = token.map_or_else(String::new, |t| {
                format!(
                    " ({}, serial {}{})",
                    t.model.as_deref().unwrap_or("unknown model"),
                    t.serial.as_deref().unwrap_or("unknown"),
                    if t.soft {
                        "; a software token: whoever is root on its host can take its keys"
                    } else {
                        ""
                    },
                )
            });
            held.push(format!(
                "{}: in token {:?}{what}, as CKA_LABEL {:?}",
                key.name, name, key.label
            ));
        }
        if key.attributes.is_empty() {
            kept.push(format!(
                "{}: its token is away, so its attributes cannot be read now",
                key.name
            ));
        } else {
            let list: Vec<_> = key
                .attributes
                .iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect();
            kept.push(format!(
                "{}: the token reports {}",
                key.name,
                list.join(", ")
            ));
        }
    }
    let answer = |question: &str, answer: String| Answer {
        question: question.to_owned(),
        answer,
    };
    let suite = header.suite();
    vec![
        answer(
            "Which algorithm encrypts the data?",
            format!(
                "AWS Encryption SDK message version {}, suite {suite}: {}",
                header.version(),
                suite.description()
            ),
        ),
        answer(
            "How strong are the keys?",
            format!(
                "a {}-bit data key of this object's own, wrapped with AES-256-GCM inside the token",
                suite.key_bits()
            ),
        ),
        answer("How often are keys rotated?", rotation(edks, keys)),
        answer("Where is the key kept?", held.join("; ")),
        answer("How is it kept?", kept.join("; ")),
        answer(
            "Who has access?",
            format!("{readers}; the storage provider holds ciphertext and wrapped keys only"),
        ),
    ]
}
