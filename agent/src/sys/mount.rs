//! `mount_setattr(2)`, and namespaces: what the new mount API of rustix lacks.
#![expect(unsafe_code, reason = "mount_setattr and unshare have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use rustix::mount::MountAttrFlags;
use rustix::thread::UnshareFlags;

use super::checked;

/// Sets `attributes` on the mount that `mount` refers to, or on its whole tree.
///
/// # Errors
/// What mount_setattr(2) answers.
pub(crate) fn set_attributes(
    mount: impl AsFd,
    attributes: MountAttrFlags,
    recursive: bool,
) -> io::Result<()> {
    change(mount, u64::from(attributes.bits()), 0, None, recursive)
}

/// Takes the mount's tree out of its peer groups: nothing mounted below shows elsewhere or the other way round.
///
/// # Errors
/// What mount_setattr(2) answers.
pub(crate) fn set_private(mount: impl AsFd) -> io::Result<()> {
    change(mount, 0, libc::MS_PRIVATE, None, true)
}

/// Makes a detached mount's tree show its files with the ids of `user_namespace`: 0 on disk is its root.
///
/// # Errors
/// What mount_setattr(2) answers: EINVAL for a file system that cannot be id-mapped.
pub(crate) fn map_ids(mount: impl AsFd, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    change(mount, libc::MOUNT_ATTR_IDMAP, 0, Some(user_namespace), true)
}

fn change(
    mount: impl AsFd,
    attr_set: u64,
    propagation: u64,
    user_namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    // The access-time attributes are a field of two bits: to set one it has to be cleared first.
    let atime =
        u64::from((MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_STRICTATIME).bits());
    let attr = libc::mount_attr {
        attr_set,
        attr_clr: if attr_set & atime == 0 {
            0
        } else {
            u64::from(MountAttrFlags::MOUNT_ATTR__ATIME.bits())
        },
        propagation,
        userns_fd: match user_namespace {
            Some(namespace) => u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
            None => 0,
        },
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attr` is valid for the size given, and the descriptors are open.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Leaves the caller's namespaces for new ones.
///
/// # Errors
/// What unshare(2) answers.
pub(crate) fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // Descriptors are not namespaces: without this bit no thread can lose sight of another's descriptors.
    let namespaces = namespaces.difference(UnshareFlags::FILES);
    // SAFETY: the only hazard that rustix names is UnshareFlags::FILES, which was removed above.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }?;
    Ok(())
}
