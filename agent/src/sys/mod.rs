//! The agent's `unsafe` code: system calls that rustix has no safe wrapper for. Mechanism only, no policy.
//!
//! Each file wraps one family of calls in a safe function; nothing else in this crate may say `unsafe`.

pub(crate) mod bpf;
pub(crate) mod clone;
pub(crate) mod exec;
pub(crate) mod loop_device;
pub(crate) mod mount;
pub(crate) mod random;
pub(crate) mod readiness;
pub(crate) mod seccomp;
pub(crate) mod signal;
pub(crate) mod user_namespace;
pub(crate) mod vsock;

use std::io;

/// The result of a raw `syscall(2)`: -1 means that errno says why.
fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
