//! Binds of volumes in a Machine's shared directory. Blocks; needs root.
//!
//! A source is a descriptor that was checked; it is cloned as it is, so that nobody can put something else in its place.
//! The clone leaves the peer groups of the host before it is attached: what happens in it never reaches the host.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount},
};

use super::Propagation;
use crate::{
    id_map::IdMap,
    sys::{mount as sys, user_namespace},
};

/// Makes the shared directory a mount whose events reach those who took a copy of it: virtiofsd's namespace.
pub(super) fn prepare(shared: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(shared)?;
    if is_mount_point(shared)? {
        return Ok(());
    }
    let directory = open(shared)?;
    let clone = clone_tree(&directory)?;
    sys::set_propagation(&clone, sys::Propagation::Private, true)?;
    place(&clone, &directory)?;
    sys::set_propagation(open(shared)?, sys::Propagation::Shared, false)
}

/// Makes a detached tree show the ids of a user namespace, which only these mounts will know.
pub(super) fn map_ids(tree: OwnedFd, map: IdMap) -> io::Result<OwnedFd> {
    let namespace = user_namespace::make(map)?;
    user_namespace::map_ids(&tree, namespace)?;
    Ok(tree)
}

/// Binds a detached tree to `name`, a plain name.
pub(super) fn bind(shared: &Path, name: &str, tree: &OwnedFd, propagation: Propagation) -> io::Result<()> {
    let target = shared.join(name);
    if make_mount_point(&target, is_directory(tree)?)? && is_mount_point(&target)? {
        return Ok(());
    }
    let propagation = match propagation {
        Propagation::Private => sys::Propagation::Private,
        Propagation::FromHost => sys::Propagation::Slave,
    };
    sys::set_propagation(tree, propagation, true)?;
    place(tree, open(&target)?)
}

/// Takes a name out: never more than the mount and the empty mount point.
pub(super) fn unbind(shared: &Path, name: &str) -> io::Result<()> {
    let target = shared.join(name);
    detach(&target)?;
    let removed = match std::fs::symlink_metadata(&target) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir(&target),
        Ok(_) => std::fs::remove_file(&target),
        Err(error) => Err(error),
    };
    absent(removed)
}

/// What is in the shared directory, or was begun to be.
pub(super) fn names(shared: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(shared) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Takes everything out, and the directory away.
pub(super) fn remove(shared: &Path) -> io::Result<()> {
    for name in names(shared)? {
        unbind(shared, &name)?;
    }
    detach(shared)?;
    absent(std::fs::remove_dir(shared))
}

fn detach(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Not mounted, or not there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether it was there before.
fn make_mount_point(path: &Path, directory: bool) -> io::Result<bool> {
    let made = if directory {
        std::fs::create_dir(path)
    } else {
        std::fs::File::create_new(path).map(drop)
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
        made => made.map(|()| false),
    }
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn is_directory(file: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode) == FileType::Directory)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A detached copy of the tree at `source`.
pub(super) fn clone_tree(source: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(source, "", flags)?)
}

fn place(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
