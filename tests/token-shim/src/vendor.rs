//! Other vendors' AES-GCM, on top of a module in which the host supplies the
//! IV (docs/tokens.md has who does what).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cryptoki_sys::*;

use crate::control::Function;
use crate::faults::real;
use crate::limits;
use crate::plan::{IvMode, Kind, Plan, Vendor};

/// CKM_CLOUDHSM_AES_GCM: AWS CloudHSM's "safer" GCM.
const CLOUDHSM: CK_MECHANISM_TYPE = CKM_VENDOR_DEFINED | CKM_AES_GCM;
/// CKM_CLOUDKMS_AES_GCM: that of Google's libkmsp11.
const CLOUDKMS: CK_MECHANISM_TYPE = CKM_VENDOR_DEFINED | 0x1E101;

/// Bytes of an IV, with all but Luna.
const IV: usize = 12;
/// Bytes of Luna's.
const LUNA_IV: usize = 16;

/// Where a token of some kind takes its IV from and puts it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// As the real module does.
    Plain,
    WriteBack,
    Prefix,
    Suffix,
}

/// An operation that is active in a session.
enum Pending {
    /// C_Encrypt writes the IV there.
    WriteBack {
        to: usize,
        iv: [u8; IV],
    },
    Prefix([u8; IV]),
    Suffix([u8; LUNA_IV]),
    /// C_Decrypt finds the IV in its input, and begins only then.
    Decrypt {
        key: CK_OBJECT_HANDLE,
        aad: Vec<u8>,
        tag_bits: CK_ULONG,
        layout: Layout,
    },
}

static PENDING: Mutex<Option<HashMap<CK_SESSION_HANDLE, Pending>>> = Mutex::new(None);

fn pending<T>(work: impl FnOnce(&mut HashMap<CK_SESSION_HANDLE, Pending>) -> T) -> T {
    let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
    work(pending.get_or_insert_default())
}

/// How the token does AES-GCM under this mechanism; `None` if it does not.
fn layout(plan: &Plan, mechanism: CK_MECHANISM_TYPE) -> Option<Layout> {
    use Kind::*;
    let Some(Vendor { kind, gcm_too, .. }) = plan.vendor else {
        return Some(Layout::Plain);
    };
    match (mechanism, kind) {
        (CKM_AES_GCM, ZeroWriteback) | (CLOUDKMS, Gcp) => Some(Layout::WriteBack),
        (CKM_AES_GCM, VendorPrefix) => gcm_too.then_some(Layout::WriteBack),
        (CLOUDHSM, VendorPrefix) => Some(Layout::Prefix),
        (CKM_AES_GCM, LunaFips) => Some(Layout::Suffix),
        (CKM_AES_GCM, Gcp | NoGcm) => None,
        _ => Some(Layout::Plain),
    }
}

/// What the real module calls a mechanism; `None` if the token has none such.
pub(crate) fn known_as(plan: &Plan, mechanism: CK_MECHANISM_TYPE) -> Option<CK_MECHANISM_TYPE> {
    match layout(plan, mechanism)? {
        Layout::Plain => Some(mechanism),
        _ => Some(CKM_AES_GCM),
    }
}

/// Whether the token knows no CKA_ALLOWED_MECHANISMS, as CloudHSM and
/// libkmsp11 do not, and is asked for it.
pub(crate) fn refuses(plan: &Plan, template: CK_ATTRIBUTE_PTR, count: CK_ULONG) -> bool {
    let unknown = plan
        .vendor
        .is_some_and(|vendor| matches!(vendor.kind, Kind::VendorPrefix | Kind::Gcp));
    let (true, false, Ok(count)) = (unknown, template.is_null(), usize::try_from(count)) else {
        return false;
    };
    // SAFETY: the caller's template.
    let template = unsafe { std::slice::from_raw_parts(template, count) };
    template.iter().any(|a| a.type_ == CKA_ALLOWED_MECHANISMS)
}

/// An IV, as this token chooses them.
fn choose<const N: usize>(plan: &Plan) -> [u8; N] {
    let mut iv = [0; N];
    match plan.vendor.map(|vendor| vendor.iv).unwrap_or_default() {
        IvMode::Random | IvMode::Untold => {
            // SAFETY: so many bytes are there.
            let got = unsafe { libc::getrandom(iv.as_mut_ptr().cast(), N, 0) };
            assert_eq!(usize::try_from(got), Ok(N), "getrandom");
        }
        IvMode::Zero => {}
        IvMode::Same => iv.fill(0x53),
    }
    iv
}

fn untold(plan: &Plan) -> bool {
    plan.vendor
        .is_some_and(|vendor| vendor.iv == IvMode::Untold)
}

/// The parameters of an AES-GCM mechanism.
fn params(mechanism: CK_MECHANISM_PTR) -> Option<CK_GCM_PARAMS> {
    // SAFETY: null, or the caller's mechanism, whose parameters are looked at
    // only if they have the size of these.
    unsafe {
        let mechanism = mechanism.as_ref()?;
        let right = usize::try_from(mechanism.ulParameterLen) == Ok(size_of::<CK_GCM_PARAMS>());
        if !right || mechanism.pParameter.is_null() {
            return None;
        }
        Some(
            mechanism
                .pParameter
                .cast::<CK_GCM_PARAMS>()
                .read_unaligned(),
        )
    }
}

/// Runs `init` with CKM_AES_GCM and this IV in the place of the caller's.
fn with_iv(
    params: &CK_GCM_PARAMS,
    iv: &mut [u8],
    init: impl FnOnce(CK_MECHANISM_PTR) -> CK_RV,
) -> CK_RV {
    let mut params = CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: iv.len() as CK_ULONG,
        ulIvBits: iv.len() as CK_ULONG * 8,
        ..*params
    };
    init(&mut CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: std::ptr::from_mut(&mut params).cast(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    })
}

pub(crate) fn encrypt_init(
    plan: &Plan,
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    if limits::cold(plan, key) {
        return CKR_FUNCTION_FAILED;
    }
    // SAFETY: null, or the caller's mechanism.
    let Some(named) = (unsafe { mechanism.as_ref() }) else {
        return CKR_ARGUMENTS_BAD;
    };
    let Some(layout) = layout(plan, named.mechanism) else {
        return CKR_MECHANISM_INVALID;
    };
    if layout == Layout::Plain {
        return real!(C_EncryptInit(session, mechanism, key));
    }
    let Some(params) = params(mechanism) else {
        return CKR_MECHANISM_PARAM_INVALID;
    };
    let begin = |iv: &mut [u8], next: Pending| {
        let code = with_iv(&params, iv, |mechanism| {
            real!(C_EncryptInit(session, mechanism, key))
        });
        if code == CKR_OK {
            pending(|pending| pending.insert(session, next));
        }
        code
    };
    match layout {
        Layout::WriteBack => {
            if params.pIv.is_null() {
                return CKR_ARGUMENTS_BAD;
            }
            // SAFETY: the caller's IV, of the length it says.
            let zero = params.ulIvLen == IV as CK_ULONG
                && unsafe { std::slice::from_raw_parts(params.pIv, IV) } == [0; IV];
            if !zero {
                return CKR_MECHANISM_PARAM_INVALID;
            }
            let iv = choose(plan);
            let to = params.pIv.expose_provenance();
            begin(&mut iv.clone(), Pending::WriteBack { to, iv })
        }
        Layout::Prefix if !params.pIv.is_null() => CKR_MECHANISM_PARAM_INVALID,
        Layout::Prefix => {
            let iv = choose(plan);
            begin(&mut iv.clone(), Pending::Prefix(iv))
        }
        Layout::Suffix => {
            let iv = choose(plan);
            begin(&mut iv.clone(), Pending::Suffix(iv))
        }
        Layout::Plain => unreachable!("done above"),
    }
}

/// An output buffer and where its length stands.
type Out = (CK_BYTE_PTR, CK_ULONG_PTR);

pub(crate) fn encrypt(
    plan: &Plan,
    session: CK_SESSION_HANDLE,
    (data, len): (CK_BYTE_PTR, CK_ULONG),
    (out, out_len): Out,
) -> CK_RV {
    if out_len.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    if out.is_null() {
        let code = real!(C_Encrypt(session, data, len, out, out_len));
        let more = pending(|pending| match pending.get(&session) {
            Some(Pending::Prefix(_)) => IV,
            Some(Pending::Suffix(_)) => LUNA_IV,
            _ => 0,
        });
        // SAFETY: not null.
        unsafe { *out_len += more as CK_ULONG };
        return code;
    }
    limits::round_trip(plan, Function::C_Encrypt);
    let real = |out, out_len| real!(C_Encrypt(session, data, len, out, out_len));
    let Some(operation) = pending(|pending| pending.remove(&session)) else {
        return real(out, out_len);
    };
    // SAFETY, for all of these blocks: buffer and length are the caller's;
    // what is written lies within the length it gave.
    let room = unsafe { *out_len };
    let mut written = room;
    match operation {
        Pending::WriteBack { to, iv } => {
            let code = real(out, out_len);
            if code == CKR_OK && !untold(plan) {
                let to = std::ptr::with_exposed_provenance_mut::<u8>(to);
                unsafe { std::ptr::copy_nonoverlapping(iv.as_ptr(), to, IV) };
            }
            code
        }
        Pending::Prefix(iv) => {
            if room < IV as CK_ULONG {
                return CKR_BUFFER_TOO_SMALL;
            }
            written -= IV as CK_ULONG;
            let code = unsafe { real(out.add(IV), &mut written) };
            if code == CKR_OK && !untold(plan) {
                unsafe { std::ptr::copy_nonoverlapping(iv.as_ptr(), out, IV) };
            }
            unsafe { *out_len = written + IV as CK_ULONG };
            code
        }
        Pending::Suffix(iv) => {
            let code = real(out, &mut written);
            let end = usize::try_from(written).unwrap_or(usize::MAX);
            if code == CKR_OK && room - written >= LUNA_IV as CK_ULONG {
                unsafe { std::ptr::copy_nonoverlapping(iv.as_ptr(), out.add(end), LUNA_IV) };
            }
            unsafe { *out_len = written + LUNA_IV as CK_ULONG };
            code
        }
        Pending::Decrypt { .. } => CKR_OPERATION_NOT_INITIALIZED,
    }
}

pub(crate) fn decrypt_init(
    plan: &Plan,
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    if limits::cold(plan, key) {
        return CKR_FUNCTION_FAILED;
    }
    // SAFETY: null, or the caller's mechanism.
    let Some(named) = (unsafe { mechanism.as_ref() }) else {
        return CKR_ARGUMENTS_BAD;
    };
    let Some(layout) = layout(plan, named.mechanism) else {
        return CKR_MECHANISM_INVALID;
    };
    if layout == Layout::Plain {
        return real!(C_DecryptInit(session, mechanism, key));
    }
    let Some(params) = params(mechanism) else {
        return CKR_MECHANISM_PARAM_INVALID;
    };
    match layout {
        Layout::WriteBack => {
            if params.pIv.is_null() || params.ulIvLen != IV as CK_ULONG {
                return CKR_MECHANISM_PARAM_INVALID;
            }
            // SAFETY: the caller's IV, of the length it says.
            let mut iv = unsafe { params.pIv.cast::<[u8; IV]>().read() };
            with_iv(&params, &mut iv, |mechanism| {
                real!(C_DecryptInit(session, mechanism, key))
            })
        }
        Layout::Prefix if !params.pIv.is_null() => CKR_MECHANISM_PARAM_INVALID,
        Layout::Prefix | Layout::Suffix => {
            let aad = usize::try_from(params.ulAADLen).unwrap_or(0);
            let aad = if params.pAAD.is_null() {
                Vec::new()
            } else {
                // SAFETY: the caller's AAD.
                unsafe { std::slice::from_raw_parts(params.pAAD, aad) }.to_vec()
            };
            let next = Pending::Decrypt {
                key,
                aad,
                tag_bits: params.ulTagBits,
                layout,
            };
            match pending(|pending| pending.insert(session, next)) {
                None => CKR_OK,
                Some(_) => CKR_OPERATION_ACTIVE,
            }
        }
        Layout::Plain => unreachable!("done above"),
    }
}

pub(crate) fn decrypt(
    plan: &Plan,
    session: CK_SESSION_HANDLE,
    (data, len): (CK_BYTE_PTR, CK_ULONG),
    (out, out_len): Out,
) -> CK_RV {
    if out_len.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    if !out.is_null() {
        limits::round_trip(plan, Function::C_Decrypt);
    }
    let waiting = pending(|pending| {
        let waits = matches!(pending.get(&session), Some(Pending::Decrypt { .. }));
        match (waits, out.is_null()) {
            (false, _) => Ok(None),
            (true, true) => Err(()),
            (true, false) => Ok(pending.remove(&session)),
        }
    });
    let (key, mut aad, tag_bits, layout) = match waiting {
        Ok(Some(Pending::Decrypt {
            key,
            aad,
            tag_bits,
            layout,
        })) => (key, aad, tag_bits, layout),
        Ok(_) => return real!(C_Decrypt(session, data, len, out, out_len)),
        Err(()) => {
            // SAFETY: not null; the most that can come out.
            unsafe { *out_len = len };
            return CKR_OK;
        }
    };
    let iv_len = if layout == Layout::Prefix {
        IV
    } else {
        LUNA_IV
    };
    let Some(rest) = usize::try_from(len)
        .ok()
        .and_then(|l| l.checked_sub(iv_len))
    else {
        return CKR_ENCRYPTED_DATA_LEN_RANGE;
    };
    let (iv_at, rest_at) = if layout == Layout::Prefix {
        (0, IV)
    } else {
        (rest, 0)
    };
    // SAFETY: the caller's input, which is longer than its IV.
    let mut iv = unsafe { std::slice::from_raw_parts(data.add(iv_at), iv_len) }.to_vec();
    let params = CK_GCM_PARAMS {
        pIv: std::ptr::null_mut(),
        ulIvLen: 0,
        ulIvBits: 0,
        pAAD: aad.as_mut_ptr(),
        ulAADLen: aad.len() as CK_ULONG,
        ulTagBits: tag_bits,
    };
    let code = with_iv(&params, &mut iv, |mechanism| {
        real!(C_DecryptInit(session, mechanism, key))
    });
    if code != CKR_OK {
        return code;
    }
    // SAFETY: as above.
    let data = unsafe { data.add(rest_at) };
    real!(C_Decrypt(session, data, rest as CK_ULONG, out, out_len))
}
