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

/// The four functions of the hot path.
pub(super) struct Raw {
    encrypt_init: Init,
    encrypt: Run,
    decrypt_init: Init,
    decrypt: Run,
    /// Keeps the library mapped for as long as its functions can be called.
    _library: Pkcs11,
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
        Ok(Self {
            encrypt_init: list.C_EncryptInit.ok_or_else(|| missing("C_EncryptInit"))?,
            encrypt: list.C_Encrypt.ok_or_else(|| missing("C_Encrypt"))?,
            decrypt_init: list.C_DecryptInit.ok_or_else(|| missing("C_DecryptInit"))?,
            decrypt: list.C_Decrypt.ok_or_else(|| missing("C_Decrypt"))?,
            _library: library,
        })
    }

    /// CKM_AES_GCM encryption; `iv` is what the host supplies, or where the
    /// token writes its own. Returns the bytes written to `out`.
    pub(super) fn gcm_encrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &mut [u8],
        aad: &[u8],
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Fault> {
        let calls = (
            self.encrypt_init,
            "C_EncryptInit",
            self.encrypt,
            "C_Encrypt",
        );
        run(calls, session, key, iv, aad, input, out)
    }

    /// CKM_AES_GCM decryption. Returns the bytes written to `out`.
    pub(super) fn gcm_decrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &mut [u8],
        aad: &[u8],
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Fault> {
        let calls = (
            self.decrypt_init,
            "C_DecryptInit",
            self.decrypt,
            "C_Decrypt",
        );
        run(calls, session, key, iv, aad, input, out)
    }
}

fn run(
    (init, init_name, run, run_name): (Init, &'static str, Run, &'static str),
    session: &Session,
    key: ObjectHandle,
    iv: &mut [u8],
    aad: &[u8],
    input: &[u8],
    out: &mut [u8],
) -> Result<usize, Fault> {
    // CK_ULONG is `unsigned long`, which holds every usize on Linux.
    let long =
        |len: usize| CK_ULONG::try_from(len).map_err(|_| Fault::new(CKR_DATA_LEN_RANGE, run_name));
    let iv_len = long(iv.len())?;
    let mut params = CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: iv_len,
        ulIvBits: iv_len * 8,
        pAAD: aad.as_ptr().cast_mut(),
        ulAADLen: long(aad.len())?,
        ulTagBits: TAG_BITS,
    };
    let mut mechanism = CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: std::ptr::from_mut(&mut params).cast(),
        ulParameterLen: long(size_of::<CK_GCM_PARAMS>())?,
    };
    let mut written = long(out.len())?;
    #[allow(unsafe_code, reason = "the one-call path that cryptoki does not have")]
    // SAFETY: every pointer is valid, with its length, for both calls, which
    // keep none of them: `iv` and `params` outlive the second call, where
    // modules that choose the IV write it back. PKCS#11 inputs are pointers
    // to mutable bytes that a module does not write (2.40, section 5.2). The
    // session is used by this thread alone: `Session` is not `Sync`.
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
