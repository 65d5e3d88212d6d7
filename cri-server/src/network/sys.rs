//! The one system call of this module that nix does not wrap: making a tap.
#![expect(unsafe_code, reason = "TUNSETIFF is an ioctl, and nix has no wrapper of it")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use fs_err::os::unix::fs::OpenOptionsExt;

nix::ioctl_write_ptr_bad!(
    /// Attaches the descriptor to the tap that the request names (tuntap.rst in the kernel's documentation).
    tun_set_iff,
    libc::TUNSETIFF,
    libc::ifreq
);

/// Makes a tap of that name in the calling thread's network namespace.
pub(super) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let file = fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = interface_request(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: `request` is a whole `ifreq` that lives across the call, which only reads and writes it; the descriptor
    // is open because `file` is.
    unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }?;
    Ok(OwnedFd::from(file.into_parts().0))
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is a C structure of integers and byte arrays, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::other(format!("interface name {name:?} is too long")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}
