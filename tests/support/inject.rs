//! Makes a foreign thread do a system call of our choice, by ptrace: the only
//! honest answer to what a confined thread could do is to let it try.
//!
//! The thread is stopped wherever it is, given other registers and the bytes
//! it needs below its stack, stepped over a `syscall` instruction, and put
//! back as it was.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code, reason = "ptrace has no safe form")]

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A thread in our hands; it goes on when this is dropped.
pub struct Held {
    tid: libc::pid_t,
    before: libc::user_regs_struct,
    memory: File,
    /// A `syscall` instruction somewhere in its code.
    instruction: u64,
}

/// Bytes of x86-64's `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Bytes below the stack pointer that are left alone: the ABI's red zone, and
/// room for what a signal frame would take.
const BELOW_STACK: u64 = 8192;
/// What the kernel leaves in RAX of a call that it interrupted and means to
/// restart (linux/errno.h).
const RESTART: std::ops::RangeInclusive<i64> = -516..=-512;
/// The one of them that continues by `restart_syscall`.
const RESTART_BLOCK: i64 = -516;

impl Held {
    /// Stops a thread.
    #[track_caller]
    pub fn stop(pid: u32, tid: u32) -> Self {
        let tid = libc::pid_t::try_from(tid).unwrap();
        trace(libc::PTRACE_SEIZE, tid, 0);
        trace(libc::PTRACE_INTERRUPT, tid, 0);
        wait(tid);
        let before = registers(tid);
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let instruction = find_instruction(&maps, &memory);
        Self {
            tid,
            before,
            memory,
            instruction,
        }
    }

    /// Does a system call in the thread; what the kernel returned.
    #[track_caller]
    pub fn call(&self, number: libc::c_long, arguments: [u64; 6]) -> i64 {
        let mut set = self.before;
        set.rax = number.cast_unsigned();
        // No call is under way that could be restarted.
        set.orig_rax = u64::MAX;
        set.rip = self.instruction;
        [set.rdi, set.rsi, set.rdx, set.r10, set.r8, set.r9] = arguments;
        set_registers(self.tid, &set);
        trace(libc::PTRACE_SINGLESTEP, self.tid, 0);
        wait(self.tid);
        registers(self.tid).rax.cast_signed()
    }

    /// `openat`: a descriptor (which is closed again), or the error.
    #[track_caller]
    pub fn open(&self, path: &Path, flags: libc::c_int) -> Result<(), i32> {
        let path = self.lend(path);
        let cwd = i64::from(libc::AT_FDCWD).cast_unsigned();
        let flags = u64::from(flags.cast_unsigned());
        let result = self.call(libc::SYS_openat, [cwd, path, flags, 0o600, 0, 0]);
        if let Ok(fd) = u64::try_from(result) {
            self.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
        }
        outcome(result)
    }

    /// Opens a file in place of a descriptor that is open; EBADF if another
    /// thread closed it meanwhile.
    #[track_caller]
    pub fn replace(&self, fd: u32, path: &Path, flags: libc::c_int) -> Result<(), i32> {
        let path = self.lend(path);
        let cwd = i64::from(libc::AT_FDCWD).cast_unsigned();
        let flags = u64::from(flags.cast_unsigned());
        let opened = self.call(libc::SYS_openat, [cwd, path, flags, 0, 0, 0]);
        outcome(opened)?;
        let new = opened.cast_unsigned();
        if new == u64::from(fd) {
            self.call(libc::SYS_close, [new, 0, 0, 0, 0, 0]);
            return Err(libc::EBADF);
        }
        let cloexec = u64::from(libc::O_CLOEXEC.cast_unsigned());
        let done = self.call(libc::SYS_dup3, [new, fd.into(), cloexec, 0, 0, 0]);
        self.call(libc::SYS_close, [new, 0, 0, 0, 0, 0]);
        outcome(done)
    }

    /// `execve` without arguments. If it succeeds, the process is lost.
    #[track_caller]
    pub fn exec(&self, program: &Path) -> Result<(), i32> {
        let path = self.lend(program);
        outcome(self.call(libc::SYS_execve, [path, 0, 0, 0, 0, 0]))
    }

    /// Any call whose first argument is a path.
    #[track_caller]
    pub fn on_path(&self, number: libc::c_long, path: &Path, second: u64) -> Result<(), i32> {
        let path = self.lend(path);
        outcome(self.call(number, [path, second, 0, 0, 0, 0]))
    }

    /// Puts a path below the thread's stack.
    fn lend(&self, path: &Path) -> u64 {
        use std::os::unix::ffi::OsStrExt as _;
        let bytes = CString::new(path.as_os_str().as_bytes()).unwrap();
        let at = (self.before.rsp - BELOW_STACK) & !0xf;
        self.memory
            .write_all_at(bytes.as_bytes_with_nul(), at)
            .unwrap();
        at
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The kernel lets go of it when this thread ends.
        if std::thread::panicking() {
            return;
        }
        let mut back = self.before;
        let result = back.rax.cast_signed();
        // The kernel would have restarted the call on its way out of the stop
        // that we used for something else.
        if back.orig_rax.cast_signed() >= 0 && RESTART.contains(&result) {
            back.rip -= SYSCALL.len() as u64;
            back.rax = match result {
                RESTART_BLOCK => libc::SYS_restart_syscall.cast_unsigned(),
                _ => back.orig_rax,
            };
            back.orig_rax = u64::MAX;
        }
        set_registers(self.tid, &back);
        trace(libc::PTRACE_DETACH, self.tid, 0);
    }
}

fn outcome(result: i64) -> Result<(), i32> {
    match i32::try_from(result) {
        Ok(error) if error < 0 => Err(-error),
        _ => Ok(()),
    }
}

fn find_instruction(maps: &str, memory: &File) -> u64 {
    for map in maps.lines().filter(|map| map.contains("r-xp")) {
        let (start, rest) = map.split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(rest.split_once(' ').unwrap().0, 16).unwrap();
        let mut code = vec![0; usize::try_from(end - start).unwrap()];
        if memory.read_exact_at(&mut code, start).is_err() {
            continue;
        }
        if let Some(at) = code.windows(2).position(|pair| pair == SYSCALL) {
            return start + at as u64;
        }
    }
    panic!("no syscall instruction in:\n{maps}");
}

#[track_caller]
fn trace(request: libc::c_uint, tid: libc::pid_t, data: usize) {
    // SAFETY: these requests take numbers alone.
    let done = unsafe { libc::ptrace(request, tid, 0, data) };
    assert_eq!(
        done,
        0,
        "ptrace {request} of {tid}: {}",
        std::io::Error::last_os_error()
    );
}

#[track_caller]
fn wait(tid: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is ours for the call.
    let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
    assert!(got == tid && libc::WIFSTOPPED(status), "{tid}: {status:x}");
}

#[track_caller]
fn registers(tid: libc::pid_t) -> libc::user_regs_struct {
    // SAFETY: plain numbers, for which zeros are as good as any.
    let mut set: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills a structure of exactly this type.
    let done = unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut set) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    set
}

#[track_caller]
fn set_registers(tid: libc::pid_t, set: &libc::user_regs_struct) {
    // SAFETY: the kernel reads a structure of exactly this type.
    let done = unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(set)) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A thread whose flushes fail: every so many calls of fdatasync return EIO
/// without having been made.
pub struct Flushes {
    over: Arc<AtomicBool>,
    tracer: std::thread::JoinHandle<u64>,
}

/// What the kernel has put into RAX where a call begins.
const BEGINS: i64 = -(libc::ENOSYS as i64);
/// What tells the stop at a call from one at a signal (PTRACE_O_TRACESYSGOOD).
const AT_CALL: libc::c_int = libc::SIGTRAP | 0x80;

impl Flushes {
    /// Takes hold of a thread; returns when it does.
    pub fn fail(tid: u32, every: u64) -> Self {
        let tid = libc::pid_t::try_from(tid).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let (held, holds) = std::sync::mpsc::channel();
        // Only the thread that took hold may give orders.
        let tracer = std::thread::spawn(move || {
            let good = usize::try_from(libc::PTRACE_O_TRACESYSGOOD).unwrap();
            trace(libc::PTRACE_SEIZE, tid, good);
            trace(libc::PTRACE_INTERRUPT, tid, 0);
            wait(tid);
            held.send(()).unwrap();
            Self::run(tid, every, &until)
        });
        holds.recv().unwrap();
        Self { over, tracer }
    }

    fn run(tid: libc::pid_t, every: u64, until: &AtomicBool) -> u64 {
        let (mut seen, mut failed, mut fails, mut signal) = (0_u64, 0, false, 0);
        while !until.load(Ordering::Relaxed) || fails {
            trace(libc::PTRACE_SYSCALL, tid, signal);
            signal = 0;
            let mut status = 0;
            // SAFETY: `status` is ours for the call.
            let got = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) };
            assert!(got == tid && libc::WIFSTOPPED(status), "{tid}: {status:x}");
            let why = libc::WSTOPSIG(status);
            if why != AT_CALL {
                // A signal of its own, which it shall have; not our interrupt.
                let own = status >> 16 == 0 && why != libc::SIGTRAP;
                signal = if own {
                    usize::try_from(why).unwrap()
                } else {
                    0
                };
                continue;
            }
            let mut set = registers(tid);
            if set.rax.cast_signed() == BEGINS {
                if set.orig_rax == libc::SYS_fdatasync.cast_unsigned() {
                    seen += 1;
                    if seen.is_multiple_of(every) {
                        // No call has this number.
                        set.orig_rax = u64::MAX;
                        set_registers(tid, &set);
                        fails = true;
                    }
                }
            } else if fails {
                set.rax = i64::from(-libc::EIO).cast_unsigned();
                set_registers(tid, &set);
                fails = false;
                failed += 1;
            }
        }
        trace(libc::PTRACE_DETACH, tid, 0);
        failed
    }

    /// Lets go of the thread at its next call, which `nudge` must make it do.
    /// How many flushes failed.
    pub fn stop(self, nudge: impl FnOnce()) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        nudge();
        self.tracer.join().unwrap()
    }
}
