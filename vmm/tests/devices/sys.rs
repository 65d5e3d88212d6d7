//! System calls of the tests that have no safe wrapper.
#![expect(
    unsafe_code,
    reason = "TUNSETIFF, and accept(2) of nix, which gives a bare number"
)]

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

// _IOW('T', 202, int)
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Makes the interface `name`; it goes with the descriptor, which a child process inherits.
pub(crate) fn open_tap(name: &str) -> OwnedFd {
    let tap: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("/dev/net/tun")
        .into();
    // struct ifreq: 16 bytes of name, then the flags.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request[16..18].copy_from_slice(&u16::try_from(flags).expect("a short").to_ne_bytes());
    // SAFETY: the request is as long as struct ifreq, which is what the kernel reads and writes.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "TUNSETIFF {name}: {}", std::io::Error::last_os_error());
    fcntl(&tap, FcntlArg::F_SETFD(FdFlag::empty())).expect("no close-on-exec");
    tap
}

/// accept(2) on a listener of any family.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> OwnedFd {
    let number = nix::sys::socket::accept(listener.as_raw_fd()).expect("accept");
    // SAFETY: accept has just made the descriptor, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(number) }
}
