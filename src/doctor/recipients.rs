//! Recipients: whether the public keys are there and strong enough, and
//! whether a recipient's key is on another token than what it is to save.

use crate::config::{Config, Holder, Key, Recipient};
use crate::recipient::PublicKey;

use super::Finding;

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let all = config.recipients.all.iter();
    all.map(|recipient| match &recipient.holder {
        Holder::Rsa(path) => rsa(recipient, path),
        Holder::Ring(ring) => ring_key(config, recipient, ring),
    })
    .collect()
}

fn rsa(recipient: &Recipient, path: &std::path::Path) -> Finding {
    let area = format!("recipient {}", recipient.name);
    let fault = |why: String| {
        Finding::fault(
            &area,
            format!("{}: {why}", path.display()),
            "put the recipient's RSA public key there, in PEM",
        )
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return fault(error.to_string()),
    };
    let key = match PublicKey::from_pem(&text) {
        Ok(key) => key,
        Err(error) => return fault(error.to_string()),
    };
    let mut finding = Finding::fine(
        &area,
        format!("RSA, {} bits, SHA-256 {}", key.bits(), key.fingerprint()),
    );
    finding.remedy = key.is_short().then(|| {
        "3072 bits are recommended for what is kept beyond 2030: add a recipient with a longer key"
            .to_owned()
    });
    finding
}

fn ring_key(config: &Config, recipient: &Recipient, ring: &str) -> Finding {
    let area = format!("recipient {}", recipient.name);
    let active = |key: &&Key| key.is_active() && key.ring() == ring;
    let Some(key) = config.keys.iter().find(active) else {
        return Finding::fault(
            area,
            format!("no key of its ring {ring:?} is active"),
            "make one active, or take the recipient out of the configuration",
        );
    };
    let beside = |other: &&Key| {
        other.is_active()
            && !config.recipients.has_ring(other.ring())
            && other.tokens.iter().any(|token| key.is_on(token))
    };
    let mut finding = Finding::fine(area, format!("key {} on token {}", key.name, key.token()));
    if let Some(other) = config.keys.iter().find(beside) {
        finding.remedy = Some(format!(
            "it is on the same token as {}, and would be lost with it: put it on another",
            other.name
        ));
    }
    finding
}
