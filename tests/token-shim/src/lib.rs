//! A PKCS#11 2.40 module that passes every call on to another, counts it, and
//! breaks it as a test asks: wrong codes, hangs, crashes, garbled answers,
//! lost sessions and logins, and other vendors' ways with the IV of AES-GCM.
//!
//! A token worker's environment is an allow list, so nothing is configured
//! through it: the module finds its directory by asking the dynamic linker
//! where it was loaded from. In that directory are
//!
//! | file | what |
//! |---|---|
//! | `libshim.so` | a copy of this library |
//! | `real` | the path of the module that calls are passed on to |
//! | `plan.json` | what shall go wrong ([`plan::Plan`]) |
//! | `control` | counters ([`control::Control`]) |
//!
//! Tests use it through `tests/support/shim.rs`.

#![allow(
    unsafe_code,
    reason = "a PKCS#11 module is called by C and calls C: nothing of it can be checked"
)]

pub mod control;
mod faults;
mod functions;
mod limits;
pub mod plan;
mod vendor;

use std::ffi::{CStr, OsStr, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use cryptoki_sys::{
    CK_FUNCTION_LIST, CK_FUNCTION_LIST_PTR_PTR, CK_RV, CKR_ARGUMENTS_BAD, CKR_FUNCTION_FAILED,
    CKR_OK, Pkcs11,
};

use control::Control;
use plan::Plan;

/// The loaded module.
struct Shim {
    control: Control,
    plan: RwLock<Arc<Plan>>,
    real: CK_FUNCTION_LIST,
    /// The real list, with our functions in it.
    list: CK_FUNCTION_LIST,
    /// Keeps the real module mapped.
    _library: Pkcs11,
}

static SHIM: OnceLock<Result<Shim, String>> = OnceLock::new();

/// The one symbol of a PKCS#11 2.40 module.
///
/// # Safety
/// `list` is null or points to a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: CK_FUNCTION_LIST_PTR_PTR) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    match SHIM.get_or_init(Shim::load) {
        Ok(shim) => {
            // SAFETY: not null, as just seen, and the caller's word for the
            // rest. Callers do not write to the list.
            unsafe { *list = std::ptr::from_ref(&shim.list).cast_mut() };
            CKR_OK
        }
        Err(error) => {
            eprintln!("token-shim: {error}");
            CKR_FUNCTION_FAILED
        }
    }
}

/// The module; its functions are out of reach before it is loaded.
fn shim() -> &'static Shim {
    match SHIM.get() {
        Some(Ok(shim)) => shim,
        _ => unreachable!("called before C_GetFunctionList"),
    }
}

impl Shim {
    fn load() -> Result<Self, String> {
        let dir = directory().ok_or("the linker does not know where this module is")?;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            format!("{}: {what}: {error}", dir.display())
        };
        let path = std::fs::read_to_string(dir.join("real")).map_err(|e| failed("real", &e))?;
        let control = Control::open(&dir).map_err(|e| failed("control", &e))?;
        let plan = control.read().map_err(|e| failed("plan.json", &e))?;
        // SAFETY: the test names a PKCS#11 module. Its function list is
        // static in it, and `_library` keeps it mapped.
        let (library, real) = unsafe {
            let library = Pkcs11::new(path.trim_end()).map_err(|e| failed("dlopen", &e))?;
            let get = library
                .C_GetFunctionList
                .as_ref()
                .map_err(|e| failed("C_GetFunctionList", e))?;
            let mut list = std::ptr::null_mut();
            let code = get(&mut list);
            if code != CKR_OK || list.is_null() {
                return Err(failed("C_GetFunctionList", &code));
            }
            (library, *list)
        };
        Ok(Self {
            control,
            plan: RwLock::new(Arc::new(plan)),
            real,
            list: functions::replace(real),
            _library: library,
        })
    }

    /// The plan in force.
    fn plan(&self) -> Arc<Plan> {
        let plan = Arc::clone(&self.plan.read().unwrap_or_else(PoisonError::into_inner));
        if !self.control.outdated(&plan) {
            return plan;
        }
        match self.control.read() {
            Ok(new) => {
                let new = Arc::new(new);
                *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
                new
            }
            // A test that is not obeyed would say something untrue.
            Err(error) => {
                eprintln!("token-shim: plan.json: {error}");
                std::process::abort();
            }
        }
    }
}

/// Where this library was loaded from.
fn directory() -> Option<PathBuf> {
    // SAFETY: an all-zero Dl_info is valid; dladdr fills it in, and its file
    // name lives as long as the library is loaded.
    let file = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let here = C_GetFunctionList as *const c_void;
        if libc::dladdr(here, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    let file = PathBuf::from(OsStr::from_bytes(file.to_bytes()));
    Some(file.parent()?.to_owned())
}
