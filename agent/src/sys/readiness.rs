//! Descriptors registered with tokio's epoll.
#![expect(
    unsafe_code,
    reason = "AsyncFd::register asks for a promise about the descriptor's owner"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers `fd`, which must be non-blocking, with the runtime that this is called in.
///
/// # Errors
/// What epoll_ctl(2) answers.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names one open descriptor for as long as it lives, and AsyncFd owns it from here on.
    let registered = unsafe { AsyncFd::register(fd) };
    Ok(registered?)
}
