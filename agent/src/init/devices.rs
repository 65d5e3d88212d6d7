//! Device nodes: the few that every container has, and those that were asked for.
//!
//! Who may open them is the cgroup's device filter's business (`container/device_filter.rs`), not decided here.

use std::io;
use std::os::fd::BorrowedFd;

use proto::agent::v1::ErrorCode;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, makedev};

use crate::error::{Context as _, Failure};
use crate::init::order::{DeviceKind, DeviceNode};
use crate::init::paths::{self, Missing};

/// OCI runtime specification, config-linux.md, "Default Devices"; numbers as in Linux's devices.txt.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// OCI runtime specification, runtime-linux.md, "Dev symbolic links"; ptmx is the container's own devpts.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Fills a new tmpfs that becomes /dev.
///
/// # Errors
/// What mknodat(2) and symlinkat(2) answer.
pub(crate) fn populate(dev: BorrowedFd<'_>) -> io::Result<()> {
    for (name, major, minor) in NODES {
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, makedev(major, minor))?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, dev, name)?;
    }
    Ok(())
}

/// Makes one node below `root`, replacing what an image has at its place.
///
/// # Errors
/// [`ErrorCode::Mount`], naming the device's path.
pub(crate) fn create(root: BorrowedFd<'_>, device: &DeviceNode) -> Result<(), Failure> {
    let make = || -> io::Result<()> {
        let (directory, name) = device.path.rsplit_once('/').unwrap_or(("", device.path.as_str()));
        let directory = paths::open_or_create(root, directory, Missing::Directory)?;
        let kind = match device.kind {
            DeviceKind::Character => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
        };
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let mode = Mode::from_raw_mode(device.mode);
        rustix::fs::mknodat(&directory, name, kind, mode, makedev(device.major, device.minor))?;
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(&directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    };
    make().context(ErrorCode::Mount, || format!("create device {}", device.path))
}
