//! `mount_setattr(2)` for propagation: what the new mount API of rustix lacks.

#![expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

/// Where mounts below a mount come from and go to, mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Private,
    Slave,
    Shared,
}

/// Sets the propagation of the mount that `mount` refers to, or of its whole tree.
pub(crate) fn set_propagation(mount: impl AsFd, propagation: Propagation, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: match propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    change(mount, attr, recursive)
}

/// `attr` for the mount, or its whole tree.
pub(super) fn change(mount: impl AsFd, attr: libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attr` lives for the call and has the size given, and the borrowed descriptor
    // is open. A descriptor in `attr` is the caller's, and a wrong one is EBADF.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
