//! A container's root: an overlay of its layers, mounted in the stage's own mount namespace, and the move into it.
//!
//! Layers and writable directory were mounted by the agent; this neither finds devices nor makes directories.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use proto::agent::v1::ErrorCode;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::thread::UnshareFlags;

use crate::error::{Context as _, Failure};
use crate::init::mounts;
use crate::init::order::Rootfs;
use crate::init::user_namespace::Namespace;
use crate::sys;

/// Gives the stage mounts and a cgroup view of its own, cut off from the agent's.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn leave_agent() -> Result<(), Failure> {
    sys::mount::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP).context(ErrorCode::System, || {
        "unshare mount and cgroup namespaces".to_owned()
    })?;
    let root = open_path("/")?;
    sys::mount::set_private(root).context(ErrorCode::Mount, || "make mounts private".to_owned())
}

/// Takes the stage, which has entered a user namespace, to mounts and a cgroup view that belong to that. All that is mounted
/// is there as well, locked: it cannot be unmounted, moved or made more permissive.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn leave_guest() -> Result<(), Failure> {
    sys::mount::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP).context(ErrorCode::System, || {
        "unshare mount and cgroup namespaces in the user namespace".to_owned()
    })
}

/// Mounts the overlay; the root directory of the container to be.
///
/// # Errors
/// When the kernel refuses a layer or an option.
pub(crate) fn mount(rootfs: &Rootfs, namespace: Option<&Namespace<'_>>) -> Result<OwnedFd, Failure> {
    let mapped = namespace
        .map(|namespace| mapped_layers(rootfs, namespace))
        .transpose()?;
    let layers = mapped.as_ref().unwrap_or(&rootfs.layers);
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .context(ErrorCode::Mount, || "open file system overlay".to_owned())?;
    fsconfig_set_string(&overlay, "source", "overlay")
        .context(ErrorCode::Mount, || "name the overlay".to_owned())?;
    // One call per layer instead of one option string: a page's worth of option text would not hold 128 layers.
    for layer in layers {
        fsconfig_set_string(&overlay, "lowerdir+", layer).context(ErrorCode::Mount, || {
            format!("overlay: add layer {}", layer.display())
        })?;
    }
    fsconfig_set_string(&overlay, "upperdir", &rootfs.upper).context(ErrorCode::Mount, || {
        format!("overlay: upper directory {}", rootfs.upper.display())
    })?;
    fsconfig_set_string(&overlay, "workdir", &rootfs.work).context(ErrorCode::Mount, || {
        format!("overlay: work directory {}", rootfs.work.display())
    })?;
    // The writable layer dies with the container, so no fsync of the container has to reach the disk.
    fsconfig_set_flag(&overlay, "volatile")
        .context(ErrorCode::Mount, || "overlay: option volatile".to_owned())?;
    fsconfig_create(&overlay).context(ErrorCode::Mount, || {
        format!("create overlay of {} layers", rootfs.layers.len())
    })?;
    let root = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .context(ErrorCode::Mount, || "mount overlay".to_owned())?;
    move_mount(
        &root,
        "",
        CWD,
        &rootfs.target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .context(ErrorCode::Mount, || {
        format!("attach overlay at {}", rootfs.target.display())
    })?;
    Ok(root)
}

/// Mounts of the layers that show the ids of the namespace, in the place where the overlay will cover them. An overlay takes
/// them by path, and only from its own mount namespace. The writable directory needs none: nobody else writes to it, and
/// what is copied up has the ids that the layers show.
fn mapped_layers(rootfs: &Rootfs, namespace: &Namespace<'_>) -> Result<Vec<PathBuf>, Failure> {
    let map = |at: &Path, layer: &Path| -> io::Result<()> {
        std::fs::create_dir(at)?;
        let tree = mounts::clone_tree(open(layer)?)?;
        sys::mount::map_ids(&tree, namespace.descriptor)?;
        mounts::place(&tree, open(at)?)
    };
    mounts::mount_points()
        .and_then(|tmpfs| mounts::place(tmpfs, open(&rootfs.target)?))
        .context(ErrorCode::Mount, || {
            format!("mount tmpfs on {}", rootfs.target.display())
        })?;
    let mut mapped = Vec::with_capacity(rootfs.layers.len());
    for (index, layer) in rootfs.layers.iter().enumerate() {
        let at = rootfs.target.join(index.to_string());
        map(&at, layer).context(ErrorCode::Mount, || {
            format!("map the ids of layer {}", layer.display())
        })?;
        mapped.push(at);
    }
    Ok(mapped)
}

/// Makes the root mount itself read-only; what is mounted below keeps what it has.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn make_read_only(root: impl AsFd) -> Result<(), Failure> {
    sys::mount::set_attributes(root, MountAttrFlags::MOUNT_ATTR_RDONLY, false)
        .context(ErrorCode::Mount, || {
            "make the root file system read-only".to_owned()
        })
}

/// Makes `root` the root of the stage's mount namespace and lets go of the agent's.
///
/// # Errors
/// When the kernel refuses: EINVAL if the agent still runs on the kernel's own rootfs.
pub(crate) fn enter(root: impl AsFd) -> Result<(), Failure> {
    rustix::process::fchdir(root).context(ErrorCode::Mount, || "enter root directory".to_owned())?;
    // Both names are ".": the old root is stacked on the new one, and then detached without a directory for it.
    rustix::process::pivot_root(".", ".").context(ErrorCode::Mount, || "pivot root".to_owned())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .context(ErrorCode::Mount, || "detach the agent's root".to_owned())?;
    rustix::process::chdir("/").context(ErrorCode::Mount, || "change to the new root".to_owned())
}

/// `path` of the agent's, for use as a mount or a root.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open_path(path: &str) -> Result<OwnedFd, Failure> {
    open(path.as_ref()).context(ErrorCode::System, || format!("open {path}"))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
