//! Initialising a token through PKCS#11: the same for every module that has
//! C_InitToken, so that no vendor's own tool is needed.

use cryptoki::context::Pkcs11;
use cryptoki::session::UserType;
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use crate::token::protocol::{Failure, FailureKind, TokenEntry};

use super::failure::Fault;
use super::module;

/// Bytes of a token's label (CK_TOKEN_INFO.label).
const LABEL_LEN: usize = 32;

/// Which token to initialise, and how.
pub(super) struct Init<'a> {
    pub(super) slot: Option<u64>,
    pub(super) serial: Option<String>,
    pub(super) label: String,
    pub(super) so_pin: &'a str,
    pub(super) user_pin: &'a str,
}

/// C_InitToken, the user's PIN, and a login that shows that it works.
pub(super) fn init(pkcs11: &Pkcs11, init: &Init<'_>) -> Result<TokenEntry, Failure> {
    if init.label.is_empty() || init.label.len() > LABEL_LEN || init.label.trim() != init.label {
        return Err(Failure::new(
            FailureKind::Rejected,
            format!(
                "{:?} is no token label: 1 to 32 bytes, no spaces around",
                init.label
            ),
        ));
    }
    let slot = choose(pkcs11, init)?;
    let info = pkcs11
        .get_token_info(slot)
        .map_err(|error| Fault::from(error).failed("cannot read the token"))?;
    let (least, most) = (info.min_pin_length(), info.max_pin_length());
    for (whose, pin) in [
        ("security officer's", init.so_pin),
        ("user's", init.user_pin),
    ] {
        // Before C_InitToken, so that no half-made token is left. A token
        // that reports no maximum has none.
        if pin.is_empty() || pin.len() < least || (most > 0 && pin.len() > most) {
            let range = match most {
                0 => format!("at least {}", least.max(1)),
                most => format!("{least} to {most}"),
            };
            return Err(Failure::new(
                FailureKind::Rejected,
                format!("the {whose} PIN must have {range} characters on this token"),
            ));
        }
    }
    let failed = |what: &'static str| move |error| Fault::from(error).failed(what);
    let so_pin = AuthPin::from(init.so_pin);
    let user_pin = AuthPin::from(init.user_pin);
    pkcs11
        .init_token(slot, &so_pin, &init.label)
        .map_err(failed("cannot initialise the token"))?;
    // Some modules move a token to another slot once it has a serial number.
    let slot = find(pkcs11, &init.label)?;
    let session = pkcs11
        .open_rw_session(slot)
        .map_err(failed("cannot open a session on the new token"))?;
    session
        .login(UserType::So, Some(&so_pin))
        .map_err(failed("the new token refused its security officer"))?;
    session
        .init_pin(&user_pin)
        .map_err(failed("cannot set the user's PIN"))?;
    session
        .logout()
        .map_err(failed("cannot log the security officer out"))?;
    session
        .login(UserType::User, Some(&user_pin))
        .map_err(failed("the new token refused its user"))?;
    session
        .logout()
        .map_err(failed("cannot log the user out"))?;
    module::list(pkcs11)?
        .into_iter()
        .find(|entry| entry.label == init.label && entry.user_pin_set)
        .ok_or_else(|| Failure::new(FailureKind::Away, "the new token is not listed"))
}

fn choose(pkcs11: &Pkcs11, init: &Init<'_>) -> Result<Slot, Failure> {
    let tokens = module::tokens(pkcs11)?;
    if tokens
        .iter()
        .any(|(_, info)| info.token_initialized() && info.label() == init.label)
    {
        return Err(Failure::new(
            FailureKind::Exists,
            format!("a token labelled {:?} already exists", init.label),
        ));
    }
    let named = init.slot.is_some() || init.serial.is_some();
    let mut matching = tokens.iter().filter(|(slot, info)| {
        init.slot.is_none_or(|id| id == slot.id())
            && init
                .serial
                .as_deref()
                .is_none_or(|s| s == info.serial_number())
            && (named || !info.token_initialized())
    });
    match matching.next() {
        // C_InitToken on an initialised token destroys every key in it.
        Some((_, info)) if info.token_initialized() => Err(Failure::new(
            FailureKind::Exists,
            format!(
                "that token is initialised already, with label {:?}",
                info.label()
            ),
        )),
        Some((slot, _)) => Ok(*slot),
        None => Err(Failure::misconfigured(
            "no such uninitialised token",
            "`strongroom token list --module PATH` shows what the module offers",
        )),
    }
}

fn find(pkcs11: &Pkcs11, label: &str) -> Result<Slot, Failure> {
    module::tokens(pkcs11)?
        .into_iter()
        .find(|(_, info)| info.token_initialized() && info.label() == label)
        .map(|(slot, _)| slot)
        .ok_or_else(|| Failure::new(FailureKind::Away, "the new token is not listed"))
}
