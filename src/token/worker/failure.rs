//! PKCS#11 return codes, by what to do about them (docs/tokens.md).
//!
//! The table is complete for PKCS#11 3.2; a code that is not in it, a
//! vendor's own among them, counts as a lost module: a fresh process is the
//! one cure that helps against the unknown.

use cryptoki::error::{Error, RvError};
use cryptoki_sys::*;

use crate::token::protocol::{Failure, FailureKind};
use crate::token::tally;

/// What a return code calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Try again shortly, on a new session if an operation was left active.
    Transient,
    /// Sessions, login or handles are gone: a new worker logs in once and
    /// finds the keys again.
    SessionLost,
    /// The module or the device is gone: a new worker.
    ModuleLost,
    /// It may be the input or the token: a known-good call decides.
    Ambiguous,
    /// This input is refused; nothing else is wrong.
    BadInput,
    /// Somebody has to change something.
    Configuration,
    /// The PIN was refused: nothing is tried again.
    LockedOut,
}

/// What was being done when a code came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum During {
    /// C_EncryptInit or C_Encrypt, of a context that a client chose.
    Encrypt,
    /// C_DecryptInit or C_Decrypt of what a store delivered, on a token that
    /// answered a wrong AAD with this code at start-up.
    Decrypt { bad_ciphertext: CK_RV },
    /// Anything else, all of it our own.
    Other,
}

/// Codes that name a device or a library that is gone: no input brings these
/// about, so nothing has to be asked before the worker is replaced.
const GONE: [CK_RV; 5] = [
    CKR_DEVICE_ERROR,
    CKR_DEVICE_REMOVED,
    CKR_TOKEN_NOT_PRESENT,
    CKR_TOKEN_NOT_RECOGNIZED,
    CKR_CRYPTOKI_NOT_INITIALIZED,
];

macro_rules! table {
    ($( $class:ident: $($code:ident)+; )+) => {
        /// Every code of PKCS#11 3.2 with its name and its class outside of
        /// decryption.
        const TABLE: &[(CK_RV, &str, Class)] = &[
            $( $( ($code, stringify!($code), Class::$class), )+ )+
        ];
    };
}

table! {
    Transient:
        CKR_FUNCTION_FAILED CKR_DEVICE_MEMORY CKR_HOST_MEMORY CKR_SESSION_COUNT
        CKR_OPERATION_ACTIVE CKR_TOKEN_RESOURCE_EXCEEDED CKR_FUNCTION_CANCELED
        CKR_CANCEL CKR_PENDING CKR_FUNCTION_REJECTED CKR_SEED_RANDOM_REQUIRED;
    SessionLost:
        CKR_SESSION_HANDLE_INVALID CKR_SESSION_CLOSED CKR_USER_NOT_LOGGED_IN
        CKR_KEY_HANDLE_INVALID CKR_OBJECT_HANDLE_INVALID
        CKR_WRAPPING_KEY_HANDLE_INVALID CKR_UNWRAPPING_KEY_HANDLE_INVALID
        CKR_OPERATION_NOT_INITIALIZED CKR_OPERATION_CANCEL_FAILED
        CKR_SESSION_READ_ONLY;
    ModuleLost:
        CKR_DEVICE_ERROR CKR_DEVICE_REMOVED CKR_TOKEN_NOT_PRESENT
        CKR_TOKEN_NOT_RECOGNIZED CKR_GENERAL_ERROR CKR_CRYPTOKI_NOT_INITIALIZED
        CKR_CRYPTOKI_ALREADY_INITIALIZED CKR_MUTEX_BAD CKR_MUTEX_NOT_LOCKED
        CKR_FIPS_SELF_TEST_FAILED CKR_BUFFER_TOO_SMALL CKR_ARGUMENTS_BAD
        CKR_NO_EVENT CKR_SAVED_STATE_INVALID CKR_STATE_UNSAVEABLE
        CKR_SIGNATURE_INVALID CKR_SIGNATURE_LEN_RANGE CKR_USER_ALREADY_LOGGED_IN
        CKR_SESSION_EXISTS CKR_SESSION_READ_ONLY_EXISTS
        CKR_SESSION_READ_WRITE_SO_EXISTS CKR_EXCEEDED_MAX_ITERATIONS
        CKR_OPERATION_NOT_VALIDATED;
    BadInput:
        CKR_ENCRYPTED_DATA_INVALID CKR_ENCRYPTED_DATA_LEN_RANGE
        CKR_AEAD_DECRYPT_FAILED CKR_DATA_INVALID CKR_DATA_LEN_RANGE
        CKR_WRAPPED_KEY_INVALID CKR_WRAPPED_KEY_LEN_RANGE CKR_PUBLIC_KEY_INVALID;
    Configuration:
        CKR_MECHANISM_INVALID CKR_MECHANISM_PARAM_INVALID CKR_TEMPLATE_INCOMPLETE
        CKR_TEMPLATE_INCONSISTENT CKR_ATTRIBUTE_READ_ONLY CKR_ATTRIBUTE_SENSITIVE
        CKR_ATTRIBUTE_TYPE_INVALID CKR_ATTRIBUTE_VALUE_INVALID
        CKR_KEY_FUNCTION_NOT_PERMITTED CKR_SLOT_ID_INVALID CKR_ACTION_PROHIBITED
        CKR_FUNCTION_NOT_SUPPORTED CKR_FUNCTION_NOT_PARALLEL
        CKR_NEED_TO_CREATE_THREADS CKR_CANT_LOCK CKR_CURVE_NOT_SUPPORTED
        CKR_KEY_SIZE_RANGE CKR_KEY_TYPE_INCONSISTENT CKR_KEY_NOT_NEEDED
        CKR_KEY_CHANGED CKR_KEY_NEEDED CKR_KEY_INDIGESTIBLE
        CKR_KEY_NOT_WRAPPABLE CKR_KEY_UNEXTRACTABLE CKR_KEY_EXHAUSTED
        CKR_SESSION_PARALLEL_NOT_SUPPORTED CKR_SESSION_ASYNC_NOT_SUPPORTED
        CKR_TOKEN_WRITE_PROTECTED CKR_TOKEN_NOT_INITIALIZED
        CKR_UNWRAPPING_KEY_SIZE_RANGE CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT
        CKR_WRAPPING_KEY_SIZE_RANGE CKR_WRAPPING_KEY_TYPE_INCONSISTENT
        CKR_USER_PIN_NOT_INITIALIZED CKR_USER_TYPE_INVALID
        CKR_USER_ANOTHER_ALREADY_LOGGED_IN CKR_USER_TOO_MANY_TYPES
        CKR_RANDOM_SEED_NOT_SUPPORTED CKR_RANDOM_NO_RNG CKR_DOMAIN_PARAMS_INVALID
        CKR_INFORMATION_SENSITIVE CKR_NEW_PIN_MODE CKR_NEXT_OTP
        CKR_LIBRARY_LOAD_FAILED CKR_PARAMETER_SET_NOT_SUPPORTED;
    LockedOut:
        CKR_PIN_INCORRECT CKR_PIN_INVALID CKR_PIN_LEN_RANGE CKR_PIN_EXPIRED
        CKR_PIN_LOCKED CKR_PIN_TOO_WEAK;
}

/// A code's name in the standard.
pub(in crate::token) fn name(code: u64) -> Option<&'static str> {
    if code == CKR_OK {
        return Some("CKR_OK");
    }
    let known = TABLE.iter().find(|(known, ..)| *known == code);
    known.map(|(_, name, _)| *name)
}

/// A call that cryptoki made: counted here if it succeeded, and where its
/// error becomes a [`Fault`] if not.
pub(super) fn counted<T>(function: &str, result: Result<T, Error>) -> Result<T, Error> {
    if result.is_ok() {
        tally::count(function, CKR_OK);
    }
    result
}

/// What `code` calls for.
pub(super) fn classify(code: CK_RV, during: During) -> Class {
    let class = TABLE
        .iter()
        .find(|(known, ..)| *known == code)
        .map_or(Class::ModuleLost, |(.., class)| *class);
    // Whatever is not known to be the session's or the device's fault may be
    // anybody's: a context too long for this token, say, which a client could
    // otherwise use to have the worker replaced over and over; or a device
    // that calls every ciphertext bad, which would otherwise accuse the store.
    let vague = match class {
        Class::Configuration | Class::BadInput => true,
        Class::ModuleLost => !GONE.contains(&code),
        _ => false,
    };
    match during {
        // How a token chooses IVs is no matter of the input either.
        During::Encrypt if code == CKR_RANDOM_NO_RNG => class,
        During::Encrypt if vague => Class::Ambiguous,
        During::Decrypt { bad_ciphertext }
            // What a token says about a bad ciphertext may be any code.
            if vague || code == CKR_FUNCTION_FAILED || code == bad_ciphertext =>
        {
            Class::Ambiguous
        }
        _ => class,
    }
}

/// A failed PKCS#11 call: the code and the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: CK_RV,
    call: String,
}

impl Fault {
    pub(super) fn new(code: CK_RV, call: &str) -> Self {
        Self {
            code,
            call: call.to_owned(),
        }
    }

    /// The code of a call, or nothing if it succeeded.
    pub(super) fn check(code: CK_RV, call: &'static str) -> Result<(), Self> {
        tally::count(call, code);
        if code == CKR_OK {
            Ok(())
        } else {
            Err(Self::new(code, call))
        }
    }

    /// Whether it names a device or a library that is gone.
    pub(super) fn is_gone(&self) -> bool {
        GONE.contains(&self.code)
    }

    pub(super) fn class(&self) -> Class {
        classify(self.code, During::Other)
    }

    /// Says `what` failed, with the code and the call.
    pub(super) fn failed(&self, what: impl std::fmt::Display) -> Failure {
        let detail = format!("{what}: {self}");
        match self.class() {
            Class::Transient => Failure::new(FailureKind::Away, detail),
            Class::SessionLost | Class::ModuleLost | Class::Ambiguous => {
                Failure::new(FailureKind::Lost, detail)
            }
            Class::BadInput => Failure::new(FailureKind::Rejected, detail),
            Class::Configuration => Failure::new(FailureKind::Misconfigured, detail),
            Class::LockedOut => Failure::new(FailureKind::Locked, detail),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = TABLE.iter().find(|(code, ..)| *code == self.code);
        match name {
            Some((_, name, _)) => write!(f, "{}: {name}", self.call),
            None => write!(f, "{}: code {:#x}", self.call, self.code),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Pkcs11(code, call) => {
                let fault = Self::new(code_of(code), &format!("C_{call:?}"));
                tally::count(&fault.call, fault.code);
                fault
            }
            // No PKCS#11 module, or not all of one.
            other @ (Error::LibraryLoading(_) | Error::NullFunctionPointer) => {
                Self::new(CKR_FUNCTION_NOT_SUPPORTED, &other.to_string())
            }
            // What cryptoki could not make sense of: an answer that is none.
            other => Self::new(CKR_GENERAL_ERROR, &other.to_string()),
        }
    }
}

/// cryptoki maps codes to an enum one way only; the way back is the name:
/// `PinIncorrect` is `CKR_PIN_INCORRECT`.
fn code_of(error: RvError) -> CK_RV {
    if let RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) = error {
        return code;
    }
    let wanted = format!("{error:?}").to_uppercase();
    TABLE
        .iter()
        .find(|(_, name, _)| name.replace('_', "").strip_prefix("CKR") == Some(&wanted))
        .map_or(CKR_GENERAL_ERROR, |(code, ..)| *code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::error::Rv;

    const WRONG_AAD: During = During::Decrypt {
        bad_ciphertext: CKR_DEVICE_ERROR,
    };

    #[test]
    fn every_code_has_one_class() {
        // PKCS#11 3.2 as cryptoki-sys has it: 105 constants, of which CKR_OK
        // and CKR_VENDOR_DEFINED are no errors.
        assert_eq!(TABLE.len(), 103);
        for (i, (code, name, _)) in TABLE.iter().enumerate() {
            assert!(
                TABLE[..i].iter().all(|(other, ..)| other != code),
                "{name} twice"
            );
        }
    }

    #[test]
    fn the_classes_are_those_of_the_document() {
        let cases = [
            (CKR_FUNCTION_FAILED, Class::Transient),
            (CKR_OPERATION_ACTIVE, Class::Transient),
            (CKR_USER_NOT_LOGGED_IN, Class::SessionLost),
            (CKR_OBJECT_HANDLE_INVALID, Class::SessionLost),
            (CKR_DEVICE_REMOVED, Class::ModuleLost),
            (CKR_GENERAL_ERROR, Class::ModuleLost),
            (CKR_ENCRYPTED_DATA_INVALID, Class::BadInput),
            (CKR_MECHANISM_INVALID, Class::Configuration),
            (CKR_PIN_INCORRECT, Class::LockedOut),
            (CKR_VENDOR_DEFINED + 7, Class::ModuleLost),
            (0x7777, Class::ModuleLost),
        ];
        for (code, class) in cases {
            assert_eq!(classify(code, During::Other), class, "{code:#x}");
        }
    }

    #[test]
    fn on_decrypt_the_vague_codes_and_the_remembered_one_are_ambiguous() {
        for code in [CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED, CKR_DEVICE_ERROR] {
            assert_eq!(classify(code, WRONG_AAD), Class::Ambiguous, "{code:#x}");
        }
        assert_eq!(classify(CKR_DEVICE_REMOVED, WRONG_AAD), Class::ModuleLost);
        let plain = During::Decrypt {
            bad_ciphertext: CKR_ENCRYPTED_DATA_INVALID,
        };
        for code in [CKR_ENCRYPTED_DATA_INVALID, CKR_MECHANISM_PARAM_INVALID] {
            assert_eq!(classify(code, plain), Class::Ambiguous);
            assert_eq!(classify(code, During::Encrypt), Class::Ambiguous);
        }
        assert_eq!(
            classify(CKR_FUNCTION_FAILED, During::Encrypt),
            Class::Transient
        );
        assert_eq!(
            classify(CKR_DEVICE_ERROR, During::Encrypt),
            Class::ModuleLost
        );
        assert_eq!(classify(CKR_PIN_LOCKED, plain), Class::LockedOut);
    }

    #[test]
    fn a_fault_names_code_and_call_in_one_line() {
        let fault = Fault::from(Error::Pkcs11(
            RvError::PinIncorrect,
            cryptoki::context::Function::Login,
        ));
        assert_eq!(fault.to_string(), "C_Login: CKR_PIN_INCORRECT");
        assert_eq!(fault.class(), Class::LockedOut);
        assert_eq!(code_of(RvError::VendorDefined(0x8000_0042)), 0x8000_0042);
        // Every code that cryptoki has a name for comes back as itself.
        for (code, name, _) in TABLE {
            match Rv::from(*code) {
                Rv::Error(error) => assert_eq!(code_of(error), *code, "{name}"),
                Rv::Ok => panic!("{name} is no error"),
            }
        }
    }
}
