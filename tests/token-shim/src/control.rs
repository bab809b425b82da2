//! What test and module share while both run: a small file of counters,
//! mapped by every process that loads the module, and the plan beside it.
//!
//! A counter is one atomic add, and a plan is read again only when its
//! generation has changed, so that a call costs no system call.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

macro_rules! functions {
    ($($name:ident)+) => {
        /// The functions that the module counts and can break: those that a
        /// token worker, or a tool beside it, may call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(non_camel_case_types, missing_docs, reason = "they have the standard's names")]
        pub enum Function { $($name),+ }

        /// All of them.
        pub const FUNCTIONS: &[Function] = &[$(Function::$name),+];

        impl Function {
            /// Its name in the standard.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

functions! {
    C_Initialize C_Finalize C_GetInfo C_GetSlotList C_GetSlotInfo C_GetTokenInfo
    C_GetMechanismList C_GetMechanismInfo C_InitToken C_InitPIN C_OpenSession
    C_CloseSession C_CloseAllSessions C_GetSessionInfo C_Login C_Logout
    C_CreateObject C_DestroyObject C_GetAttributeValue C_FindObjectsInit
    C_FindObjects C_FindObjectsFinal C_EncryptInit C_Encrypt C_DecryptInit
    C_Decrypt C_SignInit C_Sign C_GenerateKey C_GenerateKeyPair C_WrapKey C_UnwrapKey C_SeedRandom C_GenerateRandom
}

/// Faults of one plan.
pub(crate) const MAX_FAULTS: usize = 32;
/// Plans whose fault counters are kept apart, so that a call that began under
/// an earlier plan is not counted in the present one.
const PLANS: usize = 16;

/// The words of the file, in order.
#[repr(C)]
struct Words {
    generation: AtomicU64,
    rejected: AtomicU64,
    calls: [AtomicU64; FUNCTIONS.len()],
    buffered: [AtomicU64; FUNCTIONS.len()],
    seen: [[AtomicU64; MAX_FAULTS]; PLANS],
    done: [[AtomicU64; MAX_FAULTS]; PLANS],
}

/// The shared counters and the plan, in the module's directory.
pub struct Control {
    dir: PathBuf,
    words: &'static Words,
}

impl Control {
    /// Maps the counters of this directory; makes them if they are not there.
    ///
    /// # Errors
    /// The file cannot be made or mapped.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("control"))?;
        let size = size_of::<Words>();
        file.set_len(size as u64)?;
        // SAFETY: the file has at least `size` bytes and is never shortened.
        // The mapping is page-aligned, stays for the rest of the process, and
        // is shared with other processes only as atomics, for which every
        // bit pattern is valid.
        let words = unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            );
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            &*at.cast::<Words>()
        };
        Ok(Self {
            dir: dir.to_owned(),
            words,
        })
    }

    /// Puts a plan into force for every call that begins from now on.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// It has more than 32 faults.
    pub fn set(&self, plan: &Plan) -> io::Result<()> {
        assert!(plan.faults.len() <= MAX_FAULTS, "too many faults");
        let generation = self.words.generation.load(Ordering::SeqCst) + 1;
        for words in [&self.words.seen, &self.words.done] {
            for word in &words[slot(generation)] {
                word.store(0, Ordering::SeqCst);
            }
        }
        let plan = Plan {
            generation,
            ..plan.clone()
        };
        let new = self.dir.join("plan.new");
        fs::write(&new, serde_json::to_vec_pretty(&plan)?)?;
        fs::rename(new, self.dir.join("plan.json"))?;
        self.words.generation.store(generation, Ordering::SeqCst);
        Ok(())
    }

    /// Calls of a function since the directory was made.
    #[must_use]
    pub fn calls(&self, function: Function) -> u64 {
        self.words.calls[function as usize].load(Ordering::SeqCst)
    }

    /// Calls of C_Encrypt or C_Decrypt that had an output buffer: with most
    /// HSMs, the round trips.
    #[must_use]
    pub fn buffered(&self, function: Function) -> u64 {
        self.words.buffered[function as usize].load(Ordering::SeqCst)
    }

    /// C_Login calls that were answered with a CKR_PIN_* code.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.words.rejected.load(Ordering::SeqCst)
    }

    /// How often the present plan's nth fault (from zero) happened.
    #[must_use]
    pub fn happened(&self, nth: usize) -> u64 {
        let generation = self.words.generation.load(Ordering::SeqCst);
        self.words.done[slot(generation)][nth].load(Ordering::SeqCst)
    }

    pub(crate) fn count(&self, function: Function) {
        self.words.calls[function as usize].fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn count_buffered(&self, function: Function) {
        self.words.buffered[function as usize].fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn count_rejected(&self) {
        self.words.rejected.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a newer plan than this one is in force.
    pub(crate) fn outdated(&self, plan: &Plan) -> bool {
        self.words.generation.load(Ordering::SeqCst) != plan.generation
    }

    /// Reads the plan in force.
    pub(crate) fn read(&self) -> io::Result<Plan> {
        if self.words.generation.load(Ordering::SeqCst) == 0 {
            return Ok(Plan::default());
        }
        Ok(serde_json::from_slice(&fs::read(
            self.dir.join("plan.json"),
        )?)?)
    }

    /// What happens in this call of `function`, if anything.
    pub(crate) fn due<'a>(
        &self,
        plan: &'a Plan,
        function: Function,
    ) -> Option<&'a crate::plan::Action> {
        let slot = slot(plan.generation);
        let mut first = None;
        for (i, fault) in plan.faults.iter().enumerate() {
            if fault.function != function {
                continue;
            }
            let nth = self.words.seen[slot][i].fetch_add(1, Ordering::SeqCst) + 1;
            if first.is_none() && fault.due(nth) {
                first = Some(&fault.action);
                self.words.done[slot][i].fetch_add(1, Ordering::SeqCst);
            }
        }
        first
    }
}

fn slot(generation: u64) -> usize {
    usize::try_from(generation % PLANS as u64).unwrap_or(0)
}
