//! A module between the token worker and the real one, which counts calls and
//! breaks those that a test asks it to (tests/token-shim).
//!
//! ```ignore
//! let shim = Shim::new(&hsm::module());
//! let agent = Agent::start(&hsm, weed, |config| shim.configure(config));
//! shim.plan(&Plan::default().once(C_Encrypt, Action::Abort));
//! let calls = shim.calls(C_Encrypt);
//! ```
//!
//! It stands by itself, so that test binaries without the rest of the harness
//! can include it with `#[path]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, value};

pub use strongroom_token_shim::control::Function::*;
pub use strongroom_token_shim::control::{Control, FUNCTIONS, Function};
pub use strongroom_token_shim::plan::{Action, Fault, IvMode, Kind, Plan, Vendor};

/// A module of a test's own.
pub struct Shim {
    dir: tempfile::TempDir,
    control: Control,
}

impl Shim {
    /// A module that passes every call on to the one at `real`.
    #[track_caller]
    pub fn new(real: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("strongroom-shim-")
            .tempdir()
            .unwrap();
        // A copy: through a link the library would not know this directory.
        std::fs::copy(built(), dir.path().join("libshim.so")).unwrap();
        std::fs::write(dir.path().join("real"), real.to_str().unwrap()).unwrap();
        Self {
            control: Control::open(dir.path()).unwrap(),
            dir,
        }
    }

    /// What `module` in a configuration must name.
    pub fn module(&self) -> PathBuf {
        self.dir.path().join("libshim.so")
    }

    /// Puts it in the place of every token's module.
    pub fn configure(&self, config: &mut DocumentMut) {
        let tokens = config["token"].as_array_of_tables_mut().unwrap();
        for token in tokens.iter_mut() {
            token["module"] = value(self.module().to_str().unwrap());
        }
    }

    /// Puts a plan into force, for calls that begin from now on.
    #[track_caller]
    pub fn plan(&self, plan: &Plan) {
        self.control.set(plan).unwrap();
    }

    /// Calls are passed on again as they are. One that hangs goes on to.
    #[track_caller]
    pub fn clear(&self) {
        self.plan(&Plan::default());
    }

    /// Calls of a function so far, by all processes.
    pub fn calls(&self, function: Function) -> u64 {
        self.control.calls(function)
    }

    /// Calls of C_Encrypt or C_Decrypt that had an output buffer.
    pub fn buffered(&self, function: Function) -> u64 {
        self.control.buffered(function)
    }

    /// C_Login calls that were answered with a CKR_PIN_* code.
    pub fn rejected(&self) -> u64 {
        self.control.rejected()
    }

    /// How often the present plan's nth fault (from zero) happened.
    pub fn happened(&self, nth: usize) -> u64 {
        self.control.happened(nth)
    }

    /// Every function that was called, with how often.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let all = FUNCTIONS.iter().map(|f| (f.name(), self.calls(*f)));
        all.filter(|(_, calls)| *calls > 0).collect()
    }
}

/// The library, which cargo builds beside the tests that use it.
#[track_caller]
fn built() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let library = tests.with_file_name("libstrongroom_token_shim.so");
    assert!(library.exists(), "{} is not built", library.display());
    library
}
