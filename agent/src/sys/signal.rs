//! Signals by number, real-time ones included, through a pidfd.
#![expect(unsafe_code, reason = "rustix knows named signals only")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::ptr;

use super::checked;

/// Sends signal number `signal` to the process of `pidfd`; ESRCH when it has ended and was reaped.
///
/// # Errors
/// What pidfd_send_signal(2) answers.
pub(crate) fn send(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: the siginfo pointer may be null (the kernel fills in what kill(2) would), flags are zero.
    checked(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Highest signal number of Linux.
pub(crate) const MAX_SIGNAL: u32 = 64;
