//! How the file systems of volumes are mounted in the agent's own namespace, and what of them is looked up there.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use proto::agent::v1::{SharedSource, TmpfsSource};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use crate::container::mount_plan;
use crate::init::mounts as init_mounts;
use crate::init::order::{Content, Source};
use crate::init::paths::{self, Missing};
use crate::sys;

/// A tmpfs of one container.
pub(super) fn private_tmpfs(tmpfs: &TmpfsSource) -> Source {
    let options = tmpfs_options(tmpfs);
    let options: Vec<(&str, &str)> = options
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    mount_plan::new_file_system("tmpfs", &options, Content::Empty)
}

/// One of the whole pod.
pub(super) fn tmpfs(path: &Path, tmpfs: &TmpfsSource) -> io::Result<()> {
    let options = tmpfs_options(tmpfs);
    let options: Vec<String> = options
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    mount_at(
        "tmpfs",
        "tmpfs",
        path,
        MountFlags::NOSUID | MountFlags::NODEV,
        &options.join(","),
    )
}

fn tmpfs_options(tmpfs: &TmpfsSource) -> Vec<(&'static str, String)> {
    let mut options = vec![
        ("mode", format!("{:o}", tmpfs_mode(tmpfs))),
        ("uid", tmpfs.uid.to_string()),
        ("gid", tmpfs.gid.to_string()),
    ];
    if tmpfs.size_bytes > 0 {
        options.push(("size", tmpfs.size_bytes.to_string()));
    }
    options
}

/// 0 is the default: as /tmp, since a container's user has to be able to write.
fn tmpfs_mode(tmpfs: &TmpfsSource) -> u32 {
    if tmpfs.mode == 0 {
        0o1777
    } else {
        tmpfs.mode & 0o7777
    }
}

/// Makes `tmpfs.path` below `base` with the owner and mode of the volume, unless it is there.
pub(super) fn make_directory(base: &Path, tmpfs: &TmpfsSource) -> io::Result<()> {
    let root = open_path(base)?;
    match paths::open(&root, &tmpfs.path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map(drop),
    }
    let made = paths::open_or_create(root.as_fd(), &tmpfs.path, Missing::Directory)?;
    let name = PathBuf::from(format!("/proc/self/fd/{}", made.as_raw_fd()));
    chown(&name, Some(tmpfs.uid), Some(tmpfs.gid))?;
    fs::set_permissions(&name, fs::Permissions::from_mode(tmpfs_mode(tmpfs)))
}

/// Mounts the directory that a virtio-fs device shares. Not "nosuid": a volume of the host keeps what it is mounted with
/// there. Device nodes of the host mean other devices here.
pub(super) fn shared(path: &Path, tag: &str) -> io::Result<()> {
    mount_at("virtiofs", tag, path, MountFlags::NODEV, "")
}

/// Makes the kernel mount what the host has mounted at and below a shared path: virtio-fs does so when a directory is looked
/// up, and each mount takes the attributes of the one that it is found through.
pub(super) fn reach(path: &Path, shared: &SharedSource) -> io::Result<()> {
    match open_directory(path) {
        // A file is not mounted anew.
        Err(Errno::NOTDIR) => return Ok(()),
        opened => opened.map(drop)?,
    }
    for below in &shared.submounts {
        match open_directory(&path.join(below)) {
            // Gone meanwhile, or a file.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            opened => opened.map(drop)?,
        }
    }
    Ok(())
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Lets go of what [`reach`] mounted.
pub(super) fn leave(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // A file, or a directory that the host has taken away.
        Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        unmounted => Ok(unmounted?),
    }
}

/// One view of an image's layers, topmost first. A single one is mounted already: it is bound.
pub(super) fn image(path: &Path, layers: &[PathBuf]) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if let [layer] = layers {
        return Ok(rustix::mount::mount_bind(layer, path)?);
    }
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        fsconfig_set_string(&overlay, "lowerdir+", layer)?;
    }
    fsconfig_create(&overlay)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&mount, "", CWD, path, flags)?)
}

/// The same with the ids of a user namespace. An overlay cannot be mapped, so its layers are, in a place that is theirs
/// until the overlay has taken them.
pub(super) fn mapped_image(path: &Path, layers: &[PathBuf], namespace: BorrowedFd<'_>) -> io::Result<()> {
    let place = path.with_extension("layers");
    let mut mapped = Vec::with_capacity(layers.len());
    let map = |at: &Path, layer: &Path| -> io::Result<()> {
        fs::create_dir_all(at)?;
        let tree = init_mounts::clone_tree(open_path(layer)?)?;
        sys::mount::map_ids(&tree, namespace)?;
        init_mounts::place(&tree, open_path(at)?)
    };
    let mut made = Ok(());
    for (index, layer) in layers.iter().enumerate() {
        let at = place.join(index.to_string());
        made = map(&at, layer);
        mapped.push(at);
        if made.is_err() {
            break;
        }
    }
    let made = made.and_then(|()| image(path, &mapped));
    for at in &mapped {
        // The image has its own copy of the mount.
        leave(at)?;
    }
    absent(fs::remove_dir_all(&place))?;
    made
}

/// Whether there is something at `path` in `base`; links lead nowhere else.
pub(super) fn has(base: &Path, path: &str) -> io::Result<()> {
    paths::open(open_path(base)?, path, OFlags::PATH).map(drop)
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn mount_at(filesystem: &str, source: &str, path: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let options = std::ffi::CString::new(options)?;
    Ok(mount(source, path, filesystem, flags, options.as_c_str())?)
}
