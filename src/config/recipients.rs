//! `[recipients]`, `[[recipient]]` and `[[writer]]`, validated: who else holds
//! every data key, which of them a put must have, and which other hosts wrap
//! under keys of ours.

use std::path::PathBuf;

use super::grammar::{self, RecipientKind};
use super::{Key, check_name, err};

/// Recipients of one message besides its ring's own key: a header has at most
/// 16 encrypted data keys (SECURITY rule 4).
pub const MAX_RECIPIENTS: usize = 15;

/// How a recipient holds data keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// By the active key of a ring, on a token of its own.
    Ring(String),
    /// By an RSA key pair whose public half is in this file, PEM.
    Rsa(PathBuf),
}

/// A further holder of every data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// What policies, records and errors call it; an RSA recipient's name in
    /// every object, and permanent.
    pub name: String,
    /// How it holds them.
    pub holder: Holder,
    /// Whether nothing is stored without it.
    pub required: bool,
}

/// The recipients of every message, and how many it must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipients {
    /// Those with keys in tokens first, then RSA: the order of their
    /// encrypted data keys.
    pub all: Vec<Recipient>,
    /// Holders that each data key has at least, the ring's own key counted.
    pub min: usize,
    /// No wrapping key of this host's holds what it stores (SECURITY rule 20).
    pub write_only: bool,
}

/// Another host that wraps under keys of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// What records call it.
    pub name: String,
    /// The bucket of its exported catalogue.
    pub bucket: String,
    /// The object's key.
    pub key: String,
}

type Fault = (String, String);

impl Recipients {
    pub(super) fn from_file(
        policy: grammar::Recipients,
        recipients: Vec<grammar::Recipient>,
        keys: &[Key],
    ) -> Result<Self, Fault> {
        let mut all = Vec::new();
        for recipient in recipients {
            all.push(validated(recipient, keys)?);
        }
        // A key that is required by name is a recipient.
        for name in policy.required.iter().flatten() {
            let known = all.iter().any(|r: &Recipient| r.is_called(name));
            if !known {
                let Some(ring) = ring_of(name, keys) else {
                    return err(
                        format!(
                            "recipients.required names {name:?}, which is neither a [[recipient]] nor a [[key]]"
                        ),
                        "name a [[recipient]], or the [[key]] of another token",
                    );
                };
                all.push(Recipient::of_ring(name.clone(), ring));
            }
        }
        for (i, recipient) in all.iter().enumerate() {
            let twice = |other: &Recipient| {
                let same_ring = matches!((&other.holder, &recipient.holder), (Holder::Ring(a), Holder::Ring(b)) if a == b);
                other.name == recipient.name || same_ring
            };
            if all[..i].iter().any(twice) {
                return err(
                    format!("the recipient {:?} is named twice", recipient.name),
                    "give each [[recipient]] its own name and key",
                );
            }
        }
        if all.len() > MAX_RECIPIENTS {
            return err(
                format!(
                    "{} recipients; a header has room for {MAX_RECIPIENTS}",
                    all.len()
                ),
                "remove some",
            );
        }
        all.sort_by_key(|recipient| matches!(recipient.holder, Holder::Rsa(_)));
        for recipient in &mut all {
            recipient.required = match &policy.required {
                Some(names) => names.iter().any(|name| recipient.is_called(name)),
                // Fail closed, unless a number was asked for instead.
                None => policy.min.is_none(),
            };
        }
        let this = Self {
            min: policy.min.unwrap_or(1),
            write_only: policy.write_only,
            all,
        };
        this.check(policy.min)?;
        Ok(this)
    }

    fn check(&self, min: Option<usize>) -> Result<(), Fault> {
        let own = usize::from(!self.write_only);
        if let Some(min) = min
            && !(1..=self.all.len() + own).contains(&min)
        {
            return err(
                format!(
                    "recipients.min is {min}, and there are {} holders to be had",
                    self.all.len() + own
                ),
                "count the ring's own key and each [[recipient]] once",
            );
        }
        if !self.write_only {
            return Ok(());
        }
        let key = |r: &&Recipient| matches!(r.holder, Holder::Ring(_));
        if let Some(key) = self.all.iter().find(key) {
            return err(
                format!(
                    "recipients.write_only and the recipient {:?}, whose key could open again what this host stores",
                    key.name
                ),
                "keep RSA recipients alone, or leave write_only out",
            );
        }
        if self.all.is_empty() {
            return err(
                "recipients.write_only without an RSA recipient: nobody could ever read what is stored",
                "add a [[recipient]] with kind = \"rsa-oaep\"",
            );
        }
        Ok(())
    }

    /// Whether the keys of this ring wrap for a recipient: then it is not one
    /// of those among which a request chooses.
    #[must_use]
    pub fn has_ring(&self, ring: &str) -> bool {
        let is = |r: &Recipient| matches!(&r.holder, Holder::Ring(name) if name == ring);
        self.all.iter().any(is)
    }

    /// The files with RSA recipients' public keys, in their order.
    pub fn public_keys(&self) -> impl Iterator<Item = (&Recipient, &PathBuf)> {
        self.all
            .iter()
            .filter_map(|recipient| match &recipient.holder {
                Holder::Rsa(path) => Some((recipient, path)),
                Holder::Ring(_) => None,
            })
    }
}

impl Recipient {
    fn of_ring(name: String, ring: &str) -> Self {
        Self {
            name,
            holder: Holder::Ring(ring.to_owned()),
            required: false,
        }
    }

    /// Whether a policy or a command means it by this word.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || matches!(&self.holder, Holder::Ring(ring) if ring == name)
    }
}

/// The ring of a key, or the ring of that name.
fn ring_of<'a>(name: &str, keys: &'a [Key]) -> Option<&'a str> {
    let by_name = keys.iter().find(|key| key.name == name);
    by_name
        .or_else(|| keys.iter().find(|key| key.ring() == name))
        .map(Key::ring)
}

fn validated(recipient: grammar::Recipient, keys: &[Key]) -> Result<Recipient, Fault> {
    let shown = recipient.name.clone().or_else(|| recipient.key.clone());
    let shown = shown.unwrap_or_default();
    let fault = |what: &str, hint: &str| err(format!("recipient {shown:?}: {what}"), hint);
    match (recipient.kind, recipient.key, recipient.public_key) {
        (RecipientKind::Key, Some(key), None) => {
            let Some(ring) = ring_of(&key, keys) else {
                return fault(
                    &format!("its key {key:?} is no [[key]]"),
                    "configure the [[key]] on the other token, and name it here",
                );
            };
            let name = recipient.name.unwrap_or(key);
            check_name("recipient", &name)?;
            Ok(Recipient::of_ring(name, ring))
        }
        (RecipientKind::RsaOaep, None, Some(path)) => {
            let Some(name) = recipient.name else {
                return fault(
                    "kind = \"rsa-oaep\" needs a name",
                    "it is written into every object, and permanent",
                );
            };
            check_name("recipient", &name)?;
            if keys.iter().any(|key| key.name == name) {
                return fault(
                    "a [[key]] has the same name",
                    "names in objects must tell their holders apart: rename the recipient",
                );
            }
            if !path.is_absolute() {
                return fault(
                    "its public_key is not an absolute path",
                    "write the whole path",
                );
            }
            Ok(Recipient {
                name,
                holder: Holder::Rsa(path),
                required: false,
            })
        }
        (RecipientKind::Key, ..) => fault(
            "kind = \"key\" takes `key` and no `public_key`",
            "name a [[key]] on another token: key = \"dr-2026\"",
        ),
        (RecipientKind::RsaOaep, ..) => fault(
            "kind = \"rsa-oaep\" takes `public_key` and no `key`",
            "name the PEM file: public_key = \"/etc/strongroom/escrow-2026.pem\"",
        ),
    }
}

pub(super) fn writers(writers: Vec<grammar::Writer>) -> Result<Vec<Writer>, Fault> {
    let mut found: Vec<Writer> = Vec::new();
    for writer in writers {
        check_name("writer", &writer.name)?;
        let place = writer.catalogue.strip_prefix("s3://");
        let place = place.and_then(|rest| rest.split_once('/'));
        let Some((bucket, key)) = place.filter(|(b, k)| !b.is_empty() && !k.is_empty()) else {
            return err(
                format!(
                    "writer {:?}: its catalogue is {:?}, not s3://BUCKET/KEY",
                    writer.name, writer.catalogue
                ),
                "name the object that `strongroom catalog export` of that host is stored in",
            );
        };
        if found.iter().any(|other| other.name == writer.name) {
            return err(
                format!("two [[writer]] are named {:?}", writer.name),
                "give each its own name",
            );
        }
        found.push(Writer {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            name: writer.name,
        });
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Config;
    use std::path::Path;

    const KEYS: &str = "[[token]]\nname='t'\nmodule='/m.so'\ntoken_label='l'\npin_file='/pin'\n
        [[token]]\nname='u'\nmodule='/m.so'\ntoken_label='m'\npin_file='/pin'\n
        [[key]]\nname='k'\ntoken='t'\nlabel='k'\n[[key]]\nname='dr-1'\nring='dr'\ntoken='u'\nlabel='d'\n";
    const RSA: &str = "[[recipient]]\nkind='rsa-oaep'\nname='escrow'\npublic_key='/e.pem'\n";
    const DR: &str = "[[recipient]]\nkind='key'\nkey='dr-1'\n";

    fn parse(text: &str) -> Result<Config, super::super::ConfigError> {
        Config::parse(&format!("{text}\n{KEYS}"), Path::new("x"))
    }

    fn required(text: &str) -> Vec<String> {
        let all = parse(text).unwrap().recipients.all;
        all.into_iter()
            .filter(|r| r.required)
            .map(|r| r.name)
            .collect()
    }

    #[test]
    fn all_are_required_unless_the_policy_says_otherwise() {
        let both = format!("{RSA}{DR}");
        let config = parse(&both).unwrap();
        // Keys in tokens come first, whatever the file's order.
        assert_eq!(required(&both), ["dr-1", "escrow"]);
        assert_eq!(
            config.default_ring(),
            Some("k"),
            "a recipient's ring is no choice"
        );
        assert_eq!(
            required(&format!("{both}[recipients]\nrequired=['escrow']\n")),
            ["escrow"]
        );
        assert_eq!(
            required(&format!("{both}[recipients]\nrequired=['dr']\n")),
            ["dr-1"]
        );
        assert!(required(&format!("{both}[recipients]\nmin=2\n")).is_empty());
        assert!(required(&format!("{both}[recipients]\nrequired=[]\n")).is_empty());
        // Without a [[recipient]] of its own.
        assert_eq!(required("[recipients]\nrequired=['dr-1']\n"), ["dr-1"]);
    }

    #[test]
    fn what_could_never_be_had_is_refused() {
        for (text, words) in [
            ("[recipients]\nrequired=['nobody']\n".to_owned(), "nobody"),
            (format!("{DR}[recipients]\nmin=3\n"), "2 holders"),
            (format!("{DR}[recipients]\nmin=0\n"), "min is 0"),
            (format!("{DR}{DR}"), "named twice"),
            (
                "[[recipient]]\nkind='key'\nkey='x'\n".to_owned(),
                "no [[key]]",
            ),
            (
                "[[recipient]]\nkind='rsa-oaep'\nname='e'\nkey='k'\n".to_owned(),
                "public_key",
            ),
            (RSA.replace("/e.pem", "e.pem"), "absolute"),
            (RSA.replace("escrow", "k"), "same name"),
            (
                "[[writer]]\nname='b'\ncatalogue='s3://b'\n".to_owned(),
                "BUCKET/KEY",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.message.contains(words), "{words}: {}", error.message);
        }
    }

    #[test]
    fn rule_20_a_write_only_host_has_rsa_recipients_alone() {
        let only = "[recipients]\nwrite_only=true\n";
        assert!(
            parse(&format!("{RSA}{only}"))
                .unwrap()
                .recipients
                .write_only
        );
        let error = parse(&format!("{RSA}{DR}{only}")).unwrap_err();
        assert!(error.message.contains("could open again"), "{error}");
        assert!(
            parse(only)
                .unwrap_err()
                .message
                .contains("nobody could ever read")
        );
    }
}
