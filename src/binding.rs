//! What binds a message to its place: the pairs of the encryption context
//! that are ours (SECURITY rule 5).
//!
//! The provider can serve any object under any name; only the context, which
//! header tag and wrapped data key authenticate, tells where it belongs.

use crate::api::{Error, ErrorKind};
use crate::message::{self, Context};
use crate::store::Place;

/// Context pair with the bucket an object is bound to.
pub const CONTEXT_BUCKET: &str = "strongroom:bucket";
/// Context pair with the object key an object is bound to.
pub const CONTEXT_KEY: &str = "strongroom:key";
/// Context pair with the time a message was begun, Unix milliseconds.
pub const CONTEXT_CREATED: &str = "strongroom:created";

/// The context of a new message: its place, its time, the client's pairs.
///
/// # Errors
/// A client's pair is reserved, repeated, or beyond the format's limits.
pub fn context(place: &Place, created: u64, pairs: &[(String, String)]) -> Result<Context, Error> {
    let mut context = Context::new();
    let created = created.to_string();
    let ours = [
        (CONTEXT_BUCKET, place.bucket.as_str()),
        (CONTEXT_KEY, place.key.as_str()),
        (CONTEXT_CREATED, created.as_str()),
    ];
    for (name, value) in ours {
        context
            .insert(name, value)
            .map_err(|e| Error::new(ErrorKind::Malformed, e.to_string()))?;
    }
    for (name, value) in pairs {
        if Context::is_reserved(name) {
            return Err(Error::new(
                ErrorKind::Malformed,
                format!("the context key {name:?} is reserved"),
            )
            .hint("choose a name that begins with neither strongroom: nor aws-crypto-"));
        }
        context
            .insert_from_client(name, value)
            .map_err(|e| refused(name, &e))?;
    }
    Ok(context)
}

fn refused(name: &str, error: &message::Error) -> Error {
    let kind = match error {
        message::Error::Limit(_) => ErrorKind::TooLarge,
        _ => ErrorKind::Malformed,
    };
    Error::new(kind, format!("the context pair {name:?}: {error}"))
}

/// Compares a *verified* context with the place it is read from. Returns the
/// time of writing, 0 for a message that is bound to no place.
///
/// # Errors
/// It names another place, or none and that is not allowed.
pub fn check(context: &Context, place: &Place, allow_unbound: bool) -> Result<u64, Error> {
    let bucket = context.get(CONTEXT_BUCKET);
    let key = context.get(CONTEXT_KEY);
    let created = context.get(CONTEXT_CREATED);
    if let (None, None, None) = (bucket, key, created) {
        if allow_unbound {
            return Ok(0);
        }
        return Err(Error::new(
            ErrorKind::Unbound,
            "its encryption context names no bucket and key",
        ));
    }
    // One pair present makes all of them binding.
    if bucket != Some(&place.bucket) || key != Some(&place.key) {
        let other = match (bucket, key) {
            (Some(bucket), Some(key)) => format!("s3://{bucket}/{key}"),
            _ => "an incomplete place".to_owned(),
        };
        return Err(Error::new(
            ErrorKind::Elsewhere,
            format!("it was written for {other}, not for {place}"),
        ));
    }
    created.and_then(|text| text.parse().ok()).ok_or_else(|| {
        Error::new(
            ErrorKind::Altered,
            "its time of writing is missing or no number",
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Context {
        let mut context = Context::new();
        for (name, value) in pairs {
            context.insert(name, value).unwrap();
        }
        context
    }

    #[test]
    fn rule_05_clients_cannot_set_our_pairs() {
        let place = Place::new("bkt", "k");
        for name in ["strongroom:bucket", "strongroom:x", "aws-crypto-public-key"] {
            let error = context(&place, 1, &[(name.into(), "v".into())]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Malformed);
            assert!(error.detail.contains("reserved"), "{}", error.detail);
        }
        let twice = [("a".into(), "1".into()), ("a".into(), "2".into())];
        assert_eq!(
            context(&place, 1, &twice).unwrap_err().kind,
            ErrorKind::Malformed
        );
    }

    #[test]
    fn rule_05_one_pair_present_makes_all_binding() {
        let place = Place::new("bkt", "k");
        let kind = |context: &Context, unbound| check(context, &place, unbound).unwrap_err().kind;
        let full = context(&place, 7, &[]).unwrap();
        assert_eq!(check(&full, &place, false).unwrap(), 7);
        assert_eq!(check(&Context::new(), &place, true).unwrap(), 0);
        assert_eq!(kind(&Context::new(), false), ErrorKind::Unbound);
        for allow in [false, true] {
            assert_eq!(
                kind(&context(&Place::new("bkt", "l"), 7, &[]).unwrap(), allow),
                ErrorKind::Elsewhere
            );
            assert_eq!(
                kind(&context(&Place::new("tkb", "k"), 7, &[]).unwrap(), allow),
                ErrorKind::Elsewhere
            );
            assert_eq!(
                kind(&pairs(&[(CONTEXT_BUCKET, "bkt")]), allow),
                ErrorKind::Elsewhere
            );
            assert_eq!(
                kind(&pairs(&[(CONTEXT_CREATED, "7")]), allow),
                ErrorKind::Elsewhere
            );
            let no_time = pairs(&[(CONTEXT_BUCKET, "bkt"), (CONTEXT_KEY, "k")]);
            assert_eq!(kind(&no_time, allow), ErrorKind::Altered);
        }
    }
}
