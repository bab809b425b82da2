//! The functions themselves, each as the standard declares it (PKCS#11 2.40,
//! section 5), and what each gives back that can be harmed.

#![allow(non_snake_case, reason = "they have the standard's names")]

use std::ffi::c_void;

use cryptoki_sys::*;

use crate::control::Function;
use crate::faults::{Harm, call, real};
use crate::{limits, shim, vendor};

/// Defines the functions, and [`replace`], which puts them into a list.
macro_rules! functions {
    ($(
        $name:ident ( $($arg:ident : $ty:ty),* )
        $( => $harm:expr )? $( , $made:expr )? ;
    )+) => {
        $(
            unsafe extern "C" fn $name($($arg: $ty),*) -> CK_RV {
                call(
                    Function::$name,
                    functions!(@made [$($made)?] $name ($($arg),*)),
                    functions!(@harm [$($harm)?]),
                )
            }
        )+

        /// The real module's list with our functions in it. What is not ours
        /// is called uncounted.
        pub(crate) fn replace(mut list: CK_FUNCTION_LIST) -> CK_FUNCTION_LIST {
            list.version = CK_VERSION { major: 2, minor: 40 };
            list.C_GetFunctionList = Some(crate::C_GetFunctionList);
            $( list.$name = list.$name.is_some().then_some($name as _); )+
            // Logins are counted by how they end.
            list.C_Login = list.C_Login.is_some().then_some(log_in as _);
            list
        }
    };
    (@made [] $name:ident ($($arg:ident),*)) => { |_, _| real!($name($($arg),*)) };
    (@made [$made:expr] $($rest:tt)*) => { $made };
    (@harm []) => { |_| {} };
    (@harm [$harm:expr]) => { $harm };
}

functions! {
    C_Initialize(args: *mut c_void);
    C_Finalize(reserved: *mut c_void);
    C_GetInfo(info: CK_INFO_PTR) => |harm: Harm| harm.object(info);
    C_GetSlotList(present: CK_BBOOL, list: CK_SLOT_ID_PTR, count: CK_ULONG_PTR)
        => |harm: Harm| harm.list(list, count);
    C_GetSlotInfo(slot: CK_SLOT_ID, info: CK_SLOT_INFO_PTR) => |harm: Harm| harm.object(info);
    C_GetTokenInfo(slot: CK_SLOT_ID, info: CK_TOKEN_INFO_PTR) => |harm: Harm| harm.object(info);
    C_GetMechanismList(slot: CK_SLOT_ID, list: CK_MECHANISM_TYPE_PTR, count: CK_ULONG_PTR)
        => |harm: Harm| harm.list(list, count);
    C_GetMechanismInfo(slot: CK_SLOT_ID, kind: CK_MECHANISM_TYPE, info: CK_MECHANISM_INFO_PTR)
        => |harm: Harm| harm.object(info),
        |plan, _| match vendor::known_as(plan, kind) {
            Some(kind) => real!(C_GetMechanismInfo(slot, kind, info)),
            None => CKR_MECHANISM_INVALID,
        };
    C_InitToken(slot: CK_SLOT_ID, pin: CK_UTF8CHAR_PTR, len: CK_ULONG, label: CK_UTF8CHAR_PTR);
    C_InitPIN(session: CK_SESSION_HANDLE, pin: CK_UTF8CHAR_PTR, len: CK_ULONG);
    C_OpenSession(
        slot: CK_SLOT_ID,
        flags: CK_FLAGS,
        application: *mut c_void,
        notify: CK_NOTIFY,
        session: CK_SESSION_HANDLE_PTR
    )
        => |harm: Harm| harm.handle(session),
        |plan, _| limits::open_session(plan, || {
            real!(C_OpenSession(slot, flags, application, notify, session))
        });
    C_CloseSession(session: CK_SESSION_HANDLE) => |_| {}, |_, _| limits::close_session(session);
    C_CloseAllSessions(slot: CK_SLOT_ID)
        => |_| {},
        |_, _| {
            limits::all_closed();
            real!(C_CloseAllSessions(slot))
        };
    C_GetSessionInfo(session: CK_SESSION_HANDLE, info: CK_SESSION_INFO_PTR)
        => |harm: Harm| harm.object(info);
    C_Login(
        session: CK_SESSION_HANDLE,
        user: CK_USER_TYPE,
        pin: CK_UTF8CHAR_PTR,
        len: CK_ULONG
    );
    C_Logout(session: CK_SESSION_HANDLE);
    C_CreateObject(
        session: CK_SESSION_HANDLE,
        template: CK_ATTRIBUTE_PTR,
        count: CK_ULONG,
        object: CK_OBJECT_HANDLE_PTR
    ) => |harm: Harm| harm.handle(object);
    C_DestroyObject(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE)
        => |_| {},
        |_, decoy| real!(C_DestroyObject(session, decoy.unwrap_or(object)));
    C_GetAttributeValue(
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        template: CK_ATTRIBUTE_PTR,
        count: CK_ULONG
    )
        => |harm: Harm| harm.attributes(template, count),
        |_, decoy| real!(C_GetAttributeValue(session, decoy.unwrap_or(object), template, count));
    C_FindObjectsInit(session: CK_SESSION_HANDLE, template: CK_ATTRIBUTE_PTR, count: CK_ULONG);
    C_FindObjects(
        session: CK_SESSION_HANDLE,
        objects: CK_OBJECT_HANDLE_PTR,
        max: CK_ULONG,
        count: CK_ULONG_PTR
    )
        => |harm: Harm| harm.list(objects, count),
        |_, _| {
            let code = real!(C_FindObjects(session, objects, max, count));
            if code == CKR_OK {
                // SAFETY: the real module has just written it.
                limits::note(objects, usize::try_from(unsafe { *count }).unwrap_or(0));
            }
            code
        };
    C_FindObjectsFinal(session: CK_SESSION_HANDLE);
    C_EncryptInit(session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE)
        => |_| {},
        |plan, decoy| vendor::encrypt_init(plan, session, mechanism, decoy.unwrap_or(key));
    C_Encrypt(
        session: CK_SESSION_HANDLE,
        data: CK_BYTE_PTR,
        len: CK_ULONG,
        out: CK_BYTE_PTR,
        out_len: CK_ULONG_PTR
    )
        => |harm: Harm| harm.output(out, out_len),
        |plan, _| vendor::encrypt(plan, session, (data, len), (out, out_len));
    C_DecryptInit(session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE)
        => |_| {},
        |plan, decoy| vendor::decrypt_init(plan, session, mechanism, decoy.unwrap_or(key));
    C_Decrypt(
        session: CK_SESSION_HANDLE,
        data: CK_BYTE_PTR,
        len: CK_ULONG,
        out: CK_BYTE_PTR,
        out_len: CK_ULONG_PTR
    )
        => |harm: Harm| harm.output(out, out_len),
        |plan, _| vendor::decrypt(plan, session, (data, len), (out, out_len));
    C_SignInit(session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_PTR, key: CK_OBJECT_HANDLE)
        => |_| {},
        |_, decoy| real!(C_SignInit(session, mechanism, decoy.unwrap_or(key)));
    C_Sign(
        session: CK_SESSION_HANDLE,
        data: CK_BYTE_PTR,
        len: CK_ULONG,
        out: CK_BYTE_PTR,
        out_len: CK_ULONG_PTR
    ) => |harm: Harm| harm.output(out, out_len);
    C_GenerateKey(
        session: CK_SESSION_HANDLE,
        mechanism: CK_MECHANISM_PTR,
        template: CK_ATTRIBUTE_PTR,
        count: CK_ULONG,
        key: CK_OBJECT_HANDLE_PTR
    )
        => |harm: Harm| harm.handle(key),
        |plan, _| {
            if vendor::refuses(plan, template, count) {
                return CKR_ATTRIBUTE_TYPE_INVALID;
            }
            let code = real!(C_GenerateKey(session, mechanism, template, count, key));
            if code == CKR_OK {
                limits::note(key, 1);
            }
            code
        };
    C_GenerateKeyPair(
        session: CK_SESSION_HANDLE,
        mechanism: CK_MECHANISM_PTR,
        public: CK_ATTRIBUTE_PTR,
        public_count: CK_ULONG,
        private: CK_ATTRIBUTE_PTR,
        private_count: CK_ULONG,
        public_key: CK_OBJECT_HANDLE_PTR,
        private_key: CK_OBJECT_HANDLE_PTR
    ) => |harm: Harm| harm.handle(private_key);
    C_WrapKey(
        session: CK_SESSION_HANDLE,
        mechanism: CK_MECHANISM_PTR,
        wrapping: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
        out: CK_BYTE_PTR,
        out_len: CK_ULONG_PTR
    ) => |harm: Harm| harm.output(out, out_len);
    C_UnwrapKey(
        session: CK_SESSION_HANDLE,
        mechanism: CK_MECHANISM_PTR,
        unwrapping: CK_OBJECT_HANDLE,
        wrapped: CK_BYTE_PTR,
        len: CK_ULONG,
        template: CK_ATTRIBUTE_PTR,
        count: CK_ULONG,
        key: CK_OBJECT_HANDLE_PTR
    ) => |harm: Harm| harm.handle(key);
    C_SeedRandom(session: CK_SESSION_HANDLE, seed: CK_BYTE_PTR, len: CK_ULONG);
    C_GenerateRandom(session: CK_SESSION_HANDLE, bytes: CK_BYTE_PTR, len: CK_ULONG)
        => |harm: Harm| harm.bytes(bytes, len);
}

unsafe extern "C" fn log_in(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: CK_UTF8CHAR_PTR,
    len: CK_ULONG,
) -> CK_RV {
    // SAFETY: the caller's arguments, as they came.
    let code = unsafe { C_Login(session, user, pin, len) };
    if matches!(
        code,
        CKR_PIN_INCORRECT
            | CKR_PIN_INVALID
            | CKR_PIN_LEN_RANGE
            | CKR_PIN_EXPIRED
            | CKR_PIN_LOCKED
            | CKR_PIN_TOO_WEAK
    ) {
        shim().control.count_rejected();
    }
    code
}
