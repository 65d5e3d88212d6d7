//! Puts mounts below a container's root, and hides paths in it: detached mounts first, attached when they are complete.
//!
//! What to mount was decided by `container/plan.rs`. A mount gets its attributes before it is attached, so that at no
//! moment it is more permissive than asked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proto::agent::v1::ErrorCode;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Context as _, Failure};
use crate::init::order::{Attributes, Content, Mount, Source};
use crate::init::paths::{self, Missing};
use crate::init::user_namespace::Namespace;
use crate::init::{devices, rootfs};
use crate::sys;

/// Attaches one mount below `root`.
///
/// # Errors
/// [`ErrorCode::Mount`], naming the destination.
pub(crate) fn attach(
    root: BorrowedFd<'_>,
    mount: &Mount,
    namespace: Option<&Namespace<'_>>,
) -> Result<(), Failure> {
    let destination = &mount.destination;
    let source = match &mount.source {
        Source::New {
            filesystem,
            options,
            content,
        } => new_file_system(
            filesystem,
            &readable(filesystem, outside(options, namespace)?),
            *content,
        )
        .and_then(|mount| own_root(mount, filesystem, namespace)),
        Source::Bind { base, path } => rustix::fs::open(base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|base| paths::open(base, path, OFlags::PATH))
            .and_then(|source| clone_tree(&source)),
    }
    .context(ErrorCode::Mount, || format!("mount {destination}: open source"))?;
    if let (true, Some(namespace)) = (mount.id_mapped, namespace) {
        sys::mount::map_ids(&source, namespace.descriptor)
            .context(ErrorCode::Mount, || format!("mount {destination}: map its ids"))?;
    }
    let recursive = mount.recursive_read_only;
    let mut attributes = attribute_flags(mount.attributes);
    attributes.set(
        MountAttrFlags::MOUNT_ATTR_RDONLY,
        mount.attributes.read_only || recursive,
    );
    if !attributes.is_empty() {
        sys::mount::set_attributes(&source, attributes, recursive).context(ErrorCode::Mount, || {
            format!("mount {destination}: set attributes")
        })?;
    }
    let target = destination_of(root, mount, &source).context(ErrorCode::Mount, || {
        format!("mount {destination}: open mount point")
    })?;
    place(&source, &target).context(ErrorCode::Mount, || format!("mount {destination}"))
}

/// The options with owners as they are outside of the user namespace.
fn outside(
    options: &[(String, Option<String>)],
    namespace: Option<&Namespace<'_>>,
) -> Result<Vec<(String, Option<String>)>, Failure> {
    let Some(Namespace { map, .. }) = namespace else {
        return Ok(options.to_vec());
    };
    let outside = options.iter().map(|(key, value)| {
        let range = match key.as_str() {
            "uid" => map.uids,
            "gid" => map.gids,
            _ => return Ok((key.clone(), value.clone())),
        };
        let id = value.as_deref().and_then(|id| range.outside(id.parse().ok()?));
        let id = id.ok_or_else(|| {
            Failure::invalid(format!(
                "{key}={value:?} is not mapped in the pod's user namespace"
            ))
        })?;
        Ok((key.clone(), Some(id.to_string())))
    });
    outside.collect()
}

/// The options without owners that the file system cannot read: devpts takes ids for signed numbers (Linux 6.12,
/// `fs/devpts/inode.c`) and refuses those beyond, which kubelet gives to pods as well. Without a group for all, a terminal gets
/// that of whoever opens it.
fn readable(filesystem: &str, mut options: Vec<(String, Option<String>)>) -> Vec<(String, Option<String>)> {
    let is_owner = |key: &str| ["uid", "gid"].contains(&key);
    let is_signed = |value: &Option<String>| value.as_ref().is_some_and(|id| id.parse::<i32>().is_ok());
    if filesystem == "devpts" {
        options.retain(|(key, value)| !is_owner(key) || is_signed(value));
    }
    options
}

/// Gives the root directory to the namespace's root, where the kernel makes it for the guest's root whoever mounts it. What
/// shows the guest's own state (proc, sysfs, cgroups) stays the guest's.
fn own_root(mount: OwnedFd, filesystem: &str, namespace: Option<&Namespace<'_>>) -> io::Result<OwnedFd> {
    if let (Some(Namespace { map, .. }), "devpts" | "mqueue") = (namespace, filesystem) {
        let (uid, gid) = (Uid::from_raw(map.uids.outside), Gid::from_raw(map.gids.outside));
        rustix::fs::chownat(&mount, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(mount)
}

fn destination_of(root: BorrowedFd<'_>, mount: &Mount, source: &OwnedFd) -> io::Result<OwnedFd> {
    let missing = if is_directory(source)? {
        Missing::Directory
    } else {
        Missing::File
    };
    let target = paths::open_or_create(root, &mount.destination, missing)?;
    if mount.exact_destination {
        return paths::open_exact(root, &mount.destination, OFlags::PATH);
    }
    Ok(target)
}

/// Hides `path`: a directory behind an empty read-only one, anything else behind /dev/null. Nothing there: nothing to do.
///
/// # Errors
/// [`ErrorCode::Mount`], naming the path.
pub(crate) fn mask(root: BorrowedFd<'_>, path: &str) -> Result<(), Failure> {
    let hide = || -> io::Result<()> {
        let Some(target) = existing(root, path)? else {
            return Ok(());
        };
        let cover = if is_directory(&target)? {
            empty_directory()?
        } else {
            clone_tree(&rustix::fs::open(
                "/dev/null",
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
            )?)?
        };
        place(&cover, &target)
    };
    hide().context(ErrorCode::Mount, || format!("mask {path}"))
}

/// A read-only file system with nothing in it.
fn empty_directory() -> io::Result<OwnedFd> {
    let options = [
        option("size", "4096"),
        option("nr_inodes", "2"),
        option("mode", "555"),
    ];
    let empty = new_file_system("tmpfs", &options, Content::Empty)?;
    sys::mount::set_attributes(&empty, hiding(), false)?;
    Ok(empty)
}

/// One for mount points, which only this process sees.
pub(super) fn mount_points() -> io::Result<OwnedFd> {
    new_file_system("tmpfs", &[option("mode", "700")], Content::Empty)
}

fn hiding() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Makes `path` and everything mounted below it read-only. Nothing there: nothing to do.
///
/// # Errors
/// [`ErrorCode::Mount`], naming the path.
pub(crate) fn make_read_only(root: BorrowedFd<'_>, path: &str) -> Result<(), Failure> {
    let protect = || -> io::Result<()> {
        let Some(target) = existing(root, path)? else {
            return Ok(());
        };
        let tree = clone_tree(&target)?;
        sys::mount::set_attributes(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY, true)?;
        place(&tree, &target)
    };
    protect().context(ErrorCode::Mount, || format!("make {path} read-only"))
}

fn existing(root: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    match paths::open(root, path, OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A new instance of `filesystem`, mounted nowhere.
fn new_file_system(
    filesystem: &str,
    options: &[(String, Option<String>)],
    content: Content,
) -> io::Result<OwnedFd> {
    let context = fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What /proc/mounts shows first, and what programs look for there.
    fsconfig_set_string(&context, "source", filesystem)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(&context, key.as_str())?,
        }
    }
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    match content {
        Content::Empty => {}
        Content::Devices => devices::populate(mount.as_fd())?,
    }
    Ok(mount)
}

/// A detached copy of the mount tree at `path`, what is mounted below it included.
pub(crate) fn clone_tree(path: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(path, "", flags)?)
}

/// Attaches a detached mount on an opened path.
pub(crate) fn place(source: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(source, "", target, "", flags)?)
}

fn is_directory(fd: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

fn attribute_flags(attributes: Attributes) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attributes.no_suid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attributes.no_dev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attributes.no_exec);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODIRATIME, attributes.no_dir_atime);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOATIME, attributes.no_atime);
    flags.set(
        MountAttrFlags::MOUNT_ATTR_STRICTATIME,
        attributes.strict_atime && !attributes.no_atime,
    );
    flags
}

fn option(key: &str, value: &str) -> (String, Option<String>) {
    (key.to_owned(), Some(value.to_owned()))
}

/// Moves the stage to an empty root of its own: for the process that holds the pod's PID namespace, so that
/// `/proc/1/root` in a container shows nothing of the agent's.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn enter_empty_root() -> Result<(), Failure> {
    let empty = empty_directory().context(ErrorCode::Mount, || "mount an empty root".to_owned())?;
    let target = rootfs::open_path("/proc")?;
    place(&empty, &target).context(ErrorCode::Mount, || "attach the empty root".to_owned())?;
    rootfs::enter(&empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devpts_gets_no_owner_that_it_cannot_read() {
        let options = |gid: &str| {
            [("mode", "0620"), ("gid", gid)].map(|(key, value)| (key.to_owned(), Some(value.to_owned())))
        };
        let large = options("2497052677").to_vec();
        assert_eq!(readable("devpts", large.clone()), options("").get(..1).unwrap());
        assert_eq!(readable("tmpfs", large.clone()), large);
        let small = options("7300005").to_vec();
        assert_eq!(readable("devpts", small.clone()), small);
    }
}
