//! The last step of an init stage: default signal dispositions, then `execve(2)`.
#![expect(unsafe_code, reason = "execve, signal and close_range have no safe wrapper")]

use std::ffi::CString;
use std::io;
use std::ptr;

use super::checked;

/// Replaces the process. The environment keeps its order and its duplicates, which `std::process::Command` would not.
///
/// Returns only on failure.
pub(crate) fn execve(path: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let argv = pointers(argv);
    let env = pointers(env);
    // SAFETY: all three are NUL-terminated, null-ended arrays that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// The kernel's `struct sigaction` of x86-64; all zeros is SIG_DFL.
#[repr(C)]
#[derive(Default)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Signals as a freshly started program expects them: Rust's runtime ignores SIGPIPE, whoever started the agent may have
/// ignored others, and an ignored signal stays ignored over execve(2).
pub(crate) fn default_signals() {
    for signal in 1..=64 {
        let default = KernelAction::default();
        // rt_sigaction(2) itself: glibc keeps signals 32 and 33 from its callers. SIGKILL and SIGSTOP are refused, and
        // are always at their default.
        // SAFETY: `default` is a whole struct sigaction without a handler, the old one is not asked for, and 8 is the
        // size of the kernel's signal set.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                ptr::null_mut::<KernelAction>(),
                size_of::<u64>(),
            )
        };
    }
    // SAFETY: zeroed memory is a valid sigset_t for sigemptyset to overwrite.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is writable for the call.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is an initialised set, the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

/// Children are reaped by the kernel: for the pod's PID namespace holder, which looks at no exit status.
pub(crate) fn reap_children_automatically() {
    // SAFETY: SIG_IGN installs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Marks every descriptor from `first` on close-on-exec, whoever opened it.
///
/// # Errors
/// What close_range(2) answers.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes integers; CLOSE_RANGE_CLOEXEC closes nothing now.
    checked(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    Ok(())
}

/// Leaves the session keyring that all processes of the guest have from their start, keyctl(2): keys of one container are
/// not another's. A kernel without keyrings has nothing to leave.
///
/// # Errors
/// What keyctl(2) answers.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name, null for a new anonymous keyring.
    match checked(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            ptr::null::<libc::c_char>(),
        )
    }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => joined.map(drop),
    }
}

/// `umask(2)` of a new container: what runc and every image builder assume.
pub(crate) const CONTAINER_UMASK: u32 = 0o022;
