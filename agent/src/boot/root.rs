//! Off the kernel's initial rootfs: pivot_root(2) does not work there, and containers need it.
//!
//! The initramfs is unpacked into a mount that has no parent and cannot be moved or left behind. A second mount *of the
//! same file system* is put on top of it: nothing is copied, the agent's pages stay where they are, and this mount has a
//! parent, as pivot_root asks.

use std::fs;
use std::io;

use proto::agent::v1::ErrorCode;
use rustix::mount::{MountAttrFlags, mount_bind, mount_move};

use crate::error::{Context as _, Failure};
use crate::sys;

/// Where the second mount is made; empty afterwards.
const STEP: &str = "/newroot";

/// # Errors
/// `Mount`.
pub(super) fn leave_initial_rootfs() -> Result<(), Failure> {
    let leave = || -> io::Result<()> {
        // Mount points are made now, since the new root becomes read-only.
        for directory in [STEP, "/proc", "/sys", "/dev", "/run"] {
            match fs::create_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        mount_bind("/", STEP)?;
        rustix::process::chdir(STEP)?;
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")?;
        Ok(())
    };
    leave().context(ErrorCode::Mount, || "leave the initial rootfs".to_owned())
}

/// Only /run is written to from here on.
///
/// # Errors
/// `Mount`.
pub(super) fn make_read_only() -> Result<(), Failure> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, rustix::fs::Mode::empty())
        .context(ErrorCode::Mount, || "open the root directory".to_owned())?;
    sys::mount::set_attributes(root, MountAttrFlags::MOUNT_ATTR_RDONLY, false)
        .context(ErrorCode::Mount, || {
            "make the root file system read-only".to_owned()
        })
}
