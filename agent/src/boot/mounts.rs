//! The guest's own file systems, as a table.

use std::fs;
use std::io;

use proto::agent::v1::ErrorCode;
use rustix::mount::{MountFlags, mount};

use crate::error::{Context as _, Failure};

struct BootMount {
    target: &'static str,
    filesystem: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// In this order. /dev is the kernel's own devtmpfs: the nodes of disks that are added later appear by themselves.
const MOUNTS: [BootMount; 6] = [
    BootMount {
        target: "/proc",
        filesystem: "proc",
        flags: SAFE,
        options: c"",
    },
    BootMount {
        target: "/sys",
        filesystem: "sysfs",
        flags: SAFE,
        options: c"",
    },
    BootMount {
        target: "/dev",
        filesystem: "devtmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"mode=755",
    },
    BootMount {
        target: "/dev/pts",
        filesystem: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"gid=5,mode=620,ptmxmode=666",
    },
    // Small: what is large (scratch, shm, volumes) has mounts of its own.
    BootMount {
        target: "/run",
        filesystem: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=755",
    },
    BootMount {
        target: "/sys/fs/cgroup",
        filesystem: "cgroup2",
        flags: SAFE,
        options: c"nsdelegate,memory_recursiveprot",
    },
];

/// # Errors
/// `Mount`, naming the target.
pub(super) fn mount_all() -> Result<(), Failure> {
    for entry in MOUNTS {
        let mount_one = || -> io::Result<()> {
            match fs::create_dir(entry.target) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            match mount(
                entry.filesystem,
                entry.target,
                entry.filesystem,
                entry.flags,
                entry.options,
            ) {
                // CONFIG_DEVTMPFS_MOUNT: the kernel was faster.
                Err(rustix::io::Errno::BUSY) if entry.filesystem == "devtmpfs" => Ok(()),
                mounted => Ok(mounted?),
            }
        };
        mount_one().context(ErrorCode::Mount, || {
            format!("mount {} on {}", entry.filesystem, entry.target)
        })?;
    }
    Ok(())
}
