//! Keys that the SDK does not let through.
//!
//! It takes a key of nothing but white space for a missing one, and S3 does
//! not. Such a key travels through the SDK under a stand-in, which is replaced
//! by the key itself before the request is signed.

use std::borrow::Cow;

use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextMut;
use data_encoding::HEXLOWER;

use super::Place;

/// Begins every stand-in; the key follows in hexadecimal. Keys that contain
/// this get a stand-in too, so that none is mistaken for one.
const STAND_IN: &str = "strongroom-stand-in.";

impl Place {
    /// The key as the SDK gets it.
    pub(super) fn sdk_key(&self) -> Cow<'_, str> {
        if self.key.trim().is_empty() || self.key.contains(STAND_IN) {
            Cow::Owned(format!(
                "{STAND_IN}{}",
                HEXLOWER.encode(self.key.as_bytes())
            ))
        } else {
            Cow::Borrowed(&self.key)
        }
    }
}

/// Puts the key back in the stand-in's place.
#[derive(Debug)]
pub(super) struct PutKeyBack;

impl Intercept for PutKeyBack {
    fn name(&self) -> &'static str {
        "PutKeyBack"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        if let Some(uri) = restored(request.uri()) {
            request.set_uri(uri)?;
        }
        Ok(())
    }
}

/// The URI with the key instead of the stand-in, if there is one.
fn restored(uri: &str) -> Option<String> {
    let (path, query) = match uri.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (uri, None),
    };
    // The last one: a bucket's name may contain it as well.
    let at = path.rfind(&format!("/{STAND_IN}"))? + 1;
    let hex = &path[at + STAND_IN.len()..];
    let key = HEXLOWER.decode(hex.as_bytes()).ok()?;
    let mut out = path[..at].to_owned();
    for byte in key {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => out += &format!("%{byte:02X}"),
        }
    }
    if let Some(query) = query {
        out.push('?');
        out += query;
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_come_and_go() {
        for (key, sent) in [
            (" ", "%20"),
            ("\t\u{3000}", "%09%E3%80%80"),
            ("strongroom-stand-in.20", "strongroom-stand-in.20"),
            ("a b/strongroom-stand-in.20", "a%20b/strongroom-stand-in.20"),
        ] {
            let sdk_key = Place::new("b", key).sdk_key().into_owned();
            assert!(!sdk_key.trim().is_empty() && sdk_key != key);
            for (uri, wanted) in [
                (
                    format!("http://h/b/{sdk_key}?x-id=PutObject"),
                    format!("http://h/b/{sent}?x-id=PutObject"),
                ),
                (
                    format!("https://b.h/{sdk_key}"),
                    format!("https://b.h/{sent}"),
                ),
            ] {
                assert_eq!(restored(&uri).unwrap(), wanted);
            }
        }
        assert_eq!(Place::new("b", "a b").sdk_key(), "a b");
        assert_eq!(
            restored("http://h/b/key?prefix=/strongroom-stand-in.20"),
            None
        );
        assert_eq!(restored("http://h/strongroom-stand-in.20/key"), None);
    }
}
