//! Starts the init stage: `clone3(2)` straight into a cgroup and a PID namespace, then a re-exec of this binary.
//!
//! `std::process::Command` cannot place the child in a cgroup; moving it there afterwards takes a system-wide lock that
//! waits for RCU, milliseconds that every container start would pay. Between clone and exec the child makes system calls
//! and nothing else: it has one thread of a process that had several, so it may neither allocate nor lock.
#![expect(
    unsafe_code,
    reason = "clone3 and execveat have no safe wrapper; see the SAFETY comments"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use super::checked;

/// `struct clone_args` of linux/sched.h, as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl CloneArgs {
    /// Of a child whose end is told by SIGCHLD, and whose pidfd the kernel stores in `pidfd`.
    pub(super) fn new(pidfd: &mut RawFd) -> Self {
        Self {
            flags: libc::CLONE_PIDFD as u64,
            pidfd: (&raw mut *pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..Self::default()
        }
    }
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// The binary, this one; its descriptor is above [`STAGE_SOCKET`].
    pub(crate) executable: BorrowedFd<'a>,
    pub(crate) argv: &'a [&'a CStr],
    /// Becomes the child's descriptor [`STAGE_SOCKET`].
    pub(crate) socket: BorrowedFd<'a>,
    /// Born in this cgroup; without one, in the caller's.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) new_pid_namespace: bool,
}

/// The stage's end of the socket to the agent.
pub(crate) const STAGE_SOCKET: RawFd = 3;

/// A child of this process.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// In the caller's PID namespace.
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Starts `stage` as a child of this process. The child exits with 127 if this binary cannot be executed.
///
/// # Errors
/// What clone3(2) answers.
pub(crate) fn spawn(stage: &Stage<'_>) -> io::Result<Spawned> {
    let mut argv: Vec<*const libc::c_char> = stage.argv.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(ptr::null());
    let envp: [*const libc::c_char; 1] = [ptr::null()];
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs::new(&mut pidfd);
    if stage.new_pid_namespace {
        args.flags |= libc::CLONE_NEWPID as u64;
    }
    if let Some(cgroup) = stage.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of the size given and outlives the call, as does `pidfd` that it points to.
    // Without CLONE_VM the child has a copy of this address space, and it only runs `become_stage`, which makes
    // async-signal-safe system calls on memory prepared above.
    let pid = checked(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        become_stage(
            stage.socket.as_raw_fd(),
            stage.executable.as_raw_fd(),
            &argv,
            &envp,
        );
    }
    // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor in `pidfd`; nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    Ok(Spawned { pid, pidfd })
}

/// linux/sched.h; libc has it as a c_int, which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The child between clone and exec. Allocates nothing and takes no lock.
fn become_stage(
    socket: RawFd,
    executable: RawFd,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> ! {
    if socket == STAGE_SOCKET {
        // dup2 onto itself would leave close-on-exec set.
        // SAFETY: fcntl(F_SETFD) takes an integer and touches no memory.
        unsafe { libc::fcntl(socket, libc::F_SETFD, 0) };
    } else {
        // SAFETY: dup2 takes two integers and touches no memory.
        unsafe { libc::dup2(socket, STAGE_SOCKET) };
    }
    // SAFETY: `argv` and `envp` end with null and their strings live in the caller's frame, copied with the address
    // space.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            executable,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    // SAFETY: _exit does not return and runs no handler of the parent's.
    unsafe { libc::_exit(127) }
}

/// The stage's own end of its socket. `None` when the descriptor is not open: this is no stage that [`spawn`] started.
pub(crate) fn take_stage_socket() -> Option<OwnedFd> {
    // SAFETY: fcntl(F_SETFD) takes integers; on a closed descriptor it fails with EBADF.
    if unsafe { libc::fcntl(STAGE_SOCKET, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return None;
    }
    // SAFETY: `spawn` made this descriptor for the stage, which calls this once, first of all; nobody else owns it.
    Some(unsafe { OwnedFd::from_raw_fd(STAGE_SOCKET) })
}
