//! The vendor's module: loading it, finding the one token, logging in.

use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::MechanismType;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo as Raw};
use cryptoki::types::AuthPin;
use cryptoki_sys::CKR_RANDOM_NO_RNG;
use zeroize::Zeroizing;

use crate::secret::{Pin, PinError};
use crate::token::protocol::{Failure, FailureKind, PinSource, Serve, TokenEntry, TokenInfo};

use super::failure::{Class, Fault, counted};
use super::probe;
use super::watch::Watch;

/// Manufacturers and models of software tokens, in lower case: their keys
/// are files, which root and every backup can read (SECURITY.md 27).
const SOFT: [&str; 5] = ["softhsm", "kryoptic", "nss", "mozilla", "opencryptoki soft"];

/// Mechanisms that status and `token list` name.
const NAMED: [(MechanismType, &str); 5] = [
    (MechanismType::AES_GCM, "CKM_AES_GCM"),
    (MechanismType::AES_KEY_GEN, "CKM_AES_KEY_GEN"),
    (MechanismType::AES_KEY_WRAP, "CKM_AES_KEY_WRAP"),
    (MechanismType::RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP"),
    (MechanismType::SHA256_HMAC, "CKM_SHA256_HMAC"),
];

/// Loads and initialises a module.
pub(super) fn load(path: &Path, watch: &Watch) -> Result<Pkcs11, Failure> {
    // Named apart from "does not load": the commonest mistake by far.
    if !path.exists() {
        return Err(Failure::misconfigured(
            format!("no PKCS#11 module at {}", path.display()),
            "correct [[token]] module: the path of the vendor's PKCS#11 library",
        ));
    }
    let pkcs11 = Pkcs11::new(path).map_err(|error| {
        Failure::misconfigured(
            format!("{} does not load: {error}", path.display()),
            "is it a PKCS#11 library for this machine's architecture, and readable?",
        )
    })?;
    watch.step("C_Initialize");
    let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    counted("C_Initialize", pkcs11.initialize(arguments)).map_err(|error| {
        let failure = Fault::from(error).failed("the module does not initialise");
        match failure.hint {
            None => {
                failure.hint("the module's own configuration may be missing: see docs/tokens.md")
            }
            Some(_) => failure,
        }
    })?;
    Ok(pkcs11)
}

/// Every token of the module, initialised or not.
pub(super) fn list(pkcs11: &Pkcs11) -> Result<Vec<TokenEntry>, Failure> {
    Ok(tokens(pkcs11)?
        .into_iter()
        .map(|(slot, info)| TokenEntry {
            slot: slot.id(),
            label: info.label().to_owned(),
            serial: info.serial_number().to_owned(),
            manufacturer: info.manufacturer_id().to_owned(),
            model: info.model().to_owned(),
            initialized: info.token_initialized(),
            user_pin_set: info.user_pin_initialized(),
            aes_gcm: probe::offered(pkcs11, slot)
                .ok()
                .map(|ways| !ways.is_empty())
                // Kryoptic has no mechanism before it is initialised.
                .filter(|any| *any || info.token_initialized()),
            soft: soft(&info),
        })
        .collect())
}

/// Every slot that has a token that answers.
pub(super) fn tokens(pkcs11: &Pkcs11) -> Result<Vec<(Slot, Raw)>, Failure> {
    survey(pkcs11).map(|survey| survey.found)
}

/// What a module's slots hold.
struct Survey {
    found: Vec<(Slot, Raw)>,
    /// Why a token that is there does not answer.
    silent: Option<Fault>,
}

/// Every slot that has a token that answers, and why another did not.
fn survey(pkcs11: &Pkcs11) -> Result<Survey, Failure> {
    let slots = counted("C_GetSlotList", pkcs11.get_slots_with_token())
        .map_err(|error| Fault::from(error).failed("cannot list the module's slots"))?;
    let mut found = Vec::with_capacity(slots.len());
    let mut silent = None;
    for slot in slots {
        // An unreadable token in some other slot is none of our business;
        // if it is ours, it is missed below.
        match counted("C_GetTokenInfo", pkcs11.get_token_info(slot)) {
            Ok(info) => found.push((slot, info)),
            Err(error) => {
                let fault = Fault::from(error);
                tracing::warn!(slot = slot.id(), "{fault}");
                silent = Some(fault);
            }
        }
    }
    Ok(Survey { found, silent })
}

/// The one token that matches label and serial.
pub(super) fn find(pkcs11: &Pkcs11, wanted: &Serve) -> Result<(Slot, Raw), Failure> {
    let Survey { found, silent } = survey(pkcs11)?;
    let all: Vec<_> = found
        .into_iter()
        .filter(|(_, info)| info.token_initialized())
        .collect();
    let offered = all
        .iter()
        .map(|(_, info)| format!("{:?} (serial {})", info.label(), info.serial_number()))
        .collect::<Vec<_>>()
        .join(", ");
    let mut matching = all.into_iter().filter(|(_, info)| {
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|w| w == value);
        is(&wanted.label, info.label()) && is(&wanted.serial, info.serial_number())
    });
    let what = match (&wanted.label, &wanted.serial) {
        (Some(label), None) => format!("label {label:?}"),
        (None, Some(serial)) => format!("serial {serial}"),
        (Some(label), Some(serial)) => format!("label {label:?} and serial {serial}"),
        (None, None) => "any label".to_owned(),
    };
    let absent = |detail, hint: String| Failure::new(FailureKind::Absent, detail).hint(hint);
    match (matching.next(), matching.count(), silent) {
        (Some(found), 0, _) => Ok(found),
        (Some(_), others, _) => Err(Failure::misconfigured(
            format!("{} tokens match {what}: set serial", others + 1),
            format!("the module offers {offered}"),
        )),
        // The one that does not answer may be ours.
        (None, _, Some(fault)) => {
            Err(fault.failed(format!("no token matches {what}, and one does not answer")))
        }
        (None, ..) if offered.is_empty() => Err(absent(
            format!("no token matches {what}: the module offers no initialised token"),
            "is the HSM reachable? otherwise set a token up with `strongroom token init`, and check the module's own configuration".to_owned(),
        )),
        (None, ..) => Err(absent(
            format!("no token matches {what}"),
            format!("the module offers {offered}"),
        )),
    }
}

/// What status tells of a token.
///
/// # Errors
/// The token does not say what it offers.
pub(super) fn describe(pkcs11: &Pkcs11, slot: Slot, info: &Raw) -> Result<TokenInfo, Failure> {
    let mut mechanisms = Vec::new();
    for (mechanism, name) in NAMED {
        match offers(pkcs11, slot, mechanism) {
            Ok(true) => mechanisms.push(name.to_owned()),
            Ok(false) => {}
            Err(fault) => return Err(fault.failed("cannot list the token's mechanisms")),
        }
    }
    let library = pkcs11
        .get_library_info()
        .map_err(|error| Fault::from(error).failed("the module does not tell its version"))?;
    Ok(TokenInfo {
        library: format!(
            "{} {}",
            library.library_description(),
            library.library_version()
        ),
        firmware: format!(
            "hardware {}, firmware {}",
            info.hardware_version(),
            info.firmware_version()
        ),
        label: info.label().to_owned(),
        serial: info.serial_number().to_owned(),
        manufacturer: info.manufacturer_id().to_owned(),
        model: info.model().to_owned(),
        soft: soft(info),
        mechanisms,
        // Known once there is a login, and once they are open.
        gcm_iv: String::new(),
        sessions: 0,
        sessions_wanted: 0,
    })
}

/// Whether the token offers a mechanism; cryptoki's list hides those it does
/// not know, so each is asked for.
///
/// # Errors
/// The token does not say.
pub(super) fn offers(pkcs11: &Pkcs11, slot: Slot, mechanism: MechanismType) -> Result<bool, Fault> {
    match counted(
        "C_GetMechanismInfo",
        pkcs11.get_mechanism_info(slot, mechanism),
    )
    .map_err(Fault::from)
    {
        Ok(_) => Ok(true),
        // "No such mechanism" is an answer; a device that is gone is not.
        Err(fault) if fault.class() == Class::Configuration => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Opens a read-write session: CloudHSM has no others.
pub(super) fn open_session(pkcs11: &Pkcs11, slot: Slot) -> Result<Session, Fault> {
    Ok(counted("C_OpenSession", pkcs11.open_rw_session(slot))?)
}

/// The token's generator works: asked for before anything depends on it.
pub(super) fn check_generator(session: &Session) -> Result<(), Fault> {
    let mut bytes = Zeroizing::new([0; 32]);
    counted(
        "C_GenerateRandom",
        session.generate_random_slice(&mut *bytes),
    )?;
    check_random(&*bytes)
}

/// A generator that "succeeds" without writing would otherwise be mixed into
/// every data key unnoticed.
pub(super) fn check_random(bytes: &[u8]) -> Result<(), Fault> {
    if bytes.len() >= 32 && bytes.iter().all(|byte| *byte == 0) {
        let what = "C_GenerateRandom returned zeros";
        return Err(Fault::new(CKR_RANDOM_NO_RNG, what));
    }
    Ok(())
}

/// Whether the session's user is (still) logged in, as the module sees it.
pub(super) fn logged_in(session: &Session) -> Result<bool, Fault> {
    use cryptoki::session::SessionState::{RoUser, RwUser};
    let info = counted("C_GetSessionInfo", session.get_session_info())?;
    let state = info.session_state();
    Ok(matches!(state, RoUser | RwUser))
}

/// Reads the PIN and logs in: exactly one C_Login, whatever it answers.
// Never inlined: its caller overwrites the stack below itself.
#[inline(never)]
pub(super) fn log_in(session: &Session, source: &PinSource) -> Result<(), Failure> {
    let pin = read_pin(source)?;
    let auth = AuthPin::from(pin.expose());
    drop(pin);
    let answer =
        counted("C_Login", session.login(UserType::User, Some(&auth))).map_err(Fault::from);
    drop(auth);
    answer.map_err(|fault| {
        let failure = fault.failed("the token refused to log in");
        match failure.kind {
            FailureKind::Locked => failure.hint(
                "correct the PIN file, then reload the agent (SIGHUP); it was tried once and is not tried again before",
            ),
            FailureKind::Misconfigured => failure.hint("is the user's PIN set? `strongroom token list` shows it"),
            _ => failure,
        }
    })
}

fn read_pin(source: &PinSource) -> Result<Pin, Failure> {
    let path = match source {
        PinSource::File(path) => path.clone(),
        PinSource::Credential(name) => {
            let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
                return Err(Failure::misconfigured(
                    format!(
                        "pin_credential = {name:?}, but systemd gave no credentials (CREDENTIALS_DIRECTORY is unset)"
                    ),
                    "add LoadCredential= or LoadCredentialEncrypted= to the unit",
                ));
            };
            Path::new(&dir).join(name)
        }
    };
    Pin::from_file(&path).map_err(|error| {
        let hint = match &error {
            PinError::Exposed { path, .. } => format!("chmod 0400 {}", path.display()),
            PinError::Owner { path, .. } => {
                format!("chown {} to root or the agent's user", path.display())
            }
            PinError::Io { .. } => {
                "check pin_file, and that the agent's user may read it".to_owned()
            }
            PinError::Content { .. } => "put the PIN on the file's only line".to_owned(),
        };
        Failure::misconfigured(error.to_string(), hint)
    })
}

fn soft(info: &Raw) -> bool {
    let maker = info.manufacturer_id().to_lowercase();
    let model = info.model().to_lowercase();
    SOFT.iter()
        .any(|name| maker.contains(name) || model.contains(name))
}
