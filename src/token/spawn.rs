//! Starting a worker process: nothing inherited but an allow list.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::config;

use super::protocol::{Frame, HELLO, IvChoice, Mode, PinSource, Serve, Setup};
use super::wire;

/// The hidden subcommand that is the worker.
const SUBCOMMAND: &str = "token-worker";

/// Environment a worker gets (SECURITY.md 27): what PKCS#11 libraries read to
/// find their configuration, the locale, and our own log level. Not `PATH`
/// (nothing is executed) and not `LD_*` (which would choose what code runs
/// beside the PIN).
const ENVIRONMENT: [&str; 15] = [
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "STRONGROOM_LOG",
    "CREDENTIALS_DIRECTORY",
    "SOFTHSM2_CONF",
    "KRYOPTIC_CONF",
    "ChrystokiConfigurationPath",
    "YUBIHSM_PKCS11_CONF",
    "KMS_PKCS11_CONFIG",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "P11_KIT_STRICT",
    "NO_COLOR",
];
/// Prefixes of further names: nShield's and CloudHSM's client libraries.
/// `CLOUDHSM_PIN` is not among them: a PIN comes from its file alone.
const PREFIXES: [&str; 3] = ["CKNFAST_", "NFAST_", "CLOUDHSM_"];

/// Starts the worker of a configured token and tells it what it is for.
///
/// The caller keeps the child, and hands the link to [`Token::attach`]. The
/// worker ends when the link is closed.
///
/// [`Token::attach`]: super::Token::attach
///
/// # Errors
/// No process or socket can be made, or the configuration does not fit a
/// frame.
pub fn spawn(token: &config::Token, exe: &Path) -> io::Result<(Child, OwnedFd)> {
    spawn_with(exe, &Setup::serve(token)?)
}

impl Setup {
    /// The setup of a configured token's worker.
    pub(super) fn serve(token: &config::Token) -> io::Result<Self> {
        let pin = match (&token.pin_file, &token.pin_credential) {
            (Some(path), _) => PinSource::File(path.clone()),
            (None, Some(name)) => PinSource::Credential(name.clone()),
            // `Config::parse` refuses this.
            (None, None) => return Err(io::Error::other("the token has no PIN configured")),
        };
        Ok(Self {
            module: token.module.clone(),
            network: token.network,
            mode: Mode::Serve(Serve {
                label: token.token_label.clone(),
                serial: token.serial.clone(),
                pin,
                sessions: token.sessions,
                call_timeout: token.call_timeout.duration(),
                verify_wraps: token.verify_wraps,
                gcm_iv: match token.gcm_iv {
                    config::GcmIv::Auto => IvChoice::Auto,
                    config::GcmIv::Host => IvChoice::Host,
                    config::GcmIv::ZeroWriteback => IvChoice::ZeroWriteback,
                    config::GcmIv::VendorPrefix => IvChoice::VendorPrefix,
                },
            }),
        })
    }
}

pub(super) fn spawn_with(exe: &Path, setup: &Setup) -> io::Result<(Child, OwnedFd)> {
    let setup = Frame::encode(HELLO, setup)?;
    let (ours, theirs) = wire::pair()?;
    let allowed = std::env::vars_os().filter(|(name, _)| allowed(name));
    let mut child = Command::new(exe)
        .arg(SUBCOMMAND)
        .env_clear()
        .envs(allowed)
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        // Whatever a vendor library prints belongs in the agent's log, not
        // in a command's output.
        .stdout(Stdio::from(io::stderr().as_fd().try_clone_to_owned()?))
        .stderr(Stdio::inherit())
        // Control-C at a terminal is for the supervisor, which lets running
        // requests finish; they need the worker.
        .process_group(0)
        .spawn()?;
    // A few hundred bytes into an empty socket buffer: this cannot block.
    if let Err(error) = wire::send(&ours, &setup) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    Ok((child, ours))
}

fn allowed(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        let ours = ENVIRONMENT.contains(&name);
        let vendors = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        ours || (vendors && !name.contains("PIN"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_27_the_environment_is_an_allow_list() {
        for name in [
            "SOFTHSM2_CONF",
            "CKNFAST_OVERRIDE_SECURITY_ASSURANCES",
            "CLOUDHSM_ROLE",
        ] {
            assert!(allowed(OsStr::new(name)), "{name}");
        }
        for name in [
            "PATH",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "AWS_SECRET_ACCESS_KEY",
            "RUST_LOG",
            "XNFAST_A",
            "CLOUDHSM_PIN",
        ] {
            assert!(!allowed(OsStr::new(name)), "{name}");
        }
    }
}
