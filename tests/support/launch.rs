//! Starts a program under the restrictions of a systemd unit, where systemd
//! does not run: what it would do between `fork` and `exec`, done here.
//!
//! The unit's own lines decide. A line that this does not know is an error, so
//! that the unit cannot say more than was tried; what cannot be had without
//! systemd is in [`UNIT`] with the reason.
#![allow(unsafe_code, reason = "mounts, credentials and limits of this thread")]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use serde::{Deserialize, Serialize};

use super::process::run;

/// Holds the job of [`child`], as JSON.
pub const JOB: &str = "STRONGROOM_TEST_LAUNCH";

/// What is started, and what it may write.
#[derive(Serialize, Deserialize)]
pub struct Job {
    /// The program and its arguments.
    pub program: Vec<PathBuf>,
    /// Its user and group.
    pub uid: u32,
    /// StateDirectory, and what a token writes: ReadWritePaths.
    pub writable: Vec<PathBuf>,
    /// Directories below /tmp that stand for places outside it.
    pub readable: Vec<PathBuf>,
    /// The unit.
    pub unit: PathBuf,
}

/// How a line of the unit is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Here.
    Applied,
    /// By the test that starts the program: sockets, credentials, signals.
    ByTest,
    /// It needs systemd or a kernel feature that CI need not have.
    NotHere(&'static str),
}

use How::{Applied, ByTest, NotHere};

/// Every directive of `[Service]`.
pub const UNIT: &[(&str, How)] = &[
    ("Type", ByTest),
    ("NotifyAccess", NotHere("systemd's own")),
    ("User", ByTest),
    ("Group", ByTest),
    ("ExecStart", ByTest),
    ("ExecReload", NotHere("systemd's own")),
    ("Restart", NotHere("systemd's own")),
    ("RestartSec", NotHere("systemd's own")),
    ("RestartPreventExitStatus", NotHere("systemd's own")),
    ("WatchdogSec", ByTest),
    ("TimeoutStopSec", NotHere("systemd's own")),
    ("KillMode", ByTest),
    ("RuntimeDirectory", ByTest),
    ("RuntimeDirectoryPreserve", NotHere("systemd's own")),
    ("StateDirectory", ByTest),
    ("StateDirectoryMode", ByTest),
    ("UMask", Applied),
    ("LoadCredential", ByTest),
    ("LimitCORE", Applied),
    ("LimitNOFILE", Applied),
    ("LimitMEMLOCK", Applied),
    ("NoNewPrivileges", Applied),
    ("CapabilityBoundingSet", Applied),
    ("AmbientCapabilities", Applied),
    ("ProtectSystem", Applied),
    ("ProtectHome", Applied),
    ("PrivateTmp", Applied),
    ("PrivateDevices", Applied),
    ("PrivateMounts", Applied),
    ("ProtectClock", Applied),
    ("ProtectControlGroups", Applied),
    (
        "ProtectHostname",
        NotHere("the calls are denied; the namespace is not made"),
    ),
    ("ProtectKernelLogs", Applied),
    ("ProtectKernelModules", Applied),
    ("ProtectKernelTunables", Applied),
    ("ProtectProc", Applied),
    ("ProcSubset", Applied),
    ("RemoveIPC", NotHere("systemd's own")),
    ("LockPersonality", Applied),
    ("MemoryDenyWriteExecute", Applied),
    ("RestrictNamespaces", Applied),
    ("RestrictRealtime", Applied),
    ("RestrictSUIDSGID", Applied),
    ("RestrictAddressFamilies", Applied),
    ("SystemCallArchitectures", Applied),
    ("SystemCallErrorNumber", Applied),
    ("SystemCallFilter", Applied),
];

/// The lines of one section of a unit, in order.
pub fn section(unit: &Path, name: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(unit).unwrap();
    let head = format!("[{name}]");
    text.lines()
        .skip_while(|line| *line != head)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The system calls that the unit's `SystemCallFilter=` lines leave.
pub fn allowed_calls(unit: &Path) -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    // Always allowed (systemd.exec(5)).
    expand("@default", &mut |name| {
        left.insert(name);
    });
    for (_, value) in section(unit, "Service")
        .into_iter()
        .filter(|(key, _)| key == "SystemCallFilter")
    {
        let (deny, names) = match value.strip_prefix('~') {
            Some(names) => (true, names),
            None => (false, value.as_str()),
        };
        for name in names.split_whitespace() {
            expand(name, &mut |name| {
                if deny {
                    left.remove(&name);
                } else {
                    left.insert(name);
                }
            });
        }
    }
    left
}

fn expand(name: &str, each: &mut dyn FnMut(String)) {
    if !name.starts_with('@') {
        return each(name.to_owned());
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["syscall-filter", "--no-pager", name]);
    for line in run(&mut command, b"").ok().text().lines().skip(1) {
        let word = line.trim();
        if !word.is_empty() && !word.starts_with('#') {
            expand(word, each);
        }
    }
}

/// Numbers of system calls, from the C library's own header.
fn numbers() -> impl Fn(&str) -> Option<i64> {
    let text = [
        "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "/usr/include/asm/unistd_64.h",
        "/usr/include/asm-generic/unistd.h",
    ]
    .iter()
    .find_map(|path| fs::read_to_string(path).ok())
    .expect("the kernel's headers (linux-libc-dev)");
    move |name| {
        let mut wanted = format!("__NR_{name}");
        for _ in 0..2 {
            let line = text.lines().find_map(|line| {
                let mut words = line.split_whitespace();
                let defines = words.next() == Some("#define") && words.next() == Some(&wanted);
                if defines { words.next() } else { None }
            })?;
            match line.parse() {
                Ok(number) => return Some(number),
                Err(_) => wanted = line.to_owned(),
            }
        }
        None
    }
}

/// Not a test by itself: becomes the program of a job, confined.
#[test]
fn child() {
    let Some(job) = std::env::var_os(JOB) else {
        return;
    };
    let job: Job = serde_json::from_str(job.to_str().unwrap()).unwrap();
    let filters = filters(&job.unit);
    limits();
    mounts(&job);
    credentials(job.uid);
    for filter in &filters {
        seccompiler::apply_filter(filter).unwrap();
    }
    let error = Command::new("/tmp/strongroom")
        .args(&job.program[1..])
        .current_dir("/")
        .env_remove(JOB)
        // systemd names the process that it starts, as this one will be.
        .env("LISTEN_PID", std::process::id().to_string())
        .env("WATCHDOG_PID", std::process::id().to_string())
        .exec();
    panic!("{:?}: {error}", job.program);
}

fn check(what: &str, result: libc::c_int) {
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
}

fn limits() {
    for (which, limit) in [
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_NOFILE, 65536),
        (libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY),
    ] {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        // SAFETY: reads the structure.
        if unsafe { libc::setrlimit(which, &raw const limit) } < 0 {
            // A container's root may not raise them.
            println!(
                "limit {which} stays as it is: {}",
                io::Error::last_os_error()
            );
        }
    }
    // SAFETY: a number alone.
    unsafe { libc::umask(0o077) };
}

/// A namespace of this thread's own, and so of what it becomes, in which all
/// is read-only but what the job may write.
fn mounts(job: &Job) {
    // SAFETY: this thread's view of the file system alone.
    check("unshare", unsafe { libc::unshare(libc::CLONE_NEWNS) });
    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE, None);
    // Below /tmp, which becomes another: held by descriptors meanwhile.
    let program = fs::File::open(&job.program[0]).unwrap();
    let kept: Vec<_> = job
        .readable
        .iter()
        .chain(&job.writable)
        .map(|path| (path, fs::File::open(path).unwrap()))
        .collect();
    let devices: Vec<_> = ["null", "zero", "full", "random", "urandom", "tty"]
        .into_iter()
        .map(|name| (name, o_path(&format!("/dev/{name}"))))
        .collect();
    mount(
        Some("tmpfs"),
        "/dev",
        Some("tmpfs"),
        libc::MS_NOSUID | libc::MS_NOEXEC,
        Some("mode=0755"),
    );
    for (name, device) in &devices {
        let at = format!("/dev/{name}");
        fs::write(&at, "").unwrap();
        bind(device.as_raw_fd(), &at);
    }
    mount(
        Some("tmpfs"),
        "/tmp",
        Some("tmpfs"),
        libc::MS_NOSUID | libc::MS_NODEV,
        Some("mode=1777"),
    );
    for (path, directory) in &kept {
        if !path.exists() {
            fs::create_dir_all(path).unwrap();
        }
        bind(directory.as_raw_fd(), path.to_str().unwrap());
    }
    // Wherever it was built, which may be somebody's home.
    fs::write("/tmp/strongroom", "").unwrap();
    bind(program.as_raw_fd(), "/tmp/strongroom");
    for home in ["/root", "/home", "/run/user"] {
        if Path::new(home).is_dir() {
            mount(
                Some("tmpfs"),
                home,
                Some("tmpfs"),
                libc::MS_RDONLY,
                Some("mode=0000"),
            );
        }
    }
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
        Some("hidepid=invisible,subset=pid"),
    );
    read_only("/", true);
    for path in job
        .writable
        .iter()
        .map(|path| path.to_str().unwrap())
        .chain(["/tmp"])
    {
        read_only(path, false);
    }
}

fn o_path(path: &str) -> fs::File {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH);
    options.open(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn bind(from: libc::c_int, to: &str) {
    mount(
        Some(&format!("/proc/self/fd/{from}")),
        to,
        None,
        libc::MS_BIND,
        None,
    );
}

fn mount(
    from: Option<&str>,
    to: &str,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: Option<&str>,
) {
    let text = |text: Option<&str>| text.map(|text| CString::new(text).unwrap());
    let (source, kind, data) = (text(from), text(kind), text(data));
    let target = CString::new(to).unwrap();
    let pointer = |text: &Option<CString>| text.as_deref().map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: texts that outlive the call.
    let done = unsafe {
        libc::mount(
            pointer(&source),
            target.as_ptr(),
            pointer(&kind),
            flags,
            pointer(&data).cast(),
        )
    };
    check(&format!("mount {from:?} at {to}"), done);
}

/// mount_setattr(2): the whole tree, or one mount.
fn read_only(path: &str, on: bool) {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    const RDONLY: u64 = 1;
    const NOSUID: u64 = 2;
    let attributes = Attributes {
        set: if on { RDONLY | NOSUID } else { 0 },
        clear: if on { 0 } else { RDONLY },
        propagation: 0,
        userns: 0,
    };
    let target = CString::new(path).unwrap();
    let flags = if on { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the structure of mount_setattr(2), with its size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    assert_eq!(
        done,
        0,
        "mount_setattr {path}: {}",
        io::Error::last_os_error()
    );
}

/// Another user, without groups, capabilities, or a way to new privileges.
fn credentials(uid: u32) {
    for capability in 0..64 {
        // SAFETY: numbers alone. Capabilities that the kernel does not have
        // are refused.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    // SAFETY: numbers alone; of this thread, which is the one that becomes
    // the program.
    unsafe {
        check("setgroups", libc::setgroups(0, std::ptr::null()));
        check("setresgid", libc::setresgid(uid, uid, uid));
        check("setresuid", libc::setresuid(uid, uid, uid));
        check(
            "no_new_privs",
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        );
    }
}

/// The unit's `SystemCallFilter=`, and what systemd makes of its other lines.
fn filters(unit: &Path) -> Vec<BpfProgram> {
    let number = numbers();
    let arch = || TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let build = |rules, matched: SeccompAction, other: SeccompAction| -> BpfProgram {
        let filter = SeccompFilter::new(rules, other, matched, arch()).unwrap();
        filter.try_into().unwrap()
    };
    let denied = |errno: libc::c_int| SeccompAction::Errno(errno.unsigned_abs());
    let rule = |conditions: &[(u8, SeccompCmpOp, u64)]| {
        let conditions = conditions.iter().map(|(at, op, value)| {
            SeccompCondition::new(*at, SeccompCmpArgLen::Dword, op.clone(), *value).unwrap()
        });
        SeccompRule::new(conditions.collect()).unwrap()
    };
    // seccomp-util.c: writable and executable memory; families; namespaces;
    // set-uid bits; realtime; personalities.
    let both = u64::from((libc::PROT_WRITE | libc::PROT_EXEC).unsigned_abs());
    let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
    let bits = |at, mask| rule(&[(at, SeccompCmpOp::MaskedEq(mask), mask)]);
    let families = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let lines = section(unit, "Service");
    let said = |key: &str| {
        lines
            .iter()
            .find(|(name, _)| name == key)
            .unwrap()
            .1
            .clone()
    };
    assert_eq!(
        said("RestrictAddressFamilies"),
        "AF_UNIX AF_INET AF_INET6 AF_NETLINK"
    );
    let mut strict = vec![
        (libc::SYS_mmap, vec![bits(2, both)]),
        (libc::SYS_mprotect, vec![bits(2, exec)]),
        (libc::SYS_pkey_mprotect, vec![bits(2, exec)]),
        (
            libc::SYS_socket,
            vec![rule(&families.map(|family| {
                (0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs()))
            }))],
        ),
        (libc::SYS_unshare, vec![]),
        (libc::SYS_setns, vec![]),
        (
            libc::SYS_clone,
            [
                libc::CLONE_NEWNS,
                libc::CLONE_NEWCGROUP,
                libc::CLONE_NEWUTS,
                libc::CLONE_NEWIPC,
                libc::CLONE_NEWUSER,
                libc::CLONE_NEWPID,
                libc::CLONE_NEWNET,
            ]
            .map(|flag| bits(0, u64::from(flag.unsigned_abs())))
            .into(),
        ),
        (libc::SYS_sched_setscheduler, vec![]),
        (
            libc::SYS_personality,
            vec![rule(&[(0, SeccompCmpOp::Ne, 0)])],
        ),
    ];
    for (call, at) in [(libc::SYS_fchmod, 1), (libc::SYS_fchmodat, 2)] {
        strict.push((call, vec![bits(at, 0o4000), bits(at, 0o2000)]));
    }
    let calls: Vec<_> = allowed_calls(unit)
        .iter()
        .filter_map(|name| number(name))
        .collect();
    assert!(calls.len() > 200, "only {} system calls", calls.len());
    let allowed = calls.into_iter().map(|call| (call, vec![])).collect();
    vec![
        build(
            strict.into_iter().collect(),
            denied(libc::EPERM),
            SeccompAction::Allow,
        ),
        build(
            [(libc::SYS_clone3, vec![])].into(),
            denied(libc::ENOSYS),
            SeccompAction::Allow,
        ),
        build(allowed, SeccompAction::Allow, denied(libc::EPERM)),
    ]
}
