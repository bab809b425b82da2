//! Whether a recipient could open each object, before the day on which only
//! the recipient is left.
//!
//! Of each object that the sample picks the header is read, and nothing else.
//! A recipient's key in a token unwraps its encrypted data key; the header's
//! commitment and tag decide. What an RSA recipient holds can be counted
//! here, and proved only where the private key is.

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::mpsc::Sender;

use crate::api::{Error, ErrorKind, VerifiedObject, VerifyLine, VerifyRequest, VerifySummary};
use crate::engine::Engine;
use crate::fault::store_error;
use crate::keyring::Opens;
use crate::message::Header;
use crate::objects::read_header;
use crate::store::Place;

use super::chance;

/// Objects looked at at once: enough to hide the store's latency, and fewer
/// than a token has sessions.
const AT_ONCE: usize = 8;
/// Entries of a listing page: the most that S3 returns (ListObjectsV2).
const PAGE: u32 = 1000;

/// What is looked for in each header.
enum Wanted {
    /// A data key under one of these keys of the recipient's ring.
    Keys(Vec<String>),
    /// An RSA recipient's, of this many bytes.
    Rsa(String, usize),
}

/// Checks a recipient's hold on the objects under a prefix; tells each that is
/// not good, then the sum. A receiver that goes away ends it.
///
/// # Errors
/// No such recipient, or the store refuses to list.
pub async fn recipient(
    engine: &Engine,
    request: &VerifyRequest,
    lines: &Sender<VerifyLine>,
) -> Result<VerifySummary, Error> {
    let name = request.recipient.as_deref().unwrap_or_default();
    let (names, rsa) = engine.keyring.names_of(name)?;
    let wanted = match (rsa, names.first()) {
        (Some(length), Some(name)) => Wanted::Rsa(name.clone(), length),
        _ => Wanted::Keys(names),
    };
    let share = request.sample.unwrap_or(1.0);
    let mut sum = VerifySummary {
        check: request.check.clone(),
        recipient: Some(name.to_owned()),
        proves: match &wanted {
            Wanted::Keys(_) => "each data key was unwrapped by the recipient's token, and fits the header's commitment and tag",
            Wanted::Rsa(..) => "each object has an encrypted data key for the recipient, of the right length; only `strongroom recover` with the private key proves that it opens",
        }
        .to_owned(),
        ..VerifySummary::default()
    };
    let mut continuation = None;
    loop {
        let page = engine.store.list(
            &request.bucket,
            &request.prefix,
            None,
            continuation.as_deref(),
            PAGE,
        );
        let page = page.await.map_err(|e| store_error(&e))?;
        let objects = page.objects.into_iter();
        let visible: Vec<String> = objects
            .map(|object| object.key)
            .filter(|key| !engine.is_reserved(&request.bucket, key))
            .collect();
        let mut picked: Vec<Place> = Vec::new();
        sum.listed += visible.len() as u64;
        let last = visible.len().saturating_sub(1);
        for (i, key) in visible.into_iter().enumerate() {
            // A sample is never empty where there is something.
            let only =
                i == last && sum.checked == 0 && picked.is_empty() && page.continuation.is_none();
            if only || chance(share) {
                picked.push(Place::new(&request.bucket, key));
            }
        }
        let checks = picked
            .into_iter()
            .map(|place| check(engine, place, &wanted));
        let mut found = stream::iter(checks).buffer_unordered(AT_ONCE);
        while let Some((place, verdict)) = found.next().await {
            sum.checked += 1;
            let Err((result, detail)) = verdict else {
                sum.good += 1;
                continue;
            };
            sum.bad += 1;
            let object = VerifiedObject {
                bucket: place.bucket,
                key: place.key,
                version_id: None,
                result: result.to_owned(),
                detail,
            };
            if lines.send(VerifyLine::Object(object)).await.is_err() {
                return Ok(sum);
            }
        }
        let so_far = VerifyLine::Progress {
            listed: sum.listed,
            checked: sum.checked,
        };
        if lines.send(so_far).await.is_err() {
            return Ok(sum);
        }
        continuation = page.continuation;
        if continuation.is_none() {
            return Ok(sum);
        }
    }
}

type Verdict = Result<(), (&'static str, String)>;

async fn check(engine: &Engine, place: Place, wanted: &Wanted) -> (Place, Verdict) {
    let verdict = match read_header(engine, &place, None).await {
        // Deleted since it was listed: nothing to be opened.
        Err(error) if error.kind == ErrorKind::NoSuchObject => Ok(()),
        Err(error) => Err(("unreadable", error.detail)),
        Ok(header) => judge(engine, &header, wanted).await,
    };
    (place, verdict)
}

async fn judge(engine: &Engine, header: &Header, wanted: &Wanted) -> Verdict {
    let names = match wanted {
        Wanted::Keys(names) => names,
        Wanted::Rsa(name, length) => {
            let mut rsa = header.edks().iter().filter_map(|edk| edk.raw_rsa_parts());
            return match rsa.find(|parts| parts.key_name == name) {
                None => Err(missing(name)),
                Some(parts) if parts.ciphertext.len() == *length => Ok(()),
                Some(parts) => Err((
                    "wrong",
                    format!(
                        "what it holds for {name:?} has {} bytes, and its key makes {length}",
                        parts.ciphertext.len()
                    ),
                )),
            };
        }
    };
    let mut named = None;
    for name in names {
        match engine.keyring.opens_with(header, name).await {
            Ok(Opens::Yes) => return Ok(()),
            Ok(Opens::No) => named = Some(name),
            Ok(Opens::Unnamed) => {}
            Err(error) if error.kind.status() == 422 => return Err(("altered", error.detail)),
            Err(error) => return Err(("unchecked", error.detail)),
        }
    }
    match named {
        Some(name) => Err((
            "wrong",
            format!("what it holds for {name:?} does not open with that key"),
        )),
        None => Err(missing(names.first().map_or("", String::as_str))),
    }
}

fn missing(name: &str) -> (&'static str, String) {
    let why = format!("it holds no data key for {name:?}: it was stored without that recipient");
    ("missing", why)
}
