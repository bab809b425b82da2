//! What is done to a function, and what that calls for (docs/tokens.md has
//! the same table; it is written out here so that one checks the other).

use crate::cell::Stage;
use crate::support::shim::*;
use crate::support::token::TokenKind;

/// What a fault calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Nothing: it comes back by itself.
    Waiting,
    /// Somebody: the state says so, and a reload looks again.
    Mending,
    /// Another PIN file: the state says so, and no PIN is tried before.
    Pin,
}

/// One fault.
#[derive(Clone)]
pub(crate) struct Fault {
    /// Its name in the output.
    pub(crate) name: String,
    /// What the module does.
    pub(crate) action: Action,
    /// What it calls for, if the client noticed it at all.
    pub(crate) calls: Calls,
    /// Whether it leaves a token that seems to work: then the agent opens
    /// every wrap again (`verify_wraps`).
    pub(crate) silent: bool,
    /// Once, rather than until it is cleared.
    pub(crate) once: bool,
}

/// Where a code is tried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum For {
    /// Everywhere, on every token: one or two of each class.
    Class,
    /// While a worker starts, too.
    Start,
    /// At work alone.
    Work,
}

const CODES: [(u64, &str, Calls, For); 24] = [
    (0x006, "FUNCTION_FAILED", Calls::Waiting, For::Class),
    (0x031, "DEVICE_MEMORY", Calls::Waiting, For::Start),
    (0x002, "HOST_MEMORY", Calls::Waiting, For::Work),
    (0x0B1, "SESSION_COUNT", Calls::Waiting, For::Start),
    (0x090, "OPERATION_ACTIVE", Calls::Waiting, For::Work),
    (0x0B3, "SESSION_HANDLE_INVALID", Calls::Waiting, For::Class),
    (0x0B0, "SESSION_CLOSED", Calls::Waiting, For::Work),
    (0x101, "USER_NOT_LOGGED_IN", Calls::Waiting, For::Class),
    (0x060, "KEY_HANDLE_INVALID", Calls::Waiting, For::Work),
    (0x082, "OBJECT_HANDLE_INVALID", Calls::Waiting, For::Start),
    (0x030, "DEVICE_ERROR", Calls::Waiting, For::Class),
    (0x032, "DEVICE_REMOVED", Calls::Waiting, For::Work),
    (0x0E0, "TOKEN_NOT_PRESENT", Calls::Waiting, For::Start),
    (0x005, "GENERAL_ERROR", Calls::Waiting, For::Class),
    (
        0x190,
        "CRYPTOKI_NOT_INITIALIZED",
        Calls::Waiting,
        For::Start,
    ),
    (0x8000_0042, "a vendor's own", Calls::Waiting, For::Start),
    (0x040, "ENCRYPTED_DATA_INVALID", Calls::Waiting, For::Class),
    (0x020, "DATA_INVALID", Calls::Waiting, For::Work),
    (0x070, "MECHANISM_INVALID", Calls::Mending, For::Class),
    (
        0x068,
        "KEY_FUNCTION_NOT_PERMITTED",
        Calls::Mending,
        For::Work,
    ),
    (0x0D1, "TEMPLATE_INCONSISTENT", Calls::Mending, For::Start),
    (0x003, "SLOT_ID_INVALID", Calls::Mending, For::Work),
    (0x0A0, "PIN_INCORRECT", Calls::Pin, For::Class),
    (0x0A4, "PIN_LOCKED", Calls::Pin, For::Start),
];

/// The faults of a stage.
pub(crate) fn faults(stage: Stage) -> Vec<Fault> {
    let fault = |name: &str, action: Action, calls| Fault {
        name: name.to_owned(),
        action,
        calls,
        silent: false,
        once: false,
    };
    let tried = match (TokenKind::chosen(), stage) {
        (TokenKind::Kryoptic, _) => For::Class,
        (TokenKind::SoftHsm, Stage::Start) => For::Start,
        (TokenKind::SoftHsm, Stage::Work) => For::Work,
    };
    let mut all: Vec<_> = CODES
        .iter()
        .filter(|(.., place)| *place <= tried)
        .map(|(code, name, calls, _)| fault(name, Action::Return(*code), *calls))
        .collect();
    all.extend([
        fault("hang", Action::Hang, Calls::Waiting),
        fault("crash", Action::Segv, Calls::Waiting),
        fault("abort", Action::Abort, Calls::Waiting),
        fault("over-reported output", Action::OverReport, Calls::Waiting),
        fault("session loss", Action::LoseSessions, Calls::Waiting),
        fault("logout", Action::Logout, Calls::Waiting),
        fault("slow", Action::Sleep(100), Calls::Waiting),
    ]);
    // What returns CKR_OK and is wrong. While a worker starts, the gate and
    // the canary find it; at work, nothing does but opening every wrap.
    let swap = Action::SwapHandle("decoy".into());
    let wrong = [
        ("corrupt output", Action::Corrupt),
        ("zeroed output", Action::Zero),
        ("handle swap", swap),
    ];
    all.extend(wrong.map(|(name, action)| Fault {
        silent: stage == Stage::Work,
        // A key that is another, a list without the token: a person's matter
        // as far as anybody can tell, and looked at again by itself.
        ..fault(name, action, Calls::Mending)
    }));
    // At work a fault may pass before anybody has noticed it.
    if stage == Stage::Work {
        let passing: Vec<_> = all
            .iter()
            .filter(|fault| fault.name != "slow")
            .map(|fault| Fault {
                name: format!("{}, once", fault.name),
                once: true,
                ..fault.clone()
            })
            .collect();
        all.extend(passing);
    }
    all
}
