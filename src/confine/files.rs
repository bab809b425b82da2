//! The confined server's view of the file system (landlock).
//!
//! A landlock rule holds on to the file or directory it was made for: a file
//! that is replaced by renaming another over it falls out of its rule.
//! Directories are therefore allowed where programs are known to do that.

use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use landlock::{
    Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, LandlockStatus, PathBeneath,
    PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
    make_bitflags,
};
use rustix::fs::OFlags;

use super::{ConfineError, LANDLOCK, ServerPaths};

/// What name resolution, TLS and the clock read. Key directories such as
/// `/etc/ssl/private` are left out.
const SYSTEM: &[&str] = &[
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/services",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    // Certificates: Debian, Red Hat, SUSE, Arch, Alpine.
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki",
    "/var/lib/ca-certificates",
    // The CPU quota, from which the runtime sizes its thread pool.
    "/sys/fs/cgroup",
    "/proc/self",
    "/dev/urandom",
];

/// Links into places the system moves about (NixOS, Red Hat): the file at
/// their end is allowed on its own.
const LINKED: &[&str] = &[
    "/etc/localtime",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/certs/ca-bundle.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Variables that name a file or directory to read: TLS trust, AWS profiles,
/// AWS tokens.
const VARIABLES: &[&str] = &[
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// Applies the rules to this thread: the landlock version in force, or why
/// the kernel has none.
pub(super) fn confine(paths: &ServerPaths) -> Result<Result<String, String>, ConfineError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    // Neither programs nor devices, not even in our own directories.
    let own = AccessFs::from_all(LANDLOCK)
        & !make_bitflags!(AccessFs::{Execute | MakeChar | MakeBlock | MakeSock | IoctlDev});
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        // It can neither signal its siblings nor reach abstract sockets.
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    let own_dirs = [&paths.state_dir, &paths.spool_dir];
    for path in own_dirs.into_iter().chain(&paths.extra_write) {
        rules = allow(rules, path, own)?.map_err(|source| ConfineError::Path {
            path: path.clone(),
            source,
        })?;
    }
    rules = allow_if_there(rules, Path::new("/dev/null"), read | AccessFs::WriteFile)?;
    for path in readable(paths) {
        rules = allow_if_there(rules, &path, read)?;
    }
    let status = rules.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => {
            Ok(format!("abi {}", effective_abi.min(LANDLOCK) as i32))
        }
        LandlockStatus::NotEnabled => Err("not enabled in this kernel".to_owned()),
        LandlockStatus::NotImplemented => Err("not in this kernel".to_owned()),
    })
}

/// Whether `path` can be opened for reading. Not a byte is read.
pub(super) fn reachable(path: &Path) -> bool {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .is_ok()
}

/// AWS profile files that set `credential_process`.
pub(super) fn profiles_with_credential_process() -> Vec<PathBuf> {
    let home = |name: &str| aws_home().map(|dir| dir.join(name));
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    [
        named("AWS_CONFIG_FILE").or_else(|| home("config")),
        named("AWS_SHARED_CREDENTIALS_FILE").or_else(|| home("credentials")),
    ]
    .into_iter()
    .flatten()
    .filter(|path| {
        // The text holds keys: look, and forget.
        std::fs::read_to_string(path).is_ok_and(|text| {
            let text = zeroize::Zeroizing::new(text);
            text.lines().any(|line| {
                line.split_once('=')
                    .is_some_and(|(name, _)| name.trim() == "credential_process")
            })
        })
    })
    .collect()
}

fn aws_home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(|home| Path::new(&home).join(".aws"))
}

fn readable(paths: &ServerPaths) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    all.extend(
        LINKED
            .iter()
            .filter_map(|link| Path::new(link).canonicalize().ok()),
    );
    all.extend(resolver_configuration());
    // Whole: `aws configure` and `aws sso login` replace files in it.
    all.extend(aws_home());
    all.extend(
        VARIABLES
            .iter()
            .filter_map(std::env::var_os)
            .map(PathBuf::from)
            .chain(paths.ca_bundle.clone())
            .chain(paths.extra_read.iter().cloned())
            .map(|path| projected_directory(&path).unwrap_or(path)),
    );
    all
}

/// `/etc/resolv.conf`; where it leads into `/run`, its directory there, since
/// systemd-resolved and NetworkManager replace the file at every change.
fn resolver_configuration() -> Option<PathBuf> {
    let file = Path::new("/etc/resolv.conf").canonicalize().ok()?;
    match file.parent() {
        Some(dir) if dir.starts_with("/run/") => Some(dir.to_owned()),
        _ => Some(file),
    }
}

/// Kubernetes projects a token as `dir/token -> ..data/token`, where `..data`
/// is a link that moves at every rotation: then `dir` is what must be allowed.
fn projected_directory(path: &Path) -> Option<PathBuf> {
    let dir = path.parent()?;
    let target = std::fs::read_link(path).ok()?;
    target.starts_with("..data").then(|| dir.to_owned())
}

fn allow_if_there(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, ConfineError> {
    // `?` would move the rules away with the error: look first.
    if path.metadata().is_err() {
        return Ok(rules);
    }
    allow(rules, path, access)?.map_err(|source| ConfineError::Path {
        path: path.to_owned(),
        source,
    })
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<io::Result<RulesetCreated>, ConfineError> {
    // Rights that only a directory has make a rule on a file invalid.
    let access = match path.metadata() {
        Ok(meta) if meta.is_dir() => access,
        Ok(_) => access & AccessFs::from_file(LANDLOCK),
        Err(error) => return Ok(Err(error)),
    };
    let fd = match PathFd::new(path) {
        Ok(fd) => fd,
        Err(error) => return Ok(Err(io::Error::other(error))),
    };
    Ok(Ok(rules.add_rule(PathBeneath::new(fd, access))?))
}
