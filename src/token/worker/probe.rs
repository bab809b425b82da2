//! Which IV convention a token has, found out at the worker's start with a
//! throwaway session key (SECURITY rule 17): a wrong guess under a wrapping
//! key could not be taken back.

use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use cryptoki_sys::*;

use crate::secret::Secret32;
use crate::token::protocol::{Failure, IvChoice};

use super::failure::{Class, Fault, counted};
use super::mechanism::{CONVENTIONS, Convention, Iv, KEY_LEN, OUT_LEN, Wrapped};
use super::module;
use super::raw::{Gcm, Raw};
use super::watch::Watch;

/// How long transient failures are waited out: CloudHSM refuses a new key
/// until a second HSM has it, which takes about a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause before another attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// AADs of which the second must not open what the first sealed.
const AAD: &[u8] = b"\0\0strongroom probe";
const WRONG_AAD: &[u8] = b"\0\0strongroom prone";
/// Bytes that a Luna in FIPS mode makes of a data key: ciphertext, tag, IV.
const APPENDED_LEN: usize = KEY_LEN + 16 + 16;

/// The ways of doing AES-GCM that a token may have: those whose mechanism it
/// offers. Asked before the login, which a token without any need not see.
pub(super) struct Candidates {
    token: String,
    choice: Option<Iv>,
    offered: Vec<Convention>,
}

impl Candidates {
    /// Asks the token for its mechanisms.
    pub(super) fn of(
        pkcs11: &Pkcs11,
        slot: Slot,
        token: &str,
        choice: IvChoice,
    ) -> Result<Self, Failure> {
        let token = format!("token {token:?}");
        let choice = match choice {
            IvChoice::Auto => None,
            IvChoice::Host => Some(Iv::Host),
            IvChoice::ZeroWriteback => Some(Iv::ZeroWriteback),
            IvChoice::VendorPrefix => Some(Iv::VendorPrefix),
        };
        let offered = offered(pkcs11, slot).map_err(|fault| {
            fault.failed(format!("{token} does not say whether it has AES-GCM"))
        })?;
        if offered.is_empty() {
            return Err(Failure::misconfigured(
                format!("{token} has no AES-GCM: it cannot wrap data keys"),
                "use a token that has it: docs/tokens.md, \"IV conventions\"",
            ));
        }
        Ok(Self {
            token,
            choice,
            offered,
        })
    }

    /// The first of them that works, or the configured one if it does.
    pub(super) fn choose(
        &self,
        raw: &Raw,
        session: &Session,
        watch: &Watch,
    ) -> Result<Convention, Failure> {
        let token = &self.token;
        watch.step("C_GenerateKey");
        let key = match (session_key(session), self.configured()) {
            (Ok(key), _) => key,
            // The gate shows what the configured keys do under it.
            (Err(fault), Some(configured)) if fault.class() == Class::Configuration => {
                tracing::warn!("{token} makes no key to try gcm_iv with: {fault}");
                return Ok(configured);
            }
            (Err(fault), None) if fault.class() == Class::Configuration => {
                return Err(Failure::misconfigured(
                    format!(
                        "{token} makes no session key to probe its IV convention with: {fault}"
                    ),
                    "set gcm_iv in its [[token]]: docs/tokens.md, \"IV conventions\"",
                ));
            }
            (Err(fault), _) => {
                return Err(fault.failed(format!("{token} cannot be probed")));
            }
        };
        let probe = Probe {
            raw,
            session,
            key,
            watch,
            until: Instant::now() + PATIENCE,
        };
        let found = probe.first(&self.offered, self.choice);
        let outcome = match found {
            Ok(found) => self.settle(found, &probe),
            Err(fault) => Err(fault.failed(format!("{token} cannot be probed"))),
        };
        watch.step("C_DestroyObject");
        // It would go with the session.
        if let Err(error) = counted("C_DestroyObject", session.destroy_object(key)) {
            tracing::warn!("the key of the probe stays until this process ends: {error}");
        }
        outcome
    }

    fn configured(&self) -> Option<Convention> {
        let choice = self.choice?;
        self.offered.iter().copied().find(|c| c.iv == choice)
    }

    fn settle(&self, found: Found, probe: &Probe<'_>) -> Result<Convention, Failure> {
        let token = &self.token;
        let refused = match (found.works, self.choice) {
            (Some(works), None) => return Ok(works),
            (Some(works), Some(choice)) if works.iv == choice => return Ok(works),
            (Some(works), Some(choice)) => {
                return Err(Failure::misconfigured(
                    format!(
                        "{token} does not follow gcm_iv = {:?}{}; it follows {:?}",
                        choice.name(),
                        because(&found.refused, choice),
                        works.iv.name()
                    ),
                    format!(
                        "set gcm_iv = {:?} in its [[token]], or remove the setting",
                        works.iv.name()
                    ),
                ));
            }
            (None, _) => found.refused,
        };
        // A token that is ill says nothing about its conventions.
        if let Some((_, fault)) = refused.iter().find(|(_, fault)| !is_about_us(fault)) {
            return Err(fault.failed(format!("{token} cannot be probed")));
        }
        if probe.appends() {
            return Err(Failure::misconfigured(
                format!(
                    "{token} appends an IV of 16 bytes to what it wraps, as Luna does in FIPS mode: there is no room for it in a message"
                ),
                "use a partition without FIPS mode, or another token: docs/tokens.md, \"IV conventions\"",
            ));
        }
        let tried: Vec<_> = refused
            .iter()
            .map(|(convention, fault)| format!("{} ({fault})", convention.iv.name()))
            .collect();
        Err(Failure::misconfigured(
            format!(
                "{token} follows no IV convention that is known here: {}",
                tried.join(", ")
            ),
            "docs/tokens.md, \"IV conventions\", has those that are; keys and token are untouched",
        ))
    }
}

/// Whether the token offers AES-GCM in some way.
pub(super) fn offered(pkcs11: &Pkcs11, slot: Slot) -> Result<Vec<Convention>, Fault> {
    let mut offered = Vec::new();
    for convention in CONVENTIONS {
        if module::offers(pkcs11, slot, convention.mechanism_type()?)? {
            offered.push(convention);
        }
    }
    Ok(offered)
}

impl Convention {
    pub(super) fn mechanism_type(self) -> Result<MechanismType, Fault> {
        match self.mechanism {
            CKM_AES_GCM => Ok(MechanismType::AES_GCM),
            vendors => Ok(MechanismType::new_vendor_defined(vendors)?),
        }
    }
}

fn because(refused: &[(Convention, Fault)], choice: Iv) -> String {
    refused
        .iter()
        .find(|(convention, _)| convention.iv == choice)
        .map_or_else(
            || " (it does not offer the mechanism)".to_owned(),
            |(_, fault)| format!(" ({fault})"),
        )
}

/// A key of which nothing stays: not in the token's storage, and gone with the
/// session.
fn session_key(session: &Session) -> Result<ObjectHandle, Fault> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    Ok(counted(
        "C_GenerateKey",
        session.generate_key(&Mechanism::AesKeyGen, &template),
    )?)
}

/// What trying the conventions yielded.
struct Found {
    works: Option<Convention>,
    refused: Vec<(Convention, Fault)>,
}

struct Probe<'a> {
    raw: &'a Raw,
    session: &'a Session,
    key: ObjectHandle,
    watch: &'a Watch,
    /// When transient failures are no longer waited out.
    until: Instant,
}

impl Probe<'_> {
    /// Tries conventions until one works; the chosen one first.
    fn first(&self, offered: &[Convention], choice: Option<Iv>) -> Result<Found, Fault> {
        let chosen = |convention: &&Convention| Some(convention.iv) == choice;
        let order = offered.iter().filter(chosen);
        let order = order.chain(offered.iter().filter(|c| !chosen(c)));
        let mut refused = Vec::new();
        for convention in order {
            match self.patiently(*convention) {
                Ok(()) => {
                    return Ok(Found {
                        works: Some(*convention),
                        refused,
                    });
                }
                // No other convention brings these back.
                Err(fault) if is_over(&fault) => return Err(fault),
                Err(fault) => refused.push((*convention, fault)),
            }
        }
        Ok(Found {
            works: None,
            refused,
        })
    }

    fn patiently(&self, convention: Convention) -> Result<(), Fault> {
        loop {
            match self.round_trip(convention) {
                Err(fault) if fault.class() == Class::Transient && Instant::now() < self.until => {
                    std::thread::sleep(PAUSE);
                }
                settled => return settled,
            }
        }
    }

    /// What is wrapped opens again, and under another AAD it does not; two
    /// wraps have two IVs.
    fn round_trip(&self, convention: Convention) -> Result<(), Fault> {
        let Self {
            raw, session, key, ..
        } = *self;
        let not = |what| Fault::new(CKR_MECHANISM_PARAM_INVALID, what);
        let data_key =
            Secret32::random().map_err(|_| Fault::new(CKR_RANDOM_NO_RNG, "getrandom"))?;
        self.watch.step("C_Encrypt");
        let first = convention.wrap(raw, session, key, data_key.expose(), AAD)?;
        let second = convention.wrap(raw, session, key, data_key.expose(), AAD)?;
        if first.iv == second.iv {
            return Err(not("two wraps have one IV"));
        }
        self.watch.step("C_Decrypt");
        for Wrapped { iv, ciphertext } in [&first, &second] {
            let opened = convention.unwrap(raw, session, key, iv, ciphertext, AAD)?;
            if opened.is_none_or(|opened| *opened != *data_key.expose()) {
                return Err(not("what it wraps it does not open"));
            }
        }
        let Wrapped { iv, ciphertext } = &first;
        match convention.unwrap(raw, session, key, iv, ciphertext, WRONG_AAD) {
            Ok(_) => Err(not("it opens a wrap under another context")),
            Err(fault) if is_over(&fault) => Err(fault),
            Err(_) => Ok(()),
        }
    }

    /// Whether the token appends an IV of its own, for which it wants no IV,
    /// or ignores the one it gets.
    fn appends(&self) -> bool {
        self.watch.step("C_Encrypt");
        [&mut [][..], &mut [0x5A; 12]].into_iter().any(|iv| {
            let gcm = Gcm {
                mechanism: CKM_AES_GCM,
                iv,
                aad: AAD,
            };
            let (zeros, mut out) = ([0; KEY_LEN], [0; OUT_LEN]);
            let encrypt = &self.raw.encrypt;
            encrypt.run(self.session, self.key, gcm, &zeros, &mut out) == Ok(APPENDED_LEN)
        })
    }
}

/// Whether the token refused what we asked for, as one does that has another
/// convention; else it is ill.
fn is_about_us(fault: &Fault) -> bool {
    matches!(fault.class(), Class::Configuration | Class::BadInput)
        || matches!(fault.code, CKR_ARGUMENTS_BAD | CKR_BUFFER_TOO_SMALL)
}

/// Whether session, login or device are gone.
fn is_over(fault: &Fault) -> bool {
    matches!(fault.class(), Class::SessionLost | Class::LockedOut) || fault.is_gone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ill_token_is_not_taken_for_one_with_another_convention() {
        let fault = |code| Fault::new(code, "C_Encrypt");
        for code in [
            CKR_MECHANISM_PARAM_INVALID,
            CKR_ARGUMENTS_BAD,
            CKR_RANDOM_NO_RNG,
        ] {
            assert!(
                is_about_us(&fault(code)) && !is_over(&fault(code)),
                "{code:#x}"
            );
        }
        for code in [
            CKR_DEVICE_REMOVED,
            CKR_SESSION_CLOSED,
            CKR_USER_NOT_LOGGED_IN,
        ] {
            assert!(is_over(&fault(code)), "{code:#x}");
        }
        for code in [CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED] {
            assert!(
                !is_about_us(&fault(code)) && !is_over(&fault(code)),
                "{code:#x}"
            );
        }
    }
}
