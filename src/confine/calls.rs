//! The system calls a confined process loses (seccomp).
//!
//! A list of what is denied, not of what is allowed: libraries change what
//! they call, and landlock holds the files. Denied calls answer with an error
//! rather than kill, so that a library which merely tries goes on.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Never needed, and each a known way out of a sandbox or into the kernel.
const DENIED: &[libc::c_long] = &[
    // Other programs, other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Files by other ways than their paths.
    libc::SYS_open_by_handle_at,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_fanotify_init,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    // Namespaces; the flags of `clone` are below.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Kernel interfaces with a history.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// x86-64 kernels may offer every call a second time under this bit (the x32
/// ABI, arch/x86/include/uapi/asm/unistd.h): denied likewise.
const X32: libc::c_long = 0x4000_0000;

/// Calls whose x32 number is not the ordinary one plus [`X32`]: execve,
/// ptrace, kexec_load, process_vm_readv, process_vm_writev, execveat
/// (arch/x86/entry/syscalls/syscall_64.tbl).
const X32_ONLY: &[libc::c_long] = &[520, 521, 528, 539, 540, 545];

/// Flags of `clone` that make namespaces (clone(2)).
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// `ioctl` requests that type into the terminal we log to: TIOCSTI and
/// TIOCLINUX (asm-generic/ioctls.h, ioctl_tty(2)).
const TERMINAL: &[u64] = &[0x5412, 0x541c];

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

/// Denies a server what it never needs; the text says why it could not.
pub(super) fn confine() -> Result<(), String> {
    let build = || -> Result<(), seccompiler::Error> {
        let mut rules: Rules = DENIED.iter().map(|call| (*call, Vec::new())).collect();
        let mut spawn = Vec::new();
        for flag in NAMESPACES {
            let flag = u64::from(flag.unsigned_abs());
            spawn.push(rule(&[(0, SeccompCmpOp::MaskedEq(flag), flag)])?);
        }
        rules.insert(libc::SYS_clone, spawn);
        let mut control = Vec::new();
        for request in TERMINAL {
            control.push(rule(&[(1, SeccompCmpOp::Eq, *request)])?);
        }
        rules.insert(libc::SYS_ioctl, control);
        apply(rules, libc::EPERM)?;
        // Its flags lie in memory, which a filter cannot see. ENOSYS makes
        // the C library use `clone` instead.
        apply(Rules::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
    };
    build().map_err(|error| error.to_string())
}

/// Denies sockets other than Unix and netlink.
pub(super) fn deny_network() -> Result<(), seccompiler::Error> {
    let family = |family: libc::c_int| (0, SeccompCmpOp::Ne, u64::from(family.unsigned_abs()));
    let other = rule(&[family(libc::AF_UNIX), family(libc::AF_NETLINK)])?;
    let rules = Rules::from([
        (libc::SYS_socket, vec![other]),
        // It can open sockets too.
        (libc::SYS_io_uring_setup, Vec::new()),
    ]);
    apply(rules, libc::EACCES)
}

fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, seccompiler::Error> {
    let conditions = conditions
        .iter()
        .map(|(argument, op, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, op.clone(), *value)
        })
        .collect::<Result<_, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

/// Applies to every thread of the process.
fn apply(mut rules: Rules, errno: libc::c_int) -> Result<(), seccompiler::Error> {
    if cfg!(target_arch = "x86_64") {
        let twins: Rules = rules
            .iter()
            .map(|(call, rules)| (call | X32, rules.clone()))
            .collect();
        rules.extend(twins);
        if rules.contains_key(&libc::SYS_execve) {
            rules.extend(X32_ONLY.iter().map(|call| (call | X32, Vec::new())));
        }
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program)
}
