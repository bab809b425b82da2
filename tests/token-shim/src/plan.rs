//! What shall go wrong: written by a test as `plan.json`, read by the module.

use serde::{Deserialize, Serialize};

use crate::control::Function;

/// Everything the module does beyond passing calls on. The default is
/// nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// Which plan this is; set by [`crate::control::Control::set`], whatever it says.
    pub generation: u64,
    /// At most 32; each counts the calls of its function by itself, and the
    /// first that is due happens.
    pub faults: Vec<Fault>,
    /// Whose AES-GCM to imitate.
    pub vendor: Option<Vendor>,
    /// C_OpenSession beyond so many at a time in one process answers
    /// CKR_SESSION_COUNT.
    pub max_sessions: Option<u64>,
    /// For so many milliseconds after a process found or made a key first,
    /// its use answers CKR_FUNCTION_FAILED.
    pub warm_up_ms: u64,
    /// Microseconds that C_Encrypt takes longer, if it has an output buffer.
    pub encrypt_latency_us: u64,
    /// The same of C_Decrypt.
    pub decrypt_latency_us: u64,
}

/// One thing that goes wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// In which function.
    pub function: Function,
    /// At which call of it first, counted from one since the plan was set,
    /// over all processes that load the module.
    pub from: u64,
    /// How many calls in a row; `None` is all from then on.
    pub times: Option<u64>,
    /// What happens.
    pub action: Action,
}

/// What can happen instead of, before or after a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Action {
    /// This code is returned. The call is not made, unless an operation would
    /// stay active in a session that the caller may take for idle: then it
    /// is, and its result is thrown away.
    Return(u64),
    /// It never returns.
    Hang,
    /// It takes so many milliseconds longer.
    Sleep(u64),
    /// SIGSEGV.
    Segv,
    /// abort().
    Abort,
    /// The call is made, and what it gives back (bytes, handles, counts,
    /// attributes) has flipped bits.
    Corrupt,
    /// The call is made, and all it gives back is zeros.
    Zero,
    /// The call is made, and says that it gave back more than it did, and
    /// more than there was room for.
    OverReport,
    /// Every session of the process is closed before the call.
    LoseSessions,
    /// The process is logged out before the call.
    Logout,
    /// The handle that the call takes, or gives back, is that of the object
    /// with this label.
    SwapHandle(String),
}

/// Whose AES-GCM to imitate, on top of a module in which the host supplies
/// the IV.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Vendor {
    /// Who chooses the IV, and where it is found.
    pub kind: Kind,
    /// How well.
    pub iv: IvMode,
    /// With [`Kind::VendorPrefix`]: whether CKM_AES_GCM is there as well, in
    /// the manner of [`Kind::ZeroWriteback`].
    pub gcm_too: bool,
}

/// Who chooses the IV, and where it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// CloudHSM and nShield: CKM_AES_GCM, pIv points to 12 zero bytes, into
    /// which C_Encrypt writes the IV.
    ZeroWriteback,
    /// CloudHSM's CKM_CLOUDHSM_AES_GCM: pIv is NULL, and the IV comes before
    /// the ciphertext, for C_Decrypt too.
    VendorPrefix,
    /// libkmsp11's CKM_CLOUDKMS_AES_GCM, else like [`Self::ZeroWriteback`].
    Gcp,
    /// Luna in FIPS mode: the host's IV is ignored, and one of 16 bytes comes
    /// after the tag, for C_Decrypt too.
    LunaFips,
    /// No AES-GCM at all.
    NoGcm,
}

/// How well the imitated token chooses its IVs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IvMode {
    /// At random, each time anew.
    #[default]
    Random,
    /// At random, but it is not told: where it should stand nothing is
    /// written.
    Untold,
    /// All zero.
    Zero,
    /// The same each time.
    Same,
}

impl Plan {
    /// A plan with nothing but a vendor.
    #[must_use]
    pub fn vendor(kind: Kind) -> Self {
        Self::vendor_iv(kind, IvMode::Random)
    }

    /// A plan with nothing but a vendor that chooses IVs in its own way.
    #[must_use]
    pub fn vendor_iv(kind: Kind, iv: IvMode) -> Self {
        Self {
            vendor: Some(Vendor {
                kind,
                iv,
                gcm_too: false,
            }),
            ..Self::default()
        }
    }

    /// With a fault in one call: the next one of this function.
    #[must_use]
    pub fn once(self, function: Function, action: Action) -> Self {
        self.with(function, 1, Some(1), action)
    }

    /// With a fault in every call of this function from now on.
    #[must_use]
    pub fn always(self, function: Function, action: Action) -> Self {
        self.with(function, 1, None, action)
    }

    /// With a fault in so many calls of this function, from the nth on.
    #[must_use]
    pub fn with(
        mut self,
        function: Function,
        from: u64,
        times: Option<u64>,
        action: Action,
    ) -> Self {
        self.faults.push(Fault {
            function,
            from,
            times,
            action,
        });
        self
    }
}

impl Fault {
    /// Whether it happens at the nth call.
    pub(crate) fn due(&self, nth: u64) -> bool {
        nth >= self.from && self.times.is_none_or(|times| nth - self.from < times)
    }
}
