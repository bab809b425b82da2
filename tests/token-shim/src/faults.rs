//! One call: counted, and broken if the plan says so.

use std::time::Duration;

use cryptoki_sys::*;

use crate::control::Function;
use crate::plan::{Action, Plan};
use crate::{limits, shim};

/// Calls a function of the real module.
macro_rules! real {
    ($name:ident ( $($arg:expr),* $(,)? )) => {
        match $crate::shim().real.$name {
            // SAFETY: our caller's arguments, or ones that the standard
            // allows, given to the function they are for.
            Some(function) => unsafe { function($($arg),*) },
            None => cryptoki_sys::CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}
pub(crate) use real;

/// What becomes of that which a call gives back. The methods are given
/// pointers that come from the caller of a call that succeeded: null, or valid
/// for what the function has just written there.
#[derive(Clone, Copy)]
pub(crate) enum Harm {
    Flip,
    Zero,
    OverReport,
    Handle(CK_OBJECT_HANDLE),
}

/// Makes a call, or what the plan has instead. `made` makes it, with another
/// handle than the caller's if one is given; `harm` harms what it gave back.
pub(crate) fn call(
    function: Function,
    made: impl Fn(&Plan, Option<CK_OBJECT_HANDLE>) -> CK_RV,
    harm: impl Fn(Harm),
) -> CK_RV {
    let shim = shim();
    shim.control.count(function);
    let plan = shim.plan();
    let made = |decoy| made(&plan, decoy);
    let harmed = |how| {
        let code = made(None);
        if code == CKR_OK {
            harm(how);
        }
        code
    };
    match shim.control.due(&plan, function) {
        None => made(None),
        Some(Action::Return(code)) => {
            if ends_an_operation(function) && *code != CKR_BUFFER_TOO_SMALL {
                made(None);
            }
            CK_RV::from(*code)
        }
        Some(Action::Hang) => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        Some(Action::Sleep(ms)) => {
            std::thread::sleep(Duration::from_millis(*ms));
            made(None)
        }
        Some(Action::Segv) => {
            // SAFETY: none: that is the point. The address is in the first
            // page, which is never mapped.
            unsafe { std::ptr::write_volatile(std::ptr::without_provenance_mut::<u8>(8), 0) };
            unreachable!("the first page is mapped");
        }
        Some(Action::Abort) => std::process::abort(),
        Some(Action::Corrupt) => harmed(Harm::Flip),
        Some(Action::Zero) => harmed(Harm::Zero),
        Some(Action::OverReport) => harmed(Harm::OverReport),
        Some(Action::LoseSessions) => {
            for slot in slots() {
                real!(C_CloseAllSessions(slot));
            }
            limits::all_closed();
            made(None)
        }
        Some(Action::Logout) => {
            for slot in slots() {
                in_session(slot, |session| real!(C_Logout(session)));
            }
            made(None)
        }
        Some(Action::SwapHandle(label)) => match find(label) {
            Some(decoy) => {
                let code = made(Some(decoy));
                if code == CKR_OK {
                    harm(Harm::Handle(decoy));
                }
                code
            }
            None => {
                eprintln!("token-shim: no object {label:?} to swap in");
                made(None)
            }
        },
    }
}

/// Whether the standard ends an operation with this call, however it ends.
fn ends_an_operation(function: Function) -> bool {
    matches!(
        function,
        Function::C_Encrypt | Function::C_Decrypt | Function::C_Sign | Function::C_FindObjectsFinal
    )
}

/// Slots that have a token.
fn slots() -> Vec<CK_SLOT_ID> {
    let mut slots = vec![0; 64];
    let mut count = slots.len() as CK_ULONG;
    if real!(C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &mut count)) != CKR_OK {
        return Vec::new();
    }
    slots.truncate(usize::try_from(count).unwrap_or(0));
    slots
}

/// Does something in a session of our own.
fn in_session<T>(slot: CK_SLOT_ID, work: impl FnOnce(CK_SESSION_HANDLE) -> T) -> Option<T> {
    let mut session = 0;
    let flags = CKF_SERIAL_SESSION | CKF_RW_SESSION;
    let null = std::ptr::null_mut();
    if real!(C_OpenSession(slot, flags, null, None, &mut session)) != CKR_OK {
        return None;
    }
    let done = work(session);
    real!(C_CloseSession(session));
    Some(done)
}

/// The first object with this label, on any token.
fn find(label: &str) -> Option<CK_OBJECT_HANDLE> {
    slots().into_iter().find_map(|slot| {
        in_session(slot, |session| {
            let mut template = CK_ATTRIBUTE {
                type_: CKA_LABEL,
                pValue: label.as_ptr().cast_mut().cast(),
                ulValueLen: label.len() as CK_ULONG,
            };
            let (mut found, mut count) = (0, 0);
            real!(C_FindObjectsInit(session, &mut template, 1));
            real!(C_FindObjects(session, &mut found, 1, &mut count));
            real!(C_FindObjectsFinal(session));
            (count == 1).then_some(found)
        })
        .flatten()
    })
}

impl Harm {
    /// Bytes.
    pub(crate) fn bytes(self, at: *mut CK_BYTE, len: CK_ULONG) {
        let (false, Ok(len)) = (at.is_null(), usize::try_from(len)) else {
            return;
        };
        // SAFETY: see `Harm`.
        let bytes = unsafe { std::slice::from_raw_parts_mut(at, len) };
        match self {
            Self::Flip => bytes.iter_mut().for_each(|byte| *byte ^= 0xA5),
            Self::Zero => bytes.fill(0),
            Self::OverReport | Self::Handle(_) => {}
        }
    }

    /// A structure.
    pub(crate) fn object<T>(self, at: *mut T) {
        self.bytes(at.cast(), size_of::<T>() as CK_ULONG);
    }

    /// A number.
    pub(crate) fn number(self, at: *mut CK_ULONG) {
        if at.is_null() {
            return;
        }
        // SAFETY: see `Harm`.
        let number = unsafe { &mut *at };
        *number = match self {
            Self::Flip => *number ^ 0x55,
            Self::Zero => 0,
            Self::OverReport => number.saturating_add(1000),
            Self::Handle(_) => *number,
        };
    }

    /// A handle.
    pub(crate) fn handle(self, at: *mut CK_ULONG) {
        match self {
            // SAFETY: see `Harm`.
            Self::Handle(decoy) if !at.is_null() => unsafe { *at = decoy },
            Self::OverReport => {}
            other => other.number(at),
        }
    }

    /// Bytes with their number.
    pub(crate) fn output(self, at: *mut CK_BYTE, len: *mut CK_ULONG) {
        if at.is_null() || len.is_null() {
            return;
        }
        match self {
            Self::OverReport => self.number(len),
            // SAFETY: see `Harm`.
            _ => self.bytes(at, unsafe { *len }),
        }
    }

    /// Handles (of slots, objects, mechanisms) with their number.
    pub(crate) fn list(self, at: *mut CK_ULONG, count: *mut CK_ULONG) {
        if count.is_null() {
            return;
        }
        if at.is_null() || matches!(self, Self::OverReport) {
            return self.number(count);
        }
        // SAFETY: see `Harm`.
        let len = usize::try_from(unsafe { *count }).unwrap_or(0);
        for i in 0..len {
            // SAFETY: see `Harm`.
            self.handle(unsafe { at.add(i) });
        }
    }

    /// Attributes.
    pub(crate) fn attributes(self, at: CK_ATTRIBUTE_PTR, count: CK_ULONG) {
        let (false, Ok(count)) = (at.is_null(), usize::try_from(count)) else {
            return;
        };
        // SAFETY: see `Harm`.
        for attribute in unsafe { std::slice::from_raw_parts_mut(at, count) } {
            if attribute.ulValueLen == CK_UNAVAILABLE_INFORMATION {
                continue;
            }
            match self {
                Self::OverReport => self.number(&mut attribute.ulValueLen),
                _ => self.bytes(attribute.pValue.cast(), attribute.ulValueLen),
            }
        }
    }
}
