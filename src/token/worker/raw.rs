//! The hot path: AES-GCM through the module's own function list.
//!
//! cryptoki's `encrypt` and `decrypt` make a second call to learn the output's
//! length, which with some modules is a round trip to the HSM of its own, and
//! return secrets in a plain `Vec`. Here a wrap is one C_EncryptInit (local in
//! most modules) and one C_Encrypt into a buffer of the caller's.

use std::path::Path;

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki_sys::*;

use super::failure::Fault;

/// Bits of a GCM tag: 128, as ESDK's raw AES keyring fixes it.
const TAG_BITS: CK_ULONG = 128;

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_OBJECT_HANDLE) -> CK_RV;
type Run = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    *mut CK_BYTE,
    CK_ULONG,
    *mut CK_BYTE,
    *mut CK_ULONG,
) -> CK_RV;

/// The module's functions of the hot path.
pub(super) struct Raw {
    pub(super) encrypt: Operation,
    pub(super) decrypt: Operation,
    /// Keeps the library mapped for as long as its functions can be called.
    _library: Pkcs11,
}

/// The two calls that encrypt, or those that decrypt.
pub(super) struct Operation {
    init: (Init, &'static str),
    run: (Run, &'static str),
}

/// CK_GCM_PARAMS, with a tag of 128 bits, and whose GCM it is.
pub(super) struct Gcm<'a> {
    pub(super) mechanism: CK_MECHANISM_TYPE,
    /// What the host supplies, or where the token writes its own; if it is
    /// empty, pIv is NULL.
    pub(super) iv: &'a mut [u8],
    pub(super) aad: &'a [u8],
}

impl Raw {
    /// Takes the functions out of a module that cryptoki has loaded already;
    /// loading it again yields the same one.
    pub(super) fn load(module: &Path) -> Result<Self, Fault> {
        let missing = |what: &str| Fault::new(CKR_FUNCTION_NOT_SUPPORTED, what);
        #[allow(
            unsafe_code,
            reason = "loading a library and reading its function list is a C matter"
        )]
        // SAFETY: the module is the one the operator configured, loaded by
        // cryptoki before; its initialisers have run. The function list is
        // static in the module, which `_library` keeps mapped.
        let (library, list) = unsafe {
            let library =
                Pkcs11::new(module).map_err(|error| missing(&format!("dlopen: {error}")))?;
            let Ok(get) = library.C_GetFunctionList.as_ref() else {
                return Err(missing("C_GetFunctionList"));
            };
            let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
            Fault::check(get(&mut list), "C_GetFunctionList")?;
            let Some(list) = list.as_ref() else {
                return Err(missing("C_GetFunctionList"));
            };
            (library, *list)
        };
        let operation = |init: Option<Init>, init_name, run: Option<Run>, run_name| {
            let init = init.ok_or_else(|| missing(init_name))?;
            let run = run.ok_or_else(|| missing(run_name))?;
            Ok::<_, Fault>(Operation {
                init: (init, init_name),
                run: (run, run_name),
            })
        };
        Ok(Self {
            encrypt: operation(
                list.C_EncryptInit,
                "C_EncryptInit",
                list.C_Encrypt,
                "C_Encrypt",
            )?,
            decrypt: operation(
                list.C_DecryptInit,
                "C_DecryptInit",
                list.C_Decrypt,
                "C_Decrypt",
            )?,
            _library: library,
        })
    }
}

impl Operation {
    /// Runs it on `input`. Returns the bytes written to `out`.
    pub(super) fn run(
        &self,
        session: &Session,
        key: ObjectHandle,
        gcm: Gcm<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Fault> {
        let ((init, init_name), (run, run_name)) = (self.init, self.run);
        // CK_ULONG is `unsigned long`, which holds every usize on Linux.
        let long = |len: usize| {
            CK_ULONG::try_from(len).map_err(|_| Fault::new(CKR_DATA_LEN_RANGE, run_name))
        };
        let iv_len = long(gcm.iv.len())?;
        let mut params = CK_GCM_PARAMS {
            pIv: if gcm.iv.is_empty() {
                std::ptr::null_mut()
            } else {
                gcm.iv.as_mut_ptr()
            },
            ulIvLen: iv_len,
            ulIvBits: iv_len * 8,
            pAAD: gcm.aad.as_ptr().cast_mut(),
            ulAADLen: long(gcm.aad.len())?,
            ulTagBits: TAG_BITS,
        };
        let mut mechanism = CK_MECHANISM {
            mechanism: gcm.mechanism,
            pParameter: std::ptr::from_mut(&mut params).cast(),
            ulParameterLen: long(size_of::<CK_GCM_PARAMS>())?,
        };
        let mut written = long(out.len())?;
        #[allow(unsafe_code, reason = "the one-call path that cryptoki does not have")]
        // SAFETY: every pointer is valid, with its length, for both calls,
        // which keep none of them: `gcm.iv` and `params` outlive the second
        // call, where modules that choose the IV write it back. PKCS#11 inputs
        // are pointers to mutable bytes that a module does not write (2.40,
        // section 5.2). The session is used by this thread alone: `Session` is
        // not `Sync`.
        unsafe {
            Fault::check(
                init(session.handle(), &mut mechanism, key.handle()),
                init_name,
            )?;
            Fault::check(
                run(
                    session.handle(),
                    input.as_ptr().cast_mut(),
                    long(input.len())?,
                    out.as_mut_ptr(),
                    &mut written,
                ),
                run_name,
            )?;
        }
        // A length beyond the buffer is a module that overreports: nothing in
        // the buffer can be trusted.
        usize::try_from(written)
            .ok()
            .filter(|written| *written <= out.len())
            .ok_or_else(|| Fault::new(CKR_BUFFER_TOO_SMALL, run_name))
    }
}
