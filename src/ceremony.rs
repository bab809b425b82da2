//! The two files of an import: the request, which the online host writes and
//! the offline machine answers, and the envelope, which goes back. Neither
//! holds a secret, and neither is believed: people compare the fingerprints of
//! both.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::ImportStep;
use crate::components::{CheckValue, check_value};
use crate::secret::Secret32;
use crate::transport::{Fingerprint, NotSealed, OaepHash, Sealed, TransportKey};

/// Longest file that is read, in bytes: theirs have 2 KiB and the custodians'
/// names.
pub const MAX_FILE: u64 = 64 << 10;

/// Why a file of an import cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CeremonyError {
    /// It is another kind of file, or of a later release.
    #[error("it is no {0}: {1}")]
    Malformed(&'static str, String),
    /// The key in it cannot be used.
    #[error("{0}")]
    Key(#[from] NotSealed),
    /// The check value that was expected is another.
    #[error(
        "the components make a key of check value {made}, not {expected}: a component is wrong or of another key"
    )]
    OtherKey {
        /// Theirs.
        made: CheckValue,
        /// The one that was announced.
        expected: CheckValue,
    },
}

/// What a token wants sealed, and for which key pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`Self::FORMAT`].
    pub format: String,
    /// The key's name: in the configuration, and in every object it wraps.
    pub name: String,
    /// CKA_LABEL of the key to be.
    pub label: String,
    /// The configured name of the token.
    pub token: String,
    /// The ring that the key is to belong to, if it is not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring: Option<String>,
    /// When it was made, RFC 3339.
    pub time: String,
    /// The pair's public half, in PEM (SPKI).
    pub public_key: String,
    /// The hash of RSA-OAEP that the token takes.
    pub oaep_hash: OaepHash,
}

/// A sealed key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`Self::FORMAT`].
    pub format: String,
    /// The request that it answers.
    pub request: Request,
    /// When it was sealed, RFC 3339.
    pub time: String,
    /// Who brought the components, and each one's check value.
    pub custodians: Vec<Custodian>,
    /// The key's check value.
    pub check_value: String,
    /// The key.
    pub sealed: Sealed,
}

/// Who brought a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custodian {
    /// As given at the ceremony.
    pub name: String,
    /// The component's.
    pub check_value: String,
}

impl Request {
    /// What such a file calls itself.
    pub const FORMAT: &str = "strongroom-import-request-v1";

    /// From a file's text.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn parse(text: &str) -> Result<Self, CeremonyError> {
        let request: Self = parse(text, "import request")?;
        request.is(Self::FORMAT, &request.format, "import request")?;
        request.key()?;
        Ok(request)
    }

    fn is(&self, wanted: &str, found: &str, what: &'static str) -> Result<(), CeremonyError> {
        if wanted == found {
            return Ok(());
        }
        let why = format!("its format is {found:?}, not {wanted:?}");
        Err(CeremonyError::Malformed(what, why))
    }

    fn key(&self) -> Result<TransportKey, CeremonyError> {
        Ok(TransportKey::from_pem(&self.public_key)?)
    }

    /// The pair's, which both sides compare.
    ///
    /// # Errors
    /// [`CeremonyError::Key`].
    pub fn fingerprint(&self) -> Result<Fingerprint, CeremonyError> {
        Ok(self.key()?.fingerprint()?)
    }

    /// Seals `key` for the token, if it has the check value that was expected.
    ///
    /// # Errors
    /// [`CeremonyError::OtherKey`], and what the cipher refuses.
    pub fn seal(
        &self,
        key: &Secret32,
        expected: CheckValue,
        custodians: Vec<Custodian>,
        time: String,
    ) -> Result<Envelope, CeremonyError> {
        let made = check_value(key);
        if made != expected {
            return Err(CeremonyError::OtherKey { made, expected });
        }
        Ok(Envelope {
            format: Envelope::FORMAT.to_owned(),
            request: self.clone(),
            time,
            custodians,
            check_value: made.to_string(),
            sealed: self.key()?.seal(self.oaep_hash, key)?,
        })
    }
}

impl Envelope {
    /// What such a file calls itself.
    pub const FORMAT: &str = "strongroom-import-envelope-v1";

    /// From a file's text.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn parse(text: &str) -> Result<Self, CeremonyError> {
        let envelope: Self = parse(text, "import envelope")?;
        let request = &envelope.request;
        request.is(Self::FORMAT, &envelope.format, "import envelope")?;
        request.is(Request::FORMAT, &request.format, "import envelope")?;
        envelope.step()?;
        Ok(envelope)
    }

    /// What the token is asked to do with it.
    ///
    /// # Errors
    /// [`CeremonyError`].
    pub fn step(&self) -> Result<ImportStep, CeremonyError> {
        let check_value: CheckValue = self
            .check_value
            .parse()
            .map_err(|why: &str| CeremonyError::Malformed("import envelope", why.to_owned()))?;
        Ok(ImportStep::Finish {
            pair: self.request.fingerprint()?,
            hash: self.request.oaep_hash,
            sealed: self.sealed.clone(),
            check_value: check_value.0,
        })
    }
}

fn parse<T: DeserializeOwned>(text: &str, what: &'static str) -> Result<T, CeremonyError> {
    serde_json::from_str(text).map_err(|error| CeremonyError::Malformed(what, error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rsa::pkcs8::{EncodePublicKey as _, LineEnding};

    fn request() -> Request {
        let private = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).unwrap();
        let public = private.to_public_key();
        Request {
            format: Request::FORMAT.to_owned(),
            name: "shared".into(),
            label: "shared".into(),
            token: "primary".into(),
            ring: None,
            time: "2026-11-22T00:00:00Z".into(),
            public_key: public.to_public_key_pem(LineEnding::LF).unwrap(),
            oaep_hash: OaepHash::Sha256,
        }
    }

    #[test]
    fn both_files_survive_and_other_files_are_refused() {
        let request = request();
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(Request::parse(&text).unwrap(), request);
        let key = Secret32::random().unwrap();
        let expected = check_value(&key);
        let envelope = request.seal(&key, expected, vec![], "t".into()).unwrap();
        let sealed = serde_json::to_string(&envelope).unwrap();
        assert_eq!(Envelope::parse(&sealed).unwrap(), envelope);
        for other in ["", "{}", &sealed, &text.replace("v1", "v2")] {
            assert!(Request::parse(other).is_err(), "{other}");
        }
        for other in [
            "",
            "{}",
            &text,
            &sealed.replace("envelope-v1", "envelope-v2"),
        ] {
            assert!(Envelope::parse(other).is_err(), "{other}");
        }
    }

    #[test]
    fn rule_23_a_key_of_another_check_value_is_not_sealed() {
        let key = Secret32::from_slice(&[1; 32]).unwrap();
        let other = CheckValue([0; 3]);
        let refused = request().seal(&key, other, vec![], "t".into());
        assert!(matches!(refused, Err(CeremonyError::OtherKey { .. })));
    }
}
