//! A path of the host that a pod names: opened once, looked at through the descriptor, and used as that. Whatever is put in
//! its place afterwards changes nothing.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};

use crate::{machine::mountinfo::MountPoint, sandbox::RequestError};

/// Linux's number of tmpfs, statfs(2).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// An opened path, which may not be read or written through.
#[derive(Debug)]
pub(crate) struct HostPath {
    pub(crate) file: OwnedFd,
    pub(super) kind: FileType,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    mount: u64,
}

/// Opens `path`, following links. One that does not exist becomes a directory, as under other runtimes.
pub(super) fn open(field: &str, path: &Path) -> Result<HostPath, RequestError> {
    let failed = |error: io::Error| RequestError::invalid(field, format!("{}: {error}", path.display()));
    if !path.is_absolute() {
        return Err(RequestError::invalid(field, "no absolute path"));
    }
    match HostPath::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path).map_err(failed)?;
            HostPath::open(path).map_err(failed)
        }
        opened => opened.map_err(failed),
    }
}

impl HostPath {
    fn open(path: &Path) -> io::Result<Self> {
        let file = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, wanted)?;
        Ok(Self {
            kind: FileType::from_raw_mode(stat.stx_mode.into()),
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mode: u32::from(stat.stx_mode) & 0o7777,
            owner: (stat.stx_uid, stat.stx_gid),
            mount: stat.stx_mnt_id,
            file,
        })
    }

    /// The mount that it is on.
    pub(super) fn mount<'m>(&self, mounts: &'m [MountPoint]) -> Option<&'m MountPoint> {
        mounts.iter().find(|mount| mount.id == self.mount)
    }

    /// Where it is, without links.
    pub(super) fn real_path(&self) -> io::Result<PathBuf> {
        std::fs::read_link(self.name())
    }

    /// A path to it that does not depend on names.
    pub(super) fn name(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Size of the tmpfs that it is on, bytes; `None` on another file system.
    pub(super) fn tmpfs_bytes(&self) -> io::Result<Option<u64>> {
        let stat = rustix::fs::fstatfs(self.file.as_fd())?;
        let block = u64::try_from(stat.f_bsize).unwrap_or_default();
        Ok((stat.f_type == TMPFS_MAGIC).then(|| stat.f_blocks.saturating_mul(block)))
    }

    /// Whether a directory has no entries.
    pub(super) fn is_empty_directory(&self) -> io::Result<bool> {
        Ok(std::fs::read_dir(self.name())?.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_swapped_afterwards_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs_err::create_dir(at("real")).unwrap();
        fs_err::write(at("real/file"), "x").unwrap();
        symlink(at("real"), at("link")).unwrap();
        let opened = open("f", &at("link")).unwrap();
        fs_err::remove_file(at("link")).unwrap();
        symlink("/etc", at("link")).unwrap();
        assert_eq!(opened.kind, FileType::Directory);
        assert_eq!(
            opened.real_path().unwrap(),
            fs_err::canonicalize(at("real")).unwrap()
        );
        assert!(!opened.is_empty_directory().unwrap());
    }

    #[test]
    fn a_missing_path_becomes_a_directory_and_a_dangling_link_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        assert_eq!(open("f", &path).unwrap().kind, FileType::Directory);
        assert!(path.is_dir());
        symlink("nowhere", directory.path().join("dangling")).unwrap();
        let error = open("mounts[1].host_path", &directory.path().join("dangling")).unwrap_err();
        assert!(error.to_string().starts_with("mounts[1].host_path: "), "{error}");
    }
}
